"""What endpoints answer, as evidence: images and texts asked for one at a time, kept in the run's own folder and in no cache, for nobody knows
here what a server serves. The first item is asked for twice, and a reader hears where the two answers differ."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from compress.data.images import READER, read_image, size_of
from compress.data.items import Item
from compress.endpoints.calls import EndpointError
from compress.endpoints.images import ImageCalls, seed_of
from compress.endpoints.served import Served
from compress.endpoints.texts import Asked, TextCalls
from compress.errors import StageFailed
from compress.events import Emit, Event, track
from compress.files.hashing import digest_file, digest_json
from compress.tasks import WRITTEN
from evaluation.evidence import Continuation, Evidence

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIDES = ("baseline", "candidate")
FILE_NAME = re.compile(r"\w[\w .()-]{0,199}")
AGAIN = "nothing that an endpoint answers is kept for another run: see why, and run it again"


def answered(found: Evidence, served: Served, continued: tuple[int, ...], side: str, emit: Emit) -> Evidence:
    """The evidence with what metrics need of an endpoint.

    Args:
        continued: how many prompts are continued, by how many words of each, and to how many tokens.

    Raises:
        StageFailed: an answer does not come, or is a constant image.
    """
    if served.answers is None:
        raise ValueError("nobody looked at what this endpoint does")
    if not found.items:
        shutil.rmtree(served.answers, ignore_errors=True)  # of another run
        return found
    with _anew(served.answers) as folder:
        if isinstance(served.calls, ImageCalls) and "images" in served.wanted:
            found = _images(found, served.calls, folder, served.answers, side, emit)
        if isinstance(served.calls, TextCalls) and "documents" in served.wanted:
            found = _scored(found, served.calls, side, emit)
        if isinstance(served.calls, TextCalls) and served.wanted & WRITTEN:
            found = _continued(found, served.calls, continued, folder, side, emit)
    return found


@contextmanager
def _anew(folder: Path) -> Iterator[Path]:
    """An empty folder that takes the place of this one, of another run, once all of it is there; else nothing changes."""
    made = folder.with_name(f".{folder.name}")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    try:
        yield made
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)


@contextmanager
def answering(side: str, done: Sequence[object], asked: Sequence[Item]) -> Iterator[None]:
    """Around calls to an endpoint.

    Args:
        asked: what it is asked in turn; () where that has no names.

    Raises:
        StageFailed: one of them failed; it says which, and how many came before.
    """
    try:
        yield
    except EndpointError as error:
        wrong, at = error.problems[0], len(done)
        which = f", asked for item {asked[at].id}" if at < len(asked) else ""
        count = f"{which}, after {at} of {len(asked)} answers" if asked else ""
        message = f"the {side} {wrong.message}{count}"
        raise StageFailed(message, place=wrong.place, fix=f"{wrong.fix}; {AGAIN}") from error


def _images(found: Evidence, calls: ImageCalls, folder: Path, later: Path, side: str, emit: Emit) -> Evidence:
    """Evidence with an image of each item, in a folder as `pare eval` takes one, which lies elsewhere later."""
    from PIL import Image

    rows: list[dict[str, str]] = []
    names = _names(found.items)
    with answering(side, rows, found.items):
        for item in track(found.items, emit, f"asking the {side} for images", len(found.items)):
            image = calls.image(item.text, seed_of(found.seed, item.id))
            if image.min() == image.max():
                fix = "look at what its server serves"
                raise StageFailed(f"the {side} answers {item.text!r} with a constant image", place=item.id, fix=fix)
            rows.append({"file_name": names[len(rows)], "text": item.text})
            Image.fromarray(image).save(folder / rows[-1]["file_name"])
        first = found.items[0]
        again = calls.image(first.text, seed_of(found.seed, first.id))
    _look_alike(side, found.items, [folder / name for name in names], emit)
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    if not np.array_equal(again, read_image(folder / names[0])):
        seeded = "with no seed, which its server does not take" if "seed" in calls.left_out else "with one seed"
        _differs(side, f"asked twice for {first.text!r} {seeded}, it gave two different images", emit)

    def image_at(index: int) -> NDArray[np.uint8]:
        return read_image(later / names[index])

    key = digest_json([READER, [digest_file(folder / row["file_name"]) for row in rows]])
    return replace(found, image=image_at, key=key)


def _continued(
    found: Evidence, calls: TextCalls, how: tuple[int, ...], folder: Path, side: str, emit: Emit
) -> Evidence:
    """Evidence with the first prompts continued."""
    count, words, most = how
    items, rows = found.items[:count], list[Continuation]()
    with answering(side, rows, items):
        for item in track(items, emit, f"asking the {side} for texts", len(items)):
            asked = calls.asked(item, words)
            written = calls.write(asked, most)
            rows.append(Continuation(shown(asked), written.tokens or (), written.text))
        again = calls.write(calls.asked(items[0], words), most) if items else None
    if rows and side == SIDES[0] and not any(row.text.strip() for row in rows):  # a candidate's would differ from all
        fix = "look at what its server serves, and whether the template of its model ends the answer at once"
        raise StageFailed(f"the {side} answers none of {len(rows)} prompts with a text", place=items[0].id, fix=fix)
    if again and again.text != rows[0].text:
        _differs(side, f"asked twice to continue {rows[0].prompt[:60]!r}, greedily, it wrote two different texts", emit)
    (folder / "continuations.json").write_text(json.dumps([vars(row) for row in rows], indent=1, ensure_ascii=False))
    return replace(found, continuations=tuple(rows))


def _scored(found: Evidence, calls: TextCalls, side: str, emit: Emit) -> Evidence:
    """Evidence with the items' texts scored, whole."""
    rows: list[tuple[NDArray[np.float64], int]] = []
    with answering(side, rows, found.items):
        for item in track(found.items, emit, f"having texts scored by the {side}", len(found.items)):
            rows.append(calls.score(item.text))
            if not np.isfinite(rows[-1][0]).all():
                fix = "look at what its server serves"
                raise StageFailed(f"the {side} gives a document no finite probability", place=item.id, fix=fix)
        again, _ = calls.score(found.items[0].text)
    if not np.array_equal(again, rows[0][0]):
        _differs(side, "asked twice to score the first text, it gave two different answers", emit)
    return replace(found, token_logprobs=tuple(row for row, _ in rows), bytes_read=tuple(size for _, size in rows))


def alike_scored(sides: tuple[Evidence, Evidence], emit: Emit) -> tuple[Evidence, Evidence]:
    """Two endpoints' evidence with the same tokens of each document scored: where one server gives the first a probability, and the other
    does not, it counts on neither side.

    Raises:
        StageFailed: they still differ in how many, so a probability of a token is not the same thing on both sides.
    """
    lengths = [np.array([len(row) for row in side.token_logprobs]) for side in sides]
    if len(lengths[0]) != len(lengths[1]) or (lengths[0] == lengths[1]).all():
        return sides
    for longer, shorter in ((0, 1), (1, 0)):
        if (lengths[longer] - lengths[shorter] == 1).all():
            message = f"the {SIDES[longer]} gives each text's first token a probability, and the {SIDES[shorter]} none"
            emit(Event("warning", "endpoints", f"{message}: it counts on neither side"))
            rows = tuple(row[1:] for row in sides[longer].token_logprobs)
            changed = replace(sides[longer], token_logprobs=rows, bytes_read=sides[shorter].bytes_read)
            return (changed, sides[1]) if longer == 0 else (sides[0], changed)
    first = int(np.flatnonzero(lengths[0] != lengths[1])[0])
    one, other = (int(row.sum()) for row in lengths)
    message = f"the two servers score the same texts in {one} and {other} tokens, so their perplexities do not compare"
    fix = "drop perplexity and use text_agreement, or serve two models of one tokenizer"
    raise StageFailed(message, place=sides[0].items[first].id, fix=fix)


def _look_alike(side: str, items: Sequence[Item], files: Sequence[Path], emit: Emit) -> None:
    """A warning where an endpoint gave images of several sizes, or different prompts one image."""
    if len(sizes := {size_of(file) for file in files}) > 1:
        some = ", ".join(f"{width}x{height}" for height, width in sorted(sizes)[:3])
        emit(Event("warning", side, f"its server gave images of {len(sizes)} sizes, {some} among them"))
    prompts = len({item.text for item in items})
    if prompts > 1 and (kinds := len({digest_file(file) for file in files})) < prompts:
        emit(Event("warning", side, f"its server gave {prompts} different prompts {kinds} different images"))


def shown(asked: Asked) -> str:
    """What was asked, as a report shows it."""
    return asked if isinstance(asked, str) else "\n".join(one["content"] for one in asked)


def _differs(side: str, message: str, emit: Emit) -> None:
    rest = "part of what differs between the sides is the server's own"
    emit(Event("warning", side, f"{message}: {rest}"))


def _names(items: Sequence[Item]) -> list[str]:
    """The file of each item's image: called by its id, by which other folders of images are compared with these, or numbered where an id
    is no name of a file."""
    named = [one if one.endswith(".png") else f"{one}.png" for one in (item.id for item in items)]
    fit = all(map(FILE_NAME.fullmatch, named)) and len({name.lower() for name in named}) == len(named)
    return named if fit else [f"{index:05d}.png" for index in range(len(items))]

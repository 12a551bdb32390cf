"""Artifact to evidence of quality: images generated, documents scored, prompts continued. Cached by what decides it; time is
no part of it."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from compress.artifact import Artifact
from compress.catalogue import find_engine, find_task
from compress.data.images import READER, read_image
from compress.data.items import Item
from compress.endpoints.served import Served
from compress.errors import StageFailed
from compress.events import Emit, Event, silent, track
from compress.files.hashing import digest_file, digest_json, touch
from compress.files.locks import hold, lock_of, locked
from compress.machine import deps
from compress.machine.devices import Opening
from compress.model.batching import company
from evaluation.evidence import Continuation, Evidence
from evaluation.observe.endpoints import answered
from evaluation.preflight.image_folders import images_for, read_generated

if TYPE_CHECKING:
    from compress.opening.models import LanguageModel

CONTINUATIONS = "continuations"
FORMAT = 4
FORMATS = {
    "documents": 5,
    CONTINUATIONS: 5,
}  # of some kinds another: since then evidence says how much of the texts was read
MANIFEST = "evidence.json"
STORED_AS = {"images": "pictures"}  # what keys call a kind since before it had this name: evidence of then still counts
NOTES = "said.json"  # what a reader must know of the evidence, where there is something


@dataclass(frozen=True)
class Viewpoint:
    """Everything that decides what one side shows: the model, how it is opened and called, and on what.

    batch: not in the key: noise belongs to (seed, prompt), never to the batch.
    evidence: the kinds to collect, each with the numbers that decide it beside all this.
    left_out: which items of the data do not count, in words.
    each: how many items in a row belong to one unit.
    """

    artifact: Artifact
    opening: Opening
    call: Mapping[str, Any]
    items: tuple[Item, ...]
    data_digest: str
    seed: int
    batch: int
    evidence: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    left_out: str = ""
    each: int = 1

    def key(self, kind: str) -> str:
        how = (
            self.artifact.digest,
            self.artifact.task,
            self.opening.dtype or "",
            dict(self.call),
            self.data_digest,
            len(self.items),
            self.seed,
            self._libraries,
        )
        device = [self.opening.counted] if self.opening.counted else []
        # What was read together before is no score of such a model's items.
        kept = company(self.artifact) if kind != CONTINUATIONS else "any"
        apart = [] if kept == "any" else [kept]
        return digest_json(
            [FORMATS.get(kind, FORMAT), STORED_AS.get(kind, kind), *how, *self.evidence.get(kind, ()), *device, *apart]
        )

    @property
    def _libraries(self) -> dict[str, str]:
        """Versions of what runs the model: with others, the same files may show something else."""
        parts = self.artifact.components.values()
        engines = sorted({find_engine(part.format).distribution for part in parts})
        packers = sorted({part.quantization.library for part in parts if part.quantization})
        names = dict.fromkeys((*find_task(self.artifact.task).libraries, *engines, *packers))
        return {name: deps.version(name) or "" for name in names}

    @property
    def kinds(self) -> tuple[str, ...]:
        """What is observed of its items."""
        return tuple(self.evidence) if self.items and self.artifact.components else ()


def collect(view: Viewpoint, folders: Sequence[Path], side: str, emit: Emit) -> Evidence:
    """All evidence of a viewpoint, each kind from the first of `folders` that holds it whole, else made and kept in the first.

    Raises:
        StageFailed: an image came out constant or not finite, or a document's score is not finite.
    """
    found = Evidence(
        view.artifact,
        view.items,
        opening=view.opening,
        call=view.call,
        batch=view.batch,
        seed=view.seed,
        key=view.key(view.kinds[0]) if view.kinds else "",
        data_key=digest_json([READER, view.data_digest, len(view.items), *([view.each] if view.each > 1 else [])]),
        memory=folders[0].parent / "features",
        written=view.evidence.get(CONTINUATIONS, (0, 0, 0))[2],
        protocol={"samples": len(view.items) // view.each, "seed": view.seed, "data": view.data_digest},
        each=view.each,
    )
    if isinstance(view.artifact, Served):
        return answered(found, view.artifact, view.evidence.get(CONTINUATIONS, (0, 0, 0)), side, emit)
    if view.items and not view.artifact.components:
        return _given(found, side)
    for kind in view.kinds:
        found = _observed(kind, found, view, folders, side, emit)
    return found


def _given(found: Evidence, side: str) -> Evidence:
    """Evidence of a folder of images: they are read where they lie."""
    files = images_for(found.artifact.path, found.items)

    def image(index: int) -> NDArray[np.uint8]:
        return read_generated(files[index], side)

    return replace(found, image=image, key=digest_json([READER, found.artifact.digest, [f.name for f in files]]))


def _observed(kind: str, found: Evidence, view: Viewpoint, folders: Sequence[Path], side: str, emit: Emit) -> Evidence:
    """One kind of evidence. Whoever wants it at the same time waits, and finds it then."""
    if (opened := _stored(kind, found, view, folders, emit)) is not None:
        return opened
    own, key = folders[0], view.key(kind)
    own.mkdir(parents=True, exist_ok=True)

    def waiting() -> None:
        emit(Event("note", "evidence", "another run is collecting it; waiting"))

    with locked(lock_of(own, key), waiting):
        if (opened := _stored(kind, found, view, (own,), silent)) is not None:
            return opened
        _collect_into(own / key, kind, view, side, emit)
        opened = _stored(kind, found, view, (own,), emit)
    if opened is None:
        raise StageFailed(f"the evidence of the {side} does not read back", place=str(own / key), fix="check the disk")
    return opened


def _stored(kind: str, found: Evidence, view: Viewpoint, folders: Sequence[Path], emit: Emit) -> Evidence | None:
    """The evidence in the first folder that holds it whole; it stays there for as long as somebody has it."""
    _, read = KINDS[kind]
    for folder in folders:
        kept = folder / view.key(kind)
        held = hold(kept / MANIFEST)  # before looking: images are read from it when a metric asks for them
        if (opened := _open(kept, found, read, emit)) is not None:
            touch(kept / MANIFEST)
            return replace(opened, holds=(*opened.holds, *([held] if held else [])))
    return None


def _collect_into(target: Path, kind: str, view: Viewpoint, side: str, emit: Emit) -> None:
    """Make a kind of evidence; its folder appears whole or not at all."""
    make, _ = KINDS[kind]
    made = Path(tempfile.mkdtemp(dir=target.parent, prefix=".making-"))
    try:
        make(view, made, side, emit)
        files = {f.name: digest_file(f) for f in sorted(made.iterdir())}
        (made / MANIFEST).write_text(json.dumps({"format": FORMAT, "key": view.key(kind), "files": files}, indent=1))
        shutil.rmtree(target, ignore_errors=True)
        made.rename(target)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _open(folder: Path, found: Evidence, read: Callable[[Path, Evidence], Evidence], emit: Emit) -> Evidence | None:
    if not folder.is_dir():
        return None
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        for name, digest in manifest["files"].items():
            if digest_file(folder / name) != digest:
                raise ValueError(f"{name} changed")
    except (OSError, ValueError, KeyError) as error:
        emit(Event("warning", "evidence", f"{folder.name[:12]} is corrupt ({error}); collecting it again"))
        return None
    return read(folder, found)


def _generate(view: Viewpoint, folder: Path, side: str, emit: Emit) -> None:
    from PIL import Image

    from compress.opening import open_images

    task = open_images(view.artifact, view.opening)
    batch = 1 if company(view.artifact) == "alone" else view.batch
    starts = range(0, len(view.items), batch)
    latents: list[NDArray[np.float32]] = []
    for start in track(starts, emit, f"generating with the {side}", len(starts)):
        items = view.items[start : start + batch]
        generated, decoded = task.images(items, view.seed, **view.call)
        latents += [] if decoded is None else list(decoded)
        for offset, image in enumerate(generated):
            if image.min() == image.max():
                raise StageFailed(
                    f"the {side} generated a constant image for {items[offset].text!r}",
                    place=items[offset].id,
                    fix="the model is broken: look at the last stage, or use a higher precision",
                )
            Image.fromarray(image).save(folder / _name(start + offset))
    _say(folder, task.cut_short(view.items, **view.call))
    if latents:
        _save({"latents": np.stack(latents).astype(np.float16)}, folder / "latents.safetensors")


def _read_images(folder: Path, found: Evidence) -> Evidence:
    stored = folder / "latents.safetensors"

    def image(index: int) -> NDArray[np.uint8]:
        return read_image(folder / _name(index))

    def latent(index: int) -> NDArray[np.float32]:
        from safetensors import safe_open

        with safe_open(stored, framework="numpy") as tensors:
            return np.asarray(tensors.get_slice("latents")[index], dtype=np.float32)

    latents = latent if stored.is_file() else None
    return replace(found, image=image, latent=latents, message=(*found.message, *_said(folder)))


def _say(folder: Path, message: str) -> None:
    """Keep what a reader must know beside the evidence."""
    if message:
        (folder / NOTES).write_text(json.dumps(message))


def _said(folder: Path) -> tuple[str, ...]:
    return (json.loads((folder / NOTES).read_text()),) if (folder / NOTES).is_file() else ()


def _name(index: int) -> str:
    return f"{index:05d}.png"


def _save(tensors: dict[str, NDArray[Any]], path: Path) -> None:
    from safetensors.numpy import save_file

    save_file(tensors, path)


def _score(view: Viewpoint, folder: Path, side: str, emit: Emit) -> None:
    from compress.opening import open_language

    task = open_language(view.artifact, view.opening)
    # Documents of like length share a batch; the order they are stored in stays that of the data.
    order = sorted(range(len(view.items)), key=lambda i: len(view.items[i].text))
    scores: dict[int, NDArray[np.float64]] = {}
    starts = range(0, len(order), view.batch)
    for start in track(starts, emit, f"reading with the {side}", len(starts)):
        chosen = order[start : start + view.batch]
        found = task.token_logprobs([view.items[i] for i in chosen], len(chosen))
        for index, values in zip(chosen, found, strict=True):
            if not np.isfinite(values).all():
                raise StageFailed(
                    f"the {side} gives a document no finite probability",
                    place=view.items[index].id,
                    fix="look at the last stage",
                )
            scores[index] = values
    ordered = [scores[i] for i in range(len(view.items))]
    lengths = np.array([len(s) for s in ordered])
    sizes = np.array([_bytes_read(task, i, n) for i, n in zip(view.items, lengths, strict=True)])
    _save({"logprobs": np.concatenate(ordered), "lengths": lengths, "bytes": sizes}, folder / "logprobs.safetensors")
    _say(folder, task.cut_short(view.items))


def _read_scores(folder: Path, found: Evidence) -> Evidence:
    from safetensors.numpy import load_file

    stored = load_file(folder / "logprobs.safetensors")
    ends = np.cumsum(stored["lengths"])
    scores = tuple(np.split(stored["logprobs"], ends[:-1]))
    sizes, message = tuple(stored["bytes"].tolist()), (*found.message, *_said(folder))
    return replace(found, token_logprobs=scores, bytes_read=sizes, message=message)


def _bytes_read(task: LanguageModel, item: Item, scored: int) -> int:
    """Bytes of a document's text that its scored tokens stand for; of a conversation, of the answers."""
    found = task.read(item)
    tokens = found.tokens
    if found.counted is not None:
        read = task.tokenizer.decode([tokens[at] for at in found.scored], skip_special_tokens=True)
    else:
        read = item.text if len(tokens) < task.max_tokens else task.tokenizer.decode(tokens[len(tokens) - scored :])
    return len(read.encode())


def _continue(view: Viewpoint, folder: Path, side: str, emit: Emit) -> None:
    from compress.opening import open_language

    task = open_language(view.artifact, view.opening)
    documents, length, most = view.evidence[CONTINUATIONS]
    rows = []
    items = view.items[:documents]
    for item in track(items, emit, f"writing with the {side}", len(items)):
        prompt = task.prompt(item, length, most)
        room = min(most, max(1, task.max_tokens - len(prompt)))
        written = task.complete(prompt, room) if prompt else []
        decode = task.tokenizer.decode
        rows.append({"prompt": decode(prompt, skip_special_tokens=True), "tokens": written, "text": decode(written)})
    (folder / "continuations.json").write_text(json.dumps(rows, indent=1))
    _say(folder, task.questions_cut(items, most))


def _read_continuations(folder: Path, found: Evidence) -> Evidence:
    rows = json.loads((folder / "continuations.json").read_text())
    written = tuple(Continuation(row["prompt"], tuple(row["tokens"]), row["text"]) for row in rows)
    return replace(found, continuations=written, message=(*found.message, *_said(folder)))


# How each kind of evidence is made into a folder, and read out of it.
KINDS: Mapping[str, tuple[Callable[[Viewpoint, Path, str, Emit], None], Callable[[Path, Evidence], Evidence]]] = {
    "images": (_generate, _read_images),
    "documents": (_score, _read_scores),
    CONTINUATIONS: (_continue, _read_continuations),
}

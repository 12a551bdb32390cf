"""Artifact to evidence of quality: pictures painted, documents scored. Cached by what decides it; time is no part of it."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.artifact import Artifact
from compress.data import Item
from compress.errors import StageFailed
from compress.events import Emit, Event, track
from compress.hashing import digest_file, digest_json
from evaluation.evidence import Evidence

FORMAT = 2
MANIFEST = "evidence.json"


@dataclass(frozen=True)
class Viewpoint:
    """Everything that decides what one side shows: the model, how it is called, and on what."""

    artifact: Artifact
    dtype: str
    call: Mapping[str, Any]
    items: tuple[Item, ...]
    data_digest: str
    seed: int
    batch: int  # not in the key: noise belongs to (seed, prompt), never to the batch

    @property
    def key(self) -> str:
        content = self.artifact.digest
        return digest_json(
            [
                FORMAT,
                content,
                self.artifact.task,
                self.dtype,
                dict(self.call),
                self.data_digest,
                len(self.items),
                self.seed,
            ]
        )


def collect(view: Viewpoint, folders: Sequence[Path], side: str, emit: Emit) -> Evidence:
    """The evidence of a viewpoint, from the first of `folders` that holds it whole, else made and kept in the first.

    Raises:
        StageFailed: a picture came out constant, or a document's score is not finite.
    """
    for folder in folders:
        if found := _open(folder / view.key, view, emit):
            return found
    target = folders[0] / view.key
    folders[0].mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=folders[0], prefix=".making-"))
    try:
        paint = _paint if view.artifact.task == "text_to_image" else _score
        paint(view, made, side, emit)
        files = {f.name: digest_file(f) for f in sorted(made.iterdir())}
        (made / MANIFEST).write_text(json.dumps({"format": FORMAT, "key": view.key, "files": files}, indent=1))
        shutil.rmtree(target, ignore_errors=True)
        made.rename(target)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    opened = _open(target, view, emit)
    if opened is None:
        raise StageFailed(f"the evidence of the {side} does not read back", place=str(target), fix="check the disk")
    return opened


def _open(folder: Path, view: Viewpoint, emit: Emit) -> Evidence | None:
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
    protocol: dict[str, str | int | float] = {"samples": len(view.items), "seed": view.seed, "data": view.data_digest}
    base = {"artifact": view.artifact, "items": view.items, "dtype": view.dtype, "protocol": protocol}
    if view.artifact.task == "text_to_image":
        return Evidence(**base, picture=lambda index: _read_picture(folder / _name(index)))  # type: ignore[arg-type]
    scores, sizes = _read_scores(folder / "logprobs.safetensors")
    return Evidence(**base, token_logprobs=scores, bytes_read=sizes)  # type: ignore[arg-type]


def _name(index: int) -> str:
    return f"{index:05d}.png"


def _read_picture(path: Path) -> NDArray[np.uint8]:
    from PIL import Image

    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"), dtype=np.uint8)


def _read_scores(path: Path) -> tuple[tuple[NDArray[np.float64], ...], tuple[int, ...]]:
    from safetensors.numpy import load_file

    stored = load_file(path)
    ends = np.cumsum(stored["lengths"])
    return tuple(np.split(stored["logprobs"], ends[:-1])), tuple(stored["bytes"].tolist())


def _paint(view: Viewpoint, folder: Path, side: str, emit: Emit) -> None:
    from PIL import Image

    from compress.tasks import open_task

    task: Any = open_task(view.artifact, dtype=view.dtype or None)
    starts = range(0, len(view.items), view.batch)
    for start in track(starts, emit, f"painting with the {side}", len(starts)):
        items = view.items[start : start + view.batch]
        painted = task.paint([i.text for i in items], [i.id for i in items], view.seed, **view.call)
        for offset, picture in enumerate(painted):
            if picture.min() == picture.max():
                raise StageFailed(
                    f"the {side} painted a constant picture for {items[offset].text!r}",
                    place=items[offset].id,
                    fix="the model is broken: look at the last stage, or use a higher precision",
                )
            Image.fromarray(picture).save(folder / _name(start + offset))


def _score(view: Viewpoint, folder: Path, side: str, emit: Emit) -> None:
    from safetensors.numpy import save_file

    from compress.tasks import open_task

    task: Any = open_task(view.artifact, dtype=view.dtype or None)
    # Documents of like length share a batch; the order they are stored in stays that of the data.
    order = sorted(range(len(view.items)), key=lambda i: len(view.items[i].text))
    scores: dict[int, NDArray[np.float64]] = {}
    starts = range(0, len(order), view.batch)
    for start in track(starts, emit, f"reading with the {side}", len(starts)):
        chosen = order[start : start + view.batch]
        found = task.token_logprobs([view.items[i].text for i in chosen], len(chosen))
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
    sizes = np.array([_bytes_read(task, i.text, n) for i, n in zip(view.items, lengths, strict=True)])
    tensors = {"logprobs": np.concatenate(ordered), "lengths": lengths, "bytes": sizes}
    save_file(tensors, folder / "logprobs.safetensors")


def _bytes_read(task: Any, text: str, scored: int) -> int:
    """Bytes of a document's text that its scored tokens stand for."""
    tokens = task.encode(text)
    read = text if len(tokens) < task.max_tokens else task.tokenizer.decode(tokens[len(tokens) - scored :])
    return len(read.encode())

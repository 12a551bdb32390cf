"""A model with adapters fused into its weights, or beside it: planned from headers, made once, kept like any stage's work. It is what the
chain begins with and what the candidate is compared with, for it is the model that its user has today."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from compress.adapters.keeping import beside, keep, kept_problems, named_after
from compress.adapters.lora import TEMPLATE, Adapter, find_adapter
from compress.adapters.tokenizer import chat_template, tokenizer_problems
from compress.adapters.updates import Change, Matched, Whole, match, weights_of
from compress.artifact import Artifact, Provenance, derive, holding, write_manifest
from compress.errors import ModelError, Problem, UserError
from compress.files.hashing import digest_json
from compress.machine import deps
from compress.model.finite_checks import refuse_nonfinite_adapter
from compress.recipe.values import Recipe
from compress.sources.models import Source

if TYPE_CHECKING:
    from torch import Tensor

STAGE = "adapter"  # what events, the cache and the lineage call it
VERSION = 2  # of how it is fused: in every key


@dataclass(frozen=True)
class Fusion:
    """A model and the adapters that are to be fused into it, one after the other, or to stay beside it, each with the place it is named at."""

    base: Source
    adapters: tuple[Adapter, ...]
    places: tuple[str, ...]
    stage: ClassVar[str] = STAGE

    @property
    def counted(self) -> list[list[object]]:
        """What of the adapters decides the result."""
        return [[one.digest, one.strength, *([one.kept] if one.kept else ())] for one in self.adapters]

    @property
    def fused(self) -> tuple[Adapter, ...]:
        """Those that go into the weights."""
        return tuple(one for one in self.adapters if not one.kept)

    @property
    def beside(self) -> tuple[Adapter, ...]:
        """Those that stay adapters."""
        return tuple(one for one in self.adapters if one.kept)


def with_adapters(base: Source | None, recipe: Recipe, memory: Path | None, problems: list[Problem]) -> Source | None:
    """The recipe's model as it will be with its adapters in it; the model itself where it names none, or they have problems.

    Args:
        memory: where digests of files are remembered.
    """
    found: list[tuple[Adapter, str]] = []
    for number, spec in enumerate(recipe.adapters):
        named = (f"adapter.{number}.path", f"adapter.{number}", "adapter.path", "adapter")
        path = next((name for name in named if name in recipe.place), "")
        place = recipe.place.get(path, "")
        try:
            adapter = find_adapter(spec.path, spec.scale, recipe.folder(path), memory)
            if not spec.fuse:
                taken = [*(base.artifact.adapters if base else ()), *(one.kept for one, _ in found)]
                adapter = replace(adapter, kept=named_after(spec.path, taken))
            refuse_nonfinite_adapter(adapter.file, adapter.digest, memory)
            found.append((adapter, place))
        except UserError as error:
            problems += [
                Problem(place or p.place, f"{p.place}: {p.message}" if place and p.place else p.message, p.fix)
                for p in error.problems
            ]
    if base is None or not found:
        return base
    fusion = Fusion(base, tuple(one for one, _ in found), tuple(place for _, place in found))
    problems += reported(fusion)
    key = digest_json([STAGE, VERSION, base.key, fusion.counted, deps.version("torch")])
    return Source(with_kept(base.artifact, fusion.beside), key, base.remote, fusion)


def with_kept(artifact: Artifact, adapters: tuple[Adapter, ...]) -> Artifact:
    """A model, planned or made, with the adapters that stay beside it."""
    matched = {one.kept: beside(one, _match(one, artifact)) for one in adapters}
    return replace(artifact, adapters={**artifact.adapters, **matched}) if matched else artifact


def reported(fusion: Fusion) -> list[Problem]:
    """Everything that keeps the adapters from being fused, as far as what is on this disk tells."""
    found = []
    artifact = fusion.base.artifact
    changed: dict[tuple[str, str], str] = {}  # the weights, and the adapter that changed each
    for number, (adapter, place) in enumerate(zip(fusion.adapters, fusion.places, strict=True)):
        matched = Matched() if fusion.base.remote else _match(adapter, artifact)
        message = [*matched.problems, *_undone(adapter, matched, changed), *_again(adapter, fusion.adapters[:number])]
        if adapter.kept:
            found += [Problem(place, why, fix) for why, fix in (*message, *kept_problems(adapter, matched, artifact))]
            continue
        changed |= {(change.component, change.weight): adapter.name for change in matched.changes}
        if adapter.folder and artifact.writes_text:
            message += [
                (f"adapter {adapter.name} {why}", fix) for why, fix in tokenizer_problems(adapter.folder, artifact.path)
            ]
        found += [Problem(place, why, fix) for why, fix in message]
    return found


def _undone(adapter: Adapter, matched: Matched, changed: Mapping[tuple[str, str], str]) -> Iterator[tuple[str, str]]:
    """What earlier adapters changed, and this one replaces."""
    for whole in matched.wholes:
        if before := changed.get((whole.component, whole.weight)):
            yield f"adapter {adapter.name} replaces {whole.weight}, which adapter {before} changed", "name it first"
            return


def _again(adapter: Adapter, before: tuple[Adapter, ...]) -> Iterator[tuple[str, str]]:
    """That an earlier one is the very same."""
    for one in before:
        if one.digest == adapter.digest:
            beside = f", as {one.name}" if one.name != adapter.name else ""
            fix = f"give it once, with the sum of both scales ({one.strength + adapter.strength:g}) if both are meant"
            yield f"adapter {adapter.name} is listed twice{beside}", fix
            return


def _match(adapter: Adapter, artifact: Artifact) -> Matched:
    """As `match`; of one that stays an adapter by its own scale alone."""
    try:
        return match(replace(adapter, strength=1.0) if adapter.kept else adapter, artifact, weights_of(artifact))
    except ModelError as error:  # of the model: its own check tells the same with its remedy
        return Matched(problems=[(p.message, p.fix) for p in error.problems])


def fuse(fusion: Fusion, key: str, out: Path) -> tuple[Adapter, ...]:
    """Write the model with its adapters in it; returns those that changed nothing, though they were to."""
    base, adapters = fusion.base.artifact, fusion.fused
    weights = weights_of(base)
    matched = [match(adapter, base, weights) for adapter in adapters]
    changes = _by_file(adapters, matched, {c: {n: w.file for n, w in inside.items()} for c, inside in weights.items()})
    touched = sorted({component for found in matched for component in found.touched})
    read = {w.file for name in touched for w in weights[name].values()}
    kept = {f for f in read if f not in changes} | {
        index for name in touched for index in _indices(base.folder(name), read)
    }
    # Other variants of the weights, and those for other libraries, are not fused.
    without = tuple(str(f.relative_to(base.path)) for f in holding(base, touched) if f not in kept)
    made = derive(base, out, without=without, link=False)
    effective = {
        digest for file, those in changes.items() for digest in _rewrite(file, out / file.relative_to(base.path), those)
    }
    for adapter in adapters:
        _take_template(adapter, out)
    for adapter in fusion.beside:
        keep(adapter, _match(adapter, base), out)
    made = with_kept(replace(made, path=base.path), fusion.beside)
    made = replace(made, path=out)
    params = {"adapters": [_stated(one) for one in fusion.adapters]}
    write_manifest(replace(made, lineage=(*base.lineage, Provenance(STAGE, VERSION, params, key))))
    return tuple(one for one in adapters if one.strength and one.digest not in effective)


def _stated(adapter: Adapter) -> dict[str, object]:
    """What the lineage says of an adapter."""
    return {"digest": adapter.digest, "scale": adapter.strength, **({"kept": adapter.kept} if adapter.kept else {})}


def _indices(folder: Path, read: set[Path]) -> Iterator[Path]:
    """The index of shards, where it is shards that are read."""
    for index in folder.glob("*.safetensors.index.json"):
        stem = index.name.removesuffix(".safetensors.index.json")
        if any(f.parent == folder and f.name.startswith(f"{stem}-") for f in read):
            yield index


Changes = Mapping[str, list[tuple[Adapter, Change]]]  # by the name of the weight, in order


def _by_file(
    adapters: tuple[Adapter, ...], matched: list[Matched], files: Mapping[str, Mapping[str, Path]]
) -> dict[Path, Changes]:
    """What happens to each file of weights."""
    found: dict[Path, dict[str, list[tuple[Adapter, Change]]]] = {}
    for adapter, one in zip(adapters, matched, strict=True):
        for change in one.changes:
            inside = found.setdefault(files[change.component][change.weight], {})
            inside.setdefault(change.weight, []).append((adapter, change))
    return dict(found)


def _rewrite(file: Path, target: Path, changes: Changes) -> set[str]:
    """Write a file of weights anew, with the changed ones; names, number types and metadata stay.

    Returns:
        The digests of the adapters that changed a number.

    Raises:
        UserError: a weight is not finite any more.
    """
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(file, framework="pt") as stored:
        metadata = stored.metadata()
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (safe_open is no mapping)
    effective: set[str] = set()
    for name, those in changes.items():
        finite = bool(torch.isfinite(tensors[name]).all())
        for adapter, change in those:
            before, tensors[name] = tensors[name], _changed(tensors[name], adapter, change)
            if not torch.equal(before, tensors[name]):
                effective.add(adapter.digest)
        if finite and not torch.isfinite(tensors[name]).all():
            fix = "a smaller scale, or the model in bfloat16 or float32"
            raise UserError(f"`{name}` is not finite any more with the adapter in it", place=str(file), fix=fix)
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, target, metadata)
    return effective


def _changed(weight: Tensor, adapter: Adapter, change: Change) -> Tensor:
    from safetensors import safe_open

    from compress.algorithms.lowrank import fused

    with safe_open(adapter.file, framework="pt") as stored:
        if isinstance(change, Whole):
            replaced: Tensor = stored.get_tensor(change.by).to(weight.dtype)
            return replaced
        down, up = stored.get_tensor(change.down), stored.get_tensor(change.up)
        magnitude = stored.get_tensor(change.magnitude).flatten() if change.magnitude else None
    if change.rows:
        up = up[slice(*change.rows)]
        magnitude = magnitude[slice(*change.rows)] if magnitude is not None else None
    return fused(weight, down, up, change.factor, transposed=change.transposed, magnitude=magnitude).contiguous()


def _take_template(adapter: Adapter, out: Path) -> None:
    """The template of conversations that an adapter was trained on goes with it."""
    mine = chat_template(adapter.folder) if adapter.folder else ""
    if mine and mine != chat_template(out):
        (out / TEMPLATE).write_text(mine, encoding="utf-8")

"""Adapters that stay beside a model (`fuse: false`): what may, how they are written, and how they go along with a cut.

Each lies in a folder of its own within the artifact, as diffusers saves a LoRA: pairs under the names that their layers have in the model, and
peft's config of each component in the metadata. A stage that cuts layers cuts the pairs along: of `up · down`, which is added to a weight,
rows are rows of `up` and columns are columns of `down`, so rank and alpha stay what they were.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.adapters.lora import METADATA, Adapter
from compress.adapters.lora import scale as scale_of
from compress.adapters.updates import Matched, Update
from compress.artifact import LORA_FILE, Artifact, KeptAdapter
from compress.errors import StageFailed
from compress.files.safetensors_headers import read_header
from compress.pipelines.index import class_of
from compress.pipelines.lora_parts import lora_parts

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from compress.algorithms.coupled_units import Group
    from compress.context import Context

FOLDER = "adapters"
LIBRARY, EXTRA = "peft", "lora"
FUSE_IT = "leave out fuse: false, and it is fused into the model first"
DOWN, UP = ".lora_A.weight", ".lora_B.weight"
OLDER = (
    "text_model."  # what is in front of a CLIP text encoder's layers in some checkpoints, and not in the model itself
)


@dataclass(frozen=True)
class Pair:
    """One layer's update, up · down · alpha ÷ rank. down: [rank, inputs, …]; up: [outputs, rank, …]."""

    down: Tensor
    up: Tensor
    alpha: float


Pairs = Mapping[str, Mapping[str, Pair]]  # by component and the name of a layer


def named_after(adapter: str, taken: Sequence[str]) -> str:
    """What an adapter is called beside its model: as its folder or file is, in letters that peft takes, once."""
    stem = Path(adapter.partition("@")[0]).name.removesuffix(".safetensors")
    name = re.sub(r"\W+", "_", stem).strip("_") or "adapter"
    return next(one for one in (name, *(f"{name}_{n}" for n in range(2, len(taken) + 3))) if one not in taken)


def beside(adapter: Adapter, matched: Matched) -> KeptAdapter:
    """What a manifest will say of an adapter."""
    return KeptAdapter(f"{FOLDER}/{adapter.kept}", adapter.strength, tuple(sorted(matched.touched)))


def kept_problems(adapter: Adapter, matched: Matched, artifact: Artifact) -> Iterator[tuple[str, str]]:
    """What keeps an adapter from staying beside a model: message and remedy."""
    front = f"adapter {adapter.name}"
    if artifact.writes_text:
        yield f"{front} is to stay beside the model, which pare does for pipelines alone", FUSE_IT
        return
    kind, parts = class_of(artifact.path), lora_parts(class_of(artifact.path))
    if not parts:
        yield f"{front} is to stay beside the model, and diffusers' {kind} has no load_lora_weights", FUSE_IT
    elif other := sorted(matched.touched - parts):
        where = " and ".join(sorted(parts))
        yield f"{front} changes `{other[0]}`, and {kind} loads adapters into {where} alone", FUSE_IT
    if matched.wholes:
        yield (
            f"{front} replaces whole weights, such as {matched.wholes[0].weight}, which cannot stay beside them",
            FUSE_IT,
        )
    if odd := [one.weight for one in matched.updates if one.magnitude or one.transposed]:
        yield f"{front} has more than a pair for {odd[0]}, and what becomes of that after a cut is not defined", FUSE_IT


def keep(adapter: Adapter, matched: Matched, out: Path) -> None:
    """Write an adapter into the folder of the artifact that it will stay beside; numbers, rank and alpha as they are."""
    from safetensors import safe_open

    pairs: dict[str, dict[str, Pair]] = {}
    with safe_open(adapter.file, framework="pt") as stored:
        for one in matched.updates:
            down, up = stored.get_tensor(one.down), stored.get_tensor(one.up)
            up = up[slice(*one.rows)] if one.rows else up
            pairs.setdefault(one.component, {})[one.weight.removesuffix(".weight")] = Pair(down, up, _alpha(one, down))
    write(pairs, out / FOLDER / adapter.kept)


def _alpha(update: Update, down: Tensor) -> float:
    return update.factor * down.shape[0]


def write(pairs: Pairs, folder: Path) -> None:
    """Write pairs as diffusers saves a LoRA. A file that is there is replaced, never written into: it may be a link."""
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    configs: dict[str, Any] = {}
    for component, layers in sorted(pairs.items()):
        for name, pair in sorted(layers.items()):
            tensors[f"{component}.{name}{DOWN}"] = pair.down.contiguous()
            tensors[f"{component}.{name}{UP}"] = pair.up.contiguous()
        configs |= {f"{component}.{key}": value for key, value in _config(layers).items()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / LORA_FILE).unlink(missing_ok=True)
    save_file(tensors, folder / LORA_FILE, {"format": "pt", METADATA: json.dumps(configs, sort_keys=True)})


def _config(layers: Mapping[str, Pair]) -> dict[str, Any]:
    """peft's config of one component: the commonest rank and alpha, and patterns for the others."""
    by_name = {name.removeprefix(OLDER): pair for name, pair in layers.items()}
    ranks = {name: pair.down.shape[0] for name, pair in by_name.items()}
    alphas = {name: _whole(pair.alpha) for name, pair in by_name.items()}
    rank, alpha = (Counter(some.values()).most_common(1)[0][0] for some in (ranks, alphas))
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": sorted(by_name),
        "rank_pattern": {f"^{re.escape(name)}": one for name, one in sorted(ranks.items()) if one != rank},
        "alpha_pattern": {f"^{re.escape(name)}": one for name, one in sorted(alphas.items()) if one != alpha},
    }


def _whole(number: float) -> float | int:
    return int(number) if number == int(number) else number


def read(folder: Path) -> dict[str, dict[str, Pair]]:
    """The pairs of an adapter that `write` wrote, by component."""
    from safetensors import safe_open

    file = folder / LORA_FILE
    reported: Mapping[str, Any] = json.loads(read_header(file).metadata[METADATA])
    pairs: dict[str, dict[str, Pair]] = {}
    with safe_open(file, framework="pt") as stored:
        for key in stored.keys():  # noqa: SIM118 (safe_open is no mapping)
            if key.endswith(DOWN):
                component, _, name = key.removesuffix(DOWN).partition(".")
                options = {
                    k.removeprefix(f"{component}."): v for k, v in reported.items() if k.startswith(f"{component}.")
                }
                down, up = stored.get_tensor(key), stored.get_tensor(f"{component}.{name}{UP}")
                alpha = scale_of(options, name.removeprefix(OLDER), down.shape[0]) * down.shape[0]
                pairs.setdefault(component, {})[name] = Pair(down, up, alpha)
    return pairs


Cut = Callable[
    [str, Pair], tuple[str, Pair] | None
]  # of a layer's name in the module and its pair; None where the layer goes


def recut(made: Artifact, component: str, layers: Sequence[str], cut: Cut, context: Context) -> Artifact:
    """Rewrite the adapters beside an artifact that is being made, whose component was cut; says what was dropped.

    Args:
        layers: the parameters' names of the module before the cut.

    Raises:
        StageFailed: an adapter has nothing left, or an update of no layer.
    """
    kept = dict(made.adapters)
    for name, one in made.adapters.items():
        if component not in one.components:
            continue
        pairs = read(made.path / one.path)
        known = {layer: _live(layer, layers, name) for layer in pairs[component]}
        found = {layer: cut(known[layer], pair) for layer, pair in pairs[component].items()}
        gone = sorted(layer for layer, new in found.items() if new is None)
        after = {_spelled(layer, known[layer], new[0]): new[1] for layer, new in found.items() if new}
        left = {**pairs, component: after} if after else {p: those for p, those in pairs.items() if p != component}
        if not left:
            message = f"all layers that the adapter {name} changes would go"
            raise StageFailed(message, fix=f"a smaller ratio; or {FUSE_IT}")
        write(left, made.path / one.path)
        kept[name] = replace(one, components=tuple(sorted(left)))
        if gone:
            some = f"{', '.join(gone[:3])}{f' and {len(gone) - 3} more' * (len(gone) > 3)}"
            context.note(
                f"adapter {name} without its updates of {some}",
                component=component,
                **{f"adapter {name} dropped": len(gone)},
            )
    return replace(made, adapters=kept)


def _live(layer: str, parameters: Sequence[str], adapter: str) -> str:
    """What a module calls a layer that an adapter has."""
    for name in (layer, layer.removeprefix(OLDER), f"{OLDER}{layer}"):
        if f"{name}.weight" in parameters:
            return name
    raise StageFailed(f"the adapter {adapter} has an update of {layer}, which the model does not have", fix=FUSE_IT)


def _spelled(layer: str, live: str, new: str) -> str:
    """A layer's new name as the adapter spells names."""
    if len(layer) > len(live):
        return f"{OLDER}{new}"
    return new.removeprefix(OLDER) if len(layer) < len(live) else new


def renaming(names: Mapping[str, str | None]) -> Cut:
    """A cut that takes layers out whole and numbers the others anew.

    Args:
        names: by a parameter's name, its new one, or None where it goes.
    """

    def cut(layer: str, pair: Pair) -> tuple[str, Pair] | None:
        new = names[f"{layer}.weight"]
        return (new.removesuffix(".weight"), pair) if new else None

    return cut


def narrowing(groups: Sequence[Group], kept: Sequence[torch.Tensor]) -> Cut:
    """A cut along the axes of weights, by the units that are kept of each group."""
    from compress.algorithms.coupled_units import indices

    chosen = indices(groups, kept)

    def cut(layer: str, pair: Pair) -> tuple[str, Pair]:
        rows, columns = (chosen.get((f"{layer}.weight", axis)) for axis in (0, 1))
        down = pair.down if columns is None else pair.down.index_select(1, columns)
        up = pair.up if rows is None else pair.up.index_select(0, rows)
        return layer, replace(pair, down=down, up=up)

    return cut

"""An adapter compared with its model: which weight each of its updates is added to, and everything that does not fit. No tensor is read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

from compress.adapters.lora import MERGE_IMAGES, MERGE_TEXT, Adapter, config_problems, expected_rank, scale
from compress.adapters.names import FLAT, Named, Names, Place, named, what
from compress.artifact import LANGUAGE_MODEL, Artifact
from compress.errors import Problem
from compress.files.safetensors_headers import Stored, read_header, read_scalar
from compress.machine.library_classes import has_class
from compress.model.weight_files import loaded_files

FLOATS = ("F64", "F32", "F16", "BF16")
CONV1D = ("GPT2LMHeadModel", "OpenAIGPTLMHeadModel")  # transformers' classes with layers that are stored transposed
CONV1D_LAYERS = ("c_attn", "c_proj", "c_fc", "q_attn")
HEADS = ("lm_head", "embed_out", "output_layer")
SHOWN = 3  # names in a message
MATRICES = {"down": "lora_A", "up": "lora_B"}
Fault = tuple[str, str]  # message and remedy
NO_MAGNITUDES = (
    "has use_dora in its config, and no lora_magnitude_vector for {some}",
    "fetch the whole file, or save it again; if it was trained without DoRA, set use_dora to false in adapter_config.json",
)
UNASKED = (
    "has use_dora: false in its config, and a lora_magnitude_vector for {some}",
    "set use_dora to true in adapter_config.json if it was trained so, or fetch both files again",
)


def other_rank(rank: int, expected: int) -> Fault:
    """That tensors are of another rank than an adapter's config says, by which its scale would be another."""
    message = f"is of rank {rank} by its tensors, and of rank {expected} by its config (r): {{some}}"
    fix = f"fetch both files from one place; if alpha was meant for rank {rank}, set r to {rank} in adapter_config.json"
    return message, fix


@dataclass(frozen=True)
class Weight:
    """A tensor of the model: the file that it lies in, and what its header says."""

    file: Path
    stored: Stored


@dataclass(frozen=True)
class Update:
    """weight + factor · up · down, or, with `transposed`, its transpose; all three are names of tensors. With a `magnitude`, the name
    of one more, each output's row of that sum is made so long."""

    component: str
    weight: str
    down: str
    up: str
    factor: float
    transposed: bool = False
    rows: tuple[int, int] | None = None  # of `up` and `magnitude`, where other rows are of other weights
    magnitude: str = ""


@dataclass(frozen=True)
class Whole:
    """A tensor of the adapter that takes the place of one of the model."""

    component: str
    weight: str
    by: str


@dataclass
class _Pair:
    """The tensors of one module, by what they are."""

    tensors: dict[str, str] = field(default_factory=dict)
    embedding: bool = False


Change = Update | Whole


@dataclass
class Matched:
    """What an adapter does to a model, and what keeps it from being done (message and remedy)."""

    updates: list[Update] = field(default_factory=list)
    wholes: list[Whole] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)

    @property
    def changes(self) -> tuple[Change, ...]:
        """In order: an update may be of a weight that is replaced."""
        return (*self.wholes, *self.updates)

    @property
    def touched(self) -> frozenset[str]:
        return frozenset(change.component for change in self.changes)


Weights = Mapping[str, Mapping[str, Weight]]


def weights_of(artifact: Artifact) -> Weights:
    """The tensors of every torch component, by component and name.

    Raises:
        ModelError: a header does not read.
    """
    return {
        name: {
            t: Weight(file, s) for file in loaded_files(artifact, name) for t, s in read_header(file).tensors.items()
        }
        for name, part in artifact.components.items()
        if part.format == "torch"
    }


def match(adapter: Adapter, artifact: Artifact, weights: Weights) -> Matched:
    """Compare an adapter with a model."""
    names = _names(adapter, artifact, weights)
    pairs, strange = _pairs(adapter)
    matching = _Matching(adapter, artifact, weights, names)
    matching.strange(strange)
    try:
        for module, pair in pairs.items():
            matching.add(module, pair)
        matching.reported()
    except (TypeError, ValueError, AttributeError, re.error) as error:  # of a pattern or a number that is none
        matching.problem(f"has a config that does not read: {error}", "fetch it again, or mend adapter_config.json")
    return matching.found


def _names(adapter: Adapter, artifact: Artifact, weights: Weights) -> Names:
    known = {
        part: frozenset(t.rpartition(".")[0] for t in weights.get(part, {}) if t.endswith((".weight", ".bias")))
        for part in artifact.components
    }
    mapping = adapter.config.get("auto_mapping")
    kind = mapping.get("base_model_class") if isinstance(mapping, Mapping) else None
    of_kind = [name for name in known if artifact.components[name].kind == kind]
    return Names(artifact, known, of_kind[0] if len(of_kind) == 1 else artifact.main)


def _pairs(adapter: Adapter) -> tuple[dict[str, _Pair], list[str]]:
    """The tensors of an adapter by module, and those that are nothing that can be fused."""
    whole = adapter.config.get("modules_to_save")
    kept = tuple(map(str, whole)) if isinstance(whole, (list, tuple)) else ()
    pairs: dict[str, _Pair] = {}
    strange = []
    for tensor in adapter.header.tensors:
        found = named(tensor, kept)
        pair = pairs.setdefault(found.module, _Pair()) if found else _Pair()
        role = _role(found, tensor) if found else ""
        if found is None or role in pair.tensors:  # one of two spellings of the same would be left out
            strange.append(tensor)
            continue
        pair.tensors[role] = tensor
        pair.embedding |= found.embedding
    return pairs, strange


def _role(found: Named, tensor: str) -> str:
    return f"whole {tensor.rpartition('.')[2]}" if found.role == "whole" else found.role


@dataclass
class _Matching:
    """What is found of one adapter, module by module; what many modules have in common is reported once, in the end."""

    adapter: Adapter
    artifact: Artifact
    weights: Weights
    names: Names
    found: Matched = field(default_factory=Matched)
    missing: dict[str, list[str]] = field(default_factory=dict)
    misshapen: list[str] = field(default_factory=list)
    halves: list[str] = field(default_factory=list)
    faults: dict[Fault, list[str]] = field(default_factory=dict)  # what its config says otherwise, by what that is
    alphas: list[bool] = field(default_factory=list)
    others: set[str] = field(default_factory=set)

    def problem(self, message: str, fix: str = "") -> None:
        merge = MERGE_TEXT if self.artifact.writes_text else MERGE_IMAGES
        self.found.problems.append((f"adapter {self.adapter.name} {message}", fix or merge))

    def strange(self, tensors: Sequence[str]) -> None:
        kinds: dict[str, list[str]] = {}
        for tensor in tensors:
            kinds.setdefault(what(tensor) or "no LoRA pair", []).append(tensor)
        for kind, those in kinds.items():
            self.problem(f"holds {len(those)} tensors that are {kind}, such as {those[0]}")

    def add(self, module: str, pair: _Pair) -> None:
        place = self.names.place(module)
        if place.component in self.artifact.components and place.component not in self.weights:
            format = self.artifact.components[place.component].format
            self.others.add(f"are built into an engine already (`{place.component}`, {format})")
            return
        if not place.modules:
            self.missing.setdefault(place.component, []).append(module)
            return
        for name, tensor in pair.tensors.items():
            if name.startswith("whole "):
                self.whole(place.component, f"{place.modules[0]}.{name.removeprefix('whole ')}", tensor)
        if {"down", "up"} <= pair.tensors.keys():
            self.several(place, pair)
        elif {"down", "up", "alpha", "magnitude"} & pair.tensors.keys():
            lacking = " and ".join(matrix for role, matrix in MATRICES.items() if role not in pair.tensors)
            self.halves.append(f"{module} (no {lacking})")

    def whole(self, component: str, weight: str, tensor: str) -> None:
        there = self.weights[component].get(weight)
        mine = self.adapter.header.tensors[tensor]
        if there is None:
            self.missing.setdefault(component, []).append(weight)
        elif there.stored.shape != mine.shape:
            self.misshapen.append(f"{weight}: {_shape(mine)} in the adapter, {_shape(there.stored)} in the model")
        else:
            self.found.wholes.append(Whole(component, weight, tensor))

    def several(self, place: Place, pair: _Pair) -> None:
        """One update for each module that a pair is of, with its share of the pair's rows."""
        weights = [f"{module}.weight" for module in place.modules]
        if gone := [weight for weight in weights if weight not in self.weights[place.component]]:
            self.missing.setdefault(place.component, []).extend(gone)
            return
        heights = [self.weights[place.component][weight].stored.shape[0] for weight in weights]
        up, end = self.adapter.header.tensors[pair.tensors["up"]], 0
        for module, height in zip(place.modules, heights, strict=True):
            begin, end = end, end + height
            rows = (begin, end) if len(heights) > 1 and up.shape[:1] == (sum(heights),) else None
            self.update(place.component, module, place.spelled, pair, rows)

    def update(
        self, component: str, module: str, spelled: str, pair: _Pair, rows: tuple[int, int] | None = None
    ) -> None:
        weight = f"{module}.weight"
        there = self.weights[component][weight]
        tensors = self.adapter.header.tensors
        down, up = (tensors[pair.tensors[role]] for role in ("down", "up"))
        if rows:
            up = replace(up, shape=(rows[1] - rows[0], *up.shape[1:]))
        straight, turned = _fits(down, up, there.stored.shape)
        turn = self.turned(component, module, there.stored.shape, pair)
        if not (turned if turn else straight):
            message = f"{_shape(down)} and {_shape(up)} in the adapter, {_shape(there.stored)} in the model"
            self.misshapen.append(f"{module}: {message}")
            return
        if there.stored.dtype not in FLOATS:
            self.others.add(f"are stored as {there.stored.dtype}")
        factor = self.factor(component, spelled or module, down.shape[0], pair)
        names, magnitude = (pair.tensors["down"], pair.tensors["up"]), self.magnitude(component, module, pair)
        self.found.updates.append(Update(component, weight, *names, factor, turn, rows, magnitude))

    def magnitude(self, component: str, module: str, pair: _Pair) -> str:
        """The tensor that says how long each output's row is made; "" where there is none."""
        tensors = self.adapter.header.tensors
        found, asked = pair.tensors.get("magnitude", ""), self.adapter.options(component).get("use_dora")
        if (found and asked is False) or (asked and not found):
            self.faults.setdefault(UNASKED if found else NO_MAGNITUDES, []).append(module)
        elif found and pair.embedding:
            self.problem(f"has a magnitude for each embedding (DoRA), such as {found}")
        elif found and prod(tensors[found].shape) != (outputs := tensors[pair.tensors["up"]].shape[0]):
            self.misshapen.append(f"{module}: {_shape(tensors[found])} magnitudes of {outputs} outputs")
        return found

    def turned(self, component: str, module: str, shape: Sequence[int], pair: _Pair) -> bool:
        """Whether the weight is stored with its inputs first, as embeddings and GPT-2's layers are. peft goes by the layer too,
        whatever fan_in_fan_out says."""
        kind = self.artifact.components[component].kind
        if pair.embedding or (kind in CONV1D and module.rpartition(".")[2] in CONV1D_LAYERS):
            return True
        own_code = bool(self.adapter.options(component).get("fan_in_fan_out")) and not has_class(kind)
        if own_code and len(set(shape)) == 1:
            self.others.add("are square, and which way round they are stored only the model's own code says")
        return own_code

    def factor(self, component: str, module: str, rank: int, pair: _Pair) -> float:
        options = self.adapter.options(component)
        alpha = pair.tensors.get("alpha")
        self.alphas.append(bool(alpha))
        if alpha:
            return self.adapter.strength * read_scalar(self.adapter.file, self.adapter.header.tensors[alpha]) / rank
        if (expected := expected_rank(options, module)) not in (0, rank):
            self.faults.setdefault(other_rank(rank, expected), []).append(module)
        return self.adapter.strength * scale(options, module, rank)

    def reported(self) -> None:
        """What the modules had in common."""
        for message in dict.fromkeys(self._of_configs()):
            self.problem(message)
        self.unfitting()
        if self.halves:
            self.problem(f"has updates that are not whole: {_some(self.halves)}", "fetch it again, or save it again")
        for (message, fix), those in self.faults.items():
            self.problem(message.format(some=_some(those)), fix)
        for message in sorted(self.others):
            self.problem(f"is for weights that {message}", "give the torch model, with weights that are plain numbers")
        if len(set(self.alphas)) > 1:
            sentence = "says its alpha for some updates and not for others, which libraries read differently"
            self.problem(sentence, "save it with an alpha for each, or for none")
        if not (self.found.changes or self.found.problems):
            self.problem("holds no update", "give a folder that peft or diffusers saved a LoRA in")
        self.packed()
        self.tied()
        if self.found.wholes and self.adapter.strength != 1:
            sentence = f"replaces whole weights, such as {self.found.wholes[0].weight}, of which there is no share"
            self.problem(f"{sentence} (scale {self.adapter.strength:g})", "scale: 1")

    def _of_configs(self) -> Iterator[str]:
        for component in sorted(self.found.touched) or [self.artifact.main]:
            yield from config_problems(self.adapter.options(component))

    def unfitting(self) -> None:
        """Modules that are not in the model, and those that have another shape there."""
        base = f", {self.adapter.base} by what it says" if self.adapter.base else ""
        for component, those in self.missing.items():
            where = f"`{component}`" if component != LANGUAGE_MODEL else "the model"
            flat = any(one.startswith(tuple(FLAT)) for one in those) and component in self.artifact.components
            fix = "" if flat else f"give the model that it was trained on{base}"  # diffusers may know such names
            self.problem(f"is for {_some(those)}, which {where} does not have", fix)
        if self.misshapen:
            message = f"has updates of other shapes: {_some(self.misshapen, '; ')}"
            self.problem(message, f"give the model that it was trained on{base}")

    def packed(self) -> None:
        for name in self.artifact.packed(sorted(self.found.touched)):
            if how := self.artifact.components[name].quantization:
                message = f"cannot be added to the weights of `{name}`, which are packed ({how.method})"
                self.problem(message, "give the unquantized checkpoint, and quantize after: the adapter is fused first")

    def tied(self) -> None:
        """Changes of one of two weights that are one: the embeddings of a language model and its head."""
        if not self.artifact.writes_text or not _tied(self.artifact, self.weights[LANGUAGE_MODEL]):
            return
        changed = [c.weight for c in self.found.changes if self._is_tied(c.weight)]
        if changed:
            message = (
                f"changes {changed[0]}, and embeddings and head are one tensor in this model (tie_word_embeddings)"
            )
            self.problem(message)

    def _is_tied(self, weight: str) -> bool:
        words = self.artifact.known_config(LANGUAGE_MODEL).get("vocab_size")
        rows = self.weights[LANGUAGE_MODEL][weight].stored.shape[:1]
        return weight.removesuffix(".weight").rpartition(".")[2] in HEADS or rows == (words,)


def _tied(artifact: Artifact, inside: Mapping[str, Weight]) -> bool:
    separate = any(name.removesuffix(".weight").rpartition(".")[2] in HEADS for name in inside)
    message: Any = artifact.known_config(LANGUAGE_MODEL).get("tie_word_embeddings")
    return bool(message) or not separate


def _fits(down: Stored, up: Stored, shape: Sequence[int]) -> tuple[bool, bool]:
    """Whether up · down has the shape of a weight, and whether its transpose has."""
    if len(down.shape) < 2 or len(up.shape) < 2 or len(shape) < 2 or not prod(up.shape[1:]) == down.shape[0] > 0:
        return False, False
    rows, columns = up.shape[0], prod(down.shape[1:])
    inner = len(down.shape) == 2 or len(shape) == 2 or tuple(down.shape[1:]) == tuple(shape[1:])
    return inner and (rows, columns) == (shape[0], prod(shape[1:])), tuple(shape) == (columns, rows)


def _shape(stored: Stored) -> str:
    return "×".join(map(str, stored.shape)) or "a number"


def _some(names: Sequence[str], between: str = ", ") -> str:
    """The first of some names, and how many there are."""
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return between.join(names[:SHOWN]) + rest


def located(place: str, found: Matched) -> Iterator[Problem]:
    return (Problem(place, message, fix) for message, fix in found.problems)

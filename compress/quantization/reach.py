"""What a library reaches that packs torch's linear layers one by one, as bitsandbytes and torchao do: read from headers, because it passes
over everything else in silence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from compress.artifact import Artifact, Quantization
from compress.catalogue import Forecast
from compress.params import Fault
from compress.pipelines.index import INDEX, library_of
from compress.quantization.linears import (
    HEAD,
    Linear,
    be_faultless,
    group_faults,
    ignore_faults,
    ignoring,
    left_alone,
    linears,
    named,
)


@dataclass(frozen=True)
class Packer:
    """How a library packs.

    title: what it is called. takes_transposed: whether it packs GPT-2's Conv1D too, whose weights lie as [inputs, outputs].
    unpacks_called: whether packed weights are unpacked where their layer is called, and nowhere else.
    """

    title: str
    takes_transposed: bool
    unpacks_called: bool = False


# Layers whose weights their class multiplies by itself, and never calls (transformers 5.23).
UNCALLED = dict.fromkeys(("MambaForCausalLM", "FalconMambaForCausalLM", "JambaForCausalLM"), ("*.dt_proj",))


@dataclass(frozen=True)
class Reach:
    """The linear layers of a component that are packed, those that stay as they are, and all weights with rows and columns, 0 where an
    earlier stage will cut some."""

    packed: tuple[Linear, ...]
    left: tuple[Linear, ...]
    weights: int

    @property
    def known(self) -> bool:
        """Whether headers tell: not of weights that are still to be fetched or cut."""
        return bool(self.packed or self.left)

    @property
    def share(self) -> float:
        """Of the component's weights that are packed."""
        return sum(one.weights for one in self.packed) / self.weights if self.weights else 0.0

    def reported(self, name: str, method: str) -> str:
        """What a plan says of it; "" where headers do not tell."""
        layers = f"{len(self.packed)} of {len(self.packed) + len(self.left)} linear layers"
        share = f", {self.share:.0%} of its weights" if self.weights else ""
        return f"{name}: {method} reaches {layers}{share}" if self.known else ""


def model_library(artifact: Artifact, name: str) -> str:
    """The library that loads a component: diffusers or transformers."""
    return library_of(artifact.path, name) if (artifact.path / INDEX).is_file() else "transformers"


def reach(artifact: Artifact, name: str, ignore: Iterable[str] = ()) -> Reach:
    """What is packed of a component, and what is left as it is: what a recipe ignores, a language model's head, and routers."""
    from compress.engines.torch.stored import stored

    layers = linears(artifact, name)
    left = named(layers, (*left_alone(artifact.components[name].kind), *ignore))
    total = sum(stored(artifact.folder(name)).values()) if layers and name not in artifact.planned else 0
    parts: Mapping[bool, list[Linear]] = {True: [], False: []}
    for layer in layers:
        parts[layer.name in left].append(layer)
    return Reach(tuple(parts[False]), tuple(parts[True]), total)


def share_of_all(artifact: Artifact, name: str, layers: Iterable[Linear]) -> str:
    """What share of a component's weights these layers hold, embeddings and all that is no layer counted, as a plan says it; "" where
    headers do not tell."""
    from compress.engines.torch.stored import stored

    total = 0 if name in artifact.planned else sum(stored(artifact.folder(name)).values())
    return f", {sum(one.weights for one in layers) / total:.0%} of all its weights" if total else ""


def spellings(names: Iterable[str]) -> tuple[str, ...]:
    """Layers' names as a checkpoint has them, and as a class of transformers may spell them: without their first word, the head as lm_head."""
    return tuple(sorted({HEAD, *(way for name in names for way in (name, name.partition(".")[2]) if way)}))


def same_layer(one: str, other: str) -> bool:
    """Whether two names are of one layer, the one perhaps with a front that the other lacks."""
    return one == other or one.endswith(f".{other}") or other.endswith(f".{one}")


def refuse_reach(artifact: Artifact, names: tuple[str, ...], ignore: tuple[str, ...], packer: Packer) -> str:
    """Why a library cannot pack these components as it is asked to, or ""."""
    if faults(artifact, names, ignore):  # which the forecast raises
        return ""
    for name in names:
        part = artifact.components[name]
        if part.module:
            return f"`{name}` lies in a checkpoint that several components share: give a model with one of its own"
        found = reach(artifact, name, ignore)
        if why := _passed_over(found, part.kind, packer) or _not_quite(artifact, name, found):
            return f"`{name}`: {why}"
    return ""


def check_ignored(artifact: Artifact, names: Iterable[str], ignore: tuple[str, ...]) -> None:
    """Raises a UserError with every pattern of `ignore:` that names no layer of these components."""
    be_faultless(faults(artifact, names, ignore))


def faults(artifact: Artifact, names: Iterable[str], ignore: tuple[str, ...]) -> tuple[Fault, ...]:
    """What is wrong with a recipe's `ignore:`."""
    return ignore_faults([layer for name in names for layer in linears(artifact, name)], ignore)


def _passed_over(found: Reach, kind: str, packer: Packer) -> str:
    """What the library would leave as wide as it was without a word, and what to do."""
    if not found.known:
        return ""
    if not found.packed:
        return f"{kind} has no linear layer left to pack: leave this stage out, or name less in `ignore:`"
    if experts := [layer for layer in found.packed if layer.expert]:
        share = sum(layer.weights for layer in experts) / sum(layer.weights for layer in (*found.packed, *found.left))
        return (
            f"{kind} keeps its experts in tensors of three axes, {share:.0%} of its layers' weights, which {packer.title} passes over: "
            'write ignore: ["*experts*"] to pack the rest alone'
        )
    transposed = [layer for layer in found.packed if layer.transposed]
    if transposed and not packer.takes_transposed:
        return f"{kind} is made of Conv1D, {len(transposed)} of its layers, and {packer.title} packs torch's Linear alone: use quantize.bitsandbytes"
    uncalled = named(found.packed, UNCALLED.get(kind, ())) if packer.unpacks_called else frozenset()
    if uncalled:
        return (
            f"{kind} multiplies by the weights of {len(uncalled)} layers without calling them, and {packer.title} unpacks what is called: "
            f"write {ignoring((one for one in found.packed if one.name in uncalled), found.packed)}"
        )
    return ""


def _not_quite(artifact: Artifact, name: str, found: Reach) -> str:
    """Why the library would leave more layers than it is asked to: it looks for their names in others' names."""
    if model_library(artifact, name) == "diffusers":
        more = [layer.name for layer in found.packed if any(f"{one.name}." in f"{layer.name}." for one in found.left)]
        how = "anywhere in another's"
    else:
        more = [layer.name for layer in found.packed if any(layer.name.endswith(one.name) for one in found.left)]
        how = "at the end of another's"
    if not more:
        return ""
    some = ", ".join(more[:3]) + (" …" if len(more) > 3 else "")
    return f"what is ignored leaves {len(more)} more layers as they are ({some}), since the library looks for a name {how}: ignore them too"


def packing_forecast(
    artifact: Artifact,
    names: tuple[str, ...],
    ignore: tuple[str, ...],
    packing: Quantization,
    mode: str,
    group_size: int = 0,
) -> Forecast:
    """What comes of packing these components: how, and what share of their weights.

    Raises:
        UserError: a pattern of `ignore` names no layer, or the group size does not divide some.
    """
    check_ignored(artifact, names, ignore)
    found = {name: reach(artifact, name, ignore) for name in names}
    if group_size:
        be_faultless(fault for one in found.values() for fault in group_faults(one.packed, group_size))
    reported = "; ".join(filter(None, (one.reported(name, mode) for name, one in found.items())))
    return Forecast(quantization=dict.fromkeys(names, packing), reported=reported)

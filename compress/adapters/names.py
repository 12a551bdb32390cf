"""Which weight of a model an adapter's tensor belongs to: the spellings of peft, diffusers (new and old) and kohya's trainers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from compress.adapters.original_names import in_diffusers
from compress.artifact import LANGUAGE_MODEL, Artifact

Role = Literal["down", "up", "alpha", "magnitude", "whole"]

# How tensors' names end, by what the tensor is. What ends in `_lora` names a projection as attention processors once did.
ENDINGS: Mapping[str, Role] = {
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
    ".lora_embedding_A": "down",
    ".lora_embedding_B": "up",
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    "_lora.down.weight": "down",
    "_lora.up.weight": "up",
    ".alpha": "alpha",
    ".lora_magnitude_vector": "magnitude",  # of DoRA
    ".lora_magnitude_vector.weight": "magnitude",
    ".lora_magnitude_vector.default.weight": "magnitude",
    ".modules_to_save.weight": "whole",
    ".modules_to_save.bias": "whole",
    ".base_layer.weight": "whole",
    ".base_layer.bias": "whole",
}
EMBEDDING = "lora_embedding_"
MAGNITUDE = "lora_magnitude_vector"  # which acts at any scale
# What is no pair of matrices, by a word of its name: kept apart so that the message can say what it is.
OTHERS = {
    "dora_scale": "DoRA as other trainers than peft have it",
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "lora_mid": "LoCon with a core",
    "oft_": "OFT",
    "lora_B.bias": "a bias beside an update",
    "token_adapter": "embeddings of single tokens",
    ".diff": "differences of whole weights",
}
# In front of a module's name with `_` for each `.`: what kohya's and OneTrainer's files call components.
FLAT = {
    "lora_unet_": ("unet", "transformer"),
    "lora_transformer_": ("transformer",),
    "lora_te_": ("text_encoder",),
    "lora_te1_": ("text_encoder",),
    "lora_te2_": ("text_encoder_2",),
    "lora_te3_": ("text_encoder_3",),
}
IN_FRONT = ("base_model.model.", "diffusion_model.")
_OF_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


@dataclass(frozen=True)
class Named:
    """A tensor of an adapter: of which module, as the file spells it, and what of it."""

    module: str
    role: Role
    embedding: bool = False


@dataclass(frozen=True)
class Place:
    """The modules of the model that one of an adapter is: a part of the model, and their names there, in the order of its rows; () where
    the part has none of that name. `spelled` is the adapter's own name without what stands in front."""

    component: str
    modules: tuple[str, ...]
    spelled: str = ""


def named(tensor: str, whole: Iterable[str] = ()) -> Named | None:
    """What a tensor of an adapter is; None where it is nothing that can be fused.

    Args:
        whole: the last parts of modules that the adapter's config says were trained whole.
    """
    ending = next((end for end in ENDINGS if tensor.endswith(end)), "")
    if ending:
        module = tensor.removesuffix(ending)
        if ending.startswith("_lora"):
            module = _of_processor(module)
        return Named(module, ENDINGS[ending], EMBEDDING in ending)
    module, _, last = tensor.rpartition(".")
    kept = last == "bias" or module.rpartition(".")[2] in whole
    return Named(module, "whole") if kept and last in ("weight", "bias") and not what(tensor) else None


def what(tensor: str) -> str:
    """What a tensor that cannot be fused is."""
    return next((kind for word, kind in OTHERS.items() if word in tensor), "")


def _of_processor(module: str) -> str:
    """`attn1.processor.to_out` of a UNet is its `attn1.to_out.0`; `self_attn.to_q` of a text encoder is its `self_attn.q_proj`."""
    front, _, last = module.replace(".processor.", ".").rpartition(".")
    if front.endswith("self_attn"):
        return f"{front}.{_OF_TEXT.get(last, last)}"
    return f"{front}.{last}.0" if last == "to_out" else f"{front}.{last}"


@dataclass(frozen=True)
class Names:
    """The modules of a model that have a weight, by component, and what an adapter may call them."""

    artifact: Artifact
    modules: Mapping[str, frozenset[str]]
    default: str  # the component that names without one are of

    def place(self, module: str) -> Place:
        """Where a module of an adapter lies."""
        for front, components in FLAT.items():
            if module.startswith(front):
                component = next((c for c in components if c in self.modules), components[0])
                flat = module.removeprefix(front)
                return Place(component, self._flat(component, flat) if component in self.modules else (), flat)
        for front in IN_FRONT:
            module = module.removeprefix(front)
        first, _, rest = module.partition(".")
        if first in self.modules and first != LANGUAGE_MODEL:
            return Place(first, self._known(first, rest), rest)
        return Place(self.default, self._known(self.default, module), module)

    def _known(self, component: str, module: str) -> tuple[str, ...]:
        """The module's name in the checkpoint, which may have one part less in front than the live model, or one more."""
        known = self.modules[component]
        found = (one for one in (module, module.partition(".")[2]) if one in known)
        exact = next(found, self._shorter[component].get(module, ""))
        return (exact,) if exact else self._original(component, module.replace(".", "_"))

    def _flat(self, component: str, spelled: str) -> tuple[str, ...]:
        """A module whose name has `_` for each `.`."""
        exact, shorter = self._flattened[component]
        perhaps = (spelled, spelled.removeprefix("text_model_"))
        found = next((one[name] for one in (exact, shorter) for name in perhaps if name in one), "")
        return (found,) if found else self._original(component, spelled)

    def _original(self, component: str, spelled: str) -> tuple[str, ...]:
        """The modules that a flat name of a model's first code is."""
        layers = self.artifact.known_config(component).get("layers_per_block", 2)
        known = self._flattened[component][0]
        found = in_diffusers(spelled, layers if isinstance(layers, int) else 2)
        return tuple(known[name] for name in found) if all(name in known for name in found) else ()

    @cached_property
    def _shorter(self) -> dict[str, dict[str, str]]:
        """By component, modules by their names without the first part."""
        return {part: {one.partition(".")[2]: one for one in known} for part, known in self.modules.items()}

    @cached_property
    def _flattened(self) -> dict[str, tuple[dict[str, str], dict[str, str]]]:
        """By component, modules by their flat names, whole and without the first part."""
        shorter = self._shorter
        return {
            part: (_flat(dict(zip(known, known, strict=True))), _flat(shorter[part]))
            for part, known in self.modules.items()
        }


def _flat(by_name: Mapping[str, str]) -> dict[str, str]:
    return {name.replace(".", "_"): module for name, module in by_name.items()}

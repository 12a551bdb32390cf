"""Which weight of a model an adapter's tensor belongs to: the spellings of peft, diffusers (new and old) and kohya's trainers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from compress.artifact import LANGUAGE_MODEL, Artifact

Role = Literal["down", "up", "alpha", "whole"]

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
    ".modules_to_save.weight": "whole",
    ".modules_to_save.bias": "whole",
    ".base_layer.weight": "whole",
    ".base_layer.bias": "whole",
}
EMBEDDING = "lora_embedding_"
# What is no pair of matrices, by a word of its name: told apart so that the message can say what it is.
OTHERS = {
    "lora_magnitude_vector": "DoRA",
    "dora_scale": "DoRA",
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
_BLOCK = re.compile(r"(?P<where>input_blocks|output_blocks)_(?P<block>\d+)_(?P<part>\d+)_(?P<rest>.+)")
_MIDDLE = {"0": "resnets_0", "1": "attentions_0", "2": "resnets_1"}
_RESNET = {
    "in_layers_2": "conv1",
    "out_layers_3": "conv2",
    "emb_layers_1": "time_emb_proj",
    "skip_connection": "conv_shortcut",
}
_TOP = {
    "input_blocks_0_0": "conv_in",
    "out_2": "conv_out",
    "time_embed_0": "time_embedding_linear_1",
    "time_embed_2": "time_embedding_linear_2",
    "label_emb_0_0": "add_embedding_linear_1",
    "label_emb_0_2": "add_embedding_linear_2",
}
_OF_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


@dataclass(frozen=True)
class Named:
    """A tensor of an adapter: of which module, as the file spells it, and what of it."""

    module: str
    role: Role
    embedding: bool = False


@dataclass(frozen=True)
class Place:
    """A module of the model: its component, and its name there; "" where the component has none of that name."""

    component: str
    module: str
    spelled: str = field(default="", compare=False)  # as the adapter has it, without what stands in front


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
                component = next((c for c in components if c in self.modules), "")
                return self._flat(component, module.removeprefix(front)) if component else Place(components[0], "")
        for front in IN_FRONT:
            module = module.removeprefix(front)
        first, _, rest = module.partition(".")
        if first in self.modules and first != LANGUAGE_MODEL:
            return Place(first, self._known(first, rest), rest)
        return Place(self.default, self._known(self.default, module), module)

    def _known(self, component: str, module: str) -> str:
        """The module's name in the checkpoint, which may have one part less in front than the live model, or one more."""
        known = self.modules[component]
        found = (one for one in (module, module.partition(".")[2]) if one in known)
        return next(found, self._shorter[component].get(module, ""))

    def _flat(self, component: str, spelled: str) -> Place:
        """A module whose name has `_` for each `.`; a UNet's may be in the names of the original Stable Diffusion."""
        exact, shorter = self._flattened[component]
        perhaps = (spelled, spelled.removeprefix("text_model_"), _diffusers_block(spelled, self._layers(component)))
        found = (one.get(spelling) for one in (exact, shorter) for spelling in perhaps)
        return Place(component, next((one for one in found if one), ""), spelled)

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

    def _layers(self, component: str) -> int:
        layers = self.artifact.known_config(component).get("layers_per_block", 2)
        return layers if isinstance(layers, int) else 2


def _flat(by_name: Mapping[str, str]) -> dict[str, str]:
    return {name.replace(".", "_"): module for name, module in by_name.items()}


def _diffusers_block(spelled: str, layers: int) -> str:
    """A flat name of the original Stable Diffusion as diffusers has it; other names as they are.

    Source: `_maybe_map_sgm_blocks_to_diffusers` of diffusers.
    """
    if spelled in _TOP:
        return _TOP[spelled]
    if spelled.startswith("middle_block_"):
        part, _, rest = spelled.removeprefix("middle_block_").partition("_")
        return f"mid_block_{_MIDDLE.get(part, part)}_{_RESNET.get(rest, rest)}"
    if not (match := _BLOCK.fullmatch(spelled)):
        return spelled
    down, number, part, rest = match["where"] == "input_blocks", int(match["block"]), match["part"], match["rest"]
    block, layer = divmod(number - 1 if down else number, layers + 1)
    side = "down_blocks" if down else "up_blocks"
    if down and rest == "op":
        return f"{side}_{block}_downsamplers_0_conv"
    if part == "2" or (rest == "conv" and part != "0"):
        return f"{side}_{block}_upsamplers_0_{rest}"
    return f"{side}_{block}_{'attentions' if part == '1' else 'resnets'}_{layer}_{_RESNET.get(rest, rest)}"

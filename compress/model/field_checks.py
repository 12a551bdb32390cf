"""Whether a config's fields that give a model some tensors, or do not, say what its weights have. Its library is silent where they do not: what
the config has no place for is left out, and what no weights are there for is random."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from compress.artifact import Artifact
from compress.errors import ModelError, Problem
from compress.files.safetensors_headers import read_header
from compress.model.weight_files import loaded_files

Shapes = Mapping[str, tuple[int, ...]]
Value = str | bool | int | list[int] | None


@dataclass(frozen=True)
class Field:
    """A field of a config, and what the weights tell of it.

    usual: what it is where the config does not have it.
    shown: what it must be by the weights' names and shapes; None where they do not tell.
    alike: two values of it that give a model the same tensors.
    """

    name: str
    usual: Value
    shown: Callable[[Shapes], Value]
    alike: Callable[[Any, Any], bool] = lambda stated, shown: bool(stated) == bool(shown)


def _any(pattern: str) -> Callable[[Shapes], bool]:
    known = re.compile(pattern)
    return lambda shapes: any(known.fullmatch(name) for name in shapes)


def _linear(shapes: Shapes) -> bool | None:
    """Whether what leads into attention is a linear layer, and no convolution of one pixel."""
    found = next((shape for name, shape in shapes.items() if name.endswith(".proj_in.weight")), None)
    return None if found is None else len(found) == 2


def _norm(shapes: Shapes) -> str | None:
    return "rms_norm" if _any(r"transformer_blocks\.\d+\.attn\.norm_q\.weight")(shapes) else None


def _dual(shapes: Shapes) -> list[int]:
    """The blocks with a second attention."""
    found = (re.fullmatch(r"transformer_blocks\.(\d+)\.attn2\.to_q\.weight", name) for name in shapes)
    return sorted(int(match[1]) for match in found if match)


def _gate(shapes: Shapes) -> str:
    return "gated-gelu" if _any(r"encoder\.block\.0\..*\.DenseReluDense\.wi_0\.weight")(shapes) else "relu"


def _count(pattern: str) -> Callable[[Shapes], int | None]:
    """How many of something there are, by the largest number in their names; None where there is none."""
    known = re.compile(pattern)

    def counted(shapes: Shapes) -> int | None:
        numbers = [int(match[1]) for name in shapes if (match := known.match(name))]
        return max(numbers) + 1 if numbers else None

    return counted


def _levels(shapes: Shapes) -> str | None:
    """How many levels an encoder has, in words."""
    found = _count(r"encoder\.down_blocks\.(\d+)\.")(shapes)
    return None if found is None else f"{found} levels"


FIELDS: Mapping[str, tuple[Field, ...]] = {
    "FluxTransformer2DModel": (
        Field("guidance_embeds", False, _any(r"time_text_embed\.guidance_embedder\.linear_1\.weight")),
    ),
    "SD3Transformer2DModel": (
        Field("qk_norm", None, _norm),
        Field("dual_attention_layers", [], _dual, lambda stated, shown: sorted(stated or ()) == shown),
    ),
    "UNet2DConditionModel": (
        Field("mid_block_type", "UNetMidBlock2DCrossAttn", _any(r"mid_block\..+")),
        Field("use_linear_projection", False, _linear, lambda stated, shown: shown is None or bool(stated) == shown),
    ),
    "AutoencoderKL": (
        Field(
            "layers_per_block",
            1,
            _count(r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
            lambda stated, shown: shown is None or stated == shown,
        ),
        Field(
            "block_out_channels",
            [64],
            _levels,
            lambda stated, shown: shown is None or f"{len(stated)} levels" == shown,
        ),
        Field("use_quant_conv", True, _any(r"quant_conv\.weight")),
        Field("use_post_quant_conv", True, _any(r"post_quant_conv\.weight")),
        Field("mid_block_add_attention", True, _any(r"decoder\.mid_block\.attentions\.0\.to_q\.weight")),
    ),
    "T5EncoderModel": (
        Field(
            "feed_forward_proj",
            "relu",
            _gate,
            lambda stated, shown: str(stated).startswith("gated") == shown.startswith("gated"),
        ),
    ),
}


def field_problems(artifact: Artifact, names: Iterable[str]) -> Iterator[Problem]:
    """Fields of these components' configs that do not fit their weights, of which headers alone are read."""
    for name in names:
        kind, config = artifact.components[name].kind, artifact.known_config(name)
        place = str(artifact.folder(name) / "config.json")
        try:
            shapes = {
                n: one.shape for file in loaded_files(artifact, name) for n, one in read_header(file).tensors.items()
            }
        except ModelError:  # known from whoever counts its layers
            continue
        for field in FIELDS.get(kind, ()):
            stated, shown = config.get(field.name, field.usual), field.shown(shapes)
            if not field.alike(stated, shown):
                message = f"{field.name} is {_said(stated)}, and by the weights of `{name}` it is {_said(shown)}"
                yield Problem(
                    place, message, f"set {field.name} to {_said(shown)}, or give the config that belongs to them"
                )


def _said(value: object) -> str:
    """A value as JSON spells it."""
    return json.dumps(value)

"""The autoencoder of a pipeline, read from configs and source alone: what the pipeline reads of it, how it scales latents for it,
and the config of a smaller one that stock pipelines take in its place."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compress.artifact import Artifact
from compress.machine.library_classes import source_of
from compress.pipelines.index import class_of

VAE = "vae"
TINY = "AutoencoderTiny"
TEACHERS = ("AutoencoderKL", "AutoencoderDC", TINY)  # of one image, whose latents are one grid
READ = re.compile(r"\bself\.vae\.(config\.)?(\w+)|\bgetattr\(self\.vae\.config, \"(\w+)\"")
ASKED = re.compile(r"hasattr\(self\.vae\.config, \"(\w+)\"\)")  # a pipeline goes without what it asks for first
MEAN, STD, SHIFT, SCALE = "latents_mean", "latents_std", "shift_factor", "scaling_factor"
# What an AutoencoderTiny's config says, and what it can do. `post_quant_conv` is looked at where `force_upcast` says so alone.
FIELDS = (
    *("in_channels", "out_channels", "latent_channels", "scaling_factor", "shift_factor", "force_upcast", "act_fn"),
    *("block_out_channels", "encoder_block_out_channels", "decoder_block_out_channels"),
)
DOES = ("encode", "decode", "to", "dtype", "device", "config", "parameters", "encoder", "decoder", "post_quant_conv")


@dataclass(frozen=True)
class Scaling:
    """What a pipeline makes of its latents before its VAE decodes them, channel by channel: w to w * factor + shift.

    Both have one number a channel, or one for all.
    """

    factor: tuple[float, ...]
    shift: tuple[float, ...]


UNSCALED = Scaling((1.0,), (0.0,))


@dataclass(frozen=True)
class Shape:
    """How large an AutoencoderTiny's two halves are: channels, the same at each level, and blocks, from the smallest level up."""

    width: int
    blocks: tuple[int, ...]
    encoder_width: int
    encoder_blocks: tuple[int, ...]


def levels_of(config: Mapping[str, Any]) -> int:
    """How many sizes a VAE works at, each twice the one before: a latent is 2 ** (levels - 1) pixels wide."""
    return len(config.get("encoder_block_out_channels") or config["block_out_channels"])


def scaling_of(artifact: Artifact) -> Scaling:
    """How a pipeline scales latents for the VAE that it has, as its source says and the VAE's config."""
    config, read = artifact.config(VAE), _read(_source(artifact))
    unit = float(config.get(SCALE) or 1.0)
    if {MEAN, STD} <= read and config.get(MEAN) is not None and config.get(STD) is not None:
        return Scaling(tuple(std / unit for std in config[STD]), tuple(map(float, config[MEAN])))
    shift = config.get(SHIFT) if SHIFT in read else None
    return Scaling((1 / unit,), (float(shift or 0.0),))


def reads_more(artifact: Artifact) -> str:
    """What a pipeline reads of its VAE that no AutoencoderTiny has; "" where that is nothing."""
    source = _source(artifact)
    lacking = _read(source) - set(FIELDS) - set(DOES) - set(ASKED.findall(source))
    return next((name for name in sorted(lacking) if not name.startswith(("enable_", "disable_"))), "")


def tiny_config(config: Mapping[str, Any], shape: Shape) -> dict[str, Any]:
    """The config of an AutoencoderTiny for the images and latents of a VAE.

    Its latents are the pipeline's own: it scales and shifts nothing, whatever the VAE did.
    """
    levels = levels_of(config)
    return {
        "_class_name": TINY,
        "in_channels": int(config.get("in_channels", 3)),
        "out_channels": int(config.get("out_channels") or config.get("in_channels", 3)),
        "latent_channels": int(config["latent_channels"]),
        "encoder_block_out_channels": [shape.encoder_width] * levels,
        "decoder_block_out_channels": [shape.width] * levels,
        "block_out_channels": [shape.width] * levels,
        "num_encoder_blocks": list(shape.encoder_blocks),
        "num_decoder_blocks": list(shape.blocks),
        SCALE: 1.0,
        SHIFT: 0.0,
        "force_upcast": False,
    }


def tiny_parameters(config: Mapping[str, Any]) -> int:
    """Parameters of an AutoencoderTiny: all its layers are convolutions of 3 by 3."""
    halves = (
        (
            config["in_channels"],
            config["encoder_block_out_channels"],
            config["num_encoder_blocks"],
            config["latent_channels"],
        ),
        (
            config["latent_channels"],
            config["decoder_block_out_channels"],
            config["num_decoder_blocks"],
            config["out_channels"],
        ),
    )
    return sum(_half(*half) for half in halves)


def _half(taken: int, widths: Sequence[int], blocks: Sequence[int], given: int) -> int:
    width, levels = widths[0], len(widths)
    ends = 9 * width * (taken + given) + width + given
    return ends + 9 * width * width * (levels - 1) + sum(blocks) * 3 * (9 * width * width + width)


def usual_blocks(levels: int) -> tuple[int, ...]:
    """Three at each level but the largest, as the class has it by itself."""
    return (*(3,) * (levels - 1), 1)


def _source(artifact: Artifact) -> str:
    return source_of(class_of(artifact.path), "pipelines")


def _read(source: str) -> frozenset[str]:
    return frozenset(found[1] or found[2] for found in READ.findall(source))

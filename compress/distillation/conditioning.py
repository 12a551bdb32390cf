"""How much a pipeline tells its denoiser of a caption, from the configs of its text encoders and tokenizers and from its call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from compress.artifact import Artifact
from compress.pipelines.call_arguments import call_arguments
from compress.pipelines.index import class_of
from compress.tokenizers.tokens import CONFIG, read_object

ENCODER, TOKENIZER = "text_encoder", "tokenizer"
LENGTH = "max_sequence_length"  # of a call, for tokenizers that are no CLIP's
MOST = 512  # tokens, where nothing says how many: as many as the largest pipelines read
WIDE = 4096  # numbers of a token, where nothing says how many
WIDTHS = ("hidden_size", "d_model", "n_embd")  # as text encoders call it


def caption_values(artifact: Artifact) -> int:
    """The numbers that text encoders make of a caption, at most: what a denoiser is given with each call of it.

    Encoders stand beside one another in a row of tokens or in their width; either way they add up. A model of joint attention is
    reported all of them in one width.
    """
    config = artifact.known_config(artifact.main)
    joint = _number(config.get("joint_attention_dim"))
    call = {**(call_arguments(class_of(artifact.path)) or {}), **artifact.settings.call}
    encoders = [name for name in artifact.components if name.startswith(ENCODER)]
    found = sum(_tokens(artifact, name, call) * max(_width(artifact, name, config), joint) for name in encoders)
    return found or MOST * _reported_width(config)


def _tokens(artifact: Artifact, encoder: str, call: Mapping[str, Any]) -> int:
    """The most tokens that an encoder reads of a caption: a pipeline pads all captions to them."""
    tokenizer = artifact.path / encoder.replace(ENCODER, TOKENIZER, 1) / CONFIG
    cut = _number(read_object(tokenizer).get("model_max_length"))
    asked = _number(call.get(LENGTH))
    if asked and "CLIP" not in artifact.components[encoder].kind:
        return asked
    positions = _number(artifact.known_config(encoder).get("max_position_embeddings"))
    return min(n for n in (positions, cut, MOST) if n)


def _width(artifact: Artifact, encoder: str, denoiser: Mapping[str, Any]) -> int:
    config = artifact.known_config(encoder)
    return next((width for width in _widths(config) if width), 0) or _reported_width(denoiser)


def _widths(config: Mapping[str, Any]) -> Iterator[int]:
    inner = config.get("text_config")
    for part in (config, inner if isinstance(inner, Mapping) else {}):
        yield from (_number(part.get(name)) for name in WIDTHS)


def _reported_width(config: Mapping[str, Any]) -> int:
    """What a denoiser's own config says of the width of a token that it is reported."""
    names = ("caption_channels", "cap_feat_dim", "encoder_hid_dim", "cross_attention_dim", "joint_attention_dim")
    return next((width for name in names if (width := _number(config.get(name)))), WIDE)


def _number(message: object) -> int:
    """A size from a config, the largest of several; 0 where none is stated."""
    if isinstance(message, list):
        return max(map(_number, message), default=0)
    return (
        message if type(message) is int and 0 < message < 10**6 else 0
    )  # where a tokenizer knows no limit, it says 1e30

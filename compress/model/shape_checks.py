"""Whether a model's weights have the shapes that its config says, read from headers and JSON: else its library refuses to load it, and
says that of the first tensor after minutes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from compress.artifact import LANGUAGE_MODEL, Artifact
from compress.errors import ModelError, Problem
from compress.files.safetensors_headers import Stored, read_header
from compress.model.weight_files import loaded_files
from compress.pipelines.index import LEFT_OUT

VISION = "vision_model."  # a whole CLIP's other half, which nobody opens who asks for its text encoder
FIX = "set it back to what the weights have, or fetch the weights that belong to this config"


@dataclass(frozen=True)
class Rule:
    """How the names of some tensors end, and what the config calls their axes: a field, one entry of a list (`field.0`), or a product of
    fields (`a*b`); "" is not compared with anything, and fields that come first count where a config has them (`a|b`)."""

    ending: str
    axes: tuple[str, ...]

    def of(self, tensors: Mapping[str, Stored]) -> Iterator[str]:
        """The names that end so."""
        return (name for name in tensors if name == self.ending or name.endswith(f".{self.ending}"))


# What any language model of transformers' own reads its tokens with. Rows are compared with the config in the families below alone.
EMBEDDINGS = (
    "embed_tokens.weight",
    "wte.weight",
    "embed_in.weight",
    "word_embeddings.weight",
    "backbone.embeddings.weight",
)
WIDTH = "embedding_size|word_embed_proj_dim|hidden_size|n_embd|d_model"
ANY_LANGUAGE_MODEL = tuple(Rule(ending, ("", WIDTH)) for ending in EMBEDDINGS)

_DECODER = (
    Rule("embed_tokens.weight", ("vocab_size", "hidden_size")),
    Rule("mlp.up_proj.weight", ("intermediate_size", "hidden_size")),
    Rule("mlp.down_proj.weight", ("hidden_size", "intermediate_size")),
    Rule("self_attn.q_proj.weight", ("num_attention_heads*head_dim", "hidden_size")),
    Rule("self_attn.k_proj.weight", ("num_key_value_heads*head_dim", "hidden_size")),
)
_CLIP = (
    Rule("token_embedding.weight", ("vocab_size", "hidden_size")),
    Rule("position_embedding.weight", ("max_position_embeddings", "hidden_size")),
    Rule("mlp.fc1.weight", ("intermediate_size", "hidden_size")),
)
_INNER = "num_attention_heads*attention_head_dim"
RULES: Mapping[str, tuple[Rule, ...]] = {
    **dict.fromkeys(
        ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "GemmaForCausalLM"), _DECODER
    ),
    **dict.fromkeys(("Gemma2ForCausalLM", "Gemma3ForCausalLM"), _DECODER),
    **dict.fromkeys(
        ("GraniteForCausalLM", "Olmo2ForCausalLM", "SmolLM3ForCausalLM", "CohereForCausalLM", "Cohere2ForCausalLM"),
        _DECODER,
    ),
    **dict.fromkeys(("MixtralForCausalLM", "Qwen3MoeForCausalLM", "GptOssForCausalLM"), _DECODER),
    "Phi3ForCausalLM": (_DECODER[0], _DECODER[2]),
    "GPT2LMHeadModel": (
        Rule("wte.weight", ("vocab_size", "n_embd")),
        Rule("wpe.weight", ("n_positions", "n_embd")),
        Rule("mlp.c_fc.weight", ("n_embd", "n_inner")),
    ),
    "OPTForCausalLM": (
        Rule("embed_tokens.weight", ("vocab_size", "word_embed_proj_dim")),
        Rule("fc1.weight", ("ffn_dim", "hidden_size")),
    ),
    "BertLMHeadModel": (
        Rule("word_embeddings.weight", ("vocab_size", "hidden_size")),
        Rule("intermediate.dense.weight", ("intermediate_size", "hidden_size")),
    ),
    "CLIPTextModel": _CLIP,
    "CLIPTextModelWithProjection": _CLIP,
    "T5EncoderModel": (
        Rule("shared.weight", ("vocab_size", "d_model")),
        Rule("DenseReluDense.wo.weight", ("d_model", "d_ff")),
    ),
    "UNet2DConditionModel": (
        Rule("conv_in.weight", ("block_out_channels.0", "in_channels")),
        Rule("conv_out.weight", ("out_channels", "block_out_channels.0")),
        Rule("attn2.to_k.weight", ("", "cross_attention_dim")),
    ),
    "AutoencoderKL": (
        Rule("encoder.conv_in.weight", ("block_out_channels.0", "in_channels")),
        Rule("decoder.conv_in.weight", ("block_out_channels.-1", "latent_channels")),
    ),
    "PixArtTransformer2DModel": (Rule("pos_embed.proj.weight", (_INNER, "in_channels", "patch_size", "patch_size")),),
    "SD3Transformer2DModel": (
        Rule("pos_embed.proj.weight", (_INNER, "in_channels", "patch_size", "patch_size")),
        Rule("context_embedder.weight", ("", "joint_attention_dim")),
    ),
    "SanaTransformer2DModel": (Rule("patch_embed.proj.weight", (_INNER, "in_channels")),),
    "FluxTransformer2DModel": (
        Rule("x_embedder.weight", (_INNER, "in_channels")),
        Rule("context_embedder.weight", (_INNER, "joint_attention_dim")),
    ),
}


def shape_problems(artifact: Artifact) -> Iterator[Problem]:
    """Torch components with weights of another shape than their config's, each field once, by the first tensor that shows it."""
    for name, part in artifact.components.items():
        rules = RULES.get(part.kind, ANY_LANGUAGE_MODEL if name == LANGUAGE_MODEL else ())
        if part.format != "torch" or part.module or part.quantization or name in LEFT_OUT or not rules:
            continue
        try:
            files = loaded_files(artifact, name)
            found = {tensor: stored for file in files for tensor, stored in read_header(file).tensors.items()}
        except ModelError:  # known from whoever counts its layers
            continue
        whose, place = "" if name == LANGUAGE_MODEL else f" of `{name}`", str(artifact.folder(name) / "config.json")
        config = _filled(artifact.known_config(name))
        tensors = {tensor: stored for tensor, stored in found.items() if not tensor.startswith(VISION)}
        for tensor, axis, field in _misfits(rules, config, tensors):
            shape = tensors[tensor].shape
            wanted = (*shape[:axis], _size(field, config), *shape[axis + 1 :])
            message = (
                f"`{tensor}`{whose} is {_times(shape)}, and by this config {_times(wanted)} ({_spelled(field, config)})"
            )
            yield Problem(place, message, FIX)


def _misfits(
    rules: Sequence[Rule], config: Mapping[str, Any], tensors: Mapping[str, Stored]
) -> Iterator[tuple[str, int, str]]:
    """A tensor, its axis and the fields that call it longer or shorter; of each field the first."""
    reported: set[str] = set()
    for rule in rules:
        axes = [_present(field, config) for field in rule.axes]
        for name in rule.of(tensors):
            for axis, (field, size) in enumerate(zip(axes, tensors[name].shape, strict=False)):
                if field not in reported and _size(field, config) not in (None, size):
                    reported.add(field)
                    yield name, axis, field


def _filled(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields of a config as its class reads them: those of the text's part, and what follows from others where they are not set."""
    nested = config.get("text_config")
    config = {**(nested if isinstance(nested, Mapping) else {}), **config}
    heads, hidden, wide = (config.get(key) for key in ("num_attention_heads", "hidden_size", "n_embd"))
    more: dict[str, Any] = {}
    if not config.get("head_dim") and type(heads) is int and type(hidden) is int and heads:
        more["head_dim"] = hidden // heads
    if config.get("num_key_value_heads") is None and type(heads) is int:
        more["num_key_value_heads"] = heads
    if config.get("n_inner") is None and type(wide) is int:
        more["n_inner"] = 4 * wide
    return {**config, **more}


def _present(field: str, config: Mapping[str, Any]) -> str:
    """The first of several fields that a config has."""
    return next((one for one in field.split("|") if config.get(one) is not None), "") if "|" in field else field


def _size(field: str, config: Mapping[str, Any]) -> int | None:
    """What a config says of an axis; None where it says nothing that is one number."""
    sizes = [_value(factor, config) for factor in field.split("*")]
    return prod(size for size in sizes if size is not None) if None not in sizes else None


def _value(field: str, config: Mapping[str, Any]) -> int | None:
    name, _, entry = field.partition(".")
    found = config.get(name)
    if entry:
        listed = isinstance(found, (list, tuple)) and bool(found)
        found = found[int(entry)] if listed and found else None
    return found if type(found) is int else None


def _spelled(field: str, config: Mapping[str, Any]) -> str:
    """The fields and what they say: `hidden_size 96`."""
    names = ((one, *one.partition(".")) for one in field.split("*"))
    return " × ".join(f"{name}{f'[{entry}]' * bool(entry)} {_value(one, config)}" for one, name, _, entry in names)


def _times(shape: Sequence[int | None]) -> str:
    return "×".join(map(str, shape))

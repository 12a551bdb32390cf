"""Torch to GGUF, the one file that llama.cpp reads: what the model computes as metadata, its tokenizer, and its tensors,
each laid out as llama.cpp wants it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, RopeScalingType, get_tensor_name_map
from gguf.constants import GGML_QUANT_SIZES, MODEL_ARCH, MODEL_ARCH_NAMES
from gguf.quants import quant_shape_to_byte_shape, quantize
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from compress.algorithms.tensors import device_of, to_array
from compress.engines.builder import Builder, Example, Feed, positions_of
from compress.engines.gguf import MODEL
from compress.engines.gguf.reading import Reading, read_model
from compress.engines.gguf.tokenizer import add_tokenizer
from compress.engines.module import EngineModule, write_settings
from compress.errors import ModelError
from compress.machine.deps import installed
from compress.machine.devices import AS_STORED, CPU, Opening
from compress.machine.llama_cpp import ARCHITECTURES, rotary

_TYPES = {
    "float32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "float16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "bfloat16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "int8_weights": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "int4_weights": (GGMLQuantizationType.Q4_0, LlamaFileType.MOSTLY_Q4_0),
}
_TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # GPT-2 keeps [in, out] where others keep [out, in]
_GEMMA = (MODEL_ARCH.GEMMA2, MODEL_ARCH.GEMMA3)


class GGUFBuilder(Builder):
    """One file for a whole language model. `held` says afterwards how many of its tensors are of which type."""

    format = "gguf"

    def __init__(self, precision: str, opening: Opening = AS_STORED) -> None:
        super().__init__(precision, opening)
        self.held: Mapping[str, int] = {}

    def language_model(self, model: torch.nn.Module, folder: Path, feeds: Sequence[Feed]) -> None:
        self._write(model, folder, AutoTokenizer.from_pretrained(str(folder)), positions=positions_of(model))

    def component(self, example: Example, folder: Path, watched: tuple[str, ...] = ()) -> None:
        """The file once more, to be read by transformers, whose layers can be looked at: llama.cpp's cannot."""
        self._write(example.module, folder, None, watched=watched, **example.called)

    def open_component(self, folder: Path, library: str, kind: str) -> EngineModule:
        return EngineModule(folder, library, kind, Reading(folder, kind))

    def open_language_model(self, folder: Path, kind: str) -> Any:
        if installed("llama_cpp"):
            return super().open_language_model(folder, kind)
        return read_model(folder, kind).to(device_of(self.opening))

    def _write(
        self, model: PreTrainedModel, folder: Path, tokenizer: PreTrainedTokenizerBase | None, **more: object
    ) -> None:
        self.held = write_gguf(model, tokenizer, folder / MODEL, self.precision)
        write_settings(folder, "llama.cpp", version("gguf"), self.precision, **more)


def write_gguf(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, path: Path, precision: str
) -> Mapping[str, int]:
    """Write a language model of one of `llamacpp.ARCHITECTURES`; equal models give equal bytes.

    Args:
        tokenizer: of transformers; None leaves it out, and the file is for transformers alone.

    Returns:
        How many tensors are of which type. Vectors, and rows that do not divide into blocks of 32, are of more bits.

    Raises:
        ModelError: the model has a tensor, or the tokenizer a way of cutting text, that llama.cpp does not know.
    """
    writer = GGUFWriter(None, ARCHITECTURES[model.config.model_type])
    _describe(writer, model.config, precision)
    if tokenizer is not None:
        add_tokenizer(writer, tokenizer, model.config.vocab_size)
    held: Counter[str] = Counter()
    kinds: dict[str, GGMLQuantizationType] = {}
    for name, tensor in named_tensors(model):
        kind = kinds[name] = stored_type(name, tensor, precision)
        held[kind.name] += 1
        size = int(np.prod(quant_shape_to_byte_shape(tensor.shape, kind)))
        writer.add_tensor_info(name, tensor.shape, np.dtype(np.float32), size, kind)
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, tensor in named_tensors(model):  # one at a time: the file may be as large as the memory
        values = np.ascontiguousarray(to_array(tensor, torch.float32))
        writer.write_tensor_data(quantize(values, kinds[name]))
    writer.close()
    return dict(held)


def stored_type(name: str, tensor: torch.Tensor, precision: str) -> GGMLQuantizationType:
    """What a tensor is stored as. Vectors and learned positions stay float32: llama.cpp adds them as they are."""
    wanted, _ = _TYPES[precision]
    if tensor.ndim == 1 or name.startswith("position_embd"):
        return GGMLQuantizationType.F32
    block, _ = GGML_QUANT_SIZES[wanted]
    return wanted if tensor.shape[-1] % block == 0 else GGMLQuantizationType.F16


def named_tensors(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """A model's tensors under llama.cpp's names and in its layout, in the order of the model.

    Raises:
        ModelError: llama.cpp has no name for one of them.
    """
    config = model.config
    architecture = next(a for a, n in MODEL_ARCH_NAMES.items() if n == ARCHITECTURES[config.model_type])
    names = get_tensor_name_map(architecture, config.num_hidden_layers)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    for name, tensor in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue  # llama.cpp takes the input's
        known = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if known is None:
            raise ModelError(f"llama.cpp has no place for {name}", fix="leave build.gguf out")
        yield known, _laid_out(name, tensor, config, architecture)
    if (factors := _frequency_factors(config)) is not None:
        yield "rope_freqs.weight", factors


def _laid_out(name: str, tensor: torch.Tensor, config: PreTrainedConfig, architecture: MODEL_ARCH) -> torch.Tensor:
    if architecture == MODEL_ARCH.GPT2:
        return tensor.T if name.endswith(_TRANSPOSED) else tensor
    if architecture == MODEL_ARCH.LLAMA and ".q_proj." in name:
        return neighbours_turn(tensor, config.num_attention_heads)
    if architecture == MODEL_ARCH.LLAMA and ".k_proj." in name:
        return neighbours_turn(tensor, config.num_key_value_heads)
    if architecture in _GEMMA and name.endswith("norm.weight"):
        return tensor.float() + 1  # transformers adds it when it computes
    return tensor


def neighbours_turn(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of queries or keys [heads * size, ...] so that each pair which rotary positions turn stands side by side.

    transformers turns a head's row i with row i + size / 2, llama.cpp turns row 2 i with row 2 i + 1.
    """
    return tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)  # type: ignore[no-untyped-call]


def _frequency_factors(config: PreTrainedConfig) -> torch.Tensor | None:
    """What Llama 3 divides each rotary frequency by, so that it reaches further than it was trained to."""
    rope = rotary(config.to_dict())
    if rope["rope_type"] != "llama3":
        return None
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    plain = rope["rope_theta"] ** -(torch.arange(0, size, 2, dtype=torch.int64, device=CPU).float() / size)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device(CPU))
    return plain / scaled


def _describe(writer: GGUFWriter, config: PreTrainedConfig, precision: str) -> None:
    """What llama.cpp must know to compute the model."""
    writer.add_file_type(_TYPES[precision][1])
    if precision in ("int8_weights", "int4_weights"):
        writer.add_quantization_version(2)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    if config.model_type == "gpt2":
        writer.add_feed_forward_length(config.n_inner or 4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(size)
    rope = rotary(config.to_dict())
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if config.model_type.startswith("gemma"):
        _describe_gemma(writer, config)


def _describe_gemma(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    """Which layers see only a window, and what bounds attention and logits."""
    writer.add_sliding_window(config.sliding_window)
    writer.add_sliding_window_pattern([layer == "sliding_attention" for layer in config.layer_types])
    writer.add_rope_freq_base_swa(rotary(config.to_dict(), "sliding_attention")["rope_theta"])
    if config.attn_logit_softcapping is not None:
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    if config.final_logit_softcapping is not None:
        writer.add_final_logit_softcapping(config.final_logit_softcapping)

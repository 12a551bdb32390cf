"""A language model on an engine, as transformers' `generate` runs it: what any engine's decoder has in common."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import GenerationConfig, GenerationMixin, LogitsProcessorList, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer
from transformers.modeling_outputs import CausalLMOutputWithPast

from compress.algorithms.tensors import device_of
from compress.engines.decoding import decode, plain
from compress.engines.module import CPU, EngineModule, Runner, config_of, read_settings, with_encoder
from compress.errors import UserError
from compress.machine.devices import Opening

R = TypeVar("R", bound=Runner)

FORM = ("use_cache", "return_dict", "cache_position")  # how a call is made, not what it computes
ONE_LENGTH = "give prompts of one length at a time"


class Past:
    """What generation carries from token to token: the decoder's KV cache, and how many tokens it has seen."""

    is_compileable = False

    def __init__(self) -> None:
        self.seen = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.seen

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Let each row go on from another row's past: `beam_idx` int [batch] says which."""
        raise UserError("this engine promises greedy decoding and sampling, no beams", fix="set num_beams to 1")


def foreign_cache() -> UserError:
    """What a decoder raises that is given another engine's past."""
    return UserError("this cache is another engine's", fix="begin each generation with the model that goes on")


class TensorPast(Past):
    """A KV cache as tensors that go into each step and come out longer, the batch along their first axis."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self.tensors = tuple(tensors)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        self.tensors = tuple(t.index_select(0, beam_idx) for t in self.tensors)


class Decoder(Protocol):
    """An engine's graph of a language model."""

    def begin(self, batch: int) -> Past:
        """An empty past for so many rows."""

    def step(self, tokens: torch.Tensor, past: Past) -> torch.Tensor:
        """Logits [batch, tokens, vocabulary] for int64 tokens [batch, tokens] that follow `past`, which takes them in."""


def step_inputs(tokens: NDArray[np.int64], seen: int, names: Iterable[str]) -> dict[str, NDArray[Any]]:
    """What a graph asks for beside its cache: those of `names` that are known, for tokens [batch, tokens] after `seen` others."""
    batch, count = tokens.shape
    made: dict[str, NDArray[Any]] = {}
    for name in names:
        if name == "input_ids":
            made[name] = tokens
        elif name == "position_ids":
            row = np.arange(seen, seen + count)[None]
            made[name] = row if batch == 1 else row.repeat(batch, 0)
        elif name == "cache_position":
            made[name] = np.arange(seen, seen + count)
        elif name == "attention_mask":
            made[name] = np.ones((batch, seen + count), dtype=np.int64)
    return made


def device_inputs(
    tokens: torch.Tensor, seen: int, names: Iterable[str], device: torch.device
) -> dict[str, torch.Tensor]:
    """As `step_inputs`, made on a device: nothing waits for what it is still at work on."""
    batch, count = tokens.shape
    made: dict[str, torch.Tensor] = {}
    for name in names:
        if name == "input_ids":
            made[name] = tokens.to(device)
        elif name == "position_ids":
            made[name] = torch.arange(seen, seen + count, device=device).expand(batch, -1).contiguous()
        elif name == "cache_position":
            made[name] = torch.arange(seen, seen + count, device=device)
        elif name == "attention_mask":
            made[name] = torch.ones((batch, seen + count), dtype=torch.int64, device=device)
    return made


def step_output(logits: torch.Tensor, past: Past) -> CausalLMOutputWithPast:
    """What transformers' model gives, made without its checks of each field: they take ten times as long."""
    made = CausalLMOutputWithPast.__new__(CausalLMOutputWithPast)
    for name, value in (("logits", logits), ("past_key_values", past)):
        OrderedDict.__setitem__(made, name, value)
        made.__dict__[name] = value
    return made


class EngineLanguageModel(torch.nn.Module, GenerationMixin):  # type: ignore[misc]
    """A causal language model whose decoder keeps the KV cache. What it generates from are prompts of one length: no padding."""

    main_input_name = "input_ids"
    base_model_prefix = ""
    _is_stateful = False

    def __init__(self, folder: Path, kind: str, decoder: Decoder, device: torch.device = CPU) -> None:
        super().__init__()
        self.folder = folder
        self.settings = read_settings(folder)
        self.config = config_of(folder, "transformers", kind)
        given = (folder / "generation_config.json").is_file()
        self.generation_config = (
            GenerationConfig.from_pretrained(str(folder)) if given else GenerationConfig.from_model_config(self.config)
        )
        self.dtype = torch.float32
        self.device = device
        self.decoder = decoder
        self._positions: int | None = self.settings.get("positions")
        # Phi-3 turns keys by another scale beyond this length, so those in the cache no longer fit: transformers begins anew.
        self._switch: int | None = getattr(self.config, "original_max_position_embeddings", None)
        self._words = int(self.config.get_text_config().vocab_size)

    def can_generate(self) -> bool:
        return True

    def _supports_default_dynamic_cache(self) -> bool:
        return False  # so that `generate` makes none, and passes on the `Past` that `forward` returns

    def get_experts_implementation(self) -> dict[str, str]:
        return {}  # `generate` asks, to switch torch kernels that an engine does not have

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, past_key_values: Past | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        switch = self._switch
        if past_key_values is not None and switch and past_key_values.seen <= switch < input_ids.shape[1]:
            past_key_values = None
        mask = kwargs.get("attention_mask") if past_key_values is None else None
        self.refuse_padding(mask)
        seen = past_key_values.seen if past_key_values is not None else 0
        return {"input_ids": input_ids[:, seen:], "past_key_values": past_key_values, "attention_mask": mask}

    def _sample(
        self,
        input_ids: torch.Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        synced_gpus: bool = False,
        streamer: BaseStreamer | None = None,
        **arguments: Any,
    ) -> Any:
        """The loop that `generate` runs for greedy decoding and sampling: ours where tokens alone are asked for, else its own."""
        mask, rest = arguments.get("attention_mask"), (logits_processor, stopping_criteria, generation_config)
        if plain(generation_config, arguments, synced_gpus) and self._switch is None:
            self.refuse_padding(mask)
            return decode(self, input_ids, mask, *rest, streamer)
        return super()._sample(input_ids, *rest, synced_gpus=synced_gpus, streamer=streamer, **arguments)

    def refuse_padding(self, mask: torch.Tensor | None) -> None:
        """Raises a UserError where prompts that are to be continued are padded: what is written would follow the padding."""
        if mask is not None and not bool(mask.all()):
            raise UserError("the engine continues no padded prompts", fix=ONE_LENGTH)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Past | None = None,
        logits_to_keep: int = 0,
        **others: object,
    ) -> CausalLMOutputWithPast:
        """Logits [batch, tokens, vocabulary] of the given tokens, after those that `past_key_values` has seen; of only the last
        `logits_to_keep` tokens, unless that is 0.

        Raises:
            UserError: a token is masked before one that is not, there is a token or a position that the model has not learned,
                an argument that the graph has no place for, or the past is gone.
        """
        if odd := [n for n, v in others.items() if v is not None and v is not False and n not in FORM]:
            raise UserError(
                f"the engine takes no {', '.join(odd)}",
                fix="call it with input_ids, attention_mask and past_key_values",
            )
        past = past_key_values or self.decoder.begin(input_ids.shape[0])
        self._check(input_ids, attention_mask, past.seen)
        logits = self.decoder.step(input_ids if input_ids.is_contiguous() else input_ids.contiguous(), past)
        past.seen += input_ids.shape[1]
        return step_output(logits[:, -logits_to_keep:] if 0 < logits_to_keep < logits.shape[1] else logits, past)

    def _check(self, tokens: torch.Tensor, mask: torch.Tensor | None, seen: int) -> None:
        """Raises a UserError where the graph would compute something else than the torch model, or read beyond its tables."""
        if self._positions and seen + tokens.shape[1] > self._positions:
            raise UserError(
                f"the model has {self._positions} positions, and this text {seen + tokens.shape[1]} tokens",
                fix="give shorter texts, or generate fewer tokens",
            )
        if not seen and tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < self._words:
            raise UserError(
                f"tokens go from 0 to {self._words - 1}, and these from {int(tokens.min())} to {int(tokens.max())}",
                fix="use the tokenizer that came with the model",
            )
        if mask is None:
            return
        # Padding behind a text is harmless, for no token looks ahead; before a token, it would shift its position.
        if mask.ndim != 2 or not bool(mask[:, : seen + 1].all()) or bool((mask[:, 1:] > mask[:, :-1]).any()):
            raise UserError("the engine takes no padding before a token", fix=ONE_LENGTH)


def loading(
    open_runner: Callable[[Path, torch.device], R], decoder: Callable[[R], Decoder]
) -> tuple[Callable[[Path, str, str, Opening], EngineModule], Callable[[Path, str, Opening], EngineLanguageModel]]:
    """An engine's `load_component` and `load_language_model`, of what opens a folder on a device and what decodes with that.

    The first gives an engine component of a pipeline, the second a language model that transformers' `generate` runs as it runs a torch
    one. The number type is the engine's own affair: it takes and gives float32. Both raise what `open_runner` does.
    """

    def load_component(folder: Path, library: str, kind: str, opening: Opening) -> EngineModule:
        home = device_of(opening)
        return with_encoder(folder, lambda place: EngineModule(place, library, kind, open_runner(place, home), home))

    def load_language_model(folder: Path, kind: str, opening: Opening) -> EngineLanguageModel:
        home = device_of(opening)
        return EngineLanguageModel(folder, kind, decoder(open_runner(folder, home)), home)

    return load_component, load_language_model

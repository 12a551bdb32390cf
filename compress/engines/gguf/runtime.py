"""The llama.cpp engine, through llama-cpp-python: one model in memory for all threads, and for each thread a context of
its own with the KV cache of the generation it is in.

A folder holds `model.gguf`. The engine takes as many threads as torch does. On a GPU, with a llama.cpp that was built for it, all layers
and their cache lie there; tokens and logits are the processor's, and go to and from the device of the model's caller.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import threading
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.modeling_outputs import CausalLMOutputWithPast

from compress.algorithms.tensors import device_of, to_array
from compress.engines.gguf import MODEL, WITH_CUDA
from compress.engines.gguf.loop import Plain, plain_loop
from compress.engines.gguf.reading import unreadable
from compress.engines.language import EngineLanguageModel, Past, foreign_cache
from compress.engines.module import ENGINE, EngineModule, read_settings
from compress.errors import ModelError, UserError
from compress.machine.deps import need
from compress.machine.devices import Opening

FILES = (MODEL, ENGINE)
CHUNK = 512  # tokens a call of llama.cpp; it keeps the logits of as many
ROOM = 1024  # tokens of a text that a context has room for at first; it doubles where that is not enough
ERROR = 4  # of llama.cpp's log levels
ALL_LAYERS = 2**20  # more than any model has; what less than none means has changed
NO_MEMORY = ("out of memory", "unable to allocate", "failed to allocate")  # as its GPU backend says it
NO_DEVICES = (ctypes.c_void_p * 1)()  # a list that its end begins: the processor is none of llama.cpp's devices


def load_component(folder: Path, library: str, kind: str, opening: Opening) -> EngineModule:
    """llama.cpp runs language models only."""
    raise ModelError(f"llama.cpp runs no {kind}", place=str(folder), fix="build this component with another engine")


def load_language_model(folder: Path, kind: str, opening: Opening) -> LlamaModel:
    """A language model that transformers' `generate` runs as it runs a torch one. The number type is the file's own affair.

    Raises:
        ModelError: the folder holds no such file, or one that llama.cpp cannot read.
        MissingLibrary: llama-cpp-python is not installed.
    """
    precision = read_settings(folder)["precision"]
    if not (folder / MODEL).is_file():
        raise ModelError(f"holds no {MODEL}", place=str(folder), fix="build it again with build.gguf")
    home = device_of(opening)
    return LlamaModel(folder, kind, Sequences(Weights(folder, home), precision), home)


class Weights:
    """A file's weights, in the memory of a device, and its vocabulary, freed with the last object that holds them."""

    def __init__(self, folder: Path, home: torch.device) -> None:
        self.home = home
        self.library: Any = need("llama_cpp", "llama-cpp")
        if (speaker := logging.getLogger("llama-cpp-python")).level == logging.NOTSET:
            speaker.setLevel(logging.ERROR)  # unless somebody wants to hear all that llama.cpp has to say
        self.library.llama_backend_init()
        with recorded(self.library) as message:
            found = self.library.llama_model_load_from_file(str(folder / MODEL).encode(), placed(self.library, home))
        if not found:
            judge_memory(home, message)
            raise unreadable(folder, " ".join(message[:2]) or "llama.cpp does not say why")
        self.pointer = found
        weakref.finalize(self, self.library.llama_model_free, found)
        vocabulary = self.library.llama_model_get_vocab(found)
        self.words = int(self.library.llama_vocab_n_tokens(vocabulary))
        self.positions = int(self.library.llama_model_n_ctx_train(found))
        self.learned_positions = self.library.llama_model_rope_type(found) == self.library.LLAMA_ROPE_TYPE_NONE


def placed(library: Any, home: torch.device) -> Any:
    """llama.cpp's options for weights that lie on one device alone. Left to itself it takes all GPUs that it finds.

    Raises:
        UserError: it has no GPU.
    """
    options = library.llama_model_default_params()
    if home.type == "cuda":
        if not library.llama_supports_gpu_offload():  # built for GPUs, and without a driver that it knows
            raise UserError(
                f"llama.cpp finds no GPU here, and the device is {home}", fix=f"device: cpu, or {WITH_CUDA}"
            )
        options.n_gpu_layers, options.main_gpu = ALL_LAYERS, home.index or 0
        options.split_mode = library.LLAMA_SPLIT_MODE_NONE
    else:
        options.n_gpu_layers = 0
        options.devices = ctypes.cast(NO_DEVICES, ctypes.c_void_p)
    return options


def judge_memory(home: torch.device, message: Sequence[str]) -> None:
    """Raises torch's own error where a GPU had no memory left: nothing is wrong with the file or the texts then."""
    if home.type == "cuda" and (why := next((line for line in message if any(w in line for w in NO_MEMORY)), "")):
        raise torch.OutOfMemoryError(f"llama.cpp: {why}")


class Context:
    """Room for some texts and what llama.cpp remembers of them.

    Args:
        rows: how many texts at a time.
        room: tokens of each; llama.cpp rounds them up to hundreds.
        exact: keep keys and values in float32, for a file that is; else in float16.
    """

    def __init__(self, weights: Weights, rows: int, room: int, exact: bool) -> None:
        library = self.library = weights.library
        self.weights, self.rows, self.room = weights, rows, room
        options = library.llama_context_default_params()
        options.n_ctx, options.n_seq_max = rows * room, rows
        options.n_batch = options.n_ubatch = max(CHUNK, rows)
        options.n_threads = options.n_threads_batch = torch.get_num_threads()
        if exact:  # flash attention keeps its sums in float16 whatever the keys are
            options.type_k = options.type_v = library.GGML_TYPE_F32
            options.flash_attn_type = library.LLAMA_FLASH_ATTN_TYPE_DISABLED
        with recorded(library) as message:
            self.pointer = library.llama_init_from_model(weights.pointer, options)
        if not self.pointer:
            judge_memory(weights.home, message)
            raise UserError(
                f"llama.cpp has no memory for {rows} texts of {room} tokens: {' '.join(message[:2])}",
                fix="use a smaller batch",
            )
        weakref.finalize(self, library.llama_free, self.pointer)
        self._memory = library.llama_get_memory(self.pointer)
        self._fill_batch(int(options.n_batch))

    def _fill_batch(self, most: int) -> None:
        """Arrays that llama.cpp reads tokens from, made once: a token is then four numbers written and one call."""
        library = self.library
        self.tokens: NDArray[np.int32] = np.zeros(most, np.int32)
        self.positions: NDArray[np.int32] = np.zeros(most, np.int32)
        self.texts: NDArray[np.int32] = np.zeros(most, np.int32)
        self.wanted: NDArray[np.int8] = np.zeros(most, np.int8)
        self._ones: NDArray[np.int32] = np.ones(most, np.int32)
        first, number = self.texts.ctypes.data, ctypes.POINTER(library.llama_seq_id)
        self._pointers = (number * most)(*(ctypes.cast(first + i * self.texts.itemsize, number) for i in range(most)))
        self._batch = library.llama_batch(
            n_tokens=0,
            token=self.tokens.ctypes.data_as(ctypes.POINTER(library.llama_token)),
            pos=self.positions.ctypes.data_as(ctypes.POINTER(library.llama_pos)),
            n_seq_id=self._ones.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            seq_id=self._pointers,
            logits=self.wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )
        self._seen_at, self._view = (0, 0), np.empty((0, 0), np.float32)

    def clear(self) -> None:
        self.library.llama_memory_clear(self._memory, False)

    def take(self, count: int) -> None:
        """Let llama.cpp compute the first `count` tokens of the arrays."""
        self._batch.n_tokens = count
        code = self.library.llama_decode(self.pointer, self._batch)
        if code:
            raise UserError(f"llama.cpp does not take these tokens (code {code})", fix="give tokens of its vocabulary")

    def logits(self, count: int) -> NDArray[np.float32]:
        """The `count` rows of logits that the last `take` was asked for: llama.cpp's own memory, until the next."""
        found = self.library.llama_get_logits(self.pointer)
        place = ctypes.addressof(found.contents), count
        if place != self._seen_at:  # a view costs as much as a small layer, and the memory stays where it is
            self._seen_at = place
            self._view = np.ctypeslib.as_array(found, shape=(count, self.weights.words))
        return self._view

    def copy_to(self, other: Context, rows: int) -> None:
        """Give a larger context what this one remembers of its first rows."""
        for row in range(rows):
            size = self.library.llama_state_seq_get_size(self.pointer, row)
            buffer = (ctypes.c_uint8 * size)()
            self.library.llama_state_seq_get_data(self.pointer, buffer, size, row)
            self.library.llama_state_seq_set_data(other.pointer, buffer, size, row)


class LlamaPast(Past):
    """A KV cache that lives in a context. `keep` says how many tokens' logits the next step wants: 0 for all; `ready` is
    the context whose arrays hold a token for each row."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = rows
        self.keep = 0
        self.ready: Context | None = None


class Sequences:
    """The decoder: each row of a batch is a sequence of one context. One generation at a time in each thread."""

    def __init__(self, weights: Weights, precision: str) -> None:
        self.weights = weights
        self.exact = precision == "float32"
        self._threads = threading.local()

    def begin(self, batch: int) -> LlamaPast:
        most = int(self.weights.library.llama_max_parallel_sequences())
        if batch > most:
            raise UserError(f"llama.cpp keeps {most} texts at a time, and these are {batch}", fix="use a smaller batch")
        if (context := getattr(self._threads, "context", None)) is not None:
            context.clear()
        self._threads.past = LlamaPast(batch)
        return self._threads.past

    def step(self, tokens: torch.Tensor, past: Past) -> torch.Tensor:
        """As `Decoder.step`, for the last `past.keep` tokens.

        Raises:
            UserError: the past was overtaken by a later generation in this thread, or the text is too long.
        """
        if not isinstance(past, LlamaPast):
            raise foreign_cache()
        rows, count = tokens.shape
        context, past.ready = self.context(past, count), None
        keep = min(past.keep or count, count)
        given = to_array(tokens)
        found = np.empty((rows, keep, self.weights.words), np.float32)
        width = max(1, CHUNK // rows)
        for start in range(0, count, width):
            part = given[:, start : start + width]
            ahead = max(0, count - keep - start)  # of this part, how many tokens' logits nobody wants
            self._write(context, part, past.seen + start, ahead)
            context.take(part.size)
            if (wanted := part.shape[1] - ahead) > 0:
                first = start + ahead - (count - keep)
                found[:, first : first + wanted] = context.logits(rows * wanted).reshape(rows, wanted, -1)
        return torch.from_numpy(found).to(self.weights.home)

    def following(self, chosen: NDArray[np.int64], past: LlamaPast) -> NDArray[np.float32]:
        """One more token for each row: their logits [rows, vocabulary], in memory that the next call writes over."""
        context, rows = past.ready, past.rows
        if context is None or past.seen >= context.room:
            context = self._ready(past)
        context.tokens[:rows] = chosen
        context.positions[:rows] = past.seen
        context.take(rows)
        past.seen += 1
        return context.logits(rows)

    def _ready(self, past: LlamaPast) -> Context:
        """Write down once what `following` leaves as it is: whose each token is, and that its logits are wanted."""
        context = past.ready = self.context(past, 1)
        context.texts[: past.rows] = np.arange(past.rows)
        context.wanted[: past.rows] = 1
        return context

    def context(self, past: LlamaPast, count: int) -> Context:
        """This thread's context, with room for `count` more tokens."""
        if getattr(self._threads, "past", None) is not past:
            raise UserError("this generation's cache is gone: another began in this thread", fix="finish one at a time")
        need_room = past.seen + count
        found: Context | None = getattr(self._threads, "context", None)
        if found is not None and found.rows >= past.rows and found.room >= need_room:
            return found
        return self._grow(past, found, need_room)

    def _grow(self, past: LlamaPast, found: Context | None, need_room: int) -> Context:
        most = self.weights.positions
        going = found is not None and past.seen > 0  # else what was generated before is over
        room = max(min(ROOM, most), found.room if found is not None and going else 0)
        while room < need_room:
            room *= 2
        if self.weights.learned_positions and need_room > most:
            raise UserError(
                f"the model has {most} positions, and this text {need_room} tokens",
                fix="give shorter texts, or generate fewer tokens",
            )
        room = min(room, most) if self.weights.learned_positions else room
        if not going:
            found = self._threads.context = None  # its memory is free before the next takes some
        larger = Context(self.weights, past.rows, room, self.exact)
        if found is not None:
            found.copy_to(larger, past.rows)
        self._threads.context = larger
        return larger

    def _write(self, context: Context, part: NDArray[np.int64], seen: int, ahead: int) -> None:
        rows, width = part.shape
        context.tokens[: part.size] = part.reshape(-1)
        context.positions[: part.size] = np.tile(np.arange(seen, seen + width), rows)
        context.texts[: part.size] = np.repeat(np.arange(rows), width)
        context.wanted[: part.size] = np.tile(np.arange(width) >= ahead, rows)


class LlamaModel(EngineLanguageModel):
    """A causal language model on llama.cpp."""

    decoder: Sequences

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Past | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **others: Any,
    ) -> CausalLMOutputWithPast:
        """As `EngineLanguageModel.forward`, with the logits of only the last `logits_to_keep` tokens; 0 for all."""
        past = past_key_values or self.decoder.begin(input_ids.shape[0])
        if isinstance(past, LlamaPast):
            past.keep = logits_to_keep if isinstance(logits_to_keep, int) else 0
        return super().forward(input_ids, attention_mask, past, **others)

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, past_key_values: Past | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        inputs = super().prepare_inputs_for_generation(input_ids, past_key_values, **kwargs)
        return {**inputs, "logits_to_keep": kwargs.get("logits_to_keep", 0)}

    def _sample(self, input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """What `generate` runs for greedy decoding and sampling: a loop with little in it but llama.cpp, where it can."""
        plain = Plain.of(*args, **kwargs)
        if plain is None or (plain.processors and self.device.type != "cpu"):  # they hold tensors of that device
            return super()._sample(input_ids, *args, **kwargs)
        self.refuse_padding(kwargs.get("attention_mask"))
        return plain_loop(self, input_ids, plain, kwargs.get("attention_mask"))


_LISTENING = threading.Lock()


@contextlib.contextmanager
def recorded(library: ModuleType) -> Iterator[list[str]]:
    """What llama.cpp says went wrong, instead of all that it says on standard error."""
    message: list[str] = []

    @library.llama_log_callback  # type: ignore[untyped-decorator]
    def hear(level: int, text: bytes, data: object) -> None:
        if level == ERROR:
            message.append(text.decode(errors="replace").strip())

    with _LISTENING:
        library.llama_log_set(hear, None)
        try:
            yield message
        finally:
            library.llama_log_set(library._logger.llama_log_callback, None)

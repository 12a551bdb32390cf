"""A GGUF file as transformers reads it: every weight back in float32. What is compared with torch where llama.cpp is not
installed, and where a layer must be looked at."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from compress.engines.gguf import MODEL
from compress.engines.module import config_of, read_settings
from compress.engines.torch.runtime import find_class, silent_libraries
from compress.engines.tracing import Traced
from compress.errors import ModelError

LLAMA = "LlamaForCausalLM"


def read_model(folder: Path, kind: str) -> PreTrainedModel:
    """The language model of the file in a folder, computed by torch, as the `config.json` beside it says.

    Raises:
        ModelError: the file does not read.
    """
    config = config_of(folder, "transformers", kind)
    known = find_class("transformers", kind, folder)
    if config.model_type == "mistral":  # a Llama to the file's reader, and in all that it computes
        known = find_class("transformers", LLAMA, folder)
        config = known.config_class.from_dict({**config.to_dict(), "model_type": "llama"})
    try:
        # A bar of its own, for people who cannot do anything about it.
        with silent_libraries(), contextlib.redirect_stderr(io.StringIO()):
            found: PreTrainedModel = known.from_pretrained(
                str(folder), gguf_file=MODEL, config=config, dtype=torch.float32
            )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise unreadable(folder, error) from error
    return found.eval()


def unreadable(folder: Path, why: object) -> ModelError:
    return ModelError(f"does not read: {why}", place=str(folder / MODEL), fix="build it again with build.gguf")


class Reading:
    """A file's model as a Runner, with the outputs of the layers that `engine.json` names."""

    def __init__(self, folder: Path, kind: str) -> None:
        settings = read_settings(folder)
        watched = tuple(settings["watched"])
        self.traced = Traced(read_model(folder, kind), settings["function"], {"use_cache": False}, watched)

    @property
    def inputs(self) -> Sequence[tuple[str, torch.dtype]]:
        return (("input_ids", torch.int64),)

    @property
    def outputs(self) -> Sequence[str]:
        return ("logits", *(f"layer.{name}" for name in self.traced.watched))

    def run(self, values: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        with torch.no_grad():
            found: dict[str, Any] = self.traced(input_ids=values[0])
        return [found[name] for name in self.outputs]

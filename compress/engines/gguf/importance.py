"""How large the inputs are that the layers of a GGUF file's model meet: llama.cpp's importance matrix, as its `llama-imatrix` counts it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import get_tensor_name_map
from gguf.constants import MODEL_ARCH_NAMES
from numpy.typing import NDArray
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from compress.algorithms.forward_hooks import hearing
from compress.algorithms.tensors import device_of, to_array
from compress.context import Context
from compress.engines.gguf.reading import read_model
from compress.machine.llama_cpp import ARCHITECTURES


def importance(
    folder: Path, kind: str, rows: Sequence[Sequence[int]], context: Context
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """By llama.cpp's name of a weight, the mean square of each of its inputs over the tokens of the rows, [inputs].

    The file is opened with transformers, every weight in float32.
    """
    home = device_of(context.opening)
    model = read_model(folder, kind).to(home)
    names = dict(_names(model))
    sums: dict[str, torch.Tensor] = {}

    def count(name: str, args: tuple[Any, ...], named: Mapping[str, Any], output: object) -> None:
        squares = args[0].flatten(0, -2).double().square().sum(0)
        sums[name] = sums[name] + squares if name in sums else squares

    with hearing(model, names, count), torch.inference_mode():
        for row in context.progress(rows, "calibration texts", len(rows)):
            model(input_ids=torch.tensor([list(row)], device=home), use_cache=False)
    tokens = sum(map(len, rows))
    for name, squares in sums.items():
        yield names[name], to_array((squares / tokens).to(torch.float32))


def _names(model: PreTrainedModel) -> Iterator[tuple[str, str]]:
    """The linear layers' names, and llama.cpp's of their weights. A head that is tied is the table of embeddings there, and left out."""
    architecture = next(a for a, n in MODEL_ARCH_NAMES.items() if n == ARCHITECTURES[model.config.model_type])
    known = get_tensor_name_map(architecture, model.config.num_hidden_layers)
    head = model.get_output_embeddings()
    tied = head.weight is model.get_input_embeddings().weight
    layers = ((n, m) for n, m in model.named_modules() if isinstance(m, (torch.nn.Linear, Conv1D)))
    for name, module in layers:
        found = known.get_name(f"{name}.weight", try_suffixes=(".weight",))
        if found is not None and not (tied and module is head):
            yield name, found

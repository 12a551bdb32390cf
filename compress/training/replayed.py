"""A teacher's calls, replayed from CUDA graphs.

Training on a GPU waits for Python: a teacher that walks several steps a batch, guided, launches thousands of small kernels for what the GPU
has done at once. Its weights never change and its calls are alike, so that a graph answers them; the student's, which has gradients, runs
as ever.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from compress.opening.compile_and_capture import capturable, capture
from compress.training.loop import computes_in


def replayed(teacher: torch.nn.Module, device: str, precision: str) -> Callable[..., Any]:
    """The call of a frozen module, to be made without gradients in the autocast of a training: captured where a graph can be taken.

    Args:
        precision: of the training, as its parameter `precision` has it.
    """
    kind = torch.device(device).type
    if not capturable(torch.device(device)):
        return teacher
    dtype, eager = computes_in(precision, device), teacher.forward

    @functools.wraps(eager)
    def cast(*args: Any, **kwargs: Any) -> Any:
        # Weights are cast within the graph at each replay: copies that autocast keeps are gone when the training's ends.
        with torch.autocast(kind, dtype, enabled=dtype != torch.float32, cache_enabled=False):
            return eager(*args, **kwargs)

    vars(teacher)["forward"] = cast
    capture(teacher)

    @functools.wraps(teacher)
    def call(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(kind, enabled=False):  # in which no graph is replayed: the module has its own
            return teacher(*args, **kwargs)

    return call

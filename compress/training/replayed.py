"""A teacher's calls, replayed from CUDA graphs.

Training on a GPU waits for Python: a teacher that walks several steps a batch, guided, launches thousands of small kernels for what the GPU
has done at once. Its weights never change and its calls are alike, so that a graph answers them; the student's, which has gradients, runs
as ever.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from compress.opening.compile_and_capture import capturable
from compress.opening.graphed import Graphed, Ran
from compress.training.precision import computes_in


class Replayed:
    """The call of a frozen module, to be made without gradients within a training's autocast. The module itself stays as it is, so that it
    goes from memory with whoever holds this.

    Args:
        precision: of the training, as its parameter `precision` has it.
    """

    def __init__(self, teacher: torch.nn.Module, device: str, precision: str) -> None:
        self._kind = torch.device(device).type
        self._graphed = Graphed(teacher, torch.device(device))
        self._graphed.eager = partial(_cast, teacher.forward, self._kind, computes_in(precision, device))

    @property
    def ran(self) -> Ran:
        return self._graphed.ran

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(self._kind, enabled=False):  # in which no graph is replayed: the graph has its own
            return self._graphed(*args, **kwargs)


def _cast(eager: Callable[..., Any], kind: str, dtype: torch.dtype, *args: Any, **kwargs: Any) -> Any:
    # Weights are cast within the graph at each replay: copies that autocast keeps are gone when the training's ends.
    with torch.autocast(kind, dtype, enabled=dtype != torch.float32, cache_enabled=False):
        return eager(*args, **kwargs)


def replayed(teacher: torch.nn.Module, device: str, precision: str) -> Replayed | None:
    """A teacher's call from graphs; None where none are taken."""
    return Replayed(teacher, device, precision) if capturable(torch.device(device)) else None

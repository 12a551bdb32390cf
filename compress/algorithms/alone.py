"""What one rounded matrix of weights alone does to a module's output."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch

from compress.algorithms.rounding import Weight

# Of one call: the module's output as it is now, and as it is unquantized.
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Outputs = Callable[[], Iterable[tuple[torch.Tensor, torch.Tensor]]]


@contextmanager
def holding(weight: Weight, value: torch.Tensor) -> Iterator[None]:
    """Within: a matrix holds another value, in its own place; after it, what it held before, to the bit."""
    with torch.no_grad():
        kept = weight.value.detach().clone()
        weight.value.copy_(value)
    try:
        yield
    finally:
        with torch.no_grad():
            weight.value.copy_(kept)


def costs(weight: Weight, value: torch.Tensor, outputs: Outputs, loss: Loss) -> list[float]:
    """The loss of each call while a matrix alone holds another value.

    Args:
        outputs: the module's outputs now, call by call, each beside the one that is wanted.
    """
    with holding(weight, value), torch.no_grad():
        return [float(loss(found, wanted)) for found, wanted in outputs()]

"""How far a student is from its teacher.

Source: Hinton et al., "Distilling the Knowledge in a Neural Network" (2015), the tempered KL; Romero et al., "FitNets" (2015),
features through a learned projection; Kim et al., "BK-SDM" (2023), output and block features of a denoiser.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from compress.algorithms.forward_hooks import hearing, stream_of

Pairs = Sequence[tuple[str, str]]  # names of a student's and a teacher's block that are to agree


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Mean squared difference over the mean square of what is wanted: 0 if equal, about 1 for a student that says nothing."""
    wanted = wanted.float()
    return (found.float() - wanted).pow(2).mean() / wanted.pow(2).mean().clamp(min=1e-12)


def tempered_kl(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """KL(teacher || student) of softmax(logits / temperature) in nats a position, times temperature² so that its gradient
    does not fade. Logits: [..., vocabulary]."""
    ours = functional.log_softmax(student.float() / temperature, -1).flatten(0, -2)
    theirs = functional.log_softmax(teacher.float() / temperature, -1).flatten(0, -2)
    return functional.kl_div(ours, theirs, log_target=True, reduction="batchmean") * temperature**2


def match_blocks(student: Sequence[str], teacher: Sequence[str]) -> list[tuple[str, str]]:
    """Which blocks of two stacks end at the same depth: block i of m beside the teacher's block at the same share of n."""
    m, n = len(student), len(teacher)
    if not n:
        return []
    return [(name, teacher[max(1, round((i + 1) * n / m)) - 1]) for i, name in enumerate(student)]


class Projections(nn.Module):
    """One linear map a pair from the student's width to the teacher's; none where the widths agree. Thrown away in the end."""

    def __init__(self, widths: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        maps = [nn.Identity() if a == b else nn.Linear(a, b, bias=False) for a, b in widths]
        self.maps = nn.ModuleList(maps)

    def errors(self, student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor]) -> torch.Tensor:
        """The mean relative error over the pairs. Features have their channels last."""
        pairs = zip(self.maps, student, teacher, strict=True)
        return torch.stack([relative_error(project(one), other) for project, one, other in pairs]).mean()


@contextmanager
def listening(module: nn.Module, names: Sequence[str]) -> Iterator[Mapping[str, torch.Tensor]]:
    """Within: the stream that the named blocks gave last, channels last."""
    recorded: dict[str, torch.Tensor] = {}

    def hear(name: str, args: tuple[Any, ...], named: Mapping[str, Any], output: object) -> None:
        before = args[0] if args else named.get("hidden_states")
        last = stream_of(before, output)
        recorded[name] = last.movedim(1, -1) if last.dim() == 4 else last

    with hearing(module, names, hear):
        yield recorded

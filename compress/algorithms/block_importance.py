"""How much a block changes what passes through it: a block that changes its input least is missed least.

Source: Men et al., "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect" (2024), block influence.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import nn

from compress.algorithms.forward_hooks import hearing, passing_over, stream_of

Output: TypeAlias = (
    torch.Tensor | tuple[torch.Tensor | None, ...]
)  # of a block: some give a text's stream beside an image's


def of_blocks(module: nn.Module, names: Sequence[str], calls: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """1 - the mean cosine between each named block's input and output, over all positions of all calls.

    A block whose input is wider than its output (a decoder's, joined with a skip) is compared with the first channels of it.
    """
    sums, counts = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0)

    def hear(name: str, args: tuple[torch.Tensor, ...], named: Mapping[str, torch.Tensor], output: Output) -> None:
        before = args[0] if args else named["hidden_states"]
        after = stream_of(before, output, 0)
        axis = 1 if after.dim() == 4 else -1  # images have their channels second, sequences last
        same = before.float().narrow(axis, 0, after.shape[axis])
        cosine = torch.cosine_similarity(same, after.float(), dim=axis)
        sums[name] += float(cosine.sum())
        counts[name] += cosine.numel()

    with hearing(module, names, hear), torch.no_grad():
        for call in calls:
            module(**call)
    return {name: 1 - sums[name] / counts[name] if counts[name] else 0.0 for name in names}


def off_without(module: nn.Module, blocks: Collection[str], shorter: nn.Module, call: Mapping[str, Any]) -> float:
    """How far the logits of `shorter` are from those of `module` with these blocks passed over, as a share of their size."""
    with torch.no_grad():
        found = shorter(**call).logits.float()
        with passing_over(module, blocks):
            wanted = module(**call).logits.float()
    return float((found - wanted).norm() / wanted.norm())

"""Linear layers in 8-bit floating point, one scale for each row of weights and for each token: what `torch._scaled_mm` computes from SM89 on.

Source: the recipe of torchao's Float8DynamicActivationFloat8WeightConfig with PerRow granularity.
"""

from __future__ import annotations

from typing import Any

import torch

TYPE = torch.float8_e4m3fn
MOST = torch.finfo(TYPE).max
MULTIPLE = 16  # that the kernel wants of both widths
LEFT = ("norm",)  # parts whose layers work on one row an image, and gain nothing


class RowwiseLinear(torch.nn.Module):
    """A linear layer whose weights and inputs are rounded to 8 bits."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        packed, scale = rounded(linear.weight.detach())
        self.register_buffer("weight", packed)
        self.register_buffer("scale", scale.t().contiguous())
        self.bias = linear.bias
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        packed, scale = rounded(given.reshape(-1, self.in_features))
        if given.is_cuda:
            found = torch._scaled_mm(
                packed,
                self.weight.t(),
                scale_a=scale,
                scale_b=self.scale,
                bias=self.bias,
                out_dtype=given.dtype,
                use_fast_accum=True,
            )
        else:
            product = (packed.float() * scale) @ (self.weight.float() * self.scale.t()).t()
            found = product.to(given.dtype) if self.bias is None else (product + self.bias.float()).to(given.dtype)
        return found.reshape(*given.shape[:-1], self.out_features)


def rounded(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows in 8 bits, and each row's scale [rows, 1], float32."""
    scale = rows.abs().amax(-1, keepdim=True).float().clamp_min(1e-12) / MOST
    return (rows.float() / scale).clamp(-MOST, MOST).to(TYPE), scale


def rowwise(module: Any) -> Any:
    """The module, with the linear layers of its repeated blocks replaced, and all others as they were."""
    from compress.opening.compile_and_capture import blocks_of

    for block in blocks_of(module):
        for name, part in list(block.named_modules()):
            if not isinstance(part, torch.nn.Linear) or any(word in name for word in LEFT):
                continue
            if part.in_features % MULTIPLE == 0 and part.out_features % MULTIPLE == 0:
                parent, _, last = name.rpartition(".")
                setattr(block.get_submodule(parent), last, RowwiseLinear(part))
    return module

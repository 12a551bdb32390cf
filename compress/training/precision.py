"""In which numbers a training computes, and by which kernels it does not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from compress.machine.devices import CPU, kind_of


@contextmanager
def without_cudnn_attention() -> Iterator[None]:
    """cuDNN's attention may give gradients that are no numbers: in bfloat16 on an H200, torch 2.11, heads of 32, 80 tokens."""
    before = torch.backends.cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def computes_in(precision: str, device: str) -> torch.dtype:
    """The number type of a training's autocast, once `auto` is settled; float32 where there is none."""
    return torch.bfloat16 if mixed_precision(precision, device) == "bf16" else torch.float32


def mixed_precision(precision: str, device: str) -> str:
    """accelerate's name of the precision, once `auto` is settled: "bf16" or "no"."""
    if precision != "auto":
        return "bf16" if precision == "bfloat16" else "no"
    if kind_of(device) == CPU:
        able = torch.cpu.get_capabilities()
        return "bf16" if able.get("avx512_bf16") or able.get("amx_bf16") else "no"
    cuda = torch.device(device).type == "cuda" and torch.cuda.is_available()
    return "bf16" if cuda and torch.cuda.is_bf16_supported() else "no"

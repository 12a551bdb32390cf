"""A module's attention, computed by one backend alone."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from compress.engines.torch.runtime import silent_libraries
from compress.model.attention_backends import KERNELS, PACKAGES, on_gpus_alone

ATTENDED = "pare_attention"  # the attribute that says by which backend a module's attention is computed


class Attending:
    """Stands where a module's `forward` stood: each call is made within a context. diffusers' `set_attention_backend` would set one for every
    model of this process, a baseline among them."""

    def __init__(self, module: torch.nn.Module, within: Callable[[], AbstractContextManager[Any]]) -> None:
        self.inner: Callable[..., Any] = module.forward
        self.within = within
        functools.update_wrapper(self, self.inner)  # libraries read a forward's signature

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.within():
            return self.inner(*args, **kwargs)


def attend(module: Any, backend: str) -> None:
    """Let a backend compute a module's attention from now on; one that has no kernels for its device is left out, with a warning. A kernel of
    torch's that cannot compute a call is an error then.

    Raises:
        Exception: what transformers raises where it cannot.
    """
    device = next(module.parameters()).device
    if on_gpus_alone(backend) and device.type != "cuda":
        message = f"{type(module).__name__} runs without attention by {backend}, which has kernels for GPUs alone"
        warnings.warn(f"{message}, and the device is {device}", stacklevel=2)
        return
    vars(module)[ATTENDED] = backend
    if backend in KERNELS:
        kernel = getattr(SDPBackend, KERNELS[backend])
        vars(module)["forward"] = Attending(module, partial(sdpa_kernel, kernel))
    elif backend in PACKAGES:
        _, _, in_diffusers, in_transformers = PACKAGES[backend]
        if hasattr(module, "set_attn_implementation"):
            with silent_libraries():
                module.set_attn_implementation(in_transformers)
        else:
            from diffusers.models.attention_dispatch import attention_backend

            vars(module)["forward"] = Attending(module, partial(attention_backend, in_diffusers))


class _Asked(TorchFunctionMode):
    """Notes whether torch is asked for attention."""

    asked = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.asked = self.asked or func is torch.nn.functional.scaled_dot_product_attention
        return func(*args, **(kwargs or {}))


def asks_torch(call: Callable[[], object]) -> bool:
    """Whether a call has torch compute attention, so that it matters by which of its kernels; some models multiply and normalise by themselves."""
    with _Asked() as mode:
        call()
    return mode.asked


@contextmanager
def attending(module: Any, backend: str) -> Iterator[None]:
    """Within: a backend computes a module's attention."""
    before = vars(module).get("forward")
    usual = getattr(getattr(module, "config", None), "_attn_implementation", None)
    attend(module, backend)
    try:
        yield
    finally:
        vars(module).pop(ATTENDED, None)
        vars(module).pop("forward", None)
        if before is not None:
            vars(module)["forward"] = before
        if usual is not None and backend in PACKAGES:
            with silent_libraries():
                module.set_attn_implementation(usual)


def attended(module: torch.nn.Module) -> str:
    """By what a module's attention is computed, in words; "" where it is as its library has it."""
    found = vars(module).get(ATTENDED)
    return f"attention by {found}" if found else ""

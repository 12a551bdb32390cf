"""Tensors between here and there: the number types and devices that openings name, and the one way back to the processor."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray

from compress.errors import UserError
from compress.machine.devices import Opening


def dtype_of(opening: Opening) -> torch.dtype | None:
    """The number type that an opening names.

    Raises:
        UserError: torch has none of that name.
    """
    if opening.dtype is None:
        return None
    found = getattr(torch, opening.dtype, None)
    if not isinstance(found, torch.dtype):
        raise UserError(f"{opening.dtype} is no dtype", fix="give float32, bfloat16 or float16")
    return found


def device_of(opening: Opening) -> torch.device:
    """The device that an opening names.

    Raises:
        UserError: torch has no such device here.
    """
    try:
        torch.empty(0, device=opening.device)
    except (RuntimeError, AssertionError) as error:  # a torch without CUDA asserts that it has it
        message = str(error).partition("\n")[0]
        raise UserError(
            f"torch {torch.__version__} has no device `{opening.device}` here: {message}",
            fix="give cpu, or install a torch that has it",
        ) from error
    return torch.device(opening.device)


def finish(device: torch.device) -> None:
    """Wait until a device has done all that it was given: a clock that is read before that tells of the processor alone."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def to_host(value: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A tensor in the processor's memory, out of any gradient: the one way back from a device."""
    return value.detach().to("cpu", dtype)


def to_array(value: torch.Tensor, dtype: torch.dtype | None = None) -> NDArray[Any]:
    """A tensor's numbers, on the processor; those that lie there already are shared."""
    return to_host(value, dtype).numpy()


def moved(value: Any, device: torch.device | str) -> Any:
    """A tensor, or those in a mapping, list or tuple, on a device; anything else as it is."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {name: moved(one, device) for name, one in value.items()}
    if type(value) in (list, tuple):
        return type(value)(moved(one, device) for one in value)
    return value

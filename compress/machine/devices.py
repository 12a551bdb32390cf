"""How a model is opened: in which number type, and on which device. What of that there is here is known without torch."""

from __future__ import annotations

import platform
import re
import sys
from dataclasses import dataclass, replace
from typing import Literal

from compress.errors import UserError
from compress.machine import deps, gpus

CPU, CUDA = "cpu", "cuda:0"
DEVICES = r"auto|cpu|cuda|cuda:\d{1,2}|mps"
Kind = Literal["cpu", "cuda", "mps"]


@dataclass(frozen=True)
class Opening:
    """How one model is opened. Each side of a comparison has its own, and so have a teacher and its student.

    dtype: of the torch components, a name such as float32; None keeps the checkpoint's own, or float32 beside an engine.
    device: as `settled` gives it: cpu, cuda:0, mps.
    trust_remote_code: whether Python code in the model's folder may run.
    adapters: whether the adapters that are kept beside the model are loaded into it. Stages work on the model without them.
    """

    dtype: str | None = None
    device: str = CPU
    trust_remote_code: bool = False
    adapters: bool = True

    def of(self, dtype: str | None) -> Opening:
        """The same device in another number type."""
        return replace(self, dtype=dtype)

    @property
    def counted(self) -> dict[str, str | bool]:
        """What belongs into a key beside the number type: nothing where all is as it always was."""
        device: dict[str, str | bool] = (
            {}
            if self.device == CPU
            else {"device": self.device, **({"gpu": target} if (target := target_of(self.device)) else {})}
        )
        return device | ({"trust_remote_code": True} if self.trust_remote_code else {})


AS_STORED = Opening()  # on the processor, in the checkpoint's own numbers


def kind_of(device: str) -> Kind:
    """The kind of a settled device: that of cuda:1 is cuda."""
    kind = device.partition(":")[0]
    return "cuda" if kind == "cuda" else "mps" if kind == "mps" else "cpu"


def target_of(device: str) -> str:
    """What of a GPU decides the bits of a result: its compute capability, such as SM89, for each has kernels of its own. "" of what is none."""
    name, _, number = device.partition(":")
    found = gpus.gpus_here() if name == "cuda" else ()
    return found[int(number or 0)].target if int(number or 0) < len(found) else ""


def settled(device: object) -> str:
    """A recipe's word for a device to the device itself, in one spelling: `cuda` is cuda:0, `auto` the best there is.

    Raises:
        UserError: it is none, or this machine has no such device.
    """
    if not isinstance(device, str):  # Python hands over anything
        message = f"a device is named by a word, and this is {device!r}, a {type(device).__name__}"
        raise UserError(message, fix='device="cpu", "cuda", "cuda:1", "mps", or "auto" for the best there is')
    if not re.fullmatch(DEVICES, device):
        raise UserError(f"`{device}` is no device", fix="auto, cpu, cuda, cuda:1 or mps")
    if device == "auto":
        return "cuda:0" if not _no_cuda(0) else "mps" if not _no_mps() else CPU
    if device.startswith("cuda"):
        number = int(device.partition(":")[2] or 0)
        if why := _no_cuda(number):
            raise UserError(f"device: {device}, and {why}", fix="device: cpu, or auto for the best there is")
        return f"cuda:{number}"
    if device == "mps" and (why := _no_mps()):
        raise UserError(f"device: mps, and {why}", fix="device: cpu, or auto for the best there is")
    return device


def _no_cuda(number: int) -> str:
    """Why there is no NVIDIA GPU of this number for torch here, or ""."""
    found = gpus.gpus_here()
    if not found:
        return "nvidia-smi finds no NVIDIA GPU here"
    if number >= len(found):
        return f"nvidia-smi finds {len(found)} here, {', '.join(gpu.name for gpu in found)}"
    if version := gpus.torch_without_cuda():
        return f"torch {version} is built without CUDA, beside {found[0].name}"
    return ""


def _no_mps() -> str:
    if sys.platform != "darwin" or platform.machine() != "arm64":
        return f"this is {platform.system()} on {platform.machine()}: only Apple's own processors have it"
    return "" if deps.version("torch") else "torch is not installed"

"""By what attention is computed: one of torch's own kernels, for any model that asks torch for attention, or a package of its own, for models
whose classes take one.

Read from what is installed and from diffusers' source; `opening/attention.py` sets it.
"""

from __future__ import annotations

from typing import Literal

from compress.artifact import Artifact
from compress.errors import Refusal
from compress.machine import deps
from compress.machine.library_classes import source_of

Backend = Literal["native", "math", "flash", "efficient", "cudnn", "flash_attn", "sage"]
NATIVE: Backend = "native"  # whichever torch chooses at each call
KERNELS = {"math": "MATH", "flash": "FLASH_ATTENTION", "efficient": "EFFICIENT_ATTENTION", "cudnn": "CUDNN_ATTENTION"}
# Of packages, the distribution that brings each, its module, and what diffusers and transformers call it; "" where they do not have it.
PACKAGES = {
    "flash_attn": ("flash-attn", "flash_attn", "flash", "flash_attention_2"),
    "sage": ("sageattention", "sageattention", "sage", ""),
}
ROUNDING = ("sage",)  # that multiply in few bits
TAKES = "_attention_backend = None"  # in diffusers, of the classes whose attention can be computed by a package


def on_gpus_alone(backend: str) -> bool:
    """Whether a backend has no kernels for processors."""
    return backend in ("efficient", "cudnn", *PACKAGES)


def unattended(artifact: Artifact, backend: str) -> str:
    """Why a model's attention cannot be computed so, whatever the device; or ""."""
    if backend not in PACKAGES:
        return ""
    distribution, module, in_diffusers, in_transformers = PACKAGES[backend]
    kind = artifact.components[artifact.main].kind
    takes = in_transformers if artifact.writes_text else in_diffusers if TAKES in source_of(kind, "models") else ""
    if not takes:
        return Refusal(
            f"{kind} has no way to compute attention by {distribution}", f"backend: {', '.join(KERNELS)} or fastest"
        )
    if not deps.installed(module):
        return Refusal(f"{distribution} is not installed", f"pip install {distribution}, or give another backend")
    return ""


def candidates(artifact: Artifact, device: str) -> tuple[Backend, ...]:
    """The backends that leave numbers as they are, but for rounding, and may run a model on a device; whether one does, only a call tells."""
    known: tuple[Backend, ...] = (NATIVE, "math", "flash", "efficient", "cudnn", "flash_attn")
    return tuple(one for one in known if (device == "cuda" or not on_gpus_alone(one)) and not unattended(artifact, one))

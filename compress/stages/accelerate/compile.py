"""Compile the repeated blocks of a denoiser or a language model when they are first called.

Use it on a GPU, where eager calls of a block are many small kernels: torch's compiler fuses them, and since blocks of one kind share their
code, this takes a fraction of the time that the whole model would. The model's files stay as they are; code is made at the first call of
each size, which `cold_start` shows and timed blocks leave out, and is kept in pare's cache, so that the next process starts sooner. On a
processor it needs a C++ compiler, and build.compiled or another engine is usually faster. Put it last, before or behind
accelerate.cuda_graph, which saves what launching kernels takes.
Source: torch's regional compilation, and diffusers' `compile_repeated_blocks`, whose blocks these are.

    - accelerate.compile: {}
"""

from __future__ import annotations

from compress.artifact import Artifact
from compress.context import Context
from compress.model.hook_settings import COMPILE
from compress.params import Params
from compress.stages.accelerate import hook_stage, leave_hooked
from compress.stages.build.compiled import without_compiler


class Compile(Params):
    """It has no parameters."""


def elsewhere(device: str) -> str:
    if device == "mps":
        return "torch's compiler is not tried on Apple's GPUs, and the device is mps"
    return without_compiler() if device == "cpu" else ""


@hook_stage(
    version=1, params=Compile, name=COMPILE, reported="blocks are compiled at their first call", elsewhere=elsewhere
)
def run(artifact: Artifact, params: Compile, context: Context) -> None:
    leave_hooked(artifact, COMPILE, context)

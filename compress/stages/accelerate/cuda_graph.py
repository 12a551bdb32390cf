"""Replay a denoiser's calls, or a language model's decoding steps, from CUDA graphs.

Use it where the processor cannot launch kernels as fast as the GPU runs them, as with UNets and with decoding one text: the kernels stay
the same and so do the numbers, but one launch stands for thousands. A graph is taken at the first call of each shape; inputs are copied in,
outputs copied out. A language model decodes on a cache of fixed size, as transformers' `generate(cache_implementation="static")` does; its
prompts are read eagerly. What no graph can answer runs as before, with a warning that says why, and the report counts both. The model's
files stay as they are. Put it last, before or behind accelerate.compile.
Source: CUDA graphs in PyTorch (`torch.cuda.CUDAGraph`), and transformers' StaticCache.

    - accelerate.cuda_graph: {}
"""

from __future__ import annotations

from compress.artifact import Artifact
from compress.context import Context
from compress.model.hook_settings import GRAPH
from compress.params import Params
from compress.stages.accelerate import hook_stage, leave_hooked


class CudaGraph(Params):
    """It has no parameters."""


def elsewhere(device: str) -> str:
    return "" if device == "cuda" else f"a CUDA graph is taken on an NVIDIA GPU, and the device is {device}"


@hook_stage(
    version=1, params=CudaGraph, name=GRAPH, reported="calls are replayed from CUDA graphs", elsewhere=elsewhere
)
def run(artifact: Artifact, params: CudaGraph, context: Context) -> None:
    leave_hooked(artifact, GRAPH, context)

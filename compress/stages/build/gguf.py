"""Write a language model as a GGUF file for llama.cpp, compared with torch before it is kept.

Use it for generation on a processor, where llama.cpp is the engine to beat: `int4_weights` (its Q4_0) moves the fewest bytes
a token. With `device: cuda` it runs on an NVIDIA GPU, where llama-cpp-python is built with CUDA. It reads models of Llama, Mistral, Qwen 2, Qwen 3, Gemma 2, Gemma 3 and GPT-2 whose tokenizer is a byte-level BPE or
pieces in the manner of SentencePiece. Q8_0 and Q4_0 share a scale among 32 weights of a row; rows that do not divide by 32 stay
float16, and norms, biases and learned positions float32. `model.gguf` runs in any llama.cpp; pare runs it where
`llama-cpp-python` is installed. Source: llama.cpp and its `gguf` package.

    - build.gguf: {precision: int4_weights}
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from compress.artifact import LANGUAGE_MODEL, Artifact
from compress.catalogue import Forecast, stage
from compress.context import Context
from compress.engines.gguf import ENGINE
from compress.errors import Refusal
from compress.machine import gpus
from compress.machine.deps import installed
from compress.machine.devices import kind_of
from compress.model.bit_widths import packing
from compress.model.exportable import refuse_engine
from compress.params import Params, one_of

if TYPE_CHECKING:
    Precision = str
else:
    Precision = one_of(ENGINE.precisions)


class BuildGGUF(Params):
    precision: Precision = Field(
        "float16", description="what weights are stored in; int8_weights is llama.cpp's Q8_0, int4_weights its Q4_0"
    )


def refuse(artifact: Artifact, params: BuildGGUF) -> str:
    return refuse_engine(artifact, "all", "gguf")


def misplaced(artifact: Artifact, params: BuildGGUF, device: str) -> str:
    if kind_of(device) == "cuda" and params.precision == "float32":
        why = "llama.cpp multiplies float32 as TF32 on a GPU, which keeps no more digits than float16"
        return Refusal(why, "set precision to float16, or leave this stage out")
    return ""


def unavailable_here(params: BuildGGUF) -> str:
    if installed("llama_cpp") or gpus.elsewhere():
        return ""
    return "llama-cpp-python is not installed: pip install 'pare[llama-cpp]'"


def forecast(artifact: Artifact, params: BuildGGUF) -> Forecast:
    return Forecast(quantization=packing((LANGUAGE_MODEL,), ENGINE.format, params.precision))


@stage(
    version=4,
    params=BuildGGUF,
    needs=("language_model",),
    formats={"torch": "gguf"},
    effects=("format",),
    reproducible="bytes",
    libraries=("gguf", "transformers", "torch"),
    extra="gguf",
    refuse=refuse,
    forecast=forecast,
    misplaced=misplaced,
    kernels=lambda params: params.precision if params.precision in ("float16", "bfloat16") else "gguf",
    unavailable_here=unavailable_here,
)
def run(artifact: Artifact, params: BuildGGUF, context: Context) -> None:
    from compress.building.build import build_engines
    from compress.engines.gguf.build import GGUFBuilder

    builder = GGUFBuilder(params.precision, context.opening)
    build_engines(artifact, (LANGUAGE_MODEL,), builder, context)
    reader = "llama.cpp" if installed("llama_cpp") else "transformers, for llama-cpp-python is not installed"
    context.note(f"model.gguf was read back by {reader}", **builder.held)

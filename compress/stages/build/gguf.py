"""Write a language model as a GGUF file for llama.cpp, held against torch before it is kept.

Use it for generation on a processor, where llama.cpp is the engine to beat: `int4_weights` (its Q4_0) moves the fewest bytes
a token. It reads models of Llama, Mistral, Qwen 2, Qwen 3, Gemma 2, Gemma 3 and GPT-2 whose tokenizer is a byte-level BPE or
pieces in the manner of SentencePiece. Q8_0 and Q4_0 share a scale among 32 weights of a row; rows that do not divide by 32 stay
float16, and norms, biases and learned positions float32. `model.gguf` runs in any llama.cpp; pare runs it where
`llama-cpp-python` is installed. Source: llama.cpp and its `gguf` package.

    - build.gguf: {precision: int4_weights}
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from compress.artifact import LANGUAGE_MODEL, Artifact, read_json
from compress.catalogue import stage
from compress.context import Context
from compress.deps import installed
from compress.graphs import refuse_engine
from compress.llamacpp import KNOWN_SPLITS, refuse_config, vocabulary
from compress.params import Params


class BuildGGUF(Params):
    precision: Literal["float32", "float16", "bfloat16", "int8_weights", "int4_weights"] = Field(
        "float16", description="what weights are stored in; int8_weights is llama.cpp's Q8_0, int4_weights its Q4_0"
    )


def refuse(artifact: Artifact, params: BuildGGUF) -> str:
    if (why := refuse_engine(artifact, "all", "gguf")) or (why := refuse_config(artifact.config(LANGUAGE_MODEL))):
        return why
    tokenizer = artifact.path / "tokenizer.json"
    if tokenizer.is_file() and vocabulary(read_json(tokenizer)) is None:
        known = ", ".join(KNOWN_SPLITS)
        return (
            "llama.cpp does not know how its tokenizer cuts text: it must be pieces of SentencePiece, "
            f"or a byte-level BPE that cuts as one of {known}"
        )
    return ""


def idle_here(params: BuildGGUF) -> str:
    return "" if installed("llama_cpp") else "llama-cpp-python is not installed: pip install 'pare[llama-cpp]'"


@stage(
    version=3,
    params=BuildGGUF,
    tasks=("text_generation",),
    formats={"torch": "gguf"},
    effect="format",
    reproducible="bytes",
    libraries=("gguf", "transformers", "torch"),
    extra="gguf",
    refuse=refuse,
    idle_here=idle_here,
)
def run(artifact: Artifact, params: BuildGGUF, context: Context) -> None:
    from compress.building import build_engines
    from compress.engines.gguf.build import GGUFBuilder

    builder = GGUFBuilder(params.precision)
    build_engines(artifact, (LANGUAGE_MODEL,), builder, context)
    reader = "llama.cpp" if installed("llama_cpp") else "transformers, for llama-cpp-python is not installed"
    context.note(f"model.gguf was read back by {reader}", **builder.held)

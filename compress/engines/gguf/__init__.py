"""GGUF: a language model in one file, run by llama.cpp."""

from __future__ import annotations

from compress.artifact import Artifact, read_json
from compress.engines import Engine, tolerances
from compress.errors import Refusal
from compress.machine.devices import kind_of
from compress.machine.gpus import has_files
from compress.machine.llama_cpp import KNOWN_SPLITS, refuse_config, vocabulary

MODEL = "model.gguf"
WITH_CUDA = "CMAKE_ARGS=-DGGML_CUDA=on pip install --force-reinstall --no-deps --no-cache-dir llama-cpp-python"


def refuse(artifact: Artifact, component: str) -> str:
    """Why llama.cpp cannot run a language model: its config, or how its tokenizer cuts text."""
    if why := refuse_config(artifact.config(component)):
        return why
    tokenizer = artifact.path / "tokenizer.json"
    if tokenizer.is_file() and vocabulary(read_json(tokenizer)) is None:
        known = ", ".join(KNOWN_SPLITS)
        return (
            "llama.cpp does not know how its tokenizer cuts text: it must be pieces of SentencePiece, "
            f"or a byte-level BPE that cuts as one of {known}"
        )
    return ""


def lacks(device: str) -> str:
    """Why llama.cpp, as it is installed here, computes nothing on a device, or ""."""
    if kind_of(device) != "cuda" or has_files("llama_cpp", "*ggml-cuda*", override="LLAMA_CPP_LIB_PATH"):
        return ""
    return Refusal("llama-cpp-python is built for processors alone here", WITH_CUDA)


ENGINE = Engine(
    format="gguf",
    title="llama.cpp",
    distribution="llama-cpp-python",
    files=(MODEL,),
    devices=frozenset({"cpu", "cuda"}),
    precisions=tolerances("float32", "float16", "bfloat16", "int8_weights", "int4_weights"),
    lacks=lacks,
    refuse=refuse,
)

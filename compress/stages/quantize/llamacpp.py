"""Quantize a GGUF file with llama.cpp's own quantizer, to the types that its users know by name: Q4_K_M, Q6_K, IQ4_XS.

Use it after `build.gguf` in float16 or bfloat16. A K type gives 256 weights of a row scales of their own in two steps, and mixes widths: the
layers that suffer most, and the table of embeddings where it is the head too, get more bits than the name says. Rows that do not divide by 256
take a type of 32, in more bits. With `importance`, weights are rounded by how large the inputs are that they meet in calibration texts
(llama.cpp's importance matrix), which 2 and 3 bits gain most from; the IQ types of 3 bits and fewer cannot do without. llama.cpp runs the
file on kernels for its types; `llama-cpp-python` compiles when it is installed.
Source: llama.cpp, llama-quant.cpp and its tools quantize and imatrix.

    - build.gguf: {precision: bfloat16}
    - quantize.llamacpp: {type: q4_k_m}
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from compress.artifact import LANGUAGE_MODEL, Artifact, Quantization, derive, write_manifest
from compress.catalogue import Forecast, stage
from compress.context import Context
from compress.engines.gguf import MODEL
from compress.machine.deps import version
from compress.params import Params, unused_faults
from compress.quantization.linears import be_faultless

Type = Literal[
    "q8_0",
    "q6_k",
    "q5_k_m",
    "q5_k_s",
    "q5_0",
    "q4_k_m",
    "q4_k_s",
    "iq4_xs",
    "q4_0",
    "q3_k_l",
    "q3_k_m",
    "q3_k_s",
    "iq3_xxs",
    "q2_k",
    "iq2_m",
    "iq2_xxs",
]
LIBRARY = "llama-cpp-python"
LEAST = (0, 3, 36)  # tried; long before it, what takes the matrix was a pointer into C++
BLOCK = 256  # weights that a K or IQ type takes together
BLOCKS_OF_32 = ("q8_0", "q5_0", "q4_0")
NEED_IMPORTANCE = ("iq3_xxs", "iq2_m", "iq2_xxs")
IMPORTANCE = "importance.safetensors"
FLOAT32 = 4  # bytes


class QuantizeLlamaCpp(Params):
    type: Annotated[Type, BeforeValidator(lambda given: given.lower() if isinstance(given, str) else given)] = Field(
        "q4_k_m", description="llama.cpp's name of what most weights are stored in; its digit is their bits"
    )
    importance: bool = Field(
        False, description="round by the inputs that weights meet in calibration texts: llama.cpp's importance matrix"
    )
    samples: int = Field(128, ge=1, le=4096, description="calibration documents, with importance")
    length: int = Field(512, ge=2, le=32768, description="tokens of a document that are read at most, with importance")
    embeddings: Literal["auto", "bf16", "f16", "q8_0"] = Field(
        "auto", description="what the table of embeddings is stored in, a tied head too; auto: what llama.cpp chooses"
    )

    @property
    def bits(self) -> int:
        return int(next(letter for letter in self.type if letter.isdecimal()))


def refuse(artifact: Artifact, params: QuantizeLlamaCpp) -> str:
    if params.type in NEED_IMPORTANCE and not params.importance:
        return f"llama.cpp makes {params.type} with an importance matrix alone: give importance: true, and calibration data"
    if params.importance and (there := version(LIBRARY)) and _numbers(there) < LEAST:
        return f"an importance matrix takes {LIBRARY} {'.'.join(map(str, LEAST))}, and {there} is installed: pip install -U {LIBRARY}"
    if params.type == "q8_0" and params.importance:
        return "q8_0 rounds alike whatever weights meet: leave importance out"
    return ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3] if part.isdecimal())


def forecast(artifact: Artifact, params: QuantizeLlamaCpp) -> Forecast:
    be_faultless(unused_faults(params, "importance", dict.fromkeys(("samples", "length"), (True,))))
    packed = {LANGUAGE_MODEL: Quantization(params.type, params.bits, LIBRARY)}
    return Forecast(quantization=packed, warnings=tuple(_cautions(artifact.known_config(LANGUAGE_MODEL), params)))


def _cautions(config: Mapping[str, Any], params: QuantizeLlamaCpp) -> Iterator[str]:
    """Of rows that the type does not divide, as far as a config tells of them."""
    block = 32 if params.type in BLOCKS_OF_32 else BLOCK
    found = {what: size for what, size in widths(config).items() if size % block}
    if found:
        listed = ", ".join(f"{what} {size}" for what, size in found.items())
        yield f"{params.type} takes {block} weights of a row together, which does not divide {listed}: such rows get another type, of more bits"


def widths(config: Mapping[str, Any]) -> dict[str, int]:
    """How long rows of weights are, by the name of what they take in."""
    hidden = int(config.get("hidden_size") or config.get("n_embd") or 0)
    heads = int(config.get("num_attention_heads") or config.get("n_head") or 1)
    found = {
        "hidden_size": hidden,
        "intermediate_size": int(config.get("intermediate_size") or config.get("n_inner") or 4 * hidden),
        "heads × head_dim": heads * int(config.get("head_dim") or hidden // heads),
    }
    return {what: size for what, size in found.items() if size}


@stage(
    version=1,
    params=QuantizeLlamaCpp,
    needs=("language_model",),
    formats={"gguf": "gguf"},
    effects=("weights",),
    reproducible="bytes",
    bound_to=("isa",),  # it looks for scales in sums of floats
    libraries=(LIBRARY, "gguf", "transformers", "torch"),
    extra="llama-cpp",
    refuse=refuse,
    forecast=forecast,
    data=lambda params: ("calibration",) if params.importance else (),
)
def run(artifact: Artifact, params: QuantizeLlamaCpp, context: Context) -> None:
    from compress.engines.gguf.stored import stored
    from compress.engines.module import ENGINE, read_settings
    from compress.quantizers.own_process import in_own_process

    folder = artifact.folder(LANGUAGE_MODEL)
    parts = tuple(str((folder / name).relative_to(artifact.path)) for name in (MODEL, ENGINE))
    matrix = _importance(artifact, params, context) if params.importance else ""
    made = derive(artifact, context.out, without=parts, link=context.link)
    target = made.folder(LANGUAGE_MODEL)
    order = {
        "model": str((folder / MODEL).absolute()),
        "out": str((target / MODEL).absolute()),
        "type": params.type,
        "importance": matrix,
        "embeddings": params.embeddings,
    }
    module = "compress.quantizers.llamacpp"
    found = in_own_process("llama.cpp", module, lambda: order, context, {}, without=("LLAMA_", "GGML_"))
    settings = {**read_settings(folder), "precision": params.type}
    (target / ENGINE).write_text(json.dumps(settings, indent=2) + "\n")
    held = ", ".join(f"{count} weights in {kind}" for kind, count in stored(target).items())
    context.note(f"{MODEL}: {held}", component=LANGUAGE_MODEL, peak_bytes=found["peak_bytes"])
    packed = {LANGUAGE_MODEL: Quantization(params.type, params.bits, LIBRARY)}
    write_manifest(made.packing(packed))


def _importance(artifact: Artifact, params: QuantizeLlamaCpp, context: Context) -> str:
    """The file with the importance of every layer's inputs."""
    from safetensors.numpy import save_file

    from compress.engines.gguf.importance import importance
    from compress.opening.rows import calibration_rows

    rows = calibration_rows(artifact, params.samples, params.length, context)
    kind = artifact.components[LANGUAGE_MODEL].kind
    file = (context.scratch / IMPORTANCE).absolute()
    save_file(dict(importance(artifact.folder(LANGUAGE_MODEL), kind, rows, context)), str(file))
    context.note(f"importance from {sum(map(len, rows))} tokens of {len(rows)} texts")
    return str(file)

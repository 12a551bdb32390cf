"""Which GPU has which kernels: the one table of NVIDIA's GPUs and of number formats, and where each entry is from.

A format that a GPU has no kernels for may still run there, unpacked or emulated, and is then no faster; what the table calls `otherwise` says
how. Facts are of the libraries' own documents, not measured here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from compress.errors import UserError
from compress.machine.gpus import HERE, Gpu, gpu_here

NVIDIA = "NVIDIA, CUDA C++ Programming Guide, Compute Capabilities"
CUTLASS = "NVIDIA, CUTLASS, Functionality"
TORCHAO = "torchao, Quantization: supported hardware"
VLLM = "vLLM, Quantization: supported hardware"


@dataclass(frozen=True)
class Card:
    """A GPU that can be asked for by its name. gigabytes: of its memory, 10^9 bytes; of the usual one where there are several."""

    name: str
    target: str
    gigabytes: int


@dataclass(frozen=True)
class Format:
    """What numbers are multiplied in.

    since: the first compute capability with kernels for it, as a number: 89 is SM89. until: the last one; 0: none yet.
    otherwise: what becomes of it on other GPUs, with what to take there; "" where it does not run. caution: where kernels do not pay.
    """

    title: str
    since: int
    source: str
    until: int = 0
    otherwise: str = ""
    caution: str = ""

    def has_kernels(self, target: str) -> bool:
        """Whether a GPU of this compute capability has some."""
        number = int(target.removeprefix("SM"))
        return self.since <= number and (not self.until or number <= self.until)

    @property
    def where(self) -> str:
        """In words: from SM80 on."""
        return f"SM{self.since} to SM{self.until}" if self.until else f"from SM{self.since} on"


CARDS = {
    card.name: card
    for card in (
        Card("T4", "SM75", 16),
        Card("A100", "SM80", 80),
        Card("A10", "SM86", 24),
        Card("RTX 3090", "SM86", 24),
        Card("L4", "SM89", 24),
        Card("L40S", "SM89", 48),
        Card("RTX 4090", "SM89", 24),
        Card("H100", "SM90", 80),
        Card("H200", "SM90", 141),
        Card("B200", "SM100", 180),
        Card("RTX 5090", "SM120", 32),
    )
}
OLDEST = 50  # the least compute capability of the table below, as a number
BATCHES = "wins where a call waits for weights; in large batches it loses to bfloat16"
FORMATS: Mapping[str, Format] = {
    "float32": Format("float32", 50, NVIDIA),
    "float16": Format("float16", 70, NVIDIA, otherwise="without tensor cores: no faster than float32"),
    "bfloat16": Format("bfloat16", 80, NVIDIA, otherwise="emulated, slower than float32: take float16"),
    "int8": Format(
        "int8 products", 75, NVIDIA, otherwise="without tensor cores: take float16", caution="pays in large products"
    ),
    "float8": Format("float8 products", 89, f"{NVIDIA}; {TORCHAO}", caution="compile it, or quantizing eats the gain"),
    "int4": Format("int4 products", 75, CUTLASS, until=89),
    "nvfp4": Format("NVFP4 products", 100, VLLM, otherwise="weights alone are 4 bits there: take float8"),
    "int8_weights": Format("int8 weights, bfloat16 products", 80, TORCHAO, otherwise="unpacked at each call"),
    "int4_weights": Format("int4 weights, bfloat16 products", 80, TORCHAO, caution=BATCHES),
    "marlin": Format(
        "packed weights through Marlin in vLLM, or GPTQModel",
        80,
        VLLM,
        otherwise="unpacked at each call",
        caution=BATCHES,
    ),
    "unpacked": Format("packed weights, unpacked at each call", 50, VLLM, caution="smaller, and no faster"),
    "gguf": Format(
        "llama.cpp's blocks, unpacked inside the product",
        50,
        "llama.cpp, Build: CUDA",
        caution="takes a llama-cpp-python that is built with CUDA",
    ),
    "nf4": Format("4-bit weights, unpacked inside the product", 60, "bitsandbytes, Installation", caution=BATCHES),
    "llm_int8": Format(
        "int8 products, outliers in float16",
        75,
        "bitsandbytes, Installation",
        caution="smaller, and slower than float16",
    ),
}


def card(word: str) -> Card:
    """The GPU of a name, `SM89` for any of that generation, or `here` for this machine's own.

    Raises:
        UserError: nobody knows it, or this machine has none.
    """
    if word == HERE:
        here = gpu_here()
        if here is None:
            raise UserError("nvidia-smi finds no NVIDIA GPU here", fix=f"name one: {', '.join(CARDS)}")
        return Card(here.name, here.target, 0)
    words = re.findall(r"[a-z0-9]+", word.lower())  # of what nvidia-smi calls it too: NVIDIA A100-SXM4-80GB
    by_name = {name.lower().replace(" ", ""): one for name, one in CARDS.items()}
    ways = {*words, *(one + other for one, other in pairwise(words))}
    if named := next((one for name, one in by_name.items() if name in ways), None):
        return named
    found = re.fullmatch(r"sm(\d{2,3})|(\d{1,2})\.(\d)", word.lower().strip())  # nvidia-smi says 9.0 of SM90
    number = int(found[1] or found[2] + found[3]) if found else 0
    if number >= OLDEST:
        return Card(f"SM{number}", f"SM{number}", 0)
    generations = sorted({one.target for one in CARDS.values()}, key=lambda target: int(target[2:]))
    known = ", ".join((HERE, *CARDS, *generations))
    raise UserError(f"no GPU is known as {word}", fix=f"give its generation, as nvidia-smi tells it, or one of {known}")


def gpu_of(one: Card) -> Gpu:
    """As nvidia-smi would report it."""
    return Gpu(one.name, one.target)

"""What of a machine decides which recipe suits it."""

from __future__ import annotations

import os
from dataclasses import dataclass

from compress.machine import deps, gpus
from compress.machine.facts import machine_fact

VNNI = ("avx512_vnni", "avx_vnni", "amx_int8")
BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")


@dataclass(frozen=True)
class Machine:
    """isa: the processor's flags that matter to low precision. memory: bytes. gpu: one that torch knows here, or None. llama_cpp: whether
    GGUF files run here."""

    isa: frozenset[str]
    memory: int
    gpu: gpus.Gpu | None = None
    llama_cpp: bool = False

    @property
    def vnni(self) -> bool:
        """Whether the processor multiplies bytes faster than floats."""
        return any(flag in self.isa for flag in VNNI)

    @property
    def bfloat16(self) -> bool:
        """Whether what it is run on multiplies bfloat16 by itself."""
        if self.gpu:
            return int(self.gpu.target.removeprefix("SM")) >= 80
        return any(flag in self.isa for flag in BFLOAT16)

    @property
    def words(self) -> str:
        """In a line, for the recipe's head."""
        size = f"{self.memory / 1e9:.0f} GB of memory"
        if self.gpu:
            return f"{self.gpu.name}, {self.gpu.target}; {size} beside it"
        kinds = [
            name
            for name, there in (("8-bit products (VNNI)", self.vnni), ("bfloat16 products", self.bfloat16))
            if there
        ]
        return f"a processor with {' and '.join(kinds) or 'neither 8-bit nor bfloat16 products'}; {size}"


def this_machine() -> Machine:
    """The one that this runs on."""
    gpu = None if gpus.torch_without_cuda() else gpus.gpu_here()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(frozenset(machine_fact("isa").split()), memory, gpu, deps.installed("llama_cpp"))

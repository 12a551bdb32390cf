"""An engine: what runs a component of one format. The package `compress/engines/openvino/` is the format `openvino`: the record
`ENGINE` in its `__init__` is the registration, and what runs it (`runtime.py`) and builds it lies beside it.

How many weights of which type its files hold is known from `stored.py` beside it, where that can be reported.
A record is read by plans, so it imports no engine. What every engine shares lies here: `module.py`, `language.py`, `builder.py`,
`parity.py`, `tracing.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from compress.artifact import Artifact
    from compress.machine.devices import Kind

# Largest accepted root mean square of the difference to torch, over that of torch's own output. float32 engines differ by
# the order of additions; bfloat16 has 8 bits of mantissa and float16 11, and their rounding adds up over the layers. In 8
# and 4 bits an engine computes something else on purpose: this only catches what is broken, the evaluation judges the rest.
TOLERANCE: Mapping[str, float] = {
    "float32": 1e-3,
    "float16": 2e-2,
    "bfloat16": 1e-1,
    "int8_weights": 1e-1,
    "int8": 3e-1,
    "float8": 3e-1,
    "int8_dynamic": 3e-1,
    "int4_weights": 5e-1,
}

SETTINGS = "engine.json"  # beside an engine: what built it, and how it is called
ENCODER = "encoder"  # beside the engine of a VAE's decoder, in a folder of its own: that of its encoder, where a pipeline is given images


@dataclass(frozen=True)
class Engine:
    """What runs a component of one format.

    format: as manifests have it; its package's name.
    title: its name for a reader.
    distribution: what is installed to run it.
    files: patterns of what it writes beside `engine.json` and the component's config: graphs, weights, compiled code.
    devices: the kinds of device that it runs on.
    precisions: what it computes in, each with the largest difference to torch that is accepted.
    over_call: those in which activations get one scale over a whole call, so that each row of a batch moves the others.
    weights: the files in a component's folder that running it reads.
    keeps_type: whether its files hold weights in the number type that they were stored in; else in the one that it computes in.
    torch_memory: whether torch allocates, and so counts, what it takes of a GPU.
    native: whether its code is compiled for the kind of device of the run that builds it.
    unfit: why an engine in a component's folder does not run on a device as it is here, from JSON alone, or ""; None: it runs on all of
        `devices`.
    lacks: why its library, as it is installed here, does not compute on a device of `devices`, as a Refusal with what to install, from
        file names alone; "" where it does, and where there is no such library.
    refuse: why it cannot take a component, read from JSON and file names alone, or "".
    """

    format: str
    title: str
    distribution: str
    files: tuple[str, ...]
    devices: frozenset[Kind]
    precisions: Mapping[str, float] = field(default_factory=dict)
    over_call: frozenset[str] = frozenset()
    weights: Callable[[Path], tuple[Path, ...]] | None = None
    keeps_type: bool = False
    torch_memory: bool = False
    native: bool = False
    unfit: Callable[[Path, str], str] | None = None
    lacks: Callable[[str], str] = field(default=lambda device: "")
    refuse: Callable[[Artifact, str], str] = field(default=lambda artifact, component: "")

    def reads(self, folder: Path) -> tuple[Path, ...]:
        """The weight files in a component's folder that running it reads."""
        if not self.weights:
            return self.written(folder)
        return tuple(file for place in (folder, folder / ENCODER) for file in self.weights(place))

    def written(self, folder: Path) -> tuple[Path, ...]:
        """All that it wrote into a component's folder, by name."""
        places = (folder, folder / ENCODER)
        return tuple(sorted({file for place in places for pattern in self.files for file in place.glob(pattern)}))


def tolerances(*precisions: str) -> dict[str, float]:
    """Precisions with the tolerances that are usual for them."""
    return {name: TOLERANCE[name] for name in precisions}

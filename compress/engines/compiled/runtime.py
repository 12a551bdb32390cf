"""The compiled engine: torch's own graph as native code, made ahead of time by its compiler (AOTInductor).

A component's folder holds `compiled.pt2`: a zip of a shared library with the weights and a GPU's kernels in it, and the C++ it was made
from. It holds no pickle, but loading it runs its code. So only packages are opened that lie, unchanged, in an artifact of `build.compiled`.
That keeps out files that got there by accident; who can write to the artifact's folder can write its records too.
"""

from __future__ import annotations

import tempfile
import threading
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from weakref import WeakValueDictionary

import torch

from compress.algorithms.tensors import device_of, to_array
from compress.artifact import MANIFEST, read_json
from compress.engines.compiled import PACKAGE, compiled_for
from compress.engines.language import (
    EngineLanguageModel,
    Past,
    TensorPast,
    device_inputs,
    foreign_cache,
    step_inputs,
)
from compress.engines.module import CPU, EngineModule, read_settings, with_encoder
from compress.errors import ModelError, UserError
from compress.files.hashing import digest_file
from compress.machine.devices import Opening, target_of
from compress.machine.facts import machine_fact

Precision = Literal["float32", "float16", "bfloat16"]
STAGE = "build.compiled"
MAKERS = frozenset({STAGE, "build.fastest"})  # which may have chosen what the former made
CACHE = "past_key_values"
AGAIN = "run the recipe again: it builds the engine anew"
_ONE_CALL_AT_A_TIME = 1
_A_CALL_AHEAD = 2  # on a GPU: while it is at work on one, the next is put into its queue; both have the same weights
_opened: dict[
    str, Any
] = {}  # on the processor, by digest, as long as the process lives: torch does not unload what it loaded there
# By digest, and which GPU: a package goes with the last who has it, for its weights take the GPU's memory.
_opened_there: WeakValueDictionary[tuple[str, str], _OnGpu] = WeakValueDictionary()
_lock = threading.Lock()


def check_origin(folder: Path) -> None:
    """See that the artifact around a component's folder was made by `build.compiled`, before any of its code runs.

    Raises:
        ModelError: it was not.
    """
    manifest = next((p / MANIFEST for p in (folder, folder.parent) if (p / MANIFEST).is_file()), None)
    if manifest is None or MAKERS.isdisjoint(step["stage"] for step in read_json(manifest)["lineage"]):
        raise ModelError(
            f"holds native code that no {STAGE} in the artifact's lineage accounts for, and is not run",
            place=str(folder / PACKAGE),
            fix=f"build the engine yourself: a recipe with {STAGE} on the torch model",
        )


Shape = tuple[int | str, ...]


@dataclass(frozen=True)
class Port:
    """An input of the graph. `shape` holds for each axis its size, or the name of a size that only a call decides.

    `value` is what a cache carries beside keys and values, a number that never changes, such as the width of its window.
    """

    name: str
    dtype: torch.dtype
    shape: Shape
    value: int | float | None = None


class Package:
    """A compiled graph. Any thread may call it: on a processor one call runs at a time, on as many threads as torch has; on a GPU calls
    go into the caller's own stream.

    Args:
        home: the device that it runs on, takes its inputs on and gives its outputs on.
    """

    def __init__(self, folder: Path, home: torch.device = CPU) -> None:
        self.folder = folder
        self.home = home
        self.settings = read_settings(folder)
        self.ports = tuple(
            Port(p["name"], getattr(torch, p["dtype"]), tuple(p["shape"]), p["value"]) for p in self.settings["inputs"]
        )
        self.inputs: Sequence[tuple[str, torch.dtype]] = tuple((p.name, p.dtype) for p in self.ports)
        self.outputs: Sequence[str] = tuple(self.settings["outputs"])
        self._ranges: Mapping[str, tuple[int, int]] = {
            n: (low, high) for n, (low, high) in self.settings["ranges"].items()
        }
        self._alike = _alike(self.ports)
        _check_maker(folder, self.settings, home)
        self._loader = _open(folder / PACKAGE, self.settings["digest"], home)

    def run(self, values: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        return [v.float() if v.is_floating_point() else v for v in self.call(values)]

    def call(self, values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The outputs in the graph's own precision, for contiguous inputs in it.

        Raises:
            UserError: a size is not one it was built for. The native code looks at none, and would read past the end.
        """
        sizes: dict[str, int] = {}
        for wanted, places in self._alike.items():
            shapes = {values[place].shape for place in places}
            if len(shapes) > 1 or not self._fits(wanted, shapes.pop(), sizes):
                raise self._refusal(values)
        found: list[torch.Tensor] = self._loader.run(list(values))
        return found

    def _fits(self, wanted: Shape, given: Sequence[int], sizes: dict[str, int]) -> bool:
        """Whether an input has the sizes of its port; an axis whose name is in `sizes` already must be as long there."""
        if len(given) != len(wanted):
            return False
        for size, port in zip(given, wanted, strict=True):
            if isinstance(port, str):
                low, high = self._ranges.get(port, (0, size))
                if not low <= size <= high:
                    return False
                port = sizes.setdefault(port, size)
            if size != port:
                return False
        return True

    def _refusal(self, values: Sequence[torch.Tensor]) -> UserError:
        """What to say of the first input that does not fit."""
        sizes: dict[str, int] = {}
        pairs = zip(self.ports, values, strict=True)
        port, value = next((p, v) for p, v in pairs if not self._fits(p.shape, v.shape, sizes))
        ranges = {name: f"{low} to {high}" for name, (low, high) in self._ranges.items()}
        built = ", ".join(str(s) if isinstance(s, int) else ranges.get(s, "any") for s in port.shape)
        return UserError(
            f"the engine takes `{port.name}` of [{built}], equally many rows in all inputs, "
            f"and this call gives [{', '.join(map(str, value.shape))}]",
            place=str(self.folder),
            fix=f"call it at those sizes, or build it for others: {STAGE} has a `profile`",
        )


class Cached:
    """A decoder whose graph takes the cache of the tokens seen and gives it back, longer by those of the step."""

    def __init__(self, package: Package) -> None:
        self.package = package
        self._names = [p.name for p in package.ports]
        self._rows = next(p for p in package.ports if p.name == "input_ids").shape[0]
        self._numbers = {
            p.name: torch.tensor(p.value, dtype=p.dtype, device=package.home)
            for p in package.ports
            if p.value is not None
        }

    def begin(self, batch: int) -> TensorPast:
        caches = (p for p in self.package.ports if p.name.startswith(CACHE) and p.value is None)
        return TensorPast(
            [
                torch.empty([self._size(s, batch) for s in p.shape], dtype=p.dtype, device=self.package.home)
                for p in caches
            ]
        )

    def step(self, tokens: torch.Tensor, past: Past) -> torch.Tensor:
        """As `Decoder.step`."""
        if not isinstance(past, TensorPast):
            raise foreign_cache()
        given, caches = self._known(tokens, past.seen), iter(past.tensors)
        values = [
            self._numbers[p.name]
            if p.value is not None
            else (next(caches).contiguous() if p.name.startswith(CACHE) else given[p.name])
            for p in self.package.ports
        ]
        logits, *grown = self.package.call(values)
        past.tensors = tuple(t for t in grown if t.dim() > 0)
        return logits.float()

    def _known(self, tokens: torch.Tensor, seen: int) -> dict[str, torch.Tensor]:
        """What the graph takes beside its cache. On a processor by way of arrays: of so few numbers, they are made sooner."""
        if self.package.home.type == "cuda":
            return device_inputs(tokens, seen, self._names, self.package.home)
        return {
            name: torch.from_numpy(array) for name, array in step_inputs(to_array(tokens), seen, self._names).items()
        }

    def _size(self, size: int | str, batch: int) -> int:
        if isinstance(size, int):
            return size
        return batch if size == self._rows else 0


def _alike(ports: Sequence[Port]) -> dict[Shape, list[int]]:
    """The places of the inputs that must have the same sizes, such as all of a cache: one look does for them."""
    places: dict[Shape, list[int]] = {}
    for place, port in enumerate(ports):
        places.setdefault(port.shape, []).append(place)
    return places


class _OnGpu:
    """A library's code on one GPU, put into the stream that its caller works in there."""

    def __init__(self, library: str, home: torch.device) -> None:
        self._home = home
        with torch.cuda.device(home):  # the library would leave its own GPU as the current one
            self._runner = torch._C._aoti.AOTIModelContainerRunnerCuda(library, _A_CALL_AHEAD, str(home))

    def run(self, values: list[torch.Tensor]) -> list[torch.Tensor]:
        with torch.cuda.device(self._home):
            found: list[torch.Tensor] = self._runner.run(values)
        return found


def _open(package: Path, digest: str, home: torch.device) -> Any:
    """The loaded package: each is loaded once in a process and GPU, and later engines share it."""
    with _lock:
        found = _opened_there.get((digest, str(home))) if home.type == "cuda" else _opened.get(digest)
        if found is not None:
            return found
        try:
            found = _load(package, home)
        except (RuntimeError, StopIteration, zipfile.BadZipFile) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            first = (str(error).strip() or "it holds no library").splitlines()[0]
            raise ModelError(f"does not load: {first}", place=str(package), fix=AGAIN) from error
        if home.type == "cuda":
            _opened_there[digest, str(home)] = found
        else:
            _opened[digest] = found
        return found


def _load(package: Path, home: torch.device) -> Any:
    """Run the library out of a folder that is gone when this returns: the system keeps a mapped file as long as it is in use, and a GPU's
    kernels lie in the library itself (`embed_kernel_binary`). Beside it lies what torch reads when it is opened.

    Not by `torch._inductor.aoti_load_package`, which imports the compiler first, 3 s before the first answer; nor by its
    loader in C++, which unpacks all to a temporary folder and leaves that behind if its process is killed.
    """
    with tempfile.TemporaryDirectory(prefix="pare-") as folder, zipfile.ZipFile(package) as packed:
        library = packed.extract(next(n for n in packed.namelist() if n.endswith(".so")), folder)
        for beside in (n for n in packed.namelist() if n.endswith(".json")):
            packed.extract(beside, folder)
        if home.type == "cuda":
            return _OnGpu(library, home)
        return torch._C._aoti.AOTIModelContainerRunnerCpu(library, _ONE_CALL_AT_A_TIME)


def _check_maker(folder: Path, settings: Mapping[str, Any], home: torch.device) -> None:
    """See that a package is the one that was built, for this torch, this kind of device, and this processor and GPU."""
    if not (folder / PACKAGE).is_file():
        raise ModelError(f"holds no {PACKAGE}", place=str(folder), fix=AGAIN)
    for what, built, here in (
        ("torch", settings["version"], torch.__version__),
        ("the device", compiled_for(folder), home.type),
        ("a GPU of", settings.get("gpu", ""), target_of(str(home))),
        ("a processor with", settings["isa"], machine_fact("isa")),
    ):
        if built != here:
            raise ModelError(
                f"this engine was compiled for {what} {built}, and here is {what} {here}", place=str(folder), fix=AGAIN
            )
    if digest_file(folder / PACKAGE) != settings["digest"]:
        raise ModelError(
            "is not the package that was built here: its digest differs", place=str(folder / PACKAGE), fix=AGAIN
        )


def _checked(folder: Path, opening: Opening) -> Package:
    """The package in a component's folder, after a look where it comes from, before any of its code runs."""
    check_origin(folder)
    return Package(folder, device_of(opening))


def load_component(folder: Path, library: str, kind: str, opening: Opening) -> EngineModule:
    """An engine component of a pipeline, on the opening's device. The number type is the engine's own affair: it takes and gives float32.

    Raises:
        ModelError: it is no package of `build.compiled`, or one that was built for another torch, device, GPU or processor.
        UserError: torch has no such device here.
    """

    check_origin(folder)

    def opened(place: Path) -> EngineModule:
        package = Package(place, device_of(opening))
        return EngineModule(place, library, kind, package, package.home)

    return with_encoder(folder, opened)


def load_language_model(folder: Path, kind: str, opening: Opening) -> EngineLanguageModel:
    """A language model that transformers' `generate` runs as it runs a torch one. Raises as `load_component`."""
    package = _checked(folder, opening)
    return EngineLanguageModel(folder, kind, Cached(package), package.home)

"""NVIDIA's GPUs and the two TensorRT libraries, known without torch: what is available here, and what can be built for.

`tensorrt-rtx` builds ahead of time for GPUs that need not be here. `tensorrt`, the data-centre library, builds for the GPU
available here alone: it times its kernels there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from compress.errors import MissingLibrary, UserError
from compress.machine import deps

HERE: Literal["here"] = "here"
Targets = tuple[str, ...] | Literal["here"]
HEADERS = ("cuda_runtime.h", "crt/host_defines.h")  # of packages in parts, some have the first without the second


@dataclass(frozen=True)
class Gpu:
    """A GPU by its name and its compute capability, such as SM89."""

    name: str
    target: str


@dataclass(frozen=True)
class Library:
    """One of the TensorRT libraries: how it is imported, under which distributions it comes, and how to get it."""

    name: str
    module: str
    distributions: tuple[str, ...]
    install: str

    @property
    def version(self) -> str:
        """The installed version, or ""."""
        if not deps.installed(self.module):
            return ""
        return next(filter(None, map(deps.version, self.distributions)), "")


RTX = Library(
    "tensorrt-rtx",
    "tensorrt_rtx",
    ("tensorrt-rtx-cu13", "tensorrt-rtx-cu12", "tensorrt-rtx"),
    "pip install 'pare[tensorrt]'",
)
DATA_CENTRE = Library(
    "tensorrt",
    "tensorrt",
    ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "pip install tensorrt, which fetches from NVIDIA's own package index",
)
LIBRARIES = {library.name: library for library in (RTX, DATA_CENTRE)}


_SUPPOSED: ContextVar[Gpu | None] = ContextVar("supposed", default=None)


@contextmanager
def supposing(gpu: Gpu) -> Iterator[None]:
    """Within: this machine is taken to have that GPU alone, and a torch that knows it. For plans; nothing can run."""
    token = _SUPPOSED.set(gpu)
    try:
        yield
    finally:
        _SUPPOSED.reset(token)


def gpus_here() -> tuple[Gpu, ...]:
    """The GPUs that this process may use, as their driver tells; none where there is no driver or no GPU."""
    supposed = _SUPPOSED.get()
    return (supposed,) if supposed else reported_gpus()


@cache
def reported_gpus() -> tuple[Gpu, ...]:
    """What the driver tells, asked once."""
    ask = ["nvidia-smi", "--query-gpu=compute_cap,name", "--format=csv,noheader"]
    try:
        reported = subprocess.run(ask, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    rows = [line.partition(",") for line in reported.splitlines()]
    found = tuple(Gpu(name.strip(), "SM" + one.strip().replace(".", "")) for one, comma, name in rows if comma)
    return visible(found, os.environ.get("CUDA_VISIBLE_DEVICES"))


def visible(found: tuple[Gpu, ...], named: str | None) -> tuple[Gpu, ...]:
    """What CUDA_VISIBLE_DEVICES leaves of a machine's GPUs, in its order; what follows a wrong number is hidden, as CUDA does it.
    A GPU that is named by its UUID counts, but which one it is the driver's list of names does not tell."""
    if named is None:
        return found
    left: list[Gpu] = []
    for word in filter(None, map(str.strip, named.split(","))):
        number = int(word) if word.isdecimal() else len(left) if word.startswith(("GPU-", "MIG-")) else -1
        if not 0 <= number < len(found):
            break
        left.append(found[number])
    return tuple(left)


def gpu_here() -> Gpu | None:
    """The machine's first GPU; None where there is none."""
    return next(iter(gpus_here()), None)


def targets_of(library: Library) -> tuple[str, ...]:
    """The compute capabilities that an installed library builds for on this machine.

    Raises:
        MissingLibrary: it is not installed.
    """
    if not library.version:
        raise MissingLibrary(f"the library `{library.name}` is not installed", fix=library.install)
    if library is RTX:
        named = deps.need(library.module).ComputeCapability.__members__
        return tuple(sorted((n for n in named if n.startswith("SM")), key=lambda n: int(n[2:])))
    return (gpu.target,) if (gpu := gpu_here()) else ()


def choose(library: str, targets: Targets) -> tuple[Library, tuple[str, ...]]:
    """The library that builds, and for which compute capabilities.

    Args:
        library: "tensorrt", "tensorrt-rtx" or "auto": the former where it is installed and can, else the latter.

    Raises:
        MissingLibrary: it is not installed.
        UserError: there is no GPU available here to build for, or the library does not know a target.
    """
    gpu = gpu_here()
    if targets == HERE and gpu is None:
        raise UserError(
            "there is no NVIDIA GPU available here to build for",
            fix="name some: targets: [SM86, SM89], or run on such a GPU",
        )
    asked = (gpu.target,) if targets == HERE and gpu else tuple(targets)
    able = bool(DATA_CENTRE.version) and set(asked) <= set(targets_of(DATA_CENTRE))
    found = LIBRARIES[library] if library != "auto" else DATA_CENTRE if able else RTX
    known = targets_of(found)
    if unknown := [t for t in asked if t not in known]:
        raise UserError(
            f"{found.name} {found.version} does not build for {', '.join(unknown)} here",
            fix=f"targets it builds for: {', '.join(known) or 'none, for no GPU is available here'}",
        )
    return found, asked


def has_float8(target: str) -> bool:
    """Whether GPUs of a compute capability compute in 8-bit floating point."""
    return int(target.removeprefix("SM")) >= 89


def torch_without_cuda() -> str:
    """The version of a torch that was built for processors alone, as its name says; "" of any other. An engine takes and gives
    torch's tensors, so it runs where torch knows the GPU."""
    version = "" if _SUPPOSED.get() else deps.version("torch")
    return version if version.endswith("+cpu") else ""


def elsewhere() -> bool:
    """Whether a plan is made for another machine, of whose libraries nothing is known."""
    return _SUPPOSED.get() is not None


def has_files(module: str, pattern: str, *, override: str = "") -> bool:
    """Whether a library that is installed holds files of such a name anywhere in its folder, such as the part that computes on GPUs: it is
    not imported. True where it is not installed, which is another matter, and in a plan for another machine.

    Args:
        override: a variable of the environment that names another folder of its native code.
    """
    if elsewhere() or (spec := _spec(module)) is None:
        return True
    named = os.environ.get(override, "") if override else ""
    places = [Path(named)] if named else [Path(place) for place in spec.submodule_search_locations or ()]
    return any(next(place.rglob(pattern), None) for place in places)


def _spec(module: str) -> ModuleSpec | None:
    try:
        return find_spec(module)
    except (ModuleNotFoundError, ValueError):  # whoever put it into sys.modules gave it none
        return None


def toolkit() -> Path | None:
    """The folder of a CUDA toolkit, whose headers C++ for a GPU includes; None where there is none.

    Not where torch looks alone: it takes the folder of any program called nvcc for the toolkit's, be it a link or a script.
    """
    named = [os.environ.get(name, "") for name in ("CUDA_HOME", "CUDA_PATH")]
    compiler, wheels = shutil.which("nvcc"), find_spec("nvidia")
    places = [Path(place) for place in named if place]
    places += [Path(compiler).resolve().parent.parent] if compiler else []
    places += [Path("/usr/local/cuda")]
    for folder in (wheels.submodule_search_locations or ()) if wheels else ():
        places += sorted(Path(folder).glob("cu*"))
    return next((place for place in places if all((place / "include" / one).is_file() for one in HEADERS)), None)


def without_toolkit() -> str:
    """Why C++ for a GPU cannot be compiled on this machine, or ""."""
    if _SUPPOSED.get() or toolkit():
        return ""
    return f"this machine has no CUDA toolkit, of which C++ for a GPU includes {HEADERS[0]}"


def why_unavailable(library: Library, built: tuple[str, ...]) -> str:
    """Why a library's engines for these targets, or rebuilt from their ONNX, cannot run on this machine; "" where they can."""
    gpu = gpu_here()
    if gpu is None:
        why = "it has no NVIDIA GPU"
    elif gpu.target not in targets_of(library):
        why = f"its {gpu.name} is {gpu.target}, which {library.name} does not know"
    elif version := torch_without_cuda():
        why = f"its torch {version} is built without CUDA"
    else:
        return ""
    return f"the engines of build.tensorrt for {', '.join(built)} cannot run on this machine: {why}"


def fingerprint() -> str:
    """What of a machine decides an engine beside the recipe: the GPU available here and the installed libraries."""
    gpu = gpu_here()
    versions = [f"{library.name} {library.version or 'absent'}" for library in LIBRARIES.values()]
    return ", ".join((gpu.target if gpu else "no GPU", *versions))


def abilities() -> str:
    """What this machine can build and run, in lines for a reader."""
    gpu = gpu_here()
    lines = [f"GPU          {f'{gpu.name}, {gpu.target}' if gpu else 'none found: engines can be built and not run'}"]
    for library in LIBRARIES.values():
        if not library.version:
            lines.append(f"{library.name:<12} not installed: {library.install}")
            continue
        known = ", ".join(targets_of(library)) or "nothing, for it builds on the GPU available here"
        lines.append(f"{library.name:<12} {library.version}, builds for {known}")
    return "\n".join(lines)

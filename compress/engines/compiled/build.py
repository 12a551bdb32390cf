"""Torch to native code, through the exporter of transformers and torch's ahead-of-time compiler (AOTInductor)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch._inductor import aoti_compile_and_package, list_options
from torch._inductor.runtime.cache_dir_utils import temporary_cache_dir
from torch.export import Dim, ExportedProgram
from transformers.exporters.exporter_dynamo import DynamoConfig, DynamoExporter, patch_forward_signature
from transformers.exporters.utils import apply_patches

from compress.algorithms.tensors import device_of
from compress.engines.builder import Builder, Example, Feed, positions_of
from compress.engines.compiled import PACKAGE
from compress.engines.compiled.runtime import CACHE, Cached, Package, Port
from compress.engines.language import EngineLanguageModel
from compress.engines.module import EngineModule, flatten, write_settings
from compress.engines.tracing import TIMESTEP, Call, Traced, decoding_step, narrowed, quiet_export, split
from compress.files.hashing import digest_file
from compress.machine import gpus
from compress.machine.devices import AS_STORED, Opening, target_of
from compress.machine.facts import machine_fact
from compress.model.exportable import Batches

GUIDED = 2  # rows a prompt: guidance sends a denoiser each prompt beside an empty one, at some calls and not at others
LINES = "aot_inductor.enable_line_tables"  # they name folders of this machine; torch 2.11 writes none, and has no such option
COMMON = {
    "cpp.dynamic_threads": True,  # else the code has built in how many threads torch had while building
    LINES: False,
}
OPTIONS: Mapping[str, Mapping[str, bool]] = {
    "cpu": {
        "freezing": True,  # weights laid out once for the processor: a small denoiser's call takes a quarter less
        **COMMON,
    },
    "cuda": {
        "aot_inductor.embed_kernel_binary": True,  # else a file for each kernel, read at its first call, must stay somewhere
        "aot_inductor.weight_use_caching_allocator": True,  # else weights are no part of the memory that torch counts
        **COMMON,
    },
}


class CompiledBuilder(Builder):
    """Packages of native code, for the device that an opening names.

    Args:
        scratch: where the compiler keeps what it makes on the way.
    """

    format = "compiled"

    def __init__(self, precision: str, profile: Batches, scratch: Path, opening: Opening = AS_STORED) -> None:
        super().__init__(precision)
        self.profile = profile
        self.scratch = scratch
        self.home = device_of(opening)

    def component(self, example: Example, folder: Path, watched: tuple[str, ...] = ()) -> None:
        (small, constants), (large, _) = split(example.small), split(example.large)
        traced = Traced(self._cast(example.module), example.function, constants, watched).eval()
        inputs, shapes = self._each(small, large)
        # Not by `export_program`, which casts every input to the type of the weights, timesteps too.
        with quiet_export(), apply_patches("dynamo"), patch_forward_signature(traced, inputs):
            program = torch.export.export(traced, (), inputs, dynamic_shapes=shapes, strict=False)
        ports = _ports(program, tuple(flatten(inputs)))
        ranges = {
            str(size): (hint.min, hint.max)
            for port, axes in zip(ports, _open_axes(shapes), strict=True)
            for axis, hint in axes.items()
            if isinstance(size := port.shape[axis], str)
        }
        self._write(program, folder, ports, program.call_spec.out_spec.context, ranges, **example.called)

    def language_model(self, model: torch.nn.Module, folder: Path, feeds: Sequence[Feed]) -> None:
        with quiet_export():
            decoder, inputs = decoding_step(self._cast(model))
            program = _exported(decoder, inputs)
        ports = _ports(program, program.graph_signature.user_inputs)
        fewest, _, most = self.profile.batch
        ranges = {str(ports[0].shape[0]): (fewest, most)}
        self._write(program, folder, ports, ("logits",), ranges, positions=positions_of(model))

    def open_component(self, folder: Path, library: str, kind: str) -> EngineModule:
        return EngineModule(folder, library, kind, Package(folder, self.home), self.home)

    def open_language_model(self, folder: Path, kind: str) -> EngineLanguageModel:
        return EngineLanguageModel(folder, kind, Cached(Package(folder, self.home)), self.home)

    @property
    def _dtype(self) -> torch.dtype:
        found: torch.dtype = getattr(torch, self.precision)
        return found

    def _cast(self, module: torch.nn.Module) -> torch.nn.Module:
        """The module in this precision; a copy, where rounding its weights would change what parity compares the engine with."""
        exact = self.precision == "float32"
        return module.float() if exact else narrowed(module, self._dtype)

    def _each(self, small: Mapping[str, Any], large: Mapping[str, Any]) -> tuple[Call, dict[str, Any]]:
        pairs = {name: self._usual(name, value, large[name]) for name, value in small.items()}
        return {n: value for n, (value, _) in pairs.items()}, {n: axes for n, (_, axes) in pairs.items()}

    def _usual(self, name: str, value: Any, larger: Any) -> tuple[Any, Any]:
        """An input as a usual call gives it, in this precision, and the range of those of its axes that stay open.

        An axis is open where another prompt makes it longer, by `step`. The compiler takes a length of one for good, so there
        are at least two prompts.
        """
        if isinstance(value, Mapping):
            return self._each(value, larger)
        fewest, usual, most = self.profile.batch
        axes: dict[int, Any] = {}
        for axis, (size, more) in enumerate(zip(value.shape, larger.shape, strict=True)):
            if step := more - size:
                value = value.index_select(axis, torch.arange(step * max(2, usual), device=value.device) % size)
                axes[axis] = Dim.AUTO(min=fewest, max=most * max(GUIDED, step))
        if value.is_floating_point():  # in bfloat16 the steps 999 and 1000 would be one
            value = value.float() if name == TIMESTEP else value.to(self._dtype)
        return value.to(self.home).contiguous(), axes or None

    def _write(
        self,
        program: ExportedProgram,
        folder: Path,
        ports: Sequence[Port],
        outputs: Sequence[str],
        ranges: Mapping[str, tuple[int, int]],
        **called: object,
    ) -> None:
        self.scratch.mkdir(parents=True, exist_ok=True)
        on_gpu = self.home.type == "cuda"
        known = list_options()
        options = {n: value for n, value in OPTIONS[self.home.type].items() if n in known or n != LINES}
        with (
            quiet_export(),
            temporary_cache_dir(str(self.scratch / "inductor")),
            found_toolkit(self.scratch) if on_gpu else nullcontext(),
        ):
            aoti_compile_and_package(program, package_path=str(folder / PACKAGE), inductor_configs=options)
        gpu = {"device": "cuda", "gpu": target_of(str(self.home))} if on_gpu else {}
        write_settings(
            folder,
            "compiled",
            torch.__version__,
            self.precision,
            isa=machine_fact("isa"),  # of a GPU's engine too: what launches its kernels is code for the processor
            **gpu,
            digest=digest_file(folder / PACKAGE),
            inputs=[{**vars(port), "dtype": str(port.dtype).removeprefix("torch.")} for port in ports],
            outputs=list(outputs),
            ranges=ranges,
            **called,
        )


def _exported(decoder: torch.nn.Module, inputs: Call) -> ExportedProgram:
    exporter, config = DynamoExporter(), DynamoConfig(dynamic=True)
    if not hasattr(exporter, "export_program"):  # in older releases there is no more to an export than its program
        program: ExportedProgram = exporter.export(decoder, inputs, config)
        return program
    program, _ = exporter.export_program(decoder, inputs, config)
    return program


@contextmanager
def found_toolkit(scratch: Path) -> Iterator[None]:
    """Within: torch takes its headers from the CUDA toolkit that there is, and the linker finds the driver's library, which need have no
    name to link by: torch has loaded it already."""
    from torch.utils import cpp_extension  # which looks for a GPU when it is imported, and warns where there is none

    root, links = gpus.toolkit(), scratch / "driver"
    links.mkdir(parents=True, exist_ok=True)
    driver = _loaded("libcuda.so")
    if driver:
        (links / "libcuda.so").unlink(missing_ok=True)
        (links / "libcuda.so").symlink_to(driver)
    before = {name: os.environ.get(name) for name in ("CUDA_HOME", "LIBRARY_PATH")}
    known = cpp_extension.CUDA_HOME
    os.environ["LIBRARY_PATH"] = os.pathsep.join(filter(None, (str(links), before["LIBRARY_PATH"])))
    if root:
        os.environ["CUDA_HOME"] = cpp_extension.CUDA_HOME = str(root)
    try:
        yield
    finally:
        cpp_extension.CUDA_HOME = known
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _loaded(name: str) -> str:
    """The file of a library that this process has loaded, by the beginning of its name; "" where it has none."""
    maps = Path("/proc/self/maps")
    lines = maps.read_text().splitlines() if maps.is_file() else []
    files = (line.split(maxsplit=5)[5] for line in lines if line.count("/"))
    return next((file for file in files if Path(file).name.startswith(name)), "")


def _ports(program: ExportedProgram, names: Sequence[str]) -> tuple[Port, ...]:
    """The inputs of a program under these names, in the order the native code wants them."""
    nodes = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    values = [nodes[name] for name in program.graph_signature.user_inputs]
    examples = torch.utils._pytree.tree_leaves(program.example_inputs)
    return tuple(_port(*found) for found in zip(names, values, examples, strict=True))


def _port(name: str, traced: torch.Tensor, example: torch.Tensor) -> Port:
    sizes: Sequence[int | torch.SymInt] = traced.shape
    shape = tuple(size if isinstance(size, int) else str(size) for size in sizes)
    number = example.item() if name.startswith(CACHE) and not shape else None
    return Port(name, traced.dtype, shape, number)


def _open_axes(shapes: Mapping[str, Any]) -> list[dict[int, Any]]:
    """The open axes of each input, in the order of `flatten`."""
    found: list[dict[int, Any]] = []
    for axes in shapes.values():
        nested = isinstance(axes, Mapping) and any(isinstance(name, str) for name in axes)
        found += _open_axes(axes) if nested else [axes or {}]
    return found

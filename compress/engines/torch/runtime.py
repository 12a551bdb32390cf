"""The torch engine: the component as its own library loads it. Every other engine is compared with this one."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from compress.algorithms.tensors import device_of, dtype_of
from compress.artifact import Artifact, loaded_weights, read_json, weight_files
from compress.errors import ModelError, UserError
from compress.machine.devices import Opening
from compress.model.describing import quantization_of
from compress.model.remote_code import remote_class
from compress.quantization.packed_places import in_own_number_type

if TYPE_CHECKING:
    from diffusers import ModelMixin
    from diffusers.utils import BaseOutput
    from transformers import PreTrainedModel
    from transformers.utils import ModelOutput

LIBRARIES = ("diffusers", "transformers")
DIFFUSERS_LOGGING = "diffusers.utils.logging"
GENERATION = "generation_config.json"
HUB_KERNELS = "kernels"  # the package by which libraries fetch native code from the hub
SCALES = ("absmax", "quant_map", ".SCB", "._weight_scale")  # how the names end of what packers keep beside weights


def find_class(library: str, name: str, place: Path) -> Any:
    """The class `name` of diffusers or transformers.

    Raises:
        ModelError: the model asks for code of its own, or for a class that the installed version does not have.
    """
    with silent_libraries(
        diffusers=library == "diffusers"
    ):  # what a class imports may warn of parts that pare does not use
        found = getattr(importlib.import_module(library), name, None) if library in LIBRARIES else None
    if found is None:
        raise ModelError(
            f"needs the class {library}.{name}, which is not there",
            place=str(place),
            fix="upgrade diffusers and transformers, or use a model made of their own classes",
        )
    return found


def load_component(folder: Path, library: str, kind: str, opening: Opening, **further: object) -> torch.nn.Module:
    """One component of a pipeline, ready to be called.

    Args:
        further: arguments of `from_pretrained`, such as how to pack the weights.

    Raises:
        ModelError: its class is unknown or its weights do not read.
    """
    dtype = dtype_of(opening)
    if library == "diffusers" and dtype is None and (further or packed_by(folder)):
        dtype = stored_dtype(folder)  # else diffusers takes bfloat16 for all that is not packed
    option = {"torch_dtype": dtype} if library == "diffusers" else {"dtype": dtype or "auto"}
    found = find_class(library, kind, folder)
    return _load(found, folder, opening, {**{k: v for k, v in option.items() if v is not None}, **further})


def load_language_model(folder: Path, kind: str, opening: Opening, **further: object) -> torch.nn.Module:
    """A causal language model of transformers, or of the code in its folder where the opening trusts that.

    Args:
        further: arguments of `from_pretrained`, such as how to pack the weights.

    Raises:
        ModelError: its class is unknown or its weights do not read.
    """
    options: dict[str, Any] = {"dtype": dtype_of(opening) or "auto", **further}
    if opening.trust_remote_code and (own := remote_class(read_json(folder / "config.json"))):
        from transformers import AutoModelForCausalLM

        return _load(AutoModelForCausalLM, folder, opening, {**options, "trust_remote_code": True}, name=own)
    return _load(find_class("transformers", kind, folder), folder, opening, options)


def blank(module: torch.nn.Module, config: Mapping[str, Any]) -> torch.nn.Module:
    """A module of the same class, on the same device, as its library makes it from `config`; its weights are still to be filled in."""
    kind: Any = type(module)
    config_kind: Any = type(getattr(module, "config", None))
    with silent_libraries():
        if hasattr(kind, "_from_config"):  # transformers
            made: torch.nn.Module = kind._from_config(config_kind.from_dict(dict(config)))
        else:
            made = kind.from_config(dict(config))
    return made.float().to(next(module.parameters()).device).eval()


def save_component(module: torch.nn.Module, before: Path, folder: Path, *, as_built: bool = False) -> None:
    """Save a changed component as its library does, in the number type it was stored in, or packed as it is.

    Args:
        before: where the unchanged one lies: what it says of number types, and of how to generate, stays stated.
        folder: holds neither weights nor config.json yet.
        as_built: a transformers model's weights by the names and in the tensors that its class has, where a checkpoint of it otherwise
            has others: each expert's by itself.
    """
    how = {"save_original_format": False} if as_built else {}
    with silent_libraries():  # diffusers warns of any cast, be there a part that is to stay as it is or none
        if getattr(module, "hf_quantizer", None) is None:  # the number type of packed weights is no one's to change
            module.to(stored_dtype(before))
        module.save_pretrained(str(folder), **how)  # type: ignore[operator]
    config, old = read_json(folder / "config.json"), read_json(before / "config.json")
    for key in ("dtype", "torch_dtype"):
        config.pop(key, None)
        if key in old:
            config[key] = old[key]
    config.pop("_name_or_path", None)  # a path of this machine
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    if (before / GENERATION).is_file():  # end tokens and sampling, which no change of weights touches
        shutil.copyfile(before / GENERATION, folder / GENERATION)


def count_flops(module: torch.nn.Module, call: Mapping[str, Any]) -> int:
    """Floating-point operations of one call, counted while it runs: matrix products, convolutions and attention."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # As plain products: the counter knows no fused attention on a CPU.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(**call)
    return int(counter.get_total_flops())


def shares_kept(before: torch.nn.Module, after: torch.nn.Module, call: Mapping[str, Any]) -> dict[str, float]:
    """What a cut leaves: the share of the parameters, and of the operations of one call; the inverse of the latter is the
    speed-up that theory promises."""
    counts = [sum(p.numel() for p in m.parameters()) for m in (before, after)]
    flops = [count_flops(m, call) for m in (before, after)]
    return {"parameters_kept": counts[1] / counts[0], "flops_kept": flops[1] / flops[0]}


def named_dtype(artifact: Artifact) -> str:
    """The number type that stock diffusers must be given to open a pipeline, as Python writes it: that of the weights beside those that
    torchao packed, for it takes another by default. "" where nothing need be stated."""
    if artifact.writes_text or not in_own_number_type(artifact):
        return ""
    return str(stored_dtype(artifact.folder(artifact.main)))


def stored_dtype(folder: Path) -> torch.dtype:
    """The widest number type among the safetensors that are loaded from `folder`, other variants beside them left aside, and what
    bitsandbytes and torchao keep beside packed weights, in float32; where no library would load any, among all in it; float32 where there
    are none."""
    from safetensors import safe_open

    found = set()
    for file in loaded_weights(folder) or weight_files(folder):
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as weights:
                reported = [key for key in weights.keys() if not key.endswith(SCALES)]  # noqa: SIM118
                found |= {weights.get_slice(key).get_dtype() for key in reported}
    for name, dtype in (("F32", torch.float32), ("BF16", torch.bfloat16), ("F16", torch.float16)):
        if name in found:
            return dtype
    return torch.float32


def first_tensor(output: torch.Tensor | tuple[Any, ...] | ModelOutput | BaseOutput) -> torch.Tensor:
    """What a component gives, be it a tensor, a tuple or its library's own record."""
    while not torch.is_tensor(output):
        output = output[0]
    return output


@contextmanager
def silent_libraries(*, diffusers: bool = False) -> Iterator[None]:
    """Turn off the progress bars and warnings of transformers, and of diffusers where it is imported, for a while: events tell what pare
    does. What is imported meanwhile fetches no native code from the hub.

    Args:
        diffusers: it may be imported meanwhile for the first time.
    """
    from transformers.utils import logging as transformers_logging

    if diffusers:
        with without_hub_kernels():
            importlib.import_module(DIFFUSERS_LOGGING)
    known = [transformers_logging, *filter(None, [sys.modules.get(DIFFUSERS_LOGGING)])]  # a second, which no text needs
    levels = [(library, library.get_verbosity()) for library in known]
    bars = transformers_logging.is_progress_bar_enabled()
    for library, _ in levels:
        library.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(
        logging.ERROR
    )  # it tells of each product of each call
    try:
        with without_hub_kernels(), _without_bars():
            yield
    finally:
        for library, level in levels:
            library.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


@contextmanager
def _without_bars() -> Iterator[None]:
    """No library shows a bar of its own meanwhile that asks nobody: compressed-tensors has four."""
    from tqdm import tqdm

    before = tqdm.__init__

    def hidden(bar: object, *given: object, **named: object) -> None:
        before(bar, *given, **{**named, "disable": True})  # also where a library says that it is to be shown

    tqdm.__init__ = hidden
    try:
        yield
    finally:
        tqdm.__init__ = before
        _hide_later_bars()


def _quieten_gptqmodel(folder: Path) -> None:
    """GPTQModel reports from its import on, each compilation and collection of garbage; its logger writes a line when it is made."""
    packed = (
        read_json(folder / "config.json").get("quantization_config") if (folder / "config.json").is_file() else None
    )
    if isinstance(packed, dict) and packed.get("quant_method") in ("gptq", "awq") and find_spec("logbar"):
        with contextlib.redirect_stdout(io.StringIO()):
            importlib.import_module("logbar").LogBar.shared().setLevel(logging.ERROR)


def _hide_later_bars() -> None:
    """compressed-tensors unpacks a model at its first call, long after it was opened, and would show how far it is."""
    from tqdm import tqdm

    def hidden(*given: Any, **named: Any) -> Any:
        return tqdm(*given, **{**named, "disable": True})

    for name, module in tuple(sys.modules.items()):
        if name.startswith("compressed_tensors.") and hasattr(module, "tqdm"):
            setattr(module, "tqdm", hidden)  # noqa: B010 (to mypy a module has no such attribute)


@contextmanager
def without_hub_kernels() -> Iterator[None]:
    """No library gets native code from the hub meanwhile, be there a package for that or not: no recipe named it, or trusted it.

    bitsandbytes looks for some where it is imported, which diffusers does; it goes on without, and its advice to install that
    package is kept from users.
    """
    advice, before = logging.getLogger("bitsandbytes"), sys.modules.get(HUB_KERNELS)
    level = advice.level
    sys.modules[HUB_KERNELS] = None  # type: ignore[assignment]
    advice.setLevel(logging.ERROR)
    try:
        yield
    finally:
        advice.setLevel(level)
        sys.modules.pop(HUB_KERNELS, None)
        if before is not None:
            sys.modules[HUB_KERNELS] = before


def _load(
    kind: type[PreTrainedModel] | type[ModelMixin],
    folder: Path,
    opening: Opening,
    options: dict[str, Any],
    name: str = "",
) -> torch.nn.Module:
    packed = packed_by(folder)
    if packed == "torchao":
        _be_as_packed(folder, opening)
    if "bitsandbytes" in (packed, getattr(options.get("quantization_config"), "quant_method", "")) and _of_transformers(
        kind
    ):
        options = {
            **options,
            "device_map": {"": opening.device},
        }  # else on the GPU wherever there is one, and some stay there
    try:
        _quieten_gptqmodel(folder)
        with silent_libraries(), warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message=".*is_gradient_checkpointing", category=FutureWarning
            )  # of GPTQModel's hooks
            model, reported = kind.from_pretrained(str(folder), **options, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        if odd := _misshapen(error, kind, folder, options):
            fix = "set config.json back to what the weights have, or fetch the weights that belong to it"
            raise ModelError(odd, place=str(folder / "config.json"), fix=fix) from error
        raise ModelError(
            f"{name or kind.__name__} does not load: {error}", place=str(folder), fix="save the model again"
        ) from error
    if lacking := sorted(reported["missing_keys"]):  # in whose place the library puts random ones
        some = ", ".join(f"`{key}`" for key in lacking[:3]) + (" …" if len(lacking) > 3 else "")
        raise ModelError(
            f"{len(lacking)} of {name or kind.__name__}'s weights are not in its files: {some}",
            place=str(folder),
            fix="fetch or save the model again: config.json and weights must be of one model",
        )
    device = device_of(opening)
    # Packed weights are where their library has put them, and some refuse to be asked.
    return (model if _there(model, device) else model.to(device)).eval()


def packed_by(folder: Path) -> str:
    """The method that packed the weights in a component's folder, as its config calls it; "" where they are plain."""
    file = folder / "config.json"
    packed = quantization_of(read_json(file)) if file.is_file() else None
    return packed.method if packed else ""


def _be_as_packed(folder: Path, opening: Opening) -> None:
    """Raises a UserError where torchao's weights are opened in another number type than they were packed in: no call would work."""
    asked, there = dtype_of(opening), stored_dtype(folder)
    if asked not in (None, there):
        message = f"its weights are packed by torchao for {str(there).removeprefix('torch.')}, and cannot be opened in {opening.dtype}"
        raise UserError(message, place=str(folder), fix="leave the number type out, or give the unquantized checkpoint")


def _of_transformers(kind: type[PreTrainedModel] | type[ModelMixin]) -> bool:
    return kind.__module__.startswith("transformers")


def _misshapen(error: Exception, kind: Any, folder: Path, options: Mapping[str, Any]) -> str:
    """Which weights have other shapes than the config says, where that is why a model did not load and its library only hints at it."""
    if "ignore_mismatched_sizes" not in str(error):
        return ""
    try:
        with silent_libraries():
            _, reported = kind.from_pretrained(
                str(folder), **options, output_loading_info=True, ignore_mismatched_sizes=True
            )
    except (OSError, ValueError, RuntimeError, ImportError):
        return ""
    found = [
        f"`{one[0]}` is {list(one[1])}, and by its config {list(one[2])}" for one in sorted(reported["mismatched_keys"])
    ]
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return f"its weights have other shapes than its config says: {'; '.join(found[:3])}{more}" if found else ""


def _there(model: torch.nn.Module, device: torch.device) -> bool:
    """Whether all of a model lies on a device already."""
    return all(t.device == device for t in (*model.parameters(), *model.buffers()))

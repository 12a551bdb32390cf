"""Hooks applied to an opened model, and what its calls really were.

Compiled code is kept in the cache that an artifact lies in, or the usual one: torch's own caches, which name each piece by all that decides
it, in a folder for each torch, Python and device. It is dropped like all else there when the limit is met, and then compiled again.
"""

from __future__ import annotations

import os
import platform
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from compress.artifact import Setting
from compress.errors import UserError
from compress.files.hashing import digest_json
from compress.files.locks import Hold, hold
from compress.machine.facts import machine_fact
from compress.model.hook_settings import APPLIED, ATTENTION, COMPILE, GRAPH, INTERVAL, OFFLOAD, STEP_CACHE, not_there
from compress.opening.attention import attend, attended
from compress.opening.compile_and_capture import capture, compile_blocks, ran
from compress.opening.denoising import denoising_of, tell_steps
from compress.opening.guidance_interval import Interval
from compress.opening.models import OpenModel
from compress.opening.offloading import MOVED, offload
from compress.opening.step_caches import cached
from compress.store.cache import default_root
from compress.store.kinds import CODE

INDUCTOR, TRITON = "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"
_held: dict[Path, Hold] = {}  # folders of code in use: as long as this process lives


def apply_hooks(opened: OpenModel) -> None:
    """Hook an artifact's settings into its opened modules, compilation first. One that does nothing on this device is left out, with a
    warning: plans refuse it.

    Raises:
        UserError: a module has no blocks to compile, or none whose weights could take turns.
    """
    absent = set[str]()
    for one, why in not_there(opened.artifact, opened.opening):
        warnings.warn(f"`{one.component}` runs without {one.name}: {why}", stacklevel=3)
        absent.add(one.name)
    for name in APPLIED:
        those = [one for one in opened.artifact.settings.hook if one.name == name]
        if not those or name in absent:
            continue
        try:
            APPLY[name](opened, those)
        except UserError as error:
            problem = error.problems[0]
            place = str(opened.artifact.folder(those[0].component))
            raise UserError(f"{name}: {problem.message}", place=place, fix=problem.fix) from error


def _compile(opened: OpenModel, settings: Sequence[Setting]) -> None:
    keep_code(opened.artifact.path, torch.device(opened.opening.device))
    for one in settings:
        compile_blocks(opened.component(one.component))


def _capture(opened: OpenModel, settings: Sequence[Setting]) -> None:
    for one in settings:
        capture(opened.component(one.component))


def _attend(opened: OpenModel, settings: Sequence[Setting]) -> None:
    for one in settings:
        attend(opened.component(one.component), str(one.params["backend"]))


def _cache(opened: OpenModel, settings: Sequence[Setting]) -> None:
    for one in settings:
        module = opened.component(one.component)
        denoising = tell_steps(opened.stock, module)
        denoising.cache = cached(module, denoising.counted, one.params)


def _limit(opened: OpenModel, settings: Sequence[Setting]) -> None:
    for one in settings:
        denoising = tell_steps(opened.stock, opened.component(one.component))
        denoising.limits = Interval(**one.params, counted=denoising.counted)


APPLY: dict[str, Callable[[OpenModel, Sequence[Setting]], None]] = {
    ATTENTION: _attend,
    COMPILE: _compile,
    GRAPH: _capture,
    OFFLOAD: offload,
    STEP_CACHE: _cache,
    INTERVAL: _limit,
}


def ran_inside(opened: OpenModel) -> str:
    """What the calls of an opened model's hooked parts really were so far, in words; "" where nothing is hooked."""
    hook = opened.artifact.settings.hook
    parts = dict.fromkeys(one.component for one in hook if one.name != OFFLOAD)
    message = {name: _ran(opened.component(name)) for name in parts}
    words = [f"`{name}`: {found or 'plain calls'}" for name, found in message.items()]
    absent = {one.name for one, _ in not_there(opened.artifact, opened.opening)}
    moved = [one for one in hook if one.name == OFFLOAD and OFFLOAD not in absent]
    ways = dict.fromkeys(vars(opened.component(one.component)).get(MOVED, one.params["how"]) for one in moved)
    return "; ".join((*words, *(f"weights by {way}" for way in ways)))


def _ran(module: torch.nn.Module) -> str:
    """What a module's calls really were, in words."""
    denoising = denoising_of(module)
    return "; ".join(filter(None, (attended(module), str(ran(module)), str(denoising.counted) if denoising else "")))


def fell_back(opened: OpenModel) -> str:
    """That calls of an opened model were eager which should have been captured, in words; or ""."""
    parts = dict.fromkeys(one.component for one in opened.artifact.settings.hook if one.name == GRAPH)
    found = {name: ran(opened.component(name)).calls for name in parts}
    message = [
        f"{count} calls of `{n}` were eager: {why}"
        for n, calls in found.items()
        if calls
        for why, count in calls.eager.items()
    ]
    return "; ".join(message)


def keep_code(artifact: Path, device: torch.device) -> None:
    """Let torch keep compiled code in pare's cache, unless somebody has named another folder."""
    if INDUCTOR in os.environ and Path(os.environ[INDUCTOR]) not in _held:
        return
    folder = code_folder(artifact, device)
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / CODE.record
    record.touch()
    if folder not in _held and (held := hold(record)):
        _held[folder] = held
    os.environ[INDUCTOR] = str(folder)
    os.environ[TRITON] = str(folder / "triton")


def code_folder(artifact: Path, device: torch.device) -> Path:
    """Where the code for this machine, torch and device lies, in the cache that an artifact is an entry of, or in the usual one."""
    root = artifact.parents[1] if artifact.parent.name == "entries" else default_root()
    chip = torch.cuda.get_device_capability(device) if device.type == "cuda" else machine_fact("isa")
    return root / CODE.folder / digest_json([torch.__version__, platform.python_version(), device.type, chip])

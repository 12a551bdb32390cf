"""A denoiser that knows at which step of a pipeline's call it is called, so that each may go its own way without a loop of our own.

A pipeline says when its call begins and ends (it becomes an instance of a subclass of its own class, of the same name), its scheduler when a
step ends. Outside a pipeline's call, or where gradients are asked for, a denoiser computes what it always does; nothing of one call is there
in the next.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch

from compress.algorithms.forward_hooks import standing_in
from compress.engines.module import arguments_of

DENOISING = "pare_denoising"  # the attribute of a pipeline that holds its denoiser's Denoising
# What only some calls give, as with a ControlNet: more than a step's own input decides what such a call gives.
BESIDE = frozenset(
    {
        "skip_layers",
        "block_controlnet_hidden_states",
        "controlnet_block_samples",
        "controlnet_single_block_samples",
        "down_block_additional_residuals",
        "down_intrablock_additional_residuals",
        "mid_block_additional_residual",
    }
)
LOOPED = "_num_timesteps"  # the attribute in which pipelines count the steps that they will run: at a strength not all of the scheduler's
Call = Mapping[str, Any]


@dataclass
class At:
    """Where a pipeline's call is. Mutable.

    step: how many steps were finished; steps: of how many. part: how often the denoiser was called in this step before.
    guided: whether the pipeline steers by what the denoiser says without a prompt. kept: what it gave in this step, where that is used again.
    """

    guided: Callable[[], bool]
    timesteps: Callable[[], int]
    step: int = 0
    part: int = -1
    kept: Any = None

    @functools.cached_property
    def steps(self) -> int:
        return self.timesteps()

    def stepped(self) -> None:
        self.step, self.part, self.kept = self.step + 1, -1, None


class Cache(Protocol):
    """What passes parts of a denoiser over."""

    def begin(self) -> None:
        """Forget all: another image begins, or one ended."""

    def run(self, inner: Callable[..., Any], call: Call, at: At, key: object) -> tuple[Any, frozenset[str]]:
        """What a call gives, and which parts did not run for it; calls with other keys have nothing in common."""


class Limits(Protocol):
    """What leaves passes of guidance out."""

    def run(self, compute: Callable[[Call], Any], call: Call, at: At) -> Any:
        """What a call gives, of as little computing as need be."""


@dataclass
class Counted:
    """What a denoiser's calls were. Mutable.

    calls: that computed something; reusing: those of them that passed parts over; parts, passed: that ran or not, of those that may be passed
    over; rows, unguided: of a batch, that were asked for, and those that were not computed because guidance was off.
    """

    calls: int = 0
    reusing: int = 0
    parts: int = 0
    passed: int = 0
    rows: int = 0
    unguided: int = 0

    def __str__(self) -> str:
        message = []
        if self.parts or self.passed:
            whole = self.parts + self.passed
            message.append(
                f"{self.reusing} of {self.calls} calls reused an earlier step ({self.passed} of {whole} parts passed over)"
            )
        if self.rows:
            message.append(f"{self.unguided} of {self.rows} rows left out where guidance is off")
        return ", ".join(message)


class Denoising:
    """Stands where a denoiser's `forward` stood. One call of a pipeline at a time.

    listeners: notified of each call that is really computed. passed: of each such call in the last call of the pipeline, the parts that did not run.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self.inner: Callable[..., Any] = module.forward
        self.cache: Cache | None = None
        self.limits: Limits | None = None
        self.listeners: list[Callable[[tuple[Any, ...], dict[str, Any]], None]] = []
        self.passed: list[frozenset[str]] = []
        self.counted = Counted()
        self._names = arguments_of(type(module).forward)
        self._at: At | None = None
        functools.update_wrapper(self, self.inner)  # libraries read a forward's signature

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = {**dict(zip(self._names, args, strict=False)), **kwargs}
        at = None if torch.is_grad_enabled() else self._at
        if at is None:
            return self._computed(call, None)
        at.part += 1
        if self.limits is None:
            return self._computed(call, at)
        self.counted.rows += rows_of(call)
        return self.limits.run(lambda given: self._computed(given, at), call, at)

    def _computed(self, call: Call, at: At | None) -> Any:
        for tell in self.listeners:
            tell((), dict(call))
        if at is None:
            return self.inner(**call)
        passed = frozenset[str]()
        if self.cache is None or any(call.get(name) is not None for name in BESIDE):
            result = self.inner(**call)
        else:
            result, passed = self.cache.run(self.inner, call, at, (at.part, _sizes(call)))
        self.passed.append(passed)
        self.counted.calls += 1
        self.counted.reusing += bool(passed)
        return result

    @contextmanager
    def generating(self, pipeline: Any, args: tuple[Any, ...], given: Mapping[str, Any]) -> Iterator[None]:
        """Within, a pipeline's call runs."""
        scheduler = pipeline.scheduler
        self._forget()
        self.passed.clear()
        vars(pipeline).pop(LOOPED, None)  # of another call
        self._at = at = At(lambda: _guided(pipeline, args, given), lambda: _steps(pipeline))
        step = scheduler.step

        @functools.wraps(step)
        def stepping(*args: Any, **kwargs: Any) -> Any:
            at.stepped()
            return step(*args, **kwargs)

        try:
            with standing_in(scheduler, "step", stepping):
                yield
        finally:
            self._at = None
            self._forget()

    def _forget(self) -> None:
        if self.cache is not None:
            self.cache.begin()


def denoising_of(module: torch.nn.Module) -> Denoising | None:
    """What stands where a module's `forward` stood, where its steps count."""
    found = vars(module).get("forward")
    return found if isinstance(found, Denoising) else None


def tell_steps(pipeline: Any, module: torch.nn.Module) -> Denoising:
    """Let a pipeline's denoiser know its steps, from now on."""
    if (found := denoising_of(module)) is not None:
        return found
    made = Denoising(module)
    vars(module)["forward"] = made
    vars(pipeline)[DENOISING] = made
    kind: Any = type(pipeline)
    pipeline.__class__ = _telling(kind)
    return made


@cache
def _telling(kind: Any) -> type:
    """A pipeline's class whose calls say that they begin and end, by the same name and of the same signature."""

    @functools.wraps(kind.__call__)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        with vars(self)[DENOISING].generating(self, args, kwargs):
            return kind.__call__(self, *args, **kwargs)

    return type(kind.__name__, (kind,), {"__module__": kind.__module__, "__doc__": kind.__doc__, "__call__": call})


def rows_of(call: Call) -> int:
    """Rows of a denoiser's call."""
    latent = call[next(name for name in ("sample", "hidden_states", "x") if name in call)]
    return len(latent)


def _steps(pipeline: Any) -> int:
    """The steps that a pipeline's call runs, once its loop has begun."""
    found = vars(pipeline).get(LOOPED)
    begun = getattr(pipeline.scheduler, "begin_index", None) or 0
    return found if isinstance(found, int) else len(pipeline.scheduler.timesteps) - begun


def _guided(pipeline: Any, args: tuple[Any, ...], given: Mapping[str, Any]) -> bool:
    """Whether a pipeline's call is guided, by its own word or by its argument."""
    known = getattr(pipeline, "do_classifier_free_guidance", None)
    if known is not None:
        return bool(known)
    bound = inspect.signature(type(pipeline).__call__).bind(pipeline, *args, **given)
    bound.apply_defaults()
    scale, shown = bound.arguments.get("guidance_scale"), bound.arguments.get("image_guidance_scale", 1)
    return isinstance(scale, int | float) and scale > 1 and shown >= 1


def _sizes(call: Call) -> tuple[object, ...]:
    """The shapes of all tensors that a call is given."""
    found: list[object] = []
    for value in call.values():
        if isinstance(value, torch.Tensor):
            found.append(tuple(value.shape))
        elif isinstance(value, list | tuple):
            found.append(tuple(tuple(one.shape) for one in value if isinstance(one, torch.Tensor)))
    return tuple(found)

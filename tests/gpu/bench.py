"""Ways to call one model, timed against eager calls in interleaved blocks: a row for each, with what it took to begin and what really ran."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from tests.gpu.large import Call
from tests.gpu.limits import within
from tests.gpu.sections import Report

BLOCKS, TINY_BLOCKS = 10, 3
RETURNS = 5  # calls whose return is timed
CLOCKS = ("wall", "device")
RUN_SECONDS = 0.08  # that the calls of one timed run take, at least one call
SPARE = 8.0  # seconds that a set of timed blocks may take


@dataclass
class Bench:
    """One model and all ways to call it. `back` sets back what a call moves on, such as how full a cache is."""

    module: Any
    calls: Sequence[Call]
    report: Report
    tiny: bool
    until: float
    back: Callable[[], None] = lambda: None
    eager: list[Any] = field(default_factory=list)  # outputs of the eager calls
    kept: dict[str, Any] = field(default_factory=dict)  # what one way made and another goes on from

    @property
    def left(self) -> float:
        return self.until - time.monotonic()


@dataclass(frozen=True)
class Way:
    """A way to call a model.

    make: a module, or a function, that is called as the eager one. seconds: for that and its first call.
    by_hand: the same without pare. graph: whether it takes a CUDA graph, which the processor has none of.
    """

    name: str
    make: Callable[[Bench], Callable[..., Any]]
    seconds: float
    by_hand: Callable[[Bench, Any], Callable[..., Any]] | None = None
    graph: bool = True


def measure(bench: Bench, ways: Sequence[Way]) -> None:
    """One row for each way, the first ones first, until time is up."""
    import torch

    with torch.no_grad():
        bench.eager = [output_of(bench, bench.module, call) for call in bench.calls]
        for way in ways:
            if way.graph and not graphs_here(bench):
                bench.report(way.name, {"not run": "the processor has no CUDA graphs"})
            elif bench.left < SPARE + 2 and not bench.tiny:
                bench.report(way.name, {"not run": f"{max(bench.left, 0):.0f} s are left"})
            else:
                _row(bench, way)


def graphs_here(bench: Bench) -> bool:
    from compress.opening.compile_and_capture import capturable

    return capturable(bench.module.device)


def _row(bench: Bench, way: Way) -> None:
    import torch

    try:
        began = time.perf_counter()
        with within(min(way.seconds, bench.left - SPARE / 2) if not bench.tiny else 60):
            made = way.make(bench)
            output_of(bench, made, bench.calls[0])
        first = time.perf_counter() - began
        outputs = [output_of(bench, made, call) for call in bench.calls]
        with within(max(bench.left - SPARE, 1) if not bench.tiny else 60):
            by_hand = way.by_hand if way.graph or not bench.tiny else None  # no inductor for tiny sizes
            hand = by_hand(bench, made) if by_hand else None
        values = {"first_call_s": round(first, 2), **_timed(bench, made, hand), **_deviations(outputs, bench.eager)}
        bench.report(way.name, {**values, "ran": _ran(made)})
    except Exception as error:  # a way that fails is a row
        bench.report(way.name, {"failed": f"{type(error).__name__}: {str(error).strip()[:300]}"})
    with suppress(RuntimeError, AssertionError):  # whatever a failed capture has left, and a torch without CUDA
        torch.cuda.synchronize()


def _ran(made: Any) -> str:
    from compress.opening.compile_and_capture import ran

    return str(ran(made)) if hasattr(made, "__dict__") else ""


def output_of(bench: Bench, made: Callable[..., Any], call: Call) -> Any:
    from compress.engines.torch.runtime import first_tensor

    bench.back()
    return first_tensor(made(**call))


def _deviations(outputs: Sequence[Any], eager: Sequence[Any]) -> dict[str, object]:
    """How far outputs are from eager's, the worst of the calls: the largest difference over the largest value, and by norms."""
    pairs = [(got.float(), want.float()) for got, want in zip(outputs, eager, strict=True)]
    largest = max(float((got - want).abs().max() / want.abs().max()) for got, want in pairs)
    norm = max(float((got - want).norm() / want.norm()) for got, want in pairs)
    return {"deviation_max": float(f"{largest:.3g}"), "deviation_norm": float(f"{norm:.3g}")}


def _timed(bench: Bench, made: Callable[..., Any], hand: Callable[..., Any] | None) -> dict[str, object]:
    """Times of a call, wall and device, and their ratios to eager calls in the same blocks."""
    import numpy as np

    from evaluation.observe.timing import interleave
    from evaluation.verdict.statistics import median_ratio

    runs = [_run(bench, one) for one in (bench.module, made, *([hand] if hand else ()))]
    runs.append(_run(bench, bench.module))
    found = interleave(runs, TINY_BLOCKS if bench.tiny else BLOCKS, 0, lambda event: None)
    wall, device = found[:, :, 0], found[:, :, 1]
    times, noise = median_ratio(wall[:, 0], wall[:, 1]), median_ratio(wall[:, 0], wall[:, -1])
    on_device = median_ratio(device[:, 0], device[:, 1])
    values: dict[str, object] = {}
    for prefix, side in (("", 1), ("eager_", 0), *([("by_hand_", 2)] if hand else ())):
        middle = np.median(found[:, side, : len(CLOCKS)], axis=0) * 1e3
        values |= {f"{prefix}{name}_ms": round(ms, 3) for name, ms in zip(CLOCKS, middle, strict=True)}
    values |= {"times_eager": _interval(times), "device_times_eager": _interval(on_device), "noise": _interval(noise)}
    values["host_ms"] = _host_ms(bench, made)
    if hand:
        values["by_hand_host_ms"] = _host_ms(bench, hand)
        values["cost_beside_by_hand"] = _interval(median_ratio(wall[:, 1], wall[:, 2]))
    return values


def _interval(found: Any) -> str:
    return f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"


def _run(bench: Bench, made: Callable[..., Any]) -> Callable[[], tuple[float, float]]:
    """A run as `interleave` takes it: seconds of one call by each of CLOCKS, the mean of as many as make the run long enough."""
    call = bench.calls[0]
    seconds = min(_clocked(bench, made, call, 1)[0] for _ in range(2))
    count = 1 if bench.tiny else max(1, min(16, round(RUN_SECONDS / seconds)))
    return lambda: _clocked(bench, made, call, count)[:2]


def _host_ms(bench: Bench, made: Callable[..., Any]) -> float:
    """Milliseconds until a call returns, the device with nothing else to do: what Python and launching take."""
    return round(1e3 * min(_clocked(bench, made, bench.calls[0], 1)[2] for _ in range(RETURNS)), 3)


def _clocked(bench: Bench, made: Callable[..., Any], call: Call, count: int) -> tuple[float, float, float]:
    """Seconds of a call: until all is done, what the device says of that, and until the last call has returned, all it asks for perhaps still to be done."""
    import torch

    bench.back()
    if bench.tiny:
        began = time.perf_counter()
        for _ in range(count):
            made(**call)
        spent = (time.perf_counter() - began) / count
        return spent, spent, spent
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    began = time.perf_counter()
    begin.record()
    for _ in range(count):
        made(**call)
    returned = time.perf_counter() - began
    end.record()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / count, begin.elapsed_time(end) / 1e3 / count, returned / count

"""Parts b and c: calls of large models' shapes, eager and faster, in turns on one GPU: SDXL's UNet and SD 1.5's; FLUX's transformer and
a decoding step of Llama-3-8B. Weights are random, bfloat16, made on the device.

Each way to call is timed against eager calls in interleaved blocks, eager twice, so that the noise shows (`noise`). Its row says how long
its first call took, that its output is eager's within a stated deviation, on two inputs whose outputs are looked at only after both calls,
what really ran, and, where the same was written by hand, what pare's path costs more than that.
"""

from __future__ import annotations

import copy
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tests.gpu.large import Call, flux, llama, sd15, sdxl, steps
from tests.gpu.limits import within
from tests.gpu.sections import Report, Section

BLOCKS, TINY_BLOCKS = 10, 3
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
        bench.eager = [_output(bench, bench.module, call) for call in bench.calls]
        for way in ways:
            if way.graph and not graphs_here(bench):
                bench.report(way.name, {"not run": "the processor has no CUDA graphs"})
            elif bench.left < SPARE + 2 and not bench.tiny:
                bench.report(way.name, {"not run": f"{max(bench.left, 0):.0f} s are left"})
            else:
                _row(bench, way)


def graphs_here(bench: Bench) -> bool:
    from compress.opening import inside

    return bench.module.device.type in inside.DEVICES


def _row(bench: Bench, way: Way) -> None:
    import torch

    try:
        began = time.perf_counter()
        with within(min(way.seconds, bench.left - SPARE / 2) if not bench.tiny else 60):
            made = way.make(bench)
            _output(bench, made, bench.calls[0])
        first = time.perf_counter() - began
        outputs = [_output(bench, made, call) for call in bench.calls]
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
    from compress.opening.inside import ran

    return str(ran(made)) if hasattr(made, "__dict__") else ""


def _output(bench: Bench, made: Callable[..., Any], call: Call) -> Any:
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

    from evaluation.statistics import median_ratio
    from evaluation.timing import interleave

    runs = [_run(bench, one) for one in (bench.module, made, *([hand] if hand else ()))]
    runs.append(_run(bench, bench.module))
    found = interleave(runs, TINY_BLOCKS if bench.tiny else BLOCKS, 0, lambda event: None)
    wall, device = found[:, :, 0], found[:, :, 1]
    times, noise = median_ratio(wall[:, 0], wall[:, 1]), median_ratio(wall[:, 0], wall[:, -1])
    on_device = median_ratio(device[:, 0], device[:, 1])
    middle, eager = np.median(found[:, 1], axis=0) * 1e3, np.median(found[:, 0], axis=0) * 1e3
    values: dict[str, object] = {"wall_ms": round(middle[0], 3), "device_ms": round(middle[1], 3)}
    values |= {"eager_wall_ms": round(eager[0], 3), "eager_device_ms": round(eager[1], 3)}
    values |= {"times_eager": _interval(times), "device_times_eager": _interval(on_device), "noise": _interval(noise)}
    if hand:
        values["cost_beside_by_hand"] = _interval(median_ratio(wall[:, 1], wall[:, 2]))
    return values


def _interval(found: Any) -> str:
    return f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"


def _run(bench: Bench, made: Callable[..., Any]) -> Callable[[], tuple[float, float]]:
    """A run as `interleave` takes it: wall and device seconds of one call, the mean of as many as make the run long enough."""
    call = bench.calls[0]
    seconds = min(_clocked(bench, made, call, 1)[0] for _ in range(2))
    count = 1 if bench.tiny else max(1, min(16, round(RUN_SECONDS / seconds)))
    return lambda: _clocked(bench, made, call, count)


def _clocked(bench: Bench, made: Callable[..., Any], call: Call, count: int) -> tuple[float, float]:
    import torch

    bench.back()
    if bench.tiny:
        began = time.perf_counter()
        for _ in range(count):
            made(**call)
        spent = (time.perf_counter() - began) / count
        return spent, spent
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    began = time.perf_counter()
    begin.record()
    for _ in range(count):
        made(**call)
    end.record()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / count, begin.elapsed_time(end) / 1e3 / count


# Ways


def twin(module: Any, *, weights: bool = False) -> Any:
    """A module of its own on the same weights; with `weights`, on copies of them."""
    held = () if weights else (*module.parameters(), *module.buffers())
    return copy.deepcopy(module, {id(one): one for one in held})


def graphed(module: Any) -> Any:
    """A module on the same parts, replayed from graphs: that it was given stays as it was."""
    from compress.opening.inside import capture

    made = copy.copy(module)
    capture(made)
    return made


def compiled(bench: Bench, module: Any, also: Sequence[str] = ()) -> Any:
    from compress.opening.inside import compile_blocks

    compile_blocks(module, also, as_traced if bench.tiny else None)
    return module


def plainly_compiled(bench: Bench) -> Any:
    """The model with its blocks compiled, made once."""
    if "compiled" not in bench.kept:
        bench.kept["compiled"] = compiled(bench, twin(bench.module))
    return bench.kept["compiled"]


def as_traced(graph: Any, examples: object) -> Any:
    """A compiler that leaves all as it is: tiny sizes try the way, and not inductor."""
    return graph.forward


def graph_by_hand(bench: Bench, made: Any) -> Callable[..., Any]:
    """The same graph as somebody writes it who knows what is called: inputs copied in, output copied out."""
    import torch
    from torch.utils._pytree import tree_map

    from compress.engines.torch.runtime import first_tensor

    eager = made.forward.eager if hasattr(made.forward, "eager") else made
    static = tree_map(lambda one: one.clone() if isinstance(one, torch.Tensor) else one, bench.calls[0])
    inputs = _tensors(static)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            bench.back()
            eager(**static)
    torch.cuda.current_stream().wait_stream(stream)
    bench.back()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = first_tensor(eager(**static))

    def call(**given: Any) -> Any:
        for place, one in zip(inputs, _tensors(given), strict=True):
            place.copy_(one)
        graph.replay()
        return output.clone()

    return call


def _tensors(call: object) -> list[Any]:
    import torch
    from torch.utils._pytree import tree_leaves

    return [one for one in tree_leaves(call) if isinstance(one, torch.Tensor)]


def compile_by_hand(bench: Bench, made: object) -> Callable[..., Any]:
    other = twin(bench.module)
    other.compile_repeated_blocks(dynamic=False)
    other(**bench.calls[0])
    found: Callable[..., Any] = other
    return found


def channels_last(bench: Bench, also: Sequence[str] = ()) -> Any:
    import torch

    module = twin(bench.module, weights=True).to(memory_format=torch.channels_last)
    return graphed(compiled(bench, module, also))


def fused(bench: Bench) -> Any:
    module = twin(bench.module)
    module.fuse_qkv_projections()
    return graphed(compiled(bench, module))


def in_fp8(bench: Bench) -> Any:
    from tests.gpu.fp8 import rowwise

    return graphed(compiled(bench, rowwise(twin(bench.module))))


def again(bench: Bench) -> Any:
    """Compiled once more after the compiler forgot all but what lies on disk: a second start, imports left out."""
    import torch

    torch._dynamo.reset()
    return compiled(bench, twin(bench.module))


COMPILE = Way("regional compile", plainly_compiled, 75, graph=False)
BOTH = Way("regional compile + CUDA graph", lambda bench: graphed(plainly_compiled(bench)), 75, graph_by_hand)
GRAPH = Way("CUDA graph", lambda bench: graphed(bench.module), 20, graph_by_hand)
RESNETS = ("ResnetBlock2D",)
UNET = (
    *(COMPILE, BOTH, GRAPH),
    Way("channels last + regional compile + CUDA graph", channels_last, 40),
    Way("channels last + regional compile of ResNets too + CUDA graph", partial(channels_last, also=RESNETS), 60),
)
AGAIN = Way("regional compile, second start", again, 40, compile_by_hand, graph=False)
EIGHT = Way("fp8 per row + regional compile + CUDA graph", in_fp8, 60)
XL = (*UNET, AGAIN, Way("fused QKV + regional compile + CUDA graph", fused, 40), EIGHT)
FLUX = (COMPILE, BOTH, EIGHT, GRAPH, AGAIN)
LLAMA = (GRAPH, COMPILE, BOTH)


# Sections


def run_shape(
    make: Callable[[bool], tuple[Any, list[Call]]], ways: Sequence[Way], seconds: float, tiny: bool, report: Report
) -> None:
    until = time.monotonic() + seconds
    cold(tiny)
    module, calls = _made(lambda: make(tiny), report)
    measure(Bench(module, calls, report, tiny, until), ways)


def run_llama(seconds: float, tiny: bool, report: Report) -> None:
    until = time.monotonic() + seconds
    cold(tiny)

    def make() -> tuple[Any, list[Call], Callable[[], None]]:
        module = llama(tiny)
        return (module, *steps(module, tiny))

    module, calls, back = _made(make, report)
    bench = Bench(module, calls, report, tiny, until, back)
    measure(bench, LLAMA[:1])
    if not tiny:
        _row_of_tokens(bench)
    measure(bench, LLAMA[1:])


def cold(tiny: bool) -> None:
    """Let the compiler begin with nothing on disk, so that first calls are cold starts."""
    if not tiny:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(prefix="pare-code-")


def _made(make: Callable[[], Any], report: Report) -> Any:
    began = time.perf_counter()
    found = make()
    weights = list(found[0].parameters())
    count, size = sum(one.numel() for one in weights), sum(one.numel() * one.element_size() for one in weights)
    made = {"seconds": round(time.perf_counter() - began, 1), "parameters": count, "weights_gb": round(size / 1e9, 2)}
    report("model", made)
    return found


def _row_of_tokens(bench: Bench, count: int = 48) -> None:
    """Greedy decoding by `generate`, eager and captured on caches of one length: the same tokens, and how fast."""
    import torch

    from compress.opening.inside import ran
    from compress.opening.static_caches import STRIDE, Generate

    prompt = torch.randint(0, 1000, (1, STRIDE - count), generator=torch.Generator().manual_seed(3)).to("cuda")
    asked = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": count, "do_sample": False}
    eager, made = copy.copy(bench.module), graphed(bench.module)
    vars(eager)["generate"] = Generate(eager)  # on the same caches, so that only the graph differs
    written, seconds = [], []
    for model in (eager, made):
        with torch.no_grad():
            for _ in range(2):  # the first captures
                torch.cuda.synchronize()
                began = time.perf_counter()
                tokens = model.generate(prompt, **asked)
                torch.cuda.synchronize()
                spent = time.perf_counter() - began
        written.append(tokens)
        seconds.append(spent)
    same = int((written[0] == written[1])[:, prompt.shape[1] :].sum())
    rates = {
        f"{name}_tokens_s": round(count / spent, 1) for name, spent in zip(("eager", "captured"), seconds, strict=True)
    }
    bench.report("generate", {**rates, "same_tokens": f"{same} of {count}", "ran": str(ran(made))})


def _shape(name: str, seconds: int, make: Callable[[bool], tuple[Any, list[Call]]], ways: Sequence[Way]) -> Section:
    return Section(name, seconds, partial(run_shape, make, ways, seconds - 6))


PARTS = {
    "b": (_shape("sdxl", 165, sdxl, XL), _shape("sd15", 70, sd15, UNET)),
    "c": (_shape("flux", 125, flux, FLUX), Section("llama", 110, partial(run_llama, 104))),
}

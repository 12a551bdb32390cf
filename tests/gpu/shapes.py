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
from functools import partial
from typing import Any

from tests.gpu.bench import Bench, Way, measure
from tests.gpu.large import Call, flux, llama, sd15, sdxl, steps
from tests.gpu.sections import Report, Section
from tests.gpu.ways import FLUX, LLAMA, UNET, XL, graphed


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

    from compress.opening.compile_and_capture import ran
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

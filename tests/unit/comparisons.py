"""Example comparisons: one of an image model that passes, one of a text model that fails and leaves a gate open."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from compress.recipe.gates import Gate
from evaluation.comparison import Comparison, Completion, Contribution, Handed, Image, Row, Side, Step, Verdict
from evaluation.values import Estimate

MACHINE = {
    "processor": "Example CPU @ 2.0 GHz",
    "flags": ["avx2", "avx512f"],
    "threads": 2,
    "memory_gb": 15.6,
    "libraries": {"torch": "2.13.0", "openvino": "2026.4"},
    "read_gb_s": 11.2,
    "gemm_gflop_s": 98.7,
    "gpu": "",
}


def exact(value: float, n: int = 1) -> Estimate:
    return Estimate(value, value, value, n)


def latency(contrast: Estimate, verdict: Verdict = Verdict("not gated"), gate: Gate | None = None) -> Row:  # noqa: B008 - frozen
    one, other = Estimate(412.31, 409.2, 415.8, 30), Estimate(95.88, 94.1, 97.9, 30)
    noise = Estimate(1.002, 0.991, 1.014, 30)
    return Row("latency", "latency", "ms", "lower", "ratio", one, other, contrast, verdict, noise, gate)


def image() -> Comparison:
    draw = np.random.default_rng(0)
    images = []
    for index in range(3):
        base = np.full((28, 28, 3), 245, np.uint8)
        base[6:22, 10 + index : 14 + index] = (200, 30, 40)
        noisy = np.clip(base + draw.integers(-24, 24, base.shape), 0, 255).astype(np.uint8)
        images.append(Image(f"u{index}", f"a red one on white paper, number {index}", base, noisy))
    rows = (
        latency(Estimate(4.3003, 4.1123, 4.5987, 30), Verdict("pass", "at least 2×"), Gate(speedup=2)),
        Row("size", "size on disk", "MB", "lower", "ratio", exact(1310.2), exact(331.8), exact(3.9488),
            Verdict("pass", "not worse by 0%"), gate=Gate(worse_by="0%")),
        Row("digits_read", "digits read", "", "higher", "difference", Estimate(0.9883, 0.981, 0.993, 512),
            Estimate(0.9863, 0.979, 0.991, 512), Estimate(-0.00195, -0.0078, 0.0039, 512),
            Verdict("pass", "not worse by 0.01"), gate=Gate(worse_by=0.01)),
        Row("fid", "FID", "", "lower", "difference", Estimate(3.1, 2.8, 3.5, 512), Estimate(3.6, 3.2, 4.0, 512),
            Estimate(0.5, -0.1, 1.1, 512), Verdict("not gated")),
    )  # fmt: skip
    stages = (
        {"id": "fuse", "stage": "fuse", "key": "k1", "cached": True, "seconds": 3.21, "size_bytes": 1_310_200_000,
         "facts": {"steps": 4}},
        {"id": "int8", "stage": "quantize", "key": "k2", "cached": False, "seconds": 61.04, "size_bytes": 331_800_000,
         "facts": {}},
    )  # fmt: skip
    return Comparison(
        name="digits to int8", task="text_to_image",
        baseline=Side("baseline", "a" * 64, "torch float32 eager", {"num_inference_steps": 20}),
        candidate=Side("candidate", "b" * 64, "unet: openvino int8", {"num_inference_steps": 4}),
        rows=rows, machine=MACHINE, recipe="name: digits\nstages:\n  - quantize: {bits: 8}\n", stages=stages,
        images=tuple(images), directory="runs/digits",
        handed=Handed(
            "/home/you/small", ("import compress", 'generate = compress.load("/home/you/small")', 'generate("a red one")')
        ),
    )  # fmt: skip


def staged() -> Comparison:
    """`image()` with its two stages measured, one more in between that generates nothing, and a loss curve."""

    def speed(value: float, gain: float, n: int = 7) -> Contribution:
        whole, own = (Estimate(v, v * 0.95, v * 1.06, n) for v in (value, gain))
        return Contribution("latency", "latency", whole, own)

    def read(value: float, change: float | None) -> tuple[Contribution, ...]:
        whole, own = (Estimate(v, v - 0.02, v + 0.02, 64) for v in (value, change or 0.0))
        return (Contribution("digits_read", "digits read", whole, None if change is None else own),)

    steps = (
        Step("", 1_310_000_000),
        Step("fuse", 1_310_000_000, speed(1.5, 1.5), read(-0.004, -0.004)),
        Step("prune", 900_000_000, speed(2.6, 1.7333), note="quality not measured: it generated a constant image"),
        Step("int8", 331_800_000, speed(4.3, 1.6538, 30), read(-0.002, None)),
    )
    found = image()
    curve = {"unet loss": [[10 * i, 2.0 * 0.9**i] for i in range(1, 50)], "rank": 4}
    pruned = {**found.stages[0], "id": "prune", "cached": False, "size_bytes": 900_000_000, "facts": curve}
    return replace(found, stages=(found.stages[0], pruned, found.stages[1]), steps=steps)


def text() -> Comparison:
    rows = (
        latency(Estimate(0.8123, 0.801, 0.829, 30), Verdict("fail", "at least 1.5×", "the whole interval is outside"),
                Gate(speedup=1.5)),
        Row("perplexity", "perplexity", "", "lower", "difference", Estimate(11.802, 11.4, 12.2, 64),
            Estimate(11.917, 11.5, 12.3, 64), Estimate(0.1153, 0.0712, 0.1598, 64),
            Verdict("inconclusive", "within 1%, both sides", "[0.0712, 0.1598] straddles the margin", 3100),
            gate=Gate(within="1%")),
        Row("peak_memory", "peak memory", "MB", "lower", "ratio", exact(812.0), exact(404.0), exact(2.0099),
            Verdict("not gated")),
    )  # fmt: skip
    completions = (
        Completion("d1", "Return the sum of", " two numbers and their weights.", " two number lists, in order.", 2),
        Completion("d2", "Open the file", " and read it.", " and read it.", -1),
    )
    return Comparison(
        name="docs llama, 4 bits", task="text_generation",
        baseline=Side("baseline", "c" * 64, "torch float32 eager"),
        candidate=Side("candidate", "d" * 64, "torch int4 weights"),
        rows=rows, machine=MACHINE, recipe="name: docs\n", completions=completions,
        warnings=("timing: another process used 40% of a core",),
    )  # fmt: skip

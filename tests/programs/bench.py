"""`make bench`: start-up as ratios to an empty interpreter, and FID of 512 images as a ratio to torchmetrics', each in one
interleaved run. Never an assertion of seconds.

python -m tests.programs.bench
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROUNDS = 10
IMAGES, BATCH = 512, 32
ROOT = Path(__file__).parents[2]
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "pare --help": ["-m", "compress.cli", "--help"],
    "pare check recipes/quickstart.yaml": ["-m", "compress.cli", "check", "recipes/quickstart.yaml"],
    "import compress": ["-c", "import compress"],
}


def start_up() -> dict[str, dict[str, float]]:
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS):
        for name, arguments in COMMANDS.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
            times[name].append(time.perf_counter() - began)
    return rows_of(times, "python -c pass")


def fid_of_images() -> dict[str, dict[str, float]]:
    """FID of 512 generated and 512 real images, from pixels to the number with its interval: ours and torchmetrics', whose
    extractor is the same network after the same preparation of pixels, in the same batches. Above 1: torchmetrics is slower.
    """
    import numpy as np

    from compress.zoo import scenes
    from evaluation.features.clip import open_clip
    from evaluation.metrics import fid
    from evaluation.values import Sample

    clip = open_clip("zoo://digits-clip")
    real = np.stack([scenes.render(scenes.scene("test", i)) for i in range(IMAGES)])
    noise = np.random.default_rng(0).normal(0, 40, real.shape)
    generated = np.clip(real + noise, 0, 255).astype(np.uint8)

    def ours() -> float:
        values, reference = (clip.images(_batches(shown)) for shown in (generated, real))
        return fid.score(Sample(("",) * IMAGES, values, reference)).value

    theirs = _torchmetrics(clip, generated, real)
    reported = ours(), theirs()  # which also warms both up
    times: dict[str, list[float]] = {"ours": [], "torchmetrics": []}
    for _ in range(ROUNDS):
        for name, run in (("ours", ours), ("torchmetrics", theirs)):
            began = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - began)
    rows = rows_of(times, "ours")
    for row, value in zip(rows.values(), reported, strict=True):
        row |= {"pictures_per_second": round(2e3 * IMAGES / row["median_ms"]), "fid": round(value, 6)}
    return rows


def _torchmetrics(clip: Any, generated: Any, real: Any) -> Callable[[], float]:
    import torch
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Extractor(torch.nn.Module):
        """As torchmetrics wants one: uint8 [n, 3, height, width] to [n, d]."""

        num_features = int(clip.model.config.projection_dim)

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = clip.features(pixels.float())
            return found

    def run() -> float:
        metric = FrechetInceptionDistance(Extractor())
        with torch.inference_mode():
            for shown, whether in ((real, True), (generated, False)):
                for batch in _batches(shown):
                    metric.update(torch.from_numpy(batch).permute(0, 3, 1, 2), real=whether)
            return float(metric.compute())

    return run


def _batches(images: Any) -> list[Any]:
    return [images[i : i + BATCH] for i in range(0, len(images), BATCH)]


def rows_of(times: dict[str, list[float]], one: str) -> dict[str, dict[str, float]]:
    """Medians, and their ratios to that of `one`."""
    least = statistics.median(times[one])
    return {
        name: {"median_ms": round(1000 * statistics.median(t), 1), "ratio": round(statistics.median(t) / least, 2)}
        for name, t in times.items()
    }


def main() -> None:
    rows = {"start-up": start_up(), f"FID of {IMAGES} images": fid_of_images()}
    sys.stdout.write(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""Whether `build.fastest` keeps what is fastest: its choice and every single choice, timed anew in one interleaved run.

What a process loads first runs some percent slower: so the kept one is loaded twice, first and last.

python -m tests.programs.bench_choice
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

import compress
from compress.artifact import Artifact
from compress.building.racing import fastest, race
from compress.engines.module import read_settings
from compress.machine.devices import Opening
from compress.opening import open_component

PRECISIONS = {"openvino": ("float32", "bfloat16", "int8_weights"), "onnxruntime": ("float32", "int8_weights")}
MODELS = {"zoo://digits-diffusion": "unet", "zoo://docs-llama": "model"}
BLOCKS = 30
KEPT = "build.fastest"


def choices(model: str, component: str, cache: Path) -> dict[str, Artifact]:
    """The model by each single choice, and by `build.fastest` among them (within any difference: speed alone counts here)."""
    made = {
        f"{engine} {precision}": compress.apply(
            f"build.{engine}", model, cache=cache, precision=precision, components=(component,)
        )
        for engine, precisions in PRECISIONS.items()
        for precision in precisions
    }
    options: dict[str, Any] = {"engines": tuple(PRECISIONS), "components": (component,), "within": 1.0}
    kept = compress.apply("build.fastest", model, cache=cache, **options)
    return {KEPT: kept, **made}


def calls(model: str, component: str, made: dict[str, Artifact]) -> dict[str, Callable[[], object]]:
    singles = {name: artifact for name, artifact in made.items() if name != KEPT}
    ways = {f"{KEPT}, loaded first": made[KEPT], **singles, f"{KEPT}, loaded last": made[KEPT]}
    return dict(
        _each(model, component, [(name, open_component(artifact, component)) for name, artifact in ways.items()])
    )


def _each(model: str, component: str, opened: list[tuple[str, Any]]) -> list[tuple[str, Callable[[], object]]]:
    if component == "model":
        tokens = torch.arange(64)[None]
        length = {"max_new_tokens": 48, "min_new_tokens": 48, "do_sample": False, "pad_token_id": 0}
        return [(name, partial(m.generate, tokens, **length)) for name, m in opened]
    from compress.building.build import first_calls, repeated
    from compress.opening.text_to_image import TextToImage
    from compress.sources.models import find_source

    task = TextToImage(find_source(model, Path(), None).artifact, Opening("float32"))
    recorded = first_calls(task, (component,), repeated(task.examples, 1))[component]
    return [(name, partial(m, **recorded)) for name, m in opened]


def choice(model: str, component: str, cache: Path) -> dict[str, Any]:
    """Medians in ms, and how much slower than the best single choice the kept one is, beside the noise floor: how far its own two
    copies lie apart, and the blocks of each."""
    made = choices(model, component, cache)
    with torch.inference_mode():
        paces = race(calls(model, component, made), BLOCKS)
    copies = [p for name, p in paces.items() if name.startswith(KEPT)]
    singles = {name: p for name, p in paces.items() if not name.startswith(KEPT)}
    best = fastest(singles)
    kept = sum(p.seconds for p in copies) / len(copies)
    apart = abs(copies[0].seconds - copies[1].seconds) / kept
    return {
        "kept": " ".join(read_settings(made[KEPT].folder(component))[key] for key in ("engine", "precision")),
        "milliseconds": {name: round(1000 * p.seconds, 3) for name, p in paces.items()},
        "best single choice": best,
        "kept over best": round(kept / singles[best].seconds, 4),
        "noise floor": round(max(apart, singles[best].spread, *(p.spread for p in copies)), 4),
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = {model: choice(model, component, Path(folder)) for model, component in MODELS.items()}
    sys.stdout.write(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()

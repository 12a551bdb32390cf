"""Part g: native code that is built ahead of time for the GPU (`build.compiled`), against eager calls of torch, both in bfloat16. The row of
its stage says how long the build took; cold starts are those of fresh processes, the imports and the opening with them."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from typing import Any

from tests.gpu import recipes
from tests.gpu.sections import Report, Section

TEXT: dict[str, Any] = {
    "schema": 1,
    "name": "compiled-text",
    "model": "zoo://docs-llama",
    "data": {"evaluate": "zoo://docstrings/test"},
    "stages": [{"build.compiled": {"precision": "bfloat16"}}],
    "evaluate": {
        "baseline": {"dtype": "bfloat16"},
        "samples": 100,
        "batch": 8,
        "continuations": 16,
        "starts": 1,
        "stage_samples": 0,
        "timing_blocks": 12,
        "metrics": [
            "perplexity",
            "token_agreement",
            "throughput",
            "time_to_first_token",
            "cold_start",
            "device_memory",
            "size",
        ],
    },
    "gates": {"perplexity": {"worse_by": "1%"}},
}
IMAGE: dict[str, Any] = {
    "schema": 1,
    "name": "compiled-image",
    "model": "zoo://digits-diffusion",
    "data": {"evaluate": "zoo://digits/test"},
    "stages": [{"build.compiled": {"precision": "bfloat16"}}],
    "evaluate": {
        "baseline": {"dtype": "bfloat16", "steps": 20, "guidance": 3.0},
        "samples": 64,
        "batch": 16,
        "starts": 1,
        "stage_samples": 0,
        "timing_blocks": 12,
        "metrics": ["psnr", "clip_score", "latency", "cold_start", "device_memory", "size"],
    },
    "gates": {"clip_score": {"within": "2%"}},
}


def run(body: dict[str, Any], tiny: bool, report: Report) -> None:
    asked = deepcopy(body)
    if tiny and "steps" in asked["evaluate"]["baseline"]:  # half a minute of compiling for each part
        asked["stages"][0]["build.compiled"]["components"] = ["vae"]
    recipes.run_body(asked["name"], asked, tiny, report)


PARTS = {
    "g": (
        Section("compiled-text", 100, partial(run, TEXT)),
        Section("compiled-image", 140, partial(run, IMAGE)),
    )
}

"""Parts g, k and l: engines that are built ahead of time and run on the GPU, against eager calls of torch in bfloat16. Part g: native code
(`build.compiled`); part k: ONNX Runtime's CUDA provider and llama.cpp, where they are installed; part l: torch with compiled blocks, CUDA
graphs, and both, as build.fastest chooses among them. The row of a stage says how long the build
took; cold starts are those of fresh processes, the imports and the opening with them."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from typing import Any

from tests.gpu import recipes
from tests.gpu.sections import Report, Section

TEXT: dict[str, Any] = {
    "schema": 1,
    "model": "zoo://docs-llama",
    "data": {"evaluate": "zoo://docstrings/test"},
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
    "gates": {"perplexity": {"worse_by": "1%"}, "throughput": {"speedup": 1}},
}
IMAGE: dict[str, Any] = {
    "schema": 1,
    "model": "zoo://digits-diffusion",
    "data": {"evaluate": "zoo://digits/test"},
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


TINY_COMPONENTS = ["vae"]  # half a minute of compiling for each part


def run(name: str, body: dict[str, Any], stage: str, precision: str, tiny: bool, report: Report) -> None:
    from compress.catalogue import find_engine, find_stage

    if not tiny and (why := find_engine(find_stage(stage).leaves("torch")).lacks("cuda")):
        report("not run", {"why": str(why)})
        return
    params: dict[str, Any] = {"precision": "float32" if tiny and stage == ONNX else precision}
    if tiny and "steps" in body["evaluate"]["baseline"]:
        params["components"] = TINY_COMPONENTS
    run_stage(name, body, {stage: params}, tiny, report)


def run_hooks(name: str, body: dict[str, Any], tiny: bool, report: Report) -> None:
    """Torch with compiled blocks, with CUDA graphs, and with both: what build.fastest keeps. The note of its stage has the table."""
    hooks = ["compile"] if tiny else ["compile", "cuda_graph"]
    few = {"blocks": 4, "new_tokens": 3, "prompt_tokens": 4} if tiny else {}
    run_stage(name, body, {"build.fastest": {"engines": [], "hooks": hooks, **few}}, tiny, report)


def run_stage(name: str, body: dict[str, Any], step: dict[str, Any], tiny: bool, report: Report) -> None:
    recipes.run_body(name, {**deepcopy(body), "name": name, "stages": [step]}, tiny, report)


def section(name: str, seconds: int, body: dict[str, Any], stage: str, precision: str, *needs: str) -> Section:
    return Section(name, seconds, partial(run, name, body, stage, precision), needs)


COMPILED, ONNX, GGUF = "build.compiled", "build.onnxruntime", "build.gguf"
PARTS = {
    "g": (
        section("compiled-text", 100, TEXT, COMPILED, "bfloat16"),
        section("compiled-image", 140, IMAGE, COMPILED, "bfloat16"),
    ),
    "k": (
        section("onnx-text", 70, TEXT, ONNX, "float16", "onnxruntime", "onnxscript"),
        section("onnx-image", 100, IMAGE, ONNX, "float16", "onnxruntime", "onnxscript"),
        section("llama-cpp", 60, TEXT, GGUF, "float16", "llama_cpp", "gguf"),
    ),
    "l": (
        Section("fastest-text", 80, partial(run_hooks, "fastest-text", TEXT)),
        Section("fastest-image", 100, partial(run_hooks, "fastest-image", IMAGE)),
    ),
}

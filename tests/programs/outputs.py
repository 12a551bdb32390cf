"""What every stage leaves, as keys and digests: two checkouts that agree here give the same results and hit each other's caches.

Tiny models go through every stage on disk, through nothing but `compress.plan` and `compress.run`, so that the program runs
unchanged at commits whose modules lie elsewhere. Fixtures are made once, into a folder that all checkouts share. Of what is
reproducible in behaviour alone the key is reported and nothing is built. Evidence is known from its folders' names, which are its keys.

    python -m tests.programs.outputs --fixtures DIR --out A.json                              every case, in a cache of its own
    python -m tests.programs.outputs --fixtures DIR --out B.json --cache OLD --expect-cached  exit 1 if anything was made anew
    python -m tests.programs.outputs --compare A.json B.json                                  exit 1 if any differ
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = (
    "1"  # sums depend on how many share them; before torch is imported, here and in children
)

import argparse
import hashlib
import json
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

Steps = list[dict[str, dict[str, Any]]]

TEXT, IMAGES = "llama", "pipeline"
LITTLE = {"steps": 2, "warmup": 1, "precision": "float32"}
TAUGHT = {**LITTLE, "tokens": 8, "batch": 2}
RECORDED = {**LITTLE, "prompts": 8, "denoising_steps": 2, "accumulate": 1}
SOME = {"samples": 4}
SIDE = {"samples": 4, "batch": 2}
SCORED = {**SIDE, "continuations": 2, "prompt_tokens": 4, "new_tokens": 4, "metrics": ["perplexity", "token_agreement"]}
GENERATED = {**SIDE, "metrics": ["psnr"]}


@dataclass(frozen=True)
class Case:
    """One recipe: a chain of stages on one of the tiny models.

    evaluate: the recipe's part of that name; none: nothing is observed.
    only_key: what the last stage makes differs from build to build, or from machine to machine.
    """

    name: str
    model: str
    steps: Steps
    evaluate: dict[str, Any] = field(default_factory=dict)
    only_key: bool = False


def cut(**params: Any) -> Steps:
    return [{"prune.width": {"ratio": 0.5, **params}}]


def shortened(**params: Any) -> Steps:
    return [{"prune.depth": {"ratio": 0.5, "samples": 2, **params}}]


def one(stage: str, **params: Any) -> Steps:
    return [{stage: params}]


def text_cases() -> list[Case]:
    chains: dict[str, Steps] = {
        "prune.width": cut(),
        "prune.width hidden": cut(parts=["hidden", "ffn"]),
        "prune.width taylor": cut(importance="taylor", **SOME),
        "prune.width activation": cut(importance="activation", **SOME),
        "prune.depth": shortened(),
        "distill.logits after depth": [*shortened(), *one("distill.logits", **TAUGHT)],
        "distill.logits of data": [
            *cut(),
            *one("distill.logits", **TAUGHT, hidden_weight=0.0, data_weight=0.5, ema=0.0),
        ],
        "build.openvino then nncf int8_weights": [
            *one("build.openvino"),
            *one("quantize.nncf", mode="int8_weights"),
        ],
        "build.openvino then nncf int4_weights": [
            *one("build.openvino"),
            *one("quantize.nncf", mode="int4_weights", group_size=16, symmetric=True, ratio=0.5),
        ],
        "analyze.sensitivity": one("analyze.sensitivity", samples=2, group_size=16),
        "analyze.sensitivity then nncf auto": [
            *one("analyze.sensitivity", samples=2, group_size=16),
            *one("build.openvino"),
            *one("quantize.nncf", mode="int4_weights", group_size=16, bits="auto", budget=0.2),
        ],
        "prune.width then onnxruntime": [*cut(), *one("build.onnxruntime")],
        "quantize.gptq": one("quantize.gptq", group_size=32, samples=4, length=32),
        "quantize.autoround": one(
            "quantize.autoround", ignore=["*.k_proj", "*.v_proj"], group_size=32, samples=4, length=32, iters=2, batch=2
        ),
        "quantize.bitsandbytes": one("quantize.bitsandbytes", mode="int8", threshold=0.0),
        "quantize.bitsandbytes int8": one("quantize.bitsandbytes", mode="int8", ignore=["*.o_proj"]),
        "prune.width then torchao": [*cut(), *one("quantize.torchao", mode="int8_dynamic")],
        "export.onnx": one("export.onnx"),
        "export.onnx opset": one("export.onnx", opset=21),
        "distill.quantized": one("distill.quantized", group_size=16, **TAUGHT),
        "build.gguf then export.ollama": [*one("build.gguf"), *one("export.ollama")],
        "export.hub": one("export.hub", repo="me/tiny"),
    }
    precisions = {
        "build.openvino": ("float32", "bfloat16", "int8_weights", "int4_weights"),
        "build.onnxruntime": ("float32", "int8_dynamic", "int8_weights", "int4_weights"),
        "build.gguf": ("float32", "float16", "bfloat16", "int8_weights", "int4_weights"),
    }
    for stage, known in precisions.items():
        chains |= {f"{stage} {precision}": one(stage, precision=precision) for precision in known}
    keys: dict[str, Steps] = {
        "build.compiled": one("build.compiled"),
        "build.compiled bfloat16": one("build.compiled", precision="bfloat16", profile={"batch": [1, 2, 4]}),
        "build.fastest": one("build.fastest"),
        "build.fastest of two": one("build.fastest", engines=["openvino", "onnxruntime"], precisions=["int8"]),
        "build.tensorrt": one("build.tensorrt", targets=["SM86"]),
        "build.tensorrt int8_weights": one("build.tensorrt", targets=["SM86", "SM89"], precision="int8_weights"),
    }
    return [
        *(Case(f"text: {n}", TEXT, steps) for n, steps in chains.items()),
        *(Case(f"text: {n}", TEXT, steps, only_key=True) for n, steps in keys.items()),
    ]


def image_cases() -> list[Case]:
    unet = {"components": ["unet"]}
    words = {"components": ["text_encoder"]}
    chains: dict[str, Steps] = {
        "prune.width": cut(),
        "prune.width taylor": cut(importance="taylor", **SOME),
        "prune.width activation of two": cut(importance="activation", components=["unet", "text_encoder"], **SOME),
        "prune.depth": shortened(),
        "distill.features after depth": [*shortened(), *one("distill.features", **RECORDED)],
        "distill.features after width": [*cut(), *one("distill.features", **RECORDED, guidance=2.0, block_weight=0.0)],
        "distill.steps": one("distill.steps", steps=2, updates=3, batch=4, captions=8, teacher_steps=2),
        "distill.guidance": one("distill.guidance", guidance=3.0, updates=3, batch=4, captions=8, teacher_steps=2),
        "accelerate.call": one("accelerate.call"),
        "distill.decoder": one("distill.decoder", **RECORDED, pictures=4, width=8),
        "accelerate.size": one("accelerate.size", height=24, width=16),
        "accelerate.steps": one("accelerate.steps", steps=4),
        "accelerate.steps dpm-solver++": one("accelerate.steps", steps=3, scheduler="dpm-solver++"),
        "accelerate.steps euler trailing": one("accelerate.steps", steps=2, scheduler="euler", spacing="trailing"),
        "build.openvino all": one("build.openvino"),
        "build.openvino int8 after steps": [
            *one("accelerate.steps", steps=2),
            *one("build.openvino", precision="int8", **SOME, **unet),
        ],
        "build.openvino then nncf int8": [
            *one("accelerate.steps", steps=2),
            *one("build.openvino", **unet),
            *one("quantize.nncf", mode="int8", **SOME),
        ],
        "quantize.torchao then bitsandbytes": [
            *one("quantize.torchao", components=["unet", "vae"]),
            *one("quantize.bitsandbytes", mode="int8", **words),
        ],
        "build.openvino then nncf int8_hybrid": [
            *one("accelerate.steps", steps=2),
            *one("build.openvino", **unet),
            *one("quantize.nncf", mode="int8_hybrid", **SOME),
        ],
        "analyze.sensitivity": [
            *one("accelerate.steps", steps=2),
            *one("analyze.sensitivity", samples=2, bits=[4]),
        ],
        "build.openvino then steps": [*one("build.openvino", **words), *one("accelerate.steps", steps=2)],
        "build.onnxruntime": one("build.onnxruntime", components=["unet", "vae"]),
        "build.onnxruntime int8": [
            *one("accelerate.steps", steps=2),
            *one("build.onnxruntime", precision="int8", **SOME, **unet),
        ],
        "export.onnx": one("export.onnx", **words),
        "accelerate.compile": one("accelerate.compile"),
        "accelerate.step_cache then interval": [*one("accelerate.step_cache"), *one("accelerate.guidance_interval")],
    }
    keys: dict[str, Steps] = {
        "build.compiled": one("build.compiled", **unet),
        "accelerate.attention": one("accelerate.attention"),
        "build.fastest": one("build.fastest", precisions=["float32", "int8"], **unet),
        "build.tensorrt": one("build.tensorrt", targets=["SM86"], precision="int8", **unet),
    }
    return [
        *(Case(f"images: {n}", IMAGES, steps) for n, steps in chains.items()),
        *(Case(f"images: {n}", IMAGES, steps, only_key=True) for n, steps in keys.items()),
    ]


def evidence_cases() -> list[Case]:
    """Torch and engine beside their baselines, whose number type, steps and guidance are asked for or left alone."""
    engine = [*one("build.openvino"), *one("quantize.nncf", mode="int8_weights")]
    fewer, words = one("accelerate.steps", steps=2), {"components": ["text_encoder"]}
    text: dict[str, tuple[Steps, dict[str, Any]]] = {
        "torch": (cut(), {}),
        "torch bfloat16": (cut(), {"baseline": {"dtype": "bfloat16"}, "seed": 3}),
        "engine bfloat16": (engine, {"baseline": {"dtype": "bfloat16"}}),
        "engine without continuations": (engine, {"continuations": 0, "samples": 3, "metrics": ["perplexity"]}),
        "onnx": (one("build.onnxruntime", precision="int8_dynamic"), {"stage_samples": 0}),
    }
    images: dict[str, tuple[Steps, dict[str, Any]]] = {
        "torch": (cut(), {"baseline": {"steps": 2}}),
        "torch guided": ([*shortened(), *fewer], {"baseline": {"dtype": "bfloat16", "steps": 3, "guidance": 2.0}}),
        "engine guided": (one("build.onnxruntime", **words), {"baseline": {"steps": 2, "guidance": 2.0}, "seed": 5}),
        "engine with fewer steps": ([*fewer, *one("build.openvino", **words)], {"baseline": {"steps": 3}}),
    }
    return [
        *(Case(f"evidence of text: {n}", TEXT, s, {**SCORED, **asked}) for n, (s, asked) in text.items()),
        *(Case(f"evidence of images: {n}", IMAGES, s, {**GENERATED, **asked}) for n, (s, asked) in images.items()),
    ]


def make_fixtures(folder: Path) -> None:
    """Both models and their data, unless they are there whole; what is there is never made anew."""
    if (folder / "whole").is_file():
        return
    import numpy as np
    from PIL import Image

    from tests.tiny import tiny_diffusion, tiny_llama

    tiny_llama(folder / TEXT, seed=1)
    tiny_diffusion(folder, seed=1).rename(folder / IMAGES)
    for split, start in (("train", 0), ("calibration", 100), ("evaluate", 200)):
        texts = [f"The array of values number {start + i} to sort along the given axis." for i in range(24)]
        (folder / f"{split}.txt").write_text("\n\n".join(texts))
        (folder / split).mkdir(exist_ok=True)
        rows = []
        for index in range(8):
            pixels = np.random.default_rng(start + index).integers(0, 255, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / split / f"{index}.png")
            rows.append(json.dumps({"file_name": f"{index}.png", "text": f"red {start + index}"}))
        (folder / split / "metadata.jsonl").write_text("\n".join(rows))
    (folder / "whole").touch()


def recipe_of(case: Case, fixtures: Path, folder: Path) -> Path:
    ending = ".txt" if case.model == TEXT else ""
    nothing = {"metrics": ["size"], "stage_samples": 0}
    body = {
        "schema": 1,
        "name": "case",
        "model": str(fixtures / case.model),
        "data": {split: f"{fixtures / split}{ending}" for split in ("train", "calibration", "evaluate")},
        "stages": case.steps,
        "evaluate": case.evaluate or nothing,
    }
    path = folder / f"{hashlib.sha256(case.name.encode()).hexdigest()[:16]}.yaml"
    path.write_text(yaml.safe_dump(body, sort_keys=False))
    return path


@dataclass(frozen=True)
class Tried:
    """What a case gave, and what of it was made anew."""

    found: dict[str, Any]
    anew: tuple[str, ...] = ()


def try_case(case: Case, fixtures: Path, cache: Path, folder: Path) -> Tried:
    """Plan a case, and run it where its bytes are a promise."""
    import compress

    recipe = recipe_of(case, fixtures, folder)
    planned = [node.key for node in compress.plan(recipe, cache=cache).nodes]
    if case.only_key:
        return Tried({"keys": planned})
    before = evidence_in(cache)
    try:
        done = compress.run(recipe, cache=cache, out=folder / "out")
    except compress.PareError as error:
        print(f"{case.name}: {error}", file=sys.stderr)
        return Tried({"keys": planned, "failed": type(error).__name__}, ("what failed",))
    stages = [dict(stage) for stage in done.stages]
    if [s["key"] for s in stages] != planned:
        raise SystemExit(f"{case.name}: the keys of the run are not those of its plan")
    anew = [s["id"] for s in stages if not s["cached"]] + [f"evidence {k}" for k in evidence_in(cache).keys() - before]
    found: dict[str, Any] = {
        "keys": planned,
        "digests": [s["digest"] for s in stages],
        "files": digests_below(cache / stages[-1]["path"]),
    }
    if case.evaluate:
        # Rounded: what numpy sums may differ in the last bits from release to release.
        found["values"] = {r.metric: [f"{e.value:.6g}" for e in (r.baseline, r.candidate)] for r in done.rows}
    return Tried(found, tuple(anew))


def digests_below(folder: Path) -> dict[str, str]:
    """The sha256 of each file, by its name in the folder; the cache's own notes begin with a dot."""
    files = (f for f in sorted(folder.rglob("*")) if f.is_file() and not f.name.startswith("."))
    return {f.relative_to(folder).as_posix(): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def evidence_in(cache: Path) -> dict[str, dict[str, str]]:
    """All evidence of a cache, by key."""
    folders = (f for f in sorted((cache / "evidence").glob("*")) if (f / "evidence.json").is_file())
    return {folder.name: digests_below(folder) for folder in folders}


def uncovered(cases: list[Case]) -> set[str]:
    """Stages on disk that no case tries, of those that do something on a processor and whose libraries are installed."""
    from compress.catalogue import find_stage, stage_names
    from compress.machine import deps

    known = [s for s in map(find_stage, stage_names()) if not s.elsewhere("cpu")]
    here = {s.name for s in known if all(map(deps.version, s.libraries))}
    return here - {stage for case in cases for step in case.steps for stage in step}


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What two outputs do not agree in, a line each."""
    lines = []
    for name in sorted(before.keys() | after.keys()):
        one, other = before.get(name), after.get(name)
        if one is None or other is None:
            lines.append(f"{name}: only in the {'second' if one is None else 'first'}")
            continue
        for what in sorted(one.keys() | other.keys()):
            if one.get(what) == other.get(what):
                continue
            left, right = one.get(what) or {}, other.get(what) or {}
            odd = ""
            if isinstance(left, dict) and isinstance(right, dict):
                odd = f" of {', '.join(k for k in sorted(left.keys() | right.keys()) if left.get(k) != right.get(k))}"
            lines.append(f"{name}: {what}{odd} differ{'' if odd else f': {left} and {right}'}")
    return lines


def collect(fixtures: Path, cache: Path, only: str) -> tuple[dict[str, Any], list[str]]:
    """What every case gave, and what was made anew."""
    cases = [*text_cases(), *image_cases(), *evidence_cases()]
    if missing := uncovered(cases):
        raise SystemExit(f"no case tries {', '.join(sorted(missing))}")
    make_fixtures(fixtures)
    found: dict[str, Any] = {}
    anew: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for case in (c for c in cases if only in c.name):
            began = time.monotonic()
            tried = try_case(case, fixtures, cache, Path(folder))
            found[case.name] = tried.found
            anew += [f"{case.name}: {what}" for what in tried.anew]
            print(f"{time.monotonic() - began:6.1f} s  {case.name}", file=sys.stderr, flush=True)
    found |= {f"evidence {key}": {"files": files} for key, files in evidence_in(cache).items()}
    return found, anew


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file to write")
    parser.add_argument("--fixtures", type=Path, help="folder of models and data, made if it is not there")
    parser.add_argument("--cache", type=Path, help="folder; none: a fresh one, thrown away")
    parser.add_argument("--expect-cached", action="store_true", help="fail if a stage or evidence was made anew")
    parser.add_argument("--only", default="", help="cases with this in their name")
    parser.add_argument("--compare", nargs=2, type=Path, metavar="FILE")
    asked = parser.parse_args()
    if asked.compare:
        lines = differences(*(json.loads(path.read_text()) for path in asked.compare))
        print("\n".join(lines) or "all agree")
        return bool(lines)
    if not (asked.out and asked.fixtures):
        parser.error("give --fixtures and --out, or --compare")
    with tempfile.TemporaryDirectory() as fresh:
        cache = (asked.cache or Path(fresh)).absolute()
        found, anew = collect(asked.fixtures.absolute(), cache, asked.only)
    asked.out.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    if asked.expect_cached and anew:
        print("made anew:", *anew, sep="\n  ")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

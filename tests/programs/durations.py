"""Measures how long stages take on models of several sizes, and fits the lines of `compress/planning/durations.json` to it.

`python -m tests.programs.durations measure FOLDER` runs stages, on a machine that does nothing else (half an hour on two cores), `editors FOLDER`
in place of `measure` only what compares pipelines that are given images (five minutes), and `python -m tests.programs.durations fit CACHE [CACHE …]` writes the lines. One that nothing was noted of stays as it was.
"""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import yaml

import compress
from compress.errors import PareError
from compress.planning.durations import FOLDER, LINES, Line, Run, lines, runs
from tests.documents import images

DIGITS = 3
CHEAP = {"metrics": ["size"], "stage_samples": 0}
TEXT_STEPS: tuple[dict[str, Any], ...] = (
    {"prune.depth": {"ratio": 0.25}},
    {"prune.width": {"ratio": 0.25}},
    {"distill.logits": {"teacher": "source", "steps": 20, "batch": 2, "tokens": 64}},
    {"quantize.torchao": {"mode": "int8_weights"}},
    {"quantize.bitsandbytes": {"mode": "nf4"}},
    {"quantize.gptq": {"bits": 4, "samples": 16}},
    {"quantize.autoround": {"bits": 4, "samples": 16, "iters": 10}},
    {"build.gguf": {"precision": "int8_weights"}},
    {"build.onnxruntime": {}},
    {"build.compiled": {}},
    {"build.openvino": {}},
    {"quantize.nncf": {"mode": "int8_weights"}},
)
IMAGE_STEPS: tuple[dict[str, Any], ...] = (
    {"accelerate.steps": {"steps": 4}},
    {"prune.depth": {"ratio": 0.25}},
    {"prune.width": {"ratio": 0.25}},
    {"distill.features": {"teacher": "source", "steps": 20}},
    {"distill.guidance": {"updates": 10, "batch": 4}},
    {"distill.steps": {"steps": 4, "updates": 10, "batch": 4}},
    {"quantize.torchao": {"mode": "int8_weights"}},
    {"build.onnxruntime": {}},
    {"build.compiled": {}},
    {"build.openvino": {}},
    {"quantize.nncf": {"mode": "int8", "samples": 16}},
)
COMPARED: dict[bool, dict[str, Any]] = {
    True: {"metrics": ["perplexity", "throughput", "peak_memory", "size"], "samples": 32},
    False: {"metrics": ["ssim", "latency", "peak_memory", "size"], "samples": 16, "baseline": {"steps": 8}},
}


# By task that is given images, a model of the zoo, the class that it is opened as, and its data.
EDITORS = {
    "image_to_image": ("digits-diffusion", "StableDiffusionImg2ImgPipeline", "zoo://digits-edits/test"),
    "instruction_editing": ("digits-editing", "StableDiffusionInstructPix2PixPipeline", "zoo://digits-edits/test"),
    "inpainting": ("digits-inpainting", "StableDiffusionInpaintPipeline", "zoo://digits-holes/test"),
}


def fitted(seen: Sequence[Run]) -> Line:
    """The line that differs least from what was seen, in proportion to it; none of its numbers is negative."""
    facts = np.array([[1.0, one.work.parameters * one.work.rounds / 1e9, one.work.starts] for one in seen])
    seconds = np.array([one.seconds for one in seen])
    shares = facts / seconds[:, None]
    best, least = np.array([seconds.mean(), 0.0, 0.0]), np.inf
    for count in (1, 2, 3):
        for used in itertools.combinations((1, 0, 2), count):  # of one run alone: in proportion
            found = np.zeros(3)
            found[list(used)] = np.linalg.lstsq(shares[:, list(used)], np.ones(len(seen)), rcond=None)[0]
            error = float(np.square(shares @ found - 1).sum())
            if (found >= 0).all() and found.any() and error < least - 1e-6:
                best, least = found, error
    return Line(*(float(f"{one:.{DIGITS}g}") for one in best))


def measure(folder: Path) -> None:
    """Run every stage by itself on each model, and compare each with what the last stages make of it, a note a run in `folder/cache`."""
    folder.mkdir(parents=True, exist_ok=True)
    models = {**_text_models(folder), **_image_models(folder)}
    for name, (model, text) in models.items():
        steps = TEXT_STEPS if text else IMAGE_STEPS
        for number, step in enumerate(steps):
            behind = [steps[number - 1]] if "quantize.nncf" in step else []
            _run(folder, f"{name}-{number}", model, [*behind, step], CHEAP)
        _run(
            folder,
            f"{name}-quality",
            model,
            [*steps[-2:]],
            {**COMPARED[text], "metrics": COMPARED[text]["metrics"][:1], "samples": COMPARED[text]["samples"] + 1},
        )
        _run(folder, f"{name}-all", model, [*steps[-2:]], COMPARED[text])


def measure_editors(folder: Path) -> None:
    """Compare each of two sizes with itself in fewer steps."""
    folder.mkdir(parents=True, exist_ok=True)
    for task, (model, kind, items) in EDITORS.items():
        for name, small in ((f"{task}-small", True), (f"{task}-large", False)):
            _pipeline(folder / name, model, kind, small)
            steps, metrics = [IMAGE_STEPS[0]], COMPARED[False]["metrics"]
            for number, asked in enumerate((metrics[:1], metrics)[: 1 + small]):
                # Of other items each time: what is known already of a side is no part of what is noted.
                evaluate = {**COMPARED[False], "metrics": asked, "samples": COMPARED[False]["samples"] + number}
                _run(folder, f"{name}-{number}", f"./{name}", steps, evaluate, {"evaluate": items})


def _run(
    folder: Path,
    name: str,
    model: str,
    steps: list[dict[str, Any]],
    evaluate: dict[str, Any],
    given_data: dict[str, str] | None = None,
) -> None:
    data = {"train": "./train", "calibration": "./train", "evaluate": "./held-out"}
    if "llama" in name:
        data = {role: f"{one}.jsonl" for role, one in data.items()}
    data = given_data or data
    given = {
        "schema": 1,
        "name": name,
        "model": model,
        "data": data,
        "stages": steps,
        "evaluate": {**CHEAP, **evaluate},
    }
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(given, sort_keys=False))
    try:
        compress.run(file, cache=folder / "cache", out=folder / "runs" / name)
    except PareError as error:
        sys.stderr.write(f"{name}: {error}\n")


def _text_models(folder: Path) -> dict[str, tuple[str, bool]]:
    """Llamas of 9 and 56 million random weights, with texts."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.tiny import tiny_byte_tokenizer

    tokenizer = tiny_byte_tokenizer()
    rows = [{"text": f"item {number} is made of some words that are read here " * 3} for number in range(128)]
    (folder / "train.jsonl").write_text("\n".join(json.dumps(row) for row in rows[:64]))
    (folder / "held-out.jsonl").write_text("\n".join(json.dumps(row) for row in rows[64:]))
    for name, width, depth, vocabulary in (("llama-9", 256, 8, 2048), ("llama-56", 512, 12, 8192)):
        config = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=depth,
            num_attention_heads=width // 64,
            num_key_value_heads=width // 128,
            max_position_embeddings=512,
        )
        LlamaForCausalLM(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return {"llama-9": ("./llama-9", True), "llama-56": ("./llama-56", True)}


def _image_models(folder: Path) -> dict[str, tuple[str, bool]]:
    """The zoo's pipeline, of 3 million, and one whose denoiser has 40 million random weights and sixteen times the places."""
    images(folder / "train", 0, 64)
    images(folder / "held-out", 1, 64)
    for name in (found := {"diffusion-3": True, "diffusion-40": False}):
        _pipeline(folder / name, "digits-diffusion", "StableDiffusionPipeline", found[name])
    return {name: (f"./{name}", False) for name in found}


def _pipeline(folder: Path, model: str, kind: str, small: bool) -> None:
    """A pipeline of the zoo as one of a class; one that is not small has random weights, 16 times as many, and 16 times the places."""
    from diffusers import UNet2DConditionModel

    from compress.zoo import zoo_model

    shutil.copytree(zoo_model(model), folder, dirs_exist_ok=True)
    (folder / "pare.json").unlink(missing_ok=True)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": kind}))
    if small:
        return
    config = UNet2DConditionModel.load_config(folder / "unet")
    wide = {**config, "block_out_channels": [4 * one for one in config["block_out_channels"]], "sample_size": 32}
    shutil.rmtree(folder / "unet")
    UNet2DConditionModel.from_config(wide).save_pretrained(folder / "unet")


def fit(caches: Sequence[str]) -> None:
    """Write the lines."""
    seen: dict[str, list[Run]] = {}
    for cache in caches:
        for note in sorted((Path(cache) / FOLDER).iterdir()):
            seen.setdefault(note.name, []).extend(runs(note))
    known = {**lines(), **{name: fitted(found) for name, found in seen.items() if found}}
    LINES.write_text(json.dumps({"lines": {name: asdict(known[name]) for name in sorted(known)}}, indent=1) + "\n")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["measure", where]:
            measure(Path(where))
        case ["editors", where]:
            measure_editors(Path(where))
        case ["fit", *found] if found:
            fit(found)
        case _:
            sys.exit(__doc__)

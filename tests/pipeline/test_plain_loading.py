"""What stock libraries can load, they load: a pruned and distilled artifact opens in a process that has no pare, and, called
with the arguments that `pare.json` prints, gives the very output that pare measures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import compress
from compress.artifact import Artifact
from compress.events import silent
from compress.execution.execute import execute
from compress.opening import open_task
from compress.opening.text_to_image import noise_source
from compress.store.cache import Cache
from tests.tiny import tiny_diffusion, tiny_llama

CAPTIONS, NAMES = ["a red three", "blue"], ["0", "1"]
PROMPT = [5, 9, 30, 2, 17]
CHAIN = {
    "text_to_image": [
        {"prune.width": {"ratio": 0.25}},
        {"prune.depth": {"ratio": 0.25, "samples": 2}},
        {"distill.features": {"steps": 2, "prompts": 8, "denoising_steps": 2, "accumulate": 1}},
        {"accelerate.steps": {"steps": 3, "scheduler": "dpm-solver++"}},
        {"distill.decoder": {"steps": 2, "prompts": 4, "pictures": 4, "width": 8, "encoder_width": 8}},
    ],
    "text_generation": [
        {"prune.width": {"ratio": 0.5}},
        {"prune.depth": {"ratio": 0.5, "samples": 2}},
        {"distill.logits": {"steps": 2, "tokens": 16, "batch": 2}},
    ],
}
# Nothing of pare can be imported here, and the script is given on the command line so that no folder of it is on the path.
ALONE = """
import json, sys
class Without:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("compress", "evaluation"):
            raise ImportError(f"{name} is not installed")
sys.meta_path.insert(0, Without())
try:
    import compress
except ImportError:
    pass
else:
    sys.exit("pare is here")
import numpy as np, torch
folder, out, asked = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
torch.set_num_threads(asked["threads"])
call = json.load(open(f"{folder}/pare.json"))["settings"]["call"]
if "captions" in asked:
    from diffusers import DiffusionPipeline
    noise = [torch.Generator().manual_seed(seed) for seed in asked["noise"]]
    pipeline = DiffusionPipeline.from_pretrained(folder)
    found = pipeline(asked["captions"], generator=noise, output_type="np", **call).images
else:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokens = torch.tensor([asked["prompt"]])
    found = model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=12, min_new_tokens=12,
                           do_sample=False, output_logits=True, return_dict_in_generate=True, **call)
    found = torch.cat([found.sequences[0, tokens.shape[1]:, None].float(), torch.cat(found.logits)], 1).numpy()
np.save(out, found)
"""


def opened_alone(artifact: Artifact, out: Path, **asked: Any) -> Any:
    asked["threads"] = torch.get_num_threads()
    command = [sys.executable, "-c", ALONE, str(artifact.path), str(out), json.dumps(asked)]
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    done = subprocess.run(
        command, cwd=out.parent, env={**os.environ, **offline}, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return np.load(out)


def made(folder: Path, model: Path, task: str, data: dict[str, str]) -> tuple[Artifact, ...]:
    """Run the chain of a task through plan and executor; what each stage left."""
    body = {"schema": 1, "name": "plain", "model": str(model), "data": data, "stages": CHAIN[task]}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(body))
    store = Cache(folder / "cache")
    done = execute(compress.plan(folder / "recipe.yaml", cache=store.root), store, silent)
    return tuple(d.artifact for d in done)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, ...]:
    folder = tmp_path_factory.mktemp("images")
    data = {"train": "zoo://digits/train", "calibration": "zoo://digits/validation"}
    return made(folder, tiny_diffusion(folder), "text_to_image", data)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, ...]:
    folder = tmp_path_factory.mktemp("texts")
    rows = [json.dumps({"text": f"The {i}th value of the sorted array, from {i * i} to {i**3}."}) for i in range(24)]
    (folder / "train.jsonl").write_text("\n".join(rows[:16]))
    (folder / "calibration.jsonl").write_text("\n".join(rows[16:]))
    data = {"train": str(folder / "train.jsonl"), "calibration": str(folder / "calibration.jsonl")}
    return made(folder, tiny_llama(folder / "model"), "text_generation", data)


def test_a_distilled_pipeline_generates_without_pare_what_pare_measures(
    images: tuple[Artifact, ...], tmp_path: Path
) -> None:
    last = images[-1]
    assert [p.stage for p in last.lineage] == [name for step in CHAIN["text_to_image"] for name in step]
    assert last.settings.call == {"num_inference_steps": 3}
    assert not last.settings.needs_pare
    noise = [noise_source(0, name).initial_seed() for name in NAMES]
    alone = opened_alone(last, tmp_path / "alone.npy", captions=CAPTIONS, noise=noise)
    task: Any = open_task(last)
    ours = task.generate(CAPTIONS, NAMES, 0)
    assert np.array_equal(np.round(np.clip(alone, 0, 1) * 255).astype(np.uint8), ours)
    assert ours.std() > 5
    assert not np.array_equal(task.generate(CAPTIONS, NAMES, 0, num_inference_steps=4), ours)  # the call block matters


def test_a_distilled_language_model_writes_without_pare_what_pare_measures(
    texts: tuple[Artifact, ...], tmp_path: Path
) -> None:
    last = texts[-1]
    assert [p.stage for p in last.lineage] == [name for step in CHAIN["text_generation"] for name in step]
    alone = opened_alone(last, tmp_path / "alone.npy", prompt=PROMPT)
    tokens, logits = alone[:, 0].astype(int).tolist(), torch.from_numpy(alone[:, 1:])
    task: Any = open_task(last)
    assert task.generate([PROMPT], 12)[0] == tokens
    with torch.inference_mode():
        ours = task.model(input_ids=torch.tensor([PROMPT + tokens]), use_cache=False).logits[0, len(PROMPT) - 1 : -1]
    assert torch.allclose(ours, logits, atol=1e-5)  # with its cache of keys and values, and without
    assert ours.std(0).max() > 0.1


@pytest.mark.parametrize("chain", ["images", "texts"])
def test_each_stage_changed_the_weights_and_left_the_shapes_it_was_to(
    chain: str, request: pytest.FixtureRequest
) -> None:
    stages: tuple[Artifact, ...] = request.getfixturevalue(chain)
    shapes, sums = [], []
    for artifact in stages[:3]:  # width, depth, distillation
        state = open_task(artifact).component(artifact.main).state_dict()
        shapes.append({name: tuple(t.shape) for name, t in state.items()})
        sums.append(sum(float(t.double().abs().sum()) for t in state.values()))
    assert len(shapes[1]) < len(shapes[0])
    assert shapes[2] == shapes[1]
    assert sums[2] != sums[1]
    assert all(np.isfinite(sums))

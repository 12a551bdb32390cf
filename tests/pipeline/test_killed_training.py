"""A training stage killed again and again ends in the bits of one that was never disturbed, within the plan's room on disk."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import compress
from compress.events import Event
from compress.execution.execute import execute
from compress.store.cache import Cache
from tests.tiny import tiny_diffusion, tiny_llama

KILLS = int(os.environ.get("PARE_KILLS", "1"))
EACH = 16  # steps for each kill, which comes about the middle of them
STEPS = EACH * KILLS
CHAINS = {
    "text_to_image": [
        {"prune.width": {"ratio": 0.5}},
        {"distill.features": {"steps": STEPS, "prompts": 8, "denoising_steps": 4, "checkpoint_seconds": 0.2}},
    ],
    "few steps": [
        {"distill.steps": {"steps": 2, "updates": STEPS, "batch": 4, "captions": 16, "checkpoint_seconds": 0.2}},
    ],
    "decoder": [
        {"accelerate.steps": {"steps": 2}},
        {"distill.decoder": {"steps": STEPS, "prompts": 4, "pictures": 4, "width": 8, "checkpoint_seconds": 0.05}},
    ],
    "quantized": [
        {"distill.quantized": {"steps": STEPS, "tokens": 16, "group_size": 16, "checkpoint_seconds": 0.01}},
    ],
    "text_generation": [
        {"prune.depth": {"ratio": 0.5}},
        {"distill.logits": {"steps": STEPS, "tokens": 16, "checkpoint_seconds": 0.01}},
    ],
}


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("text_to_image", "few steps", "decoder", "quantized")]


@pytest.fixture(params=[*SLOW, "text_generation"])
def recipe(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    generating = request.param not in ("text_generation", "quantized")
    model = tiny_diffusion(tmp_path) if generating else tiny_llama(tmp_path / "model")
    for name in ("train", "calibration"):
        (tmp_path / f"{name}.txt").write_text("\n\n".join(f"The {i}th {name} value of the array." for i in range(40)))
    data = {"train": "zoo://digits/train"} if generating else {"train": "train.txt", "calibration": "calibration.txt"}
    body = {"schema": 1, "name": "killed", "model": str(model), "data": data, "stages": CHAINS[request.param]}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(body))
    return tmp_path / "recipe.yaml"


def used(folder: Path) -> int:
    """Bytes on disk below a folder; hard links count once, what vanishes meanwhile not at all."""
    sizes: dict[int, int] = {}
    for file in folder.rglob("*"):
        try:
            stat = file.lstat()
        except FileNotFoundError:
            continue
        sizes[stat.st_ino] = stat.st_blocks * 512
    return sum(sizes.values())


def train_until_killed(recipe: Path, cache: Path, steps: int) -> int:
    """Run until `steps` more steps are made, then `kill -9`. Returns the most bytes the cache took."""
    events, most = recipe.parent / "out" / "events.jsonl", 0
    seen = events.read_text().count(" training") if events.exists() else 0
    command = [
        sys.executable,
        "-m",
        "compress.cli",
        "run",
        str(recipe),
        "--cache",
        str(cache),
        "--out",
        str(events.parent),
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and (not events.exists() or events.read_text().count(" training") < seen + steps):
            most = max(most, used(cache))
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    return most


def test_killed_inside_training_it_resumes_to_the_same_digests(recipe: Path, tmp_path: Path) -> None:
    planned = compress.plan(recipe, cache=tmp_path / "killed")
    drawn = random.Random(0)
    most = 0
    for _ in range(KILLS):
        most = max(most, train_until_killed(recipe, tmp_path / "killed", drawn.randint(EACH // 2, 2 * EACH // 3)))
    done, recorded = {}, list[Event]()
    for name in ("killed", "undisturbed"):
        store = Cache(tmp_path / name)
        done[name] = execute(compress.plan(recipe, cache=store.root), store, recorded.append)
    assert [d.artifact.digest for d in done["killed"]] == [d.artifact.digest for d in done["undisturbed"]]
    facts = done["killed"][-1].facts
    assert any(facts.get(name) for name in ("loss", "unet loss", "vae loss"))
    assert any("training goes on at step" in event.message for event in recorded)
    assert 0 < most <= planned.disk_bytes

"""Recipes on pipelines that are given images, through the whole house: planned, run, measured, shown; and what a plan refuses of them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

import compress
from compress.errors import RecipeError
from compress.events import Event
from tests.editors import SIDE, edits, tiny_editor

KINDS = {
    "image_to_image": "StableDiffusionImg2ImgPipeline",
    "inpainting": "StableDiffusionInpaintPipeline",
    "instruction_editing": "StableDiffusionInstructPix2PixPipeline",
}
SETTINGS: dict[str, dict[str, Any]] = {
    "image_to_image": {"strength": 0.5},
    "inpainting": {"strength": 1.0, "padding_mask_crop": 2},
    "instruction_editing": {"image_guidance": 2.0},
}
CAPTIONS = "captions.jsonl"
METRICS = {
    "image_to_image": ["input_lpips", "kid", "latency"],
    "inpainting": ["unmasked_psnr", "masked_lpips", "lpips", "latency"],
    "instruction_editing": ["directional_similarity", "clip_score", "latency"],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    for task, kind in KINDS.items():
        tiny_editor(folder / task, kind)
    for shade, name in enumerate(("train", "held-out")):
        edits(folder / name, masks=True, shade=shade)
    return folder


def recipe(place: Path, task: str, name: str = "recipe", **changes: Any) -> Path:
    body = {
        "schema": 1,
        "name": "edits",
        "model": f"./{task}/editor",
        "data": {"evaluate": "./held-out", "calibration": "./train", "train": "./train"},
        "stages": [{"accelerate.steps": {"steps": 4}}],
        "evaluate": {
            "baseline": {"steps": 8, **SETTINGS[task]},
            "samples": 8,
            "stage_samples": 0,
            "timing_blocks": 5,
            "metrics": METRICS[task],
        },
    }
    file = place / f"{task}-{name}.yaml"
    file.write_text(yaml.safe_dump({**body, **changes}, sort_keys=False))
    return file


@pytest.fixture(scope="module", params=KINDS)
def run(request: pytest.FixtureRequest, place: Path) -> tuple[str, Any]:
    task = request.param
    return task, compress.run(recipe(place, task), cache=place / "cache", out=place / f"out-{task}")


def test_a_run_measures_and_shows_what_was_given(run: tuple[str, Any], place: Path) -> None:
    task, found = run
    assert found.task == task
    assert [row.metric for row in found.rows] == METRICS[task]
    work = next(row for row in found.rows if row.metric == "latency").protocol["work"]
    assert work == 8 * (0.5 if task == "image_to_image" else 1)
    assert set(found.images[0].given) == ({"input", "mask"} if task == "inpainting" else {"input"})
    assert all(one.shape == (SIDE, SIDE, 3) for one in found.images[0].given.values())
    page = (place / f"out-{task}" / "report.html").read_text()
    assert ('alt="mask: ' in page) == (task == "inpainting")
    for name in ("input", "original", "compressed"):
        assert f'alt="{name}: ' in page


def test_what_lies_outside_the_mask_was_kept_on_both_sides(place: Path) -> None:
    found: Any = compress.run(recipe(place, "inpainting"), cache=place / "cache", out=place / "again")
    kept, inside, whole = (next(r for r in found.rows if r.metric == name) for name in METRICS["inpainting"][:3])
    assert kept.baseline.value == kept.candidate.value == pytest.approx(58.9, abs=0.1)
    assert inside.candidate.value == whole.candidate.value > 0


def test_the_lines_of_the_summary_make_an_image(run: tuple[str, Any], place: Path, tmp_path: Path) -> None:
    task, found = run
    Image.open(place / "held-out" / "0-input.png").save(tmp_path / "input.png")
    Image.open(place / "held-out" / "0-mask.png").save(tmp_path / "mask.png")
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(found.handed.code)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "image.png").size == (SIDE, SIDE)
    assert ("mask.png" in "".join(found.handed.code)) == (task == "inpainting")


@pytest.mark.parametrize(
    ("task", "change", "message", "fix"),
    [
        (
            "inpainting",
            {"evaluate.baseline.strength": 0.05},
            "strength 0.05 leaves none of 8 steps",
            "a greater strength",
        ),
        ("inpainting", {"evaluate.baseline.image_guidance": 2}, "is a setting of instruction_editing", "remove it"),
        ("image_to_image", {"evaluate.baseline.padding_mask_crop": 2}, "is a setting of inpainting", "remove it"),
        ("image_to_image", {"evaluate.metrics": ["unmasked_psnr"]}, "unmasked_psnr measures inpainting", "remove it"),
        (
            "image_to_image",
            {"stages": [{"accelerate.call": {}}, {"accelerate.guidance_interval": {}}]},
            "the lean call goes through its steps by itself",
            "leave one of the two out",
        ),
        (
            "image_to_image",
            {"data.evaluate": "zoo://digits/test"},
            "holds images with captions",
            "named in metadata.jsonl",
        ),
        ("inpainting", {"data.train": CAPTIONS}, "holds texts", "named in metadata.jsonl"),
        (
            "image_to_image",
            {"stages": [{"accelerate.steps": {"steps": 1}}]},
            "strength 0.5 leaves none of 1",
            "more steps",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_when_planned(
    place: Path, task: str, change: dict[str, Any], message: str, fix: str
) -> None:
    (place / CAPTIONS).write_text(json.dumps({"text": "a red three"}))
    (checked,) = compress.check(recipe(place, task, "refused"), cache=place / "cache")
    change = {name: str(place / CAPTIONS) if value == CAPTIONS else value for name, value in change.items()}
    with pytest.raises(RecipeError) as caught:
        compress.plan(checked.with_(change), cache=place / "cache")
    problem = caught.value.problems[0]
    assert message in problem.message
    assert fix in problem.fix


def test_a_setting_that_a_class_does_not_take_is_refused(tmp_path: Path) -> None:
    tiny_editor(tmp_path, "FluxKontextPipeline")
    edits(tmp_path / "held-out")
    (tmp_path / "r.yaml").write_text(
        "schema: 1\nname: x\nmodel: ./editor\ndata: {evaluate: ./held-out}\n"
        "evaluate: {metrics: [latency], baseline: {image_guidance: 2}}\n"
    )
    with pytest.raises(RecipeError, match="FluxKontextPipeline takes no image_guidance_scale"):
        compress.plan(tmp_path / "r.yaml", cache=tmp_path / "cache")


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("StableDiffusionInpaintPipeline", {"in_channels": 8}, "takes 8 channels"),
        ("StableDiffusionInstructPix2PixPipeline", {"in_channels": 4}, "takes 4 channels"),
        ("StableDiffusionImg2ImgPipeline", {"in_channels": 9}, "takes 9 channels"),
        ("StableDiffusionXLInpaintPipeline", {"cross_attention_dim": 80}, "reads texts 80 wide"),
    ],
)
def test_parts_that_do_not_fit_the_class_are_refused(
    kind: str, fields: dict[str, int], message: str, tmp_path: Path
) -> None:
    folder = tiny_editor(tmp_path, kind)
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **fields}))
    (tmp_path / "r.yaml").write_text("schema: 1\nname: x\nmodel: ./editor\n")
    with pytest.raises(RecipeError, match=message):
        compress.plan(tmp_path / "r.yaml", cache=tmp_path / "cache")


def test_a_damaged_input_is_reported_before_anything_runs(place: Path, tmp_path: Path) -> None:
    edits(tmp_path / "held-out", masks=True)
    file = tmp_path / "held-out" / "2-input.png"
    file.write_bytes(file.read_bytes()[:60])
    events: list[Event] = []
    damaged = recipe(place, "image_to_image", "damaged", data={"evaluate": str(tmp_path / "held-out")})
    with pytest.raises(compress.PareError, match=re.escape("is no image that reads")):
        compress.run(damaged, cache=tmp_path / "cache", out=tmp_path / "out", emit=events.append)
    assert not [event for event in events if event.kind == "started"]

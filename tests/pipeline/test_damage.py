"""Damage of many kinds, done to the zoo's own models and images: each is caught by the row that is meant to catch it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import compress
from compress.artifact import write_manifest
from compress.catalogue import find_metric
from compress.errors import DataError
from compress.events import silent
from compress.model.describing import describe
from compress.recipe.gates import Gate
from compress.recipe.values import BaselineSpec, EvalSpec
from compress.sources.data import open_data
from compress.zoo import zoo_model
from evaluation.comparison import Comparison, Row
from evaluation.comparison.rows import row_of
from evaluation.evidence import Evidence
from evaluation.features.opening import open_features
from evaluation.observe.timing import Interleaved, time_pair

SCENES, WORDS = "zoo://digits/test", "zoo://docstrings/test"
IMAGES = EvalSpec(samples=64, baseline=BaselineSpec(steps=4, guidance=1.0))  # without guidance: half the work
# Of the image quickstart, and one on the model's own output.
GATES = {
    "clip_score": Gate(within="1%"),
    "kid": Gate(worse_by=0.002),
    "inks_right": Gate(worse_by=0.02),
    "lpips": Gate(at_most=0.0005),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damage")


def nonfinite(place: Path, name: str, spoil: Callable[[Path], None], model: str = "digits-diffusion") -> Path:
    folder = place / name
    shutil.copytree(zoo_model(model), folder)
    spoil(folder)
    return folder


def compared(place: Path, candidate: Path, baseline: str | Path, **more: Any) -> Comparison:
    options: dict[str, Any] = {"data": SCENES, "spec": IMAGES, "metrics": list(GATES), "gates": GATES, **more}
    return compress.evaluate(candidate, baseline, cache=place / "cache", out=place / f"out {candidate.name}", **options)


def rows(found: Comparison) -> dict[str, Row]:
    return {row.metric: row for row in found.rows}


def statuses(found: Comparison) -> dict[str, str]:
    return {row.metric: row.verdict.status for row in found.rows}


# ---------------------------------------------------------------- a model whose weights or settings were hurt


def two_per_cent(folder: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    for file in (folder / "unet").glob("*.safetensors"):
        whole = {k: v.float() for k, v in load_file(file).items()}
        noisy = {
            k: v + 0.02 * v.std() * torch.randn(v.shape, generator=draw) if v.dim() > 1 else v for k, v in whole.items()
        }
        save_file(noisy, file, metadata={"format": "pt"})


def other_noise_schedule(folder: Path) -> None:
    file = folder / "scheduler" / "scheduler_config.json"
    config = json.loads(file.read_text())
    assert config["beta_schedule"] != "linear"
    file.write_text(json.dumps({**config, "beta_schedule": "linear"}))


@pytest.fixture(scope="module")
def noisy(place: Path) -> Comparison:
    return compared(place, nonfinite(place, "noisy", two_per_cent), "zoo://digits-diffusion")


def test_two_per_cent_of_noise_on_the_weights_is_seen_by_the_models_own_output_alone(noisy: Comparison) -> None:
    """No score of the task moves, on 64 prompts nor on thousands; pixel by pixel it is another model."""
    found = rows(noisy)
    assert found["lpips"].verdict.status == "fail"
    assert found["clip_score"].verdict.status == "pass"
    assert noisy.exit_code == 1


def test_what_64_prompts_cannot_decide_is_left_open_and_never_passed(noisy: Comparison) -> None:
    undecided = rows(noisy)["inks_right"]
    assert undecided.verdict.status == "inconclusive"
    assert undecided.verdict.n_needed > 64


def test_another_noise_schedule_costs_what_is_read_and_message(place: Path) -> None:
    found = compared(place, nonfinite(place, "scheduler", other_noise_schedule), "zoo://digits-diffusion")
    assert statuses(found)["lpips"] == statuses(found)["clip_score"] == statuses(found)["inks_right"] == "fail"
    assert {w.metric for w in found.worst} >= {"lpips", "clip_score"}  # and the reader is shown on which prompts
    assert [p.why for p in found.images].count("") == 6
    assert any(p.why for p in found.images)


# ---------------------------------------------------------------- images that some model generated


@pytest.fixture(scope="module")
def scenes() -> list[tuple[str, str, np.ndarray]]:
    """Id, caption and image of 128 real scenes."""
    data = open_data(SCENES, Path())
    return [(i.id, i.text, i.image()) for i in data.first(128) if i.image]


def generate(folder: Path, named: list[tuple[str, np.ndarray]]) -> Path:
    for name, image in named:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{name}.png")
    return folder


def test_a_model_that_generates_few_of_the_scenes_keeps_its_precision_and_loses_its_recall(
    place: Path, scenes: list[tuple[str, str, np.ndarray]]
) -> None:
    """Each image is good; only threes on white paper are left."""
    draw = np.random.default_rng(0)
    few = [image for _, _, image in scenes[:4]]
    jittered = [
        np.clip(few[i % 4].astype(int) + draw.integers(-4, 5, few[0].shape), 0, 255) for i in range(len(scenes))
    ]
    collapsed = generate(
        place / "collapsed", [(s[0], p.astype(np.uint8)) for s, p in zip(scenes, jittered, strict=True)]
    )
    real = generate(place / "real", [(name, image) for name, _, image in scenes])
    gates = {"kid": Gate(worse_by=0.02), "precision": Gate(worse_by=0.1), "recall": Gate(worse_by=0.1)}
    found = compared(place, collapsed, real, metrics=list(gates), gates=gates, data="", spec=EvalSpec(samples=128))
    assert statuses(found) == {"kid": "fail", "precision": "pass", "recall": "fail"}
    assert rows(found)["recall"].candidate.value < 0.2


def test_a_model_made_for_the_judge_raises_its_clip_score_and_breaks_its_kid(
    place: Path, scenes: list[tuple[str, str, np.ndarray]]
) -> None:
    """Images pushed up the gradient of the CLIP score: a gate that only looks down would approve them."""
    clip: Any = open_features("zoo://digits-clip")
    hacked = []
    for start in range(0, len(scenes), 32):
        some = scenes[start : start + 32]
        pushed = _pushed(clip, np.stack([s[2] for s in some]), [s[1] for s in some])
        hacked += [(s[0], p) for s, p in zip(some, pushed, strict=True)]
    candidate = generate(place / "hacked", hacked)
    real = generate(place / "honest", [(name, image) for name, _, image in scenes])
    gates = {"clip_score": Gate(within="1%"), "kid": Gate(worse_by=0.002)}
    found = compared(place, candidate, real, metrics=list(gates), gates=gates, spec=EvalSpec(samples=128))
    contrast = rows(found)["clip_score"].contrast
    assert contrast.low > 0
    assert statuses(found) == {"clip_score": "fail", "kid": "fail"}


def _pushed(clip: Any, images: np.ndarray, captions: list[str], steps: int = 15) -> np.ndarray:
    """uint8 [n, h, w, 3] after gradient ascent on the cosine of image and caption, each at its best step."""
    seen = json.loads((zoo_model("digits-clip") / "preprocessor_config.json").read_text())
    mean, std = (torch.tensor(seen[key]).view(1, 3, 1, 1) for key in ("image_mean", "image_std"))
    message = torch.tensor(clip.captions(captions)).float()
    pixels = torch.tensor(images).permute(0, 3, 1, 2).float().div(255).requires_grad_()
    ascent = torch.optim.Adam([pixels], lr=0.004)
    best, kept = torch.full((len(images),), -1.0), pixels.detach().clone()
    for _ in range(steps):
        shown = clip.model.get_image_features(pixel_values=(pixels - mean) / std)
        cosines = (torch.nn.functional.normalize(getattr(shown, "pooler_output", shown), dim=-1) * message).sum(dim=1)
        better = cosines.detach() > best
        best[better], kept[better] = cosines.detach()[better], pixels.detach()[better]
        (pixels.grad,) = torch.autograd.grad(-cosines.sum(), pixels)
        ascent.step()
        with torch.no_grad():
            pixels.clamp_(0, 1)
    return (kept * 255).round().byte().permute(0, 2, 3, 1).numpy()


def test_black_images_are_an_error_and_no_score(place: Path, scenes: list[tuple[str, str, np.ndarray]]) -> None:
    named = [(name, image) for name, _, image in scenes[:8]]
    black = generate(place / "black", [*named[:5], *((name, np.zeros_like(image)) for name, image in named[5:])])
    with pytest.raises(DataError, match="constant image") as caught:
        compared(place, black, generate(place / "lit", named), metrics=["kid"], gates={}, data="")
    assert caught.value.exit_code == 2
    assert caught.value.problems[0].place.endswith(f"{named[5][0]}.png")


# ---------------------------------------------------------------- answers that got shorter


def test_a_model_that_writes_a_fifth_less_is_caught_by_the_tokens_it_writes(place: Path) -> None:
    """As when a fine-tuned model learns to stop early: faster in samples, and not in tokens."""
    short = describe(zoo_model("docs-llama")).calling(exponential_decay_length_penalty=(16, 1.15))
    folder = place / "short"
    shutil.copytree(short.path, folder)
    write_manifest(replace(short, path=folder))
    gates = {"tokens_written": Gate(within="10%"), "perplexity": Gate(worse_by="1%")}
    spec = EvalSpec(samples=8, continuations=8, prompt_tokens=24, new_tokens=40)
    found = compared(place, folder, "zoo://docs-llama", metrics=list(gates), gates=gates, data=WORDS, spec=spec)
    assert statuses(found) == {"tokens_written": "fail", "perplexity": "pass"}
    row = rows(found)["tokens_written"]
    assert row.candidate.value < 0.8 * row.baseline.value


# ---------------------------------------------------------------- speed


@pytest.fixture(autouse=True)
def nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """What others take of the machine meanwhile is none of what these are about."""
    monkeypatch.setattr("evaluation.observe.contention.share_of_others", lambda *readings: None)


def timed(baseline: Callable[[int], float], candidate: Callable[[int], float], blocks: int = 40) -> Interleaved:
    """Two sides timed as models are, their n-th call taking as many seconds as the functions say."""

    def runs(seconds: Callable[[int], float]) -> Callable[[], tuple[float, float]]:
        calls = iter(range(10_000))
        return lambda: (seconds(next(calls)), 0.0)

    return time_pair(runs(baseline), runs(candidate), (6, 6), 1, blocks, 0, silent)


def judged(found: Interleaved, gate: Gate) -> Row:
    metric = find_metric("latency")
    artifact = describe(zoo_model("docs-llama"))
    sides = [
        metric.measure(Evidence(artifact, timings=t), metric.params())
        for t in (found.baseline, found.candidate, found.again)
    ]
    noise = replace(metric.contrast(sides[2], sides[0]), note=found.unsettled)
    return row_of(metric, (sides[0], sides[1]), {}, gate, noise)


def noise(seed: int, ms: float) -> Callable[[int], float]:
    draw = np.random.default_rng(seed)
    return lambda call: ms / 1000 * float(np.exp(draw.normal(0, 0.01)))


@pytest.mark.alone
def test_a_candidate_that_is_a_twentieth_slower_fails_a_gate_of_two_per_cent() -> None:
    row = judged(timed(noise(0, 20.0), noise(1, 21.0)), Gate(worse_by="2%"))
    assert row.verdict.status == "fail"
    assert row.contrast.value == pytest.approx(1 / 1.05, rel=0.01)
    assert judged(timed(noise(0, 20.0), noise(1, 20.0)), Gate(worse_by="2%")).verdict.status == "pass"


@pytest.mark.alone
def test_a_baseline_that_was_never_warmed_up_proves_no_speedup() -> None:
    steady = noise(2, 20.0)

    def cold(call: int) -> float:
        return steady(call) * (3.0 if call < 30 else 1.0)

    same = judged(timed(cold, noise(3, 20.0)), Gate(speedup=1.05))
    assert same.contrast.high > 2  # so it would seem in some blocks
    assert same.verdict.status == "inconclusive"
    faster = judged(timed(cold, noise(3, 15.0)), Gate(speedup=1.05))
    assert faster.contrast.low > 1.3  # and even what the later blocks show is not taken from such a run
    assert faster.verdict.status == "inconclusive"
    assert "the baseline's first" in faster.verdict.why
    warm = judged(timed(noise(2, 20.0), noise(3, 15.0)), Gate(speedup=1.05))
    assert warm.verdict.status == "pass"

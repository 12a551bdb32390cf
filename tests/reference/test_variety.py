"""Variety: a plain loop over pairs, its laws, and a sampler that generates every noise alike."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

import compress
from compress.catalogue import find_metric
from compress.data.items import Item
from compress.errors import RecipeError, UserError
from compress.machine.devices import AS_STORED
from compress.model.describing import describe
from compress.opening import text_to_image
from compress.recipe.gates import Gate
from compress.recipe.values import EvalSpec, Recipe
from compress.sources.data import open_data
from evaluation.comparison.rows import row_of
from evaluation.comparison.sides import Request, viewpoints
from evaluation.evidence import Evidence
from evaluation.metrics.variety import Variety, apart
from evaluation.observe.collect import collect
from evaluation.observe.repeats import EACH, measured, repeated
from evaluation.values import Sample
from tests.fakes import SIDE, pipeline
from tests.tiny import tiny_diffusion

Rows = NDArray[np.float64]
METRIC = find_metric("variety")
SEEDS = st.integers(0, 2**32 - 1)


def drawn(seed: int, count: int = 5, wide: int = 7) -> Rows:
    return np.random.default_rng(seed).standard_normal((count, wide))


def looped(rows: Rows) -> float:
    """1 − cosine of every pair, one after the other."""
    found = [1 - u @ v / np.sqrt((u @ u) * (v @ v)) for u, v in itertools.combinations(rows, 2)]
    return float(sum(found) / len(found))


@given(SEEDS, st.integers(2, 9), st.integers(1, 9))
def test_it_is_the_mean_over_all_pairs(seed: int, count: int, wide: int) -> None:
    rows = drawn(seed, count, wide)
    assert apart(rows) == pytest.approx(looped(rows), abs=1e-12)
    assert 0 <= apart(rows) <= 2 + 1e-12


@given(SEEDS, st.integers(2, 9))
def test_copies_have_none_and_order_and_brightness_change_nothing(seed: int, count: int) -> None:
    rows = drawn(seed, count)
    assert apart(np.repeat(rows[:1], count, axis=0)) == pytest.approx(0, abs=1e-15)
    shuffled = np.random.default_rng(seed).permutation(rows)
    stretched = rows * np.random.default_rng(seed).uniform(0.1, 9, (count, 1))  # a cosine knows directions alone
    assert apart(shuffled) == pytest.approx(apart(rows), abs=1e-12)
    assert apart(stretched) == pytest.approx(apart(rows), abs=1e-12)
    assert apart(rows[:2] * [[1], [-1]]) == pytest.approx(2 - apart(rows[:2]))


@given(SEEDS, st.floats(0.05, 0.95))
def test_images_that_are_drawn_together_vary_with_the_square_of_how_far(seed: int, share: float) -> None:
    """About one direction: features that stray half as far differ a quarter as much."""
    strayed = drawn(seed) * 1e-4
    one, other = (apart(np.ones(7) + scale * strayed) for scale in (1, share))
    assert other == pytest.approx(share**2 * one, rel=2e-3)


def test_more_images_of_a_prompt_say_the_same_number() -> None:
    rows = drawn(0, 4000, 3) + np.array([2.0, 0.0, 0.0])
    few = np.mean([apart(rows[i : i + 2]) for i in range(0, 4000, 2)])
    assert few == pytest.approx(apart(rows), rel=0.05)


def test_no_direction_is_half_as_far_as_can_be_from_any() -> None:
    assert apart(np.zeros((3, 4))) == 0
    assert apart(np.array([[0.0, 0], [1, 0]])) == 0.5


def side(images: NDArray[np.uint8], captions: list[str], each: int = 1) -> Evidence:
    items = repeated([Item(f"{i}", text) for i, text in enumerate(captions)], each)
    return replace(SIDE, items=items, image=lambda i: images[i], each=each)


def noise(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def test_images_of_a_prompt_are_found_by_their_caption() -> None:
    images, captions = noise(6), ["a", "b", "a", "c", "b", "a"]
    found = METRIC.measure(side(images, captions), Variety())
    assert found.unit_ids == ("0", "1")
    assert found.left_out == "1 of 3 prompts have one image, and so no variety"
    alone = METRIC.measure(side(images[[0, 2, 5]], ["a"] * 3), Variety())
    assert found.values[0] == pytest.approx(alone.values[0], abs=1e-5)
    assert METRIC.score(found).n == 2


def test_several_noises_of_a_prompt_and_several_items_of_it_are_the_same_to_it() -> None:
    images = noise(8)
    found = measured(METRIC, side(images, ["a", "b", "a", "b"], each=2), Variety())
    assert found.unit_ids == ("0", "1")
    assert found.protocol[EACH] == 2
    once = METRIC.measure(side(images, list("aabbaabb")), Variety())
    assert found.values == pytest.approx(once.values, abs=1e-5)
    assert EACH not in once.protocol


def test_copies_of_images_have_no_variety_whatever_batch_they_are_in() -> None:
    copies = np.repeat(noise(1), 40, axis=0)
    assert METRIC.measure(side(copies, ["a"] * 40), Variety()).values == pytest.approx([0], abs=1e-9)


def test_images_without_captions_or_alone_are_refused() -> None:
    with pytest.raises(UserError, match="variety needs a caption for each image"):
        METRIC.measure(side(noise(2), ["", ""]), Variety())
    with pytest.raises(UserError, match="each prompt has one"):
        METRIC.measure(side(noise(2), ["a", "b"]), Variety())


def test_a_share_of_the_variety_is_gated_prompt_by_prompt() -> None:
    draw = np.random.default_rng(0)
    before = Sample(tuple(map(str, range(60))), draw.uniform(0.01, 0.05, 60))
    less = replace(before, values=before.values * draw.normal(0.85, 0.02, 60))
    more = replace(before, values=before.values * draw.normal(1.15, 0.02, 60))
    for gate, lost, won in ((Gate(within="10%"), "fail", "fail"), (Gate(worse_by="10%"), "fail", "pass")):
        rows = [row_of(METRIC, (before, after), {}, gate) for after in (before, less, more)]
        assert [row.verdict.status for row in rows] == ["pass", lost, won]
        assert (rows[0].compared, rows[0].unit, rows[0].contrast.n) == ("difference", "", 60)
    paired = row_of(METRIC, (before, less), {}, None).contrast
    assert paired.high - paired.low < 0.002  # prompts differ five times as much as any one changed


RECIPE = """schema: 1
name: r
model: ./model
data: {{evaluate: {data}}}
evaluate:
  samples: 3
  images_per_prompt: {each}
  metrics:
    - variety
gates:
  variety: {{worse_by: 10%}}
"""


@pytest.fixture
def planned(tmp_path: Path) -> Path:
    pipeline(tmp_path / "model", unet=(2, 3), vae=(2, 3))
    (tmp_path / "real").mkdir()
    for index, image in enumerate(noise(3)):
        Image.fromarray(image).save(tmp_path / "real" / f"{index}.png")
    return tmp_path


def check(folder: Path, captions: str, each: int, data: str = "./real") -> tuple[Recipe, ...]:
    rows = [{"file_name": f"{i}.png", "text": text} for i, text in enumerate(captions)]
    (folder / "real" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "r.yaml").write_text(RECIPE.format(data=data, each=each))
    return compress.check(folder / "r.yaml", cache=folder / "cache")


@pytest.mark.parametrize(("captions", "each"), [("aba", 1), ("abc", 2)])
def test_a_plan_takes_prompts_with_several_images(captions: str, each: int, planned: Path) -> None:
    (found,) = check(planned, captions, each)
    assert [*found.evaluate.metrics] == ["variety"]


@pytest.mark.parametrize(("captions", "data"), [("abc", "./real"), ("abb", "zoo://digits/test")])
def test_a_plan_refuses_one_image_a_prompt(captions: str, data: str, planned: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        check(planned, captions, 1, data)
    (problem,) = caught.value.problems
    assert problem.message == "variety looks at several images of a prompt, and each prompt has one"
    assert problem.place.startswith(f"{planned}/r.yaml:9:")
    assert "evaluate.images_per_prompt to 4" in problem.fix


def test_a_sampler_that_generates_every_noise_alike_is_caught(tmp_path: Path) -> None:
    """The candidate gives all images of a prompt one noise; nothing else of it differs."""
    artifact = replace(describe(tiny_diffusion(tmp_path / "sd")), digest="d")
    spec = EvalSpec(samples=8, images_per_prompt=3, baseline={"steps": 1}, metrics={"variety": {}})
    request = Request("x", artifact, artifact, open_data("zoo://digits/test", Path()), spec, {}, "", (), tmp_path, ())
    view = replace(viewpoints(request)[0], opening=AS_STORED)
    of_noise = text_to_image.noise_source
    with mock.patch.object(text_to_image, "noise_source", lambda seed, name: of_noise(seed, name.split("#")[0])):
        collapsed = collect(view, (tmp_path / "collapsed" / "evidence",), "side", lambda event: None)
    sound = collect(view, (tmp_path / "sound" / "evidence",), "side", lambda event: None)
    samples = [measured(METRIC, found, Variety()) for found in (sound, collapsed)]
    assert samples[1].values == pytest.approx(np.zeros(8), abs=1e-9)
    assert (samples[0].values > 1e-6).all()
    for gate in (Gate(worse_by="10%"), Gate(within="10%")):
        assert row_of(METRIC, (samples[0], samples[1]), {}, gate).verdict.status == "fail"

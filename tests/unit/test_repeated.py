"""Several images a prompt: the prompt stays the unit, its first image is the one that it has alone, and copies change nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.artifact import Artifact
from compress.catalogue import find_metric
from compress.data.items import Item
from compress.machine.devices import AS_STORED
from compress.model.describing import describe
from compress.planning.engine_checks import _sizes
from compress.recipe.values import EvalSpec
from compress.sources.data import open_data
from evaluation.comparison.sides import Request, viewpoints
from evaluation.evidence import Evidence
from evaluation.observe.collect import Viewpoint, collect
from evaluation.observe.repeats import EACH, measured, noises, repeated, units_of
from evaluation.values import Sample
from tests.tiny import tiny_diffusion

SETS = ("kid", "cmmd", "fid", "fid_infinity", "precision", "recall")
PROMPTS, FEATURES = 48, 3
ITEMS = tuple(Item(f"{i}.png", f"caption {i}") for i in range(PROMPTS))


def drawn(seed: int, each: int, spread: float = 0.0) -> Sample:
    """Features of images, `each` of a prompt with `spread` between them, and of the items' real ones."""
    draw = np.random.default_rng(seed)
    prompts, real = draw.standard_normal((2, PROMPTS, FEATURES))
    generated = np.repeat(prompts + 0.3, each, axis=0) + spread * draw.standard_normal((PROMPTS * each, FEATURES))
    protocol: dict[str, Any] = {"paired": "by item"} | ({EACH: each} if each > 1 else {})
    return Sample(tuple(i.id for i in ITEMS), generated, np.repeat(real, each, axis=0), protocol=protocol)


@pytest.mark.parametrize("name", SETS)
def test_copies_of_each_image_change_no_number_no_interval_and_no_n(name: str) -> None:
    metric, one, two = find_metric(name), [drawn(s, 1) for s in (0, 1)], [drawn(s, 3) for s in (0, 1)]
    for found, copied in ((metric.score(one[0]), metric.score(two[0])), (metric.contrast(*one), metric.contrast(*two))):
        assert (copied.value, copied.low, copied.high) == pytest.approx((found.value, found.low, found.high))
        assert copied.n == found.n == PROMPTS
    assert metric.statistic.units(two[0]).shape[:1] == (PROMPTS,) or name not in ("precision", "recall")


@pytest.mark.parametrize("name", SETS)
def test_more_noises_say_more_of_the_same_number(name: str) -> None:
    metric, one = find_metric(name), drawn(0, 4, spread=1.0)
    each = [metric.score(part) for part in noises(one)]
    found = metric.score(one)
    assert found.value == pytest.approx(np.mean([part.value for part in each]))
    assert found.high - found.low <= max(part.high - part.low for part in each)


def test_a_noise_is_one_image_of_each_prompt() -> None:
    sample = drawn(0, 3)
    assert units_of(sample) == PROMPTS
    assert [part.values.tolist() for part in noises(sample)] == [sample.values[j::3].tolist() for j in range(3)]
    assert all(EACH not in part.protocol for part in noises(sample))
    apart = replace(sample, reference=np.zeros((5, FEATURES)), protocol={**sample.protocol, "paired": "no"})
    assert [len(part.reference) for part in noises(apart) if part.reference is not None] == [5, 5, 5]
    assert noises(drawn(0, 1))[0].values.shape == (PROMPTS, FEATURES)


def observed(each: int, score: Callable[[int], float]) -> Any:
    """A side whose images have these scores, and a metric that tells them."""
    evidence = Evidence(Artifact(Path(), "text_to_image", {}), repeated(ITEMS[:4], each), each=each)
    metric = find_metric("psnr")
    reported = replace(
        metric, measure=lambda side, params: Sample(side.unit_ids, np.array([score(i) for i in range(len(side.items))]))
    )
    return evidence, measured(reported, evidence, metric.params())


def test_a_score_of_each_image_becomes_one_of_each_prompt() -> None:
    evidence, found = observed(2, float)
    assert found.unit_ids == evidence.unit_ids == tuple(item.id for item in ITEMS[:4])
    assert found.values.tolist() == [0.5, 2.5, 4.5, 6.5]
    assert found.protocol[EACH] == 2
    _, alone = observed(1, float)
    assert alone.values.tolist() == [0, 1, 2, 3]
    assert EACH not in alone.protocol
    assert len(evidence.first(3).items) == 6
    assert evidence.first(3).protocol["samples"] == 3


def test_the_first_image_of_a_prompt_is_the_one_it_has_alone() -> None:
    found = repeated(ITEMS[:2], 3)
    assert [item.id for item in found] == ["0.png", "0.png#2", "0.png#3", "1.png", "1.png#2", "1.png#3"]
    assert repeated(ITEMS, 1) == ITEMS


def test_no_two_prompts_share_a_noise_whatever_they_are_called() -> None:
    found = [item.id for item in repeated([Item(id, id) for id in ("a", "a#2", "b#2")], 2)]
    assert found == ["a", "a#2'", "a#2", "a#2#2", "b#2", "b#2#2"]


@given(st.sets(st.text("a#2'", max_size=5), max_size=9), st.integers(1, 4))
def test_each_image_has_a_noise_of_its_own(ids: set[str], each: int) -> None:
    found = repeated([Item(id, "") for id in ids], each)
    assert len({item.id for item in found}) == len(ids) * each
    assert [item.id for item in found[::each]] == list(ids)


@pytest.fixture(scope="module")
def request_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Request]:
    artifact = replace(describe(tiny_diffusion(tmp_path_factory.mktemp("sd"))), digest="d")
    data = open_data("zoo://digits/test", Path())

    def made(each: int) -> Request:
        spec = EvalSpec(samples=3, images_per_prompt=each, baseline={"steps": 1}, metrics={"kid": {}})
        return Request("x", artifact, artifact, data, spec, {}, "", (), Path(), ())

    return made


def view_of(request: Request) -> Viewpoint:
    return replace(viewpoints(request)[0], opening=AS_STORED)


def test_images_are_kept_apart_by_how_many_a_prompt_has(request_of: Callable[[int], Request], tmp_path: Path) -> None:
    one, two = view_of(request_of(1)), view_of(request_of(2))
    assert (one.evidence, two.evidence) == ({"images": ()}, {"images": (2,)})
    six = replace(one, items=two.items)
    assert len({view.key("images") for view in (one, two, six)}) == 3
    found = [collect(view, (tmp_path / "evidence",), "side", lambda event: None) for view in (one, two)]
    assert [side.protocol["samples"] for side in found] == [3, 3]
    assert found[1].unit_ids == found[0].unit_ids
    assert found[0].data_key != found[1].data_key
    alone, both = ([side.images(i, i + 1)[0] for i in range(len(side.items))] for side in found)
    assert all(np.array_equal(one, other) for one, other in zip(alone, both[::2], strict=True))
    assert not any(np.array_equal(one, other) for one, other in zip(alone, both[1::2], strict=True))


def test_calls_count_images(request_of: Callable[[int], Request]) -> None:
    request = request_of(7)
    sizes = _sizes(request.spec, request.baseline)
    assert (sizes["batch"].count, sizes["samples"].count) == (16, 5)  # 21 images

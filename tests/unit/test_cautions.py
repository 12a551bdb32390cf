"""What a plan warns of: data that cannot decide what is asked of them are known from `check`, and once in a run."""

from __future__ import annotations

from pathlib import Path

import pytest

import compress
from compress.data.items import Data, Item
from compress.planning.feature_cautions import foreign_features
from compress.recipe.values import EvalSpec
from compress.tasks import Observable
from evaluation.verdict.gates import FEWEST_UNITS
from tests.fakes import language_model

RECIPE = """schema: 1
name: t
model: ./model
data: {{evaluate: {data}}}
evaluate: {{metrics: [{metrics}], samples: {samples}}}
gates: {gates}
"""
GATE = "{perplexity: {worse_by: 50%}}"


def warned(
    folder: Path, text: str, *, name: str = "d.txt", samples: int = 32, metrics: str = "perplexity", gates: str = GATE
) -> tuple[str, ...]:
    language_model(folder / "model")
    (folder / name).write_text(text)
    message = RECIPE.format(data=name, metrics=metrics, samples=samples, gates=gates)
    (folder / "r.yaml").write_text(message)
    return compress.plan(folder / "r.yaml", cache=folder / "cache").warnings


def documents(count: int) -> str:
    return "\n\n".join(f"document {number}" for number in range(count))


def test_one_document_is_reported_with_what_separates_them(tmp_path: Path) -> None:
    few, open_, hint = warned(tmp_path, "id,text\n0,one\n1,two\n")
    assert few == "samples: 32 are asked for, and the data hold 1"
    assert (
        open_
        == f"gates on perplexity will stay inconclusive: they rest on 1 of at least {FEWEST_UNITS} units; give more"
    )
    assert hint.startswith("d.txt is 1 document: in a text file blank lines separate documents")
    assert ".jsonl" in hint


def test_rows_of_json_need_no_hint(tmp_path: Path) -> None:
    assert len(warned(tmp_path, '{"text": "one"}\n', name="d.jsonl")) == 2


@pytest.mark.parametrize(("count", "samples"), [(FEWEST_UNITS, FEWEST_UNITS), (40, 32), (40, 256), (FEWEST_UNITS, 256)])
def test_enough_is_not_warned_of(count: int, samples: int, tmp_path: Path) -> None:
    assert warned(tmp_path, documents(count), samples=samples) == ()


def test_too_few_samples_of_enough_data_are_reported_where_quality_is_gated(tmp_path: Path) -> None:
    (message,) = warned(tmp_path, documents(40), samples=4)
    assert f"rest on 4 of at least {FEWEST_UNITS}" in message
    assert warned(tmp_path, documents(40), samples=4, gates="{}") == ()
    assert warned(tmp_path, documents(40), samples=4, metrics="size", gates="{size: {smaller: 1}}") == ()


def test_copies_are_reported(tmp_path: Path) -> None:
    (message,) = warned(tmp_path, documents(20) + "\n\n" + documents(20), samples=20)
    assert message == "20 of 40 items of d.txt count: 20 are copies of others"


def captioned(*gives: Observable) -> Data:
    return Data("./mine", "captioned_images", "d", 1, lambda index: Item("0", "a red house"), frozenset(gives))


@pytest.mark.parametrize(
    ("gives", "metrics", "blind"),
    [
        (("captions",), {"kid": {}}, "kid looks"),
        (("captions",), {"kid": {"features": "zoo://digits-clip"}, "clip_score": {}}, "kid, clip_score look "),
        (("captions",), {"kid": {"features": "./clip"}, "latency": {}, "ssim": {}}, ""),
        (("captions", "scenes"), {"kid": {}, "clip_score": {}}, ""),
    ],
)
def test_the_zoos_extractor_is_no_judge_of_other_images(
    gives: tuple[Observable, ...], metrics: dict[str, dict[str, str]], blind: str
) -> None:
    found = list(foreign_features(captioned(*gives), EvalSpec(metrics=metrics)))
    assert len(found) == bool(blind)
    assert all(one.startswith(blind) and "give a folder of a CLIP model as `features`" in one for one in found)

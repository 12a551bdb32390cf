"""A recipe with a mistake in its text is looked at as far as it goes: all that is wrong is reported at once, and nothing that is not."""

from __future__ import annotations

from pathlib import Path

import pytest

import compress
from compress.errors import RecipeError
from tests.fakes import language_model

GOOD = {
    "schema": "1",
    "name": "r",
    "model": "./model",
    "data": "{evaluate: texts.txt}",
    "stages": "[]",
    "evaluate": "{metrics: [size, perplexity]}",
    "gates": "{size: {smaller: 2}}",
}


def reported(place: Path, **changes: str) -> list[str]:
    """What is stated of the recipe, its model and texts there, with some lines changed."""
    if not (place / "model").exists():
        language_model(place / "model")
        (place / "texts.txt").write_text("one\n\ntwo\n")
    (place / "r.yaml").write_text("".join(f"{key}: {value}\n" for key, value in (GOOD | changes).items()))
    with pytest.raises(RecipeError) as caught:
        compress.check(place / "r.yaml", cache=place / "cache")
    return [problem.message for problem in caught.value.problems]


def test_a_value_out_of_range_hides_no_missing_model(tmp_path: Path) -> None:
    found = reported(tmp_path, evaluate="{timing_blocks: 2, metrics: [size]}", model="./nowhere")
    assert len(found) == 2
    assert "nowhere" in found[0]
    assert "timing_blocks" in found[1]


def test_a_wrong_stage_hides_no_missing_data_and_makes_no_further_stage_wrong(tmp_path: Path) -> None:
    stages = "[{build.openvino: {precision: int3}}, {quantize.nncf: {mode: int4_weights}}]"
    found = reported(tmp_path, stages=stages, data="{evaluate: nowhere.txt}")
    assert len(found) == 2
    assert "nowhere.txt" in found[0]
    assert "precision" in found[1]


def test_wrong_data_makes_no_metric_and_no_stage_lack_some(tmp_path: Path) -> None:
    (found,) = reported(tmp_path, data="{evaluat: texts.txt}", stages="[distill.logits: {}]")
    assert "evaluat" in found


@pytest.mark.parametrize(
    ("changes", "mistake"),
    [
        ({"data": "{evaluat: texts.txt}"}, "evaluat"),
        ({"evaluate": "{metrics: [size, perplexty]}"}, "perplexty"),
        ({"evaluate": "{metrics: [size, perplexity], timing_blocks: 2}"}, "timing_blocks"),
    ],
)
def test_mistakes_beside_them_hide_no_gate_that_cannot_be_judged(
    changes: dict[str, str], mistake: str, tmp_path: Path
) -> None:
    found = reported(tmp_path, gates="{size: {within: one}}", **changes)
    assert len(found) == 2
    assert any(message.startswith("gate size: ") for message in found)
    assert any(mistake in message for message in found)


def test_a_metric_of_another_task_is_reported_beside_an_unknown_key(tmp_path: Path) -> None:
    found = reported(tmp_path, evaluate="{metrics: [size, kid]}", seeds="1", gates="{}")
    assert len(found) == 2
    assert "kid measures" in found[0]
    assert "seeds" in found[1]


def test_a_wrong_seed_forgets_nothing_else_of_the_head(tmp_path: Path) -> None:
    language_model(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(
        '{"architectures": ["OwnForCausalLM"], "auto_map": {"AutoModelForCausalLM": "own.OwnForCausalLM"}}'
    )
    (tmp_path / "model" / "own.py").touch()
    (tmp_path / "texts.txt").write_text("one\n\ntwo\n")
    (found,) = reported(tmp_path, seed="many", trust_remote_code="true")
    assert "seed" in found


def test_a_wrong_value_hides_no_missing_adapter_and_no_stage_that_cannot_work(tmp_path: Path) -> None:
    found = reported(
        tmp_path, evaluate="{timing_blocks: 2}", gates="{}", adapter="./nope", stages="[quantize.nncf: {}]"
    )
    assert len(found) == 4  # it lacks its data too
    assert "nope" in " ".join(found)
    assert "quantize.nncf takes openvino" in " ".join(found)


def test_a_stage_behind_one_with_a_mistake_is_left_alone(tmp_path: Path) -> None:
    (found,) = reported(tmp_path, stages="[build.openvino: {precision: int3}, quantize.nncf: {mode: int8_weights}]")
    assert "precision" in found


def test_a_recipe_without_a_name_is_looked_at_too(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("schema: 1\nmodel: ./nowhere\n")
    with pytest.raises(RecipeError) as caught:
        compress.check(tmp_path / "r.yaml", cache=tmp_path / "cache")
    sentence = [problem.message for problem in caught.value.problems]
    assert len(sentence) == 2
    assert any("name" in message for message in sentence)
    assert any("nowhere" in message for message in sentence)


def test_a_model_whose_name_is_wrong_is_not_looked_for(tmp_path: Path) -> None:
    (found,) = reported(tmp_path, model="model")
    assert "neither a zoo model" in found


def test_nothing_is_fetched_for_a_recipe_that_does_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compress.sources.models.fetch_hub", lambda *a, **k: pytest.fail("fetched"))
    (found,) = reported(tmp_path, model="hf://org/name@" + "0" * 40, seed="many")
    assert "seed" in found


def test_a_missing_model_hides_neither_missing_data_nor_an_extractor_that_is_not_there(tmp_path: Path) -> None:
    metrics = "{metrics: [{kid: {features: ./nothing}}]}"
    data = "{evaluate: ./nowhere}"
    found = reported(tmp_path, model="./nowhere", data=data, evaluate=metrics, gates="{}")
    assert [sum(part in message for message in found) for part in ("model folder", "no such data", "kid.features")] == [
        1
    ] * 3

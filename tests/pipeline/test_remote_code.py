"""Python code in a model's own folder runs where a recipe trusts it, and is asked for at plan time where one does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import compress
from compress.cli import main
from compress.errors import RecipeError, UserError
from compress.machine.library_classes import has_class
from compress.model.remote_code import remote_class
from tests.tiny import tiny_llama

CODE = '''
from transformers import LlamaForCausalLM


class HouseForCausalLM(LlamaForCausalLM):
    """A Llama that says who it is."""

    spoken = "at home"
'''
RECIPE = "schema: 1\nname: own\nmodel: ./model\ndata: {evaluate: ./texts.txt}\nevaluate: {metrics: [perplexity], samples: 2}\n"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    folder = tiny_llama(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    named = {"auto_map": {"AutoModelForCausalLM": "modeling_house.HouseForCausalLM"}}
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["HouseForCausalLM"], **named}))
    (folder / "modeling_house.py").write_text(CODE)
    (tmp_path / "texts.txt").write_text("the array of values\n\nthe axis to sort along\n")
    (tmp_path / "r.yaml").write_text(RECIPE)
    return tmp_path


def test_code_that_nobody_trusts_is_asked_for_before_anything_runs(place: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        compress.plan(place / "r.yaml", cache=place / "cache")
    (problem,) = caught.value.problems
    assert problem.place == f"{place / 'r.yaml'}:3:8"
    assert "HouseForCausalLM is the model's own Python code (modeling_house.HouseForCausalLM)" in problem.message
    assert "trust_remote_code: true" in problem.fix


@pytest.mark.parametrize(
    ("named", "says", "fix"),
    [
        ("house/code--modeling_house.HouseForCausalLM", "Python code of another repository", "copy that code"),
        ("modeling_hose.HouseForCausalLM", "no modeling_hose.py in the folder", "put it there"),
    ],
)
def test_code_that_does_not_lie_in_the_folder_is_refused_also_where_it_is_trusted(
    place: Path, named: str, says: str, fix: str
) -> None:
    file = place / "model" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "auto_map": {"AutoModelForCausalLM": named}}))
    with pytest.raises(RecipeError) as caught:
        compress.plan(place / "r.yaml", ["trust_remote_code=true"], cache=place / "cache")
    (problem,) = caught.value.problems
    assert (problem.place, says in problem.message, problem.fix.startswith(fix)) == (
        f"{place / 'r.yaml'}:3:8",
        True,
        True,
    )


@pytest.mark.parametrize("stage", ["build.openvino", "build.onnxruntime", "build.compiled"])
def test_a_class_that_only_the_folder_has_becomes_no_engine(place: Path, stage: str) -> None:
    reported = ["trust_remote_code=true", f"stages=[{stage}]"]
    with pytest.raises(RecipeError, match="HouseForCausalLM is the model's own code"):
        compress.plan(place / "r.yaml", reported, cache=place / "cache")


def test_trusted_code_runs_on_both_sides_and_in_a_stranger(place: Path) -> None:
    found = compress.run(place / "r.yaml", ["trust_remote_code=true"], cache=place / "cache", out=place / "out")
    (row,) = found.rows
    assert row.baseline.value == row.candidate.value > 1
    model = compress.load(place / "model", trust_remote_code=True)
    assert type(model).__name__ == "HouseForCausalLM"
    assert model.spoken == "at home"


def test_eval_and_apply_ask_for_trust_and_take_it(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    asked = ["eval", "./model", "./model", "--metrics", "perplexity", "--data", "./texts.txt", "--samples", "2"]
    asked += ["--cache", "cache", "--out", "out"]
    with pytest.raises(SystemExit) as left:
        main(asked)
    assert left.value.code == 2
    message = capsys.readouterr().err
    assert message.count("HouseForCausalLM is the model's own Python code") == 1
    assert "--trust-remote-code" in message
    with pytest.raises(SystemExit) as left:
        main([*asked, "--trust-remote-code"])
    assert left.value.code == 0
    for trusted, says in (
        (False, "the model's own Python code"),
        (True, "models of the class HouseForCausalLM cannot be cut"),
    ):
        with pytest.raises(RecipeError) as caught:
            compress.apply(
                "prune.depth", "./model", calibration="./texts.txt", trust_remote_code=trusted, cache="cache", ratio=0.5
            )
        assert [says in p.message for p in caught.value.problems].count(True) == 1
        assert any("own Python code" in p.message for p in caught.value.problems) is not trusted


def test_code_that_is_not_trusted_is_never_loaded(place: Path) -> None:
    (place / "model" / "modeling_house.py").write_text("raise SystemExit('this code ran')")
    with pytest.raises(UserError, match="the model's own Python code") as caught:
        compress.load(place / "model")
    assert "trust_remote_code=True in Python" in caught.value.problems[0].fix


def test_a_class_that_neither_transformers_nor_the_folder_has_is_reported(place: Path) -> None:
    config = json.loads((place / "model" / "config.json").read_text())
    del config["auto_map"]
    (place / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(RecipeError, match="has no class HouseForCausalLM, and the model brings none"):
        compress.plan(place / "r.yaml", ["trust_remote_code=true"], cache=place / "cache")


def test_trust_stands_in_keys(place: Path) -> None:
    tiny_llama(place / "model")  # of a class that transformers has
    text = RECIPE + "stages: [build.openvino: {}]\n"
    (place / "r.yaml").write_text(text)
    keys = {
        compress.plan(place / "r.yaml", [f"trust_remote_code={trusted}"], cache=place / "cache").nodes[0].key
        for trusted in ("true", "false")
    }
    assert len(keys) == 2


def test_what_transformers_has_is_reported_without_importing_it() -> None:
    assert has_class("LlamaForCausalLM")
    assert has_class("GPT2LMHeadModel")
    assert not has_class("HouseForCausalLM")
    assert remote_class({"auto_map": {"AutoModelForCausalLM": "a.B"}}) == "a.B"
    assert remote_class({"auto_map": None}) == remote_class({}) == ""

"""One mistake is told once, at its place, with a remedy that can be followed: what reading and planning say, and no run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import compress
from compress.errors import Problem, RecipeError, UserError
from tests.fakes import language_model

TEXT = "schema: 1\nname: t\nmodel: zoo://docs-llama\n"
PICTURES = "schema: 1\nname: t\nmodel: zoo://digits-diffusion\n"


def told(folder: Path, text: str, *sets: str) -> list[Problem]:
    """What is wrong with a recipe that lies in a folder, below which the places start."""
    (folder / "r.yaml").write_text(text)
    with pytest.raises(RecipeError) as caught:
        compress.check(folder / "r.yaml", list(sets), cache=folder / "cache")
    assert all(problem.fix for problem in caught.value.problems)
    return list(caught.value.problems)


def only(found: list[Problem]) -> Problem:
    (problem,) = found
    return problem


@pytest.mark.parametrize("section", ["data", "evaluate"])
def test_a_section_of_nothing_may_be_left_out(tmp_path: Path, section: str) -> None:
    problem = only(told(tmp_path, f"{TEXT}{section}: null\n"))
    assert problem.message == f"{section} must be a mapping, not nothing"
    assert f"leave `{section}:` out" in problem.fix


def test_a_value_of_nothing_may_be_left_out_where_it_has_a_default(tmp_path: Path) -> None:
    seed, name = told(tmp_path, TEXT.replace("name: t", "name: null") + "seed: null\n")
    if "seed" not in seed.message:
        seed, name = name, seed
    assert seed.fix.endswith("; or leave `seed:` out")
    assert "out" not in name.fix.split()


@pytest.mark.parametrize(
    ("metrics", "gates", "count"),
    [
        ("[perplexty]", "{perplexity: {within: 1%}}", 1),
        ("[perplexty]", "{perplexity: {within: 1%}, latency: {faster: 2}}", 2),
        ("[nonsense]", "{perplexity: {within: 1%}}", 2),
        ("[size]", "{perplexity: {within: 1%}}", 1),
    ],
)
def test_a_misspelt_metric_is_told_once_though_it_is_gated(
    tmp_path: Path, metrics: str, gates: str, count: int
) -> None:
    asked = f"{TEXT}data: {{evaluate: zoo://docstrings/test}}\nevaluate: {{metrics: {metrics}}}\ngates: {gates}\n"
    assert len(told(tmp_path, asked)) == count


@pytest.mark.parametrize(
    ("stage", "says", "fix"),
    [
        ("${x}: {}", "`${x}` is a key, and variables stand in values", "write the name itself"),
        ("${}: {}", "`${}` is a key, and variables stand in values", "write the name itself"),
        ('"${}"', "`${}` names no variable", "under `vars:`"),
        ('"${nope}"', "no variable is called `nope`", "`x`"),
    ],
)
def test_a_variable_in_the_name_of_a_stage_is_told_at_its_place(
    tmp_path: Path, stage: str, says: str, fix: str
) -> None:
    problem = only(told(tmp_path, f"{TEXT}vars: {{x: prune.depth}}\nstages:\n  - {stage}\n"))
    assert (problem.place, problem.message) == (f"{tmp_path / 'r.yaml'}:6:5", says)
    assert fix in problem.fix


def test_the_name_of_a_stage_may_be_a_variable(tmp_path: Path) -> None:
    problems = told(tmp_path, f'{TEXT}vars: {{x: quantize.nncf}}\nstages: ["${{x}}"]\n')
    assert all("quantize.nncf" in problem.message for problem in problems)


def test_each_override_names_itself_as_the_place(tmp_path: Path) -> None:
    sets = ("stages.0.ratio=7", "seed=a", "stages.9.x=1", "odd:1:2=3", "seed")
    asked = f"{TEXT}stages: [prune.depth: {{ratio: 0.3}}]\n"
    places = {problem.place for problem in told(tmp_path, asked, *sets)}
    assert places == {"--set stages.0.ratio", "--set seed", "--set stages.9.x", "--set"}


def test_a_place_within_a_place_ends_in_a_colon(tmp_path: Path) -> None:
    for line, name in (("adapter: ./nope", "nope"), ("data: {evaluate: ./odd.jsonl}", "odd.jsonl:1")):
        (tmp_path / "odd.jsonl").write_text("3\n")
        assert only(told(tmp_path, f"{TEXT}{line}\n")).message.startswith(f"{tmp_path / name}: ")


def test_an_array_of_strings_is_told_what_to_make_of_each(tmp_path: Path) -> None:
    (tmp_path / "texts.json").write_text(json.dumps(["one", "two"]))
    problem = only(told(tmp_path, f"{TEXT}data: {{evaluate: ./texts.json}}\n"))
    assert problem.message.endswith("texts.json:1: is a string, and no JSON object")
    assert '{"text": "…"}' in problem.fix


def test_prompts_alone_are_refused_once_with_what_to_give(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\n\na dog\n")
    asked = f"{PICTURES}data: {{evaluate: ./prompts.txt}}\nevaluate: {{metrics: [kid, lpips, clip_score]}}\n"
    problem = only(told(tmp_path, asked))
    assert problem.message == "./prompts.txt holds texts, and this model needs pictures with captions"
    assert "metadata.jsonl" in problem.fix


def test_an_evaluation_refuses_them_too(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\n\na dog\n")
    model = "zoo://digits-diffusion"
    with pytest.raises(UserError, match="needs pictures with captions"):
        compress.evaluate(model, model, metrics=["lpips"], data=str(tmp_path / "prompts.txt"), cache=tmp_path / "cache")


def test_packed_weights_that_a_stage_would_change_have_one_remedy(tmp_path: Path) -> None:
    model = language_model(tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (model / "config.json").write_text(json.dumps(config))
    asked = TEXT.replace("zoo://docs-llama", str(model))
    alone = [p for p in told(tmp_path, asked) if "gptq" in p.message]
    assert [p.fix for p in alone] == ["pip install gptqmodel, or give the unquantized checkpoint"]
    both = [p for p in told(tmp_path, f"{asked}stages: [prune.depth: {{ratio: 0.5}}]\n") if "gptq" in p.message]
    assert len(both) == 2
    assert all(p.fix.startswith("give the unquantized checkpoint") for p in both)
    assert not any("pip install" in p.fix for p in both)

"""One mistake is reported once, at its place, with a remedy that can be followed: what reading and planning say, and no run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import compress
from compress.errors import Problem, RecipeError, UserError
from compress.machine import deps
from compress.sources.data import open_data
from tests.fakes import language_model

TEXT = "schema: 1\nname: t\nmodel: zoo://docs-llama\n"
IMAGES = "schema: 1\nname: t\nmodel: zoo://digits-diffusion\n"


def reported(folder: Path, text: str, *sets: str) -> list[Problem]:
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
    problem = only(reported(tmp_path, f"{TEXT}{section}: null\n"))
    assert problem.message == f"{section} must be a mapping, not nothing"
    assert f"leave `{section}:` out" in problem.fix


def test_a_value_of_nothing_may_be_left_out_where_it_has_a_default(tmp_path: Path) -> None:
    seed, name = reported(tmp_path, TEXT.replace("name: t", "name: null") + "seed: null\n")
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
def test_a_misspelt_metric_is_reported_once_though_it_is_gated(
    tmp_path: Path, metrics: str, gates: str, count: int
) -> None:
    asked = f"{TEXT}data: {{evaluate: zoo://docstrings/test}}\nevaluate: {{metrics: {metrics}}}\ngates: {gates}\n"
    assert len(reported(tmp_path, asked)) == count


@pytest.mark.parametrize(
    ("stage", "says", "fix"),
    [
        ("${x}: {}", "`${x}` is a key, and variables stand in values", "write the name itself"),
        ("${}: {}", "`${}` is a key, and variables stand in values", "write the name itself"),
        ('"${}"', "`${}` names no variable", "under `vars:`"),
        ('"${nope}"', "no variable is called `nope`", "`x`"),
    ],
)
def test_a_variable_in_the_name_of_a_stage_is_reported_at_its_place(
    tmp_path: Path, stage: str, says: str, fix: str
) -> None:
    problem = only(reported(tmp_path, f"{TEXT}vars: {{x: prune.depth}}\nstages:\n  - {stage}\n"))
    assert (problem.place, problem.message) == (f"{tmp_path / 'r.yaml'}:6:5", says)
    assert fix in problem.fix


def test_the_name_of_a_stage_may_be_a_variable(tmp_path: Path) -> None:
    problems = reported(tmp_path, f'{TEXT}vars: {{x: quantize.nncf}}\nstages: ["${{x}}"]\n')
    assert all("quantize.nncf" in problem.message for problem in problems)


def test_each_override_names_itself_as_the_place(tmp_path: Path) -> None:
    sets = ("stages.0.ratio=7", "seed=a", "stages.9.x=1", "odd:1:2=3", "seed")
    asked = f"{TEXT}stages: [prune.depth: {{ratio: 0.3}}]\n"
    places = {problem.place for problem in reported(tmp_path, asked, *sets)}
    assert places == {"--set stages.0.ratio", "--set seed", "--set stages.9.x", "--set"}


def test_a_place_within_a_place_ends_in_a_colon(tmp_path: Path) -> None:
    for line, name in (("adapter: ./nope", "nope"), ("data: {evaluate: ./odd.jsonl}", "odd.jsonl:1")):
        (tmp_path / "odd.jsonl").write_text("3\n")
        assert only(reported(tmp_path, f"{TEXT}{line}\n")).message.startswith(f"{tmp_path / name}: ")


def test_an_array_of_strings_is_reported_what_to_make_of_each(tmp_path: Path) -> None:
    (tmp_path / "texts.json").write_text(json.dumps(["one", "two"]))
    problem = only(reported(tmp_path, f"{TEXT}data: {{evaluate: ./texts.json}}\n"))
    assert problem.message.endswith("texts.json:1: is a string, and no JSON object")
    assert '{"text": "…"}' in problem.fix


def test_prompts_alone_are_refused_once_with_what_to_give(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\n\na dog\n")
    asked = f"{IMAGES}data: {{evaluate: ./prompts.txt}}\nevaluate: {{metrics: [kid, lpips, clip_score]}}\n"
    problem = only(reported(tmp_path, asked))
    assert problem.message == "./prompts.txt holds texts, and this model needs images with captions"
    assert "metadata.jsonl" in problem.fix


def test_an_evaluation_refuses_them_too(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\n\na dog\n")
    model = "zoo://digits-diffusion"
    with pytest.raises(UserError, match="needs images with captions"):
        compress.evaluate(model, model, metrics=["lpips"], data=str(tmp_path / "prompts.txt"), cache=tmp_path / "cache")


def test_packed_weights_that_a_stage_would_change_have_one_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = deps.version
    monkeypatch.setattr(deps, "version", lambda name: "" if name == "gptqmodel" else version(name))
    model = language_model(tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (model / "config.json").write_text(json.dumps(config))
    asked = TEXT.replace("zoo://docs-llama", str(model))
    alone = [p for p in reported(tmp_path, asked) if "gptq" in p.message]
    assert [p.fix for p in alone] == ["pip install 'pare[gptq]', or give the unquantized checkpoint"]
    both = [p for p in reported(tmp_path, f"{asked}stages: [prune.depth: {{ratio: 0.5}}]\n") if "gptq" in p.message]
    assert len(both) == 2
    assert all(p.fix.startswith("give the unquantized checkpoint") for p in both)
    assert not any("pip install" in p.fix for p in both)


# Data that a text model does not take


def of_data(folder: Path, source: str) -> Problem:
    return only(reported(folder, f"{TEXT}data: {{evaluate: {source}}}\n"))


def test_a_folder_of_texts_is_reported_how_texts_are_given(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").write_text("one\n\ntwo")
    one = of_data(tmp_path, "./texts")
    assert "is a folder of 1 text, and texts are read from one file" in one.message
    assert one.fix == "give ./texts/a.txt"
    (tmp_path / "texts/b.txt").write_text("three\n")
    line = of_data(tmp_path, "./texts").fix.partition(", and")[0]
    subprocess.run(line, shell=True, check=True, cwd=tmp_path)
    assert [item.text for item in open_data("all.txt", tmp_path).first(9)] == ["one", "two", "three"]


@pytest.mark.parametrize("name", ["odd.jsonl", "odd.json"])
def test_rows_under_another_key_are_reported_which_and_the_line_that_renames_it(tmp_path: Path, name: str) -> None:
    rows = [{"id": "a", "content": 'it is Åse\'s "text"'}, {"id": "b", "content": "another"}]
    lines = json.dumps(rows) if name.endswith(".json") else "\n".join(map(json.dumps, rows)) + "\n\n"
    (tmp_path / name).write_text(lines)
    problem = of_data(tmp_path, f"./{name}")
    assert problem.message.endswith("needs a `text` string, and has `id`, `content`")
    line = problem.fix.partition(", if")[0].replace("python ", f"{sys.executable} ", 1)
    subprocess.run(line, shell=True, check=True, cwd=tmp_path)
    found = [item.text for item in open_data("odd-text.jsonl", tmp_path).first(9)]
    assert found == [row["content"] for row in rows]


@pytest.mark.parametrize(
    ("row", "message"), [({"text": 5}, "a int"), ({"text": None}, "none"), ({"prompt": []}, "`prompt`")]
)
def test_a_row_without_a_text_to_take_is_reported_how_one_looks(tmp_path: Path, row: object, message: str) -> None:
    (tmp_path / "odd.jsonl").write_text(json.dumps(row))
    problem = of_data(tmp_path, "./odd.jsonl")
    assert problem.message.endswith(f"needs a `text` string, and has {message}")
    assert problem.fix == '{"text": "…"} in every row'


def test_data_that_are_not_there_are_reported_where_they_were_looked_for_and_what_comes_near(tmp_path: Path) -> None:
    (tmp_path / "eval.txt").write_text("one")
    (tmp_path / "evals.txt").mkdir()
    problem = of_data(tmp_path, "./evall.txt")
    assert problem.message == f"no such data: ./evall.txt, at {tmp_path / 'evall.txt'}"
    assert problem.fix == "did you mean `./eval.txt`?"
    far = of_data(tmp_path, "./nowhere")
    assert "zoo://docstrings/test" in far.fix
    assert "digits" not in far.fix
    images = only(reported(tmp_path, f"{IMAGES}data: {{evaluate: ./nowhere}}\n"))
    assert "zoo://digits/test" in images.fix
    assert "docstrings" not in images.fix


# What is no recipe, and what is reported beside another mistake


def test_a_folder_that_is_no_recipe_is_reported_what_it_is(tmp_path: Path) -> None:
    for folder, message, fix in (
        (language_model(tmp_path / "model"), "is a model's folder, and no recipe", "write a recipe with model: "),
        (tmp_path, "is a folder, and no recipe", "tells how one is written"),
    ):
        with pytest.raises(RecipeError, match=message) as caught:
            compress.check(folder, cache=tmp_path / "cache")
        assert fix in caught.value.problems[0].fix
    (tmp_path / "r.yaml").write_text(TEXT)
    with pytest.raises(RecipeError) as caught:
        compress.check(tmp_path, cache=tmp_path / "cache")
    assert caught.value.problems[0].fix == f"name the file: {tmp_path / 'r.yaml'}"


def test_a_gate_that_cannot_be_is_reported_one_that_can(tmp_path: Path) -> None:
    asked = f"{TEXT}evaluate: {{metrics: [size]}}\ngates: {{size: {{within: x}}}}\n"
    problem = only(reported(tmp_path, asked))
    assert problem.fix.startswith("write for instance gates: {size: {smaller: 2}}; `pare explain size`")


def test_a_metric_that_is_named_twice_hides_no_gate(tmp_path: Path) -> None:
    gates = "{size: {within: x}, kid: {within: 1}, latency: {within: 1, faster: 2}}"
    found = reported(tmp_path, f"{TEXT}evaluate: {{metrics: [size, size, latency]}}\ngates: {gates}\n")
    assert [problem.message.partition(" ")[0] for problem in found] == [
        "metric",
        "gate",
        "gates.kid:",
        "gates.latency:",
    ]


def test_an_unknown_teacher_is_reported_once(tmp_path: Path) -> None:
    stage = "distill.logits: {teacher: nosuch}"
    found = reported(tmp_path, f"{TEXT}data: {{train: zoo://docstrings/train}}\nstages: [{stage}]\n")
    assert only(found).message == 'teacher: no earlier step is called "nosuch"'


def test_weights_that_a_stage_has_packed_and_those_that_come_so_have_their_own_remedy(tmp_path: Path) -> None:
    model = language_model(tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(
        json.dumps({**config, "quantization_config": {"quant_method": "gptq", "bits": 4}})
    )
    asked = TEXT.replace("zoo://docs-llama", str(model)) + "stages: [prune.depth: {ratio: 0.5}]\n"
    (problem,) = (p for p in reported(tmp_path, asked) if "already" in p.message)
    assert problem.fix == "give the unquantized checkpoint, or leave this stage out"

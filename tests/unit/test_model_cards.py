"""Model cards: what the hub's own reader finds in them, what is carried over from the model, and what was measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from hypothesis import assume, given
from hypothesis import strategies as st

import compress
from compress.artifact import Artifact, Provenance, Quantization
from compress.catalogue import find_stage
from compress.errors import Problem, RecipeError
from compress.model.describing import OPENERS, describe, openers_of
from compress.publishing.model_cards import CARD, MEASURED, PENDING, read_card, with_measured
from compress.recipe.reading import read_recipes
from compress.recipe.validate import check_values
from compress.recipe.values import Recipe
from compress.stages.export.hub import REPO
from evaluation.report.card import complete
from tests.stages import apply
from tests.tiny import tiny_llama
from tests.unit.comparisons import text

SOURCE = """---
license: other
license_name: tiny-community
license_link: LICENSE
language: [en, de]
base_model: someone/grandparent
tags: [old]
---
# The original, which claims this and that
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_llama(tmp_path_factory.mktemp("model"))
    (folder / CARD).write_text(SOURCE)
    (folder / "LICENSE").write_text("Do what you like.")
    return folder


@pytest.fixture
def exported(model: Path, tmp_path: Path) -> Artifact:
    made, _ = apply(
        "export.hub", describe(model), tmp_path / "out", repo="me/tiny", base_model="org/tiny-7b", tags=("a",)
    )
    return made


def recipe(model: str = "hf://org/tiny-7b@" + "0" * 40, folder: Path = Path()) -> Recipe:
    (folder / "recipe.yaml").write_text(f"schema: 1\nname: x\nmodel: {model}\nseed: 7\n")
    return read_recipes(folder / "recipe.yaml")[0]


def test_the_hub_reads_its_metadata(exported: Artifact) -> None:
    card = ModelCard.load(exported.path / CARD)
    data = card.data.to_dict()
    assert data["base_model"] == "org/tiny-7b"
    assert data["base_model_relation"] == "finetune"
    assert (data["library_name"], data["pipeline_tag"]) == ("transformers", "text-generation")
    assert (data["license"], data["license_name"], data["license_link"]) == ("other", "tiny-community", "LICENSE")
    assert data["language"] == ["en", "de"]
    assert data["tags"] == ["pare", "a"]
    assert "claims this and that" not in card.text
    assert 'pipeline("text-generation", model="me/tiny")' in card.text
    assert (exported.path / "LICENSE").read_text() == "Do what you like."
    assert card.text.rstrip().endswith(PENDING.rstrip())


def test_a_quantized_model_says_so_and_how_it_came_about(model: Path, tmp_path: Path) -> None:
    packed = describe(model).packing({"model": Quantization("compressed-tensors", 4, "compressed-tensors")})
    made, notes = apply(
        "export.hub", replace(packed, path=model), tmp_path / "out", license="apache-2.0", base_model="org/m"
    )
    data = read_card(made.path / CARD).data
    assert data["base_model_relation"] == "quantized"
    assert data["license"] == "apache-2.0"
    assert "license_link" not in data
    assert {"quantized", "compressed-tensors"} <= set(data["tags"])
    assert not notes
    assert "\n    pip install torch transformers compressed-tensors\n" in read_card(made.path / CARD).text


@pytest.mark.parametrize("method", OPENERS)
def test_what_opens_packed_weights_is_named_as_the_rest_of_pare_names_it(
    method: str, model: Path, tmp_path: Path
) -> None:
    packing = Quantization(method, 4, OPENERS[method])
    packed = describe(model).packing({"model": packing})
    made, _ = apply("export.hub", replace(packed, path=model), tmp_path / "out")
    line = next(one for one in read_card(made.path / CARD).text.splitlines() if "pip install" in one)
    assert set(line.split()[4:]) == set(openers_of(packing))
    assert OPENERS[method] in line


def test_a_stock_model_needs_nothing_more_and_an_engine_what_runs_it(
    model: Path, exported: Artifact, tmp_path: Path
) -> None:
    assert "pip install" not in read_card(exported.path / CARD).text
    engine = describe(model).replacing({"model": "openvino"})
    made, _ = apply("export.hub", replace(engine, path=model), tmp_path / "engine")
    assert "\n    pip install pare openvino\n" in read_card(made.path / CARD).text


def test_every_stage_is_listed_but_the_one_that_writes_the_card(model: Path, tmp_path: Path) -> None:
    stages = ("prune.depth", "build.gguf", "export.ollama")
    before = tuple(Provenance(name, 1, {"ratio": 0.5}, "key") for name in stages)
    made, _ = apply("export.hub", replace(describe(model), lineage=before), tmp_path / "out")
    listed = read_card(made.path / CARD).text.partition("## How it was made")[2].partition("## How to load it")[0]
    assert [line.split()[0] for line in listed.splitlines() if line.startswith("    ")] == list(stages)


HUB = find_stage("export.hub").params
WRONG = {
    "repo": ["you/", "a b", "you/model/x", "https://huggingface.co/you/model", "-a", "you/a--b", "you/a..b", "a-", ""],
    "base_model": ["org/", "org model", "hf://org/model"],
    "license": ["Apache 2.0", "MIT License", "(c) me"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_name_that_the_hub_has_not_is_refused_with_the_form(name: str, value: str) -> None:
    problems: list[Problem] = []
    assert check_values(HUB, {name: value}, "export.hub", "", problems) is None
    (problem,) = problems
    example = {"repo": "you/smaller-model", "base_model": "org/model-8B", "license": "apache-2.0"}[name]
    assert f"such as {example}" in problem.fix
    assert check_values(HUB, {name: example}, "export.hub", "", []) is not None


@given(st.from_regex(REPO, fullmatch=True).filter(lambda s: len(s) <= 96))
def test_what_is_taken_as_a_name_the_hub_takes(name: str) -> None:
    assume(not name.endswith(".git"))
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        refused = str(error)
    else:
        refused = ""
    assert refused == ""


def test_a_name_that_ends_as_a_clone_is_refused(model: Path) -> None:
    why = find_stage("export.hub").refuse(describe(model), HUB(repo="you/model.git"))
    assert "repo: no name on the hub ends in .git" in why
    with pytest.raises(HFValidationError):
        validate_repo_id("you/model.git")


def test_a_licence_that_nobody_knows_is_not_made_up(tmp_path: Path) -> None:
    made, notes = apply("export.hub", describe(tiny_llama(tmp_path / "model")), tmp_path / "out")
    card = read_card(made.path / CARD)
    assert "no licence is known" in notes[0].message
    assert not {"license", "license_link", "base_model"} & card.data.keys()
    (tmp_path / "model" / "LICENCE.txt").write_text("Mine.")
    made, notes = apply("export.hub", describe(tmp_path / "model"), tmp_path / "again")
    message = read_card(made.path / CARD).data
    assert (message["license"], message["license_link"]) == ("other", "LICENCE.txt")
    assert not notes


def test_a_licence_is_a_file_whatever_it_is_called_and_in_whatever_letters(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "model")
    (folder / "LICENSES").mkdir()
    (folder / "LICENSE (MIT) [1].txt").write_text("Do what you like.")
    (folder / CARD).write_bytes("---\nlanguage: de\n---\nFür alle\n".encode("latin-1"))
    made, _ = apply("export.hub", describe(folder), tmp_path / "out")
    card = read_card(made.path / CARD)
    assert (card.data["license_link"], card.data["language"]) == ("LICENSE (MIT) [1].txt", "de")
    assert r"[LICENSE (MIT) \[1\].txt](LICENSE%20%28MIT%29%20%5B1%5D.txt)" in card.text


def test_what_was_measured_takes_the_place_of_the_notice_that_nothing_was(exported: Artifact, tmp_path: Path) -> None:
    complete(exported.path, text(), recipe(folder=tmp_path))
    once = (exported.path / CARD).read_text()
    complete(exported.path, text(), recipe(folder=tmp_path))
    assert (exported.path / CARD).read_text() == once
    assert not list(exported.path.glob("*.part"))
    card = ModelCard.load(exported.path / CARD)
    assert PENDING not in card.text
    assert "FAIL: a gate failed" in card.text
    assert r"| perplexity | 11.80 | 11.92 | +0.115 \[0.071, 0.160\]" in card.text
    assert "* perplexity: 64 units" in card.text
    assert "* seeds: 7 of the stages, 0 of the evaluation" in card.text
    assert "Example CPU" in card.text
    assert "another process used 40% of a core" in card.text
    assert card.data.base_model == "org/tiny-7b"


def test_a_model_of_the_hub_is_named_as_the_base_where_the_stage_was_reported_none(model: Path, tmp_path: Path) -> None:
    made, _ = apply("export.hub", describe(model), tmp_path / "out")
    complete(made.path, text(), recipe(folder=tmp_path))
    data = read_card(made.path / CARD).data
    assert (data["base_model"], data["base_model_relation"]) == ("org/tiny-7b", "finetune")
    complete(made.path, text(), recipe("./elsewhere", tmp_path))
    assert read_card(made.path / CARD).data == data


@pytest.mark.parametrize("words", ["", "---\n", "---\n: [\n---\nx", "no metadata", "---\n- a list\n---\nx"])
def test_a_card_without_metadata_that_reads_has_none(words: str, tmp_path: Path) -> None:
    (tmp_path / CARD).write_text(words)
    card = read_card(tmp_path / CARD)
    assert card.data == {}
    assert yaml.safe_load(str(with_measured(card, ["x"])).split("---")[1]) == {}
    assert f"{MEASURED}\n\nx\n" in with_measured(card, ["x"]).text


def test_a_saved_folder_is_ready_to_upload_and_the_same_command_may_run_again(model: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        f"schema: 1\nname: x\nmodel: {model}\nstages:\n  - export.hub: {{repo: me/x}}\nevaluate: {{metrics: [size]}}\n"
    )
    for _ in range(2):
        compress.run(tmp_path / "recipe.yaml", cache=tmp_path / "cache", out=tmp_path / "out", save=tmp_path / "saved")
    card = ModelCard.load(tmp_path / "saved" / CARD)
    assert "| size on disk |" in card.text
    assert "name: x" in card.text
    assert {f.name for f in (tmp_path / "saved").iterdir()} >= {"LICENSE", "pare.json", "model.safetensors", CARD}


def test_nothing_may_change_a_model_that_a_card_tells_of(model: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        f"schema: 1\nname: x\nmodel: {model}\nstages:\n  - export.hub: {{}}\n  - build.gguf: {{}}\n"
    )
    with pytest.raises(
        RecipeError, match=r"export.hub tells of the model as it is, and build.gguf would make another"
    ) as reported:
        compress.check(tmp_path / "recipe.yaml", cache=tmp_path / "cache")
    assert reported.value.problems[0].fix == "put export.hub last"

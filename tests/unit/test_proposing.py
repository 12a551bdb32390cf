"""`pare init` on tiny instances of every family and on machines that are not this one: the recipe reads, plans, and says what it left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import compress
from compress.cli import main
from compress.commands.init import calibrated, init, moved, name_of, roles
from compress.errors import UserError
from compress.machine.gpus import Gpu, supposing
from compress.proposing import choices
from compress.proposing.machine import Machine, this_machine
from compress.proposing.propose import Proposal
from compress.recipe.reading import read_recipes
from compress.store.cache import Cache
from tests.families import MODELS
from tests.programs.family_table import TYPICAL

GB = 10**9
PLAIN = Machine(frozenset({"avx2"}), 64 * GB)
VNNI = Machine(frozenset({"avx2", "avx512_vnni"}), 64 * GB)
MODERN = Machine(frozenset({"avx2", "avx512_vnni", "avx512_bf16"}), 64 * GB)
GPU = Machine(frozenset({"avx2"}), 64 * GB, Gpu("NVIDIA H100", "SM90"))
TEXTS = {
    "train": "zoo://docstrings/train",
    "calibration": "zoo://docstrings/validation",
    "evaluate": "zoo://docstrings/test",
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tiny models, each made once."""
    return tmp_path_factory.mktemp("models")


def model(models: Path, family: str) -> Path:
    """A tiny model of a family, made once."""
    made = models / f"{family}.path"
    if not made.is_file():
        made.write_text(str({**MODELS, **TYPICAL}[family](models / family)))
    return Path(made.read_text())


@pytest.fixture
def propose(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)

    def made(family: str, machine: Machine = PLAIN, goal: str = "faster", data: tuple[str, ...] = ()) -> Proposal:
        folder = model(models, family)
        out = tmp_path / f"{family}-{len(list(tmp_path.iterdir()))}.yaml"
        _, proposal = init(str(folder), data, goal, "", out, Cache(tmp_path / "cache"), machine)
        assert out.read_text() == proposal.text
        (recipe,) = read_recipes(out)
        assert [step.stage for step in recipe.stages] == stages(proposal)
        return proposal

    return made


def stages(proposal: Proposal) -> list[str]:
    return [step.stage for step in proposal.steps]


def given(*names: str) -> tuple[str, ...]:
    return tuple(f"{role}={TEXTS[role]}" for role in names)


@pytest.mark.parametrize("family", [name for name in MODELS if name not in ("flux", "sd3-no-t5")])
def test_every_family_gets_a_recipe_that_plans_or_is_told_why_not(family: str, propose: Any) -> None:
    for goal in ("faster", "smaller"):
        proposal = propose(family, MODERN, goal)
        assert proposal.steps or proposal.left
        for title, why in proposal.left:
            assert why, title
            flat = " ".join(line.lstrip(" #") for line in proposal.text.splitlines())
            assert f"left out: {title}: {why}" in flat


def test_the_zoo_gets_its_quickstart(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    _, found = init("zoo://docs-llama", ["zoo://docstrings"], "faster", "", tmp_path / "r.yaml", cache, MODERN)
    quickstart = yaml.safe_load(Path("recipes/text/quickstart.yaml").read_text())
    written = yaml.safe_load(found.text)
    assert written["stages"] == quickstart["stages"]
    assert written["data"] == quickstart["data"]
    assert written["gates"]["perplexity"] == quickstart["gates"]["perplexity"]
    compress.check(tmp_path / "r.yaml", cache=cache.root)


def test_the_processor_decides_precision_and_whether_bytes_pay(propose: Any) -> None:
    assert "precision: float32" in propose("llama", PLAIN).text
    assert "precision: bfloat16" in propose("llama", MODERN).text
    calibration = ("calibration=zoo://digits/validation",)
    assert stages(propose("sd", VNNI, data=calibration))[-1] == "quantize.nncf"
    plain = propose("sd", PLAIN, data=calibration)
    assert "quantize.nncf" not in stages(plain)
    assert ("8-bit arithmetic", "this processor multiplies bytes no faster than floats (no VNNI)") in plain.left


def test_on_a_gpu_nothing_is_built_for_processors(propose: Any) -> None:
    with supposing(GPU.gpu or Gpu("", "")):
        text = propose("llama", GPU, data=given("train", "calibration", "evaluate"))
        image = propose("sd", GPU)
        small = propose("llama", GPU, "smaller", given("calibration"))
    assert "device: cuda" in text.text
    assert stages(text) == ["prune.depth", "distill.logits", "accelerate.cuda_graph"]
    assert not any(name.startswith("build.") for name in stages(image))
    assert stages(small) == ["quantize.bitsandbytes"] or stages(small) == ["quantize.autoround"]
    assert "dtype: bfloat16" in text.text


def test_too_little_memory_leaves_out_what_does_not_fit(propose: Any) -> None:
    little = Machine(frozenset({"avx2"}), GB)
    proposal = propose("llama", little, data=given("train", "calibration", "evaluate"))
    assert proposal.steps == ()
    assert "GB of memory, and this machine has 1.0 GB" in dict(proposal.left)["prune.depth and distill.logits"]
    assert "stages: []" in proposal.text


def test_a_large_model_is_not_taught_on_a_processor(propose: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choices, "TEACHABLE", 10)
    proposal = propose("llama", MODERN, data=given("train"))
    assert "distill.logits" not in stages(proposal)
    assert any("takes days on a processor" in why for _, why in proposal.left)
    assert stages(propose("sd", MODERN, data=("train=zoo://digits/train",)))[0] == "accelerate.steps"


def test_without_data_it_says_that_nothing_measures_quality(propose: Any) -> None:
    for family in ("llama", "sd"):
        assert "nothing measures it: that takes held-out data" in propose(family).text
    assert "nothing measures it" not in propose("llama", data=given("evaluate")).text


def test_wide_latents_are_not_taught_on_a_processor(propose: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An update takes as long as its latents have places: half a minute for a small UNet at 64 by 64."""
    train = ("train=zoo://digits/train",)
    assert stages(propose("sd", MODERN, data=train))[0] == "distill.steps"
    monkeypatch.setattr(choices, "TEACHABLE_THERE", 1000)
    wide = propose("sd", MODERN, data=train)
    assert stages(wide)[0] == "accelerate.steps"
    small = dict(propose("sd", MODERN, "smaller", train).left)
    assert "takes days on a processor" in small["fewer blocks"]
    assert "saves no byte" in small["fewer steps"]


@pytest.mark.parametrize(
    ("documents", "gate"), [(4, "no gate of quality"), (40, "worse_by: 10%"), (150, "worse_by: 5%")]
)
def test_margins_are_what_so_many_documents_can_decide(documents: int, gate: str, propose: Any, tmp_path: Path) -> None:
    rows = (json.dumps({"text": f"document {number} of some words"}) for number in range(documents))
    (tmp_path / "held-out.jsonl").write_text("\n".join(rows))
    proposal = propose("llama", PLAIN, data=("./held-out.jsonl",))
    assert gate in proposal.text
    assert "evaluate: ./held-out.jsonl" in proposal.text
    assert f"samples: {documents}" in proposal.text


def test_data_are_named_by_role_or_found_in_a_folder(tmp_path: Path) -> None:
    for name in ("train.jsonl", "valid.jsonl", "test.jsonl"):
        (tmp_path / name).touch()
    every = {"train": "./train.jsonl", "calibration": "./valid.jsonl", "evaluate": "./test.jsonl"}
    assert roles(["."], tmp_path) == every
    assert roles(["zoo://digits"], tmp_path) == {
        "train": "zoo://digits/train", "calibration": "zoo://digits/validation", "evaluate": "zoo://digits/test"
    }  # fmt: skip
    assert roles(["evaluate=a", "train=b"], tmp_path) == {"evaluate": "a", "train": "b"}
    with pytest.raises(UserError, match="trian is no role"):
        roles(["trian=a"], tmp_path)
    with pytest.raises(UserError, match="evaluate twice"):
        roles(["a", "evaluate=b"], tmp_path)


def test_a_recipe_gets_a_name_that_recipes_can_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "My Model").mkdir()
    monkeypatch.chdir(tmp_path / "My Model")
    assert name_of(".") == "My-Model"
    assert name_of("../My Model/") == "My-Model"
    assert name_of("zoo://docs-llama") == "docs-llama"
    assert name_of("hf://org/name@abc") == "name"
    assert name_of("/") == "recipe"


def test_parts_of_a_folder_at_home_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "chats").mkdir()
    for name in ("train.jsonl", "test.jsonl"):
        (tmp_path / "chats" / name).touch()
    assert roles(["~/chats"], tmp_path) == {"train": "~/chats/train.jsonl", "evaluate": "~/chats/test.jsonl"}


def test_names_start_at_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert moved("model", tmp_path / "recipes") == "./../model"
    assert moved("./model", tmp_path) == "./model"
    assert moved("zoo://digits", tmp_path / "recipes") == "zoo://digits"
    assert moved("/models/a", tmp_path) == "/models/a"


def test_nothing_is_overwritten_and_mistakes_write_nothing(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PARE_CACHE", str(tmp_path / "cache"))
    folder = model(models, "llama")

    def pare(*more: str) -> int:
        with pytest.raises(SystemExit) as left:
            main(["init", *more])
        assert isinstance(left.value.code, int)
        return left.value.code

    assert pare(str(folder)) == 0
    assert "next: pare plan llama.yaml" in capsys.readouterr().out
    before = Path("llama.yaml").read_text()
    assert pare(str(folder)) == 2
    assert "nothing is overwritten" in capsys.readouterr().err
    assert Path("llama.yaml").read_text() == before
    assert pare(str(folder), "--goal", "better", "--out", "a.yaml") == 2
    assert pare("./nowhere", "--out", "a.yaml") == 2
    assert pare(str(folder), "--data", "./nowhere.jsonl", "--out", "a.yaml") == 2
    assert not Path("a.yaml").exists()


def test_this_machine_is_described() -> None:
    found = this_machine()
    assert found.memory > GB
    assert "GB of memory" in found.words


def test_training_data_calibrate_where_no_others_are_given(propose: Any) -> None:
    given = {"train": "a", "evaluate": "b"}
    assert calibrated(given) == {**given, "calibration": "a"}
    assert calibrated({**given, "calibration": "c"})["calibration"] == "c"
    assert calibrated({"evaluate": "b"}) == {"evaluate": "b"}
    text = propose("llama", PLAIN, data=("train=zoo://docstrings/train",)).text
    assert "calibration: zoo://docstrings/train  # those it learns from" in text
    assert "- prune.depth" in text

"""Optional libraries and the doctor: what is missing is reported with the command that installs it, without importing anything."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from compress.catalogue import find_stage, stage_names
from compress.commands import doctor
from compress.errors import MissingLibrary
from compress.machine import deps
from compress.machine.gpus import Gpu
from tests.fakes import language_model

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


@pytest.fixture
def installed_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package that can be found, and says so if it is imported."""
    package = tmp_path / "pare_test_package"
    package.mkdir()
    (package / "__init__.py").write_text("value = 7\n")
    (package / "inner.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, package.name, raising=False)
    return "pare_test_package"


def test_what_is_installed_is_imported(installed_module: str) -> None:
    assert deps.need(installed_module).value == 7


@pytest.mark.parametrize(
    ("module", "extra", "command"),
    [
        ("absent", "", "pip install absent"),
        ("absent_library", "", "pip install absent-library"),
        ("absent.inner", "", "pip install absent.inner"),
        ("absent", "gptq", "pip install 'pare[gptq]'"),
    ],
)
def test_what_is_absent_is_refused_with_the_command_that_installs_it(module: str, extra: str, command: str) -> None:
    with pytest.raises(MissingLibrary, match=f"`{module}` is not installed") as caught:
        deps.need(module, extra)
    assert caught.value.problems[0].fix == command
    assert caught.value.exit_code == 2


def test_asking_whether_something_is_installed_does_not_import_it(installed_module: str) -> None:
    assert deps.installed(installed_module)
    assert deps.installed(f"{installed_module}.inner")
    assert not deps.installed(f"{installed_module}.other")
    assert not deps.installed("absent.inner.most")
    assert f"{installed_module}.inner" not in sys.modules


def test_a_library_that_is_broken_inside_says_so_itself(installed_module: str) -> None:
    with pytest.raises(RuntimeError, match="imported"):
        deps.need(f"{installed_module}.inner")


def test_versions_are_those_of_the_installation() -> None:
    assert deps.version("numpy") == metadata.version("numpy")
    assert deps.version("absent-library") == ""


# The doctor


def test_the_doctor_knows_every_extra_and_names_none_that_is_not() -> None:
    known = {*doctor.libraries().values()} - {""}
    assert known == set(EXTRAS) - {"dev"}
    assert {find_stage(name).extra for name in stage_names()} - {""} <= set(EXTRAS)


def test_what_any_stage_needs_is_installed_beside_everything_where_it_is_tested() -> None:
    (ours,) = (line for line in EXTRAS["dev"] if line.startswith("pare["))
    compiled = {"", "llama-cpp"}  # which takes ten minutes to compile
    assert {find_stage(name).extra for name in stage_names()} - compiled <= set(ours[5:-1].split(","))


def test_one_command_installs_whatever_lacks() -> None:
    assert doctor.install({"onnx", "onnxruntime", "gptqmodel"}) == "pip install 'pare[gptq,onnx]'"
    assert doctor.install({"torch"}) == "pip install pare"
    assert doctor.install({"somebodys"}) == "pip install somebodys"
    assert doctor.install({"onnx", "somebodys"}) == "pip install 'pare[onnx]' somebodys"


def test_what_lacks_is_shown_with_its_command_and_what_is_there_with_its_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("compress.machine.deps.version", lambda library: "" if library == "onnxruntime" else "1.2.3")
    found = doctor.diagnose()
    assert found["libraries"]["onnxruntime"] == "not installed: pip install 'pare[onnx]'"
    assert found["libraries"]["torch"] == "1.2.3"
    assert found["engines"]["onnx"] == "not installed: pip install 'pare[onnx]'"
    assert found["engines"]["openvino"] == "ready"


def test_of_a_distribution_that_is_not_installed_no_extras_are_known() -> None:
    assert deps.extras_of("no-such-distribution") == {}


def test_the_doctor_tells_what_each_recipe_needs_and_the_one_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    body = "schema: 1\nname: x\nmodel: ./m\nstages:\n  - {}\n"
    for name, step in (("lacks", "quantize.nncf: {}"), ("wrong", "no.such: {}")):
        (tmp_path / f"{name}.yaml").write_text(body.replace("{}", step, 1))
    monkeypatch.setattr("compress.machine.deps.version", lambda library: "" if library == "nncf" else "1.2.3")
    monkeypatch.setattr("compress.machine.deps.extras_of", lambda distribution: {"nncf": "some-extra"})
    found = doctor.diagnose(tuple(sorted(tmp_path.glob("*.yaml"))))
    reported = {Path(name).stem: line for name, line in found["recipes"].items()}
    assert reported["lacks"] == "needs nncf: pip install 'pare[some-extra]'"
    assert "no stage is called `no.such`" in reported["wrong"]
    assert found["install"] == {"what the recipes lack": "pip install 'pare[some-extra]'"}


def test_recipes_of_the_current_folder_are_looked_at_by_themselves(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "recipes" not in doctor.diagnose()
    (tmp_path / "recipes" / "deep").mkdir(parents=True)
    steps = "schema: 1\nname: x\nmodel: ./m\nstages:\n  - accelerate.steps: {steps: 4}\n"
    (tmp_path / "recipes" / "deep" / "one.yaml").write_text(steps)
    found = doctor.diagnose()["recipes"]
    assert found == {"recipes/deep/one.yaml": "refused: recipes/deep/m: no such model folder"}


def test_the_doctor_calls_ready_what_the_plan_takes_and_fetches_nothing_to_know(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PARE_CACHE", str(tmp_path / "cache"))
    language_model(tmp_path / "m")
    head, far = "schema: 1\nname: x\nmodel: ./m\n", f"schema: 1\nname: x\nmodel: hf://org/name@{'0' * 40}\n"
    measured = "data: {evaluate: ./none, train: ./none}\nevaluate: {metrics: [size, kid]}\n"
    for name, message in (("good", head), ("bad", head + measured), ("far", far)):
        (tmp_path / f"{name}.yaml").write_text(message)
    found = {Path(name).stem: line for name, line in doctor.diagnose((*tmp_path.glob("*.yaml"),))["recipes"].items()}
    assert found["good"] == "ready"
    assert found["bad"].startswith("refused: ")
    assert "more; `pare check`)" in found["bad"]
    assert found["far"].startswith("ready, as far as can be known before its model is fetched")


def test_the_doctor_tells_the_cache_folder_even_before_it_exists(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PARE_CACHE", str(tmp_path / "not" / "yet"))
    monkeypatch.setattr(
        "shutil.disk_usage", lambda path: SimpleNamespace(free=12_300_000_000 if path == tmp_path else 0)
    )
    found = doctor.diagnose()["cache"]
    assert found == {"folder": str(tmp_path / "not" / "yet"), "free": "12.3 GB"}
    assert not (tmp_path / "not").exists()


def test_the_doctor_tells_memory_and_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=16_000_000_000, available=4_500_000_000))
    monkeypatch.setattr("compress.machine.gpus.gpu_here", lambda: Gpu("Some GPU", "SM89"))
    found = doctor.diagnose()["machine"]
    assert found["memory"] == "16.0 GB, 4.5 GB free"
    assert found["gpu"] == "Some GPU, SM89"
    monkeypatch.setattr("compress.machine.gpus.gpu_here", lambda: None)
    assert doctor.diagnose()["machine"]["gpu"] == "none found"


@pytest.mark.parametrize(("platform", "supported"), [("linux", True), ("darwin", True), ("win32", False)])
def test_a_system_without_support_is_reported(monkeypatch: pytest.MonkeyPatch, platform: str, supported: bool) -> None:
    monkeypatch.setattr(doctor, "sys", SimpleNamespace(platform=platform))
    assert ("not supported yet" not in doctor.diagnose()["machine"]["system"]) == supported


def test_the_doctor_imports_none_of_the_libraries_it_reports_on() -> None:
    code = "import sys; from compress.commands.doctor import diagnose, libraries; diagnose(); print(sorted({*libraries()} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"

"""The command line: its words are golden, its exit codes and its JSON are promises, and it is quiet when piped."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import compress
from compress.catalogue import metric_names, stage_names
from compress.cli import main
from compress.errors import ContractError, StageFailed, UserError
from compress.store.cache import ENTRY, Cache
from tests.fakes import language_model

ROOT = Path(compress.__file__).parent.parent
QUICKSTART = str(ROOT / "recipes" / "quickstart.yaml")
VERBS = (
    "check",
    "init",
    "plan",
    "run",
    "eval",
    "compare",
    "report",
    "reference",
    "list",
    "explain",
    "schema",
    "doctor",
    "cache",
)
ANSI = re.compile(r"\x1b\[")


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Pare = Callable[..., Said]


@pytest.fixture
def pare(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Pare:
    """The command in this process, 100 columns wide, its cache and its current folder empty ones."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("PARE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Said:
        with pytest.raises(SystemExit) as left:
            main(list(arguments))
        captured = capsys.readouterr()
        assert isinstance(left.value.code, int)
        return Said(left.value.code, captured.out, captured.err)

    return call


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    """A recipe on a model of a few bytes: nothing to run, its size to measure."""
    language_model(tmp_path / "model")
    (tmp_path / "r.yaml").write_text("schema: 1\nname: tiny\nmodel: ./model\nevaluate: {metrics: [size]}\n")
    return "r.yaml"


def masked(text: str) -> str:
    """Without the digests, sizes and times, which follow the weights, the versions of libraries and what was measured."""
    text = re.sub(r"~\d+ (s|min|h)\b *", "~<time> ", text)
    return re.sub(r"\d+ MB", "<size> MB", re.sub(r"\b[0-9a-f]{12}\b", "<digest>", text))


# Words


def test_the_help_of_every_verb_is_the_golden_one(pare: Pare, golden: Callable[[str, str], str]) -> None:
    pages = []
    for verb in ((), *((v,) for v in VERBS)):
        message = pare(*verb, "--help")
        assert (message.code, message.err) == (0, "")
        pages.append(f"$ pare {' '.join((*verb, '--help'))}\n{message.out.strip()}\n")
    found = "\n".join(pages)
    assert found == golden("help.txt", found)


def test_the_help_lists_the_verbs_tested_here_and_no_others(pare: Pare) -> None:
    listed = re.findall(r"^  (\w+)  ", pare("--help").out.partition("Commands:")[2], re.MULTILINE)
    assert tuple(listed) == VERBS


def test_without_a_verb_it_prints_its_help(pare: Pare) -> None:
    assert pare() == pare("--help")


def test_the_list_is_the_golden_one(pare: Pare, golden: Callable[[str, str], str]) -> None:
    found = pare("list").out
    assert found == golden("list.txt", found)


@pytest.mark.parametrize("name", ["accelerate.steps", "kid", "data", "gates", "models", "recipe"])
def test_explanations_are_the_golden_ones(pare: Pare, golden: Callable[[str, str], str], name: str) -> None:
    found = pare("explain", name).out
    assert found == golden(f"explain_{name}.txt", found)


def test_a_matrix_ends_with_a_table_of_its_own(pare: Pare, recipe: str) -> None:
    text = Path(recipe).read_text().replace("metrics", "samples: '${n}', metrics") + "matrix: {n: [2, 3]}\n"
    Path(recipe).write_text(text)
    message = pare("run", recipe, "--save", "mine")
    assert message.code == 0, message.err
    table = message.out.partition("mine/tiny-n-3")[2]
    rows = [line.split()[:2] for line in table.splitlines() if line.strip().startswith("tiny-n-")]
    assert rows == [["tiny-n-2", "not"], ["tiny-n-3", "not"]]
    assert {f.name for f in Path("mine").iterdir()} == {"tiny-n-2", "tiny-n-3"}
    assert len(pare("run", recipe, "--json").json) == 2


def test_the_plan_of_the_quickstart_is_the_golden_one(pare: Pare, golden: Callable[[str, str], str]) -> None:
    found = masked(pare("plan", QUICKSTART).out)
    assert found == golden("plan_quickstart.txt", found)


def test_everything_listed_can_be_explained_with_every_parameter(pare: Pare) -> None:
    for name in (*stage_names(), *metric_names()):
        message = pare("explain", name)
        assert message.code == 0, name
        assert message.out.startswith(f"{name}\n")
        assert "parameters\n" in message.out


def test_a_stage_that_needs_data_says_so(pare: Pare) -> None:
    assert "calibration data" in pare("explain", "quantize.nncf").out
    assert "data" not in pare("explain", "accelerate.steps").out.partition("\nneeds ")[2]


def test_a_good_recipe_is_reported_with_what_is_in_it(pare: Pare) -> None:
    assert pare("check", QUICKSTART) == Said(0, "quickstart: good (5 stages, 14 metrics, 5 gates)\n", "")


# JSON


def test_the_schema_is_valid_and_takes_the_quickstart(pare: Pare) -> None:
    import yaml

    schema = pare("schema").json
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(yaml.safe_load(Path(QUICKSTART).read_text()), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"schema": 1, "name": "a", "model": "zoo://b", "stagess": []}, schema)


def test_a_checked_recipe_as_json(pare: Pare) -> None:
    found = pare("check", QUICKSTART, "--json").json
    assert found == [
        {
            "name": "quickstart",
            "stages": ["prune.depth", "distill.features", "accelerate.steps", "build.openvino", "quantize.nncf"],
            "warnings": [],
        }
    ]


def test_one_of_each_is_reported_in_the_singular(pare: Pare, recipe: str) -> None:
    assert pare("check", recipe).out == "tiny: good (0 stages, 1 metric, 0 gates)\n"


def test_warnings_are_in_the_json_of_a_check(pare: Pare, recipe: str, tmp_path: Path) -> None:
    (tmp_path / "d.txt").write_text("one\n\none\n")
    found = pare("check", recipe, "--json", "--set", "data.evaluate=d.txt", "--set", "evaluate.metrics=[perplexity]")
    assert found.json[0]["warnings"]
    assert all(f"warning: {message}" in found.err for message in found.json[0]["warnings"])


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        (("check", QUICKSTART, "--set", "seed=-1", "--set", "model=./nowhere"), 2),
        (("plan", QUICKSTART, "--set", "seed=-1"), 1),
        (("run", QUICKSTART, "--set", "seed=-1"), 1),
        (("eval", "./nowhere", "./nowhere"), 1),
        (("check", QUICKSTART, "--no-such-option"), 1),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_what_is_wrong_is_one_json_value_where_json_is_asked_for(
    pare: Pare, arguments: tuple[str, ...], count: int
) -> None:
    found = pare(*arguments, "--json")
    assert found.code == 2
    problems = found.json["problems"]
    assert len(problems) == count
    assert all(problem.keys() == {"place", "message", "fix"} and problem["fix"] for problem in problems)
    assert all(problem["message"] in found.err for problem in problems)
    assert pare(*arguments).out == ""


def test_a_plan_as_json_says_what_python_says(pare: Pare) -> None:
    (found,) = pare("plan", QUICKSTART, "--json").json
    plan = compress.plan(QUICKSTART)
    assert [node["key"] for node in found["nodes"]] == [node.key for node in plan.nodes]
    assert [node["id"] for node in found["nodes"]] == [node.id for node in plan.nodes]
    assert found["kept_bytes"] == plan.kept_bytes == sum(node["kept_bytes"] for node in found["nodes"])
    assert found["kept_bytes"] <= found["disk_bytes"] == plan.disk_bytes <= sum(n["disk_bytes"] for n in found["nodes"])
    assert found["memory_bytes"] == plan.memory_bytes
    assert found["nodes"][2]["params"] == {"steps": 6, "scheduler": None, "spacing": None}
    assert found["nodes"][2]["components"] == ["unet"]


def test_a_matrix_is_planned_whole(pare: Pare, tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(
        f"extends: {QUICKSTART}\nmatrix: {{n: [4, 8]}}\nstages: [accelerate.steps: {{steps: '${{n}}'}}]\n"
    )
    assert [p["name"] for p in pare("plan", "m.yaml", "--json").json] == ["quickstart-n-4", "quickstart-n-8"]


def test_the_list_as_json_names_everything_on_disk(pare: Pare) -> None:
    found = pare("list", "--json").json
    assert tuple(found["stages"]) == stage_names()
    assert tuple(found["metrics"]) == metric_names()
    assert all(found["stages"].values())
    assert "zoo://docs-llama" in found["models"]
    assert "zoo://digits/test" in found["data"]


def test_the_doctor_as_json_and_as_text_says_the_same(pare: Pare) -> None:
    found = pare("doctor", "--json").json
    assert set(found) >= {"machine", "engines", "libraries", "cache"}
    text = pare("doctor").out
    assert all(section in text for section in found)
    assert all(f"{name} " in text for name in found["libraries"])


def test_a_run_as_json_is_one_value_and_its_notes_go_to_the_other_stream(pare: Pare, recipe: str) -> None:
    message = pare("run", recipe, "--json")
    assert message.code == 0
    assert [row["metric"] for row in message.json["rows"]] == ["size"]
    assert (Path("runs") / "tiny" / "report.html").is_file()


def test_a_comparison_of_folders_as_json(pare: Pare, tmp_path: Path) -> None:
    small, large = language_model(tmp_path / "small"), language_model(tmp_path / "large", (20, 30))
    message = pare("eval", str(small), str(large), "--metrics", "size", "--json", "--out", "compared")
    (row,) = message.json["rows"]
    assert row["metric"] == "size"
    assert (tmp_path / "compared" / "result.json").is_file()
    assert json.loads((tmp_path / "compared" / "result.json").read_text()) == message.json


# The cache


@pytest.fixture
def filled(tmp_path: Path) -> Cache:
    cache = Cache(tmp_path / "cache")
    cache.prepare()
    for age, letter in enumerate("ab"):
        folder = cache.fresh()
        language_model(folder, (100, 100))
        cache.put(letter * 64, folder, {"stage": f"demo.{letter}"})
        os.utime(cache.entry(letter * 64) / ENTRY, (10**9 - age, 10**9 - age))
    return cache


def test_the_cache_shows_its_entries(pare: Pare, filled: Cache) -> None:
    found = pare("cache", "--json").json
    assert found["root"] == str(filled.root)
    assert [(e["stage"], e["problem"]) for e in found["entries"]] == [("demo.b", ""), ("demo.a", "")]
    assert all(e["size_bytes"] > 40_000 for e in found["entries"])
    text = pare("cache").out
    assert "demo.a" in text
    assert "2 entries, 0.1 MB" in text


def test_the_cache_shows_all_its_kinds(pare: Pare, filled: Cache) -> None:
    evidence = filled.root / "evidence" / ("e" * 64)
    evidence.mkdir()
    (evidence / "logprobs.safetensors").write_bytes(bytes(2_000_000))
    found = pare("cache", "--json").json["kinds"]
    assert set(found) == {"entries", "evidence", "features", "scratch", "training", "code", "digests"}
    assert found["evidence"] == {"count": 1, "size_bytes": 2_000_000}
    assert found["entries"] == {"count": 2, "size_bytes": sum(e.size_bytes for e in filled.entries())}
    message = pare("cache").out
    assert re.search(r"^evidence +1 +2\.0 MB$", message, re.MULTILINE)
    assert "2 entries, 2.1 MB" in message


def test_the_cache_shrinks_by_whatever_kind_is_oldest(pare: Pare, filled: Cache) -> None:
    feature = filled.root / "features" / f"{'f' * 64}.safetensors"
    feature.parent.mkdir()
    feature.write_bytes(bytes(1000))
    os.utime(feature, (10**8, 10**8))
    assert pare("cache", "--max-size", "0.0811MB", "--json").json["evicted"] == ["f" * 64]
    assert not feature.exists()


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_corrupt_entry_is_exit_1(pare: Pare, filled: Cache, options: tuple[str, ...]) -> None:
    weights = filled.entry("a" * 64) / "model.safetensors"
    before = weights.stat()
    with weights.open("r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"\x01")
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert pare("cache", *options).code == 0  # size and time are as they were
    message = pare("cache", "--verify", *options)
    assert message.code == 1
    assert "model.safetensors changed" in message.out


def test_the_cache_shrinks_to_a_size(pare: Pare, filled: Cache) -> None:
    found = pare("cache", "--max-size", "0.05MB", "--json").json
    assert found["evicted"] == ["b" * 64]
    assert [e["key"] for e in found["entries"]] == ["a" * 64]
    assert "1 evicted" in pare("cache", "--max-size", "0KB").out


@pytest.mark.parametrize("size", ["", "5", "GB", "fiveGB", "5XB", "-5GB", "nanGB", "infGB", "1e999GB"])
def test_a_size_that_is_none_evicts_nothing(pare: Pare, filled: Cache, size: str) -> None:
    message = pare("cache", "--max-size", size)
    assert len(filled.entries()) == 2
    if size:
        assert message == Said(2, "", f"--max-size: {size!r} is no size\n  fix: for example 500MB or 20GB\n")


@pytest.mark.parametrize(("size", "kept"), [("41kb", 1), ("0.5 GB", 2), ("1TB", 2)])
def test_sizes_may_be_written_in_any_case_and_with_a_space(pare: Pare, filled: Cache, size: str, kept: int) -> None:
    assert pare("cache", "--max-size", size).code == 0
    assert len(filled.entries()) == kept


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "message", "fix"),
    [
        (("chek",), "No such command 'chek'. Did you mean 'check'", "pare --help"),
        (("plan",), "Missing argument 'RECIPE'", "pare plan --help"),
        (("plan", "r.yaml", "--fast"), "No such option: --fast", "pare plan --help"),
        (("list", "extra"), "unexpected extra argument", "pare list --help"),
        (("eval", "a", "b", "--samples", "1"), "--samples", "pare eval --help"),
        (("eval", "a", "b", "--samples", "many"), "--samples", "pare eval --help"),
        (("explain", "kidd"), "no stage, metric, task or engine is called `kidd`", "did you mean `kid`"),
        (("explain", "build.openvno"), "is called `build.openvno`", "did you mean `build.openvino`?"),
        (("check", "nowhere.yaml"), "cannot be read", "check the path"),
        (("run", "nowhere.yaml", "--max-size", "big"), "--max-size: 'big' is no size", "for example 500MB"),
        (("eval", "nowhere", "zoo://docs-llama"), "no such model folder", "give a folder"),
        (("eval", "zoo://docs-lama", "zoo://docs-llama"), "no model `docs-lama`", "`docs-llama`"),
        (("eval", "zoo://docs-llama", "zoo://digits-diffusion"), "different tasks", "compare two models of one task"),
        (("eval", "zoo://docs-llama", "zoo://docs-llama", "--metrics", "sizes"), "called `sizes`", "`size`"),
        (("eval", "zoo://docs-llama", "zoo://docs-llama", "--metrics", "perplexity"), "needs evaluation data", "data"),
        (
            ("check", QUICKSTART, "--set", "stages.2.steps=0"),
            "--set stages.2.steps: accelerate.steps.steps must be at least 1",
            "",
        ),
        (("check", QUICKSTART, "--set", "stages.0"), "is not path=value", "stages.0.ratio=0.3"),
    ],
    ids=lambda value: "-".join(value)[:40] if isinstance(value, tuple) else "",
)
def test_a_mistake_is_exit_2_with_a_remedy_and_no_traceback(
    pare: Pare, arguments: tuple[str, ...], message: str, fix: str
) -> None:
    found = pare(*arguments)
    assert found.code == 2
    assert found.out == ""
    assert message in found.err
    assert fix in found.err.partition("fix: ")[2]
    assert "Traceback" not in found.err


def test_all_problems_of_a_recipe_are_reported_and_counted(pare: Pare, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(
        "schema: 1\nname: a\nmodel: zoo://docs-llama\nseed: -1\nstages: [bild.openvino]\nevaluate: {metrics: [sise]}\n"
    )
    message = pare("check", "bad.yaml").err
    assert re.findall(r"^bad\.yaml:(\d+):", message, re.MULTILINE) == ["4", "5", "6"]
    assert message.count("  fix: ") == 3
    assert message.endswith("3 problems\n")


def test_a_cache_that_cannot_be_written_is_one_error(pare: Pare, tmp_path: Path, recipe: str) -> None:
    (tmp_path / "file").write_text("")
    message = pare("run", recipe, "--cache", str(tmp_path / "file"))
    assert message.code == 2
    assert "cannot be written" in message.err
    assert "--cache DIR or PARE_CACHE" in message.err


def test_a_run_folder_that_cannot_be_written_is_one_error(pare: Pare, tmp_path: Path, recipe: str) -> None:
    (tmp_path / "file").write_text("")
    message = pare("run", recipe, "--out", str(tmp_path / "file"))
    assert message.code == 2
    assert "give another with --out" in message.err


# How it ends


def ending(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def raising(*arguments: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr("compress.api.plan_all", raising)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError("a mistake", fix="mend it"), 2),
        (StageFailed("a stage failed", fix="mend it"), 3),
        (ContractError("a broken contract", fix="mend it"), 3),
    ],
)
def test_errors_raised_on_purpose_have_their_own_code_and_no_traceback(
    pare: Pare, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int
) -> None:
    ending(monkeypatch, error)
    message = pare("check", "r.yaml")
    assert message == Said(code, "", f"{error}\n")


@pytest.mark.parametrize("error", [ValueError("surprise"), OSError(errno.EIO, "surprise"), AssertionError("surprise")])
def test_any_other_error_is_exit_3_with_its_traceback_and_asks_to_be_reported(
    pare: Pare, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    ending(monkeypatch, error)
    message = pare("check", "r.yaml")
    assert message.code == 3
    assert message.out == ""
    assert "Traceback" in message.err
    assert "surprise" in message.err
    assert message.err.endswith("pare: this is a fault of pare; please report it with the lines above\n")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), EOFError()])
def test_ctrl_c_is_exit_130_with_the_line_that_resumes(
    pare: Pare, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    ending(monkeypatch, error)
    before = signal.getsignal(signal.SIGINT)
    message = pare("check", "my recipe.yaml", "--set", "seed=1")
    signal.signal(signal.SIGINT, before)  # a command would end here, and takes no other for it
    assert message.code == 130
    assert message.err.endswith("stopped; resume with: pare check 'my recipe.yaml' --set seed=1\n")
    assert "Traceback" not in message.err


def test_the_worst_verdict_of_a_matrix_is_the_exit_code(
    pare: Pare, monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    from types import SimpleNamespace

    monkeypatch.setattr("evaluation.report.terminal.show", lambda comparison: None)
    monkeypatch.setattr("evaluation.report.runs_table.show", lambda comparisons: None)
    for codes, worst in (((0, 0), 0), ((0, 4), 4), ((1, 4), 1), ((4, 1, 0), 1)):
        found = tuple(SimpleNamespace(exit_code=code) for code in codes)
        monkeypatch.setattr("compress.api.run_all", lambda *a, found=found, **o: found)
        assert pare("run", recipe).code == worst


# Piped


def piped(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "compress.cli", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, **options)


def test_piped_output_holds_no_colour_and_no_bar(pare: Pare, recipe: str, tmp_path: Path) -> None:
    environment = {**os.environ, "TERM": "xterm-256color"}
    done = piped("run", str(tmp_path / recipe), "--out", str(tmp_path / "out"), env=environment)
    assert done.returncode == 0, done.stderr
    assert "size on disk" in done.stdout
    assert not ANSI.search(done.stdout + done.stderr)
    assert "\r" not in done.stdout + done.stderr


@pytest.mark.parametrize("unbuffered", ["1", ""], ids=["found out while printing", "found out at the end"])
def test_a_reader_that_goes_away_is_no_failure(unbuffered: str) -> None:
    command, environment = (
        [sys.executable, "-m", "compress.cli", "list"],
        {**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=writing, stderr=subprocess.PIPE, text=True, check=False
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_reader_that_goes_away_does_not_hide_the_verdict(
    pare: Pare, monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    from types import SimpleNamespace

    def gone(comparison: object) -> None:
        raise BrokenPipeError(errno.EPIPE, "nobody reads")

    monkeypatch.setattr("compress.cli.unread", lambda: 0)  # it would close this process's own output
    monkeypatch.setattr("evaluation.report.terminal.show", gone)
    monkeypatch.setattr("compress.api.run_all", lambda *a, **o: (SimpleNamespace(exit_code=1),))
    assert pare("run", recipe).code == 1


@pytest.mark.parametrize("arguments", [("--help",), ("list", "--json"), ("check", QUICKSTART)])
def test_it_answers_without_loading_a_model_library(arguments: tuple[str, ...]) -> None:
    heavy = "{'torch', 'transformers', 'diffusers', 'openvino', 'nncf', 'scipy', 'pandas', 'safetensors'}"
    code = (
        "import sys\nfrom compress.cli import main\n"
        f"try:\n    main({list(arguments)!r})\n"
        f"finally:\n    print(sorted({heavy} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "[]\n")

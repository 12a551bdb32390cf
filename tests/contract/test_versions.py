"""A version stands in keys: source that changes under an old version would pass off old results as new.

Golden files tie the version of each stage and metric, and the format of evidence and of features, to a hash of all of pare's own
source that it reaches (`tests/imports.py`), except modules that cannot change a result. Comments, docstrings and layout do not
count. Where a change cannot alter a result, `make golden` rewrites the hash alone, and the reviewer sees that it did.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import compress
from compress.adapters import fusing
from compress.catalogue import find_metric, find_stage, metric_names, stage_names
from compress.making import converting
from compress.sources import originals
from evaluation.features import feature_cache
from evaluation.observe import collect
from tests.imports import PACKAGES, Sources, named, what_runs

ROOT = Path(compress.__file__).parent.parent
SOURCES = Sources(ROOT)
ALLOWED = {
    "compress": "the face: it holds nothing but where its names live",
    "compress.store.cache": "keeps what others made, by a key it is given",
    "compress.catalogue": "finds stages and metrics, and makes nothing; what a record says stands in keys and formats",
    "compress.machine.deps": "tells what is installed: versions stand in keys",
    "compress.errors": "words for what went wrong: nothing is left behind then",
    "compress.events": "reported to listeners, and never read back",
    "compress.params": "a parameter's value stands in the key, its default included",
    "compress.recipe.values": "what was asked: it stands in the key",
    "compress.zoo": "models and data, whose digests stand in keys",
}


def formats_of(name: str) -> frozenset[str]:
    """The formats a stage takes and leaves."""
    formats = find_stage(name).formats
    return frozenset({*formats, *formats.values()})


def calls_others(name: str) -> bool:
    """Whether a stage runs others; which, is up to its parameters and to what is installed."""
    stage = find_stage(name)
    return bool(stage.calls(stage.params.model_construct()))


def reach_of_stage(name: str, sources: Sources = SOURCES) -> frozenset[str]:
    """What a stage answers for: its own file, the engines of its formats, and the stages that it may run itself."""
    verb = name.split(".")[0]
    runs = [n for n in stage_names() if n.startswith(f"{verb}.")] if calls_others(name) else [name]
    formats = frozenset().union(*map(formats_of, runs))
    engines = [module for each in formats for module in sources.engine(each)]
    return sources.reached([*(f"compress.stages.{n}" for n in runs), *engines], formats, ALLOWED)


def reach_of_metric(name: str, sources: Sources = SOURCES) -> frozenset[str]:
    """What a metric answers for. An engine is what it measures, and no part of it."""
    return sources.reached([f"evaluation.metrics.{name}"], (), ALLOWED)


def reach_of_evidence(sources: Sources = SOURCES) -> frozenset[str]:
    """What decides what a side shows, whatever engines it has."""
    formats = frozenset().union(*map(formats_of, stage_names()))
    engines = [module for each in formats for module in sources.engine(each)]
    return sources.reached([collect.__name__, *engines], formats, ALLOWED)


def reach_of_features(sources: Sources = SOURCES) -> frozenset[str]:
    """What makes a vector of an image: everything beside the module that keeps vectors."""
    package = feature_cache.__name__.rpartition(".")[0]
    return sources.reached([n for n in sources.files if n.startswith(f"{package}.")], (), ALLOWED)


def reach_of_adapters(sources: Sources = SOURCES) -> frozenset[str]:
    """What decides a model with adapters in it."""
    return sources.reached([fusing.__name__], (), ALLOWED)


def reach_of_conversions(sources: Sources = SOURCES) -> frozenset[str]:
    """What decides a model that is made of a checkpoint in one file."""
    return sources.reached([converting.__name__], (), ALLOWED)


@cache
def reaches() -> list[frozenset[str]]:
    """Of everything that has a version."""
    named = [*map(reach_of_stage, stage_names()), *map(reach_of_metric, metric_names())]
    return [*named, reach_of_evidence(), reach_of_features(), reach_of_adapters(), reach_of_conversions()]


Known = Mapping[str, Mapping[str, Any]]


def stages(sources: Sources = SOURCES) -> dict[str, dict[str, Any]]:
    return {
        n: {"version": find_stage(n).version, "source": sources.fingerprint(reach_of_stage(n, sources))}
        for n in stage_names()
    }


def metrics(sources: Sources = SOURCES) -> dict[str, dict[str, Any]]:
    return {
        n: {"version": find_metric(n).version, "source": sources.fingerprint(reach_of_metric(n, sources))}
        for n in metric_names()
    }


def kept(sources: Sources = SOURCES) -> dict[str, dict[str, Any]]:
    return {
        "evidence": {"version": collect.FORMAT, "source": sources.fingerprint(reach_of_evidence(sources))},
        "features": {"version": feature_cache.FORMAT, "source": sources.fingerprint(reach_of_features(sources))},
        "adapters": {"version": fusing.VERSION, "source": sources.fingerprint(reach_of_adapters(sources))},
        "conversions": {
            "version": originals.VERSION,
            "source": sources.fingerprint(reach_of_conversions(sources)),
        },
    }


GUARDS = {"stage_versions.json": stages, "metric_versions.json": metrics, "evidence_versions.json": kept}


def changed_under_one_version(known: Known, now: Known) -> list[str]:
    return [
        name
        for name in now
        if name in known
        and now[name]["source"] != known[name]["source"]
        and now[name]["version"] == known[name]["version"]
    ]


@pytest.mark.parametrize("file", GUARDS)
def test_no_source_changes_under_an_old_version(file: str, golden: Callable[[str, str], str]) -> None:
    now = GUARDS[file]()
    if not os.environ.get("PARE_GOLDEN"):
        known = json.loads((ROOT / "tests" / "golden" / file).read_text())
        assert changed_under_one_version(known, now) == [], "raise the version, or if no result can differ, make golden"
    found = json.dumps(now, indent=2) + "\n"
    assert found == golden(file, found)


def test_only_a_change_without_a_new_version_is_reported() -> None:
    known = {"a": {"version": 1, "source": "x"}, "b": {"version": 1, "source": "x"}, "c": {"version": 1, "source": "x"}}
    now = {
        "a": {"version": 1, "source": "y"},
        "b": {"version": 2, "source": "y"},
        "c": known["c"],
        "d": {"version": 1, "source": "z"},
    }
    assert changed_under_one_version(known, now) == ["a"]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A checkout to change: this one's source alone."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=_all_but_source)
    assert len(list(tmp_path.rglob("*.py"))) > 100
    return tmp_path


def _all_but_source(folder: str, names: list[str]) -> list[str]:
    return [n for n in names if not n.endswith(".py") and not (Path(folder) / n).is_dir()]


def file_of(module: str, root: Path) -> Path:
    return root / SOURCES.files[module].relative_to(ROOT)


def reddened(root: Path) -> set[str]:
    """What would be red in a checkout."""
    sources = Sources(root)
    return {name for guard in GUARDS.values() for name in changed_under_one_version(guard(), guard(sources))}


def test_a_copy_of_the_source_is_green(copy: Path) -> None:
    assert reddened(copy) == set()


def test_what_llama_cpp_knows_belongs_to_gguf(copy: Path) -> None:
    """A plain module beside the packages, which a list of folders had missed."""
    _append(file_of("compress.machine.llama_cpp", copy), "ONE_MORE = 1\n")
    assert {"build.gguf", "build.fastest"} <= reddened(copy)
    assert not {"build.openvino", "prune.width", "kid", "features"} & reddened(copy)


def test_a_raised_version_and_a_rewritten_golden_are_green(copy: Path) -> None:
    _append(file_of("compress.machine.llama_cpp", copy), "ONE_MORE = 1\n")
    known, now = stages(), stages(Sources(copy))
    red = changed_under_one_version(known, now)
    assert "build.gguf" in red
    raised = {name: {**now[name], "version": now[name]["version"] + (name in red)} for name in now}
    assert changed_under_one_version(known, raised) == []
    assert changed_under_one_version(raised, raised) == []


def test_an_engine_that_is_found_by_its_formats_name_belongs_to_all_that_run_it(copy: Path) -> None:
    _append(file_of("compress.engines.openvino", copy), "ONE_MORE = 1\n")
    found = reddened(copy)
    assert {"build.openvino", "quantize.nncf", "build.fastest", "evidence"} <= found
    assert not {"build.gguf", "prune.depth", "kid", "perplexity"} & found


def test_an_engines_whole_package_belongs_to_it(copy: Path) -> None:
    engine = file_of("compress.engines.gguf", copy)
    package = engine.with_suffix("") if engine.name != "__init__.py" else engine.parent
    package.mkdir(exist_ok=True)
    (package / "beside.py").write_text("ONE_MORE = 1\n")
    assert "compress.engines.gguf.beside" in reach_of_stage("build.gguf", Sources(copy))
    assert "compress.engines.gguf.beside" not in reach_of_stage("build.openvino", Sources(copy))


def test_a_package_that_is_imported_on_the_way_counts(copy: Path) -> None:
    _append(file_of("compress.building", copy), "ONE_MORE = 1\n")
    assert "build.openvino" in reddened(copy)
    assert not {"accelerate.steps", "kid"} & reddened(copy)


def test_a_metric_answers_for_what_it_computes_with(copy: Path) -> None:
    _append(file_of("evaluation.distances.mmd", copy), "ONE_MORE = 1\n")
    assert reddened(copy) == {"kid", "cmmd"}


def test_words_and_layout_alone_turn_nothing_red(copy: Path) -> None:
    for module in SOURCES.files:
        file = file_of(module, copy)
        tree = "".join(f"{line}\n" for line in file.read_text().splitlines())
        file.write_text(f"{tree}\n\n# one more comment\n")
    llama = file_of("compress.machine.llama_cpp", copy)
    llama.write_text(llama.read_text().replace('"""', '"""In other words. ', 1))
    assert reddened(copy) == set()


@pytest.mark.parametrize("module", sorted(ALLOWED))
def test_what_is_allowed_to_change_is_on_disk_and_imported_by_what_counts(module: str) -> None:
    assert module in SOURCES.files, "it is gone, or lies elsewhere now"
    assert len(ALLOWED[module]) > 20, "say why it cannot change a result"
    stopped = {name for reach in reaches() for name in SOURCES.stopped_at(reach, SOURCES.engines)}
    assert module in stopped, "nothing that counts imports it: take it off"


def test_what_no_version_answers_for_is_known(golden: Callable[[str, str], str]) -> None:
    """A module that is suddenly found in a way that `tests/imports.py` cannot follow appears in this list."""
    guarded = frozenset().union(*reaches())
    found = "".join(f"{module}\n" for module in SOURCES.files if module not in guarded)
    assert found == golden("unguarded.txt", found)


def test_every_format_has_an_engine_or_is_made_by_calling_other_stages() -> None:
    for name in stage_names():
        assert all(SOURCES.engine(f) for f in formats_of(name)) or calls_others(name), name


def test_whatever_a_stage_counts_it_counts_with_all_that_it_imports() -> None:
    for name in stage_names():
        reach, own = reach_of_stage(name), formats_of(name)
        assert f"compress.stages.{name}" in reach
        assert SOURCES.stopped_at(reach, own) <= ALLOWED.keys()


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ('"""One."""\nx = 1\n', '"""Two."""\nx = 1  # comment\n', True),
        ("x = 1\n", '"""New."""\nx = (\n    1\n)\n', True),
        ("def f():\n    'why'\n    return 1\n", "def f():\n    'other'\n\n    return 1\n", True),
        ("class A:\n    x = 1\n    'what'\n", "class A:\n    x = 1\n", True),
        ("if TYPE_CHECKING:\n    import a\nx = 1\n", "if TYPE_CHECKING:\n    import b\nx = 1\n", True),
        ("x = 1\n", "x = 2\n", False),
        ("x = 'one'\n", "x = 'two'\n", False),
        ("if TYPE_CHECKING:\n    x = 1\nelse:\n    x = 2\n", "if TYPE_CHECKING:\n    x = 1\nelse:\n    x = 3\n", False),
    ],
)
def test_only_what_runs_counts(before: str, after: str, same: bool) -> None:
    one, other = (ast.dump(what_runs(text)) for text in (before, after))
    assert (one == other) is same


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import compress.files.hashing", {"compress.files.hashing"}),
        ("def f():\n    from compress.engines import onnx", {"compress.engines.onnx"}),
        ("from . import onnx", {"compress.engines.onnx"}),
        ("from ..graphs import wanted", {"compress.graphs.wanted"}),
        ("run('-m', 'compress.execution.reload')", {"compress.execution.reload", "compress.execution.reload.{}"}),
        ("all_in('compress.tasks')", {"compress.tasks", "compress.tasks.{}"}),
        ("find(f'compress.engines.{part.format}')", {"compress.engines.{}", "compress.engines.{}.{}"}),
        ("find(f'{__name__}.{format}')", {"compress.engines.{}", "compress.engines.{}.{}"}),
        ("'compress.engines is a package'", set()),
        ("if TYPE_CHECKING:\n    import compress.api", set()),
    ],
)
def test_a_module_is_named_by_imports_and_strings(source: str, found: set[str]) -> None:
    assert set(named(what_runs(source), "compress.engines")) == found


def _append(file: Path, text: str) -> None:
    file.write_text(file.read_text() + text)

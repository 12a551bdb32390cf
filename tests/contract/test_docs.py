"""README and docs/ keep to what is: recipes are checked, Python runs, quoted output is real, links lead somewhere, tables are whole."""

from __future__ import annotations

import inspect
import io
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

import compress
from compress.catalogue import engine_names, find_engine, find_metric, find_stage, metric_names, stage_names
from compress.cli import app
from compress.errors import RecipeError
from compress.model.hook_settings import APPLIED
from compress.recipe.schema import recipe_schema
from compress.recipe.values import Recipe
from evaluation.comparison import Comparison
from tests import documents
from tests.documents import PAGES, ROOT, Block, blocks, commands, furnish

KEYS = recipe_schema()["properties"].keys()
BASE = """\
schema: 1
name: base
model: zoo://digits-diffusion
data: {train: zoo://digits/train, calibration: zoo://digits/validation, evaluate: zoo://digits/test}
stages: [accelerate.steps: {steps: 6}]
evaluate: {metrics: [latency]}
"""


def is_recipe(block: Block) -> bool:
    """Whether a block is a recipe or some sections of one; any other YAML is a job of GitHub's."""
    found = yaml.safe_load(block.text)
    return isinstance(found, dict) and found.keys() <= KEYS


def at(found: list[Block]) -> list[Any]:
    return [pytest.param(block, id=block.place) for block in found]


RECIPES = [block for block in blocks("yaml") if is_recipe(block)]
QUOTED = [block for block in blocks("console", "text") if block.info]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder, in which every example has what it names."""
    folder = tmp_path_factory.mktemp("home")
    furnish(folder)
    (folder / "base.yaml").write_text(BASE)
    return folder


@pytest.fixture
def inside(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(home)
    monkeypatch.setenv("PARE_CACHE", str(home / "cache"))
    return home


def test_every_page_is_found_and_has_examples() -> None:
    assert {page.name for page in PAGES} >= {"README.md", "recipes.md", "own-models.md", "ci.md", "python.md"}
    assert {block.file.name for block in RECIPES} >= {"README.md", "recipes.md", "own-models.md", "metrics.md"}
    assert len([block for block in RECIPES if block.file.name == "README.md"]) == 2
    assert [block.file.name for block in blocks("yaml") if not is_recipe(block)] == ["ci.md"] * 2
    assert not [block.place for block in blocks("") if block.text], "a block without a language is not looked at"


@pytest.mark.parametrize("block", at(RECIPES))
def test_a_recipe_passes_check(block: Block, inside: Path) -> None:
    """Sections of a recipe are laid over a small one."""
    whole = {"schema", "extends"} & yaml.safe_load(block.text).keys()
    (inside / "example.yaml").write_text(("" if whole else "extends: base.yaml\n") + block.text)
    assert compress.check("example.yaml")


def test_a_matrix_gets_the_names_that_the_page_says(inside: Path) -> None:
    (block,) = (block for block in RECIPES if "matrix:" in block.text)
    (inside / "example.yaml").write_text(block.text)
    names = [recipe.name for recipe in compress.check("example.yaml")]
    assert len(names) == 4
    assert f"`{names[0]}`" in block.file.read_text(encoding="utf-8")


def test_a_mistake_in_a_recipe_would_be_seen(inside: Path) -> None:
    (inside / "example.yaml").write_text("extends: base.yaml\ngates: {latency: {quicker: 2}}\n")
    with pytest.raises(RecipeError, match="quicker"):
        compress.check("example.yaml")


# Python


@pytest.fixture
def quick(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What would take minutes is checked and planned, and answers with the committed run."""
    (known,) = compress.report([ROOT / "reports/quickstart"])

    def run(recipe: str | Recipe, **options: Any) -> Comparison:
        inspect.signature(real["run"]).bind(recipe, **options)
        assert compress.plan(recipe).nodes
        return known

    def evaluate(candidate: str, baseline: str, **options: Any) -> Comparison:
        inspect.signature(real["evaluate"]).bind(candidate, baseline, **options)
        assert all(find_metric(name) for name in options["metrics"])
        assert all(Path(name).exists() for name in (candidate, baseline, options["data"]))
        return known

    def apply(stage: str, model: str, **options: Any) -> Path:
        inspect.signature(real["apply"]).bind(stage, model, **options)
        text = yaml.safe_dump({"schema": 1, "name": "applied", "model": model, "stages": [{stage: options}]})
        (inside / "applied.yaml").write_text(text)
        return compress.plan("applied.yaml").source.artifact.path

    real = {name: getattr(compress, name) for name in ("run", "evaluate", "apply")}
    for stand_in in (run, evaluate, apply):
        monkeypatch.setattr(compress, stand_in.__name__, stand_in, raising=False)


@pytest.mark.parametrize("block", at(blocks("python")))
@pytest.mark.usefixtures("quick")
def test_python_runs(block: Block) -> None:
    named: dict[str, Any] = {}
    exec(compile(block.text, block.place, "exec"), named)
    assert named.keys() - {"__builtins__"}, "an example names what it makes or imports"


@pytest.mark.usefixtures("inside")
def test_what_python_shows_of_mistakes_are_mistakes() -> None:
    (block,) = (block for block in blocks("python") if "PareError" in block.text)
    with pytest.raises(RecipeError) as caught:
        exec(
            compile(block.text.replace("except compress.PareError", "except ZeroDivisionError"), block.place, "exec"),
            {},
        )
    assert len(caught.value.problems) == 2


# Output and commands


def shown(info: str) -> list[str]:
    """The lines of a golden file, or those that a committed run ends with."""
    if info.startswith("reports/"):
        from rich.console import Console

        from evaluation.report.terminal import show

        (comparison,) = compress.report([ROOT / info])
        out = io.StringIO()
        show(comparison, Console(file=out, width=100))
        return [line.rstrip() for line in out.getvalue().splitlines()]
    return [line.rstrip() for line in (ROOT / info).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("block", at(QUOTED))
def test_quoted_output_is_real(block: Block) -> None:
    """Line for line in the order of the source, which may have more."""
    rest: Iterator[str] = iter(shown(block.info))
    missing = [line for line in block.text.splitlines() if line not in rest]
    assert not missing, f"not in {block.info}, or not in this order; its lines may be copied from there"


def test_all_output_says_whence_it_is() -> None:
    assert QUOTED
    unnamed = [block for block in blocks("console", "text") if not block.info]
    assert not [block.place for block in unnamed if not all(line.startswith("$ ") for line in block.text.splitlines())]


@pytest.mark.parametrize(("run", "page"), [("quickstart", "9.4 times"), ("few-steps", "26 times")])
def test_readme_owns_up_to_all_that_got_worse(run: str, page: str) -> None:
    """Whatever no gate bounds and lies wholly on the bad side in a committed run is named in its paragraph."""
    (comparison,) = compress.report([ROOT / "reports" / run])
    (paragraph,) = (part for part in README.split("\n\n") if page in part)
    for row in comparison.rows:
        neutral = 1.0 if row.compared == "ratio" else 0.0
        low, high = row.contrast.low, row.contrast.high
        if (
            row.gate or low is None or high is None or row.metric == "lpips"
        ):  # how far from the baseline's own, never better
            continue
        worse = high < neutral if row.compared == "ratio" or row.better == "higher" else low > neutral
        if worse:
            assert row.title.partition(",")[0] in paragraph.replace("vary less", "variety"), row.title


README = (ROOT / "README.md").read_text(encoding="utf-8")


@cache
def known_options(command: str) -> set[str]:
    found = typer.main.get_command(app)
    return {name for option in found.commands[command].params for name in option.opts}  # type: ignore[attr-defined]


def test_commands_have_the_options_shown_and_name_recipes_that_exist() -> None:
    seen = 0
    for place, line in commands():
        verb, *words = shlex.split(line, comments=True)[1:]
        options = {word for word in words if word.startswith("--")}
        assert options <= known_options(verb), f"{place}: {line}"
        files = [word for word in words if word.startswith("recipes/")]
        assert all((ROOT / name).is_file() for name in files), f"{place}: {line}"
        seen += 1
    assert seen > 20


@pytest.mark.usefixtures("inside")
def test_changes_from_outside_can_be_made() -> None:
    lines = [line for _, line in commands() if "--set" in line and "recipes/" in line]
    assert len(lines) > 3
    for line in lines:
        words = shlex.split(line)
        compress.check(words[2], [word for word in words if "=" in word])


# Links, names, tables


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for path, heading in documents.links(page):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), path
        assert not heading or heading in documents.headings(target), f"{path}#{heading}"


def test_every_page_is_reached_from_readme() -> None:
    reached, todo = {ROOT / "README.md"}, [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        found = {(page.parent / path).resolve() for path, _ in documents.links(page) if path.endswith(".md")}
        todo += found & set(PAGES) - reached
        reached |= found
    assert set(PAGES) <= reached


def test_stages_that_pages_name_exist() -> None:
    verbs = "|".join(sorted({name.partition(".")[0] for name in stage_names()}))
    named = {(page.name, name) for page in PAGES for name in re.findall(rf"\b(?:{verbs})\.[a-z_]+\b", page.read_text())}
    assert named
    assert not {
        (page, name) for page, name in named if name not in stage_names() and not name.endswith((".md", ".yaml"))
    }


def test_every_metric_is_described() -> None:
    described = (ROOT / "docs/metrics.md").read_text().partition("## Gates")[0]
    assert set(re.findall(r"`(\w+)`", described)) == set(metric_names())


def test_the_table_of_engines_has_their_precisions() -> None:
    rows = re.findall(r"^\| `(build\.\w+)` \| ([\w .-]+) \|.*\| (.*) \|$", (ROOT / "docs/engines.md").read_text(), re.M)
    engines = {find_engine(name).title: find_engine(name) for name in engine_names() if name != "torch"}
    tabled = {title: set(re.findall(r"[a-z]+\d+\w*", precisions)) for _, title, precisions in rows if title in engines}
    assert tabled == {title: set(engine.precisions) for title, engine in engines.items()}
    assert {stage for stage, *_ in rows} == {name for name in stage_names() if name.startswith("build.")}


def told() -> list[str]:
    """What the troubleshooting page says that pare says: the first cell of each row."""
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    return re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)


@pytest.mark.parametrize("said", told())
def test_what_the_troubleshooting_page_quotes_is_what_pare_says(said: str) -> None:
    parts = [part for part in re.split(r"\s*…\s*", said) if part]
    assert any(all(part in text for part in parts) for text in _sources()), said


def test_the_troubleshooting_page_quotes_errors() -> None:
    assert len(told()) == len(set(told())) > 20


@cache
def _sources() -> tuple[str, ...]:
    """The sources, with strings that are continued on the next line in one piece."""
    files = (file for name in ("compress", "evaluation") for file in (ROOT / name).rglob("*.py"))
    return tuple(re.sub(r'"\n\s*f?"', "", file.read_text()) for file in files)


def test_what_needs_pare_is_listed_by_name() -> None:
    """Hooks, the lean call, and whatever leaves a component that torch does not run."""
    section = (ROOT / "docs" / "engines.md").read_text().partition("## What needs pare")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    named = [name for row in rows for name in re.findall("`([a-z_.]+)`", row)]
    engines = {name for name in stage_names() if {*find_stage(name).formats.values()} - {"torch"}}
    assert sorted(named) == sorted({*APPLIED, "accelerate.call", *engines})

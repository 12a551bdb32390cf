"""What a report hands over: the candidate's folder, and three lines that say how to call it."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import compress
from compress.artifact import Artifact, Component, Settings
from compress.catalogue import find_task, task_names
from compress.tasks import Usage
from evaluation.comparison.usage import is_stock
from evaluation.report import formatting, html, markdown
from tests.fakes import language_model
from tests.unit import comparisons


@pytest.mark.parametrize("task", task_names())
@pytest.mark.parametrize("stock", [True, False])
@pytest.mark.parametrize("trusted", [True, False])
@pytest.mark.parametrize("chat", [True, False])
def test_every_task_is_called_in_three_lines_of_python(task: str, stock: bool, trusted: bool, chat: bool) -> None:
    call = {"num_inference_steps": 4, "prompt": 'say "a"', "generator": object()}
    lines = find_task(task).usage(Usage('/a "b"/c\\d', stock, trusted, call, 'a "red" one', "cuda:1", chat))
    assert len(lines) == 3
    texts = [node.value for node in ast.walk(ast.parse("\n".join(lines))) if isinstance(node, ast.Constant)]
    assert {'/a "b"/c\\d', 'a "red" one', 4, 'say "a"'} <= set(texts)
    assert ("compress.load" in lines[1]) != stock
    assert ("trust_remote_code=True" in lines[1]) == trusted
    assert lines[1].count('"cuda:1"') == 1
    assert "generator" not in lines[2]


def test_a_model_is_stock_where_nothing_of_it_needs_pare() -> None:
    plain = Artifact(Path("m"), "text_generation", {"model": Component("torch", "", "LlamaForCausalLM")})
    assert is_stock(plain)
    assert not is_stock(plain.replacing({"model": "openvino"}))
    assert not is_stock(replace(plain, settings=Settings(needs_pare=True)))


def test_every_summary_ends_with_the_candidate() -> None:
    found = comparisons.image()
    where, *code = formatting.handed(found)
    assert where == "your model: /home/you/small"
    assert markdown.render(found).endswith("\n".join(f"    {line}" for line in code) + "\n")
    page = html.render(found)
    assert page.index("Your model") > page.index("What was compared")
    assert "compress.load(&quot;/home/you/small&quot;)" in page


def test_an_evaluation_names_the_candidate_that_it_was_given(tmp_path: Path) -> None:
    one, other = (language_model(tmp_path / name) for name in ("one", "other"))
    found: Any = compress.evaluate(one, other, metrics=["size"], cache=tmp_path / "cache", out=tmp_path / "out")
    assert (found.handed.path, found.handed.note) == (str(one), "")

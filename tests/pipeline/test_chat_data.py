"""A model with a chat template is taught, and measured, on conversations: from a recipe to the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import compress
from compress.errors import RecipeError
from tests.chat_templates import TEMPLATES, chatting, exchanges
from tests.families import tiny_text

RECIPE = """
schema: 1
name: chats
model: ./model
data: {train: train.jsonl, evaluate: held-out.jsonl}
stages:
  - distill.logits: {teacher: ./teacher, steps: 30, warmup: 2, tokens: 64, batch: 4, hidden_weight: 0, data_weight: 1, learning_rate: 5.0e-3,
      ema: 0.5, precision: float32}
evaluate:
  prompt_tokens: 4
  new_tokens: 4
  continuations: 3
  metrics: [perplexity, kl, token_agreement]
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chats")
    for seed, name in enumerate(("model", "teacher")):
        chatting(tiny_text(folder / name, "qwen2", seed=seed, max_position_embeddings=128), TEMPLATES["gemma 2"])
    exchanges(folder / "train.jsonl", 24)
    exchanges(folder / "held-out.jsonl", 6, first=100)
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module")
def run(place: Path) -> Any:
    return compress.run(place / "recipe.yaml", cache=place / "cache", out=place / "out")


def test_answers_are_learnt_and_conversations_are_the_units(run: Any, place: Path) -> None:
    by_name = {row.metric: row for row in run.rows}
    assert by_name["perplexity"].candidate.value < 0.9 * by_name["perplexity"].baseline.value
    assert {by_name[name].candidate.n for name in ("perplexity", "kl")} == {6}
    assert by_name["kl"].candidate.value > 0
    assert by_name["token_agreement"].candidate.n == 3
    assert "of them the assistant's" in (place / "out" / "events.jsonl").read_text()


def test_a_reader_is_shown_a_question_through_the_template(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert '[{"role": "user", "content": "Item 100?"}]' in run.handed.code[-1]
    scored = [row.protocol["tokens"] for row in run.rows if row.metric in ("perplexity", "kl")]
    assert scored == ["the assistant's"] * 2
    exec("\n".join(run.handed.code), {})
    assert "Item" not in capsys.readouterr().out


def test_what_is_continued_is_the_question(run: Any) -> None:
    assert run.completions
    assert all(one.prompt.startswith("<start_of_turn>user\nItem 10") for one in run.completions)
    assert all(one.prompt.endswith("?<end_of_turn>\n<start_of_turn>model\n") for one in run.completions)


def test_an_evaluation_of_two_folders_reads_the_same(run: Any, place: Path) -> None:
    found = compress.evaluate(
        place / "teacher",
        place / "model",
        data=str(place / "held-out.jsonl"),
        metrics=["perplexity"],
        cache=place / "cache",
        out=place / "eval",
    )
    first, again = (next(row for row in one.rows if row.metric == "perplexity") for one in (run, found))
    assert again.baseline.value == pytest.approx(first.baseline.value, rel=1e-3)


def test_the_template_is_asked_for_before_anything_runs(place: Path) -> None:
    (place / "model" / "chat_template.jinja").rename(place / "kept")
    try:
        with pytest.raises(RecipeError) as caught:
            compress.check(place / "recipe.yaml", cache=place / "cache")
    finally:
        (place / "kept").rename(place / "model" / "chat_template.jinja")
    assert [problem.place.rpartition("/")[2] for problem in caught.value.problems] == [
        "recipe.yaml:5:15",
        "recipe.yaml:5:38",
    ]

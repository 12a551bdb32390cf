"""What a plan, and an evaluation, say of conversations before anything runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from compress.commands.evaluate import prepare
from compress.commands.wanted import Wanted
from compress.errors import Problem, RecipeError, UserError
from compress.planning.plan import make_plan
from compress.store.cache import Cache
from tests.chat_templates import TEMPLATES, THINKING, chatting, conversation, rows
from tests.fakes import language_model, pipeline, recipe

SHORT, LONG = conversation("Hi", "Hello!"), conversation("Hi", "Hello!", "Bye", "So long.")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return language_model(tmp_path / "llama")


def planned(tmp_path: Path, model: Path, *given: object, role: str = "evaluate") -> tuple[Problem, ...]:
    source = rows(tmp_path / "chats.jsonl", *given)
    named = recipe(model, data={role: source}, place={f"data.{role}": "r.yaml:4"})
    try:
        make_plan(named, Cache(tmp_path / "cache"))
    except RecipeError as error:
        return tuple(one for one in error.problems if one.place == "r.yaml:4")
    return ()


@pytest.mark.parametrize("role", ["train", "calibration", "evaluate"])
def test_without_a_chat_template_conversations_are_refused_with_a_way_out(
    tmp_path: Path, model: Path, role: str
) -> None:
    (problem,) = planned(tmp_path, model, {"text": "a text"}, SHORT, role=role)
    assert problem.message.startswith(
        f"{tmp_path / 'chats.jsonl'}:2 is a conversation, and the model's tokenizer has no chat template"
    )
    assert problem.fix.startswith('give texts, {"text": "…"}')
    chatting(model)  # the remedy
    assert planned(tmp_path, model, {"text": "a text"}, SHORT, role=role) == ()
    assert planned(tmp_path, model, {"text": "a text"}, role=role) == ()


def test_an_order_of_roles_that_the_template_refuses_is_reported_once_with_its_first_line(
    tmp_path: Path, model: Path
) -> None:
    chatting(model, TEMPLATES["gemma 2"])
    spoken = conversation("Hi", "Hello!", system="Be brief.")
    twice = {"messages": [*SHORT["messages"], SHORT["messages"][1]]}
    first, second = planned(tmp_path, model, SHORT, spoken, LONG, spoken, twice)
    assert "chats.jsonl:2: the chat template refuses a conversation: System role not supported" in first.message
    assert (
        "chats.jsonl:5: the chat template refuses a conversation: Conversation roles must alternate" in second.message
    )
    assert first.fix == "leave such conversations out, or mend the template"


def test_a_template_that_does_not_tell_answers_is_reported_for_long_conversations_alone(
    tmp_path: Path, model: Path
) -> None:
    chatting(model, THINKING)
    assert planned(tmp_path, model, SHORT) == ()
    (problem,) = planned(tmp_path, model, SHORT, LONG)
    assert "chats.jsonl:2: the chat template writes an answer otherwise once more follows it" in problem.message
    assert problem.fix.startswith("give conversations with one answer each")
    chatting(
        model, "{% generation %}{% endgeneration %}" + THINKING
    )  # it marks answers itself, which is looked at when it runs
    assert planned(tmp_path, model, LONG) == ()


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_of_their_makers_are_taken(name: str, tmp_path: Path, model: Path) -> None:
    chatting(model, TEMPLATES[name])
    assert planned(tmp_path, model, SHORT, LONG) == ()


def test_a_template_that_asks_for_the_day_is_given_one(tmp_path: Path, model: Path) -> None:
    chatting(model, "{{ strftime_now('%d %b %Y') }}" + TEMPLATES["chatml"])
    assert planned(tmp_path, model, SHORT) == ()


def test_a_model_that_generates_images_reads_captions(tmp_path: Path) -> None:
    model = pipeline(tmp_path / "model")
    (problem,) = planned(tmp_path, model, SHORT, role="train")
    assert "chats.jsonl:1 is a conversation, and this model reads captions" in problem.message
    (problem,) = planned(tmp_path, model, SHORT)
    assert "this model needs images with captions" in problem.message


def test_an_evaluation_says_the_same(tmp_path: Path, model: Path) -> None:
    source = rows(tmp_path / "chats.jsonl", SHORT)
    with pytest.raises(UserError) as asked:
        prepare(
            str(model), str(model), Wanted({"perplexity": {}}, data=source), Cache(tmp_path / "cache"), tmp_path / "out"
        )
    assert asked.value.problems[0].place == "--data"
    assert asked.value.problems[0].message == planned(tmp_path, model, SHORT)[0].message


def test_checking_imports_no_library_that_runs_models(tmp_path: Path, model: Path) -> None:
    source = rows(tmp_path / "chats.jsonl", SHORT, LONG)
    chatting(model)
    (tmp_path / "r.yaml").write_text(
        f"schema: 1\nname: r\nmodel: {model}\ndata: {{evaluate: {source}}}\nevaluate: {{metrics: [size]}}\n"
    )
    code = (
        f"import sys, compress; compress.check({str(tmp_path / 'r.yaml')!r}, cache={str(tmp_path / 'cache')!r}); "
        "assert 'jinja2' in sys.modules; assert not {'torch', 'transformers', 'tokenizers'} & {*sys.modules}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr

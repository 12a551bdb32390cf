"""EleutherAI's harness on local tasks: a tiny model of ours must get what the harness' own backend gives it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compress.errors import DataError, MissingLibrary, UserError
from compress.machine.devices import Opening
from compress.model.describing import describe
from compress.opening import open_task
from evaluation.evidence import Evidence
from evaluation.metrics import accuracy
from evaluation.observe import lm_eval_harness
from tests.tiny import tiny_llama

QUESTIONS = [
    {"question": f"{'abcdefgh'[i]} and {i}?", "choices": ["yes", "no", f"{i}{i}"], "answer": i % 3} for i in range(8)
]
CHOICE = """
task: letters
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "Q: {{{{question}}}} A:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
WRITE = """
task: spelt
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[0]}}}}"
generation_kwargs: {{until: ["e", " "], max_gen_toks: 8, do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
ROLLING = """
task: rolled
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question * 12}}}}"
metric_list: [{{metric: word_perplexity}}]
"""


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever tries to open a connection fails, and what `datasets` keeps stays in the test's folder."""
    import socket

    import datasets

    def refuse(*_: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder of two tasks on the same eight documents."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "docs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    for name, text in (("letters", CHOICE), ("spelt", WRITE)):
        (folder / f"{name}.yaml").write_text(text.format(file=folder / "docs.jsonl"))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"))


def measured(model: Path, *paths: Path, **more: Any) -> Any:
    params = accuracy.Accuracy(tasks=tuple(map(str, paths)), **more)
    return accuracy.measure.measure(Evidence(describe(model), opening=Opening("float32")), params)


def theirs(model: Path, tasks: dict[str, Any]) -> dict[str, list[Any]]:
    """What the harness' own Hugging Face backend gives for each document."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    backend = HFLM(
        pretrained=AutoModelForCausalLM.from_pretrained(model).eval(),
        tokenizer=AutoTokenizer.from_pretrained(model),
        batch_size=2,
    )
    found: dict[str, list[Any]] = evaluate(backend, {"tasks": tasks}, bootstrap_iters=0)["samples"]
    return found


def test_accuracy_is_a_mark_for_each_document(model: Path, tasks: Path) -> None:
    found = measured(model, tasks / "letters.yaml")
    assert found.unit_ids == tuple(f"letters/{i}" for i in range(8))
    assert set(found.values) <= {0.0, 1.0}
    assert found.protocol["tasks"] == "letters"
    assert accuracy.measure.score(found).value == found.values.mean()
    assert accuracy.measure.contrast(found, found).note == "McNemar p = 1 (0 won, 0 lost)"


def test_a_document_that_stands_there_twice_counts_once(model: Path, tasks: Path) -> None:
    once = measured(model, tasks / "letters.yaml")
    rows = [*QUESTIONS[:2], QUESTIONS[0], *QUESTIONS[2:], QUESTIONS[7]]
    (tasks / "docs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = measured(model, tasks / "letters.yaml")
    assert found.values.tolist() == once.values.tolist()
    assert found.unit_ids == tuple(f"letters/{i}" for i in (0, 1, 3, 4, 5, 6, 7, 8))
    assert (once.left_out, found.left_out) == ("", "8 of 10 documents count: the others are copies")


def test_the_marks_follow_the_likeliest_answer_of_a_plain_loop(model: Path, tasks: Path) -> None:
    task: Any = open_task(describe(model))
    expected = []
    for row in QUESTIONS:
        start = task.tokenizer.encode(f"Q: {row['question']} A:")
        nats = []
        for choice in row["choices"]:
            answer = task.tokenizer.encode(f" {choice}")
            message = task.logits([start + answer])[0].double().log_softmax(-1)
            nats.append(sum(float(message[len(start) - 1 + i, token]) for i, token in enumerate(answer)))
        expected.append(float(int(np.argmax(nats)) == row["answer"]))
    assert measured(model, tasks / "letters.yaml").values.tolist() == expected


def test_answers_are_those_of_the_harness_own_backend(model: Path, tasks: Path) -> None:
    (tasks / "rolled.yaml").write_text(ROLLING.format(file=tasks / "docs.jsonl"))
    ours = lm_eval_harness.run_tasks(open_task(describe(model)), lm_eval_harness.load_tasks([str(tasks)]), 0, None, 0)
    other = theirs(model, lm_eval_harness.load_tasks([str(tasks)]))
    assert sorted(ours) == sorted(other) == ["letters", "rolled", "spelt"]
    for name in ours:
        for one, two in zip(ours[name], other[name], strict=True):
            assert one["prompt_hash"] == two["prompt_hash"]
            message, expected = one["resps"], two["resps"]
            if name == "spelt":
                assert message == expected
            else:
                values = [np.ravel([np.ravel(r).astype(float) for r in side]) for side in (message, expected)]
                assert values[0] == pytest.approx(values[1], rel=1e-4)
    assert any(row["resps"][0][0] for row in ours["spelt"])


def test_a_folder_is_all_of_its_tasks_and_each_shows(model: Path, tasks: Path) -> None:
    found = measured(model, tasks, limit=3)
    assert len(found.values) == 6
    assert {name.split("/")[0] for name in found.unit_ids} == {"letters", "spelt"}
    assert "letters 0." in found.note or "letters 1." in found.note


def test_shown_examples_and_other_documents_are_another_protocol(model: Path, tasks: Path) -> None:
    plain = measured(model, tasks / "letters.yaml")
    shown = measured(model, tasks / "letters.yaml", few_shot=1)
    fewer = measured(model, tasks / "letters.yaml", limit=7)
    documents = {side.protocol["documents"] for side in (plain, shown, fewer)}
    assert len(documents) == 3
    assert measured(model, tasks / "letters.yaml", few_shot=1).protocol == shown.protocol


def test_what_is_not_local_or_marks_nothing_is_refused(model: Path, tasks: Path, tmp_path: Path) -> None:
    remote = tmp_path / "remote"
    remote.mkdir()
    (remote / "far.yaml").write_text(CHOICE.format(file="x").replace("json", "allenai/ai2_arc", 1))
    with pytest.raises(DataError, match="takes its documents from allenai/ai2_arc"):
        measured(model, remote)
    (remote / "far.yaml").write_text(CHOICE.format(file="https://example.org/x.jsonl"))
    with pytest.raises(DataError, match=r"reads https://example\.org"):
        measured(model, remote)
    (remote / "far.yaml").write_text(CHOICE.format(file=tmp_path / "absent.jsonl"))
    with pytest.raises(DataError, match="does not load"):
        measured(model, remote)
    with pytest.raises(DataError, match="is no task"):
        measured(model, tmp_path / "nowhere")
    (tasks / "rolled.yaml").write_text(ROLLING.format(file=tasks / "docs.jsonl"))
    with pytest.raises(UserError, match="rolled marks no document right or wrong"):
        measured(model, tasks / "rolled.yaml")


def test_tasks_that_sample_or_write_too_much_are_refused(model: Path, tasks: Path) -> None:
    text = (tasks / "spelt.yaml").read_text()
    (tasks / "spelt.yaml").write_text(text.replace("do_sample: false", "do_sample: true, temperature: 1.0"))
    with pytest.raises(UserError, match="samples its answers"):
        measured(model, tasks / "spelt.yaml")
    (tasks / "spelt.yaml").write_text(text.replace("max_gen_toks: 8", "max_gen_toks: 64"))
    with pytest.raises(UserError, match="asks for 64 tokens, and the model has room for 64"):
        measured(model, tasks / "spelt.yaml")


def test_without_the_harness_the_error_is_its_install_command(tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compress.machine.deps.installed", lambda module: False)
    with pytest.raises(MissingLibrary) as caught:
        lm_eval_harness.load_tasks([str(tasks)])
    assert caught.value.problems[0].fix == "pip install 'pare[lm-eval]'"

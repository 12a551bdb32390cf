"""Rows that are conversations: either spelling, one line each, and everything that is not read is an error at its line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from compress.data.items import Message
from compress.errors import DataError
from compress.files.hashing import digest_json
from compress.sources.data import open_data
from compress.sources.units import open_units, overlap
from tests.chat_templates import conversation, rows

ASKED, ANSWERED = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}


def test_both_spellings_are_one_conversation(tmp_path: Path) -> None:
    sharegpt = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]
    parts = {"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]}
    source = rows(
        tmp_path / "a.jsonl",
        {"id": "a", "messages": [ASKED, ANSWERED]},
        {"id": "b", "conversations": sharegpt},
        {"id": "c", "messages": [parts, {**ANSWERED, "weight": 1, "tool_calls": [], "name": "me"}], "tools": None},
        {"id": "d", "conversations": [ASKED, ANSWERED], "text": None},
    )
    found = open_data(source, tmp_path).first(9)
    assert {item.messages for item in found} == {(Message("user", "Hi"), Message("assistant", "Hello!"))}
    assert {item.text for item in found} == {"user: Hi\n\nassistant: Hello!"}


def test_texts_and_conversations_may_stand_in_one_file(tmp_path: Path) -> None:
    source = rows(
        tmp_path / "a.jsonl", {"text": "a text"}, conversation("Hi", "Hello!"), {"text": "messages", "messages": 2}
    )
    found = open_data(source, tmp_path)
    assert found.conversations == (1,)
    assert [bool(item.messages) for item in found.first(9)] == [False, True, False]


def test_the_digest_of_texts_is_what_it_was_and_a_conversation_is_no_text(tmp_path: Path) -> None:
    source = rows(tmp_path / "a.jsonl", {"text": "one"}, {"id": "x", "text": "two"})
    assert open_data(source, tmp_path).digest == digest_json([("0", "one"), ("x", "two")])
    chat = open_data(rows(tmp_path / "b.jsonl", conversation("Hi", "Hello!")), tmp_path)
    text = open_data(rows(tmp_path / "c.jsonl", {"text": "user: Hi\n\nassistant: Hello!"}), tmp_path)
    assert chat.first(1)[0].text == text.first(1)[0].text
    assert chat.digest != text.digest


def test_conversations_that_only_look_alike_are_two_and_equal_ones_one(tmp_path: Path) -> None:
    one, other = conversation("Hi", "A\n\nuser: B\n\nassistant: C"), conversation("Hi", "A", "B", "C")
    found = open_units(rows(tmp_path / "a.jsonl", one, other, one), tmp_path)
    assert [len(item.messages) for item in found.first(9)] == [2, 4]
    assert "1 is a copy of others" in found.left_out
    assert found.conversations == (0, 1)


def test_a_conversation_in_two_splits_is_reported(tmp_path: Path) -> None:
    one = open_data(rows(tmp_path / "a.jsonl", conversation("Hi", "Hello!"), {"text": "x"}), tmp_path)
    other = open_data(rows(tmp_path / "b.jsonl", conversation("Hi ", "Hello!\n")), tmp_path)
    assert "shares 1 item" in overlap("train", one, other)


def test_a_conversation_under_another_key_is_reported_with_the_line_that_renames_it(tmp_path: Path) -> None:
    source = rows(tmp_path / "a.jsonl", {"conversation": [ASKED, ANSWERED], "model": "m"})
    with pytest.raises(DataError) as caught:
        open_data(source, tmp_path)
    line = caught.value.problems[0].fix.partition(", if the conversation is `conversation`")[0]
    subprocess.run(line.replace("python", f"'{sys.executable}'", 1), shell=True, check=True, cwd=tmp_path)
    assert open_data("a-messages.jsonl", tmp_path).conversations == (0,)


REFUSED = [
    ({"messages": []}, "`messages` is empty"),
    ({"messages": {}}, "`messages` is a dict, and no list"),
    ({"messages": "Hi"}, "`messages` is a str, and no list"),
    ({"messages": ["Hi"]}, "message 1 of `messages` is a str"),
    ({"messages": [{"content": "Hi"}]}, "message 1 of `messages` has no `role`"),
    ({"messages": [{"role": "bard", "content": "Hi"}]}, "has the role 'bard'"),
    ({"messages": [ASKED, {"role": "tool", "content": "4"}]}, "message 2 of `messages` has the role 'tool'"),
    ({"conversations": [{"from": "observation", "value": "4"}]}, "has the from 'observation'"),
    ({"messages": [{"role": "user"}]}, "the content of message 1 of `messages` is not there"),
    ({"messages": [{"role": "user", "content": 4}]}, "the content of message 1 of `messages` is a int"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, "no text (image_url)"),
    ({"messages": [ASKED, {"role": "assistant", "tool_calls": [{"id": "1"}]}]}, "tool calls (`tool_calls`)"),
    ({"messages": [ASKED, {**ANSWERED, "reasoning_content": "…"}]}, "reasoning beside its content"),
    ({"messages": [ASKED, {**ANSWERED, "weight": 0}]}, "has the weight 0"),
    ({"messages": [ASKED, ANSWERED], "tools": [{}]}, "the row has tools"),
    ({"messages": [ASKED, ANSWERED], "system": "Be brief."}, "a `system` text beside the conversation"),
    ({"messages": [ASKED]}, "has no answer of the assistant"),
    ({"messages": [ASKED, {"role": "assistant", "content": " "}]}, "has no answer of the assistant"),
    ({"messages": [ANSWERED, ASKED, ANSWERED]}, "begins with the assistant"),
    ({"messages": [ASKED, ANSWERED], "text": "Hi"}, "has `text` and `messages`"),
    ({"messages": [ASKED, ANSWERED], "conversations": []}, "has `messages` and `conversations`"),
    ({"messages": [ASKED, {"role": "assistant", "content": "\ud83d"}]}, "half a character"),
]


@pytest.mark.parametrize(("row", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_is_not_read_is_an_error_at_its_line(row: object, message: str, tmp_path: Path) -> None:
    source = rows(tmp_path / "a.jsonl", conversation("Hi", "Hello!"), row)
    with pytest.raises(DataError) as caught:
        open_data(source, tmp_path)
    (problem,) = caught.value.problems
    assert problem.place == f"{source}:2"
    assert message in problem.message
    assert problem.fix

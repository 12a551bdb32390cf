"""Rows that are conversations, `messages: [{role, content}, …]` or ShareGPT's `conversations: [{from, value}, …]`, made of JSON, and
what of such rows is not read. Nothing that decides what a model is given is left out in silence."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from compress.data.items import ASSISTANT, USER, Message
from compress.data.texts import refuse_halves
from compress.errors import DataError

KEYS = ("messages", "conversations")  # of a row, where its conversation stands
SPELLINGS = (("role", "content"), ("from", "value"))  # of a message
ROLES: Mapping[str, str] = {
    "system": "system",
    "developer": "developer",
    "user": USER,
    "human": USER,
    "assistant": ASSISTANT,
    "gpt": ASSISTANT,
    "chatgpt": ASSISTANT,
    "model": ASSISTANT,
}
BEFORE = ("system", "developer")  # who may speak before the user
# What a message or a row may have beside its texts that decides what the model is given, and is not read.
BESIDE: Mapping[str, str] = {
    "tool_calls": "tool calls",
    "tool_call_id": "a tool's answer",
    "function_call": "a function call",
    "tools": "tools",
    "functions": "functions",
    "images": "images",
    "image": "an image",
    "audio": "audio",
    "videos": "videos",
    "reasoning_content": "reasoning beside its content",
    "reasoning": "reasoning beside its content",
    "thinking": "reasoning beside its content",
    "chat_template_kwargs": "settings of the chat template",
}
UNLEARNT = ("train", "training")  # what says false of an answer that is not to be learnt
ALONE = "leave this row out: messages are read where they are texts alone"
SHAPE = '{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}'


def conversation_of(row: Mapping[str, object], place: str) -> tuple[Message, ...]:
    """The conversation of a row; () where it has none.

    Raises:
        DataError: it is none that can be read, or the row has a text beside it.
    """
    text = isinstance(row.get("text"), str)
    keys = [key for key in KEYS if isinstance(row.get(key), list) or (row.get(key) is not None and not text)]
    if not keys:
        return ()
    if len(keys) > 1 or text:
        both = [*(["text"] if text else []), *keys]
        message = f"has {' and '.join(f'`{key}`' for key in both)}, and a row is a text or one conversation"
        raise DataError(message, place=place, fix=f"leave one of them out of each row: `{both[-1]}`, or `{both[0]}`")
    _refuse_beside(row, "the row", place)
    if isinstance(row.get("system"), str) and row["system"]:
        fix = 'put it in front of the messages: {"role": "system", "content": "…"}'
        raise DataError("has a `system` text beside the conversation", place=place, fix=fix)
    given = row[keys[0]]
    if not isinstance(given, list):
        raise DataError(f"`{keys[0]}` is a {type(given).__name__}, and no list", place=place, fix=SHAPE)
    messages = tuple(_message(one, f"message {number} of `{keys[0]}`", place) for number, one in enumerate(given, 1))
    _be_answered(messages, keys[0], place)
    return messages


def plain(messages: Sequence[Message]) -> str:
    """A conversation as a text to be looked at; no model is given this."""
    return "\n\n".join(f"{one.role}: {one.content.strip()}" for one in messages)


def canonical(messages: Sequence[Message]) -> str:
    """A conversation as JSON, the same for every spelling of it."""
    return json.dumps([[one.role, one.content] for one in messages], ensure_ascii=False)


def _message(given: object, what: str, place: str) -> Message:
    if not isinstance(given, Mapping):
        raise DataError(f"{what} is a {type(given).__name__}, and no object", place=place, fix=SHAPE)
    role_key, content_key = next((two for two in SPELLINGS if two[0] in given), SPELLINGS[0])
    role = given.get(role_key)
    _refuse_beside(given, what, place)
    if not isinstance(role, str) or role not in ROLES:
        known = ", ".join(dict.fromkeys(ROLES.values()))
        message = f"{what} has the {role_key} {role!r}" if role_key in given else f"{what} has no `role`"
        fix = ALONE if role in ("tool", "function", "observation", "function_call") else f"give one of {known}"
        raise DataError(message, place=place, fix=fix)
    if unlearnt := next((key for key in UNLEARNT if given.get(key) is False), ""):
        message = f"{what} says `{unlearnt}: false`, and every answer counts"
        raise DataError(message, place=place, fix=f"leave `{unlearnt}` out, or end the conversation before that answer")
    if given.get("weight") not in (None, 1):
        message = f"{what} has the weight {given['weight']}, and every answer counts as one"
        raise DataError(message, place=place, fix="leave `weight` out, or end the conversation before that answer")
    content = _content(given.get(content_key), f"the {content_key} of {what}", place)
    refuse_halves(f"the {content_key} of {what}", content, place)
    return Message(ROLES[role], content)


def _content(given: object, what: str, place: str) -> str:
    """A text, or the texts of its parts, one behind the other."""
    if isinstance(given, str):
        return given
    if not isinstance(given, list):
        kind = "not there" if given is None else f"a {type(given).__name__}"
        raise DataError(f"{what} is {kind}", place=place, fix='give a text, or parts [{"type": "text", "text": "…"}]')
    found = []
    for part in given:
        text = part.get("text") if isinstance(part, Mapping) and part.get("type", "text") == "text" else part
        if not isinstance(text, str):
            kind = part.get("type", "no type") if isinstance(part, Mapping) else type(part).__name__
            raise DataError(f"{what} has a part that is no text ({kind})", place=place, fix=ALONE)
        found.append(text)
    return "".join(found)


def _refuse_beside(given: Mapping[str, object], what: str, place: str) -> None:
    """Raises a DataError where a message or row has more than texts that would decide what the model is given."""
    if there := [key for key in BESIDE if given.get(key)]:
        raise DataError(f"{what} has {BESIDE[there[0]]} (`{there[0]}`)", place=place, fix=ALONE)


def _be_answered(messages: Sequence[Message], key: str, place: str) -> None:
    """Raises a DataError where a conversation is empty, begins with an answer, or has none."""
    if not messages:
        raise DataError(f"`{key}` is empty", place=place, fix=f"leave the row out, or give {SHAPE}")
    first = next((one.role for one in messages if one.role not in BEFORE), "")
    if first == ASSISTANT:
        fix = "leave out the answers in front of the first question"
        raise DataError(f"`{key}` begins with the assistant, and nothing was asked", place=place, fix=fix)
    if not any(one.role == ASSISTANT and one.content.strip() for one in messages):
        message = f"`{key}` has no answer of the assistant, and nothing to learn or to score"
        raise DataError(message, place=place, fix="leave the row out, or give it an answer")

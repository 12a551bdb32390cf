"""What a plan finds wrong with conversations that a model is to be taught, calibrated or measured on: a model that reads none, no chat
template, one that refuses them, or one that does not say which tokens are the assistant's."""

from __future__ import annotations

from collections.abc import Iterator

from compress.artifact import Artifact
from compress.catalogue import find_task
from compress.data.items import Data
from compress.errors import Problem, UserError
from compress.publishing.chat_templates import Chat, read_chat
from compress.tokenizers.chats import MARKED, Given, answers, given, on_one_day
from compress.tokenizers.tokens import PAD, WRITTEN

MOST = 64  # orders of roles that are tried: each is tried when it is read, too
TEXTS = 'give texts, {"text": "…"}'


def chat_problems(data: Data, artifact: Artifact, place: str = "", *, scored: bool = True) -> Iterator[Problem]:
    """What is wrong with the conversations of data, each mistake once, with the first row that has it.

    Args:
        place: where the data are named. scored: whether the assistant's tokens count alone, so that it must be known which they are.
    """
    rows = data.conversations
    if not rows:
        return
    first = f"{data.place(rows[0])} is a conversation"
    if find_task(artifact.task).data != "texts":
        yield Problem(place, f"{first}, and this model reads captions", f"{TEXTS} in every row")
        return
    try:
        chat = read_chat(artifact.path)
    except UserError as error:
        yield Problem(place, f"{first}, and the model's chat template {error.problems[0].message}", "save it as UTF-8")
        return
    if chat is None:
        message = f"{first}, and the model's tokenizer has no chat template ({artifact.path})"
        fix = f"{TEXTS}, or a model whose tokenizer has one: chat_template.jinja beside it, or chat_template in its tokenizer_config.json"
        yield Problem(place, message, fix)
        return
    # A tokenizer's class may know tokens that its files do not name.
    special = {**dict.fromkeys((*WRITTEN, PAD), ""), **chat.special}
    yield from _misread(data, Chat(on_one_day(chat.template), special), place, scored)


def _misread(data: Data, chat: Chat, place: str, scored: bool) -> Iterator[Problem]:
    """What the template makes of one conversation for each order of roles that there is."""
    orders: dict[tuple[str, ...], tuple[int, Given]] = {}
    for index in data.conversations:
        messages = given(data.read(index).messages)
        orders.setdefault(tuple(one["role"] for one in messages), (index, messages))
        if len(orders) == MOST:
            break
    problems: dict[str, Problem] = {}
    for index, messages in orders.values():
        try:
            chat.render(messages, ahead=False)
            if scored and not MARKED.search(chat.template):
                answers(lambda some, ahead: chat.render(some, ahead=ahead), messages, chat.special.get("eos_token", ""))
        except UserError as error:
            (wrong, *_) = error.problems
            message = f"{data.place(index)}: {wrong.message}"
            fix = (
                wrong.fix if wrong.fix != "mend the template" else "leave such conversations out, or mend the template"
            )
            problems.setdefault(wrong.message, Problem(place, message, fix))
    yield from problems.values()

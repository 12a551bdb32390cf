"""Items as tokens: a document's, or what the tokenizer's own chat template makes of a conversation, with the assistant's tokens among
them, which alone are learnt and scored.

A template says in one of two ways where an answer stands: it marks answers itself ({% generation %}), or a conversation begins with
what it writes of the messages before an answer and of what begins that, and with what it writes of all up to its end. With one that
does neither, nobody can tell.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from compress.data.items import ASSISTANT, Item, Message
from compress.errors import DataError

Given: TypeAlias = list[dict[str, str]]  # a conversation, as templates take it
Render: TypeAlias = Callable[
    [Given, bool], str
]  # a conversation to what a template writes; with what begins an answer, or without

MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")  # as transformers looks for it
CLOCK = "strftime_now"  # what a template calls that writes the day
# A conversation's tokens are the same on any day: this one, which Llama 3's template writes where it has no clock.
ONE_DAY: Mapping[str, str] = {
    "%d": "26",
    "%B": "July",
    "%b": "Jul",
    "%Y": "2024",
    "%y": "24",
    "%m": "07",
    "%A": "Friday",
    "%a": "Fri",
    "%H": "12",
    "%M": "00",
    "%S": "00",
}
FIX = "give conversations with one answer each, or a template that marks answers with {% generation %}"


@dataclass(frozen=True)
class Reading:
    """What a model reads of an item.

    counted: of a conversation, whether each token is the assistant's, and is learnt and scored; None: all are.
    """

    tokens: list[int]
    counted: list[bool] | None = None

    def cut(self, longest: int) -> Reading:
        """The first tokens, at most `longest`."""
        return Reading(self.tokens[:longest], None if self.counted is None else self.counted[:longest])

    @property
    def scored(self) -> list[int]:
        """Which tokens are foretold and count: none has anything before the first."""
        return [i for i in range(1, len(self.tokens)) if self.counted is None or self.counted[i]]


def given(messages: Sequence[Message]) -> Given:
    """A conversation as templates take it."""
    return [{"role": one.role, "content": one.content} for one in messages]


def on_one_day(template: str) -> str:
    """The template with a clock that stands still, where it asks for the day."""
    if CLOCK not in template:
        return template
    day = "".join(f"|replace('{sign}', '{value}')" for sign, value in ONE_DAY.items())
    return f"{{% macro {CLOCK}(format) %}}{{{{ format{day} }}}}{{% endmacro %}}{{{{ '' }}}}{template}"


def answers(render: Render, messages: Given, closing: str = "", place: str = "") -> list[tuple[int, int]]:
    """Where each turn of the assistant stands in what a template writes, in characters: from behind what begins an answer to the end
    of what ends the turn.

    Args:
        closing: what a template may put behind a whole conversation (Phi-3's does): the token that ends a text.

    Raises:
        DataError: the template does not write a conversation turn by turn, so that nobody can tell.
    """
    whole, found = render(messages, False), list[tuple[int, int]]()
    for at, message in enumerate(messages):
        if message["role"] != ASSISTANT:
            continue
        before, upto = render(messages[:at], True), render(messages[: at + 1], False)
        after = next((text for text in (upto, upto.removesuffix(closing)) if whole.startswith(text)), None)
        if not whole.startswith(before) or after is None or len(after) < len(before):
            why = "the chat template writes an answer otherwise once more follows it, so that nobody knows which tokens are the assistant's"
            raise DataError(why, place=place, fix=FIX)
        found.append((len(before), len(after)))
    return found


def reading_of(tokenizer: Any, item: Item) -> Reading:
    """The tokens of a conversation, whole.

    Raises:
        DataError: there is no chat template, it refuses the conversation, or does not say which tokens are the assistant's.
    """
    messages, template = given(item.messages), _template(tokenizer)
    if MARKED.search(template) and tokenizer.is_fast:
        made = _rendered(tokenizer, template, messages, item.id, return_dict=True, return_assistant_tokens_mask=True)
        counted = [bool(one) for one in made["assistant_masks"]]
        if not any(counted):
            raise DataError("the chat template marks no token of the assistant's", place=item.id, fix=FIX)
        return Reading(list(made["input_ids"]), counted)

    def render(some: Given, ahead: bool) -> str:
        written: str = _rendered(tokenizer, template, some, item.id, tokenize=False, add_generation_prompt=ahead)
        return written

    whole = render(messages, False)
    tokens = _tokens(tokenizer, whole)
    counted = [False] * len(tokens)
    places = [at for pair in answers(render, messages, tokenizer.eos_token or "", item.id) for at in pair]
    numbers = list(_numbers(tokenizer, whole, tokens, places))
    for first, behind in zip(numbers[::2], numbers[1::2], strict=True):
        counted[first:behind] = [True] * (behind - first)
    return Reading(tokens, counted)


def tokens_of_chat(tokenizer: Any, item: Item) -> list[int]:
    """All tokens of a conversation, whoever says them.

    Raises:
        DataError: there is no chat template, or it refuses the conversation.
    """
    return _tokens(tokenizer, _rendered(tokenizer, _template(tokenizer), given(item.messages), item.id, tokenize=False))


def question_of(tokenizer: Any, item: Item) -> list[int]:
    """The tokens of a conversation up to its last answer, with what begins that.

    Raises:
        DataError: as `reading_of`.
    """
    last = max(at for at, one in enumerate(item.messages) if one.role == ASSISTANT)
    before, template = given(item.messages[:last]), _template(tokenizer)
    return _tokens(
        tokenizer, _rendered(tokenizer, template, before, item.id, tokenize=False, add_generation_prompt=True)
    )


def _template(tokenizer: Any) -> str:
    try:
        return on_one_day(tokenizer.get_chat_template())
    except ValueError as error:
        fix = 'give texts, {"text": "…"}, or a model with a chat template'
        raise DataError("the data hold conversations, and the tokenizer has no chat template", fix=fix) from error


def _rendered(tokenizer: Any, template: str, messages: Given, place: str, **how: object) -> Any:
    import jinja2

    try:
        return tokenizer.apply_chat_template(messages, chat_template=template, **how)
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        shown = " ".join(one["role"] for one in messages)
        message = f"the chat template refuses a conversation ({shown}): {error}"
        raise DataError(message, place=place, fix="leave such conversations out, or mend the template") from error


def _tokens(tokenizer: Any, text: str) -> list[int]:
    """Of what a template wrote, which has its special tokens already."""
    tokens: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return tokens


def _numbers(tokenizer: Any, text: str, tokens: Sequence[int], places: Sequence[int]) -> Iterator[int]:
    """How many tokens of a text end at or before each place in it, places rising: a token on both sides of one is not among them, nor what
    is cut otherwise for its sake.

    A stretch between two places that by itself makes the very tokens that stand there ends where it ends; of any other, the text is cut
    anew from its beginning.
    """
    number = done = 0  # tokens, and characters, of which it is known that they end at the same place
    for at in places:
        stretch = _tokens(tokenizer, text[done:at])
        if stretch == tokens[number : number + len(stretch)]:
            number, done = number + len(stretch), at
            yield number
        else:
            yield _shared(_tokens(tokenizer, text[:at]), tokens)


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two rows begin alike with."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))

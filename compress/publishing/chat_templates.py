"""Chat templates: what a tokenizer's Jinja template makes of a conversation, and the same as turns, fixed texts around what each side
says, which a Go template of Ollama can spell. Read from files alone, so that a plan can refuse."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from compress.errors import ModelError
from compress.machine.deps import need
from compress.tokenizers.chats import CLOCK
from compress.tokenizers.tokens import CONFIG, read_object, read_tokens

if TYPE_CHECKING:
    from jinja2 import Template
    from jinja2.sandbox import SandboxedEnvironment

TEMPLATES = ("chat_template.jinja", CONFIG, "chat_template.json")  # where libraries keep it, first found first

Message = Mapping[str, str]
SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
# No template looks for such words, and none is part of another.
_SYSTEM, _ASKED, _ANSWERED, _AGAIN = "Qxsystem", "Qxasked", "Qxanswered", "Qxagain"
_BLANK = f"  {_ASKED}  "
_FAULTS = (
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)  # of a template's own making


def message(*texts: str, system: str = "") -> list[Message]:
    """A conversation: user and assistant in turns, after a system message, if there is one."""
    turns: list[Message] = [{"role": (USER, ASSISTANT)[i % 2], "content": text} for i, text in enumerate(texts)]
    return [{"role": SYSTEM, "content": system}, *turns] if system else turns


# What a translation is tried on.
TRIALS = (
    message("Hello"),
    message("Hello", "Hi.", "How are you?"),
    message("a {{ b }}\n\n%} <c> 'd' \"e\"", "```\nx = {1: [2]}\n```", "Grüße, 你好 🙂", "ok", "and then?"),
    message("Hello", system="Be brief."),
    message("Hello", "Hi.", "How are you?", "Well.", "Good.", system="You are a pirate.\nAnswer in rhymes."),
)


class Untranslatable(ModelError):
    """A chat template that cannot be spelt as turns. The message says why."""


@dataclass(frozen=True)
class Chat:
    """A tokenizer's chat template. special: the tokens that it may name, by their use (bos_token, eos_token …)."""

    template: str
    special: Mapping[str, str]

    @property
    def tells_the_day(self) -> bool:
        """Whether its texts hold the day on which they are made."""
        return CLOCK in self.template

    def render(self, messages: Sequence[Message], *, ahead: bool = True) -> str:
        """A conversation as the model reads it, on no day.

        Args:
            ahead: with what begins the answer.

        Raises:
            ModelError: the template is no Jinja, or refuses this conversation.
        """
        jinja2 = need("jinja2")
        try:
            return _compiled(self.template).render(messages=messages, add_generation_prompt=ahead, **self.special)
        except (jinja2.TemplateError, *_FAULTS) as error:
            raise ModelError(f"the chat template refuses a conversation: {error}", fix="mend the template") from error


def read_chat(folder: Path) -> Chat | None:
    """The chat template of a tokenizer's folder, the one called default where there are several; None where it has none.

    Raises:
        Untranslatable: it is no UTF-8.
    """
    for name in TEMPLATES:
        file = folder / name
        if not file.is_file():
            continue
        found = read_object(file).get("chat_template") if name.endswith(".json") else _text(file)
        if isinstance(found, list):
            named = (one for one in found if isinstance(one, dict) and one.get("name") == "default")
            found = next((one.get("template") for one in named), None)
        if isinstance(found, str) and found.strip():
            return Chat(found, read_tokens(folder).special)
    return None


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise _untranslatable("is no UTF-8") from error


@lru_cache(maxsize=16)
def _compiled(template: str) -> Template:
    return _environment().from_string(template)


def _environment() -> SandboxedEnvironment:
    """Jinja as transformers sets it up, apart from the day."""
    import json

    from jinja2 import TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.nodes import Node
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """Marks what is learnt of a conversation, and writes nothing."""

        tags = {"generation"}  # noqa: RUF012 (an instance attribute would not be found)

        def parse(self, parser: Parser) -> list[Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> str:
        raise TemplateError(message)

    def as_json(value: object, indent: int | None = None, **more: object) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    made.filters["tojson"] = as_json
    made.globals["raise_exception"] = refuse
    return made


@dataclass(frozen=True)
class Turns:
    """A chat template as fixed texts around what each side says.

    opening: before the first turn, where there is no system message. system: around a system message; it stands in place of `opening`,
    or, where it is `folded`, inside the first or the last turn of the user, before what that says. None: it is left out.
    user, assistant: around what they say. answer: what an answer follows. bos: whether all this begins after the tokenizer's bos_token.
    trims: whether the template takes blanks off the ends of texts, which turns leave.
    """

    opening: str
    system: tuple[str, str] | None
    folded: Literal["", "first", "last"]
    user: tuple[str, str]
    assistant: tuple[str, str]
    answer: str
    bos: bool = False
    trims: bool = False

    def render(self, messages: Sequence[Message]) -> str:
        """A conversation that ends with the user, as the template has it, without its bos_token."""
        system = "\n\n".join(one["content"] for one in messages if one["role"] == SYSTEM)
        turns = [one for one in messages if one["role"] != SYSTEM]
        inside = f"{self.system[0]}{system}{self.system[1]}" if system and self.system else ""
        found = [inside if inside and not self.folded else self.opening]
        at = {"": -1, "first": 0, "last": len(turns) - 1}[self.folded]
        for number, one in enumerate(turns):
            before, after = self.user if one["role"] == USER else self.assistant
            found += [before, inside if number == at else "", one["content"], after]
        return "".join((*found, self.answer))


def turns_of(chat: Chat) -> Turns:
    """The turns that a template writes, found by what it makes of a few conversations, and compared with it on others.

    Raises:
        Untranslatable: it does otherwise with some of them.
    """
    found = _learnt(chat)
    bos = chat.special.get("bos_token", "")
    for messages in TRIALS:
        if found.system is None and messages[0]["role"] == SYSTEM:
            continue
        if (wanted := _rendered(chat, messages)) != (bos if found.bos else "") + found.render(messages):
            raise _untranslatable(f"writes a conversation otherwise than turn by turn: {_short(wanted)}")
    return found


def _untranslatable(why: str) -> Untranslatable:
    return Untranslatable(why, fix="leave the template out")


def _short(text: str) -> str:
    return repr(text if len(text) <= 120 else f"{text[:119]}…")


def _rendered(chat: Chat, messages: Sequence[Message], *, ahead: bool = True) -> str:
    try:
        return chat.render(messages, ahead=ahead)
    except ModelError as error:
        raise _untranslatable(error.problems[0].message.replace("the chat template ", "")) from error


def _learnt(chat: Chat) -> Turns:
    """The fixed texts, of the shortest conversations that show each."""
    bos = chat.special.get("bos_token", "")
    one = _rendered(chat, message(_ASKED))
    begins = bool(bos) and one.startswith(bos)
    skip = len(bos) if begins else 0
    start, tail = _around(one[skip:], _ASKED)
    pieces = _around(_rendered(chat, message(_ASKED, _ANSWERED, _AGAIN))[skip:], _ASKED, _ANSWERED, _AGAIN)
    if (pieces[0], pieces[3]) != (start, tail):
        raise _untranslatable("writes the first or the last question of a long conversation in another way")
    after = _closing(chat, message(_ASKED), _ASKED, (pieces[1], tail))
    close = _closing(chat, message(_ASKED, _ANSWERED), _ANSWERED, (pieces[2],))
    before = _common_end(start, pieces[2].removeprefix(close))
    close = pieces[2][: len(pieces[2]) - len(before)]
    trims = _BLANK not in _rendered(chat, message(_BLANK))
    turns = Turns(
        start[: len(start) - len(before)],
        None,
        "",
        (before, after),
        (pieces[1][len(after) :], close),
        tail[len(after) :],
        begins,
        trims,
    )
    return _with_system(chat, turns, skip)


def _around(text: str, *words: str) -> list[str]:
    """What stands before, between and behind words that occur once each, in this order."""
    found = []
    for word in words:
        before, there, text = text.partition(word)
        if not there or word in text:
            raise _untranslatable(f"does not write each text once and in its order: {_short(before + there + text)}")
        found.append(before)
    return [*found, text]


def _common_end(one: str, other: str) -> str:
    """The longest text that both end in."""
    count = next((i for i, (a, b) in enumerate(zip(reversed(one), reversed(other), strict=False)) if a != b), None)
    return (one if len(one) < len(other) else other) if count is None else one[len(one) - count :]


def _closing(chat: Chat, messages: Sequence[Message], last: str, begin: Sequence[str]) -> str:
    """What ends the last turn, if all texts that may follow it begin with that; as much as they have in common otherwise."""
    try:
        ends = chat.render(messages, ahead=False).partition(last)[2]
    except ModelError:
        ends = ""
    return ends if all(one.startswith(ends) for one in begin) else ""


def _with_system(chat: Chat, turns: Turns, skip: int) -> Turns:
    """The turns with what is around a system message."""
    try:
        alone = chat.render(message(_ASKED, system=_SYSTEM))[skip:]
    except ModelError:
        return turns  # it takes none
    if _SYSTEM not in alone:
        return turns
    before, between, _ = _around(alone, _SYSTEM, _ASKED)
    if between.endswith(turns.user[0]) and not before.startswith(turns.opening + turns.user[0]):
        return replace(turns, system=(before, between.removesuffix(turns.user[0])))
    start = turns.opening + turns.user[0]
    if not before.startswith(start):
        raise _untranslatable(f"joins a system message to the question in a way of its own: {_short(alone)}")
    long = _rendered(chat, message(_ASKED, _ANSWERED, _AGAIN, system=_SYSTEM))
    where: Literal["first", "last"] = "first" if long.find(_SYSTEM) < long.find(_ASKED) else "last"
    return replace(turns, system=(before.removeprefix(start), between), folded=where)


def parts_of(turns: Turns) -> Iterator[str]:
    """All its fixed texts."""
    yield from (turns.opening, *(turns.system or ()), *turns.user, *turns.assistant, turns.answer)

"""Texts from an endpoint: greedy continuations by `completions` or `chat/completions`, and given texts scored where `completions` echoes them with
log-probabilities."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from compress.data.items import ASSISTANT, USER, Item
from compress.endpoints.calls import Client, EndpointError, OddAnswer
from compress.tasks import Observable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# A text to go on from, or a conversation to answer.
Asked: TypeAlias = "str | Sequence[Mapping[str, str]]"
PLAIN, CHAT = "completions", "chat/completions"
TRIED = "One, two, three, four,"  # what an endpoint is tried on
END = ""  # stands for the token that ends a text
BROKEN = "\ufffd"  # stands for a part of a letter
EXACT = {"ignore_eos": True}  # vLLM and llama.cpp then write on to `max_tokens`
LENGTH = "length"  # why an answer ended that has as many tokens as were asked for
ABSENT = (400, 404, 405, 422, 501)  # how servers refuse a call that they do not have
REFUSED = (*ABSENT, 500)  # and an argument
NO_TOKENS = "its server answers without the log-probabilities of what it writes, and so without its tokens"
NO_ECHO = "its server does not echo a given text with log-probabilities"
OTHERWISE = "its server echoes log-probabilities that are not those of the tokens that it writes"
NEAR = (
    0.2  # nats by which a token's log-probability may differ as it is given and as it is written: two ways of rounding
)
NO_STREAM = "its server does not stream"


@dataclass(frozen=True)
class Written:
    """An answer. tokens: as text, the end counting as one; None where the server does not tell them. whole: whether it has as many as
    were asked for. length, read: tokens of the answer and of the prompt as the server counts them, 0 where it does not (and where it does
    not tell the answer's either)."""

    text: str
    tokens: tuple[str, ...] | None
    whole: bool
    length: int = 0
    read: int = 0


@dataclass(frozen=True)
class TextCalls:
    """How an endpoint is asked for texts.

    chat: whether texts that are no conversation are put as a question, too. exact: arguments with which an answer goes on to its
    limit, where the server takes them. lacks: what it was seen not to do, and why.
    """

    client: Client
    model: str
    chat: bool = False
    tokens: bool = False
    exact: Mapping[str, Any] = field(default_factory=dict)
    lacks: Mapping[Observable, str] = field(default_factory=dict)
    yields: frozenset[Observable] = frozenset({"continuations"})

    def asked(self, item: Item, words: int) -> Asked:
        """What of an item is continued: a conversation up to its last answer; a text as a question; or the start of a document, half of
        its words and no more than `words` (of one word, half of that)."""
        if item.messages:
            last = max(at for at, one in enumerate(item.messages) if one.role == ASSISTANT)
            return [{"role": one.role, "content": one.content} for one in item.messages[:last]]
        if self.chat:
            return [{"role": USER, "content": item.text}]
        ends = [word.end() for word in re.finditer(r"\S+", item.text)]
        most = min(words, len(ends) // 2)
        return item.text[: ends[most - 1]] if most else item.text[: max(1, len(item.text) // 2)]

    def write(self, asked: Asked, most: int, *, exact: bool = False) -> Written:
        """A greedy answer of at most `most` tokens, or of as many, as far as the server lets ask for that.

        Raises:
            EndpointError: there is none that reads.
        """
        path, body = self._call(asked, most, exact)
        if self.tokens:
            body |= {"logprobs": True, "top_logprobs": 1} if path == CHAT else {"logprobs": 1}
        content = self.client.post(path, body).content
        choice = _choice(self.client, path, content)
        text, ended = _text(choice), choice.get("finish_reason") != LENGTH
        tokens = _tokens(choice, text) if self.tokens else None
        if tokens is None and self.tokens:
            raise self.client.odd(f"answers /{path} without log-probabilities, which it gave before")
        usage = content.get("usage")
        length, read = (
            int((usage.get(name) if isinstance(usage, dict) else 0) or 0)
            for name in ("completion_tokens", "prompt_tokens")
        )
        if tokens is not None and ended:
            tokens = _ended(tokens, text, length)
        return Written(text, tokens, not ended, length or len(tokens or ()), read)

    def timed(self, asked: Asked, most: int) -> tuple[float, float]:
        """Seconds of one streamed answer of `most` tokens, and those until its first. It is asked for once.

        Raises:
            EndpointError: it ends before that, or nothing comes.
        """
        seconds, first, why = self.streamed(asked, most)
        if not first or why != LENGTH:
            raise self.client.odd(f"ended an answer ({why or 'no reason'}) that went on to {most} tokens before")
        return seconds, first

    def streamed(self, asked: Asked, most: int) -> tuple[float, float, str]:
        """Seconds of a streamed answer, those until its first token (0: none came), and why it ended."""
        path, body = self._call(asked, most, True)
        self.client.connect()
        began, first, why = time.perf_counter(), 0.0, ""
        for event in self.client.stream(path, body):
            for choice in event.get("choices") or ():
                first = first or (time.perf_counter() - began if _text(choice) else 0.0)
                why = choice.get("finish_reason") or why
        return time.perf_counter() - began, first, why

    def score(self, text: str) -> tuple[NDArray[np.float64], int]:
        """Natural-log probabilities of a text's tokens, given those before each, and the bytes that those stand for.

        Raises:
            EndpointError: it gives none.
        """
        import numpy as np

        scored = [(token, value) for token, value in self.echoed(text) if value is not None]
        read = "".join(token for token, _ in scored)
        size = len(read.encode()) if text.endswith(read) else len(text.encode())
        return np.array([value for _, value in scored], dtype=np.float64), size

    def echoed(self, text: str) -> list[tuple[str, float | None]]:
        """The tokens of a given text, each with its log-probability.

        Raises:
            EndpointError: it does not echo them.
        """
        found, usage = self._probable(text, echo=True)
        joined, ends = "", 0
        for ends, (token, _) in enumerate(found, 1):
            joined += token
            if joined.endswith(text):
                return found[:ends]
        # What was written behind the text may stand there, too; where tokens are parts of letters, only its number tells.
        if len(found) <= usage:
            raise self.client.odd("does not echo a given text with log-probabilities")
        return found[: len(found) - usage]

    def first_token(self, text: str) -> tuple[str, float | None]:
        """The token that is written behind a text, with its log-probability; ("", None) where there is none."""
        return next(iter(self._probable(text, echo=False)[0]), ("", None))

    def _probable(self, text: str, *, echo: bool) -> tuple[list[tuple[str, float | None]], int]:
        """The tokens that come back with their log-probabilities, and how many of them were written."""
        body = {"model": self.model, "prompt": text, "max_tokens": 1, "temperature": 0, "logprobs": 1}
        content = self.client.post(PLAIN, {**body, "echo": True} if echo else body).content
        choice, usage = _choice(self.client, PLAIN, content), content.get("usage")
        written = usage.get("completion_tokens") if isinstance(usage, dict) else None
        return _probabilities(choice), 1 if written is None else int(written)

    def _call(self, asked: Asked, most: int, exact: bool) -> tuple[str, dict[str, Any]]:
        given = {"prompt": asked} if isinstance(asked, str) else {"messages": list(asked)}
        more = dict(self.exact) if exact else {}
        return PLAIN if isinstance(asked, str) else CHAT, {
            "model": self.model,
            **given,
            "max_tokens": most,
            "temperature": 0,
            **more,
        }


def offers(client: Client, model: str, *, chat: bool) -> EndpointError | None:
    """None where an endpoint answers a small call, else how it refuses that.

    Raises:
        EndpointError: it is out of reach.
    """
    calls = TextCalls(client, model)
    try:
        calls.write([{"role": USER, "content": TRIED}] if chat else TRIED, 1)
    except EndpointError as error:
        if error.status not in ABSENT:
            raise
        return error
    return None


def probe_texts(client: Client, model: str, *, chat: bool, wants: frozenset[Observable]) -> TextCalls:
    """How an endpoint can be asked for texts, found out by one small call for each thing that is wanted.

    Args:
        chat: whether all is asked by `chat/completions`.
        wants: what metrics need.
    """
    calls = TextCalls(client, model, chat)
    tried: Asked = [{"role": USER, "content": TRIED}] if chat else TRIED
    if "completions" in wants:
        calls = _with_tokens(calls, tried)
    if "documents" in wants:
        why = "texts are put to it as questions, which are not scored" if chat else _unechoed(calls)
        calls = _found(calls, ("documents",), why)
    if wants & {"timings", "token_timings"}:
        calls, why = _streaming(calls, tried)
        calls = _found(calls, ("timings", "token_timings"), why)
    return calls


def _found(calls: TextCalls, what: tuple[Observable, ...], why: str) -> TextCalls:
    """The calls, knowing that the endpoint yields something, or why it does not."""
    if why:
        return replace(calls, lacks={**calls.lacks, **dict.fromkeys(what, why)})
    return replace(calls, yields=calls.yields | set(what))


def _with_tokens(calls: TextCalls, tried: Asked) -> TextCalls:
    now = replace(calls, tokens=True)
    try:
        now.write(tried, 2)
    except EndpointError as error:
        if not _says_no(error):
            raise
        return _found(calls, ("completions",), NO_TOKENS)
    return _found(now, ("completions",), "")


def _unechoed(calls: TextCalls) -> str:
    """Why given texts cannot be scored; "" where they can. A token that is written behind a text must be as likely once it is given."""
    words = TRIED.split()
    try:
        values = [value for _, value in calls.echoed(TRIED)]
        if len(values) < 2 or not all(value is None or math.isfinite(value) for value in values) or None in values[1:]:
            return NO_ECHO
        for text in (" ".join(words[:count]) for count in range(len(words), 0, -1)):
            token, likely = calls.first_token(text)
            if token.isascii() and token.isprintable() and token.strip() and likely is not None:
                again, given = calls.echoed(text + token)[-1]
                if again == token and given is not None:
                    return OTHERWISE if abs(given - likely) > NEAR else ""
    except EndpointError as error:
        if not _says_no(error):
            raise
        return NO_ECHO
    return ""  # nothing that it writes here can be given again


def _streaming(calls: TextCalls, tried: Asked) -> tuple[TextCalls, str]:
    """The calls with what makes an answer go on to its limit, where that is taken; and why nothing can be timed, or ""."""
    message = ""
    for exact in (EXACT, {}):
        now = replace(calls, exact=exact)
        try:
            if now.streamed(tried, 2)[2]:
                return now, ""
            message = "its stream gives no reason why it ends"
        except EndpointError as error:
            if not _says_no(error):
                raise
            message = error.problems[0].message
    return calls, f"{NO_STREAM}: it {message}"


def _says_no(error: EndpointError) -> bool:
    """Whether a server answered, and not as it was asked to: it does not do that."""
    return error.status in REFUSED or isinstance(error, OddAnswer)


def _choice(client: Client, path: str, content: Any) -> dict[str, Any]:
    rows = content.get("choices") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not rows or not isinstance(rows[0], dict):
        raise client.odd(f"answers /{path} without a choice")
    found: dict[str, Any] = rows[0]
    return found


def _text(choice: Mapping[str, Any]) -> str:
    """What an answer, or a bit of one, says; what a model thinks before it speaks counts."""
    spoken = choice.get("message") or choice.get("delta") or {}
    parts = (spoken.get("reasoning_content") or spoken.get("reasoning"), spoken.get("content"), choice.get("text"))
    return "".join(part for part in parts if isinstance(part, str))


def _tokens(choice: Mapping[str, Any], text: str) -> tuple[str, ...] | None:
    """The tokens of an answer as text, in either of the two forms that servers give: () of an empty answer, None where the server does
    not tell them."""
    found = choice.get("logprobs")
    if not isinstance(found, dict):
        return None
    named, rows = found.get("tokens"), found.get("content")
    if not named and isinstance(rows, list):
        named = [one.get("token") for one in rows if isinstance(one, dict)]
    if not isinstance(named, list) or (text and not named):
        return None
    return tuple(map(str, named))


def _ended(tokens: tuple[str, ...], text: str, length: int) -> tuple[str, ...]:
    """Tokens of an answer that its model ended, in which the end counts as one, whether the server names it or not.

    Args:
        length: how many tokens the server counts, 0 where it does not.
    """
    last = tokens[-1] if tokens else ""
    if "".join(tokens[:-1]) == text:
        named = bool(tokens)
    elif "".join(tokens) == text:
        named = False
    else:  # tokens are parts of letters: their number tells, unless the last one is plainly of the text
        named = not (last and (text.endswith(last) or BROKEN in last)) and (not length or len(tokens) >= length)
    return (*(tokens[:-1] if named else tokens), END)


def _probabilities(choice: Mapping[str, Any]) -> list[tuple[str, float | None]]:
    """Each token of an answer of `completions` with its log-probability, in either of the two forms; [] where there are none."""
    found = choice.get("logprobs")
    if not isinstance(found, dict):
        return []
    rows = [one for one in found.get("content") or () if isinstance(one, dict)]
    tokens = found.get("tokens") or [one.get("token") for one in rows]
    values = found.get("token_logprobs") or [one.get("logprob") for one in rows]
    return [(str(token), value) for token, value in zip(tokens, values, strict=False)]

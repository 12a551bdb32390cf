"""Calls to an endpoint over HTTP, by the standard library: answers as JSON or as a stream of it, and every way to fail as one error.

A connection is kept open from call to call, one a thread. What may pass (a connection that breaks, a server that is overloaded or starting)
is asked again a few times; greedy and seeded calls may be made twice.
"""

from __future__ import annotations

import http.client
import json
import selectors
import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from compress.endpoints.address import KEY, TIMEOUT, Address
from compress.errors import UserError

PAUSES = (0.5, 2.0)  # seconds before what failed is asked again
PASSING = (429, 500, 502, 503, 504)
SHOWN = 300  # characters of what a server answers that an error quotes

Json = dict[str, Any]


class EndpointError(UserError):
    """An endpoint that is out of reach, refuses, or answers otherwise than the protocol has it.

    status: of HTTP, 0 where there was no answer. passing: whether asking again may help.
    """

    status: int = 0
    passing: bool = False


class OddAnswer(EndpointError):
    """An answer, and not what was asked for."""


@dataclass(frozen=True)
class Answer:
    """What came back, and seconds from the request to its last byte."""

    content: Any
    seconds: float


class Client:
    """Calls one endpoint.

    Args:
        timeout: seconds until something of an answer must have come.
        key: goes with each call, as a bearer's; "" for none. It stands in no message.
    """

    def __init__(self, address: Address, timeout: float = TIMEOUT, key: str = "") -> None:
        self.address, self.timeout = address, timeout
        self._key, self._open = key, threading.local()
        self._every: list[http.client.HTTPConnection] = []
        weakref.finalize(self, _close, self._every)

    def get(self, path: str) -> Any:
        """What `GET base/path` answers; asked once."""
        return self._asked("GET", path, None).content

    def post(self, path: str, body: Mapping[str, Any], *, again: bool = True) -> Answer:
        """What `POST base/path` answers.

        Args:
            again: whether a call that failed in passing is made again; else it is sent once, over a connection that is open before.

        Raises:
            EndpointError: there is no answer that reads.
        """
        if not again:
            self.connect()
            return self._asked("POST", path, body, again=False)
        for pause in PAUSES:
            try:
                return self._asked("POST", path, body)
            except EndpointError as error:
                if not error.passing:
                    raise
            time.sleep(pause)
        return self._asked("POST", path, body)

    def stream(self, path: str, body: Mapping[str, Any]) -> Iterator[Json]:
        """The events of an answer that comes bit by bit (server-sent events), each as it arrives. It is asked for once.

        Raises:
            EndpointError: as `post`, or the stream ends before it says so.
        """
        sent = json.dumps({**body, "stream": True}).encode()
        reply, finished = self._reply("POST", path, sent, again=False), False
        self._refuse(reply, path, "text/event-stream")
        try:
            for line in reply:
                if not line.startswith(b"data:"):
                    continue
                event = line.removeprefix(b"data:").strip()
                if finished := event == b"[DONE]":
                    break
                yield self._event(event)
            reply.read()
        except (OSError, http.client.HTTPException) as error:
            raise self._lost(error) from error
        finally:
            if not finished:
                self._close()
        if not finished:
            raise self._lost(ConnectionError("the stream ended before [DONE]"))

    def connect(self) -> None:
        """Open this thread's connection, if it is not or its server has closed it, so that a call that is timed after this is all that
        is timed.

        Raises:
            EndpointError: nobody answers.
        """
        connection, kept = self._connection()
        if kept and _closed(connection):
            self._close()
        if connection.sock is None:
            try:
                connection.connect()
            except (OSError, http.client.HTTPException) as error:
                self._close()
                raise self._lost(error) from error

    def _event(self, event: bytes) -> Json:
        try:
            found = json.loads(event)
        except ValueError as error:
            raise self.odd(f"streams what is no JSON: {self._quoted(event)}") from error
        if not isinstance(found, dict) or "error" in found:
            raise self._failed(f"ends its stream with an error: {self._quoted(event)}")
        return found

    def _asked(self, method: str, path: str, body: Mapping[str, Any] | None, *, again: bool = True) -> Answer:
        """One call, and its answer as JSON."""
        sent = None if body is None else json.dumps(body).encode()
        began = time.perf_counter()
        reply = self._reply(method, path, sent, again=again)
        try:
            text = reply.read()
        except (OSError, http.client.HTTPException) as error:
            self._close()
            raise self._lost(error) from error
        seconds = time.perf_counter() - began
        self._refuse(reply, path, "json", text)
        try:
            content = json.loads(text)
        except ValueError as error:
            raise self.odd(f"answers /{path} with what is no JSON: {self._quoted(text)}") from error
        if isinstance(content, dict) and content.get("error"):  # some servers say so with HTTP 200
            raise self.odd(f"answers /{path} with an error: {self._quoted(text)}")
        return Answer(content, seconds)

    def _reply(self, method: str, path: str, body: bytes | None, *, again: bool) -> http.client.HTTPResponse:
        """The head of the answer. A connection that was kept and is closed meanwhile is opened anew, without a word, for what may be sent
        again."""
        connection, kept = self._connection()
        try:
            return self._sent(connection, method, path, body)
        except ConnectionError as error:
            self._close()
            if not kept or not again:
                raise self._lost(error) from error
        except (OSError, http.client.HTTPException) as error:
            self._close()
            raise self._lost(error) from error
        try:
            return self._sent(self._connection()[0], method, path, body)
        except (OSError, http.client.HTTPException) as error:
            self._close()
            raise self._lost(error) from error

    def _sent(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None
    ) -> http.client.HTTPResponse:
        heads = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
        heads |= {"Authorization": f"Bearer {self._key}"} if self._key else {}
        connection.request(method, f"{urlsplit(self.address.base).path}/{path}", body, heads)
        return connection.getresponse()

    def _connection(self) -> tuple[http.client.HTTPConnection, bool]:
        """This thread's connection, and whether it was open before."""
        found: http.client.HTTPConnection | None = getattr(self._open, "connection", None)
        if found is not None and found.sock is not None:
            return found, True
        parts = urlsplit(self.address.base)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        made = self._open.connection = kind(parts.hostname or "", parts.port, timeout=self.timeout)
        self._every[:] = [one for one in self._every if one.sock is not None] + [made]
        return made, False

    def _close(self) -> None:
        found = getattr(self._open, "connection", None)
        if found is not None:
            found.close()

    def _refuse(self, reply: http.client.HTTPResponse, path: str, kind: str, text: bytes | None = None) -> None:
        """Raises an EndpointError where the answer is an error, leads elsewhere, or is of another kind."""
        status, given = reply.status, reply.headers.get("Content-Type", "")
        if status < 300 and kind in given:
            return
        text = reply.read() if text is None else text
        if 300 <= status < 400:
            message = f"leads on to {reply.headers.get('Location', 'nowhere')}"
            raise self._failed(message, status, "give that address, if it is meant: pare follows none")
        if status < 300:
            message = f"answers /{path} with {given or 'no content type'}, and not as {kind}: {self._quoted(text)}"
            raise self.odd(message, "give the address that the protocol begins at: http://HOST:PORT/v1")
        message = f"refuses /{path} with HTTP {status}: {self._quoted(text) or reply.reason}"
        raise self._failed(message, status, self._remedy(status), passing=status in PASSING)

    def _remedy(self, status: int) -> str:
        if status in (401, 403):
            return f"set the key that it takes in the environment: {KEY}"
        if status == 404:
            return "give the address that the protocol begins at, http://HOST:PORT/v1, of a server that has this call"
        return "look at the server's log"

    def _lost(self, error: Exception) -> EndpointError:
        """What became of a connection, in words."""
        look = "see that the server runs and that host and port are right"
        if isinstance(error, TimeoutError):
            message = f"gave no answer in {self.timeout:g} s"
            return self._failed(
                message, fix="give it longer, --timeout SECONDS (timeout= in Python), or see what it does"
            )
        if isinstance(error, ConnectionRefusedError):
            return self._failed("refuses the connection: nothing listens there", fix=look)
        if isinstance(error, (ConnectionError, http.client.HTTPException)):
            message = f"broke the connection before its answer was whole ({type(error).__name__})"
            return self._failed(message, fix="look at the server's log", passing=True)
        return self._failed(f"cannot be reached: {error}", fix=look)

    def odd(self, message: str, fix: str = "look at the server's log") -> OddAnswer:
        """The error of an answer that is not what was asked for."""
        return OddAnswer(message, place=str(self.address), fix=fix)

    def _failed(self, message: str, status: int = 0, fix: str = "", *, passing: bool = False) -> EndpointError:
        found = EndpointError(message, place=str(self.address), fix=fix or "look at the server's log")
        found.status, found.passing = status, passing
        return found

    def _quoted(self, text: bytes) -> str:
        """What a server answers, as far as a reader wants it: its own message, without the key that some repeat."""
        shown = " ".join(_message(text).split())
        return (shown.replace(self._key, "…") if self._key else shown)[:SHOWN]


def _closed(connection: http.client.HTTPConnection) -> bool:
    """Whether a connection on which nothing is awaited was closed at its other end: there is something to be read, its end."""
    with selectors.DefaultSelector() as selector:
        selector.register(connection.sock, selectors.EVENT_READ)
        return bool(selector.select(0))


def _close(connections: list[http.client.HTTPConnection]) -> None:
    for one in connections:
        one.close()


def _message(text: bytes) -> str:
    """The message in an error's JSON, as servers spell it, or the text itself."""
    plain = text.decode("utf-8", "replace")
    try:
        found = json.loads(plain)
    except ValueError:
        return plain
    while isinstance(found, dict):
        inner = next((found[name] for name in ("error", "message", "detail") if found.get(name)), None)
        if inner is None:
            return plain
        found = inner
    return found if isinstance(found, str) else json.dumps(found)

"""A small server that speaks the OpenAI protocol on this machine and really serves tiny models, with faults that tests ask for."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from PIL import Image

from compress.data.items import Item
from compress.model.describing import describe
from compress.opening import open_images, open_language
from compress.opening.models import ImageModel, LanguageModel

Json = dict[str, Any]


@dataclass
class Faults:
    """What a server does otherwise. The counted ones hold for so many calls, and wait until `sound` of them have been answered.

    lacks: calls that it does not have. refuses: arguments that it answers with 400; ignores: that it takes no notice of.
    failing: answers 500; cut: ends in the middle of an answer. slow: seconds before each answer. html: answers with a page.
    key: that it asks for. url: gives addresses in place of images. roams: no two of its answers are alike.
    moved: where it leads on to. mute: streams end after their first event.
    uncounted: answers without `usage`. unnamed: its tokens leave out the one that ends a text. empty: nothing is written behind a prompt in
    which this stands, and the end comes first.
    one: every prompt and seed has the same image. growing: each image is larger than the one before. sorry: answers 200 with an error.
    shifted: nats by which the log-probabilities of a text that it echoes are wrong.
    """

    lacks: tuple[str, ...] = ()
    refuses: tuple[str, ...] = ()
    ignores: tuple[str, ...] = ()
    sound: int = 0
    failing: int = 0
    cut: int = 0
    slow: float = 0.0
    html: bool = False
    key: str = ""
    url: bool = False
    roams: bool = False
    shifted: float = 0.0
    moved: str = ""
    mute: int = 0
    uncounted: bool = False
    unnamed: bool = False
    empty: str = ""
    one: bool = False
    growing: bool = False
    sorry: bool = False


@dataclass
class Served:
    """A server at work. calls: what it was asked, in order: paths with their arguments; heads: of the last call."""

    url: str
    faults: Faults
    calls: list[tuple[str, Json]] = field(default_factory=list)
    heads: Mapping[str, str] = field(default_factory=dict)
    answered: int = 0

    def asked(self, path: str) -> list[Json]:
        return [body for found, body in self.calls if found == path]


@contextmanager
def serving(*names: str, text: Path | None = None, images: Path | None = None, **faults: Any) -> Iterator[Served]:
    """A server of one model under several names (one, if none is given), while the context lasts."""
    writer = open_language(describe(text)) if text else None
    painter = open_images(describe(images)) if images else None
    state = Served("", Faults(**faults))
    lock = threading.Lock()  # models are no servers: one call at a time

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, format: str, *args: object) -> None:
            return

        def do_GET(self) -> None:
            state.heads = dict(self.headers)
            rows = [{"id": name, "object": "model", "created": 1, "owned_by": "tests"} for name in names or ("tiny",)]
            self._answer(404 if "models" in state.faults.lacks else 200, {"object": "list", "data": rows})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            path = self.path.removeprefix("/v1/")
            state.calls.append((path, body))
            state.heads = dict(self.headers)
            if not self._faulty(path, body):
                with lock:
                    self._made(path, {name: v for name, v in body.items() if name not in state.faults.ignores})

        def _faulty(self, path: str, body: Json) -> bool:
            """Whether the answer is a fault, which is then given."""
            faults = state.faults
            time.sleep(faults.slow)
            if faults.key and self.headers.get("Authorization") != f"Bearer {faults.key}":
                given = str(self.headers.get("Authorization")).removeprefix("Bearer ")
                self._answer(401, {"error": {"message": f"Incorrect API key provided: {given}"}})
            elif path in faults.lacks:
                self._answer(404, {"error": {"message": "Not Found"}})
            elif found := [name for name in faults.refuses if body.get(name)]:
                self._answer(400, {"error": {"message": f"Unrecognized request argument supplied: {found[0]}"}})
            elif faults.html:
                self._answer(200, b"<html>a page</html>", "text/html")
            elif faults.sorry:
                self._answer(200, {"error": {"message": "the model is not loaded"}})
            elif faults.moved:
                self._answer(307, {}, moved=faults.moved)
            elif faults.failing and state.answered >= faults.sound:
                faults.failing -= 1
                self._answer(500, {"error": {"message": "out of slots"}})
            elif faults.cut and state.answered >= faults.sound:
                faults.cut -= 1
                self._answer(200, b'{"choices": [', length=500)
                self.close_connection = True
            else:
                state.answered += 1
                return False
            return True

        def _made(self, path: str, body: Json) -> None:
            if path == "images/generations" and painter:
                self._answer(200, _image(painter, body, state))
            elif path in ("completions", "chat/completions") and writer:
                made = _written(writer, body, state)
                self._stream(made) if body.get("stream") else self._answer(200, made)
            else:
                self._answer(404, {"error": {"message": "Not Found"}})

        def _answer(
            self, status: int, content: Json | bytes, kind: str = "application/json", length: int = 0, moved: str = ""
        ) -> None:
            text = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            if moved:
                self.send_header("Location", moved)
            self.send_header("Content-Length", str(length or len(text)))
            self.end_headers()
            self.wfile.write(text)

        def _stream(self, made: Json) -> None:
            """A letter an event."""
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            (choice,) = made["choices"]
            chat = "message" in choice
            for letter in choice["message"]["content"] if chat else choice["text"]:
                self._event(json.dumps({"choices": [{"delta": {"content": letter}} if chat else {"text": letter}]}))
                if state.faults.mute and state.answered > state.faults.sound:
                    state.faults.mute -= 1
                    self.close_connection = True
                    return
            self._event(json.dumps({"choices": [{"text": "", "finish_reason": choice["finish_reason"]}]}))
            self._event("[DONE]")
            self.wfile.write(b"0\r\n\r\n")

        def _event(self, text: str) -> None:
            line = f"data: {text}\n\n".encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
            self.wfile.flush()

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            return  # whoever asked has gone

    with Server(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield state
        finally:
            server.shutdown()


def _image(painter: ImageModel, body: Json, state: Served) -> Json:
    """One image from noise that the seed decides, or another each time."""
    if state.faults.url:
        return {"created": 1, "data": [{"url": "http://elsewhere.example/image.png"}]}
    seed = len(state.calls) if state.faults.roams else body.get("seed", 0)
    asked, seed = ("a", 0) if state.faults.one else (body["prompt"], seed)
    found, _ = painter.images([Item("0", asked)], seed, num_inference_steps=2)
    stream = io.BytesIO()
    made = Image.fromarray(found[0])
    larger = len(state.calls) if state.faults.growing else 0
    made.resize((made.width + larger, made.height)).save(stream, "PNG")
    return {"created": 1, "data": [{"b64_json": base64.b64encode(stream.getvalue()).decode()}]}


def _written(writer: LanguageModel, body: Json, state: Served) -> Json:
    """A greedy continuation, with what was asked for beside it."""
    chat = "messages" in body
    prompt = "".join(one["content"] for one in body["messages"]) if chat else body["prompt"]
    given = writer.encode(prompt)
    exact = {"min_new_tokens": body["max_tokens"]} if body.get("ignore_eos") else {}
    made = writer.generate([given], body["max_tokens"])[0] if exact else writer.complete(given, body["max_tokens"])
    if state.faults.empty and state.faults.empty in prompt and not exact:
        made = [writer.tokenizer.eos_token_id]
    ended = made[-1] == writer.tokenizer.eos_token_id and not exact
    spoken = made[: len(made) - ended]
    text = writer.tokenizer.decode(spoken) + (f" {len(state.calls)}" if state.faults.roams else "")
    choice: Json = {"index": 0, "finish_reason": "stop" if ended else "length"}
    choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    if body.get("logprobs"):
        shown = given[1:] if body.get("echo") else []
        logits = writer.logits([[*given, *made]])[0].float().log_softmax(-1)
        every = [float(logits[at, one]) for at, one in enumerate([*given, *made][1:])]
        names = [writer.tokenizer.decode([one]) for one in (*shown, *made)]
        # Of a given text, what begins it is not shown, and the first token has nothing before it.
        echoed = [None, *(value - state.faults.shifted for value in every[1 : len(given) - 1])] if shown else []
        values = [*echoed, *every[len(given) - 1 :]]
        if chat:
            rows = [{"token": name, "logprob": value} for name, value in zip(names, values, strict=True)]
            choice["logprobs"] = {"content": rows}
        else:
            choice["logprobs"] = {"tokens": names, "token_logprobs": values}
            choice["text"] = prompt + text if shown else text
    if ended and state.faults.unnamed and (given_back := choice.get("logprobs")):
        for rows in given_back.values():
            rows.pop()
    usage = {"prompt_tokens": len(given), "completion_tokens": len(made)}
    counted = {} if state.faults.uncounted else {"usage": usage}
    return {"id": "x", "model": body["model"], "choices": [choice], **counted}

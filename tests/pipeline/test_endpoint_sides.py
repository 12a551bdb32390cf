"""What `pare eval` of endpoints may not overwrite, count twice, send twice or blame on another: each on a server that really answers."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import compress
from compress.artifact import Artifact
from compress.data.items import Item
from compress.endpoints.address import Address, plain, read_address
from compress.endpoints.calls import Client, EndpointError
from compress.endpoints.finding import find_endpoint
from compress.endpoints.images import probe_images
from compress.endpoints.texts import END, TextCalls
from compress.errors import ModelError, StageFailed, UserError
from compress.events import Event, silent
from compress.recipe.gates import Gate
from compress.recipe.values import EvalSpec
from evaluation.evidence import Continuation, Evidence
from evaluation.metrics import text_agreement, token_agreement
from evaluation.observe.endpoint_times import _prompts
from evaluation.observe.endpoints import alike_scored
from evaluation.preflight.endpoint_checks import overwritten
from evaluation.values import shared
from tests.endpoints import serving
from tests.tiny import tiny_diffusion, tiny_llama

COUNT = 10


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sides")
    tiny_llama(root / "one")
    tiny_llama(root / "two", seed=1)
    rows = [{"text": f"a red {i} on white paper, the array"} for i in range(COUNT)]
    (root / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


@pytest.fixture(scope="module")
def painter(home: Path) -> Path:
    return tiny_diffusion(home / "painter")


def evaluate(home: Path, candidate: str, baseline: str, *metrics: str, **more: Any) -> Any:
    spec = EvalSpec(new_tokens=6, timing_blocks=5, samples=COUNT)  # type: ignore[call-arg]
    options = {"data": str(home / "prompts.jsonl"), "spec": spec, "timeout": 30.0, "out": home / "out", **more}
    return compress.evaluate(candidate, baseline, metrics=metrics, cache=home / "cache", **options)


# ---------------------------------------------------------------- answers of another run


def test_answers_do_not_take_the_place_of_what_they_are_compared_with(home: Path, painter: Path) -> None:
    with serving(images=painter) as server:
        evaluate(home, server.url, server.url, "clip_score")
        folder = home / "out/answers/candidate"
        before = {file.name: file.read_bytes() for file in folder.iterdir()}
        asked = len(server.calls)
        for given in (
            {"baseline": str(folder)},
            {"baseline": str(home / "out")},  # which holds them
            {"baseline": server.url, "reference": str(home / "out/answers/../answers/baseline")},
            {"baseline": server.url, "data": str(folder)},
        ):
            spec = EvalSpec(samples=COUNT, reference=given.get("reference", ""))  # type: ignore[call-arg]
            with pytest.raises(UserError, match="this run's answers will") as caught:
                evaluate(home, server.url, given["baseline"], "kid", data=given.get("data", ""), spec=spec)
            assert "--out" in caught.value.problems[0].fix
        assert len(server.calls) == asked
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
        found = evaluate(home, server.url, str(folder), "kid", data="", out=home / "elsewhere")
        assert found.rows[0].candidate.n == COUNT


def test_what_lies_elsewhere_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "answers").mkdir()
    near = (str(tmp_path), str(tmp_path / "answers-2"), "zoo://digits", "hf://a/b", "", 3, "pil")
    assert not list(overwritten(near, tmp_path))


def test_a_run_that_breaks_off_leaves_the_answers_of_the_one_before(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compress.endpoints.calls.PAUSES", ())
    out = home / "again"
    with serving(text=home / "one") as sound:
        evaluate(home, sound.url, sound.url, "text_agreement", out=out)
    before = (out / "answers/candidate/continuations.json").read_text()
    with (
        serving(text=home / "one") as base,
        serving(text=home / "two", sound=4, failing=99) as broken,
        pytest.raises(StageFailed, match="out of slots"),
    ):
        evaluate(home, broken.url, base.url, "text_agreement", out=out)
    assert (out / "answers/candidate/continuations.json").read_text() == before
    assert sorted(file.name for file in (out / "answers").iterdir()) == ["baseline", "candidate"]


# ---------------------------------------------------------------- empty answers


def wrote(texts: Sequence[str], original: Evidence | None = None) -> Evidence:
    items = tuple(Item(f"d{i}", "") for i in range(len(texts)))
    rows = tuple(Continuation("go on", tuple(text), text) for text in texts)
    return Evidence(Artifact(Path("m"), "text_generation", {}), items, original, continuations=rows)


@pytest.mark.parametrize("metric", [text_agreement, token_agreement])
@pytest.mark.parametrize(
    ("base", "candidate"), [(["", "ab", ""], ["xy", "ab", ""]), (["xy", "ab", ""], ["", "ab", ""])]
)
def test_a_side_that_writes_nothing_disagrees_wholly(metric: Any, base: list[str], candidate: list[str]) -> None:
    params = metric.measure.params()
    own = wrote(base)
    one, other = shared(
        metric.measure.measure(own, params), metric.measure.measure(wrote(candidate, original=own), params)
    )
    assert one.unit_ids == other.unit_ids == ("d0", "d1")  # two that wrote nothing agree on nothing
    assert one.values.tolist() == [1, 1]
    assert other.values.tolist() == [0, 1]


# ---------------------------------------------------------------- tokens of an answer


class Scripted:
    """A client whose server gives these choices, one after the other."""

    def __init__(self, *contents: dict[str, Any]) -> None:
        self.contents = list(contents)

    def post(self, path: str, body: Any) -> Any:
        return SimpleNamespace(content=self.contents.pop(0))

    def odd(self, message: str, fix: str = "") -> EndpointError:
        return EndpointError(message, fix=fix)


def answer(text: str, tokens: Any, length: int | None = None, why: str = "stop") -> dict[str, Any]:
    usage = {} if length is None else {"usage": {"completion_tokens": length}}
    return {"choices": [{"text": text, "finish_reason": why, "logprobs": {"tokens": tokens}}], **usage}


@pytest.mark.parametrize(
    ("text", "tokens", "length", "expected"),
    [
        ("ab", ["a", "b", "</s>"], 3, ("a", "b", END)),
        ("ab", ["a", "b"], 3, ("a", "b", END)),  # not named
        ("ab", ["a", "b"], None, ("a", "b", END)),
        ("é!", ["\ufffd", "\ufffd", "!", "</s>"], 4, ("\ufffd", "\ufffd", "!", END)),
        ("é!", ["\ufffd", "\ufffd", "!", "</s>"], None, ("\ufffd", "\ufffd", "!", END)),
        ("é!", ["\ufffd", "\ufffd", "!"], 4, ("\ufffd", "\ufffd", "!", END)),
        ("é!", ["\ufffd", "\ufffd", "!"], 3, ("\ufffd", "\ufffd", "!", END)),  # its server does not count the end
        ("é", ["\ufffd", "\ufffd"], None, ("\ufffd", "\ufffd", END)),
        ("é ab", ["\ufffd", "\ufffd", " ab", "Z"], 5, ("\ufffd", "\ufffd", " ab", "Z", END)),
        ("", [], 1, (END,)),
        ("", ["</s>"], 1, (END,)),
        ("", [], None, (END,)),
    ],
)
def test_the_end_of_an_answer_counts_once(text: str, tokens: list[str], length: int | None, expected: Any) -> None:
    calls = TextCalls(Scripted(answer(text, tokens, length)), "m", tokens=True)  # type: ignore[arg-type]
    assert calls.write("go on", 9).tokens == expected


@pytest.mark.parametrize("logprobs", [None, {}, {"tokens": None}, {"tokens": []}, {"content": []}])
def test_an_answer_without_its_tokens_is_refused(logprobs: Any) -> None:
    content = {"choices": [{"text": "ab", "finish_reason": "stop", "logprobs": logprobs}]}
    calls = TextCalls(Scripted(content), "m", tokens=True)  # type: ignore[arg-type]
    with pytest.raises(EndpointError, match="without log-probabilities"):
        calls.write("go on", 9)


def test_an_empty_answer_of_a_chat_has_no_token_but_its_end() -> None:
    choice = {"message": {"content": ""}, "finish_reason": "stop", "logprobs": {"content": []}}
    calls = TextCalls(Scripted({"choices": [choice]}), "m", tokens=True)  # type: ignore[arg-type]
    assert calls.write([{"role": "user", "content": "?"}], 9).tokens == (END,)


def timed_prompts(*answers: dict[str, Any]) -> tuple[list[Any], int, int]:
    one, other = (TextCalls(Scripted(content), "m") for content in answers)  # type: ignore[arg-type]
    spec = EvalSpec(new_tokens=6)  # type: ignore[call-arg]
    return _prompts(one, other, (Item("0", "a red house"),), spec, silent)


def test_answers_that_end_early_are_timed_by_their_servers_count_or_refused_for_its_lack() -> None:
    counted, uncounted = answer("abcd", [], 5), answer("abcd", [])
    assert timed_prompts(counted, counted)[1] == 4  # the end is no token that a stream gives
    with pytest.raises(StageFailed, match=r"the candidate ended all .* and counts none \(`usage`\)") as caught:
        timed_prompts(counted, uncounted)
    assert "usage" in caught.value.problems[0].fix
    with pytest.raises(StageFailed, match="none of 1 prompts"):
        timed_prompts(answer("", [], 1), counted)
    assert timed_prompts(*[answer("abcdef", [], None, "length")] * 2)[1] == 6


# ---------------------------------------------------------------- texts that are scored


def scored(*rows: Sequence[float]) -> Evidence:
    items = tuple(Item(f"d{i}", "") for i in range(len(rows)))
    values = tuple(np.array(row, dtype=np.float64) for row in rows)
    sizes = tuple(10 * len(row) for row in rows)
    return Evidence(Artifact(Path("m"), "text_generation", {}), items, token_logprobs=values, bytes_read=sizes)


@pytest.mark.parametrize("turned", [False, True])
def test_a_first_token_that_one_server_scores_counts_on_neither_side(turned: bool) -> None:
    both = (scored([-9, -1, -2], [-9, -3]), scored([-1, -2], [-3]))
    events: list[Event] = []
    found = alike_scored(both[::-1] if turned else both, events.append)  # type: ignore[arg-type]
    assert [row.tolist() for row in found[0].token_logprobs] == [row.tolist() for row in found[1].token_logprobs]
    assert found[0].bytes_read == found[1].bytes_read == (20, 10)
    assert "counts on neither side" in events[0].message
    assert alike_scored(found, silent) == found


def test_two_servers_whose_tokens_are_not_the_same_have_no_perplexity_to_compare() -> None:
    with pytest.raises(StageFailed, match="in 5 and 4 tokens") as caught:
        alike_scored((scored([-1, -2, -3], [-1, -1]), scored([-1, -2], [-1, -1])), silent)
    assert caught.value.problems[0].place == "d0"
    assert "text_agreement" in caught.value.problems[0].fix


# ---------------------------------------------------------------- keys and addresses


@pytest.mark.parametrize("side", ["", "BASELINE_"])
def test_a_key_ends_before_the_end_of_its_line(side: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"PARE_{side}API_KEY", " hush-1234\r\n")
    with serving(text=home / "one", key="hush-1234") as locked:
        find_endpoint(locked.url, "baseline").client.post("completions", {"model": "m", "prompt": "a", "max_tokens": 1})
        assert locked.heads["Authorization"] == "Bearer hush-1234"


@pytest.mark.parametrize("key", ["hush\n1234", "hush\u20ac", "hush\x00"])
def test_a_key_that_cannot_be_sent_is_refused_by_its_name(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.environ", {"PARE_CANDIDATE_API_KEY": key})
    with pytest.raises(UserError, match="characters that cannot be sent") as caught:
        find_endpoint("http://127.0.0.1:9/v1", "candidate")
    assert caught.value.problems[0].place == "PARE_CANDIDATE_API_KEY"
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("named", "base"),
    [
        ("http://h:1/my models/v1", "http://h:1/my%20models/v1"),
        ("http://h/modèle/v1/", "http://h/mod%C3%A8le/v1"),
        ("http://h/a%20b/v1", "http://h/a%20b/v1"),
        ("http://h", "http://h/v1"),
    ],
)
def test_a_path_is_sent_in_ascii(named: str, base: str) -> None:
    assert read_address(named).base == base


@pytest.mark.parametrize("named", ["http://my host/v1", "http://h\u00a0a/v1"])
def test_a_host_with_a_space_is_refused(named: str) -> None:
    with pytest.raises(UserError, match=r"a space in its host|is no address"):
        read_address(named)


@pytest.mark.parametrize(
    "named",
    ["http://me:sekret@h/v1", "http://me:sekret@h:port/v1", "http://me:sekret@/v1", "http://me:sek/sekret@h/v1"],
)
def test_a_password_is_not_shown_again(named: str) -> None:
    for call in (lambda: compress.load(named), lambda: read_address(named)):
        with pytest.raises((ModelError, UserError)) as caught:
            call()
        assert "sek" not in str(caught.value)
    assert "sek" not in plain(named)


def test_this_machine_has_one_name() -> None:
    here = [Address(f"http://{host}:8000/v1").machine for host in ("localhost", "127.0.0.1", "[::1]", "127.0.1.1")]
    assert set(here) == {"localhost"}
    assert Address("http://Spark.local:1/v1").machine == "spark.local"


# ---------------------------------------------------------------- calls that are timed


@pytest.fixture
def hasty() -> Iterator[Callable[..., tuple[str, list[bytes], list[float]]]]:
    """A server that closes each connection: after its answer, or in place of it."""
    listening = socket.create_server(("127.0.0.1", 0))
    asked: list[bytes] = []
    opened: list[float] = []

    def start(*answers: bool) -> tuple[str, list[bytes], list[float]]:
        def serve() -> None:
            for answers_it in answers:
                connection, _ = listening.accept()
                opened.append(time.perf_counter())
                with connection:
                    if found := connection.recv(65536):
                        asked.append(found)
                    if answers_it:
                        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n"
                        connection.sendall(head + b"{}")

        threading.Thread(target=serve, daemon=True).start()
        return f"http://127.0.0.1:{listening.getsockname()[1]}/v1", asked, opened

    yield start
    listening.close()


def test_a_timed_call_is_sent_once_over_a_connection_that_is_open(hasty: Any) -> None:
    url, asked, opened = hasty(True, True, False, True)
    client = Client(Address(url), 5)
    client.post("completions", {})
    time.sleep(0.1)  # until its end of the connection is closed
    assert client.post("completions", {}, again=False).seconds < 1
    time.sleep(0.1)
    with pytest.raises(EndpointError, match="broke the connection"):
        client.post("completions", {}, again=False)
    assert len(asked) == len(opened) == 3


def test_a_kept_connection_that_breaks_under_a_timed_call_does_not_send_it_again(
    hasty: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, asked, _ = hasty(True, True, True)
    monkeypatch.setattr("compress.endpoints.calls._closed", lambda connection: False)  # it closes just then
    client = Client(Address(url), 5)
    for call in (lambda: client.post("completions", {}, again=False), lambda: list(client.stream("completions", {}))):
        client.post("completions", {})
        time.sleep(0.1)
        with pytest.raises(EndpointError, match="broke the connection"):
            call()
    assert len(asked) == 2


def test_what_is_not_timed_is_sent_again_over_a_new_connection(hasty: Any) -> None:
    url, asked, _ = hasty(True, True)
    client = Client(Address(url), 5)
    client.post("completions", {})
    time.sleep(0.1)
    client.post("completions", {})
    assert len(asked) == 2


def test_nobody_listens_is_told_before_a_call_is_timed() -> None:
    with pytest.raises(EndpointError, match="nothing listens there"):
        Client(Address("http://127.0.0.1:9/v1"), 1).connect()


# ---------------------------------------------------------------- images


@pytest.mark.parametrize(("fault", "alike"), [({"ignores": ("seed",)}, True), ({"roams": True}, False), ({}, False)])
def test_one_image_whatever_the_seed_is_told_from_many(fault: Any, alike: bool, painter: Path) -> None:
    with serving(images=painter, **fault) as server:
        found = probe_images(Client(Address(server.url)), "m", "", "a red 1", 7, seeded=True)
        assert found.alike is alike
        assert bool(found.unseeded) is bool(fault)
        assert min(found.gave) > 1


def test_several_images_of_a_prompt_need_a_seed_that_decides(home: Path, painter: Path) -> None:
    spec = EvalSpec(samples=COUNT, images_per_prompt=2)  # type: ignore[call-arg]
    with serving(images=painter, ignores=("seed",)) as loose:
        with pytest.raises(UserError, match="one image, whatever the seed"):
            evaluate(home, loose.url, loose.url, "variety", spec=spec)
        assert len(loose.asked("images/generations")) < COUNT


def test_images_of_two_sizes_are_refused_before_they_are_made(
    home: Path, painter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import evaluation.preflight.endpoint_checks as checks

    sizes = iter([(8, 16), (16, 16)])

    def probed(*given: Any, **more: Any) -> Any:
        from dataclasses import replace

        return replace(probe_images(*given, **more), gave=next(sizes))

    monkeypatch.setattr(checks, "probe_images", probed)
    with serving(images=painter) as server:
        with pytest.raises(UserError, match="candidate's are 16x8, the baseline's 16x16") as caught:
            evaluate(home, server.url, server.url, "ssim")
        assert "height" in caught.value.problems[0].fix
        assert len(server.asked("images/generations")) == 6


# ---------------------------------------------------------------- against the models themselves


def test_servers_and_their_models_folders_give_one_verdict(home: Path) -> None:
    """Of a text's half in words, and in tokens; the folders' first tokens are scored, too."""
    metrics, gates = ("text_agreement", "perplexity"), {"text_agreement": Gate(worse_by=0.1)}
    with serving(text=home / "one") as one, serving(text=home / "two") as two:
        served = [evaluate(home, side.url, one.url, *metrics, gates=gates) for side in (one, two)]
    folders = (str(home / "one"), str(home / "two"))
    here = [evaluate(home, side, folders[0], *metrics, gates=gates, out=home / "here") for side in folders]
    assert [found.status for found in served] == [found.status for found in here] == ["pass", "fail"]
    for one_way, other in zip(served, here, strict=True):
        assert one_way.rows[1].candidate.value == pytest.approx(other.rows[1].candidate.value, rel=0.1)


@pytest.mark.parametrize("fault", [{"uncounted": True}, {"unnamed": True}, {"uncounted": True, "unnamed": True}])
def test_servers_that_tell_less_of_their_answers_agree_with_one_that_tells_all(fault: Any, home: Path) -> None:
    """A prompt is answered with nothing by all of them, which is the end alone."""
    with serving(text=home / "one", empty="red 3") as whole, serving(text=home / "one", empty="red 3", **fault) as less:
        found = evaluate(home, less.url, whole.url, "token_agreement", "text_agreement", "latency")
        rows = {row.metric: row for row in found.rows}
        assert rows["token_agreement"].candidate.value == 1
        assert rows["token_agreement"].candidate.n == COUNT
        assert rows["text_agreement"].candidate.n == COUNT - 1
        assert rows["latency"].protocol["work"] == 6


@pytest.mark.parametrize("turned", [False, True])
def test_an_empty_answer_of_one_server_is_a_difference(turned: bool, home: Path) -> None:
    with serving(text=home / "one") as sound, serving(text=home / "one", empty="red 3") as mute:
        sides = (sound.url, mute.url) if turned else (mute.url, sound.url)
        found = evaluate(home, *sides, "token_agreement", "text_agreement")
    for row in found.rows:
        assert (row.candidate.n, row.candidate.value) == (COUNT, pytest.approx(1 - 1 / COUNT))
    assert found.rows[0].contrast.value == pytest.approx(-1 / COUNT)


def test_a_baseline_that_answers_nothing_is_nothing_to_compare_with(home: Path) -> None:
    with serving(text=home / "one") as sound, serving(text=home / "one", empty="red") as mute:
        with pytest.raises(StageFailed, match=f"the baseline answers none of {COUNT} prompts with a text"):
            evaluate(home, mute.url, mute.url, "text_agreement")
        assert evaluate(home, mute.url, sound.url, "text_agreement").rows[0].candidate.value == 0


@pytest.mark.parametrize(
    ("fault", "said"),
    [("one", f"gave {COUNT} different prompts 1 different images"), ("growing", f"gave images of {COUNT} sizes")],
)
def test_one_image_for_all_and_images_of_several_sizes_are_told_of(
    fault: str, said: str, home: Path, painter: Path
) -> None:
    with serving(images=painter, **{fault: True}) as odd, serving(images=painter) as sound:
        found = evaluate(home, odd.url, sound.url, "clip_score")
    assert any(said in message for message in found.warnings)


def test_prompts_that_are_there_twice_are_told_of_where_their_images_are_copies(home: Path, painter: Path) -> None:
    folder = home / "twice"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (COUNT, 16, 16, 3), dtype=np.uint8)
    for i, image in enumerate(noise):
        Image.fromarray(image).save(folder / f"{i}.png")
    rows = [{"file_name": f"{i}.png", "text": f"a red {i % 5}"} for i in range(COUNT)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with serving(images=painter, ignores=("seed",)) as loose, serving(images=painter) as seeded:
        for url, told in ((loose.url, True), (seeded.url, False)):
            found = evaluate(home, url, url, "variety", data=str(folder))
            assert any("are copies" in message for message in found.warnings) is told

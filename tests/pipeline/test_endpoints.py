"""`pare eval` of two endpoints: servers on this machine that really serve tiny models, whole and with faults."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import compress
from compress.errors import ModelError, StageFailed, UserError
from compress.events import Event
from compress.recipe.gates import Gate
from compress.recipe.values import EvalSpec
from tests.chat_templates import exchanges
from tests.endpoints import Served, serving
from tests.tiny import tiny_diffusion, tiny_llama

COUNT = 10  # no fewer than a verdict on quality rests on
SPEC = EvalSpec(new_tokens=6, timing_blocks=5, samples=COUNT)  # type: ignore[call-arg]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("endpoints")
    tiny_llama(root / "one")
    tiny_llama(root / "two", seed=1)
    rows = [{"text": f"a red {i} on white paper, the array"} for i in range(COUNT)]
    (root / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    exchanges(root / "chats.jsonl", COUNT)
    return root


@pytest.fixture(scope="module")
def pipelines(home: Path) -> tuple[Path, Path]:
    return tiny_diffusion(home / "first"), tiny_diffusion(home / "second", seed=1)


@pytest.fixture
def one(home: Path) -> Iterator[Served]:
    with serving(text=home / "one") as found:
        yield found


@pytest.fixture
def two(home: Path) -> Iterator[Served]:
    with serving(text=home / "two") as found:
        yield found


def evaluate(home: Path, candidate: str, baseline: str, *metrics: str, **more: Any) -> Any:
    options = {"data": str(home / "prompts.jsonl"), "spec": SPEC, "timeout": 30.0, "out": home / "out", **more}
    return compress.evaluate(candidate, baseline, metrics=metrics, cache=home / "cache", **options)


def pare(home: Path, *arguments: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "compress.cli", "eval", *map(str, arguments)]
    proxies = {"http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}  # nobody there
    environment = {**os.environ, **proxies, "PARE_CACHE": str(home / "cache"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=home, env=environment, timeout=300, check=False)


# ---------------------------------------------------------------- texts


def test_two_servers_of_texts_are_gated_from_the_shell(home: Path, one: Served, two: Served) -> None:
    shared = ("--data", "prompts.jsonl", "--metrics", "text_agreement", "--json")
    gate = ("--gate", "text_agreement.worse_by=0.1")
    same = pare(home, one.url, one.url, *shared, *gate, "--out", "same")
    assert same.returncode == 0, same.stderr
    other = pare(home, two.url, one.url, *shared, *gate, "--out", "other")
    assert other.returncode == 1, other.stderr
    few = pare(home, one.url, one.url, *shared, *gate, "--samples", "4", "--out", "few")
    assert few.returncode == 4, few.stderr  # fewer units than a verdict rests on
    found = json.loads(other.stdout)
    assert found == json.loads((home / "other" / "result.json").read_text())
    assert found["candidate"]["engine"] == f"an endpoint, {two.url}#tiny"
    assert found["machine"]["endpoints"]["baseline"]["owned_by"] == "tests"
    assert any("not known here" in message for message in found["warnings"])


def test_what_a_server_writes_is_what_its_model_writes(home: Path, one: Served, two: Served) -> None:
    """Servers are asked to go on from a document's first half, greedily."""
    metrics = ("token_agreement", "text_agreement", "tokens_written", "perplexity")
    found = evaluate(home, two.url, one.url, *metrics)
    rows = {row.metric: row for row in found.rows}
    assert rows["token_agreement"].baseline.value == 1
    assert rows["token_agreement"].candidate.value < 0.5
    assert rows["tokens_written"].candidate.value == 6
    asked = [body for body in one.asked("completions") if body["max_tokens"] == 6]
    assert len(asked) == COUNT + 1  # the first twice
    assert asked[0]["prompt"] == "a red 0 on"
    assert all(body["temperature"] == 0 for body in asked)
    (written,) = {
        row["prompt"] for row in json.loads((home / "out/answers/baseline/continuations.json").read_text())[:1]
    }
    assert written == "a red 0 on"


def test_texts_are_scored_where_a_server_echoes_them(home: Path, one: Served, two: Served) -> None:
    from compress.model.describing import describe
    from compress.opening import open_language

    found = evaluate(home, two.url, one.url, "perplexity").rows[0]
    texts = [json.loads(line)["text"] for line in (home / "prompts.jsonl").read_text().splitlines()]
    scores = open_language(describe(home / "two")).token_logprobs(texts, 4)
    nats = -np.concatenate([row[1:] for row in scores]).mean()  # the server's echo gives the first token no probability
    assert found.candidate.value == pytest.approx(np.exp(nats), rel=1e-4)
    assert "bits per byte" in found.candidate.note


def test_an_echo_that_contradicts_what_is_written_is_refused(home: Path, one: Served) -> None:
    with serving(text=home / "one", shifted=1.0) as wrong, pytest.raises(UserError, match="not those of the tokens"):
        evaluate(home, wrong.url, one.url, "perplexity")


def test_calls_are_timed_in_turns_with_their_tokens(home: Path, one: Served, two: Served) -> None:
    speeds = ("latency", "throughput", "time_to_first_token", "time_per_output_token")
    found = evaluate(home, two.url, one.url, *speeds)
    rows = {row.metric: row for row in found.rows}
    assert rows["latency"].protocol["work"] == 6
    assert rows["latency"].protocol["prompt_tokens"] == 11  # ten letters, and what begins a text
    assert rows["throughput"].protocol["counts"] == "decoded tokens"
    assert all(row.noise is not None and row.candidate.n == 5 for row in found.rows)
    assert "others_share" not in found.machine  # the servers' own work is no neighbour's
    streamed = [body for body in one.asked("completions") if body.get("stream") and body["max_tokens"] == 6]
    assert len(streamed) >= 2 * (5 + 1)
    assert all(body["ignore_eos"] for body in streamed)


def test_several_requests_go_out_at_a_time(home: Path, one: Served) -> None:
    spec = SPEC.model_copy(update={"timing_batch": 3})
    found = evaluate(home, one.url, one.url, "latency", spec=spec)
    assert found.rows[0].protocol["batch"] == 3


def test_conversations_are_answered_by_chat(home: Path, one: Served) -> None:
    metrics, data = ("token_agreement", "time_to_first_token"), str(home / "chats.jsonl")
    found = evaluate(home, one.url, one.url, *metrics, data=data)
    assert found.rows[0].candidate.value == 1
    assert not one.asked("completions")
    assert {m["role"] for body in one.asked("chat/completions") for m in body["messages"]} <= {"user", "system"}
    with pytest.raises(UserError, match="perplexity of conversations"):
        evaluate(home, one.url, one.url, "perplexity", data=data)


def test_a_server_that_has_chat_alone_is_asked_by_chat_on_both_sides(home: Path, one: Served) -> None:
    with serving(text=home / "one", lacks=("completions",)) as chatting:
        found = evaluate(home, chatting.url, one.url, "text_agreement")
        assert found.rows[0].candidate.value == 1
        assert any("texts are put as questions" in message for message in found.warnings)
    assert (
        len(one.asked("chat/completions")) == COUNT + 2
    )  # the first twice, and one that found out whether it has that call


def test_a_server_without_log_probabilities_has_texts_alone(home: Path, one: Served) -> None:
    with serving(text=home / "one", ignores=("logprobs", "echo")) as silent:
        found = evaluate(home, silent.url, one.url, "text_agreement")
        assert found.rows[0].candidate.value == 1
        for metric, instead in (("token_agreement", "text_agreement"), ("perplexity", "token_agreement")):
            with pytest.raises(UserError, match=f"{metric} cannot be measured") as caught:
                evaluate(home, silent.url, one.url, metric)
            (problem,) = caught.value.problems
            assert silent.url in problem.place
            assert instead in problem.fix


def test_a_server_that_refuses_an_argument_is_asked_without_it(home: Path) -> None:
    with serving(text=home / "one", refuses=("ignore_eos", "echo")) as strict:
        found = evaluate(home, strict.url, strict.url, "latency")
        assert not [body for body in strict.asked("completions") if body["max_tokens"] == 6 and "ignore_eos" in body]
        assert found.rows[0].protocol["work"] > 1
        with pytest.raises(UserError, match="does not echo"):
            evaluate(home, strict.url, strict.url, "perplexity")


def test_a_server_that_answers_otherwise_each_time_is_reported(home: Path, one: Served) -> None:
    with serving(text=home / "one", roams=True) as roaming:
        found = evaluate(home, roaming.url, one.url, "text_agreement")
    (message,) = [message for message in found.warnings if "asked twice" in message]
    assert message.startswith("candidate: ")


def test_no_metric_tells_so_the_server_is_asked_what_it_does(home: Path, one: Served) -> None:
    assert evaluate(home, one.url, one.url, "latency", data="").task == "text_generation"


# ---------------------------------------------------------------- images


def test_two_servers_of_images_are_compared_by_captions_alone(home: Path, pipelines: tuple[Path, Path]) -> None:
    with serving(images=pipelines[0]) as first, serving(images=pipelines[1]) as second:
        metrics = ("kid", "clip_score", "ssim", "latency", "throughput")
        gates = {"ssim": Gate(worse_by=0.05)}
        found = evaluate(home, second.url, first.url, *metrics, gates=gates)
        rows = {row.metric: row for row in found.rows}
        assert found.task == "text_to_image"
        assert rows["kid"].protocol["reference"] == "the baseline's images"
        assert rows["ssim"].verdict.status == "fail"
        assert rows["throughput"].protocol["counts"] == "images"
        assert len(found.images) >= 6
        seeds = [body["seed"] for body in first.asked("images/generations")]
        assert [body["seed"] for body in second.asked("images/generations")][: COUNT + 3] == seeds[: COUNT + 3]
        assert evaluate(home, first.url, first.url, "ssim", gates=gates).exit_code == 0
    shown = home / "out/answers/candidate"
    assert {file.stem for file in shown.glob("*.png")} == {str(index) for index in range(COUNT)}  # the items' ids
    again = compress.evaluate(shown, shown, metrics=["ssim"], cache=home / "cache", out=home / "again")
    assert again.rows[0].candidate.value == 1  # answers lie as a folder of images that can be compared


def test_images_of_a_server_are_compared_with_a_folder_of_them(home: Path, pipelines: tuple[Path, Path]) -> None:
    with serving(images=pipelines[0]) as first:
        evaluate(home, first.url, first.url, "clip_score")
        folder = str(home / "out/answers/candidate")
        found = evaluate(home, first.url, folder, "kid", data="", out=home / "mixed")
        assert found.rows[0].candidate.n == COUNT
        assert found.baseline.engine == "a folder of images"
        assert len(first.asked("images/generations")) > 2 * COUNT
        with pytest.raises(UserError, match="ssim compares images of one noise"):
            evaluate(home, first.url, folder, "ssim", data="", out=home / "mixed")
        with pytest.raises(UserError, match="latency"):
            evaluate(home, first.url, str(pipelines[0]), "latency")


def test_a_size_is_asked_for_where_one_is_set(home: Path, pipelines: tuple[Path, Path]) -> None:
    with serving(images=pipelines[0]) as first:
        spec = EvalSpec(samples=COUNT, baseline={"height": 16, "width": 16})  # type: ignore[arg-type]
        evaluate(home, first.url, first.url, "clip_score", spec=spec)
        assert {body["size"] for body in first.asked("images/generations")} == {"16x16"}
        steps = EvalSpec(samples=COUNT, baseline={"steps": 2})  # type: ignore[arg-type]
        with pytest.raises(UserError, match="sets steps, which an endpoint does not take"):
            evaluate(home, first.url, first.url, "clip_score", spec=steps)


@pytest.mark.parametrize("fault", ["refuses", "ignores"])
def test_a_server_without_seeds_has_no_common_noise(fault: str, home: Path, pipelines: tuple[Path, Path]) -> None:
    with serving(images=pipelines[0], **{fault: ("seed",)}) as loose:
        assert evaluate(home, loose.url, loose.url, "clip_score").rows[0].candidate.n == COUNT
        with pytest.raises(UserError, match="ssim cannot be measured") as caught:
            evaluate(home, loose.url, loose.url, "ssim")
        assert "kid" in caught.value.problems[0].fix


def test_a_server_whose_images_roam_is_reported(home: Path, pipelines: tuple[Path, Path]) -> None:
    with serving(images=pipelines[0], roams=True) as roaming:
        found = evaluate(home, roaming.url, roaming.url, "clip_score")
        assert len([message for message in found.warnings if "two different images" in message]) == 2
        with pytest.raises(UserError, match="two different images"):
            evaluate(home, roaming.url, roaming.url, "psnr")


def test_an_address_in_place_of_an_image_is_refused(home: Path, pipelines: tuple[Path, Path]) -> None:
    with serving(images=pipelines[0], url=True) as elsewhere, pytest.raises(UserError, match="address of an image"):
        evaluate(home, elsewhere.url, elsewhere.url, "clip_score")


# ---------------------------------------------------------------- names, keys, faults


def test_of_several_models_one_is_named(home: Path) -> None:
    with serving("small", "large", text=home / "one") as both:
        with pytest.raises(UserError, match="has 2 models: small, large") as caught:
            evaluate(home, both.url, both.url, "text_agreement")
        assert f"{both.url}#small" in caught.value.problems[0].fix
        with pytest.raises(UserError, match="has no model smal") as caught:
            evaluate(home, f"{both.url}#smal", both.url, "text_agreement")
        assert "small" in caught.value.problems[0].fix
        base = both.url.removesuffix("/v1")  # where nothing else is said, the protocol begins at /v1
        found = evaluate(home, f"{both.url}#small", f"{base}?model=large", "text_agreement")
        assert found.candidate.engine.endswith("#small")
        assert {body["model"] for body in both.asked("completions")} == {"small", "large"}


def test_models_that_are_not_listed_must_be_named(home: Path) -> None:
    with serving(text=home / "one", lacks=("models",)) as unlisted:
        with pytest.raises(UserError, match="does not list its models"):
            evaluate(home, unlisted.url, unlisted.url, "text_agreement")
        assert evaluate(home, f"{unlisted.url}#a", f"{unlisted.url}#a", "text_agreement").rows


def test_a_key_goes_to_the_server_and_nowhere_else(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(text=home / "one", key="hush-1234") as locked:
        with pytest.raises(UserError, match="HTTP 401") as caught:
            evaluate(home, locked.url, locked.url, "text_agreement")
        assert "PARE_API_KEY" in caught.value.problems[0].fix
        monkeypatch.setenv("PARE_API_KEY", "hush-wrong")
        with pytest.raises(UserError, match="HTTP 401") as caught:
            evaluate(home, locked.url, locked.url, "text_agreement")
        assert "hush-wrong" not in str(caught.value)
        monkeypatch.setenv("PARE_CANDIDATE_API_KEY", "hush-1234")
        monkeypatch.setenv("PARE_BASELINE_API_KEY", "hush-1234")
        events: list[Event] = []
        assert evaluate(home, locked.url, locked.url, "text_agreement", out=home / "keyed", emit=events.append).rows
    written = [file.read_bytes() for file in (home / "keyed").rglob("*") if file.is_file()]
    assert len(written) > 4
    assert not any(b"hush-1234" in text for text in written)
    assert "hush-1234" not in repr(events)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://127.0.0.1:9/v1", "refuses the connection"),
        ("http://user:secret@127.0.0.1:9/v1", "a user's name or password"),
        ("http://127.0.0.1:9/v1?api_key=secret", "holds api_key"),
        ("http://127.0.0.1:port/v1", "is no address"),
        ("http:///v1", "names no host"),
        ("http://127.0.0.1:9/v1?model=a#b", "names two models"),
    ],
)
def test_an_address_that_leads_nowhere_is_one_clear_error(address: str, message: str, home: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        evaluate(home, address, address, "text_agreement")
    assert caught.value.exit_code == 2
    assert "secret" not in str(caught.value)
    assert all(problem.fix for problem in caught.value.problems)


def test_what_fails_in_passing_is_asked_again(home: Path, one: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compress.endpoints.calls.PAUSES", (0.01, 0.01))
    for fault in ("failing", "cut"):
        with serving(text=home / "one", sound=4, **{fault: 2}) as shaky:
            assert evaluate(home, shaky.url, one.url, "text_agreement").rows[0].candidate.value == 1


@pytest.mark.parametrize(("fault", "message"), [("failing", "HTTP 500: out of slots"), ("cut", "broke the connection")])
def test_what_fails_on_is_one_error_with_what_came_before(
    fault: str, message: str, home: Path, one: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compress.endpoints.calls.PAUSES", (0.01, 0.01))
    with serving(text=home / "one", sound=4, **{fault: 99}) as broken:
        with pytest.raises(StageFailed, match=message) as caught:
            evaluate(home, broken.url, one.url, "text_agreement")
        (problem,) = caught.value.problems
        assert (
            f"asked for item 3, after 3 of {COUNT} answers" in problem.message
        )  # and one before, which asked whether it answers at all
        assert broken.url in problem.place
        assert "nothing that an endpoint answers is kept" in problem.fix
        assert caught.value.exit_code == 3


def test_a_server_that_is_slow_or_no_server_of_models_is_refused(home: Path) -> None:
    with serving(text=home / "one", slow=2) as slow, pytest.raises(UserError, match=r"no answer in 0\.2 s") as caught:
        evaluate(home, slow.url, slow.url, "text_agreement", timeout=0.2)
    assert "--timeout" in caught.value.problems[0].fix
    with serving(text=home / "one", html=True) as pages, pytest.raises(UserError, match="text/html"):
        evaluate(home, pages.url, pages.url, "text_agreement")
    with serving(text=home / "one", moved="/v2") as moved, pytest.raises(UserError, match="leads on to /v2"):
        evaluate(home, moved.url, moved.url, "text_agreement")


def test_an_error_that_comes_with_http_200_is_quoted(home: Path, one: Served) -> None:
    with serving(text=home / "one", sorry=True) as broken:
        with pytest.raises(UserError, match="with an error: the model is not loaded") as caught:
            evaluate(home, broken.url, one.url, "text_agreement")
        assert broken.url in caught.value.problems[0].place


def test_an_address_without_its_scheme_is_told_from_a_folder(home: Path, one: Served) -> None:
    with pytest.raises(ModelError, match="an address only with its scheme") as caught:
        evaluate(home, one.url, one.url.removeprefix("http://"), "text_agreement")
    assert caught.value.problems[0].fix == f"of an endpoint, write {one.url}"


def test_a_stream_that_ends_early_ends_the_run(home: Path, one: Served) -> None:
    with (
        serving(text=home / "one", sound=5, mute=99) as broken,
        pytest.raises(StageFailed, match="broke the connection"),
    ):
        evaluate(home, broken.url, one.url, "latency")


def test_a_server_that_does_not_stream_is_not_timed(home: Path, one: Served) -> None:
    with serving(text=home / "one", ignores=("stream",)) as whole:
        with pytest.raises(UserError, match="latency cannot be measured: its server does not stream") as caught:
            evaluate(home, whole.url, one.url, "latency")
        assert caught.value.problems[0].fix == "measure quality alone"


# ---------------------------------------------------------------- what no endpoint shows


def test_two_runs_of_endpoints_are_compared_with_a_warning(home: Path, one: Served, two: Served) -> None:
    gates = {"text_agreement": Gate(worse_by=0.1)}
    evaluate(home, one.url, one.url, "text_agreement", gates=gates, out=home / "before")
    evaluate(home, two.url, one.url, "text_agreement", gates=gates, out=home / "after")
    found = compress.compare(home / "before", home / "after", out=home / "compared")
    assert found.status == "fail"
    assert any("the baselines are endpoints" in message for message in found.warnings)


@pytest.mark.parametrize("metric", ["size", "kl", "energy", "cold_start", "peak_memory", "device_memory", "flops"])
def test_what_lies_with_the_server_is_refused_before_anything_is_asked(metric: str, home: Path, one: Served) -> None:
    with pytest.raises(UserError, match=f"{metric} cannot be measured of an endpoint") as caught:
        evaluate(home, one.url, one.url, "text_agreement", metric)
    assert one.url in caught.value.problems[0].place
    assert caught.value.problems[0].fix
    assert one.calls == []


def test_texts_of_an_endpoint_are_not_compared_with_a_folders(home: Path, one: Served) -> None:
    with pytest.raises(UserError, match="an endpoint of texts is compared with another"):
        evaluate(home, one.url, str(home / "one"), "text_agreement")


def test_images_metrics_do_not_fit_texts(home: Path, one: Served) -> None:
    with pytest.raises(UserError, match=r"kid measures .*\btext_to_image, and these do text_generation"):
        evaluate(home, one.url, one.url, "perplexity", "kid")


@pytest.mark.parametrize("place", ["model", "teacher"])
def test_no_stage_works_on_an_endpoint(place: str, home: Path) -> None:
    model = "http://127.0.0.1:9/v1" if place == "model" else str(home / "one")
    step = {"distill.logits": {"teacher": "http://127.0.0.1:9/v1"}}
    if place == "model":
        with pytest.raises(UserError, match="is an endpoint") as caught:
            compress.apply("prune.width", model, ratio=0.5)
    else:
        recipe = {
            "schema": 1,
            "name": "r",
            "model": model,
            "data": {"train": str(home / "prompts.jsonl")},
            "stages": [step],
        }
        (home / "r.yaml").write_text(json.dumps(recipe))
        with pytest.raises(UserError, match="is an endpoint") as caught:
            compress.plan(home / "r.yaml")
    assert "pare eval URL URL" in caught.value.problems[0].fix


def test_an_endpoint_is_no_model_to_load() -> None:
    with pytest.raises(ModelError, match="is an endpoint"):
        compress.load("http://127.0.0.1:9/v1")

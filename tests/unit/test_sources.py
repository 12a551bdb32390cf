"""Where models come from: the zoo, a folder, and the hub, which here is a real HTTP server on this machine."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.errors import ModelError
from compress.files.hashing import digest_folder
from compress.sources.models import check_safetensors, find_folder, find_source, parameter_count, pin_hub
from tests.fakes import language_model, pipeline, write_safetensors

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "org/tiny"
PINNED = f"hf://{REPO}@{COMMIT}"
IMPATIENT = (
    "import time\ntime.sleep = lambda seconds: None  # the hub's client waits half a minute before it gives up\n"
)


# Folders and the zoo


def test_a_folder_is_found_from_where_the_recipe_stands(tmp_path: Path) -> None:
    language_model(tmp_path / "here" / "model")
    assert find_source("./model", tmp_path / "here", None).artifact.path == tmp_path / "here" / "model"
    assert find_source("../here/model", tmp_path / "here", None).remote == ""


def test_a_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    language_model(tmp_path / "model")
    assert find_source("~/model", Path("/elsewhere"), None).artifact.path == tmp_path / "model"


def test_a_zoo_model_is_a_folder_of_the_package() -> None:
    found = find_source("zoo://docs-llama", Path("/elsewhere"), None)
    assert found.artifact.task == "text_generation"
    assert found.artifact.path == find_folder("zoo://docs-llama", Path())
    assert found.key == digest_folder(found.artifact.path)


@pytest.mark.parametrize("name", ["../models/docs-llama", "docs-llama/..", "", "nothing"])
def test_a_zoo_name_is_no_path(name: str) -> None:
    with pytest.raises(ModelError):
        find_source(f"zoo://{name}", Path(), None)


def test_every_component_of_a_pipeline_is_held_to_its_headers(tmp_path: Path) -> None:
    model = pipeline(tmp_path / "model")
    broken = model / "vae" / "diffusion_pytorch_model.safetensors"
    broken.write_bytes(broken.read_bytes()[:-1])
    with pytest.raises(ModelError, match="truncated") as caught:
        find_source(str(model), Path(), None)
    assert caught.value.problems[0].place == str(broken)


def test_parameters_of_all_shards_are_counted(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model-00001-of-00002.safetensors", (3, 5))
    write_safetensors(tmp_path / "model-00002-of-00002.safetensors", (7,))
    write_safetensors(tmp_path / "below" / "model.safetensors", (1000,))
    assert parameter_count(tmp_path) == 22


def test_a_scalar_is_one_parameter_and_metadata_is_none(tmp_path: Path) -> None:
    header = json.dumps({"__metadata__": {"format": "pt"}, "w": {"shape": [], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    assert check_safetensors(tmp_path / "w.safetensors") == 1


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"7",
        b'{"w": 1}',
        b'{"w": {}}',
        b'{"w": {"shape": [1]}}',
        b'{"w": {"data_offsets": [0, 0]}}',
        b'{"w": {"shape": 1, "data_offsets": [0, 0]}}',
        b'{"w": {"shape": [1], "data_offsets": [0]}}',
        b'{"w": {"shape": [1], "data_offsets": "no"}}',
        b"\xff\xfe",
        b"[" * 100_000,
    ],
)
def test_a_header_that_is_no_header_is_one_clear_error(tmp_path: Path, header: bytes) -> None:
    file = tmp_path / "w.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(ModelError, match="truncated or broken") as caught:
        check_safetensors(file)
    assert caught.value.problems[0].place == str(file)


@given(data=st.binary(max_size=200), size=st.integers(0, 2**64 - 1))
def test_any_bytes_are_a_count_or_a_clear_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, size: int
) -> None:
    file = tmp_path_factory.getbasetemp() / "any.safetensors"
    for content in (data, struct.pack("<Q", size) + data, struct.pack("<Q", len(data)) + data):
        file.write_bytes(content)
        try:
            assert check_safetensors(file) >= 0
        except ModelError:
            continue


# The memory of a folder's digest


def test_a_folder_is_hashed_once_until_something_in_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Path] = []
    real = digest_folder.__globals__["digest_file"]
    monkeypatch.setitem(digest_folder.__globals__, "digest_file", lambda path: hashed.append(path) or real(path))
    folder, memory = language_model(tmp_path / "model"), tmp_path / "memory"
    first = find_source(str(folder), Path(), memory).key
    assert len(hashed) == 3
    assert find_source(str(folder), Path(), memory).key == first
    assert len(hashed) == 3
    os.utime(folder / "config.json", ns=(1, 1))  # touched, not changed
    assert find_source(str(folder), Path(), memory).key == first
    assert len(hashed) == 6


def test_a_rewritten_file_of_equal_size_is_noticed(tmp_path: Path) -> None:
    folder, memory = language_model(tmp_path / "model"), tmp_path / "memory"
    first = find_source(str(folder), Path(), memory).key
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + b"\x01")
    assert find_source(str(folder), Path(), memory).key != first
    weights.write_bytes(content)
    assert find_source(str(folder), Path(), memory).key == first


def test_a_file_that_comes_goes_or_moves_is_noticed_and_hidden_ones_are_not(tmp_path: Path) -> None:
    folder = language_model(tmp_path / "model")

    def key() -> str:
        return find_source(str(folder), Path(), tmp_path / "memory").key

    first = key()
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("x")
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "x.pyc").write_text("x")
    assert key() == first
    (folder / "vocab.json").write_text("{}")
    second = key()
    assert second != first
    (folder / "vocab.json").rename(folder / "words.json")
    assert key() not in (first, second)
    (folder / "words.json").unlink()
    assert key() == first


def test_a_memory_that_cannot_be_written_costs_no_more_than_time(tmp_path: Path) -> None:
    folder = language_model(tmp_path / "model")
    (tmp_path / "memory").write_text("a file where the folder should be")
    assert find_source(str(folder), Path(), tmp_path / "memory").key == digest_folder(folder)


# The hub


@dataclass
class Hub:
    """Serves one repository as the hub does, writes down what it was asked for, and may refuse."""

    files: dict[str, bytes]
    mood: str = "open"  # open | gated | missing | broken
    asked: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    url: str = ""

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        if self.mood == "broken":
            return 500, {}, b""
        if self.mood == "missing" or REPO not in path:
            return 404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}, b""
        if path == f"/api/models/{REPO}" or path.startswith(f"/api/models/{REPO}/revision/"):
            branch = path.rpartition("/revision/")[2] if "/revision/" in path else "main"
            if branch not in ("main", "v1", COMMIT):
                return 404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "no such revision"}, b""
            return 200, {}, json.dumps({"id": REPO, "sha": COMMIT, "siblings": []}).encode()
        if path.startswith(f"/api/models/{REPO}/tree/{COMMIT}"):
            tree = [{"type": "file", "path": n, "size": len(b), "oid": oid(b)} for n, b in self.files.items()]
            return 200, {}, json.dumps(tree).encode()
        name = path.removeprefix(f"/{REPO}/resolve/{COMMIT}/")
        if name not in self.files:
            return 404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "no such revision"}, b""
        if self.mood == "gated":
            return 403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to this model is restricted"}, b""
        return 200, {"ETag": f'"{oid(self.files[name])}"', "X-Repo-Commit": COMMIT}, self.files[name]

    def fetched(self) -> set[str]:
        return {path.rpartition("/")[2] for path in self.asked if "/resolve/" in path}


def oid(content: bytes) -> str:
    return sha1(content).hexdigest()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    model = language_model(tmp_path / "remote")
    files = {name: (model / name).read_bytes() for name in ("config.json", "model.safetensors", "tokenizer.json")}
    served = Hub({**files, "pytorch_model.bin": b"a pickle", "modeling.py": b"code"})

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            served.asked.append(path)
            served.tokens.add(self.headers.get("authorization", ""))
            status, headers, body = served.answer(path)
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.do_GET()

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield served
    server.shutdown()
    server.server_close()


def pare(hub: Hub, folder: Path, *arguments: str, token: str = "") -> subprocess.CompletedProcess[str]:
    """The command line, with the hub where this server is and a home of its own."""
    cleared = {k: v for k, v in os.environ.items() if not k.upper().startswith("HF_") and "PROXY" not in k.upper()}
    own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "home"), "PARE_CACHE": str(folder / "cache")}
    own |= {"HF_TOKEN": token} if token else {}
    command = [sys.executable, "-m", "compress.cli", *arguments]
    (folder / "impatient").mkdir(exist_ok=True)
    (folder / "impatient" / "sitecustomize.py").write_text(IMPATIENT)
    paths = os.pathsep.join([str(folder / "impatient"), str(Path(__file__).parents[2])])
    environment = {**cleared, **own, "PYTHONPATH": paths}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=120
    )


def write_recipe(folder: Path, model: str = PINNED) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(f"schema: 1\nname: remote\nmodel: {model}\nevaluate: {{metrics: [size]}}\n")
    return path


def one_error(done: subprocess.CompletedProcess[str]) -> str:
    """What it stated: one problem with its fix, after the hub's own lines about trying again; exit 2."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if not ("etry" in line or "while requesting" in line)]
    assert [line.startswith("  fix: ") for line in lines] == [False, True], done.stderr
    return done.stderr


def test_planning_a_pinned_commit_fetches_what_reads_texts_and_no_weights(hub: Hub, tmp_path: Path) -> None:
    write_recipe(tmp_path)
    hub.files |= {"chat_template.jinja": b"{{ messages }}", "qwen.tiktoken": b"IQ== 0", "source.spm": b"pieces"}
    done = pare(hub, tmp_path, "plan", "recipe.yaml")
    assert done.returncode == 0, done.stderr
    assert "text_generation" in done.stdout
    assert hub.fetched() == hub.files.keys() - {"model.safetensors", "pytorch_model.bin", "modeling.py"}


def test_running_it_fetches_the_weights_but_neither_pickles_nor_code(hub: Hub, tmp_path: Path) -> None:
    write_recipe(tmp_path)
    done = pare(hub, tmp_path, "run", "recipe.yaml", "--json")
    assert done.returncode == 0, done.stderr
    assert hub.fetched() == {"config.json", "tokenizer.json", "model.safetensors"}
    size = json.loads(done.stdout)["rows"][0]
    assert size["metric"] == "size"
    assert "127.0.0.1" not in done.stdout


def test_of_weights_that_are_there_twice_one_is_fetched(hub: Hub, tmp_path: Path) -> None:
    write_recipe(tmp_path)
    weights = hub.files["model.safetensors"]
    hub.files |= dict.fromkeys(("model.fp16.safetensors", "whole.safetensors", "onnx/model.safetensors"), weights)
    done = pare(hub, tmp_path, "run", "recipe.yaml", "--json")
    assert done.returncode == 0, done.stderr
    assert {name for name in hub.fetched() if name.endswith(".safetensors")} == {"model.safetensors"}
    assert not any("onnx/" in path for path in hub.asked if "/resolve/" in path)


def test_a_variant_alone_is_fetched_and_opened(hub: Hub, tmp_path: Path) -> None:
    write_recipe(tmp_path)
    hub.files["model.fp16.safetensors"] = hub.files.pop("model.safetensors")
    done = pare(hub, tmp_path, "run", "recipe.yaml", "--json")
    assert done.returncode == 0, done.stderr
    assert "model.fp16.safetensors" in hub.fetched()
    assert json.loads(done.stdout)["rows"][0]["candidate"]["value"] > 0


def test_an_adapters_weights_are_fetched_though_it_is_no_model(hub: Hub, tmp_path: Path) -> None:
    weights = write_safetensors(tmp_path / "adapter.safetensors", (2, 3)).read_bytes()
    hub.files.clear()
    hub.files |= {"adapter_config.json": b"{}", "adapter_model.safetensors": weights}
    recipe = write_recipe(tmp_path, "zoo://docs-llama")
    recipe.write_text(recipe.read_text() + f"adapter: {PINNED}\n")
    pare(hub, tmp_path, "check", "recipe.yaml")
    assert "adapter_model.safetensors" in hub.fetched()


def test_comparing_two_models_fetches_the_weights_of_a_remote_one(hub: Hub, tmp_path: Path) -> None:
    local = language_model(tmp_path / "local")
    done = pare(hub, tmp_path, "eval", PINNED, str(local), "--metrics", "size", "--json")
    assert done.returncode == 0, done.stderr
    assert "model.safetensors" in hub.fetched()


def test_what_was_fetched_once_needs_no_network(hub: Hub, tmp_path: Path) -> None:
    write_recipe(tmp_path)
    assert pare(hub, tmp_path, "check", "recipe.yaml").returncode == 0
    hub.mood = "broken"
    before = len(hub.fetched())
    assert pare(hub, tmp_path, "check", "recipe.yaml").returncode == 0
    assert len(hub.fetched()) == before


def test_a_gated_model_names_its_licence_page_and_the_token(hub: Hub, tmp_path: Path) -> None:
    write_recipe(tmp_path)
    hub.mood = "gated"
    message = one_error(pare(hub, tmp_path, "check", "recipe.yaml"))
    assert "recipe.yaml:3:8" in message
    assert "is gated" in message
    assert "licence" in message
    assert f"{hub.url}/{REPO}" in message
    assert "HF_TOKEN" in message


def test_the_token_goes_to_the_hub_and_nowhere_else(hub: Hub, tmp_path: Path) -> None:
    write_recipe(tmp_path)
    done = pare(hub, tmp_path, "plan", "recipe.yaml", token="hf_secret")
    assert done.returncode == 0, done.stderr
    assert "Bearer hf_secret" in hub.tokens
    assert "hf_secret" not in done.stdout + done.stderr
    kept = [f for f in (tmp_path / "cache").rglob("*") if f.is_file() and "hf_secret" in f.read_text(errors="ignore")]
    assert kept == []


def test_a_model_that_does_not_exist_is_one_error(hub: Hub, tmp_path: Path) -> None:
    write_recipe(tmp_path)
    hub.mood = "missing"
    message = one_error(pare(hub, tmp_path, "check", "recipe.yaml"))
    assert "does not exist, or is private" in message
    assert PINNED in message


@pytest.mark.parametrize("mood", ["broken", "down"])
def test_a_hub_out_of_reach_is_one_error(hub: Hub, tmp_path: Path, mood: str) -> None:
    write_recipe(tmp_path)
    hub.mood = mood
    hub.url = "http://127.0.0.1:9" if mood == "down" else hub.url  # nobody listens there
    message = one_error(pare(hub, tmp_path, "check", "recipe.yaml"))
    assert "cannot be fetched" in message
    assert "go online once" in message


def test_a_commit_the_repository_does_not_have_is_one_error(hub: Hub, tmp_path: Path) -> None:
    write_recipe(tmp_path, f"hf://{REPO}@{'f' * 40}")
    assert "cannot be fetched: RevisionNotFound" in one_error(pare(hub, tmp_path, "check", "recipe.yaml"))


def test_a_floating_revision_is_refused_without_asking_the_hub(hub: Hub, tmp_path: Path) -> None:
    write_recipe(tmp_path, f"hf://{REPO}@main")
    message = one_error(pare(hub, tmp_path, "check", "recipe.yaml"))
    assert "not pinned" in message
    assert "--pin" in message
    assert hub.asked == []


@pytest.mark.parametrize("floating", ["", "@v1"])
def test_pinning_writes_the_commit_and_nothing_else(hub: Hub, tmp_path: Path, floating: str) -> None:
    path = write_recipe(tmp_path, f"hf://{REPO}{floating}")
    path.write_text(f"# better than hf://{REPO}{floating}-xl, they say\n{path.read_text()}")
    before = path.read_text()
    done = pare(hub, tmp_path, "check", "--pin", "recipe.yaml", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [{"name": "remote", "stages": [], "warnings": []}]
    assert path.read_text() == before.replace(f"model: hf://{REPO}{floating}", f"model: {PINNED}")
    assert f"pinned {PINNED}" in done.stderr


def test_pinning_what_is_pinned_changes_nothing_and_asks_nobody(hub: Hub, tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    before = path.read_bytes()
    assert pin_hub(PINNED) == PINNED
    assert pare(hub, tmp_path, "check", "--pin", "recipe.yaml").returncode == 0
    assert path.read_bytes() == before
    assert not any("/revision/" in path for path in hub.asked)


@pytest.mark.parametrize(("revision", "mood"), [("", "down"), ("", "missing"), ("@nowhere", "open")])
def test_what_cannot_be_pinned_is_one_error_and_leaves_the_recipe(
    hub: Hub, tmp_path: Path, revision: str, mood: str
) -> None:
    path = write_recipe(tmp_path, f"hf://{REPO}{revision}")
    before = path.read_bytes()
    hub.mood = mood
    hub.url = "http://127.0.0.1:9" if mood == "down" else hub.url
    assert "cannot be looked up" in one_error(pare(hub, tmp_path, "check", "--pin", "recipe.yaml"))
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("reference", "message"),
    [("zoo://docs-llama", "is no hub model"), ("hf://name", "is no hub model"), ("hf://org/--odd", "cannot be")],
)
def test_what_is_no_name_on_the_hub_is_refused_before_anybody_is_asked(reference: str, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        pin_hub(reference)
    assert caught.value.problems[0].fix

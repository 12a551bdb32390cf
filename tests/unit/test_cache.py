"""The cache: an entry appears whole or not at all, and what is not what was stored is a miss with a warning."""

from __future__ import annotations

import errno
import json
import multiprocessing
import time
from dataclasses import replace
from pathlib import Path

import pytest

from compress.artifact import Artifact, Component, derive, write_manifest
from compress.context import Context
from compress.errors import CacheError
from compress.events import silent
from compress.execution.execute import execute
from compress.model.describing import describe
from compress.planning.plan import make_plan
from compress.store.cache import ENTRY, Cache, default_root, disk_errors
from tests.fakes import TUNE, knowing, recipe, step
from tests.tiny import tiny_llama

KEY = "a" * 64


def fill(folder: Path, weights: bytes = b"weights") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    (folder / "model.safetensors").write_bytes(weights)
    write_manifest(Artifact(folder, "text_generation", {"model": Component("torch", "", "LlamaForCausalLM")}))
    return folder


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "llama")


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    store = Cache(tmp_path / "cache")
    store.prepare()
    return store


def put(cache: Cache, key: str = KEY, weights: bytes = b"weights") -> Artifact:
    return cache.put(key, fill(cache.fresh(), weights), {"seconds": 1.5, "stage": "x.y"})


def no_warning(message: str) -> None:
    raise AssertionError(message)


def test_what_is_put_is_got(cache: Cache) -> None:
    made = put(cache)
    found = cache.get(KEY, no_warning)
    assert found == made
    assert found is not None
    assert found.path == cache.entry(KEY)
    assert cache.facts(KEY)["seconds"] == 1.5


def test_equal_content_has_an_equal_digest_and_other_content_another(cache: Cache) -> None:
    assert put(cache).digest == put(cache, "b" * 64).digest
    assert put(cache, "c" * 64, b"others").digest != put(cache).digest


def test_nothing_under_a_key_is_a_miss(cache: Cache) -> None:
    assert cache.get(KEY, no_warning) is None
    assert not cache.has(KEY)


@pytest.mark.parametrize("damage", ["change", "truncate", "remove", "add", "manifest", "entry"])
def test_a_damaged_entry_is_a_miss_with_a_warning(cache: Cache, damage: str) -> None:
    folder = put(cache).path
    weights = folder / "model.safetensors"
    if damage == "change":
        weights.write_bytes(b"WEIGHTS")
    elif damage == "truncate":
        weights.write_bytes(b"wei")
    elif damage == "remove":
        weights.unlink()
    elif damage == "add":
        (folder / "foreign.bin").write_bytes(b"x")
    elif damage == "manifest":
        (folder / "pare.json").write_text("{")
    else:
        (folder / ENTRY).write_text("no json")
    warnings: list[str] = []
    assert cache.get(KEY, warnings.append) is None
    assert len(warnings) == 1
    assert "corrupt" in warnings[0]
    put(cache)  # and it can be built again over the damaged one
    assert cache.get(KEY, no_warning) is not None


def test_thorough_verification_finds_what_kept_its_time_and_size(cache: Cache) -> None:
    import os

    weights = put(cache).path / "model.safetensors"
    before = weights.stat()
    with weights.open("r+b") as stream:
        stream.write(b"W")
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert cache.problem(KEY, thorough=True) == "model.safetensors changed"


def test_an_unfinished_entry_is_a_miss(cache: Cache) -> None:
    fill(
        cache.entry(KEY)
    )  # no manifest of the entry: as after a kill between rename and manifest, were they so ordered
    assert cache.get(KEY, no_warning) is None


def hold(root: Path, key: str, held: object, release: object) -> None:
    with Cache(root).locked(key, lambda: None):
        held.set()  # type: ignore[attr-defined]
        release.wait(20)  # type: ignore[attr-defined]


def test_a_lock_held_elsewhere_is_waited_for_and_freed_by_death(cache: Cache) -> None:
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    process = context.Process(target=hold, args=(cache.root, KEY, held, release))
    process.start()
    assert held.wait(60)
    waited: list[bool] = []

    def waiting() -> None:
        waited.append(True)
        process.kill()  # as `kill -9` does: nobody releases the lock but the system

    with cache.locked(KEY, waiting):
        assert waited == [True]
    process.join()


def test_what_another_run_evicts_while_it_is_looked_at_stays(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    made, look = put(cache), Cache.problem

    def evicting(self: Cache, key: str, *, thorough: bool = False) -> str:
        found = look(self, key, thorough=thorough)
        assert Cache(cache.root).evict(0) == ()
        return found

    monkeypatch.setattr(Cache, "problem", evicting)
    assert cache.get(KEY, no_warning) == made
    monkeypatch.undo()
    assert [gone.key for gone in cache.evict(0)] == [KEY]  # and was held no longer than that


def test_what_a_long_stage_works_in_is_not_swept(llama: Path, cache: Cache) -> None:
    """A training may take longer than a day, and another run on the same cache starts meanwhile."""

    def work(artifact: Artifact, params: object, context: Context) -> None:
        made = derive(artifact, context.out, link=context.link)
        Cache(cache.root).sweep(older_than=-1)
        write_manifest(made.calling(num_beams=2))

    tune = replace(TUNE, run=work)
    with knowing(tune):
        (done,) = execute(make_plan(recipe(llama, step(tune)), cache), cache, silent)
    assert done.artifact.path == cache.entry(done.key)
    assert list((cache.root / "tmp").iterdir()) == []


def test_eviction_drops_the_least_recently_used_first(cache: Cache) -> None:
    import os

    for age, key in enumerate(["1" * 64, "2" * 64, "3" * 64]):
        put(cache, key, b"x" * 1000)
        os.utime(cache.entry(key) / ENTRY, (time.time() - age, time.time() - age))
    one = cache.entries()[0].size_bytes
    gone = cache.evict(2 * one)
    assert [e.key for e in gone] == ["3" * 64]
    assert cache.evict(0, keep=frozenset({"1" * 64}))[0].key == "2" * 64
    assert [e.key for e in cache.entries()] == ["1" * 64]


def test_a_cache_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    with pytest.raises(CacheError, match="cannot be written"):
        Cache(blocked).prepare()


@pytest.mark.parametrize(("number", "word"), [(errno.ENOSPC, "full"), (errno.EROFS, "cannot write")])
def test_disk_errors_are_the_users_to_mend(tmp_path: Path, number: int, word: str) -> None:
    with pytest.raises(CacheError, match=word), disk_errors(tmp_path):
        raise OSError(number, "from the system")


def test_other_system_errors_pass_through(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="strange"), disk_errors(tmp_path):
        raise OSError(errno.EIO, "strange")


def test_the_root_is_named_by_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PARE_CACHE", str(tmp_path))
    assert default_root() == tmp_path
    monkeypatch.delenv("PARE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_root() == tmp_path / "pare"


def test_what_a_crash_left_behind_is_swept_after_a_day(cache: Cache) -> None:
    left = cache.fresh()
    cache.sweep()
    assert left.exists()
    cache.sweep(older_than=-1)
    assert not left.exists()
    assert describe(put(cache).path).task == "text_generation"

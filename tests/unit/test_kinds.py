"""Everything that a cache keeps, under one limit: what is least recently used goes first, whatever its kind, unless in use."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import shutil
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.files.locks import hold, lock_of, locked, tried
from compress.store.cache import DAY, NOTES_KEPT, Cache
from compress.store.kinds import ENTRY, KINDS, Stored, stored
from tests.fakes import language_model

OLD = 1_000_000_000


def put(cache: Cache, key: str) -> Path:
    return cache.put(key, language_model(cache.fresh(), (10, 10)), {"stage": "x.y"}).path


def lay(cache: Cache, kind: str, key: str, size: int = 1000, used: int = OLD) -> Path:
    """One thing of a kind, last used at a time; the path that says so."""
    folder = cache.root / kind
    if kind == "features":
        file = folder / f"{key}.safetensors"
    else:
        names = {"entries": ENTRY, "evidence": "evidence.json"}
        file = folder / key / names.get(kind, "state.json")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("{}" if kind == "entries" else "")
    content = file if kind == "features" else file.parent / "content"
    content.write_bytes(bytes(size))
    for path in (content, file, file.parent if kind not in ("features",) else file):
        os.utime(path, (used, used))
    return file


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    store = Cache(tmp_path / "cache")
    store.prepare()
    return store


def names(found: tuple[Stored, ...]) -> list[tuple[str, str]]:
    return [(one.kind, one.key) for one in found]


def test_a_cache_knows_all_its_kinds_and_their_sizes(cache: Cache) -> None:
    for number, kind in enumerate(KINDS):
        for age in range(number + 1):
            lay(cache, kind.folder, str(age), size=100 * number)
    found = cache.kinds()
    assert {name: count for name, (count, _) in found.items()} == {
        "entries": 1,
        "evidence": 2,
        "features": 3,
        "scratch": 4,
        "training": 5,
        "code": 6,
        "digests": 0,
    }
    assert found["features"] == (3, 600)
    (cache.root / "digests" / "note").write_text("digest")
    assert cache.kinds()["digests"] == (1, 6)


def test_what_is_least_recently_used_goes_first_whatever_its_kind(cache: Cache) -> None:
    order = ["training", "features", "entries", "scratch", "evidence"]
    for age, kind in enumerate(order):
        lay(cache, kind, "k" * 8, used=OLD + age)
    assert [kind for kind, _ in names(stored(cache.root))] == order
    total = sum(one.size_bytes for one in stored(cache.root))
    assert names(cache.evict(total)) == []
    assert [kind for kind, _ in names(cache.evict(total - 1001))] == order[:2]
    assert [kind for kind, _ in names(cache.evict(0))] == order[2:]
    assert stored(cache.root) == ()
    assert list((cache.root / "tmp").iterdir()) == []


@given(st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 5000)), max_size=8), st.integers(0, 20_000), st.data())
@settings(max_examples=30, deadline=None)
def test_eviction_ends_below_the_limit_drops_no_more_than_it_must_and_nothing_kept(
    things: list[tuple[object, int]], limit: int, data: st.DataObject
) -> None:
    cache = Cache(Path(tempfile.mkdtemp()))
    cache.prepare()
    for number, (kind, size) in enumerate(things):
        lay(cache, kind.folder, f"k{number}", size, OLD + number)  # type: ignore[attr-defined]
    keep = data.draw(st.frozensets(st.sampled_from([f"k{n}" for n in range(len(things))]))) if things else frozenset()
    before = stored(cache.root)
    gone = cache.evict(limit, keep)
    left = stored(cache.root)
    size = sum(one.size_bytes for one in left)
    assert size <= limit or {one.key for one in left} <= keep
    assert not {one.key for one in gone} & keep
    assert list(gone) == [one for one in before if one.key not in keep][: len(gone)]
    assert not gone or size + gone[-1].size_bytes > limit
    shutil.rmtree(cache.root)


def test_scratch_goes_only_when_nobody_works_on_its_key(cache: Cache) -> None:
    lay(cache, "scratch", "a" * 64)
    with cache.locked("a" * 64, lambda: None):
        assert cache.evict(0) == ()
    assert names(cache.evict(0)) == [("scratch", "a" * 64)]


def hold_lock(root: Path, key: str, held: object, release: object) -> None:
    with locked(lock_of(root / "evidence", key), lambda: None):
        held.set()  # type: ignore[attr-defined]
        release.wait(60)  # type: ignore[attr-defined]


def test_what_another_process_works_on_stays(cache: Cache) -> None:
    lay(cache, "evidence", "e" * 64)
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    process = context.Process(target=hold_lock, args=(cache.root, "e" * 64, held, release))
    process.start()
    assert held.wait(60)
    assert cache.evict(0) == ()
    release.set()
    process.join()
    assert names(cache.evict(0)) == [("evidence", "e" * 64)]


def test_what_is_held_stays_until_its_last_holder_goes(cache: Cache) -> None:
    record = lay(cache, "evidence", "e")
    one, other = hold(record), hold(record)
    assert one is not None
    assert other is not None
    one.release()
    one.release()  # once more is no harm
    assert cache.evict(0) == ()
    del other
    gc.collect()
    assert names(cache.evict(0)) == [("evidence", "e")]
    assert hold(record) is None


def test_a_run_keeps_the_entries_that_it_was_given_until_it_ends(cache: Cache) -> None:
    key, other = "a" * 64, "b" * 64
    put(cache, key)
    with cache.holding() as run:
        assert run == cache
        run.get(key, lambda message: None)
        put(run, other)
        with run.holding() as inner:  # of the same run
            inner.get(key, lambda message: None)
        assert cache.evict(0) == ()
        assert pickle.loads(pickle.dumps(run)) == cache
    assert {one.key for one in cache.evict(0)} == {key, other}


def test_a_training_of_today_is_not_dropped(cache: Cache) -> None:
    lay(cache, "training", "docs-llama", used=int(time.time() - DAY / 2))
    assert cache.evict(0) == ()
    lay(cache, "training", "docs-llama", used=int(time.time() - 2 * DAY))
    assert names(cache.evict(0)) == [("training", "docs-llama")]


def test_what_is_half_made_is_no_thing_and_is_swept_after_a_day(cache: Cache) -> None:
    fresh, stale = (cache.root / "evidence" / f".making-{age}" for age in ("fresh", "stale"))
    feature = cache.root / "features" / ".making-file"
    feature.parent.mkdir()
    feature.write_text("x")
    for folder in (fresh, stale):
        folder.mkdir()
        (folder / "00000.png").write_text("x")
    for path in (stale, feature):
        os.utime(path, (OLD, OLD))
    assert stored(cache.root) == ()
    cache.sweep()
    assert fresh.exists()
    assert not stale.exists()
    assert not feature.exists()


def test_a_note_that_nobody_asks_for_goes_after_a_season_and_a_used_one_stays(cache: Cache) -> None:
    key = "a" * 64
    put(cache, key)
    unread = cache.root / "digests" / "unread"
    unread.write_text("digest")
    for note in (cache.root / "digests").iterdir():
        os.utime(note, (time.time() - NOTES_KEPT - 1, time.time() - NOTES_KEPT - 1))
    assert cache.get(key, lambda message: None) is not None
    cache.sweep()
    assert len(list((cache.root / "digests").iterdir())) == 1
    assert not unread.exists()


def test_what_goes_while_one_looks_is_not_counted(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    lay(cache, "scratch", "a")
    lay(cache, "scratch", "b")

    def going(folder: Path) -> tuple[Path, ...]:
        shutil.rmtree(cache.root / "scratch" / "a", ignore_errors=True)
        return (Path("content"), Path("gone"))

    monkeypatch.setattr("compress.store.kinds.list_files", going)
    assert names(stored(cache.root)) == [("scratch", "b")]


def test_two_that_evict_at_once_drop_each_thing_once(cache: Cache) -> None:
    lay(cache, "features", "f")
    (one,) = stored(cache.root)
    assert names(cache.evict(0)) == [("features", "f")]
    assert not cache._drop(one)


def test_a_plain_folder_is_its_own_lock_and_one_that_is_not_there_is_never_made(tmp_path: Path) -> None:
    folder = tmp_path / "evidence"
    with pytest.raises(FileNotFoundError), locked(lock_of(folder, "key"), lambda: None):
        pass
    folder.mkdir()
    with locked(lock_of(folder, "key"), lambda: None), tried(lock_of(folder, "other")) as free:
        assert not free
    assert list(folder.iterdir()) == []
    assert list(tmp_path.iterdir()) == [folder]

"""Laws of the cache: what comes back is what was put, damage is always found, and eviction keeps what it must."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from compress.artifact import Artifact, Component, write_manifest
from compress.files.hashing import digest_file
from compress.model.describing import describe
from compress.store.cache import ENTRY, Cache

KEYS = st.sampled_from([letter * 64 for letter in "abcde"])
SIZES = st.integers(0, 3000)
WEIGHTS = "model.safetensors"


def fill(cache: Cache, content: bytes, shared: Path | None = None) -> Path:
    """A finished folder, ready to be put: its weights, and a second file that may be linked to another entry's."""
    folder = cache.fresh()
    (folder / WEIGHTS).write_bytes(content)
    (folder / "config.json").write_text("{}")
    if shared:
        os.link(shared, folder / "shared.bin")
    else:
        (folder / "shared.bin").write_bytes(content[::-1])
    write_manifest(Artifact(folder, "text_generation", {"model": Component("torch", "", "LlamaForCausalLM")}))
    return folder


class CacheMachine(RuleBasedStateMachine):
    """Random histories of one cache beside the plain dictionary that it should behave like."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.cache = Cache(self.root)
        self.cache.prepare()
        self.content: dict[str, bytes] = {}
        self.damaged: set[str] = set()
        self.clock = 1_000_000_000

    def teardown(self) -> None:
        shutil.rmtree(self.root)

    def used(self, key: str) -> None:
        """Time as the file system sees it is too coarse for a history of microseconds."""
        self.clock += 1
        os.utime(self.cache.entry(key) / ENTRY, (self.clock, self.clock))

    @rule(key=KEYS, content=st.binary(max_size=3000), other=KEYS)
    def put(self, key: str, content: bytes, other: str) -> None:
        shared = self.cache.entry(other) / "shared.bin" if other in self.content and other not in self.damaged else None
        made = self.cache.put(key, fill(self.cache, content, shared), {"stage": "x.y"})
        self.content[key] = content
        self.damaged.discard(key)
        self.used(key)
        assert (made.path / WEIGHTS).read_bytes() == content

    @rule(key=KEYS)
    def get(self, key: str) -> None:
        warnings: list[str] = []
        found = self.cache.get(key, warnings.append)
        if key not in self.content:
            assert found is None
            assert warnings == []
        elif key in self.damaged:
            assert found is None
            assert len(warnings) == 1
        else:
            assert found is not None
            assert warnings == []
            assert (found.path / WEIGHTS).read_bytes() == self.content[key]
            self.used(key)

    @precondition(lambda self: any(self.content.values()))
    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(k for k, content in self.content.items() if content)))
        path = self.cache.entry(key) / WEIGHTS
        content = bytearray(path.read_bytes())
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
            path.write_bytes(content)
            self.damaged = self.damaged | {key} if bytes(content) != self.content[key] else self.damaged - {key}

    @rule(limit=st.integers(0, 20_000), keep=st.frozensets(KEYS, max_size=3))
    def evict(self, limit: int, keep: frozenset[str]) -> None:
        before = [entry.key for entry in self.cache.entries()]
        gone = [entry.key for entry in self.cache.evict(limit, keep)]
        left = [entry.key for entry in self.cache.entries()]
        assert not set(gone) & keep
        assert self.size() <= limit or set(left) <= keep
        loose = [key for key in before if key not in keep]
        assert gone == loose[: len(gone)]  # the least recently used first, and no gaps
        for key in gone:
            del self.content[key]
            self.damaged.discard(key)

    def size(self) -> int:
        """Bytes on the disk: a file with several names takes its room once."""
        files = [f.stat() for f in (self.root / "entries").rglob("*") if f.is_file() and f.name != ENTRY]
        return sum({f.st_ino: f.st_size for f in files}.values())

    @invariant()
    def there_is_what_was_put_and_nothing_else(self) -> None:
        assert {entry.key for entry in self.cache.entries()} == set(self.content)
        assert all(self.cache.has(key) for key in self.content)
        assert list((self.root / "tmp").iterdir()) == []

    @invariant()
    def the_sizes_add_up_to_what_lies_on_the_disk(self) -> None:
        assert sum(entry.size_bytes for entry in self.cache.entries()) == self.size()

    @invariant()
    def thorough_verification_finds_the_damaged_and_no_others(self) -> None:
        assert {key for key in self.content if self.cache.problem(key, thorough=True)} == self.damaged


CacheMachine.TestCase.settings = settings(max_examples=20, stateful_step_count=15, deadline=None)
TestCache = CacheMachine.TestCase


def entry_of(root: Path, content: bytes = b"weights") -> tuple[Cache, str]:
    cache = Cache(root)
    cache.prepare()
    cache.put("a" * 64, fill(cache, content), {"stage": "x.y"})
    return cache, "a" * 64


@given(st.sampled_from([WEIGHTS, "config.json", "shared.bin", "pare.json"]), st.integers(0, 10**6), st.integers(1, 255))
@settings(max_examples=60, deadline=None)
def test_any_changed_byte_of_any_file_is_found_even_with_its_old_time(name: str, position: int, mask: int) -> None:
    with tempfile.TemporaryDirectory() as root:
        cache, key = entry_of(Path(root))
        path = cache.entry(key) / name
        before, times = path.read_bytes(), path.stat()
        changed = bytearray(before)
        changed[position % len(before)] ^= mask
        path.write_bytes(changed)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert digest_file(path) not in cache.facts(key)["files"].values()
        assert cache.problem(key, thorough=True) == f"{name} changed"
        path.write_bytes(before)
        assert cache.problem(key, thorough=True) == ""


@given(st.sampled_from(["digest", "key", "files"]), st.integers(0, 63), st.data())
@settings(max_examples=40, deadline=None)
def test_a_record_whose_digests_were_changed_is_found(field: str, position: int, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as root:
        cache, key = entry_of(Path(root))
        facts = cache.facts(key)
        owner, name = (facts["files"], WEIGHTS) if field == "files" else (facts, field)
        digit = data.draw(st.sampled_from([c for c in "0123456789abcdef" if c != owner[name][position]]))
        owner[name] = owner[name][:position] + digit + owner[name][position + 1 :]
        (cache.entry(key) / ENTRY).write_text(json.dumps(facts))
        assert cache.problem(key) != ""
        assert cache.get(key, lambda message: None) is None


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["files", "digest", "key"]), inner),
    max_leaves=6,
)


@given(st.one_of(JSON.map(json.dumps), st.text(max_size=20)))
@settings(max_examples=60, deadline=None)
def test_whatever_a_record_holds_the_entry_is_a_miss_that_can_be_listed_and_replaced(text: str) -> None:
    with tempfile.TemporaryDirectory() as root:
        cache, key = entry_of(Path(root))
        (cache.entry(key) / ENTRY).write_text(text)
        warnings: list[str] = []
        assert cache.get(key, warnings.append) is None
        assert len(warnings) == 1
        assert [(e.key, e.facts.get("stage", "")) for e in cache.entries()] == [(key, "")]
        cache.put(key, fill(cache, b"again"), {})
        assert cache.get(key, warnings.append) == cache.put(key, fill(cache, b"again"), {})
        assert describe(cache.entry(key)).task == "text_generation"


def test_an_entry_in_use_is_not_evicted(tmp_path: Path) -> None:
    cache, key = entry_of(tmp_path)
    with cache.locked(key, lambda: None):
        assert cache.evict(0) == ()
    assert [entry.key for entry in cache.evict(0)] == [key]


def three_entries(root: Path) -> tuple[Cache, list[str]]:
    """Three entries of equal size, the last one put the oldest by use; the second's large file is the first's."""
    cache, _ = entry_of(root, b"x" * 1000)
    keys = [letter * 64 for letter in "abc"]
    shared = cache.entry(keys[0]) / "shared.bin"
    cache.put(keys[1], fill(cache, b"y" * 1000, shared), {})
    cache.put(keys[2], fill(cache, b"z" * 1000), {})
    for age, key in enumerate(keys):
        os.utime(cache.entry(key) / ENTRY, (10**9 - age, 10**9 - age))
    return cache, keys


def total(cache: Cache) -> int:
    return sum(entry.size_bytes for entry in cache.entries())


def test_a_cache_at_its_limit_drops_nothing_and_one_byte_over_it_drops_one(tmp_path: Path) -> None:
    cache, keys = three_entries(tmp_path)
    assert cache.evict(total(cache)) == ()
    assert [entry.key for entry in cache.evict(total(cache) - 1)] == [keys[2]]


def test_dropping_an_entry_frees_no_room_that_another_links_to(tmp_path: Path) -> None:
    cache, keys = three_entries(tmp_path)
    cache.evict(0, keep=frozenset(keys[:2]))
    limit = total(cache) - 2000  # the second entry holds more, and its own part of that is less
    assert [entry.key for entry in cache.evict(limit)] == [keys[1], keys[0]]
    assert total(cache) <= limit


def test_an_entry_that_was_used_is_dropped_after_those_that_were_not(tmp_path: Path) -> None:
    cache, keys = three_entries(tmp_path)
    assert cache.get(keys[2], lambda message: None) is not None
    assert [entry.key for entry in cache.entries()] == [keys[1], keys[0], keys[2]]

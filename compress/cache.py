"""Key to folder. An entry appears whole or not at all: built in a temporary folder, manifest last, then renamed.

Layout below the root: `entries/<key>/` (the artifact's own files and `.entry.json`), `scratch/<key>/` (checkpoints of work
in progress), `locks/`, `tmp/`, `digests/` (remembered folder digests) and `evidence/`.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compress.artifact import Artifact
from compress.describing import describe
from compress.errors import CacheError, ModelError
from compress.hashing import digest_file, digest_files, digest_json, list_files

ENTRY = ".entry.json"
FORMAT = 1
LEAST_FREE = 50_000_000  # bytes; what fails with less than this left has most likely run out of it


def default_root() -> Path:
    """`PARE_CACHE`, else the XDG cache folder."""
    if named := os.environ.get("PARE_CACHE"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "pare"


@dataclass(frozen=True)
class Entry:
    key: str
    path: Path
    size_bytes: int
    used: float  # seconds since the epoch of the last use
    facts: dict[str, Any]


@dataclass(frozen=True)
class Cache:
    root: Path

    def prepare(self) -> None:
        """Make the folders, and prove that they can be written.

        Raises:
            CacheError: they cannot.
        """
        try:
            for name in ("entries", "scratch", "locks", "tmp", "digests", "evidence"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root / "tmp"):
                pass
        except OSError as error:
            raise CacheError(
                f"the cache cannot be written: {error.strerror}",
                place=str(self.root),
                fix="give a writable folder with --cache DIR or PARE_CACHE",
            ) from error

    def entry(self, key: str) -> Path:
        return self.root / "entries" / key

    def has(self, key: str) -> bool:
        """Whether an entry is there; says nothing of its content, so planning over many stays instant."""
        return (self.entry(key) / ENTRY).is_file()

    def get(self, key: str, warn: Callable[[str], None]) -> Artifact | None:
        """The artifact under `key`; None if there is none, or if it is not what was stored (after a warning)."""
        if not self.has(key):
            return None
        problem = self.problem(key)
        if problem:
            warn(f"cache entry {key[:12]} is corrupt ({problem}); building it again")
            return None
        os.utime(self.entry(key) / ENTRY)
        facts = json.loads((self.entry(key) / ENTRY).read_text())
        return replace(describe(self.entry(key)), digest=facts["digest"])

    def problem(self, key: str, *, thorough: bool = False) -> str:
        """What is wrong with an entry, or "". Files are hashed again where their inode, size or time changed since the
        last look, or all of them when `thorough`."""
        folder = self.entry(key)
        try:
            facts = json.loads((folder / ENTRY).read_text())
            expected: dict[str, str] = facts["files"]
            found = {f.as_posix() for f in list_files(folder)}
            if facts["key"] != key or facts["digest"] != digest_json(expected):
                return f"{ENTRY} is another entry's"
            if missing := sorted(expected.keys() ^ found):
                return f"{missing[0]} is {'missing' if missing[0] in expected else 'foreign'}"
            note = self.root / "digests" / _stamp(folder, facts["digest"])
            if note.is_file() and not thorough:
                return ""
            for name, digest in expected.items():
                if digest_file(folder / name) != digest:
                    return f"{name} changed"
            describe(folder)
            note.touch()
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ModelError) as error:
            return f"does not read: {error}"
        return ""

    @contextmanager
    def locked(self, key: str, waiting: Callable[[], None]) -> Iterator[None]:
        """Hold the lock of one key; released by the system if this process dies, however it dies."""
        with (self.root / "locks" / key).open("w") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def fresh(self) -> Path:
        """An empty folder in the cache's own file system, so that it can be renamed into place."""
        return Path(tempfile.mkdtemp(dir=self.root / "tmp"))

    def scratch(self, key: str) -> Path:
        folder = self.root / "scratch" / key
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def put(self, key: str, folder: Path, facts: dict[str, Any]) -> Artifact:
        """Move a finished folder into place. Call with the key's lock held."""
        files = digest_files(folder)
        digest = digest_json(files)
        for name in files:
            _sync(folder / name)
        body = {"format": FORMAT, "key": key, "digest": digest, "files": files, **facts}
        (folder / ENTRY).write_text(json.dumps(body, indent=2, sort_keys=True))
        _sync(folder / ENTRY)
        target = self.entry(key)
        grave = self.root / "tmp" / f"corrupt-{key}-{time.time_ns()}"
        if target.exists():  # a corrupt entry: out of the way first, so that a crash here leaves a miss, not a mixture
            target.rename(grave)
        folder.rename(target)
        shutil.rmtree(grave, ignore_errors=True)
        (self.root / "digests" / _stamp(target, digest)).touch()
        shutil.rmtree(self.root / "scratch" / key, ignore_errors=True)
        return replace(describe(target), digest=digest)

    def facts(self, key: str) -> dict[str, Any]:
        """What was recorded beside an entry when it was made: seconds, stage, notes."""
        body: dict[str, Any] = json.loads((self.entry(key) / ENTRY).read_text())
        return body

    def entries(self) -> tuple[Entry, ...]:
        """All entries, the least recently used first. Hard-linked files count once, with the oldest entry."""
        found = []
        seen: set[int] = set()
        for manifest in sorted((self.root / "entries").glob(f"*/{ENTRY}"), key=lambda p: p.stat().st_mtime):
            folder = manifest.parent
            stats = _stats(folder)
            size = sum(s.st_size for s in stats if s.st_ino not in seen)
            seen |= {s.st_ino for s in stats}
            try:
                facts = json.loads(manifest.read_text())
            except ValueError:
                facts = None
            found.append(
                Entry(folder.name, folder, size, manifest.stat().st_mtime, facts if isinstance(facts, dict) else {})
            )
        return tuple(found)

    def evict(self, max_bytes: int, keep: frozenset[str] = frozenset()) -> tuple[Entry, ...]:
        """Drop the least recently used entries until at most `max_bytes` are left; never one in `keep` or in use."""
        entries = self.entries()
        files = {e.key: {s.st_ino: s.st_size for s in _stats(e.path)} for e in entries}
        holders = Counter(inode for inodes in files.values() for inode in inodes)
        excess = sum(e.size_bytes for e in entries) - max_bytes
        gone = []
        for entry in entries:
            if excess <= 0:
                break
            if entry.key in keep or not self._drop(entry.key):
                continue
            gone.append(entry)
            for inode, size in files[entry.key].items():
                holders[inode] -= 1
                excess -= 0 if holders[inode] else size  # what another entry links to takes its room still
        return tuple(gone)

    def sweep(self, older_than: float = 86_400) -> None:
        """Remove what crashed runs left in `tmp`, once it is a day old and so nobody's any more."""
        for folder in (self.root / "tmp").iterdir():
            if time.time() - folder.stat().st_mtime > older_than:
                shutil.rmtree(folder, ignore_errors=True)

    def _drop(self, key: str) -> bool:
        with (self.root / "locks" / key).open("w") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            grave = self.root / "tmp" / f"evicted-{key}-{time.time_ns()}"
            self.entry(key).rename(grave)
            shutil.rmtree(grave)
        return True


@contextmanager
def disk_errors(root: Path) -> Iterator[None]:
    """Turn a full disk or a read-only file system into one clear error.

    Raises:
        CacheError: the disk is full, or does not let us write.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise full_disk(root) from error
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise CacheError(
                f"cannot write: {error}", place=str(root), fix="give a writable folder with --cache"
            ) from error
        raise


def no_room(error: Exception, folder: Path) -> bool:
    """Whether something failed for want of disk: libraries that write by themselves say so in their own words."""
    told = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return told or shutil.disk_usage(folder).free < LEAST_FREE


def full_disk(folder: Path) -> CacheError:
    """The error that says how little room is left where `folder` lies."""
    return CacheError(
        f"the disk is full ({shutil.disk_usage(folder).free / 1e6:.1f} MB free)",
        place=str(folder),
        fix="free room, or give another folder with --cache; what finished before is kept",
    )


def _stamp(folder: Path, digest: str) -> str:
    stats = [(f.as_posix(), (folder / f).stat()) for f in list_files(folder)]
    return digest_json([digest, [[name, s.st_ino, s.st_size, s.st_mtime_ns] for name, s in stats]])


def _stats(folder: Path) -> list[os.stat_result]:
    return [(folder / f).stat() for f in list_files(folder)]


def _sync(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())

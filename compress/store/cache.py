"""Key to folder. An entry appears whole or not at all: built in a temporary folder, manifest last, then renamed.

Layout below the root: `entries/<key>/` (the artifact's own files and `.entry.json`), `scratch/<key>/` (checkpoints of work
in progress), `evidence/<key>/`, `features/<key>.safetensors`, `training/` (of the zoo), `code/`, `locks/`, `tmp/` and `digests/`
(remembered digests of folders).
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from compress.artifact import Artifact
from compress.errors import CacheError, ModelError
from compress.files.hashing import Identity, digest_file, digest_files, digest_json, folder_files, list_files, touch
from compress.files.locks import LOCKS, Hold, hold, locked, tried
from compress.files.user_paths import expanded
from compress.model.describing import describe
from compress.store.kinds import ENTRY, KINDS, Stored, stored

FORMAT = 1
DAY = 86_400.0  # seconds
NOTES_KEPT = 90 * DAY  # how long a remembered digest that nobody asks for stays
LEAST_FREE = 50_000_000  # bytes; what fails with less than this left has most likely run out of it


def default_root() -> Path:
    """`PARE_CACHE`, else the XDG cache folder."""
    if named := os.environ.get("PARE_CACHE"):
        return expanded(named)
    return expanded(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pare"


def open_cache(root: str | Path | None) -> Cache:
    """The cache in this folder; without one, the user's own."""
    return Cache(expanded(root) if root else default_root())


@dataclass(frozen=True)
class Cache:
    root: Path
    _holds: list[Hold] | None = field(default=None, compare=False, repr=False)

    def __reduce__(self) -> tuple[type[Cache], tuple[Path]]:
        return Cache, (self.root,)  # what a process holds it cannot hand on

    @contextmanager
    def holding(self) -> Iterator[Cache]:
        """The same cache for one run: no other run evicts the entries that it gives until this one is done with them."""
        if self._holds is not None:  # within such a run
            yield self
            return
        holds: list[Hold] = []
        try:
            yield replace(self, _holds=holds)
        finally:
            for held in holds:
                held.release()

    def hold(self, key: str) -> None:
        """Keep an entry from being evicted for as long as this run lasts."""
        if self._holds is not None and (held := hold(self.entry(key) / ENTRY)):
            self._holds.append(held)

    def prepare(self) -> None:
        """Make the folders, and prove that they can be written.

        Raises:
            CacheError: they cannot.
        """
        try:
            for name in ("entries", "scratch", LOCKS, "tmp", "digests", "evidence"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root / "tmp"):
                pass
        except OSError as error:
            raise CacheError(
                f"the cache cannot be written: {error.strerror}",
                place=str(self.root),
                fix="give a writable folder with --cache DIR or PARE_CACHE (cache= in Python)",
            ) from error

    def entry(self, key: str) -> Path:
        return self.root / "entries" / key

    def has(self, key: str) -> bool:
        """Whether an entry is there; says nothing of its content, so planning over many stays instant."""
        return (self.entry(key) / ENTRY).is_file()

    def holds_any(self, stage: str) -> bool:
        """Whether there is an entry that a stage of this name made."""
        mention = json.dumps(stage)
        return any(mention in file.read_text() for file in (self.root / "entries").glob(f"*/{ENTRY}"))

    def get(self, key: str, warn: Callable[[str], None]) -> Artifact | None:
        """The artifact under `key`; None if there is none, or if it is not what was stored (after a warning)."""
        held = hold(self.entry(key) / ENTRY)  # first of all: what is looked at must still be there when it is used
        if held is None:
            return None
        if problem := self.problem(key):
            warn(f"cache entry {key[:12]} is corrupt ({problem}); building it again")
            return None
        os.utime(self.entry(key) / ENTRY)
        if self._holds is not None:
            self._holds.append(held)
        return replace(describe(self.entry(key)), digest=self.facts(key)["digest"])

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
                touch(note)
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
        with locked(self.root / LOCKS / key, waiting):
            yield

    def fresh(self) -> Path:
        """An empty folder in the cache's own file system, so that it can be renamed into place."""
        return Path(tempfile.mkdtemp(dir=self.root / "tmp"))

    def scratch(self, key: str) -> Path:
        folder = self.root / "scratch" / key
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def recorded(self, artifact: Artifact) -> dict[str, str]:
        """The digest of each file of an entry, as it was when the entry was made, or of any other folder, remembered."""
        if artifact.path.parent == self.root / "entries":
            files: dict[str, str] = self.facts(artifact.path.name)["files"]
            return files
        return folder_files(artifact.path, self.root / "digests")

    def put(
        self, key: str, folder: Path, facts: dict[str, Any], known: Mapping[Identity, str] | None = None
    ) -> Artifact:
        """Move a finished folder into place. Call with the key's lock held.

        Args:
            known: the digests of files that have been hashed, and not written to since they were.
        """
        files = digest_files(folder, known)
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
        self.hold(key)
        return replace(describe(target), digest=digest)

    def facts(self, key: str) -> dict[str, Any]:
        """What was recorded beside an entry when it was made: seconds, stage, notes."""
        body: dict[str, Any] = json.loads((self.entry(key) / ENTRY).read_text())
        return body

    def entries(self) -> tuple[Stored, ...]:
        """All entries, the least recently used first. Hard-linked files count once, with the oldest entry."""
        return stored(self.root, [kind for kind in KINDS if kind.record == ENTRY])

    def kinds(self) -> dict[str, tuple[int, int]]:
        """How many things of each kind there are, and the bytes they take."""
        found = {kind.folder: (0, 0) for kind in KINDS}
        for one in stored(self.root):
            count, size = found[one.kind]
            found[one.kind] = count + 1, size + one.size_bytes
        notes = [f.stat().st_size for f in (self.root / "digests").glob("*")]
        return {**found, "digests": (len(notes), sum(notes))}

    def evict(self, max_bytes: int, keep: frozenset[str] = frozenset()) -> tuple[Stored, ...]:
        """Drop what was least recently used, of whatever kind, until at most `max_bytes` are left; never what is in `keep` or
        in use."""
        everything = stored(self.root)
        holders = Counter(inode for one in everything for inode in one.files)
        excess = sum(one.size_bytes for one in everything) - max_bytes
        gone = []
        for one in everything:
            if excess <= 0:
                break
            if one.key in keep or not self._drop(one):
                continue
            gone.append(one)
            for inode, size in one.files.items():
                holders[inode] -= 1
                excess -= 0 if holders[inode] else size  # what another one links to takes its room still
        return tuple(gone)

    def sweep(self, older_than: float = DAY) -> None:
        """Remove what crashed runs left half made, once it is a day old and so nobody's any more, and notes long unread."""
        left = [(path, older_than) for path in (self.root / "tmp").iterdir()]
        left += [(path, older_than) for kind in KINDS for path in (self.root / kind.folder).glob(".making-*")]
        left += [(path, NOTES_KEPT) for path in (self.root / "digests").iterdir()]
        for path, age in left:
            with suppress(FileNotFoundError):  # another run sweeps too
                if time.time() - path.stat().st_mtime > age:
                    with tried(path) as unavailable:  # a training may take longer than a day
                        if unavailable:
                            _remove(path)

    def _drop(self, one: Stored) -> bool:
        """Whether it is gone now: not if somebody works on it, or reads it."""
        if one.kind == "training" and time.time() - one.used < DAY:
            return False  # the zoo's trainings take no locks
        grave = self.root / "tmp" / f"evicted-{one.key}-{time.time_ns()}"
        try:
            with ExitStack() as held:
                locks = (one.lock, *([one.record] if one.record else []))
                if not all(held.enter_context(tried(lock)) for lock in locks):
                    return False
                one.path.rename(grave)
                _remove(grave)
        except FileNotFoundError:  # another run has dropped it
            return False
        return True


def write_whole(file: Path, value: Mapping[str, Any]) -> None:
    """Write JSON so that it is whole or not there."""
    part = file.with_suffix(".part")
    part.write_text(json.dumps(value))
    part.replace(file)


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
                f"cannot write: {error}", place=str(root), fix="give a writable folder with --cache (cache= in Python)"
            ) from error
        raise


def no_room(error: Exception, folder: Path) -> bool:
    """Whether something failed for want of disk: libraries that write by themselves say so in their own words."""
    reported = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return reported or shutil.disk_usage(folder).free < LEAST_FREE


def full_disk(folder: Path) -> CacheError:
    """The error that says how little room is left where `folder` lies."""
    return CacheError(
        f"the disk is full ({shutil.disk_usage(folder).free / 1e6:.1f} MB free)",
        place=str(folder),
        fix="free room, or give another folder with --cache (cache= in Python); what finished before is kept",
    )


def _stamp(folder: Path, digest: str) -> str:
    stats = [(f.as_posix(), (folder / f).stat()) for f in list_files(folder)]
    return digest_json([digest, [[name, s.st_ino, s.st_size, s.st_mtime_ns] for name, s in stats]])


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())

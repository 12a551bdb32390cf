"""The process that opens every finished artifact as a stranger would: it has never held the live model.

One is started at the beginning of a run, so that its imports overlap with the first stage, and a run that follows at once in
the same process takes it over. It reads one JSON request a line and answers with one JSON line.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from compress.errors import ContractError
from compress.machine.devices import Opening
from compress.model.exportable import ANY_SIZE, Batches, Profile


@dataclass
class Checker:
    """A handle on the checker process. Mutable, for it owns a process."""

    process: subprocess.Popen[str] | None = field(default=None, init=False)
    surroundings: tuple[Mapping[str, str], str] | None = field(default=None, init=False)

    def start(self, task: str = "") -> None:
        """Start the process, unless it runs; it imports what opens models of this task."""
        if self.process is None:
            self.surroundings = _surroundings()
            self.process = subprocess.Popen(
                [sys.executable, "-m", "compress.execution.reload", *filter(None, [task])],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,  # Ctrl-C is ours to handle, and ends it by closing its input
                env={**os.environ, "HF_HUB_OFFLINE": "1"},
            )

    def probe(self, folder: Path, profile: Batches = ANY_SIZE, *, trust: bool = False) -> dict[str, Any]:
        """Load the artifact in `folder` and call it once. Returns `finite`, `spread` (standard deviation) and `digest`.

        Args:
            profile: the sizes of calls that it takes.
            trust: whether Python code in the folder may run.

        Raises:
            ContractError: it does not load or run; the message holds the cause.
        """
        self.start()
        process = self.process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(
                json.dumps({"folder": str(folder), "profile": profile.model_dump(), "trust": trust}) + "\n"
            )
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self.stop()
            raise ContractError("the artifact brought down the process that reloaded it", place=str(folder))
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ContractError(f"does not reload: {answer['error']}", place=str(folder))
        return answer

    def stop(self) -> None:
        if self.process:
            self.process.terminate()
            self.process.communicate()  # closes both pipes
        self.process = None

    def serves_here(self) -> bool:
        """Whether its process lives, and was started in the surroundings of today."""
        return self.process is not None and self.process.poll() is None and self.surroundings == _surroundings()

    def __enter__(self) -> Checker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _surroundings() -> tuple[Mapping[str, str], str]:
    return dict(os.environ), os.getcwd()


@contextmanager
def lent_checker() -> Iterator[Checker]:
    """A checker for one run, of its own for that time. It stays for the next run, unless this one fails or the next is long in
    coming: imports take seconds."""
    with _spare.take() as checker:
        yield checker
        _spare.keep(checker)


class Spare:
    """The checker that no run has now. At most one, and not for long: it holds some hundred megabytes."""

    def __init__(self, seconds: float = 60) -> None:
        self.seconds = seconds
        self._lock = threading.Lock()
        self._kept: Checker | None = None
        self._end: threading.Timer | None = None

    def take(self) -> Checker:
        kept = self._swap(None)
        if kept.serves_here():
            return kept
        kept.stop()
        return Checker()

    def keep(self, checker: Checker) -> None:
        """Take over a checker's process; the handle has none any more."""
        kept = Checker()
        kept.process, kept.surroundings, checker.process = checker.process, checker.surroundings, None
        self._swap(kept).stop()

    def drop(self) -> None:
        self._swap(None).stop()

    def _swap(self, checker: Checker | None) -> Checker:
        with self._lock:
            before, self._kept = self._kept, checker
            if self._end:
                self._end.cancel()
            self._end = threading.Timer(self.seconds, self.drop) if checker else None
            if self._end:
                self._end.daemon = True
                self._end.start()
        return before or Checker()


_spare = Spare()
atexit.register(_spare.drop)


def probe(folder: Path, profile: Batches = ANY_SIZE, *, trust: bool = False) -> dict[str, Any]:
    """Load an artifact and call it on a fixed input, as near to two items as its profile takes."""
    import numpy as np

    from compress.files.hashing import digest_json
    from compress.model.describing import describe
    from compress.opening import open_task
    from compress.quantization.packed_places import device_for

    artifact = describe(folder)
    opening = Opening(device=device_for(artifact), trust_remote_code=trust)
    values = open_task(artifact, opening).probe(profile)
    return {
        "finite": bool(np.isfinite(values).all()),
        "spread": float(np.nan_to_num(values).std()),
        "digest": digest_json(np.nan_to_num(values).round(4).tolist()),
    }


def serve() -> None:
    """Answer requests until the input closes. Only answers go to standard output, whatever libraries print."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for name in sys.argv[1:]:  # seconds of imports, while the first stage is at work
        importlib.import_module(f"compress.opening.{name}")

    for line in sys.stdin:
        try:
            asked = json.loads(line)
            answer = probe(Path(asked["folder"]), Profile(**asked["profile"]), trust=asked["trust"])
        except Exception as error:  # whatever a broken artifact raises is the answer
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve()

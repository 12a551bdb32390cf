"""Fresh processes, each of which loads a model and makes one call: what that takes in memory and in time.

python -m evaluation.observe.cold_starts FOLDER OPENING CALL   (the last two are JSON; prints a `Start` as JSON)
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.errors import StageFailed
from compress.events import Emit, track
from compress.machine.devices import Opening, kind_of
from evaluation.evidence import Start

if TYPE_CHECKING:
    from evaluation.observe.collect import Viewpoint

BY_HAND = "load it by hand to see more"
_RAISED = re.compile(
    r"(\w+\.)*[A-Z]\w*(: |$)"
)  # the line of a traceback that names the error; a fix, or more of it, may follow


def start_both(views: Sequence[Viewpoint], count: int, emit: Emit) -> tuple[tuple[Start, ...], ...]:
    """`count` starts of each side, the sides taking turns so that the disk's cache is as warm for one as for the other.

    A first start of each is thrown away: it alone would read from a cold disk.

    Raises:
        StageFailed: a model does not load or run in a process of its own.
    """
    turns = [view for _ in range(count + 1) for view in views]
    found = [start(view) for view in track(turns, emit, "starting fresh processes", len(turns))]
    return tuple(tuple(found[side :: len(views)][1:]) for side in range(len(views)))


def start(view: Viewpoint) -> Start:
    """One fresh process."""
    return _start(view.artifact.path, view.opening, view.call)


def _start(folder: Path, opening: Opening, call: Mapping[str, Any]) -> Start:
    command = [
        sys.executable,
        "-m",
        "evaluation.observe.cold_starts",
        str(folder),
        json.dumps(vars(opening)),
        json.dumps(dict(call)),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=False
    )
    if done.returncode != 0:
        raise StageFailed(f"a fresh process could not run the model: {_why(done)}", place=str(folder), fix=BY_HAND)
    return Start(**json.loads(done.stdout.strip().splitlines()[-1]))


def _why(done: subprocess.CompletedProcess[str]) -> str:
    """What ended a process, in one line: the error it raised, or the signal that killed it."""
    if done.returncode < 0:
        return f"it was killed by {signal.Signals(-done.returncode).name}"
    raised = [line for line in done.stderr.splitlines() if _RAISED.match(line)]
    if not raised:
        return f"it left with exit code {done.returncode} and no message"
    return raised[-1].partition(": ")[2] if raised[-1].startswith("compress.errors.") else raised[-1]


def highest_resident() -> int:
    """This process's highest resident set so far, bytes."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    # Not ru_maxrss, where there is another: on Linux it survives exec, and so would be at least that of the parent.
    if line := next((line for line in lines if line.startswith("VmHWM")), ""):
        return int(line.split()[1]) * 1024
    import resource

    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found if sys.platform == "darwin" else found * 1024  # macOS counts bytes, and its own


def device_peaks(device: str) -> dict[str, int]:
    """The most that this process's torch allocated and reserved on a GPU so far, bytes; {} for a processor."""
    if kind_of(device) != "cuda":
        return {}
    import torch

    counted = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
    return dict(zip(("device_bytes", "reserved_bytes"), counted, strict=True))


def device_seconds(call: Callable[[], object], device: str) -> dict[str, float]:
    """Seconds of a call on a GPU, and of another one those in which the GPU was at work; {} for a processor."""
    if kind_of(device) != "cuda":
        return {}
    import torch
    from torch.profiler import ProfilerActivity, profile

    began = time.perf_counter()
    call()
    torch.cuda.synchronize(device)
    whole = time.perf_counter() - began
    trace = profile(activities=[ProfilerActivity.CUDA])
    try:
        trace.start()
    except RuntimeError:  # a driver that lets nobody trace
        return {"call_seconds": whole}
    call()
    torch.cuda.synchronize(device)
    trace.stop()
    events = trace.events() or ()  # type: ignore[no-untyped-call]
    there = [e for e in events if e.device_type.name == "CUDA" and not getattr(e, "is_user_annotation", False)]
    busy = covered([(e.time_range.start, e.time_range.end) for e in there])
    return {"call_seconds": whole, "device_seconds": busy / 1e6}


def covered(spans: Sequence[tuple[float, float]]) -> float:
    """How long at least one of some spans of time lasts."""
    total, until = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total


def main(folder: str, opening: str, call: str) -> None:
    began = time.perf_counter()
    from compress.model.describing import describe
    from compress.opening import open_task

    how, given = Opening(**json.loads(opening)), json.loads(call)
    opened = open_task(describe(Path(folder)), how)
    opened.first_call(**given)
    seconds = time.perf_counter() - began
    found = {"peak_bytes": highest_resident(), "seconds": seconds, **device_peaks(how.device)}
    print(json.dumps(found | device_seconds(lambda: opened.first_call(**given), how.device)))


if __name__ == "__main__":
    main(*sys.argv[1:])

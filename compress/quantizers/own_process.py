"""Work in a process of its own: of a library that changes others where it is imported, or wants its surroundings set before that.

The parent gives one order as JSON and reads JSON lines: progress, and at the end what came of it. Whatever libraries print goes to a log
in the scratch folder; what they write to their working directory, home or temporary folder stays there too. Nothing is fetched.
The process ends with its parent.
"""

from __future__ import annotations

import json
import os
import signal
import site
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from compress.context import Context
from compress.errors import StageFailed

Tell = Callable[[str, int, int], None]  # what is at work, how many are done, of how many
LOG = "log.txt"
LAST = 2000  # characters of a log in which the cause is looked for
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "DO_NOT_TRACK": "1"}


def in_own_process(
    library: str,
    module: str,
    order: Callable[[], Mapping[str, Any]],
    context: Context,
    environment: Mapping[str, str],
    *,
    without: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Run `python -m module`, which must call `serve`, and return what its work gave.

    Args:
        library: whose work it is, as errors name it.
        order: what JSON can say; its paths are absolute, for the process starts in a folder of its own. It is made while that process
            imports its library, which takes seconds.
        environment: variables of the library's own, beside those that keep it offline and in the scratch folder.
        without: how the names of variables begin that it shall not see, for they would change its result.

    Raises:
        StageFailed: it raised an error, or died.
    """
    here = (context.scratch / "process").absolute()
    here.mkdir(parents=True, exist_ok=True)
    log = here / LOG
    with log.open("w") as printed:
        process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=printed,
            text=True,
            cwd=here,
            start_new_session=True,  # so that what it starts ends with it
            env={**_seen(without), **_surroundings(here), **environment},
        )
        try:
            return _answer(library, process, order(), context, log)
        finally:
            _end(process)


def serve(work: Callable[[Mapping[str, Any], Tell], Mapping[str, Any]], prepare: Callable[[], object] = dict) -> None:
    """In the process: read the order, do the work, tell what came of it. Only that goes to standard output, whatever libraries print.

    Args:
        prepare: imports what the work will, before there is an order.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(**line: object) -> None:
        print(json.dumps(line), file=answers, flush=True)

    try:
        prepare()
        order = json.loads(sys.stdin.readline())
        threading.Thread(target=_end_with_parent, daemon=True).start()
        found = work(order, lambda what, done, total: say(what=what, done=done, total=total))
        say(found=dict(found))
    except Exception as error:  # whatever a library raises is reported where the stage was started
        import traceback

        traceback.print_exc()
        say(error=f"{type(error).__name__}: {error}")
    answers.close()
    sys.stdout.flush()
    os._exit(0)  # pools of threads that libraries leave behind would keep it alive


def _seen(without: tuple[str, ...]) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not (without and name.startswith(without))}


def _surroundings(here: Path) -> dict[str, str]:
    """Variables that keep a process in a folder and off the network."""
    path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), *_editable())))
    folders = {"HOME": here, "TMPDIR": here, "XDG_CACHE_HOME": here, "HF_HOME": here / "hub"}
    user = {"PYTHONUSERBASE": site.getuserbase(), "PYTHONPATH": path}
    return {**OFFLINE, **user, **{name: str(folder) for name, folder in folders.items()}}


def _editable() -> tuple[str, ...]:
    """Where this package is imported from: the process starts in another folder, which a relative path would not be found from."""
    return (str(Path(__file__).resolve().parents[2]),)


def _answer(
    library: str, process: subprocess.Popen[str], order: Mapping[str, Any], context: Context, log: Path
) -> dict[str, Any]:
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # why it died is reported below
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.flush()
    for line in _lines(process):
        if "found" in line:
            found: dict[str, Any] = line["found"]
            return found
        if "error" in line:
            raise StageFailed(f"{library}: {line['error']}", place=str(log), fix="the log there says more")
        context.tell(line["what"], int(line["done"]), int(line["total"]))
    message = f"{library}: its process {_how(process)}: {_last(log)}"
    raise StageFailed(message, place=str(log), fix="the log there says more")


def _lines(process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    assert process.stdout is not None
    for line in process.stdout:
        found: dict[str, Any] = json.loads(line)
        yield found


def _how(process: subprocess.Popen[str]) -> str:
    code = process.wait()
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"left with exit code {code}"


def _last(log: Path) -> str:
    """The last line that was printed."""
    lines = log.read_text(errors="replace")[-LAST:].strip().splitlines()
    return lines[-1].strip() if lines else "it printed nothing"


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with suppress(BrokenPipeError):
            if pipe is not None:
                pipe.close()


def _end_with_parent() -> None:
    """A parent that dies closes the pipe that its order came through; what this process started ends with it."""
    sys.stdin.read()
    os.killpg(0, signal.SIGKILL)


def peak_bytes() -> int:
    """This process's highest resident set so far, bytes; 0 where nobody tells."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)

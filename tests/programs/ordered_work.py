"""A process of its own that does what it is ordered to: `python -m tests.programs.ordered_work`."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compress.quantizers.own_process import Tell, serve


def prepare() -> None:
    (Path.home() / "prepared").write_text("what libraries are imported")


def work(order: Mapping[str, Any], tell: Tell) -> Mapping[str, Any]:
    sys.stdout.write("a library talks\n")
    sys.stderr.write("and complains\n")
    (Path.home() / "kept").write_text("where libraries write")
    tell("blocks", 1, 2)
    if order["do"] == "raise":
        raise ValueError("no such thing")
    if order["do"] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if order["do"] == "sleep":
        Path(order["pid"]).write_text(str(os.getpid()))
        time.sleep(60)
    if order["do"] == "leave":
        os._exit(7)
    return {
        "here": os.getcwd(),
        "offline": os.environ["HF_HUB_OFFLINE"],
        "own": os.environ["OWN"],
        "more": os.environ.get("AR_MORE", ""),
        "pid": os.getpid(),
    }


if __name__ == "__main__":
    serve(work, prepare)

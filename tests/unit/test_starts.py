"""Peak memory is a process's own, however large the process that started it."""

from __future__ import annotations

import subprocess
import sys

from evaluation.memory import highest_resident

BALLAST = 300_000_000


def test_a_small_process_started_by_a_large_one_is_small() -> None:
    ballast = bytearray(b"x") * BALLAST
    code = "from evaluation.memory import highest_resident; print(highest_resident())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert highest_resident() > len(ballast)
    assert 5_000_000 < int(done.stdout) < BALLAST / 2

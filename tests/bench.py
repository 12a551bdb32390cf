"""`make bench`: start-up, as ratios to an empty interpreter in one interleaved run. Never an assertion of seconds.

python -m tests.bench
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROUNDS = 10
ROOT = Path(__file__).parent.parent
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "pare --help": ["-m", "compress.cli", "--help"],
    "pare check recipes/quickstart.yaml": ["-m", "compress.cli", "check", "recipes/quickstart.yaml"],
    "import compress": ["-c", "import compress"],
}


def main() -> None:
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS):
        for name, arguments in COMMANDS.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
            times[name].append(time.perf_counter() - began)
    empty = statistics.median(times["python -c pass"])
    rows = {
        name: {"median_ms": round(1000 * statistics.median(t), 1), "ratio": round(statistics.median(t) / empty, 2)}
        for name, t in times.items()
    }
    sys.stdout.write(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()

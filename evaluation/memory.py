"""Peak resident memory of one side: a fresh process that loads the model and makes one call.

python -m evaluation.memory FOLDER DTYPE CALL   (CALL is JSON; prints {"peak_bytes": …})
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compress.errors import StageFailed


def peak_bytes(folder: Path, dtype: str, call: Mapping[str, Any]) -> int:
    """Highest resident set, bytes.

    Raises:
        StageFailed: the model does not load or run in a process of its own.
    """
    command = [sys.executable, "-m", "evaluation.memory", str(folder), dtype, json.dumps(dict(call))]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=False
    )
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise StageFailed(
            f"a fresh process could not run the model: {last[0]}", place=str(folder), fix="load it by hand to see more"
        )
    return int(json.loads(done.stdout.strip().splitlines()[-1])["peak_bytes"])


def highest_resident() -> int:
    """This process's highest resident set so far, bytes."""
    status = Path("/proc/self/status")
    if status.is_file():  # not ru_maxrss: on Linux it survives exec, and so would be at least that of the parent
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS: bytes, and its own


def main(folder: str, dtype: str, call: str) -> None:
    from compress.artifact import describe
    from compress.tasks import open_task

    artifact = describe(Path(folder))
    task: Any = open_task(artifact, dtype=dtype or None)
    if artifact.task == "text_to_image":
        task.paint(["a red three on white paper"], ["0"], 0, **json.loads(call))
    else:
        task.generate([task.encode("The array of values")], 16)
    print(json.dumps({"peak_bytes": highest_resident()}))


if __name__ == "__main__":
    main(*sys.argv[1:])

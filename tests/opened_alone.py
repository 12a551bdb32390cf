"""Artifacts opened by stock libraries, in a process in which pare cannot be imported, and called as they are here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from compress.artifact import Artifact
from compress.engines.module import flatten
from compress.opening import open_component, open_language, open_task
from compress.quantization.reach import model_library
from tests.reference import alone

Call = Mapping[str, torch.Tensor]
WRITTEN = 8  # tokens


@dataclass(frozen=True)
class Job:
    """A component of an artifact, its call, how it is opened (of `alone.OPENERS`; "": as its format asks), and how many tokens it writes."""

    artifact: Artifact
    component: str
    call: Call = field(default_factory=dict)
    opener: str = ""
    written: int = 0

    def described(self, out: Path, number: int) -> dict[str, Any]:
        part = self.artifact.components[self.component]
        library = model_library(self.artifact, self.component)
        opener = self.opener or (library if part.format == "torch" else part.format)
        files = {"call": str(out / f"{number}.in") if self.call else "", "out": str(out / f"{number}.out")}
        folder = str(self.artifact.folder(self.component).absolute())
        return {"folder": folder, "opener": opener, "kind": part.kind, "written": self.written, **files}


def open_alone(jobs: Sequence[Job], out: Path, python: Path | str = sys.executable) -> list[dict[str, torch.Tensor]]:
    """What each job gives, all in one process without pare, of this environment or another's Python."""
    out.mkdir()
    for number, job in enumerate(jobs):
        if job.call:
            save_file(dict(job.call), out / f"{number}.in")
    asked = {"jobs": [job.described(out, n) for n, job in enumerate(jobs)], "threads": torch.get_num_threads()}
    (out / "jobs.json").write_text(json.dumps(asked))
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(python), alone.__file__, str(out / "jobs.json")],
        cwd=out,
        env={**env, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [load_file(out / f"{number}.out") for number in range(len(jobs))]


def opened_alone(parts: Sequence[tuple[Artifact, str]], calls: Sequence[Call], out: Path) -> list[torch.Tensor]:
    """What each component gives where stock libraries open it, all in one process without pare."""
    jobs = [Job(artifact, name, call) for (artifact, name), call in zip(parts, calls, strict=True)]
    return [found["found"] for found in open_alone(jobs, out)]


def called_here(artifact: Artifact, name: str, given: Call) -> torch.Tensor:
    """What a component gives where pare opens it."""
    kind = artifact.components[name].kind
    return alone.called(open_component(artifact, name), kind, given)


def written_here(artifact: Artifact, prompt: Sequence[int], count: int = WRITTEN) -> list[int]:
    """What a language model writes greedily where pare opens it."""
    return open_language(artifact).generate([prompt], count)[0]


def first_call(artifact: Artifact, name: str) -> Call:
    """The tensors of a real call to a component, made while its model runs."""
    task = open_task(artifact)
    for _, given in task.calls_of([name], task.examples[:1], 0, **dict(task.brief)):
        return {key: value.clone().contiguous() for key, value in flatten(given).items()}
    raise AssertionError(f"{name} is never called")

"""Packed components opened by stock libraries, in a process in which pare cannot be imported, and called as they are here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from compress.artifact import Artifact
from compress.engines.module import flatten
from compress.engines.torch.runtime import first_tensor
from compress.opening import open_component, open_task
from compress.quantization.reach import model_library

Call = Mapping[str, torch.Tensor]
CALLED = """
def call(model, kind, given):
    import torch
    for name in [name for name in given if "." in name]:  # of a dictionary
        outer, inner = name.split(".")
        given.setdefault(outer, {})[inner] = given.pop(name)
    with torch.no_grad():
        found = (model.decode if kind.startswith("Autoencoder") else model)(**given)
    while not torch.is_tensor(found):
        found = found[0]
    return found
"""
ALONE = (
    CALLED
    + """
import json, sys
class Without:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("compress", "evaluation"):
            raise ImportError(f"{name} is not installed")
sys.meta_path.insert(0, Without())
try:
    import compress
except ImportError:
    pass
else:
    sys.exit("pare is here")
import diffusers, torch, transformers
from safetensors.torch import load_file, save_file
asked = json.loads(sys.argv[1])
torch.set_num_threads(asked["threads"])
for number, (folder, library, kind) in enumerate(asked["parts"]):
    options = {"torch_dtype": torch.float32} if library == "diffusers" else {}
    model = getattr(diffusers if library == "diffusers" else transformers, kind).from_pretrained(folder, **options)
    found = call(model.eval(), kind, load_file(f"{asked['out']}/{number}.in"))
    save_file({"found": found.contiguous()}, f"{asked['out']}/{number}.out")
"""
)


def opened_alone(parts: Sequence[tuple[Artifact, str]], calls: Sequence[Call], out: Path) -> list[torch.Tensor]:
    """What each component gives where stock libraries open it, all in one process without pare."""
    out.mkdir()
    for number, given in enumerate(calls):
        save_file(dict(given), out / f"{number}.in")
    reported = [(str(a.folder(n)), model_library(a, n), a.components[n].kind) for a, n in parts]
    asked = {"parts": reported, "out": str(out), "threads": torch.get_num_threads()}
    done = subprocess.run(
        [sys.executable, "-c", ALONE, json.dumps(asked)],
        cwd=out,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return [load_file(out / f"{number}.out")["found"] for number in range(len(reported))]


def called_here(artifact: Artifact, name: str, given: Call) -> torch.Tensor:
    """What a component gives where pare opens it."""
    module, space = open_component(artifact, name), dict[str, Any]()
    exec(CALLED, space)
    found: torch.Tensor = first_tensor(space["call"](module, artifact.components[name].kind, dict(given)))
    return found


def first_call(artifact: Artifact, name: str) -> Call:
    """The tensors of a real call to a component, made while its model runs."""
    task = open_task(artifact)
    for _, given in task.calls_of([name], task.examples[:1], 0, **dict(task.brief)):
        return {key: value.clone().contiguous() for key, value in flatten(given).items()}
    raise AssertionError(f"{name} is never called")

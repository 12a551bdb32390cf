"""What quantize.gptq leaves, opened by auto-gptq 0.7.1 itself, which is archived and does not import beside transformers 5: in an environment of its
own that pip fills (or that of PARE_AUTO_GPTQ_ENV). It gives what pare measures, up to scales that it holds in float16."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from compress.artifact import LANGUAGE_MODEL
from tests.opened_alone import WRITTEN, Job, called_here, open_alone, written_here
from tests.quantizing import DATA, TOKENS, distance, tiny
from tests.stages import apply

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
pytest.importorskip("gptqmodel", reason="needs pare[gptq]")
# The last ones that auto-gptq 0.7.1 imports; torch as here, for another brings gigabytes of CUDA packages.
PACKAGES = (
    "torch==2.13.0",
    "transformers==4.46.3",
    "peft==0.10.0",
    "datasets==3.1.0",
    "huggingface-hub==0.26.5",
    "sentencepiece",
)
LIBRARIES = ("auto-gptq==0.7.1", "gekko", "rouge")  # with what it requires, pip would build it for CUDA
HALF, BFLOAT = (
    2e-3,
    0.03,
)  # of the logits' size: auto-gptq holds scales in float16, and the 4-bit kernel here computes in bfloat16


@pytest.fixture(scope="module")
def old_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if given := os.environ.get("PARE_AUTO_GPTQ_ENV"):
        return Path(given) / "bin" / "python"
    folder = tmp_path_factory.mktemp("auto-gptq") / "env"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    for packages in (PACKAGES, ("--no-deps", *LIBRARIES)):
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    return python


@pytest.mark.parametrize(
    "params",
    [
        {"bits": 4},
        {"bits": 4, "group_size": -1},
        {"bits": 8},
        {"bits": 4, "symmetric": False},
        {"bits": 3, "act_order": True},
        {"bits": 2},
    ],
    ids=lambda params: "-".join(f"{value}" for value in params.values()),
)
def test_auto_gptq_gives_what_pare_measures(params: dict[str, Any], old_python: Path, tmp_path: Path) -> None:
    source = tiny("llama", tmp_path / "model")
    made, notes = apply(
        "quantize.gptq", source, tmp_path / "out", data=DATA, **{"group_size": 32, "samples": 8, **params}
    )
    call = {"input_ids": TOKENS}
    job = Job(made, LANGUAGE_MODEL, call, "auto_gptq", WRITTEN)
    (found,) = open_alone([job], tmp_path / "alone", old_python)
    ours, original = (called_here(artifact, LANGUAGE_MODEL, call) for artifact in (made, source))
    assert int(found["packed"]) == 14  # it knows no layer that is left out, so what has an `ignore` is not for it
    kernel = any(note.facts.get("arithmetic") == "on a 4-bit kernel" for note in notes)
    assert distance(ours, found["found"]) < (BFLOAT if kernel else HALF)
    assert distance(ours, original) > 2 * (BFLOAT if kernel else HALF)  # else it might as well have opened the original
    assert found["written"].tolist() == written_here(made, TOKENS[0].tolist())
    assert torch.unique(found["written"]).numel() > 1

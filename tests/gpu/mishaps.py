"""Part h: what happens to runs on a GPU that has no memory left, or that another run measures on."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.gpu.recipes import ROOT, model
from tests.gpu.sections import Report, Section

LEFT = 2.5e9  # bytes of a full GPU that stay free: for a process's context and libraries, and too few for the training below
FAILED = 3  # a stage failed
FULL = "has no memory left"
WAITS = "waits its turn"

# Its second step wants some GB more than its first.
FULL_RECIPE = """\
schema: 1
name: full
model: {model}
device: {device}
data: {{train: texts.txt, calibration: texts.txt}}
stages:
  - prune.depth: {{ratio: 0.5, samples: 4}}
  - distill.logits: {{teacher: source, steps: 2, tokens: {tokens}, batch: {batch}, warmup: 1}}
"""
TURNS_RECIPE = """\
schema: 1
name: turns
model: {model}
device: {device}
data: {{calibration: texts.txt, evaluate: others.txt}}
stages:
  - prune.depth: {{ratio: 0.5, samples: 4}}
evaluate: {{metrics: [throughput], samples: 8, stage_samples: 0, timing_blocks: {blocks}, prompt_tokens: 8, new_tokens: {new}}}
"""


def full(tiny: bool, report: Report) -> None:
    """A training on a GPU without memory ends with one error that says how much was asked for and how much there was; the next run goes
    on behind the stage that was finished.

    Raises:
        AssertionError: another end.
    """
    with tempfile.TemporaryDirectory() as name, model("docs-llama", tiny) as artifact:
        folder = Path(name)
        sizes = {"tokens": 16, "batch": 2} if tiny else {"tokens": 256, "batch": 512}
        _prepared(folder, FULL_RECIPE, artifact.path, tiny, **sizes)
        with _filled(tiny):
            code, message, _ = _ended(_begun(folder, "first"))
        report("the GPU full", {"exit code": code, "said": _error(message, folder)})
        assert tiny or (code == FAILED and FULL in message), message[-500:]
        code, message, events = _ended(_begun(folder, "second"))
        kept = [event["what"] for event in events if event["kind"] == "cached"]
        report("free again", {"exit code": code, "from the cache": ", ".join(kept), "said": _error(message, folder)})
        assert code == 0, message[-500:]
        assert kept, "the finished stage was run again"


def turns(tiny: bool, report: Report) -> None:
    """Two runs at once: one of them waits with its timing until the other has done with its own.

    Raises:
        AssertionError: neither waited.
    """
    with tempfile.TemporaryDirectory() as name, model("docs-llama", tiny) as artifact:
        folder = Path(name)
        sizes = {"blocks": 100, "new": 4} if tiny else {"blocks": 20, "new": 48}
        _prepared(folder, TURNS_RECIPE, artifact.path, tiny, **sizes)
        both = [_begun(folder, one, f"cache of {one}") for one in ("one", "other")]
        waited = 0
        for process, out in both:
            code, message, events = _ended((process, out))
            said = [event["message"] for event in events if WAITS in event.get("message", "")]
            waited += bool(said)
            assert code == 0, message[-500:]
            report(out.name, {"exit code": code, "said": said[0] if said else _error(message, folder)})
        assert waited, "no run waited for the other"


def _prepared(folder: Path, recipe: str, path: Path, tiny: bool, **sizes: int) -> None:
    for name, word in (("texts", "value"), ("others", "column")):
        texts = (f"The {i}th {word} of the array, its axis and its shape, " * 40 for i in range(600))
        (folder / f"{name}.txt").write_text("\n\n".join(texts))
    (folder / "recipe.yaml").write_text(recipe.format(model=path, device="auto" if tiny else "cuda", **sizes))


@contextmanager
def _filled(tiny: bool) -> Iterator[None]:
    """Within: this process holds nearly all of the GPU's memory."""
    if tiny:
        yield
        return
    import torch

    free, _ = torch.cuda.mem_get_info()
    held = torch.empty(int(free - LEFT), dtype=torch.uint8, device="cuda")
    try:
        yield
    finally:
        del held
        torch.cuda.empty_cache()


Begun = tuple["subprocess.Popen[str]", Path]


def _begun(folder: Path, out: str, cache: str = "cache") -> Begun:
    command = [sys.executable, "-m", "compress.cli", "run", str(folder / "recipe.yaml")]
    command += ["--cache", str(folder / cache), "--out", str(folder / out)]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ), folder / out


def _ended(begun: Begun) -> tuple[int, str, list[dict[str, str]]]:
    process, out = begun
    message, _ = process.communicate()
    lines = (out / "events.jsonl").read_text().splitlines() if (out / "events.jsonl").exists() else []
    return process.returncode, message, [json.loads(line) for line in lines]


def _error(message: str, folder: Path) -> str:
    """The part of what a run said that is its error; "" where it has none."""
    lines = (line.strip().removeprefix(f"{folder}/") for line in message.splitlines())
    return next((line for line in lines if FULL in line or "error" in line.lower()), "")


PARTS = {"h": (Section("full", 110, full), Section("turns", 110, turns))}

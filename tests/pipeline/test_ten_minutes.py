"""The page for newcomers, played: its commands and its Python, and nothing else, in a folder with a small model and data."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from compress.zoo import zoo_model
from tests.chat_templates import chatting, exchanges
from tests.documents import ROOT, images
from tests.families import MODELS

PAGE = (ROOT / "docs" / "ten-minutes.md").read_text(encoding="utf-8")
STEP = re.compile(r"^```(console|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def steps(heading: str) -> list[list[str]]:
    """What one section of the page has a reader do, in order, as commands."""
    (section,) = (part for part in PAGE.split("\n## ") if part.startswith(heading + "\n"))
    found: list[list[str]] = []
    for language, text in STEP.findall(section):
        if language == "python":
            found.append([sys.executable, "-c", text])
            continue
        for line in text.splitlines():
            dollar, pare, *words = shlex.split(line)
            assert (dollar, pare) == ("$", "pare")
            found.append([sys.executable, "-m", "compress.cli", *words])
    return found


BUSY = "other processes took"


def play(heading: str, home: Path) -> list[str]:
    """Do all of it in one folder; what each step printed. On a machine that others use, a gate of speed may stay undecided."""
    surroundings = {**os.environ, "PARE_CACHE": str(home / "cache"), "PYTHONPATH": str(ROOT)}
    printed = []
    for step in steps(heading):
        done = subprocess.run(step, cwd=home, env=surroundings, capture_output=True, text=True, check=False)
        undecided = done.returncode == 4 and BUSY in done.stdout
        assert done.returncode == 0 or undecided, f"{shlex.join(step)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        printed.append(done.stdout)
    return printed


def granite(home: Path) -> None:
    chatting(Path(shutil.copytree(MODELS["granite"](home / "made"), home / "granite")))
    exchanges(home / "chats.jsonl", 64)
    exchanges(home / "held-out-chats.jsonl", 64, first=100)


def sana(home: Path) -> None:
    shutil.copytree(MODELS["sana"](home / "made"), home / "sana")
    shutil.copytree(zoo_model("digits-clip"), home / "clip")
    images(home / "train-images", 0)
    images(home / "held-out", 1)


def has_written(home: Path, printed: list[str]) -> None:
    proposed, planned, ran, said = printed
    assert "next: pare plan granite.yaml" in proposed
    assert "quantize.nncf" in planned
    assert "PASS: all gates passed" in ran
    assert "Is the list sorted?" in said
    assert len(said.strip()) > len("Is the list sorted?")
    assert (home / "small-granite" / "tokenizer_config.json").is_file()


def has_painted(home: Path, printed: list[str]) -> None:
    proposed, ran, reported, _again, compared, _ = printed
    assert "accelerate.steps" in proposed
    assert "PASS: all gates passed" in ran or BUSY in ran
    assert "sana" in reported
    assert "CLIP score" in compared
    assert (home / "fast-sana" / "model_index.json").is_file()


WALKS = [
    pytest.param("A language model that chats", granite, has_written, id="granite"),
    pytest.param("An image pipeline", sana, has_painted, id="sana", marks=[pytest.mark.slow, pytest.mark.alone]),
]


@pytest.mark.parametrize(("heading", "furnish", "judge"), WALKS)
def test_the_page_can_be_followed_to_its_end(
    heading: str, furnish: Callable[[Path], None], judge: Callable[[Path, list[str]], None], tmp_path: Path
) -> None:
    furnish(tmp_path)
    printed = play(heading, tmp_path)
    assert len(printed) == len(steps(heading)) > 3
    judge(tmp_path, printed)


def test_nothing_on_the_page_is_left_out() -> None:
    commands = [line for _, text in STEP.findall(PAGE) for line in text.splitlines() if line.startswith("$ pare")]
    played = [step for walk in WALKS for step in steps(str(walk.values[0])) if "-m" in step]
    assert len(played) == len(commands) > 6

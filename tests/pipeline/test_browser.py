"""The report in a real browser, from a file, with the network off. Needs Debian's chromium."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from evaluation import report
from evaluation.comparison import Worst
from tests.unit.comparisons import image, staged, text

pytestmark = pytest.mark.slow
ATTACK = "<script>document.title = 'taken over'</script><img src=x onerror=\"document.title = 'taken over'\">"
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--enable-logging=stderr",
)


def opened(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [
        "chromium",
        *OPTIONS,
        f"--user-data-dir={folder / 'browser'}",
        *options,
        f"file://{folder / 'report.html'}",
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


@pytest.mark.parametrize("width", [400, 1000])
def test_a_browser_has_nothing_to_complain_of_at_any_width(width: int, tmp_path: Path) -> None:
    for made in (image(), text(), staged()):
        report.write(made, tmp_path)
        done = opened(tmp_path, f"--window-size={width},3000", f"--screenshot={tmp_path / 'shot.png'}")
        assert (tmp_path / "shot.png").stat().st_size > 10_000
        assert not re.search("CONSOLE|Refused to|violates", done.stderr)


def test_a_prompt_that_is_markup_is_shown_and_not_run(tmp_path: Path) -> None:
    images = tuple(replace(p, caption=ATTACK, why=ATTACK) for p in image().images)
    worst = (Worst("fid", ATTACK, ATTACK, 1.0, 2.0),)
    report.write(replace(image(), name=ATTACK, images=images, worst=worst, warnings=(ATTACK,)), tmp_path)
    page = opened(tmp_path, "--dump-dom").stdout
    assert "<title>&lt;script&gt;" in page
    assert "<title>taken over" not in page
    assert "<script" not in page

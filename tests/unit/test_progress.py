"""What a run says while it works: plain lines when piped; on a terminal a bar for what takes longer than two seconds."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import rich.console

from compress.commands.progress import Progress
from compress.events import Event, named, track

STAGE = [
    Event("started", "quantize.nncf", facts={"key": "k"}),
    Event("note", "quantize.nncf", "unet is quantized"),
    Event("note", "quantize.nncf", facts={"calls": 3}),
    Event("warning", "quantize.nncf", "entry is corrupt"),
    Event("warning", "", "no name"),
    Event("finished", "quantize.nncf", facts={"seconds": 12.345}),
    Event("cached", "build.openvino"),
]
LINES = [
    "quantize.nncf …",
    "quantize.nncf: unet is quantized",
    "warning: quantize.nncf: entry is corrupt",
    "warning: no name",
    "quantize.nncf: done in 12.3 s",
    "build.openvino: cached",
]


def test_piped_a_long_stage_says_that_it_is_at_work(capsys: pytest.CaptureFixture[str]) -> None:
    message = ""
    with Progress(quiet=True, beat=0.01) as listen:
        listen(Event("started", "build.openvino"))
        while "at work" not in message:  # or the test hangs, and is stopped
            message += capsys.readouterr().err
        listen(Event("finished", "build.openvino"))
        capsys.readouterr()
    assert message.startswith("build.openvino …\nbuild.openvino: at work for 0 s\n")
    with Progress(quiet=True, beat=0.01) as listen:
        time.sleep(0.1)
    assert capsys.readouterr().err == ""


def test_piped_a_long_training_says_how_far_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    message = ""
    with Progress(quiet=True, beat=0.01) as listen:
        listen(Event("started", "distill.steps"))
        listen(
            Event("progress", "distill.steps training", done=100, total=400)
        )  # as one that goes on from a checkpoint
        listen(Event("progress", "distill.steps training", done=102, total=400))
        listen(Event("progress", "another: training", done=1, total=2))
        while " left" not in message:  # or the test hangs, and is stopped
            message += capsys.readouterr().err
    assert re.search(r"distill\.steps: at work for \d s, training 102 of 400, about \d+ (s|min) left\n", message)


def test_what_has_not_begun_to_count_says_no_time(capsys: pytest.CaptureFixture[str]) -> None:
    listen = Progress(quiet=True)
    listen(Event("started", "distill.steps"))
    listen(Event("progress", "distill.steps training", done=0, total=400))
    assert listen._far("distill.steps") == ", training 0 of 400"
    listen(Event("progress", "distill.steps reading", done=7, total=0))
    assert listen._far("distill.steps") == ", training 0 of 400"
    listen(Event("finished", "distill.steps"))
    assert listen._far("distill.steps") == ""
    capsys.readouterr()


class Terminal:
    """A terminal to draw on, and a clock that moves when reported."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.text, self.now = io.StringIO(), 100.0
        console = rich.console.Console(file=self.text, force_terminal=True, width=120, color_system=None)
        monkeypatch.setattr("rich.console.Console", lambda **options: console)
        monkeypatch.setattr("compress.commands.progress.time", SimpleNamespace(monotonic=lambda: self.now))
        self.console = console

    def shown(self) -> str:
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.text.getvalue())


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    return Terminal(monkeypatch)


def test_piped_it_says_one_plain_line_for_each_thing_that_happened(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(quiet=True) as listen:
        for event in STAGE:
            listen(event)
    captured = capsys.readouterr()
    assert captured.err.splitlines() == LINES
    assert captured.out == ""


def test_piped_it_draws_no_progress_and_does_not_even_load_what_draws() -> None:
    code = (
        "import sys\nfrom compress.events import Event\nfrom compress.commands.progress import Progress\n"
        "with Progress(quiet=True) as listen:\n    [listen(Event('progress', 'x', done=i, total=9)) for i in range(9)]\n"
        "print('rich' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_a_terminal_shows_the_same_lines(terminal: Terminal) -> None:
    with Progress(quiet=False) as listen:
        for event in STAGE:
            listen(event)
    assert [line for line in LINES if line not in terminal.shown()] == []


def test_what_is_done_within_two_seconds_gets_no_bar(terminal: Terminal) -> None:
    with Progress(quiet=False) as listen:
        for done in range(20):
            listen(Event("progress", "swift", done=done, total=20))
            terminal.now += 0.1
    assert "swift" not in terminal.shown()


def test_what_takes_longer_gets_a_bar_that_counts(terminal: Terminal) -> None:
    with Progress(quiet=False) as listen:
        for done in range(5):
            listen(Event("progress", "calibration texts", done=done, total=5))
            terminal.now += 1
    assert "calibration texts" in terminal.shown()
    assert "4/5" in terminal.shown()


def test_each_activity_has_its_own_two_seconds(terminal: Terminal) -> None:
    with Progress(quiet=False) as listen:
        listen(Event("progress", "slow", done=0, total=2))
        terminal.now += 3
        listen(Event("progress", "slow", done=1, total=2))
        listen(Event("progress", "new", done=0, total=2))
        terminal.now += 1
        listen(Event("progress", "new", done=1, total=2))
    assert "slow" in terminal.shown()
    assert "new" not in terminal.shown()


def test_an_activity_whose_length_nobody_knows_is_drawn_too(terminal: Terminal) -> None:
    with Progress(quiet=False) as listen:
        for done in (0, 7):
            listen(Event("progress", "endless", done=done))
            terminal.now += 3
    assert "7/?" in terminal.shown()


@pytest.mark.parametrize("words", ["[red]not markup[/red]", "a [bold] claim", "[/]", ":cat:"])
def test_words_in_brackets_are_words(terminal: Terminal, words: str) -> None:
    with Progress(quiet=False) as listen:
        listen(Event("note", "x", words))
        listen(Event("warning", "x", words))
    assert terminal.shown().count(words) == 2


def test_a_bar_may_be_named_in_brackets(terminal: Terminal) -> None:
    with Progress(quiet=False) as listen:
        for done in (0, 1):
            listen(Event("progress", "layers [/q]", done=done, total=2))
            terminal.now += 3
    assert "layers [/q]" in terminal.shown()


def test_an_error_leaves_the_terminal_as_it_was(terminal: Terminal) -> None:
    def fail() -> None:
        with Progress(quiet=False) as listen:
            listen(Event("started", "x"))
            raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        fail()
    hidden, shown = (terminal.text.getvalue().rfind(code) for code in ("\x1b[?25l", "\x1b[?25h"))
    assert 0 <= hidden < shown  # the cursor is back
    with Progress(quiet=False):  # and another may draw on it
        pass


# Events


def collect() -> tuple[list[Event], Callable[[Event], None]]:
    recorded: list[Event] = []
    return recorded, recorded.append


def test_what_happens_in_one_run_of_many_is_reported_with_its_name() -> None:
    recorded: list[Event] = []
    tell = named(recorded.append, "digits-bits-8")
    tell(Event("finished", "build.openvino", facts={"seconds": 1}))
    tell(Event("warning", "", "the disk is nearly full"))
    assert [event.what for event in recorded] == ["digits-bits-8: build.openvino", "digits-bits-8"]
    assert recorded[0].facts == {"seconds": 1}


def test_tracking_yields_every_item_and_counts_each_once_it_is_dealt_with() -> None:
    recorded, emit = collect()
    seen = []
    for item in track("abc", emit, "letters", 3):
        seen.append((item, recorded[-1].done))  # noqa: PERF401 (the count at that moment is what is tested)
    assert seen == [("a", 0), ("b", 1), ("c", 2)]
    assert [(e.kind, e.what, e.done, e.total) for e in recorded][-1] == ("progress", "letters", 3, 3)


def test_tracking_reads_no_further_than_its_reader() -> None:
    recorded, emit = collect()
    numbers = iter(range(10))
    for item in track(numbers, emit, "numbers", 10):
        if item == 2:
            break
    assert next(numbers) == 3
    assert recorded[-1].done == 2


def test_tracking_nothing_is_one_event() -> None:
    recorded, emit = collect()
    assert list(track([], emit, "nothing", 0)) == []
    assert [(e.done, e.total) for e in recorded] == [(0, 0)]


def test_an_error_among_the_items_passes_through() -> None:
    def broken() -> object:
        yield 1
        raise ValueError("item two")

    recorded, emit = collect()
    with pytest.raises(ValueError, match="item two"):
        list(track(broken(), emit, "items", 2))  # type: ignore[arg-type]
    assert recorded[-1].done == 1


def test_an_evaluation_that_is_no_stage_says_how_far_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(quiet=True, beat=0.01) as progress:
        progress(Event("progress", "candidate images", done=0, total=64))
        progress(Event("progress", "candidate images", done=16, total=64))
        time.sleep(0.05)
        progress(Event("progress", "candidate images", done=64, total=64))
        time.sleep(0.03)
    lines = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"candidate images 16 of 64, about \d+ s left", lines[0])
    assert set(lines) == {lines[0]}  # what is done is no news

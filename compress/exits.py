"""How a verb ends: every error becomes a message and an exit code, here and nowhere else."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from types import FrameType

import typer

from compress.errors import PareError, Problem
from compress.machine import deps

JSON = "--json"  # promises one JSON value on standard output, of an error too
STOPPED = 130  # as a shell has it: 128 and the number of the signal


def exit_code(app: typer.Typer, arguments: list[str]) -> int:
    """Run one verb; what went wrong is printed and known from the code alone."""
    deps.hush()
    try:
        return _ended(app, arguments)
    except KeyboardInterrupt:  # again, while the first was being reported
        return _stopped(arguments)


def _ended(app: typer.Typer, arguments: list[str]) -> int:
    try:
        code = app(arguments or ["--help"], prog_name="pare", standalone_mode=False)
        sys.stdout.flush()  # a reader that has gone away is found out here, not after the last line
        return _stopped(arguments) if code == STOPPED else code if isinstance(code, int) else 0
    except PareError as error:
        _print_problems(error)
        _print_json(error.problems, arguments)
        return error.exit_code
    except KeyboardInterrupt:
        return _stopped(arguments)
    except SystemExit as leaving:
        if isinstance(leaving.__context__, BrokenPipeError):  # typer saw it first
            return unread()
        raise
    except Exception as error:
        return _uncaught(error, arguments)


def _stopped(arguments: list[str]) -> int:
    """Ctrl-C, which typer turns into an exit code of 130 where it can. Pressed again, it changes nothing of how this ends: it cuts
    short what is left to be tidied."""
    recorded = (
        signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )  # else nobody asked, or somebody else answers
    if recorded:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    print("\nstopped; resume with: " + shlex.join(["pare", *arguments]), file=sys.stderr, flush=True)
    if recorded:
        signal.signal(signal.SIGINT, _leave)
    return STOPPED


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(STOPPED)


def _uncaught(error: Exception, arguments: list[str]) -> int:
    if isinstance(error, typer.Abort):
        return _stopped(arguments)
    if isinstance(error, BrokenPipeError):
        return unread()
    if hasattr(error, "format_message"):  # a usage error, of whichever click typer carries
        context = getattr(error, "ctx", None)
        verb = context.command_path if context else "pare"
        print(f"pare: {error.format_message()}\n  fix: {verb} --help", file=sys.stderr)
        _print_json([Problem("", str(error.format_message()), f"{verb} --help")], arguments)
        return 2
    import traceback

    traceback.print_exception(error)
    print("pare: this is a fault of pare; please report it with the lines above", file=sys.stderr)
    return 3


def unread() -> int:
    """Nobody reads on, as in `pare list | head`: no failure of ours, and nothing more to say."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _print_json(problems: Sequence[Problem], arguments: list[str]) -> None:
    """What went wrong as the one JSON value that was asked for."""
    if JSON in arguments:
        print(json.dumps({"problems": [asdict(problem) for problem in problems]}, indent=2, ensure_ascii=False))


def _print_problems(error: PareError) -> None:
    following = (*(problem.fix for problem in error.problems[1:]), "")
    for problem, after in zip(error.problems, following, strict=True):
        # One remedy for several in a row stands once, below them.
        print(replace(problem, fix="") if problem.fix == after else problem, file=sys.stderr)
    if len(error.problems) > 1:
        print(f"{len(error.problems)} problems", file=sys.stderr)

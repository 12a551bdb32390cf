"""How a verb ends: every error becomes a message and an exit code, here and nowhere else."""

from __future__ import annotations

import os
import shlex
import sys

import typer

from compress.errors import PareError


def exit_code(app: typer.Typer, arguments: list[str]) -> int:
    """Run one verb; what went wrong is printed and told by the code alone."""
    try:
        code = app(arguments or ["--help"], prog_name="pare", standalone_mode=False)
        sys.stdout.flush()  # a reader that has gone away is found out here, not after the last line
        return _stopped(arguments) if code == 130 else code if isinstance(code, int) else 0
    except PareError as error:
        _print_problems(error)
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
    """Ctrl-C, which typer turns into an exit code of 130 where it can."""
    print("\nstopped; resume with: " + shlex.join(["pare", *arguments]), file=sys.stderr)
    return 130


def _uncaught(error: Exception, arguments: list[str]) -> int:
    if isinstance(error, typer.Abort):
        return _stopped(arguments)
    if isinstance(error, BrokenPipeError):
        return unread()
    if hasattr(error, "format_message"):  # a usage error, of whichever click typer carries
        context = getattr(error, "ctx", None)
        verb = context.command_path if context else "pare"
        print(f"pare: {error.format_message()}\n  fix: {verb} --help", file=sys.stderr)
        return 2
    import traceback

    traceback.print_exception(error)
    print("pare: this is a fault of pare; please report it with the lines above", file=sys.stderr)
    return 3


def unread() -> int:
    """Nobody reads on, as in `pare list | head`: no failure of ours, and nothing more to say."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _print_problems(error: PareError) -> None:
    for problem in error.problems:
        print(problem, file=sys.stderr)
    if len(error.problems) > 1:
        print(f"{len(error.problems)} problems", file=sys.stderr)

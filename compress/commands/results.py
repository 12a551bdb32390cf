"""What a run leaves in its folder, by name, and its result read again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from compress.errors import UserError

if TYPE_CHECKING:
    from evaluation.comparison import Comparison

RESULT, EVENTS = "result.json", "events.jsonl"


def read_result(path: Path) -> tuple[Comparison, Path]:
    """A result, and the folder that its samples lie in."""
    from evaluation.report import result

    file = path / RESULT if path.is_dir() else path
    try:
        return result.from_dict(json.loads(file.read_text())), file.parent / "samples"
    except OSError as error:
        raise UserError(
            f"does not read: {error.strerror}", place=str(file), fix="give the result.json of a run"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"is no result: {error}", place=str(file), fix="give the result.json of a run") from error

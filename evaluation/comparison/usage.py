"""The candidate handed to its reader: where it lies, and lines of Python that load and call it as it was called here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from compress.artifact import Artifact
from compress.catalogue import find_task
from compress.data.items import USER
from compress.tasks import Usage
from evaluation.comparison import Handed

if TYPE_CHECKING:
    from evaluation.comparison.sides import Request

WORDS = 8  # of an item that a model is tried on
IN_CACHE = "in the cache, which lets go of what was not used for long; `pare run --save FOLDER` copies it out"


def hand_over(request: Request, call: Mapping[str, Any]) -> Handed | None:
    """Where the candidate is and how to call it; None where it is a folder of images.

    Args:
        call: the arguments that it was called with.
    """
    artifact = request.candidate
    if not artifact.components:
        return None
    from compress.engines.torch.runtime import named_dtype

    folder = str((request.kept or artifact.path).absolute())
    items = request.data.first(1) if request.data else ()
    chat = bool(items and items[0].messages)
    asked = [one.content for item in items for one in item.messages if one.role == USER] or [
        item.text for item in items
    ]
    text = " ".join(asked[0].split()[:WORDS]) if asked else ""
    how = request.opening
    dtype = named_dtype(artifact)
    usage = Usage(
        folder, is_stock(artifact), how.trust_remote_code, call, text, how.device, chat, dtype, beside(artifact)
    )
    cached = any(root.parent / "entries" in artifact.path.parents for root in request.evidence_dirs[:1])
    return Handed(folder, find_task(artifact.task).usage(usage), IN_CACHE if cached and not request.kept else "")


def beside(artifact: Artifact) -> tuple[tuple[str, str, float], ...]:
    """The adapters beside a model, as lines of Python name them."""
    return tuple((name, one.path, one.scale) for name, one in artifact.adapters.items())


def is_stock(artifact: Artifact) -> bool:
    """Whether diffusers or transformers open it as it is, without pare."""
    how = artifact.settings
    plain = all(part.format == "torch" for part in artifact.components.values())
    return plain and not (how.needs_pare or how.graph or how.hook)

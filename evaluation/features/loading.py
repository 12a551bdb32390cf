"""A vision model out of a local folder, whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from compress.engines.torch.runtime import silent_libraries
from compress.errors import ModelError

FIX = "give a folder saved by transformers"


def load_whole(kind: type[PreTrainedModel], folder: Path, what: str) -> Any:
    """The transformers class `kind` filled from `folder`, in float32.

    Raises:
        ModelError: it does not load, or weights are missing, in whose place transformers would put random ones.
    """
    with refusing(folder, what):
        model, reported = kind.from_pretrained(
            str(folder), dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
        if missing := sorted(reported["missing_keys"]):
            some = ", ".join(missing[:3]) + (" …" if len(missing) > 3 else "")
            raise ValueError(f"{len(missing)} weights are missing: {some}")
    return model.eval().requires_grad_(False)


@contextmanager
def refusing(folder: Path, what: str) -> Iterator[None]:
    """Within it, the many ways in which transformers fails to load are one error, and its warnings are not shown."""
    try:
        with silent_libraries():
            yield
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"is no {what} model that loads: {error}", place=str(folder), fix=FIX) from error

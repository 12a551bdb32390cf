"""Whether there are enough images for a metric that compares sets with each other, known before any is generated: how many there
will be is known from the recipe and its data, and how long an image's features are from the extractor's config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from compress.data.items import Data
from compress.files.user_paths import expanded
from compress.params import Fault, Params
from compress.sources.units import TEXT
from evaluation.metrics import Metric
from evaluation.preflight.image_folders import files_of
from evaluation.values import Sizes


def too_few(
    metric: Metric[Params], values: Mapping[str, Any], data: Data | None, samples: int, each: int = 1
) -> Fault | None:
    """Why a metric will have no number of so many samples of the data; None where it will, or nobody can tell.

    Args:
        values: its parameters, where they read; what is wrong with what they name is reported elsewhere.
        each: images of each.
    """
    if data is None or metric.enough is None:
        return None
    try:
        params = metric.params(**values)
    except ValidationError:
        return None
    return metric.enough(params, _sizes(data, samples, each, str(getattr(params, "reference", ""))))


def _sizes(data: Data, samples: int, each: int, reference: str) -> Sizes:
    generated = samples if data.count < 0 else min(samples, data.count)

    def captions() -> tuple[str, ...]:
        return tuple(row[TEXT] for row in data.rows[:generated]) or tuple(item.text for item in data.first(generated))

    folder = expanded(reference)
    if reference:
        return Sizes(generated, len(files_of(folder)) if folder.is_dir() else None, each, captions)
    once = {item.file or item.id for item in data.first(generated)} if data.rows else range(generated)
    return Sizes(generated, len(once), each, captions)

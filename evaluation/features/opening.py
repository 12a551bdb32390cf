"""Which extractor a reference means: read from what lies there, never from its name. Nothing is looked up anywhere."""

from __future__ import annotations

from pathlib import Path

from compress.artifact import read_json
from compress.errors import ModelError
from compress.sources.models import find_folder
from evaluation.features.clip import open_clip
from evaluation.features.dinov2 import open_dinov2
from evaluation.features.extractor import Extractor
from evaluation.features.inception import open_inception
from evaluation.features.resizing import resize_mode
from evaluation.preflight.paths import of_features


def open_features(reference: str, resize: str = "pil") -> Extractor:
    """Open `zoo://digits-clip`, a local folder of CLIP or DINOv2, or a local file of FID's Inception weights.

    The same one comes again when asked again.

    Raises:
        ModelError: nothing lies there, or no network that gives features here.
        UserError: no way to resize has that name.
    """
    mode = resize_mode(resize)
    if wrong := of_features(reference):
        raise ModelError(wrong.message, fix=wrong.fix)
    path = find_folder(reference, Path()).absolute()
    if path.is_file():
        return open_inception(path, mode)
    if read_json(path / "config.json")["model_type"] == "clip":
        return open_clip(reference, mode)
    return open_dinov2(path, mode)

"""Which extractor a reference means: told from what lies there, never from its name. Nothing is looked up anywhere."""

from __future__ import annotations

from pathlib import Path

from compress.artifact import read_json
from compress.errors import ModelError
from compress.sources import find_folder
from evaluation.features.clip import open_clip
from evaluation.features.dinov2 import KINDS, open_dinov2
from evaluation.features.extractor import Extractor
from evaluation.features.inception import open_inception
from evaluation.features.resizing import resize_mode

WEIGHTS = (".safetensors", ".pth", ".pt")
FIX = "give zoo://digits-clip, a CLIP or DINOv2 folder saved by transformers, or FID's file of Inception weights"


def open_features(reference: str, resize: str = "pil") -> Extractor:
    """Open `zoo://digits-clip`, a local folder of CLIP or DINOv2, or a local file of FID's Inception weights.

    The same one comes again when asked again.

    Raises:
        ModelError: nothing lies there, or no network that gives features here.
        UserError: no way to resize has that name.
    """
    mode = resize_mode(resize)
    path = find_folder(reference, Path()).absolute()
    if path.is_file():
        if path.suffix not in WEIGHTS:
            raise ModelError(f"is no file of weights ({', '.join(WEIGHTS)})", place=str(path), fix=FIX)
        return open_inception(path, mode)
    if not (path / "config.json").is_file():
        raise ModelError("no feature extractor lies there", place=str(path), fix=FIX)
    kind = read_json(path / "config.json").get("model_type")
    if kind == "clip":
        return open_clip(reference, mode)
    if kind in KINDS:
        return open_dinov2(path, mode)
    raise ModelError(f"is a model of type {kind}, which gives no features here", place=str(path), fix=FIX)

"""Features of a DINOv2 model in a local folder: the class token after the last layer norm. Nothing is looked up anywhere.

Never shown a label or a caption, it judges more like people do than Inception does.
Source: Stein et al., "Exposing flaws of generative model evaluation metrics" (2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import Dinov2Model, Dinov2WithRegistersModel

from compress.artifact import read_json
from compress.files.hashing import digest_folder
from evaluation.features.extractor import Extractor, standardise
from evaluation.features.loading import load_whole
from evaluation.features.preprocessing import Preprocessing, read_preprocessing
from evaluation.features.resizing import Resize

KINDS: dict[str, Any] = {"dinov2": Dinov2Model, "dinov2_with_registers": Dinov2WithRegistersModel}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, for a folder that says nothing of its images


@cache
def open_dinov2(folder: Path, resize: Resize = "pil") -> Extractor:
    """Open a folder that transformers saved, with or without register tokens.

    Raises:
        ModelError: it is no DINOv2 model.
    """
    kind = str(read_json(folder / "config.json").get("model_type"))
    model = load_whole(KINDS.get(kind, Dinov2Model), folder, "DINOv2")
    seen = read_preprocessing(folder, Preprocessing(int(model.config.image_size), "crop", MEAN, STD))

    def features(pixels: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = model(standardise(pixels, seen.mean, seen.std)).last_hidden_state[:, 0]
        return found

    def hidden(pixels: torch.Tensor) -> Sequence[torch.Tensor]:
        pixels = standardise(pixels, seen.mean, seen.std)
        states: Sequence[torch.Tensor] = model(pixels, output_hidden_states=True).hidden_states
        return states[1:]  # the first is what the patches were embedded as, before any layer

    return Extractor(folder.name, digest_folder(folder), resize, seen.size, seen.fit, features, hidden)

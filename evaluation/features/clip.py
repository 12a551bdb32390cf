"""Features of a CLIP model in a local folder, the zoo's by default. Nothing is looked up anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import CLIPModel, CLIPTokenizer
from transformers.modeling_outputs import BaseModelOutputWithPooling

from compress.algorithms.tensors import to_array
from compress.files.hashing import digest_folder
from compress.sources.models import find_folder
from evaluation.features.extractor import BATCH, Extractor, standardise
from evaluation.features.loading import load_whole, refusing
from evaluation.features.preprocessing import Preprocessing, read_preprocessing
from evaluation.features.resizing import Resize

# OpenAI's, for a folder that says nothing of its images.
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Clip(Extractor):
    """A CLIP model as a feature extractor of images and of captions. Its features are the projected ones, of unit length."""

    model: Any
    tokenizer: Any

    def captions(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Captions to float32 [n, d]."""
        parts = []
        for start in range(0, len(texts), BATCH):
            words = self.tokenizer(
                list(texts[start : start + BATCH]), padding="max_length", truncation=True, return_tensors="pt"
            )
            with torch.inference_mode():
                parts.append(to_array(_unit(self.model.get_text_features(**words))))
        return np.concatenate(parts)


def open_clip(reference: str, resize: Resize = "pil") -> Clip:
    """Open `zoo://digits-clip` or a local folder that transformers saved; the same one again when asked again.

    Raises:
        ModelError: it is no CLIP model.
    """
    return _open(find_folder(reference, Path()).absolute(), resize)


@cache
def _open(folder: Path, resize: Resize) -> Clip:
    model = load_whole(CLIPModel, folder, "CLIP")
    with refusing(folder, "CLIP"):
        tokenizer = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    edge = int(model.config.vision_config.image_size)
    seen = read_preprocessing(folder, Preprocessing(edge, "crop", MEAN, STD))

    def features(pixels: torch.Tensor) -> torch.Tensor:
        return _unit(model.get_image_features(pixel_values=standardise(pixels, seen.mean, seen.std)))

    def hidden(pixels: torch.Tensor) -> Sequence[torch.Tensor]:
        pixels = standardise(pixels, seen.mean, seen.std)
        states: Sequence[torch.Tensor] = model.vision_model(pixels, output_hidden_states=True).hidden_states
        return states[1:]  # the first is what the patches were embedded as, before any layer

    # Its positions are learned one by one, so it sees images of its own size only, whatever the file says.
    digest = digest_folder(folder)
    return Clip(folder.name, digest, resize, edge, seen.fit, features, hidden, model, tokenizer)


def _unit(output: torch.Tensor | BaseModelOutputWithPooling) -> torch.Tensor:
    vectors: torch.Tensor = getattr(output, "pooler_output", output)
    return torch.nn.functional.normalize(vectors.float(), dim=-1)

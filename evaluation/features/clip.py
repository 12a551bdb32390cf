"""Features of a CLIP model in a local folder, the zoo's by default. Nothing is looked up anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from compress.engines.torch import silent_libraries
from compress.errors import ModelError
from compress.hashing import digest_folder
from compress.sources import find_folder

BATCH = 32  # fixed, so that features do not depend on the caller's batch


@dataclass(frozen=True)
class Clip:
    """A CLIP model as a feature extractor. Its features are the projected ones, of unit length."""

    name: str
    digest: str
    model: Any
    tokenizer: Any
    processor: Any

    def pictures(self, batches: Iterator[NDArray[np.uint8]]) -> NDArray[np.float64]:
        """uint8 [n, height, width, 3] batches to float64 [n, d]."""
        parts = []
        for batch in batches:
            pixels = self.processor(images=list(batch), return_tensors="pt")["pixel_values"]
            with torch.inference_mode():
                parts.append(self._unit(self.model.get_image_features(pixel_values=pixels.float())))
        return np.concatenate(parts)

    def captions(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Captions to float64 [n, d]."""
        parts = []
        for start in range(0, len(texts), BATCH):
            words = self.tokenizer(
                list(texts[start : start + BATCH]), padding="max_length", truncation=True, return_tensors="pt"
            )
            with torch.inference_mode():
                parts.append(self._unit(self.model.get_text_features(**words)))
        return np.concatenate(parts)

    @staticmethod
    def _unit(output: Any) -> NDArray[np.float64]:
        vectors = getattr(output, "pooler_output", output)
        found: NDArray[np.float64] = torch.nn.functional.normalize(vectors.float(), dim=-1).double().numpy()
        return found


@cache
def open_clip(reference: str) -> Clip:
    """Open `zoo://digits-clip` or a local folder that transformers saved.

    Raises:
        ModelError: it is no CLIP model.
    """
    folder = find_folder(reference, Path())
    try:
        with silent_libraries():
            model = CLIPModel.from_pretrained(str(folder), dtype=torch.float32, local_files_only=True).eval()
            tokenizer = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
            processor = CLIPImageProcessorPil.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"is no CLIP model that loads: {error}", place=str(folder), fix="give a folder saved by transformers"
        ) from error
    return Clip(folder.name, digest_folder(folder), model, tokenizer, processor)

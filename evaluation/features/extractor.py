"""A feature extractor: images in, numbers out, in batches of its own so that nothing depends on the caller's.

Extractors work on the processor, wherever the models run: features are kept by content, and no key of theirs names a device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
import torch
from numpy.typing import NDArray

from compress.algorithms.tensors import to_array
from compress.errors import ModelError
from evaluation.features.resizing import Fit, Resize, resize

BATCH = 32  # fixed, so that features do not depend on the caller's batch
Batch = NDArray[np.uint8] | Sequence[NDArray[np.uint8]]  # [n, h, w, 3], or images of different sizes


@dataclass(frozen=True)
class Extractor:
    """A network, and how it wants its images.

    digest: of the weights, and of what else lies in their folder. size: edge of the square it sees, pixels.
    features: float32 [n, 3, size, size] in 0..255 to [n, d]. hidden: the same to each layer's [n, positions, channels].
    """

    name: str
    digest: str
    resize: Resize
    size: int
    fit: Fit
    features: Callable[[torch.Tensor], torch.Tensor]
    hidden: Callable[[torch.Tensor], Sequence[torch.Tensor]]

    def images(self, batches: Iterable[Batch]) -> NDArray[np.float32]:
        """Features of all images in their order, float32 [n, d]. At most `BATCH` images are held at a time.

        Raises:
            ModelError: they are not finite.
        """
        parts = []
        for pixels in self._pixels(batches):
            with torch.inference_mode():
                parts.append(to_array(self.features(pixels).float()))
        found: NDArray[np.float32] = np.concatenate(parts)
        if not np.isfinite(found).all():
            raise ModelError("gives features that are not finite", place=self.name, fix="its weights are broken")
        return found

    def layers(self, batch: Batch) -> list[NDArray[np.float32]]:
        """What each layer of the vision tower hands on, from the first to the last: float32 [n, positions, channels].

        Raises:
            UserError: the network has no such layers.
        """
        parts = []
        for pixels in self._pixels([batch]):
            with torch.inference_mode():
                parts.append([to_array(layer.float()) for layer in self.hidden(pixels)])
        return [np.concatenate(layer) for layer in zip(*parts, strict=True)]

    def _pixels(self, batches: Iterable[Batch]) -> Iterator[torch.Tensor]:
        """All images, resized, `BATCH` at a time."""
        images = chain.from_iterable(batches)
        while some := list(islice(images, BATCH)):
            alike = len({image.shape for image in some}) == 1
            groups = [np.stack(some)] if alike else [image[None] for image in some]
            yield torch.cat([resize(group, self.size, self.resize, self.fit) for group in groups]).contiguous()


def standardise(pixels: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """[n, 3, h, w] in 0..255 to (pixels / 255 − mean) / std, in the order of operations of transformers' processors."""
    shift, scale = (
        torch.tensor(values, dtype=torch.float32, device=pixels.device).view(1, 3, 1, 1) for values in (mean, std)
    )
    return (pixels / 255 - shift) / scale

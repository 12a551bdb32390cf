"""The same inputs through torch-fidelity and clean-fid, run as a script by another environment: it needs neither pare nor its
tests. `tests/reference/test_other_libraries.py` makes that environment, and its own results from the same inputs.

    python tests/programs/other_libraries.py WEIGHTS.pth OUT.npz
"""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from typing import Any
from unittest import mock

import numpy as np
import torch

SEED = 20151205
RESIZED = {"down": (331, 420), "up": (64, 48), "same": (299, 299), "mixed": (600, 100)}  # heights and widths
# Rows generated, rows real, features; in the last there are fewer rows than features.
GAUSSIANS = {"small": (200, 150, 16), "large": (600, 500, 128), "singular": (40, 40, 64)}


def images(height: int, width: int, count: int) -> np.ndarray:
    """Waves and noise, uint8 [count, height, width, 3]: smooth parts and sharp ones."""
    rng = np.random.default_rng([SEED, height, width])
    y, x = np.mgrid[:height, :width][..., None, None]
    angle, speed, phase = rng.uniform(0, 6.3, (3, count, 3))
    waves = np.sin((np.cos(angle) * x + np.sin(angle) * y) * speed / 40 + phase).transpose(2, 0, 1, 3)
    noisy = 127.5 + 90 * waves + rng.normal(0, 25, (count, height, width, 3))
    return noisy.clip(0, 255).round().astype(np.uint8)


def inception_images() -> np.ndarray:
    return images(299, 299, 4)


def weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Random weights that keep activations as large as they are through all layers, float32, in the order of their names."""
    rng = np.random.default_rng(SEED)
    found = {}
    for name in sorted(shapes):
        shape = shapes[name]
        if name.endswith(("bn.weight", "running_var")):
            values = rng.uniform(0.8, 1.2, shape)
        else:
            fan_in = np.prod(shape[1:]) if len(shape) > 1 else 200
            values = rng.normal(0, np.sqrt(2 / fan_in), shape)
        found[name] = torch.from_numpy(values.astype(np.float32))
    return found


def gaussians(case: str) -> tuple[np.ndarray, np.ndarray]:
    """Two sets of features, float32 [n, d] and [m, d], correlated and apart."""
    n, m, d = GAUSSIANS[case]
    rng = np.random.default_rng([SEED, n, m, d])
    mixing = rng.normal(0, 1 / np.sqrt(d), (d, d))
    one, other = rng.normal(size=(n, d)) @ mixing, 0.2 + rng.normal(size=(m, d)) @ (mixing + 0.1 * np.eye(d))
    return one.astype(np.float32), other.astype(np.float32)


def main(stored: str, out: str) -> None:
    with mock.patch.dict(sys.modules, dict(_without_torchvision())):
        from cleanfid.fid import frechet_distance
        from cleanfid.resize import build_resizer
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x
        from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    found: dict[str, Any] = {}
    network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=stored)
    with torch.inference_mode():
        found["inception"] = network(_planes(inception_images()))[0].numpy()
    clean, legacy = build_resizer("clean"), build_resizer("legacy_pytorch")
    for case, (height, width) in RESIZED.items():
        shown = images(height, width, 1)
        found[f"tf1.{case}"] = interpolate_bilinear_2d_like_tensorflow1x(
            _planes(shown).float(), size=(299, 299), align_corners=False
        ).numpy()
        found[f"pil.{case}"] = np.moveaxis(clean(shown[0]), 2, 0)[None]
        found[f"mlperf.{case}"] = np.moveaxis(legacy(shown[0]), 2, 0)[None]
    for case in GAUSSIANS:
        one, other = (fid_features_to_statistics(torch.from_numpy(f)) for f in gaussians(case))
        fidelity = fid_statistics_to_metric(one, other, False)["frechet_inception_distance"]
        clean_fid = frechet_distance(one["mu"], one["sigma"], other["mu"], other["sigma"])
        found[f"frechet.{case}"] = np.array([fidelity, clean_fid], dtype=np.float64)
    used = {name: version(name) for name in ("torch-fidelity", "clean-fid", "torch", "numpy", "scipy", "pillow")}
    np.savez(out, versions=np.array(json.dumps(used)), **found)


def _planes(batch: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(batch.transpose(0, 3, 1, 2)))


def _without_torchvision() -> Iterable[tuple[str, Any]]:
    """Both libraries import torchvision for what is not used here, and its builds seldom fit the torch available here."""

    class Anything(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return type(name, (torch.nn.Module,), {})

    def names() -> Iterator[str]:
        yield "torchvision"
        for part in ("transforms", "datasets", "models", "models.inception", "utils", "transforms.functional"):
            yield f"torchvision.{part}"

    made = {name: Anything(name) for name in names()}
    for name, module in made.items():
        parent, _, child = name.rpartition(".")
        module.__path__ = []
        if parent:
            setattr(made[parent], child, module)
    return made.items()


if __name__ == "__main__":
    main(*sys.argv[1:])

"""torch-fidelity and clean-fid on the same inputs: their numbers lie in `golden/reference_fid.json`, and ours must be these.

The slow test runs both libraries again, in an environment of its own that pip fills (or in that of PARE_REFERENCE_ENV), compares
whole arrays with ours, and the golden numbers against theirs; PARE_GOLDEN has it write them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation.distances.frechet import Moments, distance
from evaluation.features.inception import CLASSES, Inception
from evaluation.features.opening import open_features
from evaluation.features.resizing import resize, resize_mode
from tests.programs import other_libraries as inputs

GOLDEN = Path(__file__).parents[1] / "golden" / "reference_fid.json"
MODES = ("pil", "mlperf", "tf1")
RESIZED = [f"{mode}.{case}" for mode in MODES for case in inputs.RESIZED]
# Both libraries import torchvision without using it here; without their dependencies it is not fetched.
PACKAGES = ("torch==2.13.0", "numpy", "scipy", "pillow", "tqdm", "requests")
LIBRARIES = ("torch-fidelity==0.4.0", "clean-fid==0.1.35")
PLACES = 24  # of an array's numbers that the golden file holds


def sketch(values: np.ndarray) -> list[float]:
    """An array's mean, spread and length, and the numbers at some of its places; a small array's numbers."""
    flat = np.asarray(values, dtype=np.float64).ravel()
    if flat.size > PLACES:
        chosen = flat[np.linspace(0, flat.size - 1, PLACES).round().astype(int)]
        flat = np.array([flat.mean(), flat.std(), np.linalg.norm(flat), *chosen])
    return [float(f"{v:.8g}") for v in flat]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with torch.device("meta"):
        stored = Inception().state_dict()
    shapes = {name: tuple(t.shape) for name, t in stored.items() if not name.endswith("num_batches_tracked")}
    file = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(inputs.weights(shapes | {"fc.weight": (CLASSES, 2048), "fc.bias": (CLASSES,)}), file)
    return file


@pytest.fixture(scope="module")
def features(weights: Path) -> np.ndarray:
    return open_features(str(weights)).images([inputs.inception_images()])


def resized(name: str) -> np.ndarray:
    mode, case = name.split(".")
    return resize(inputs.images(*inputs.RESIZED[case], 1), 299, resize_mode(mode)).numpy()


def ours(case: str) -> float:
    return distance(*(Moments.of(found) for found in inputs.gaussians(case))).value


@cache
def golden() -> dict[str, list[float]]:
    found: dict[str, list[float]] = json.loads(GOLDEN.read_text())["numbers"]
    return found


def test_inception_gives_torch_fidelitys_features(features: np.ndarray) -> None:
    assert sketch(features) == pytest.approx(golden()["inception"], rel=1e-4, abs=1e-4 * float(features.std()))


def test_the_golden_features_tell_images_and_places_apart(features: np.ndarray) -> None:
    """Else the test above could not fail: other images, or other places, are far outside its tolerance."""
    assert np.abs(features[0] - features[1]).max() > 0.05 * features.std()
    assert np.abs(np.array(sketch(features[:, ::-1])) - golden()["inception"]).max() > features.std()


@pytest.mark.parametrize("name", RESIZED)
def test_resizing_is_the_other_libraries(name: str) -> None:
    found = resized(name)
    assert sketch(found) == pytest.approx(golden()[name], rel=1e-6, abs=2e-4)


@pytest.mark.parametrize("case", inputs.GAUSSIANS)
def test_the_frechet_distance_is_both_libraries(case: str) -> None:
    assert [ours(case)] * 2 == pytest.approx(golden()[f"frechet.{case}"], rel=1e-5)


@pytest.fixture(scope="module")
def reference_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if given := os.environ.get("PARE_REFERENCE_ENV"):
        return Path(given) / "bin" / "python"
    folder = tmp_path_factory.mktemp("reference") / "env"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    for packages in (PACKAGES, ("--no-deps", *LIBRARIES)):
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    return python


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_both_libraries_still_say_so(
    reference_python: Path, weights: Path, features: np.ndarray, tmp_path: Path
) -> None:
    subprocess.run([reference_python, inputs.__file__, weights, tmp_path / "theirs.npz"], check=True)
    with np.load(tmp_path / "theirs.npz", allow_pickle=False) as stored:
        theirs = dict(stored)
    versions = json.loads(str(theirs.pop("versions")))
    if os.environ.get("PARE_GOLDEN"):
        numbers = {name: sketch(values) for name, values in sorted(theirs.items())}
        rows = ",\n".join(f'"{name}": {json.dumps(row)}' for name, row in numbers.items())
        GOLDEN.write_text(f'{{"versions": {json.dumps(versions)},\n"numbers": {{\n{rows}\n}}}}\n')
        golden.cache_clear()
    assert golden().keys() == theirs.keys()

    assert np.abs(features - theirs["inception"]).max() <= 1e-4 * np.abs(theirs["inception"]).max()
    for name in RESIZED:
        assert np.abs(resized(name) - theirs[name]).max() < 2e-4, name
    for case in inputs.GAUSSIANS:
        assert [ours(case)] * 2 == pytest.approx(theirs[f"frechet.{case}"].tolist(), rel=1e-5)
    for name, values in theirs.items():
        assert golden()[name] == pytest.approx(sketch(values), rel=1e-5, abs=1e-5), name

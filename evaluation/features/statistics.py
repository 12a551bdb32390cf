"""Mean and covariance of features, and the `.npz` file of both that FID's tools exchange (mu, sigma)."""

from __future__ import annotations

import os
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compress.errors import DataError

CHUNK = 1024  # rows turned to float64 at a time
Moments = tuple[NDArray[np.float64], NDArray[np.float64]]
FIX = "give a file of mu [d] and sigma [d, d], such as `pare reference` writes"


def statistics_of(features: NDArray[np.float32]) -> Moments:
    """Mean [d] and unbiased covariance [d, d] in float64 of features [n, d], `CHUNK` rows at a time.

    Raises:
        DataError: fewer than two rows have no covariance.
    """
    count, width = features.shape
    if count < 2:
        raise DataError(
            f"{count} images have no covariance", fix="give more than one, and more than there are features"
        )
    mean = features.mean(axis=0, dtype=np.float64)
    total = np.zeros((width, width))
    for start in range(0, count, CHUNK):
        rows = features[start : start + CHUNK] - mean  # float64
        total += rows.T @ rows
    return mean, total / (count - 1)


def export(path: Path, features: NDArray[np.float32]) -> None:
    """Write mu and sigma of features [n, d] as `.npz`, whole or not at all.

    Raises:
        DataError: there are fewer than two, or the file cannot be written.
    """
    mean, covariance = statistics_of(features)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, made = tempfile.mkstemp(dir=path.parent, prefix=".making-", suffix=".npz")
        os.close(handle)
        try:
            np.savez(made, mu=mean, sigma=covariance)
            Path(made).replace(path)
        finally:
            Path(made).unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"cannot be written: {error}", place=str(path), fix="check the folder") from error


def read_statistics(path: Path, width: int) -> Moments:
    """mu [d] and sigma [d, d] of an `.npz` file, as float64. Whatever else lies in it is left alone; no pickle is opened.

    Args:
        width: d, how many features the extractor gives.

    Raises:
        DataError: the file is absent, broken, or holds something else.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            mean, covariance = (np.asarray(stored[name], dtype=np.float64) for name in ("mu", "sigma"))
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"is no file of statistics: {error}", place=str(path), fix=FIX) from error
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        shapes = f"mu {list(mean.shape)} and sigma {list(covariance.shape)}"
        raise DataError(f"{shapes} do not belong together", place=str(path), fix=FIX)
    if not np.isfinite(mean).all() or not np.isfinite(covariance).all():
        raise DataError("mu or sigma is not finite", place=str(path), fix="compute them again")
    if not np.allclose(covariance, covariance.T, atol=1e-6 * max(1.0, float(np.abs(covariance).max()))):
        raise DataError("sigma is not symmetric, so it is no covariance", place=str(path), fix="compute it again")
    if len(mean) != width:
        raise DataError(
            f"is of {len(mean)} features, where the extractor gives {width}",
            place=str(path),
            fix="use the features and the resizing that the file was made with",
        )
    return mean, covariance

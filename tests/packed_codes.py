"""Packed weights read by plain loops, one code at a time: what libraries are compared with."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

WORD = 32


def codes(words: NDArray[np.int32], count: int, bits: int) -> NDArray[np.int64]:
    """The numbers in each row of words, `bits` wide, one behind another from the lowest bit on, across words: int64 [rows, count]."""
    found = np.zeros((len(words), count), np.int64)
    for row, held in enumerate(words.astype(np.int64) & 0xFFFFFFFF):
        stream = sum(int(word) << (WORD * place) for place, word in enumerate(held))
        for column in range(count):
            found[row, column] = (stream >> (bits * column)) & (2**bits - 1)
    return found


def dequantized(tensors: Mapping[str, torch.Tensor], layer: str, *, bits: int, group_size: int) -> NDArray[np.float64]:
    """The weight of a layer that compressed-tensors packed: (code - zero point) * scale, in groups along the inputs; float64."""
    rows, columns = (int(n) for n in tensors[f"{layer}.weight_shape"])
    scales = tensors[f"{layer}.weight_scale"].double().numpy()
    found = codes(tensors[f"{layer}.weight_packed"].numpy(), columns, bits)
    size = columns if group_size < 0 else group_size
    zeros = np.full(scales.shape, 2 ** (bits - 1), np.int64)
    if f"{layer}.weight_zero_point" in tensors:  # packed along the outputs
        packed = tensors[f"{layer}.weight_zero_point"].numpy()
        zeros = codes(np.ascontiguousarray(packed.T), rows, bits).T
    weight = np.zeros((rows, columns))
    for column in range(columns):
        weight[:, column] = (found[:, column] - zeros[:, column // size]) * scales[:, column // size]
    return weight


def nearest(
    weight: NDArray[np.float64], scales: NDArray[np.float64], *, bits: int, group_size: int
) -> NDArray[np.float64]:
    """A weight rounded to the nearest of `2**bits` even steps around zero, each group's as long as its scale says."""
    steps = np.repeat(scales, group_size, 1)
    return np.clip(np.round(weight / steps), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * steps

"""The squared maximum mean discrepancy of two sets of features: unbiased, for any kernel, with every unit left out in turn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from evaluation.distances.image_sets import Features, Floats, Linear

ROWS = 512  # of a block of kernel values; no matrix of all pairs is ever made
Kernel = Callable[[Floats, Floats], Floats]  # [a, d] and [b, d] to [a, b]


def cubic(*sets: Features) -> Kernel:
    """(x·y/d + 1)³, of features of unit length scaled by √d first: they are known from every norm being within 0.001 of 1.

    Source: Bińkowski et al., "Demystifying MMD GANs" (2018), whose features (Inception's) have lengths near √d.
    """
    unit = all(np.abs(np.sqrt(np.einsum("ij,ij->i", rows, rows)) - 1).max(initial=0) < 1e-3 for rows in sets)

    def kernel(x: Floats, y: Floats) -> Floats:
        product = x @ y.T
        product *= 1 if unit else 1 / x.shape[1]
        product += 1
        return product * product * product

    return kernel


def gaussian(sigma: float) -> Kernel:
    """exp(−‖x − y‖² / 2σ²) − 1. The 1 cancels in the discrepancy, and keeps the digits of a wide kernel's small differences."""

    def kernel(x: Floats, y: Floats) -> Floats:
        squares = np.square(x).sum(axis=1)[:, None] + np.square(y).sum(axis=1) - 2 * (x @ y.T)
        found: Floats = np.expm1(np.clip(squares, 0, None) / (-2 * sigma**2))
        return found

    return kernel


def linear(generated: Features, real: Features, kernel: Kernel, *, paired: bool) -> Linear:
    """MMD² of [n, d] and [m, d], each sum over pairs (i, j) with i ≠ j, and what each unit adds.

    Args:
        paired: row i of both sets is of the same item, so (i, i) is left out across the sets too, and units go together. The
            estimate of two equal sets is then exactly 0; else that of equal sets lies below, for it is unbiased.

    Source: Gretton et al., "A Kernel Two-Sample Test" (2012), equation 3 and, for pairs, lemma 7.
    """
    if paired and np.array_equal(generated, real):
        return Linear(0.0, (np.zeros(len(generated)),))
    within, inside = (_sums(rows, rows, kernel, diagonal=False)[0] for rows in (generated, real))
    across, crossed = _sums(generated, real, kernel, diagonal=not paired)
    if paired:
        return replace(
            _of_pairs(2 * (within + inside - across - crossed)), bend=partial(_bend, generated, real, kernel)
        )
    return _of_two(within, inside, across, crossed)


def _of_pairs(rows: Floats) -> Linear:
    """From each unit's sums over the pairs it is the first and the second of: h(i, j) + h(j, i) over j."""
    n, total = len(rows), rows.sum() / 2
    left_out = (total - rows) / ((n - 1) * (n - 2) or np.nan)  # two units less one make no pair: no interval
    return Linear.jackknifed(float(total / (n * (n - 1) or np.nan)), (left_out,))


def _bend(generated: Features, real: Features, kernel: Kernel, g: Floats) -> float:
    """Mean over pairs (i, j) with i ≠ j of g_i g_j h(i, j)."""
    sets = ((generated, generated, 1), (real, real, 1), (generated, real, -2))
    sums = (sign * (g @ _sums(one, other, kernel, diagonal=False, weights=g)[0]) for one, other, sign in sets)
    return float(sum(sums)) / (len(g) * (len(g) - 1))


def _of_two(within: Floats, inside: Floats, across: Floats, crossed: Floats) -> Linear:
    """From row sums inside both sets, and across them by generated and by real units."""
    n, m, both = len(within), len(inside), across.sum()
    of_generated, of_real = (rows.sum() / (len(rows) * (len(rows) - 1) or np.nan) for rows in (within, inside))
    fewer_generated, fewer_real = (
        (rows.sum() - 2 * rows) / ((len(rows) - 1) * (len(rows) - 2) or np.nan) for rows in (within, inside)
    )
    without = (
        fewer_generated + of_real - 2 * (both - across) / ((n - 1) * m or np.nan),
        of_generated + fewer_real - 2 * (both - crossed) / (n * (m - 1) or np.nan),
    )
    return Linear.jackknifed(float(of_generated + of_real - 2 * both / (n * m)), without)


def _sums(
    one: Features, other: Features, kernel: Kernel, *, diagonal: bool, weights: Floats | None = None
) -> tuple[Floats, Floats]:
    """Sums of kernel values by rows [n] and by columns [m], a block at a time; `weights` [m] count the columns."""
    rows, columns = np.zeros(len(one)), np.zeros(len(other))
    for i in range(0, len(one), ROWS):
        x = np.asarray(one[i : i + ROWS], dtype=np.float64)
        for j in range(0, len(other), ROWS):
            block = kernel(x, np.asarray(other[j : j + ROWS], dtype=np.float64))
            if i == j and not diagonal:
                np.fill_diagonal(block, 0)
            rows[i : i + ROWS] += block.sum(axis=1) if weights is None else block @ weights[j : j + ROWS]
            columns[j : j + ROWS] += block.sum(axis=0)
    return rows, columns

"""The baseline that `zoo://docs-llama` has to beat: an interpolated modified Kneser-Ney model of token 5-grams.

Chen & Goodman 1999, "An empirical study of smoothing techniques for language modeling". N-grams are integers in base
`vocabulary`, kept in sorted arrays, so that a million of them are counted and looked up by numpy in a second.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _Level:
    """One order: p(w | h) = discounted(h w) / total(h) + backoff(h) · p(w | h less its first token)."""

    grams: Ints  # [n] sorted keys of h w
    discounted: Floats  # [n] max(0, c(h w) - D)
    histories: Ints  # [m] sorted keys of h
    totals: Floats  # [m] sum over w of c(h w)
    backoffs: Floats  # [m] the mass that discounting freed, as a share of the total


@dataclass(frozen=True)
class NGramModel:
    """Probabilities over ids 0 … vocabulary - 1 given the last `order - 1` ids; documents begin with `beginning`."""

    vocabulary: int
    beginning: int
    levels: tuple[_Level, ...]  # of order 1, 2, …

    @classmethod
    def train(cls, documents: Iterable[Ints], *, vocabulary: int, beginning: int, order: int = 5) -> NGramModel:
        """Count every document's n-grams and the end of each document, which is the id `beginning` again.

        Raises:
            ValueError: `vocabulary ** order` does not fit into 63 bits.
        """
        if vocabulary**order >= 2**63:
            raise ValueError(f"{order}-grams of {vocabulary} ids do not fit into 63 bits")
        keys = [_keys(_padded(ids, beginning, order, end=True), vocabulary, order) for ids in documents]
        grams, counts = np.unique(np.concatenate(keys), return_counts=True)
        levels = [_level(grams, counts, vocabulary)]
        for size in range(order - 1, 0, -1):
            # A lower order counts the different left neighbours of an n-gram, not its occurrences.
            grams, counts = np.unique(grams % vocabulary**size, return_counts=True)
            levels.append(_level(grams, counts, vocabulary))
        return cls(vocabulary, beginning, tuple(reversed(levels)))

    @property
    def order(self) -> int:
        return len(self.levels)

    def probabilities(self, histories: Ints, words: Ints) -> Floats:
        """p(words[i] | histories[i]), shapes [n, order - 1] and [n] to [n]."""
        found: Floats = np.full(len(words), 1.0 / self.vocabulary)
        history_keys = np.zeros(len(words), dtype=np.int64)
        for size, level in enumerate(self.levels):
            if size:
                history_keys += histories[:, -size] * self.vocabulary ** (size - 1)
            totals = _look_up(level.histories, level.totals, history_keys)
            backoffs = _look_up(level.histories, level.backoffs, history_keys)
            discounted = _look_up(level.grams, level.discounted, history_keys * self.vocabulary + words)
            seen = totals > 0
            found = np.where(seen, discounted / np.where(seen, totals, 1.0) + backoffs * found, found)
        return found

    def nats(self, ids: Ints) -> float:
        """-log p of a document's ids from its beginning on; its end is not scored."""
        if not len(ids):
            return 0.0
        padded = _padded(ids, self.beginning, self.order, end=False)
        windows = np.lib.stride_tricks.sliding_window_view(padded, self.order)
        return float(-np.log(self.probabilities(windows[:, :-1], windows[:, -1])).sum())


def _padded(ids: Ints, beginning: int, order: int, *, end: bool) -> Ints:
    return np.concatenate([np.full(order - 1, beginning), ids, [beginning] * end]).astype(np.int64)


def _keys(ids: Ints, vocabulary: int, order: int) -> Ints:
    powers = vocabulary ** np.arange(order - 1, -1, -1, dtype=np.int64)
    return np.asarray(np.lib.stride_tricks.sliding_window_view(ids, order) @ powers, dtype=np.int64)


def _level(grams: Ints, counts: Ints, vocabulary: int) -> _Level:
    discounts = _discounts(counts)[np.minimum(counts, 3)]
    histories, starts = np.unique(grams // vocabulary, return_index=True)
    totals = np.add.reduceat(counts.astype(np.float64), starts)
    freed = np.add.reduceat(discounts, starts)
    return _Level(grams, counts - discounts, histories, totals, freed / totals)


def _discounts(counts: Ints) -> Floats:
    """[0, D1, D2, D3+] by Chen & Goodman's estimate, kept inside (0, count) where the counts of counts are too few."""
    n = np.bincount(np.minimum(counts, 5), minlength=6).astype(np.float64)
    y = n[1] / max(1.0, n[1] + 2 * n[2])
    estimates = [k - (k + 1) * y * after / max(1.0, here) for k, (here, after) in enumerate(pairwise(n[1:5]), 1)]
    return np.array([0.0, *(float(np.clip(d, 0.05, k - 0.05)) for k, d in enumerate(estimates, 1))])


def _look_up(keys: Ints, values: Floats, wanted: Ints) -> Floats:
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0.0)

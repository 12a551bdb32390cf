"""Laws of choosing widths within a budget, compared with all choices there are."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.quantization.budgets import WITHIN, Choice, Option, bytes_of, choose, missed

COSTS = st.floats(0, 10, allow_nan=False)
LAYER = st.lists(st.tuples(st.sampled_from([2, 3, 4, 8]), st.integers(1, 50), COSTS), min_size=1, max_size=3)
LAYERS = st.lists(LAYER, min_size=1, max_size=5).map(
    lambda many: {str(i): tuple(Option(*one) for one in layer) for i, layer in enumerate(many)}
)


@given(LAYERS, st.integers(0, 200))
def test_it_fits_whenever_anything_does_and_is_within_one_upgrade_of_the_best(
    layers: dict[str, tuple[Option, ...]], budget: int
) -> None:
    found = choose(layers, budget)
    every = [(sum(o.size for o in some), sum(o.cost for o in some)) for some in product(*layers.values())]
    least = min(size for size, _ in every)
    assert found.size <= max(budget, least)
    assert found.bits.keys() == layers.keys()
    fitting = [cost for size, cost in every if size <= budget]
    if fitting:
        upgrade = max(max(o.cost for o in options) - min(o.cost for o in options) for options in layers.values())
        assert min(fitting) - 1e-9 <= found.cost <= min(fitting) + upgrade + 1e-9
    else:
        assert found.size == least


@given(LAYERS, st.integers(0, 200), st.integers(0, 100))
def test_more_room_never_costs_more_than_an_upgrade(
    layers: dict[str, tuple[Option, ...]], budget: int, more: int
) -> None:
    upgrade = max(max(o.cost for o in options) - min(o.cost for o in options) for options in layers.values())
    assert choose(layers, budget + more).cost <= choose(layers, budget).cost + upgrade + 1e-9


def test_what_costs_most_is_kept_wide() -> None:
    layers = {
        name: (Option(4, 50, cost), Option(8, 100, cost / 100)) for name, cost in (("a", 1.0), ("b", 9.0), ("c", 2.0))
    }
    assert choose(layers, 250).bits == {"a": 4, "b": 8, "c": 8}
    assert choose(layers, 249).bits == {"a": 4, "b": 8, "c": 4}
    assert choose(layers, 1000).bits == {"a": 8, "b": 8, "c": 8}


def test_a_layer_that_more_bits_make_worse_stays_narrow() -> None:
    assert choose({"a": (Option(4, 50, 1.0), Option(8, 100, 1.5))}, 1000).bits == {"a": 4}


@pytest.mark.parametrize(
    ("size", "budget", "message"),
    [
        (98, 100, ""),
        (100, 100, ""),
        (101, 100, "take more than the budget of 0.0001 MB: the nearest in reach is 0.000101 MB"),
        (97, 100, f"leaves more than {WITHIN:.0%} of the budget of 0.0001 MB: the nearest in reach is 9.7e-05 MB"),
    ],
)
def test_a_budget_is_met_within_two_per_cent_or_the_nearest_is_named(size: int, budget: int, message: str) -> None:
    found = missed(Choice({"a": 4, "b": 8}, size - 7, 0.0), budget, fixed=7)
    assert found.endswith(message)
    assert bool(found) == bool(message)


def test_a_budget_is_a_share_or_a_size_with_its_unit() -> None:
    assert bytes_of(0.3, 1000) == 300
    assert bytes_of("1.5 MB", 1000) == 1_500_000
    assert bytes_of("120MB", 1) == 120_000_000
    for wrong in ("120", "MB", "-1 MB", "0 MB", "1 TB"):
        with pytest.raises(ValueError, match="is no size"):
            bytes_of(wrong, 1000)

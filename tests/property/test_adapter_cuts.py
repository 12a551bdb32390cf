"""A pair that is cut along with its weight: cutting and then adding it gives what adding it and then cutting gives."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from compress.adapters.keeping import Pair, narrowing, renaming
from compress.algorithms.coupled_units import Group, Site, cut_state

LAYER, OTHER = "block.to_q", "block.conv"


@st.composite
def cuts(draw: st.DrawFn) -> tuple[list[Group], list[torch.Tensor], tuple[int, int], int, int]:
    """Two groups of units, one in the rows of a layer and of a convolution, one in their columns; which units are kept, and the shape."""
    groups, kept, sizes = [], [], []
    for axis in (0, 1):
        units, size = draw(st.integers(1, 5)), draw(st.integers(1, 3))
        copies = draw(st.integers(1, 2))
        chosen = draw(st.sets(st.integers(0, units - 1), min_size=1))
        sites = tuple(Site(f"{name}.weight", axis, 0, units * size * copies, copies) for name in (LAYER, OTHER))
        groups.append(Group(sites, units, len(chosen)))
        kept.append(torch.tensor(sorted(chosen)))
        sizes.append(units * size * copies)
    only = draw(st.sampled_from([[0], [1], [0, 1]]))
    return (
        [groups[i] for i in only],
        [kept[i] for i in only],
        (sizes[0], sizes[1]),
        draw(st.integers(1, 6)),
        draw(st.integers(0, 99)),
    )


@given(cuts())
def test_cutting_a_pair_is_cutting_what_it_adds(
    drawn: tuple[list[Group], list[torch.Tensor], tuple[int, int], int, int],
) -> None:
    groups, kept, (rows, columns), rank, seed = drawn
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    pairs = {
        LAYER: Pair(random(rank, columns), random(rows, rank), 3.0),
        OTHER: Pair(random(rank, columns, 3, 3), random(rows, rank, 1, 1), 3.0),
    }
    weights = {f"{name}.weight": random(*added(pair).shape) for name, pair in pairs.items()}
    together = {f"{name}.weight": weights[f"{name}.weight"] + added(pair) for name, pair in pairs.items()}
    apart, after = cut_state(weights, groups, kept), cut_state(together, groups, kept)
    for name, pair in pairs.items():
        same, cut = narrowing(groups, kept)(name, pair) or ("", pair)
        assert same == name
        assert (cut.alpha, cut.down.shape[0]) == (pair.alpha, rank)
        assert torch.allclose(apart[f"{name}.weight"] + added(cut), after[f"{name}.weight"], atol=1e-12)


def added(pair: Pair) -> torch.Tensor:
    """What a pair adds to its weight."""
    factor = pair.alpha / pair.down.shape[0]
    return factor * (pair.up.flatten(1) @ pair.down.flatten(1)).unflatten(1, pair.down.shape[1:])


def test_a_layer_that_goes_takes_its_pair_with_it_and_the_others_keep_theirs() -> None:
    pair = Pair(torch.ones(2, 3), torch.ones(4, 2), 2.0)
    cut = renaming({"layers.0.a.weight": None, "layers.1.a.weight": "layers.0.a.weight"})
    assert cut("layers.0.a", pair) is None
    assert cut("layers.1.a", pair) == ("layers.0.a", pair)

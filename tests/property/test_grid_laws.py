"""Rounding to a grid: how far off it may be, how many levels there are, and which gradients pass."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.algorithms.grids import SHRINKS, Grid, rounded, scales_of

GRIDS = st.builds(Grid, st.sampled_from([2, 3, 4, 8]), st.sampled_from([4, 8, -1]))


def weights(seed: int, scale: float) -> torch.Tensor:
    return torch.randn(6, 16, generator=torch.Generator().manual_seed(seed)) * scale


@settings(max_examples=40, deadline=None)
@given(grid=GRIDS, seed=st.integers(0, 1000), size=st.sampled_from([1e-4, 1.0, 30.0]))
def test_a_weight_within_the_grid_is_half_a_step_off_at_most_and_there_are_few_levels(
    grid: Grid, seed: int, size: float
) -> None:
    weight = weights(seed, size)
    scale = scales_of(weight, grid)
    found = rounded(weight, scale, grid)
    low, high = ((grid.groups(torch.ones_like(weight)) * scale[..., None]) * edge for edge in (grid.low, grid.high))
    inside = (grid.groups(weight) >= low) & (grid.groups(weight) <= high)
    off = (grid.groups(weight) - grid.groups(found)).abs()
    assert bool((off <= scale[..., None] * 0.5001)[inside].all())
    assert all(len(group.unique()) <= 2**grid.bits for row in grid.groups(found) for group in row)
    assert torch.allclose(rounded(found, scale, grid), found, rtol=1e-6)


@settings(max_examples=20, deadline=None)
@given(grid=GRIDS, seed=st.integers(0, 1000))
def test_no_scale_that_was_tried_errs_less(grid: Grid, seed: int) -> None:
    weight = weights(seed, 1.0)
    scale = scales_of(weight, grid)
    chosen = grid.groups((rounded(weight, scale, grid) - weight).square()).sum(-1)
    largest = grid.groups(weight).abs().amax(-1) * 2 / (grid.high - grid.low)
    for share in (1.0, 1 - 1 / SHRINKS, 0.5):
        other = grid.groups((rounded(weight, largest * share, grid) - weight).square()).sum(-1)
        assert bool((chosen <= other * 1.0001).all())


def test_gradients_pass_inside_the_grid_and_reach_the_scales() -> None:
    grid = Grid(2, 4)
    weight = torch.tensor([[0.4, -0.9, 5.0, -7.0]], requires_grad=True)
    scale = torch.tensor([[1.0]], requires_grad=True)
    rounded(weight, scale, grid).sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [[1.0, 1.0, 0.0, 0.0]]  # levels are -2, -1, 0, 1
    assert scale.grad is not None  # each weight's level less what it is where it is inside: -0.4 - 0.1 + 1 - 2
    assert scale.grad.item() == pytest.approx(-0.4 + (-1 + 0.9) + 1 - 2)


def test_what_comes_back_is_what_the_stored_type_holds() -> None:
    grid, weight = Grid(8, 8), weights(3, 1.0)
    scale = scales_of(weight, grid)
    scale = scale.to(torch.bfloat16).float()
    found = rounded(weight, scale, grid, torch.bfloat16)
    assert torch.equal(found, found.to(torch.bfloat16).float())

"""Adding a low-rank update to a weight: linear in its factor, the same whichever way round the weight lies, and the layer's branch."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from compress.algorithms.lowrank import fused

SIZES = st.integers(1, 6)
FACTORS = st.floats(-4, 4)


@st.composite
def triples(draw: st.DrawFn, *inner: int) -> tuple[Tensor, Tensor, Tensor]:
    """A weight, and the two matrices of an update, float64."""
    rows, columns, rank = draw(SIZES), draw(SIZES), draw(SIZES)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    made = ((rows, columns, *inner), (rank, columns, *inner), (rows, rank, *(1 for _ in inner)))
    weight, down, up = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in made)
    return weight, down, up


@given(triples(), FACTORS, FACTORS)
def test_two_updates_one_after_the_other_are_one_of_both_factors(
    given: tuple[Tensor, Tensor, Tensor], one: float, other: float
) -> None:
    weight, down, up = given
    assert torch.allclose(fused(fused(weight, down, up, one), down, up, other), fused(weight, down, up, one + other))


@given(triples(), FACTORS)
def test_a_weight_that_is_stored_transposed_gets_the_transposed_update(
    given: tuple[Tensor, Tensor, Tensor], factor: float
) -> None:
    weight, down, up = given
    turned = fused(weight.T, down, up, factor, transposed=True)
    assert torch.equal(turned.T, fused(weight, down, up, factor))


@given(triples(3, 2), FACTORS)
def test_a_convolution_is_its_branch(given: tuple[Tensor, Tensor, Tensor], factor: float) -> None:
    weight, down, up = given
    images = torch.randn(2, weight.shape[1], 5, 5, dtype=torch.float64)
    conv = nn.functional.conv2d
    branch = conv(images, weight) + factor * conv(conv(images, down), up)
    assert torch.allclose(conv(images, fused(weight, down, up, factor)), branch)


@given(triples())
def test_no_factor_changes_nothing_in_any_type(given: tuple[Tensor, Tensor, Tensor]) -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        weight = given[0].to(dtype)
        assert torch.equal(fused(weight, given[1], given[2], 0.0), weight)


@given(triples(3), FACTORS, st.booleans())
def test_with_magnitudes_each_output_is_as_long_as_message_and_points_where_it_did(
    given: tuple[Tensor, Tensor, Tensor], factor: float, flat: bool
) -> None:
    weight, down, up = (t.flatten(1) if flat else t for t in given)
    plain = fused(weight, down, up, factor).flatten(1)
    magnitude = torch.arange(1, len(weight) + 1, dtype=torch.float64)
    found = fused(weight, down, up, factor, magnitude=magnitude).flatten(1)
    assert torch.allclose(found.norm(dim=1), magnitude)
    assert torch.allclose(nn.functional.cosine_similarity(found, plain), torch.ones_like(magnitude))
    unchanged = fused(weight, down, up, factor, magnitude=plain.norm(dim=1)[:, None]).flatten(1)
    assert torch.allclose(unchanged, plain)
    if flat:
        turned = fused(weight.T, down, up, factor, transposed=True, magnitude=magnitude)
        assert torch.allclose(turned.T, found)

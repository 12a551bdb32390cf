"""Rounding to few bits and back, compared with torch's own fake quantization; and which weights it reaches."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from compress.algorithms.alone import costs, holding
from compress.algorithms.losses import relative_error
from compress.algorithms.rounding import Weight, group_of, matrices, rounded


def weight(*shape: int, **how: object) -> Weight:
    generator = torch.Generator().manual_seed(0)
    return Weight("layer", nn.Parameter(torch.randn(*shape, generator=generator)), **how)  # type: ignore[arg-type]


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_it_rounds_as_torch_does(bits: int, symmetric: bool) -> None:
    one = weight(6, 32)
    groups = one.table.reshape(-1, 8)
    if symmetric:
        low, most = -(2 ** (bits - 1)) + 1, 2 ** (bits - 1) - 1
        scale, zero = groups.abs().amax(1) / most, torch.zeros(len(groups), dtype=torch.int32)
    else:
        low, most = 0, 2**bits - 1
        scale = (groups.amax(1) - groups.amin(1)) / most
        zero = (-groups.amin(1) / scale).round().int()
    wanted = torch.fake_quantize_per_channel_affine(groups, scale, zero, 0, low, most).reshape(6, 32)
    assert torch.allclose(rounded(one, bits, 8, symmetric=symmetric), wanted, atol=1e-6)


@given(st.integers(1, 600), st.integers(0, 300))
def test_a_group_divides_its_row_and_is_the_largest_that_does(row: int, asked: int) -> None:
    group = group_of(row, asked)
    assert row % group == 0
    assert group == row if not asked else group <= asked
    assert not asked or all(row % larger for larger in range(group + 1, min(asked, row) + 1))


@pytest.mark.parametrize(
    ("stored", "how"),
    [((8, 6), {"swapped": (0, 1)}), ((2, 6, 8), {"leading": 2}), ((2, 8, 6), {"leading": 2, "swapped": (1, 2)})],
)
def test_groups_lie_along_the_channels_that_are_summed_over_however_they_are_stored(
    stored: tuple[int, ...], how: dict[str, object]
) -> None:
    one = weight(*stored, **how)
    plain = Weight("plain", nn.Parameter(one.table.reshape(-1, 8).clone()))
    assert one.row == plain.row == 8
    found = rounded(one, 4, 4, symmetric=False)
    assert found.shape == stored
    turned = found.transpose(*one.swapped) if one.swapped else found
    assert torch.equal(turned.reshape(-1, 8), rounded(plain, 4, 4, symmetric=False))


def test_a_group_of_zeros_stays_zeros() -> None:
    one = Weight("zeros", nn.Parameter(torch.zeros(2, 8)))
    for symmetric in (False, True):
        assert torch.equal(rounded(one, 4, 8, symmetric=symmetric), one.value)


class Conv1D(nn.Module):
    """As transformers' own: input channels first."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(5, 3))


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.ones(4, 6, 2))


class Everything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 4)
        self.linear = nn.Linear(4, 6)
        self.conv = nn.Conv2d(4, 6, 3)
        self.up = nn.ConvTranspose2d(4, 6, 2)
        self.old = Conv1D()
        self.experts = Experts()
        self.norm = nn.LayerNorm(4)
        self.scale_shift_table = nn.Parameter(torch.ones(6, 4))
        self.head = nn.Linear(4, 7)
        self.head.weight = self.table.weight


def test_every_matrix_is_found_once_and_nothing_else() -> None:
    found = {one.name: (one.value.numel() // one.row, one.row) for one in matrices(Everything())}
    assert found == {
        "table": (7, 4),
        "linear": (6, 4),
        "conv": (6, 36),
        "up": (6, 16),
        "old": (3, 5),
        "experts.gate_up_proj": (24, 2),
    }


def test_the_experts_of_a_real_mixture_are_found() -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_local_experts": 4,
        "vocab_size": 9,
    }
    model = MixtralForCausalLM(MixtralConfig(**sizes, num_attention_heads=2, num_key_value_heads=2))
    found = {one.name.rpartition("experts.")[2]: one.row for one in matrices(model) if "experts" in one.name}
    assert found == {"gate_up_proj": 16, "down_proj": 24}


def test_a_layer_is_put_back_to_the_bit_also_when_the_measuring_fails() -> None:
    layer = nn.Linear(8, 8)
    before = layer.weight.detach().clone()
    (one,) = matrices(nn.Sequential(layer))
    seen = []

    def fail() -> None:
        with holding(one, torch.zeros(8, 8)):
            seen.append(bool(layer.weight.any()))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert seen == [False]
    assert torch.equal(layer.weight, before)


def test_the_cost_is_that_of_the_output_while_the_layer_is_rounded() -> None:
    module = nn.Sequential(nn.Linear(8, 8, bias=False))
    (one,) = matrices(module)
    given, value = torch.ones(2, 8), rounded(one, 3, 8, symmetric=True)
    wanted = module(given).detach()
    found = costs(one, value, lambda: [(module(given), wanted)], relative_error)
    assert found == [pytest.approx(float(relative_error(given @ value.T, wanted)), rel=1e-5)]
    assert torch.equal(module(given), wanted)

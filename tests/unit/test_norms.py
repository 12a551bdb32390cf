"""A norm that sees fewer channels gives of those that stay what it gave before."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from compress.algorithms.coupled_units import Group, Site, cut_state
from compress.algorithms.norms import keep_statistics

WIDTH, KEEP = 16, 8


class Holder(nn.Module):
    """A norm in a model."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.norm(x)
        return found


def groups(norm: nn.Module, blocks: int = 1) -> tuple[Group, ...]:
    sites = tuple(Site(f"norm.{name}", 0, 0, WIDTH) for name, _ in norm.named_parameters())
    return (Group(sites, WIDTH, KEEP, blocks),)


def narrowed(
    large: nn.Module, small: nn.Module, x: torch.Tensor, kept: torch.Tensor
) -> tuple[Holder, dict[str, float]]:
    torch.manual_seed(0)
    for parameter in large.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    before, after = Holder(large), Holder(small)
    found = groups(large)
    after.load_state_dict(cut_state(before.state_dict(), found, [kept]))
    return after, keep_statistics(before, after, found, [kept], [{"x": x}])


@pytest.mark.parametrize("make", [LlamaRMSNorm, GemmaRMSNorm, nn.RMSNorm])
def test_where_what_goes_was_dead_nothing_changes(make: Any) -> None:
    x = torch.randn(3, 5, WIDTH)
    kept = torch.tensor([0, 1, 3, 4, 8, 9, 12, 15])
    dead = [i for i in range(WIDTH) if i not in kept]
    x[..., dead] = 0
    large = make(WIDTH)
    after, factors = narrowed(large, make(KEEP), x, kept)
    assert factors["norm"] == pytest.approx(2**0.5, rel=1e-4)
    assert torch.allclose(after(x[..., kept]), large(x)[..., kept], atol=1e-4)


@settings(deadline=None)
@given(st.floats(0.0, 1.5))
def test_the_factor_goes_with_the_strength_of_what_goes(strength: float) -> None:
    torch.manual_seed(1)
    x = torch.randn(64, WIDTH)
    x[:, KEEP:] *= strength
    _, factors = narrowed(LlamaRMSNorm(WIDTH), LlamaRMSNorm(KEEP), x, torch.arange(KEEP))
    kept, whole = (x[:, :KEEP] ** 2).mean(), (x**2).mean()
    assert factors["norm"] == pytest.approx(float((kept / whole) ** 0.5), rel=0.1)


def test_biases_of_a_layer_norm_stay_and_each_group_of_a_group_norm_has_its_own_factor() -> None:
    x = torch.randn(4, WIDTH, 3, 3)
    x[:, 4:8] = 0  # half of the first group's
    kept = torch.tensor([0, 1, 2, 3, 8, 9, 10, 11])
    large = nn.GroupNorm(2, WIDTH)
    after, _ = narrowed(large, nn.GroupNorm(2, KEEP), x, kept)
    assert torch.equal(after.norm.bias, large.bias[kept])  # type: ignore[arg-type]
    ratio = (after.norm.weight / large.weight[kept]).detach()  # type: ignore[operator]
    assert torch.allclose(ratio[:4], ratio[:1].expand(4))
    assert torch.allclose(ratio[4:], ratio[4:5].expand(4))
    assert ratio[0] > 1.1
    assert float(ratio[4]) == pytest.approx(1, abs=0.1)


def test_a_norm_that_never_ran_keeps_its_gains() -> None:
    large, small = LlamaRMSNorm(WIDTH), LlamaRMSNorm(KEEP)
    before, after = Holder(large), Holder(small)
    found, kept = groups(large), [torch.arange(KEEP)]
    assert keep_statistics(before, after, found, kept, []) == {}
    assert torch.equal(small.weight, torch.ones(KEEP))


def test_a_norm_that_gave_nothing_keeps_its_gains() -> None:
    x = torch.zeros(2, WIDTH)
    after, factors = narrowed(LlamaRMSNorm(WIDTH), LlamaRMSNorm(KEEP), x, torch.arange(KEEP))
    assert factors == {"norm": 1.0}
    assert torch.isfinite(after.norm.weight).all()  # type: ignore[arg-type]

"""What a student is held to: closed forms, the library's own divergence, and the laws of matching blocks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Categorical, kl_divergence

from compress.algorithms.forward_hooks import passing_over
from compress.algorithms.losses import Projections, listening, match_blocks, relative_error, tempered_kl

TENSOR = torch.arange(1.0, 7.0).view(2, 3)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("found", "error"),
    [(TENSOR, 0.0), (torch.zeros(2, 3), 1.0), (2 * TENSOR, 1.0), (-TENSOR, 4.0), (TENSOR / 2, 0.25)],
)
def test_the_relative_error_is_a_share_of_what_is_wanted(found: torch.Tensor, error: float) -> None:
    assert relative_error(found, TENSOR).item() == pytest.approx(error)
    assert relative_error(1000 * found, 1000 * TENSOR).item() == pytest.approx(error)  # whatever the scale


def test_the_relative_error_is_finite_where_nothing_is_wanted() -> None:
    assert math.isfinite(relative_error(TENSOR, torch.zeros(2, 3)).item())


def test_the_relative_error_is_worked_out_in_float32() -> None:
    found, wanted = random(64, 64).to(torch.bfloat16), random(64, 64, seed=1).to(torch.bfloat16)
    assert relative_error(found, wanted).dtype == torch.float32
    assert relative_error(found, wanted) == relative_error(found.float(), wanted.float())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_tempered_kl_is_torchs_own_divergence(temperature: float) -> None:
    ours, theirs = random(2, 5, 11), random(2, 5, 11, seed=1)
    message, taught = (Categorical(logits=logits / temperature) for logits in (ours, theirs))
    wanted = kl_divergence(taught, message).mean() * temperature**2  # the teacher's expectation, over all ten positions
    assert torch.allclose(tempered_kl(ours, theirs, temperature), wanted, rtol=1e-5)
    assert not torch.allclose(tempered_kl(theirs, ours, temperature), wanted, rtol=1e-2)  # it has a direction


def test_a_student_that_agrees_has_no_divergence_and_no_gradient() -> None:
    logits = random(3, 7).requires_grad_()
    loss = tempered_kl(logits, logits.detach() + 5, 2.0)  # a constant added to all logits says nothing
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-6


def test_the_gradient_does_not_fade_with_the_temperature() -> None:
    norms = []
    for temperature in (10.0, 100.0):
        logits = random(3, 7).requires_grad_()
        tempered_kl(logits, random(3, 7, seed=1), temperature).backward()
        norms.append(float(logits.grad.norm()))  # type: ignore[union-attr]
    assert norms[1] == pytest.approx(norms[0], rel=0.1)


COUNTS = st.integers(1, 24)


@given(COUNTS, COUNTS)
def test_matched_blocks_are_in_order_and_end_together(students: int, teachers: int) -> None:
    pairs = match_blocks([f"s{i}" for i in range(students)], [f"t{i}" for i in range(teachers)])
    theirs = [int(t[1:]) for _, t in pairs]
    assert [s for s, _ in pairs] == [f"s{i}" for i in range(students)]
    assert theirs == sorted(theirs)
    assert theirs[-1] == teachers - 1
    if students <= teachers:
        assert len(set(theirs)) == students  # no block is taught by another's teacher
    for i, found in enumerate(theirs):
        depth = (i + 1) / students  # the nearest there is: half a block away at most, but for the first
        assert abs((found + 1) / teachers - depth) <= 0.5 / teachers + 1e-9 or found == 0


@given(COUNTS)
def test_equal_stacks_match_one_to_one(count: int) -> None:
    names = [f"b{i}" for i in range(count)]
    assert match_blocks(names, names) == list(zip(names, names, strict=True))


def test_a_part_that_one_of_them_lacks_is_not_compared() -> None:
    assert match_blocks((), ("mid",)) == []
    assert match_blocks(("mid",), ()) == []
    assert match_blocks(("a", "b"), ("p", "q", "r", "s")) == [("a", "q"), ("b", "s")]


def test_projections_are_the_identity_where_widths_agree() -> None:
    projections = Projections([(6, 6), (4, 6)])
    assert [p.shape for p in projections.parameters()] == [torch.Size([6, 4])]  # the first pair learns nothing
    same, narrow, wide = random(2, 6), random(2, 4, seed=1), random(2, 6, seed=2)
    second = relative_error(narrow @ projections.maps[1].weight.T, wide)
    assert torch.allclose(projections.errors([same, narrow], [same, wide]), second / 2)


def test_a_projection_learns_a_linear_teacher() -> None:
    torch.manual_seed(0)
    projections, hidden = Projections([(4, 6)]), random(50, 4)
    taught = hidden @ random(4, 6, seed=3)
    with torch.no_grad():
        projections.maps[0].weight.copy_(torch.linalg.lstsq(hidden, taught).solution.T)
    assert projections.errors([hidden], [taught]).item() < 1e-9


class Streams(nn.Module):
    """A block that gives the text's stream before the image's."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x + 1, x + 2


def test_listening_hears_the_last_stream_with_channels_last_and_only_within() -> None:
    module = nn.Sequential(nn.Conv2d(3, 5, 1), Streams())
    with listening(module, ["0", "1"]) as recorded:
        out = module(random(2, 3, 4, 4))
    assert recorded["0"].shape == (2, 4, 4, 5)
    assert torch.equal(recorded["1"], out[1].movedim(1, -1))
    module(random(2, 3, 8, 8))
    assert recorded["0"].shape == (2, 4, 4, 5)  # nothing is recorded any more


def test_listening_ends_with_an_error_too() -> None:
    module = nn.Sequential(nn.Linear(3, 3))
    with pytest.raises(RuntimeError), listening(module, ["0"]):
        module(random(2, 4))
    assert not module[0]._forward_hooks


class Attending(nn.Module):
    """Gives its attention behind the stream, as some decoders' blocks do."""

    def __init__(self, kind: type) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, hidden_states: torch.Tensor) -> Any:
        return self.kind((2 * hidden_states, torch.ones(len(hidden_states), 3, 5, 5)))


@pytest.mark.parametrize("kind", [tuple, list])
def test_of_what_a_block_gives_the_stream_is_heard(kind: type) -> None:
    module, given = nn.ModuleList([Attending(kind)]), torch.ones(2, 5, 8)
    with listening(module, ["0"]) as recorded:
        module[0](given)
    assert torch.equal(recorded["0"], 2 * given)
    with listening(module, ["0"]) as recorded:
        module[0](hidden_states=given)
    assert torch.equal(recorded["0"], 2 * given)
    with passing_over(module, ["0"]):
        found = module[0](given)
    assert type(found) is kind
    assert torch.equal(found[0], given)

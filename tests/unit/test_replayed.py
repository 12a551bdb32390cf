"""A teacher's calls from graphs, within a training's autocast: the same numbers as eager ones, and graphs that really answered."""

from __future__ import annotations

import gc
import weakref
from unittest import mock

import pytest
import torch

from compress.training.replayed import replayed
from tests.graphs import pretended


class Teacher(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = torch.nn.Linear(8, 8), torch.nn.Linear(8, 4)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"sample": self.two(torch.tanh(self.one(sample)) + timestep[:, None])}


def teacher() -> Teacher:
    torch.manual_seed(0)
    return Teacher().eval().requires_grad_(False)


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_a_teacher_answers_from_graphs_as_it_does_eagerly(precision: str) -> None:
    eager, module = teacher(), teacher()
    narrow = precision == "bfloat16"
    with pretended():
        call = replayed(module, "cpu", precision)
        assert call is not None
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            for seed in range(4):
                torch.manual_seed(seed)
                given = {"sample": torch.randn(3, 8), "timestep": torch.full((3,), float(seed))}
                found, want = call(**given)["sample"], eager(**given)["sample"]
                assert found.dtype == want.dtype == (torch.bfloat16 if narrow else torch.float32)
                assert torch.equal(found, want)
    counted = call.ran
    assert (counted.captured, counted.replayed, counted.eager.total()) == (1, 4, 0)


def test_with_gradients_it_is_called_as_ever() -> None:
    module = teacher()
    given = torch.randn(2, 8, requires_grad=True)
    with pretended():
        call = replayed(module, "cpu", "float32")
        assert call is not None
        with pytest.warns(UserWarning, match="called with gradients"):
            found = call(sample=given, timestep=torch.zeros(2))
    found["sample"].sum().backward()
    assert given.grad is not None


def test_where_no_graphs_are_there_is_none() -> None:
    assert replayed(teacher(), "cpu", "auto") is None


def test_a_teacher_goes_from_memory_with_its_call() -> None:
    """On a GPU it holds a model's weights and a graph's memory, which the next stage needs."""
    module = teacher()
    gone = weakref.ref(module)
    with pretended(), torch.no_grad():
        call = replayed(module, "cpu", "float32")
        assert call is not None
        call(sample=torch.ones(1, 8), timestep=torch.zeros(1))
        gc.disable()
        try:
            del module, call
            assert gone() is None
        finally:
            gc.enable()


def test_a_student_is_taught_by_a_captured_teacher_as_by_an_eager_one() -> None:
    """The whole of a round: what differs is only who answers for the teacher."""
    from compress.algorithms.trajectories import Course
    from compress.training.trajectories import Batch, Denoiser
    from compress.training.trajectory_targets import Classroom, halve

    times = torch.tensor([[900.0, 700.0, 500.0], [500.0, 250.0, 1.0]])
    course = Course(times, 1 - times / 1000, times / 1000)
    call = {"latent": "sample", "rows": 4}

    class Denoising(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = torch.nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> tuple[torch.Tensor]:
            return (self.mix(sample) * (1 + timestep / 1000)[:, None, None, None],)

    losses = {}
    for how in ("eager", "captured"):
        torch.manual_seed(0)
        student, taught = Denoising(), Denoising().requires_grad_(False).eval()
        with pretended(), mock.patch("compress.training.trajectory_targets.read_batch") as read:
            read.return_value = Batch(torch.ones(4, 4, 8, 8), (call,), (call,))
            by = replayed(taught, "cpu", "bfloat16") if how == "captured" else None
            sides = Denoiser(student, "flow", 1.0), Denoiser(taught, "flow", 1.0, by)
            room = Classroom(*sides, course, [mock.sentinel.file] * 2, halve, "cpu", 0)
            with torch.autocast("cpu", torch.bfloat16):
                losses[how] = [float(room.loss_at(number)["landing"]) for number in range(3)]
    assert losses["eager"] == losses["captured"]

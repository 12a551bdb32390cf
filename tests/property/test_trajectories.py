"""Laws of steps from noise to image, and diffusers' own schedulers as the reference."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, LCMScheduler
from hypothesis import given
from hypothesis import strategies as st

from compress.algorithms.trajectories import (
    PREDICTIONS,
    Levels,
    Prediction,
    answer,
    boundary,
    landing,
    move,
    pseudo_huber,
    split,
    velocity_error,
)
from compress.training.trajectories import course_of

ROWS = 3


def levels(sigma: float, prediction: Prediction) -> Levels:
    alpha = 1 - sigma if prediction == "flow" else (1 - sigma**2) ** 0.5
    return Levels(*(torch.full((ROWS,), value) for value in (1000 * sigma, alpha, sigma)))


def noise(seed: int) -> torch.Tensor:
    return torch.randn(ROWS, 4, 2, 2, generator=torch.Generator().manual_seed(seed))


noisy = st.floats(0.3, 0.95)
predictions = st.sampled_from(PREDICTIONS)


@given(noisy, predictions, st.integers(0, 99))
def test_an_answer_says_the_image_that_it_was_made_of(sigma: float, prediction: Prediction, seed: int) -> None:
    here, image, hidden = levels(sigma, prediction), noise(seed), noise(seed + 100)
    latent = move((image, hidden), here)
    message = split(answer(image, latent, here, prediction), latent, here, prediction)
    torch.testing.assert_close(message[0], image, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(message[1], hidden, atol=1e-4, rtol=1e-4)


@given(noisy, st.floats(0.0, 0.9), predictions, st.integers(0, 99))
def test_one_step_with_the_landings_image_lands_there(
    sigma: float, share: float, prediction: Prediction, seed: int
) -> None:
    here, there = levels(sigma, prediction), levels(share * sigma, prediction)
    latent, reached = noise(seed), noise(seed + 100)
    image = landing(latent, here, reached, there)
    message = split(answer(image, latent, here, prediction), latent, here, prediction)
    torch.testing.assert_close(move(message, there), reached, atol=1e-3, rtol=1e-3)


@given(noisy, predictions, st.integers(0, 99))
def test_errors_are_weighed_as_velocities(sigma: float, prediction: Prediction, seed: int) -> None:
    """Two answers' error is that of the velocities that say the same, whatever is predicted."""
    here, latent, images = levels(sigma, prediction), noise(seed), (noise(seed + 1), noise(seed + 2))
    found = velocity_error(*(answer(p, latent, here, prediction) for p in images), here, prediction)
    same: Prediction = "flow" if prediction == "flow" else "v_prediction"
    wanted = velocity_error(*(answer(p, latent, here, same) for p in images), here, same)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("steps", [1, 2, 4, 6, 20])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_a_walk_is_that_of_ddim(steps: int, prediction: Prediction) -> None:
    scheduler = DDIMScheduler(
        prediction_type=prediction, timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True
    )
    scheduler.set_timesteps(steps)
    course, ours, theirs = course_of(scheduler, steps, 1, 1.0), noise(0), noise(0)
    assert course.times[:, 0].tolist() == scheduler.timesteps.tolist()
    for number, time in enumerate(scheduler.timesteps):
        output, row = torch.sin(theirs), torch.full((ROWS,), number)
        theirs = scheduler.step(output, time, theirs).prev_sample
        ours = move(split(torch.sin(ours), ours, course.at(row, 0), prediction), course.at(row, 1))
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("steps", "shift"), [(1, 1.0), (4, 1.0), (4, 3.0), (7, 2.0)])
def test_a_walk_is_eulers_along_a_flow(steps: int, shift: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    course, ours, theirs = course_of(scheduler, steps, 1, 1.0), noise(0), noise(0)
    torch.testing.assert_close(course.times[:, 0], scheduler.timesteps)
    for number, time in enumerate(scheduler.timesteps):
        row = torch.full((ROWS,), number)
        theirs = scheduler.step(torch.sin(theirs), time, theirs).prev_sample
        ours = move(split(torch.sin(ours), ours, course.at(row, 0), "flow"), course.at(row, 1))
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("substeps", [1, 2, 3, 8])
@pytest.mark.parametrize("kind", ["diffusion", "flow"])
def test_the_parts_of_a_step_lie_between_its_ends(kind: str, substeps: int) -> None:
    ddim = DDIMScheduler(timestep_spacing="trailing", set_alpha_to_one=True)
    scheduler = ddim if kind == "diffusion" else FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(4)
    whole, parted = course_of(scheduler, 4, 1, 0.5), course_of(scheduler, 4, substeps, 0.5)
    assert parted.times.shape == (4, substeps + 1)
    for one, other in ((whole.times, parted.times), (whole.sigmas, parted.sigmas), (whole.alphas, parted.alphas)):
        torch.testing.assert_close(one[:, 0], other[:, 0])
        torch.testing.assert_close(one[:, -1], other[:, -1])
    assert (parted.sigmas.diff(dim=1) < 0).all()
    assert parted.sigmas[-1, -1] == 0
    assert parted.alphas[-1, -1] == 1


@pytest.mark.parametrize("time", [0.0, 1.0, 499.0, 999.0])
def test_the_boundary_is_that_of_lcm(time: float) -> None:
    skip, out = boundary(Levels(*(torch.tensor([value]) for value in (time, 0.5, 0.5))), torch.zeros(1, 1, 1, 1))
    theirs = LCMScheduler().get_scalings_for_boundary_condition_discrete(time)
    assert skip.item() == pytest.approx(theirs[0], rel=1e-5)
    assert out.item() == pytest.approx(theirs[1], rel=1e-5)


def test_pseudo_huber_is_a_distance_far_off_and_nothing_where_equal() -> None:
    one = torch.zeros(4)
    assert pseudo_huber(one, one).item() == 0
    assert pseudo_huber(one, one + 2).item() == pytest.approx(2, abs=2e-3)
    assert pseudo_huber(one, one + 1e-5).item() == pytest.approx((1e-5) ** 2 / (2 * 0.001), rel=0.1)

"""A lean schedule's steps end in the very bits of diffusers' own, on tensors of any type and on the arrays that stand for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.image_processor import VaeImageProcessor
from hypothesis import assume, given
from hypothesis import strategies as st

from compress.opening.lean_schedules import Ddim, Flow, Kept, Schedule, guided, lean, seen, tensor_of

CPU = torch.device("cpu")
SHAPE = (2, 4, 8, 8)
TYPES = (torch.float32, torch.bfloat16, torch.float16)

ddim_configs = st.fixed_dictionaries(
    {
        "prediction_type": st.sampled_from(["epsilon", "v_prediction", "sample"]),
        "timestep_spacing": st.sampled_from(["leading", "trailing", "linspace"]),
        "beta_schedule": st.sampled_from(["linear", "scaled_linear", "squaredcos_cap_v2"]),
        "set_alpha_to_one": st.booleans(),
        "clip_sample": st.booleans(),
        "clip_sample_range": st.floats(0.5, 2),
        "steps_offset": st.integers(0, 1),
    }
)
flow_configs = st.fixed_dictionaries(
    {"shift": st.floats(0.5, 6), "use_dynamic_shifting": st.booleans(), "shift_terminal": st.sampled_from([None, 0.1])}
)


def noise(seed: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)).to(dtype)


def stock(scheduler: Any, dtype: torch.dtype) -> torch.Tensor:
    x = noise(0, dtype)
    for index, t in enumerate(scheduler.timesteps):
        x = scheduler.step(noise(index + 1, dtype), t, x, return_dict=False)[0]
    return x


def walked(schedule: Schedule, dtype: torch.dtype, arrays: bool) -> torch.Tensor:
    held = lean if arrays else lambda x: x
    x = held(noise(0, dtype))
    for index in range(len(schedule.times)):
        x = schedule.step(index, held(noise(index + 1, dtype)), x)
    return tensor_of(x)


def same(scheduler: Any, schedule: Schedule, dtype: torch.dtype) -> bool:
    wanted = stock(scheduler, dtype)
    assert [t.item() for t in schedule.times] == scheduler.timesteps.tolist()
    return all(torch.equal(walked(schedule, dtype, arrays), wanted) for arrays in (True, False))


@given(config=ddim_configs, steps=st.integers(1, 24), dtype=st.sampled_from(TYPES))
def test_ddim_is_walked_to_the_bit(config: dict[str, Any], steps: int, dtype: torch.dtype) -> None:
    scheduler = DDIMScheduler(**config)
    schedule = Ddim.of(DDIMScheduler(**config), steps, CPU)
    scheduler.set_timesteps(steps)
    assert same(scheduler, schedule, dtype)


@given(config=flow_configs, steps=st.integers(1, 24), dtype=st.sampled_from(TYPES), begins=st.booleans())
def test_a_flow_is_walked_to_the_bit(config: dict[str, Any], steps: int, dtype: torch.dtype, begins: bool) -> None:
    assume(steps > 1 or not config["shift_terminal"])  # stretched to its end, a schedule of one step is no number
    how: dict[str, Any] = {"mu": 0.7} if config["use_dynamic_shifting"] else {}
    if begins:
        how["sigmas"] = np.linspace(1.0, 1 / steps, steps)
    scheduler = FlowMatchEulerDiscreteScheduler(**config)
    schedule = Flow.of(FlowMatchEulerDiscreteScheduler(**config), steps, CPU, begins, **how)
    scheduler.set_timesteps(steps, **how)
    if begins:
        scheduler.set_begin_index(0)
    assert same(scheduler, schedule, dtype)


@given(scale=st.floats(1.01, 20), dtype=st.sampled_from(TYPES))
def test_guidance_is_the_pipelines_to_the_bit(scale: float, dtype: torch.dtype) -> None:
    predicted = noise(3, dtype)
    without, with_prompt = predicted.chunk(2)
    wanted = without + scale * (with_prompt - without)
    assert torch.equal(guided(predicted, scale), wanted)
    assert torch.equal(tensor_of(guided(lean(predicted), scale)), wanted)


@given(scaling=st.floats(0.05, 2), shift=st.floats(-1, 1))
def test_latents_are_scaled_back_to_the_bit(scaling: float, shift: float) -> None:
    z = noise(4, torch.float32)
    assert torch.equal(tensor_of(lean(z) / scaling), z / scaling)
    assert torch.equal(tensor_of(lean(z) / scaling + shift), (z / scaling) + shift)


def test_a_image_is_what_diffusers_makes_of_it() -> None:
    processor, image = VaeImageProcessor(), 2 * noise(5, torch.float32)[:, :3]
    wanted = processor.postprocess(image, output_type="np", do_denormalize=[True] * len(image))
    assert np.array_equal(seen(image), wanted)


@pytest.mark.parametrize("dtype", TYPES)
def test_only_float32_becomes_an_array(dtype: torch.dtype) -> None:
    x = noise(0, dtype)
    assert isinstance(lean(x), np.ndarray) == (dtype is torch.float32)
    assert tensor_of(lean(x)).data_ptr() == x.data_ptr()


def test_a_schedule_is_made_once_for_a_scheduler_as_it_stands() -> None:
    kept, made = Kept(), []
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)

    def get(*asked: object) -> Schedule:
        def make() -> Schedule:
            made.append(asked)
            return Flow.of(scheduler, 2, CPU, False)

        return kept.get(scheduler, asked, make)

    first = get(2)
    assert get(2) is first
    assert get(3) is not first
    scheduler.set_shift(2.0)
    assert get(2) is not first
    scheduler.register_to_config(use_karras_sigmas=True)
    get(2)
    assert made == [(2,), (3,), (2,), (2,)]


def test_few_schedules_are_kept() -> None:
    kept, scheduler = Kept(), DDIMScheduler()
    first = kept.get(scheduler, (0,), lambda: Ddim.of(scheduler, 1, CPU))
    for steps in range(1, 5):
        kept.get(scheduler, (steps,), lambda: Ddim.of(scheduler, 1, CPU))
    assert kept.get(scheduler, (0,), lambda: Ddim.of(scheduler, 1, CPU)) is not first

"""Operations of a call: against a hand count, against torch's counter on the real modules, and against what must not matter."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from compress.artifact import Artifact
from compress.machine.devices import Opening
from compress.model.describing import describe
from compress.opening import open_task
from compress.opening.text_to_image import PROMPT
from compress.recipe.gates import Gate
from compress.zoo import zoo_model
from evaluation.comparison.rows import row_of
from evaluation.evidence import Evidence
from evaluation.metrics import flops
from evaluation.observe.operations import add_up, count_image, count_text
from evaluation.values import Sample
from tests.editors import tiny_editor
from tests.families import TEXT, tiny_image, tiny_text
from tests.stages import apply
from tests.tiny import tiny_diffusion, tiny_llama

STEPS = 3
PROMPT_TOKENS, NEW_TOKENS = 7, 9


def measured(artifact: Artifact, **params: int) -> Sample:
    call = {"num_inference_steps": STEPS} if artifact.task == "text_to_image" else {}
    return flops.measure.measure(Evidence(artifact, call=call), flops.Flops(**params))


# ---------------------------------------------------------------- text


def by_hand(config: Mapping[str, Any], prompt: int, new: int) -> int:
    """A Llama's multiply-adds, twice: projections for each token, attention for each pair, probabilities for each written one."""
    wide, heads, layers = config["hidden_size"], config["num_attention_heads"], config["num_hidden_layers"]
    keys = wide // heads * config["num_key_value_heads"]
    projections = 2 * (wide * wide + 2 * wide * keys + wide * wide) + 2 * 3 * wide * config["intermediate_size"]
    tokens = prompt + new - 1  # the last written token is read by nobody
    # Queries meet keys, and weights meet values: over the prompt all with all, later one with all before it and itself.
    pairs = prompt * prompt + sum(range(prompt + 1, tokens + 1))
    return layers * (tokens * projections + 2 * 2 * pairs * wide) + new * 2 * wide * config["vocab_size"]


@pytest.mark.parametrize(("prompt", "new"), [(1, 2), (7, 9), (32, 33)])
def test_a_llama_is_counted_as_by_hand(tmp_path: Path, prompt: int, new: int) -> None:
    artifact = describe(tiny_llama(tmp_path))
    assert count_text(artifact, prompt, new) == by_hand(artifact.config("model"), prompt, new)


def test_it_is_what_generate_runs(tmp_path: Path) -> None:
    artifact = describe(tiny_llama(tmp_path))
    task: Any = open_task(artifact)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        task.generate([list(range(5, 5 + PROMPT_TOKENS))], NEW_TOKENS)
    assert count_text(artifact, PROMPT_TOKENS, NEW_TOKENS) == counter.get_total_flops()


@pytest.mark.parametrize("family", ["mistral", "gemma3", "gpt2", "bloom", "qwen3-moe"])
def test_windows_and_experts_count_as_generate_runs_them(tmp_path: Path, family: str) -> None:
    """Windows of 8 tokens fill on the way, so that the count bends; a token meets two experts of four."""
    artifact = describe(tiny_text(tmp_path, family))
    task: Any = open_task(artifact)
    if family == "qwen3-moe":
        task.model.set_experts_implementation("eager")  # one product an expert, all of which the counter knows
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        task.generate([[5, 6, 7, 8, 9]], 20)
    assert count_text(artifact, 5, 20) == counter.get_total_flops()


@pytest.mark.slow
def test_an_engine_and_a_precision_change_nothing(tmp_path: Path) -> None:
    plain = describe(tiny_llama(tmp_path / "plain"))
    built, _ = apply("build.openvino", plain, tmp_path / "built")
    int8, _ = apply("quantize.nncf", built, tmp_path / "int8")
    half = describe(tiny_text(tmp_path / "half", "qwen2", dtype=torch.bfloat16))
    whole = describe(tiny_text(tmp_path / "whole", "qwen2"))
    assert int8.components["model"].format == "openvino"
    assert measured(plain).values == measured(built).values == measured(int8).values
    assert measured(half).values == measured(whole).values
    assert measured(plain).protocol["counts"] == "multiply-adds count two; precision not counted"


@pytest.mark.parametrize(("first", "last"), [(3, 3), (3, 4), (0, 31), (5, 40), (8, 9)])
def test_a_sum_of_straight_pieces_is_exact(first: int, last: int) -> None:
    asked: list[int] = []

    def count(seen: int) -> int:
        asked.append(seen)
        return 100 + 3 * min(seen, 8) + 5 * min(seen, 21)

    assert add_up(count, first, last) == sum(100 + 3 * min(n, 8) + 5 * min(n, 21) for n in range(first, last + 1))
    asked.clear()
    add_up(count, 30, 3000)
    assert len(asked) == 3


# ---------------------------------------------------------------- images


def on_the_real_pipeline(artifact: Artifact) -> int:
    task: Any = open_task(artifact)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        task.generate([PROMPT], ["0"], 0, num_inference_steps=STEPS)
    return int(counter.get_total_flops())


@pytest.mark.parametrize("name", ["zoo", "tiny", "xl"])
def test_a_pipeline_is_counted_as_it_runs(tmp_path: Path, name: str) -> None:
    folder = zoo_model("digits-diffusion") if name == "zoo" else tiny_diffusion(tmp_path, xl=name == "xl")
    artifact = describe(folder)
    parts = count_image(artifact, Opening("float32"), {"num_inference_steps": STEPS})
    assert set(parts) == set(artifact.working)
    assert sum(parts.values()) == on_the_real_pipeline(artifact)


@pytest.mark.parametrize("family", ["pixart-alpha", "sd3", "flux"])
def test_so_are_transformers_and_encoders_that_are_given_masks(tmp_path: Path, family: str) -> None:
    artifact = describe(tiny_image(tmp_path, family))
    parts = count_image(artifact, Opening(), {"num_inference_steps": STEPS})
    assert sum(parts.values()) == on_the_real_pipeline(artifact)


@pytest.mark.parametrize(
    "kind", ["StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline", "FluxKontextPipeline"]
)
def test_what_is_encoded_counts_too(tmp_path: Path, kind: str) -> None:
    """An input, and what of it a mask leaves; of more steps at a strength, those that run."""
    artifact = describe(tiny_editor(tmp_path, kind))
    parts = count_image(artifact, Opening(), {"num_inference_steps": STEPS})
    assert sum(parts.values()) == on_the_real_pipeline(artifact)


def test_the_denoiser_counts_for_each_step(tmp_path: Path) -> None:
    artifact = describe(tiny_diffusion(tmp_path))
    once, thrice = (count_image(artifact, Opening(), {"num_inference_steps": n}) for n in (1, 3))
    assert thrice["unet"] == 3 * once["unet"]
    assert thrice["vae"] == once["vae"]
    assert thrice["text_encoder"] == once["text_encoder"]


def test_an_engine_of_a_pipeline_counts_as_its_torch_components(tmp_path: Path) -> None:
    plain = describe(tiny_diffusion(tmp_path / "plain"))
    built, _ = apply("build.openvino", plain, tmp_path / "built", components=("text_encoder",))
    assert built.components["text_encoder"].format == "openvino"
    assert measured(built).values == measured(plain).values


def test_a_depth_cut_counts_fewer_and_the_contrast_says_how_many_times(tmp_path: Path) -> None:
    whole = describe(zoo_model("digits-diffusion"))
    cut, _ = apply("prune.depth", whole, tmp_path / "cut", ratio=0.5)
    one, other = measured(whole), measured(cut)
    found = row_of(flops.measure, (one, other), {}, None)
    assert found.contrast.value == pytest.approx(on_the_real_pipeline(whole) / on_the_real_pipeline(cut))
    assert found.contrast.value > 1.2
    assert "unet" in found.candidate.note


# ---------------------------------------------------------------- what cannot be counted


@pytest.mark.parametrize(("family", "why"), [("dynamic-rope", "meta tensors"), ("mamba", "keeps no cache")])
def test_what_shapes_alone_do_not_run_has_no_number_and_says_why(tmp_path: Path, family: str, why: str) -> None:
    assert family in TEXT
    sample = measured(describe(tiny_text(tmp_path, family)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = row_of(flops.measure, (sample, sample), {}, Gate(speedup=2))
    assert np.isnan(found.contrast.value)
    assert found.verdict.status == "inconclusive"
    assert why in found.verdict.why


def test_a_class_that_is_not_there_is_named(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["NoSuchForCausalLM"]}))
    sample = measured(describe(folder))
    assert np.isnan(sample.values).all()
    assert sample.note == "not counted: needs the class transformers.NoSuchForCausalLM, which is not there"

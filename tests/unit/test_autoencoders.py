"""What configs and source tell of a pipeline's autoencoder, compared with the classes and pipelines themselves; what a plan says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

import compress
from compress.algorithms import decoder_losses
from compress.artifact import read_json
from compress.errors import RecipeError
from compress.model.describing import describe
from compress.pipelines.autoencoders import (
    FIELDS,
    Scaling,
    Shape,
    levels_of,
    reads_more,
    scaling_of,
    tiny_config,
    tiny_parameters,
    usual_blocks,
)
from compress.pipelines.index import class_of
from compress.planning.plan import Plan
from evaluation.observe.operations import empty
from tests.fakes import pipeline
from tests.tiny import tiny_diffusion

SIZES = {"unet": {"in_channels": 4, "sample_size": 8}, "vae": {"latent_channels": 4, "block_out_channels": [8, 8]}}


@pytest.fixture
def generator(tmp_path: Path) -> Path:
    """A pipeline of a few bytes whose VAE halves images once."""
    folder = pipeline(tmp_path / "generator")
    for name, config in SIZES.items():
        (folder / name / "config.json").write_text(json.dumps(config))
    return folder


def changed(file: Path, **fields: object) -> None:
    file.write_text(json.dumps({**read_json(file), **fields}))


def of_class(folder: Path, kind: str, **vae: object) -> Path:
    changed(folder / "model_index.json", _class_name=kind)
    changed(folder / "vae" / "config.json", **vae)
    return folder


def planned(model: Path, folder: Path, *stages: Mapping[str, Any]) -> Plan:
    body = {"schema": 1, "name": "small", "model": str(model), "data": {"train": "zoo://digits/train"}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**body, "stages": list(stages)}))
    return compress.plan(folder / "recipe.yaml", cache=folder / "cache")


def refused(model: Path, folder: Path, **params: object) -> str:
    with pytest.raises(RecipeError) as caught:
        planned(model, folder, {"distill.decoder": params})
    return " ".join(f"{problem.message}\n  fix: {problem.fix}" for problem in caught.value.problems)


# ---------------------------------------------------------------- configs


shapes = st.integers(2, 4).flatmap(
    lambda levels: st.builds(
        Shape,
        st.integers(1, 12),
        st.tuples(*[st.integers(0, 2)] * levels),
        st.integers(1, 12),
        st.tuples(*[st.integers(0, 2)] * levels),
    )
)


@given(shapes, st.sampled_from([4, 16]))
def test_a_planned_config_is_the_one_that_diffusers_makes_and_its_parameters_are_counted(
    shape: Shape, channels: int
) -> None:
    from diffusers import AutoencoderTiny

    config = tiny_config({"latent_channels": channels, "block_out_channels": [8] * len(shape.blocks)}, shape)
    with torch.device("meta"):
        made = AutoencoderTiny.from_config(config)
    assert {name: made.config[name] for name in config if name != "_class_name"} == {
        name: value for name, value in config.items() if name != "_class_name"
    }
    assert sum(p.numel() for p in made.parameters()) == tiny_parameters(config)
    assert levels_of(config) == len(shape.blocks)


def test_the_class_has_the_fields_and_the_blocks_that_are_reported_of_it() -> None:
    from diffusers import AutoencoderTiny

    with torch.device("meta"):
        plain = AutoencoderTiny()
    assert set(FIELDS) <= set(plain.config)
    assert usual_blocks(4) == plain.config.num_decoder_blocks == plain.config.num_encoder_blocks[::-1]


# ---------------------------------------------------------------- what pipelines read


@pytest.mark.parametrize(("kind", "lacking"), [
    *[(kind, "") for kind in (
        "StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline", "ChromaPipeline",
        "PixArtAlphaPipeline", "PixArtSigmaPipeline", "SanaPipeline", "HunyuanDiTPipeline", "KolorsPipeline", "AuraFlowPipeline",
        "CogView4Pipeline", "Lumina2Pipeline", "ZImagePipeline",
    )],
    ("QwenImagePipeline", "latents_mean"), ("Flux2Pipeline", "batch_norm_eps"), ("HunyuanImagePipeline", "spatial_compression_ratio"),
])  # fmt: skip
def test_which_pipelines_can_do_with_a_tiny_one(kind: str, lacking: str, generator: Path) -> None:
    import diffusers

    assert hasattr(diffusers, kind)
    found = describe(of_class(generator, kind))
    assert class_of(found.path) == kind
    assert reads_more(found) == lacking


@pytest.mark.parametrize(("kind", "vae", "scaling"), [
    ("StableDiffusionPipeline", {"scaling_factor": 0.5}, Scaling((2.0,), (0.0,))),
    ("StableDiffusionPipeline", {"scaling_factor": 0.5, "shift_factor": 3.0}, Scaling((2.0,), (0.0,))),  # which it does not read
    ("FluxPipeline", {"scaling_factor": 0.5, "shift_factor": 3.0}, Scaling((2.0,), (3.0,))),
    ("FluxPipeline", {"scaling_factor": 0.5, "shift_factor": None}, Scaling((2.0,), (0.0,))),
    ("StableDiffusionXLPipeline", {"scaling_factor": 0.5, "latents_mean": None}, Scaling((2.0,), (0.0,))),
    ("StableDiffusionXLPipeline", {"scaling_factor": 0.5, "latents_mean": [1, 2, 3, 4], "latents_std": [1, 1, 2, 2]},
     Scaling((2.0, 2.0, 4.0, 4.0), (1.0, 2.0, 3.0, 4.0))),
    ("SanaPipeline", {}, Scaling((1.0,), (0.0,))),
])  # fmt: skip
def test_how_a_pipeline_scales_latents(kind: str, vae: Mapping[str, Any], scaling: Scaling, generator: Path) -> None:
    assert scaling_of(describe(of_class(generator, kind, **vae))) == scaling


# ---------------------------------------------------------------- plans


def test_what_is_planned_reaches_the_stages_behind(generator: Path, tmp_path: Path) -> None:
    params = {"width": 8, "blocks": [1, 0], "encoder_width": 4}
    plan = planned(generator, tmp_path, {"distill.decoder": params}, {"build.openvino": {"components": ["vae"]}})
    student, built = plan.nodes
    assert (student.components, built.components) == (("vae",), ("vae",))
    for node, format in ((student, "torch"), (built, "openvino")):
        part = node.expected.components["vae"]
        assert (part.kind, part.format) == ("AutoencoderTiny", format)
        assert node.expected.config("vae")["num_decoder_blocks"] == [1, 0]
    assert student.reported == "0.01 M parameters in place of 0.00 M"
    assert student.forecast["vae"]["scaling_factor"] == 1.0
    assert "unet" not in student.forecast


def test_a_narrowed_vae_goes_on_learning_as_it_was_planned(generator: Path, tmp_path: Path) -> None:
    changed(generator / "vae" / "config.json", block_out_channels=[16, 16], norm_num_groups=8)
    narrow = {"prune.width": {"ratio": 0.5, "components": ["vae"]}}
    cut, student = planned(generator, tmp_path, narrow, {"distill.decoder": {"kind": "own"}}).nodes
    assert cut.forecast == {"vae": {"block_out_channels": [8, 8]}}
    assert (student.forecast, student.inputs) == ({"vae": {}}, {"teacher": "source"})
    assert student.expected.components["vae"].kind == "AutoencoderKL"
    assert student.expected.config("vae")["block_out_channels"] == [8, 8]


def test_its_teacher_has_a_vae_that_is_no_engine(generator: Path, tmp_path: Path) -> None:
    built = {"build.openvino": {"components": ["vae"], "id": "built"}}
    with pytest.raises(RecipeError, match="its teacher `built` is an engine there"):
        planned(generator, tmp_path, built, {"distill.decoder": {"teacher": "built", "from": "source"}})


def test_flops_are_counted_of_what_is_planned(tmp_path: Path) -> None:
    found = describe(tiny_diffusion(tmp_path))
    config = tiny_config(found.config("vae"), Shape(8, (1, 0), 4, (0, 1)))
    becoming = replace(found.becoming({"vae": "AutoencoderTiny"}), planned={"vae": config})
    assert sum(p.numel() for p in empty(becoming, "vae").parameters()) == tiny_parameters(config)


@pytest.mark.parametrize(("params", "message"), [
    ({"blocks": [1, 1, 1]}, "blocks has 3 numbers, and this VAE works at 2 sizes\n  fix: give 2, one for each"),
    ({"encoder_blocks": [1]}, "encoder_blocks has 1 number, and this VAE works at 2 sizes\n  fix: give 2, one for each"),
    ({"kind": "own", "width": 8, "blocks": [1, 1]}, "kind: own keeps the VAE's sizes\n  fix: leave out blocks, width"),
])  # fmt: skip
def test_sizes_that_do_not_fit_are_refused(
    params: dict[str, Any], message: str, generator: Path, tmp_path: Path
) -> None:
    assert message in refused(generator, tmp_path, **params)


def test_a_pipeline_that_reads_more_of_its_vae_is_refused(generator: Path, tmp_path: Path) -> None:
    message = refused(of_class(generator, "QwenImagePipeline"), tmp_path)
    assert "QwenImagePipeline reads `latents_mean` of its VAE, which an AutoencoderTiny does not have" in message


def test_an_autoencoder_of_another_make_is_refused(generator: Path, tmp_path: Path) -> None:
    changed(generator / "model_index.json", vae=["diffusers", "VQModel"])
    assert "its `vae` is a VQModel, and this stage knows AutoencoderKL" in refused(generator, tmp_path)


def test_a_pipeline_without_one_is_refused(generator: Path, tmp_path: Path) -> None:
    changed(generator / "model_index.json", vae=[None, None])
    assert "this model has no component `vae`" in refused(generator, tmp_path)


def test_an_engine_is_refused_where_the_vae_was(generator: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="takes torch, but `vae` is openvino"):
        planned(generator, tmp_path, {"build.openvino": {"components": ["vae"]}}, {"distill.decoder": {}})


def test_a_denoiser_that_is_an_engine_records_as_well(generator: Path, tmp_path: Path) -> None:
    plan = planned(generator, tmp_path, {"build.openvino": {"components": ["unet"]}}, {"distill.decoder": {}})
    assert [node.components for node in plan.nodes] == [("unet",), ("vae",)]
    assert plan.nodes[1].expected.components["unet"].format == "openvino"


# ---------------------------------------------------------------- what is learnt on


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(8, 24),
    st.lists(st.floats(0, 1, exclude_max=True), min_size=2, max_size=2),
    st.integers(1, 3),
)
def test_a_window_lies_within_and_its_judged_part_keeps_away_from_cut_sides(
    rows: int, columns: int, side: int, draws: list[float], scale: int
) -> None:
    window = decoder_losses.draw_window(rows, columns, side, draws)
    numbers = torch.arange(rows * columns).view(rows, columns)
    large = numbers.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
    cut = window.of(numbers, 1)
    assert cut.shape == (min(rows, side), min(columns, side))
    seen = window.judged(cut, 1)
    assert torch.equal(
        window.judged(window.of(large, scale), scale), seen.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
    )
    assert seen.numel() >= cut.numel() * (1 - 2 / decoder_losses.EDGE) ** 2
    if rows <= side and columns <= side:
        assert torch.equal(seen, numbers)
    for edge in (numbers[0], numbers[-1]):  # an edge of the image is judged where the window reaches it
        assert bool(torch.isin(edge, seen).any()) == bool(torch.isin(edge, cut).any())


def test_every_row_and_column_is_drawn_and_judged() -> None:
    seen: set[int] = set()
    numbers = torch.arange(20 * 20).view(20, 20)
    for draw in torch.linspace(0, 0.999, 30).tolist():
        for other in torch.linspace(0, 0.999, 30).tolist():
            window = decoder_losses.draw_window(20, 20, 8, (draw, other))
            seen |= set(window.judged(window.of(numbers, 1), 1).flatten().tolist())
    assert len(seen) == 400


def test_errors_are_nought_of_equals_and_the_ratio_is_the_one_of_skimage() -> None:
    from skimage.metrics import peak_signal_noise_ratio

    random = torch.Generator().manual_seed(0)
    one, other = (torch.rand(2, 3, 8, 8, generator=random) * 2 - 1 for _ in range(2))
    assert decoder_losses.image_errors(one, one) == 0
    expected = [peak_signal_noise_ratio(a.numpy(), b.numpy(), data_range=2) for a, b in zip(one, other, strict=True)]
    assert decoder_losses.peak_ratio(other, one) == pytest.approx(sum(expected) / 2, rel=1e-5)

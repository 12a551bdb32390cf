"""accelerate.step_cache: what each method passes over on each family, and that nothing of one image reaches another."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import compress
from compress.artifact import Artifact
from compress.catalogue import find_stage
from compress.errors import RecipeError, UserError
from compress.machine.devices import AS_STORED
from compress.model.describing import describe
from compress.model.hook_settings import COMPILE, GRAPH, OFFLOAD, STEP_CACHE, hooked, unhookable
from compress.model.step_caches import returned_by, stacks_of
from compress.opening import open_images
from compress.opening.denoising import denoising_of
from compress.opening.hooks import ran_inside
from compress.opening.models import ImageModel
from evaluation.observe.operations import count_image
from tests.families import MODELS
from tests.stages import apply
from tests.unit.test_hooked_models import problems_of

STEPS = 8
CALL = {"num_inference_steps": STEPS}
GROWTH = [1.0, 0.99, 0.98, 0.97, 0.96, 0.95]
REUSING: dict[str, dict[str, Any]] = {
    "deep": {"method": "deep", "interval": 2, "levels": 1},
    "first_block": {"method": "first_block", "threshold": 0.3},
    "taylorseer": {"method": "taylorseer", "interval": 3, "warmup": 2, "order": 1},
    "mag": {"method": "mag", "threshold": 5.0, "skip": 2, "retain": 0.2, "ratios": GROWTH},
}
NEVER: dict[str, dict[str, Any]] = {
    "deep": {"interval": 1},
    "first_block": {"threshold": 0.0},
    "taylorseer": {"interval": 1},
    "mag": {"threshold": 0.0},
}
TRANSFORMERS = ("sd3", "flux", "pixart-alpha", "pixart-sigma")
CASES = [("sd", "deep"), ("sdxl", "deep"), *((f, m) for f in TRANSFORMERS for m in REUSING if m != "deep")]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    names = ("sd", "sdxl", *TRANSFORMERS, "sana")
    return {name: MODELS[name](tmp_path_factory.mktemp(name)) for name in names}


def meant(folder: Path, method: str, **changes: Any) -> Artifact:
    return hooked(describe(folder), STEP_CACHE, (), **{**REUSING[method], **changes})


def latents(opened: Any, *numbers: int, **call: Any) -> torch.Tensor:
    found: torch.Tensor = opened.latents([opened.examples[n] for n in numbers], 0, **{**CALL, **call})
    return found


@contextmanager
def computing(module: torch.nn.Module) -> Iterator[list[str]]:
    """Within: the names of layers that compute, one for each of their calls."""
    called: list[str] = []
    layers = [(n, m) for n, m in module.named_modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)]
    handles = [m.register_forward_pre_hook(lambda *given, name=n: called.append(name)) for n, m in layers]
    try:
        yield called
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize(("family", "method"), CASES)
def test_what_never_reuses_is_the_plain_model_to_the_bit(family: str, method: str, models: Mapping[str, Path]) -> None:
    plain = open_images(describe(models[family]))
    opened = open_images(meant(models[family], method, **NEVER[method]))
    assert torch.equal(latents(opened, 0, 1), latents(plain, 0, 1))
    assert f"0 of {STEPS} calls reused" in ran_inside(opened)
    assert type(opened.stock).__name__ == type(plain.stock).__name__


@pytest.mark.parametrize(("family", "method"), CASES)
def test_parts_are_passed_over_and_images_leave_nothing_to_each_other(
    family: str, method: str, models: Mapping[str, Path]
) -> None:
    plain, opened = open_images(describe(models[family])), open_images(meant(models[family], method))
    main = opened.artifact.main
    with computing(plain.component(main)) as whole:
        without = latents(plain, 0)
    with computing(opened.component(main)) as less:
        first = latents(opened, 0)
    assert len(less) < len(whole)
    assert not torch.equal(first, without)
    torch.testing.assert_close(first, without, rtol=0, atol=0.5 * float(without.std()))
    denoising = denoising_of(opened.component(main))
    assert denoising is not None
    layers = {name for name, _ in opened.component(main).named_modules()}
    assert set().union(*denoising.passed) <= layers
    assert denoising.counted.passed == sum(map(len, denoising.passed)) > 0

    fresh = latents(open_images(meant(models[family], method)), 1)
    assert torch.equal(latents(opened, 1), fresh)  # as if no image had come before
    together = latents(opened, 0, 1)  # as if each were alone
    torch.testing.assert_close(together, torch.cat([first, fresh]), rtol=1e-4, atol=1e-4 * float(without.std()))


@pytest.mark.parametrize("family", ["sd", "pixart-alpha"])
def test_what_breaks_off_leaves_nothing(family: str, models: Mapping[str, Path]) -> None:
    method = "deep" if family == "sd" else "taylorseer"
    opened = open_images(meant(models[family], method))
    want = latents(opened, 0)

    def stop(given: tuple[Any, ...], named: dict[str, Any]) -> None:
        left.append(1)
        if len(left) == 5:
            raise KeyboardInterrupt

    left: list[int] = []
    with pytest.raises(KeyboardInterrupt), opened.watch(opened.artifact.main, stop):
        latents(opened, 1)
    assert "step" not in vars(opened.stock.scheduler)
    assert torch.equal(latents(opened, 0), want)


def test_called_by_itself_a_denoiser_computes_all(models: Mapping[str, Path]) -> None:
    plain, opened = open_images(describe(models["sd"])), open_images(meant(models["sd"], "deep"))
    latents(opened, 0)
    given = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), 7, torch.ones(2, 16, 32)
    for module in (opened.component("unet"), opened.component("unet")):
        found, want = module(*given).sample, plain.component("unet")(*given).sample
        assert torch.equal(found, want)


def test_a_step_like_the_last_gives_the_same_to_the_bit(models: Mapping[str, Path]) -> None:
    """So the levels that run get the very skip connections that are theirs."""
    opened = open_images(meant(models["sd"], "deep"))
    unet = opened.component("unet")
    denoising = denoising_of(unet)
    assert denoising is not None
    given = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), 7, torch.ones(2, 16, 32)
    with torch.no_grad(), denoising.generating(opened.stock, (), {}):
        first = unet(*given).sample
        opened.stock.scheduler.set_timesteps(4)
        opened.stock.scheduler.step(first, opened.stock.scheduler.timesteps[0], given[0])
        again = unet(*given).sample
    assert torch.equal(first, again)
    assert [bool(passed) for passed in denoising.passed] == [False, True]


def test_a_row_that_reuses_beside_one_that_does_not(models: Mapping[str, Path]) -> None:
    """Thresholds between the changes of two images: one runs where the other does not, and each is what it is alone."""
    apart = 0
    for threshold in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6):
        opened = open_images(meant(models["flux"], "first_block", threshold=threshold))
        denoising = denoising_of(opened.component("transformer"))
        assert denoising is not None
        alone, reusing = [], []
        for n in (0, 1, 2):
            alone.append(latents(opened, n))
            reusing.append([bool(passed) for passed in denoising.passed])
        torch.testing.assert_close(latents(opened, 0, 1, 2), torch.cat(alone), rtol=1e-4, atol=1e-4)
        assert [bool(passed) for passed in denoising.passed] == [all(step) for step in zip(*reusing, strict=True)]
        apart += sum(any(step) and not all(step) for step in zip(*reusing, strict=True))
    assert apart > 0


def diffusers_own(folder: Path, hook: Any, config: Any) -> torch.Tensor:
    """What diffusers' own cache gives of one image."""
    opened = open_images(describe(folder))
    hook(opened.component("transformer"), config)
    return latents(opened, 0)


def test_flux_is_what_diffusers_own_caches_make_of_it(models: Mapping[str, Path]) -> None:
    from diffusers.hooks import (
        FirstBlockCacheConfig,
        MagCacheConfig,
        apply_first_block_cache,
        apply_mag_cache,
    )

    first = diffusers_own(models["flux"], apply_first_block_cache, FirstBlockCacheConfig(threshold=0.3))
    torch.testing.assert_close(latents(open_images(meant(models["flux"], "first_block")), 0), first)
    config = MagCacheConfig(
        threshold=5.0, max_skip_steps=2, retention_ratio=0.2, num_inference_steps=STEPS, mag_ratios=GROWTH
    )
    torch.testing.assert_close(
        latents(open_images(meant(models["flux"], "mag")), 0), diffusers_own(models["flux"], apply_mag_cache, config)
    )


def test_the_table_of_blocks_is_diffusers_own() -> None:
    from diffusers.hooks._helpers import TransformerBlockRegistry

    TransformerBlockRegistry._register()
    theirs = {
        kind.__name__: (
            known.return_hidden_states_index,
            known.return_encoder_hidden_states_index,
            known.hidden_states_argument_name,
            known.encoder_hidden_states_argument_name,
        )
        for kind, known in TransformerBlockRegistry._registry.items()
    }
    assert {n: (r.hidden, r.text, r.hidden_name, r.text_name) for n, r in returned_by().items()} == theirs
    assert tuple(stacks_of("FluxTransformer2DModel")) == ("transformer_blocks", "single_transformer_blocks")
    assert isinstance(stacks_of("Flux2Transformer2DModel"), str)


@pytest.mark.parametrize(("family", "method"), [("sd", "deep"), ("sd3", "first_block"), ("flux", "taylorseer")])
def test_operations_are_counted_as_they_ran(family: str, method: str, models: Mapping[str, Path]) -> None:
    artifact = meant(models[family], method)
    main = artifact.main
    reported = count_image(artifact, AS_STORED, CALL)
    assert reported[main] < count_image(describe(models[family]), AS_STORED, CALL)[main]
    opened = open_images(artifact)
    module = opened.component(main)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        opened.shapes_of(["vae"], lambda name, call: None, **CALL)
    others = sum(count for name, count in reported.items() if name != main)
    assert counter.get_total_flops() == reported[main] + others
    assert isinstance(module, torch.nn.Module)


def test_a_loaded_model_keeps_to_it(models: Mapping[str, Path], tmp_path: Path) -> None:
    made, _ = apply(STEP_CACHE, describe(models["sd"]), tmp_path / "made", interval=2)
    (setting,) = made.settings.hook
    assert setting.params == {"method": "deep", "interval": 2, "levels": 1}
    assert made.settings.needs_pare
    pipeline = compress.load(made.path)
    with computing(pipeline.unet) as called:
        pipeline("a red three", output_type="latent", **CALL)
    shallow, deep = called.count("conv_in"), called.count("mid_block.resnets.0.conv1")
    assert (shallow, deep) == (STEPS, STEPS // 2)
    with pytest.raises(UserError, match="the lean call goes through its steps by itself"):
        compress.load(made.path, lean=True)


def test_mag_looks_at_calibration_captions(models: Mapping[str, Path], tmp_path: Path) -> None:
    flux = describe(models["flux"]).calling(num_inference_steps=5)
    made, notes = apply(STEP_CACHE, flux, tmp_path / "made", method="mag", captions=2, threshold=9.0, retain=0.0)
    ratios = made.settings.hook[0].params["ratios"]
    assert len(ratios) == 5
    assert ratios[0] == 1.0
    assert notes[0].facts["ratios"] == ratios
    opened = open_images(made)
    latents(opened, 0)
    assert "calls reused" in ran_inside(opened)
    again, _ = apply(STEP_CACHE, flux, tmp_path / "again", method="mag", captions=2, threshold=9.0, retain=0.0)
    assert again.settings == made.settings


def refused(artifact: Artifact, **params: Any) -> str:
    stage = find_stage(STEP_CACHE)
    return stage.refuse(artifact, stage.params(**params))


def test_what_has_no_such_parts_is_refused(models: Mapping[str, Path], tmp_path: Path) -> None:
    of = {name: describe(path) for name, path in models.items()}
    assert "SanaTransformerBlock" in refused(of["sana"])
    assert "deep passes over the inner levels of a UNet" in (why := refused(of["flux"], method="deep"))
    assert why.fix == "method: first_block"  # type: ignore[attr-defined]
    assert "is a UNet" in (why := refused(of["sd"], method="mag"))
    assert why.fix == "method: deep"  # type: ignore[attr-defined]
    assert "has 2 levels, and levels: 2 leaves none" in refused(of["sdxl"], levels=2)
    assert "method deep has no use for threshold" in refused(of["sd"], threshold=0.1)
    assert "one step" in refused(of["sd"].calling(num_inference_steps=1))
    assert refused(of["sd"], interval=1) == refused(of["sd3"], method="taylorseer", interval=1)
    assert refused(of["sd"], interval=1) == "interval: 1 reuses nothing"
    assert refused(of["sd3"], threshold=0) == refused(of["sd3"], method="mag", threshold=0)
    assert refused(of["sd3"], threshold=0) == "threshold: 0 reuses nothing"
    narrow = models["flux"].parent / "narrow"
    config = json.loads((models["flux"] / "transformer/config.json").read_text())
    alone = Artifact(
        narrow, "text_to_image", of["flux"].components, planned={"transformer": {**config, "num_single_layers": 0}}
    )
    assert "a single block" in refused(alone)
    for family in ("sd", "sdxl", *TRANSFORMERS):
        assert refused(of[family]) == ""


def test_a_student_of_few_steps_has_nothing_to_reuse(models: Mapping[str, Path], tmp_path: Path) -> None:
    steps = [{"distill.steps": {"steps": 2, "guidance": 3.0, "updates": 3}}, {STEP_CACHE: {}}]
    body = {
        "schema": 1,
        "name": "x",
        "model": str(models["sd"]),
        "stages": steps,
        "data": {"train": "zoo://digits/train"},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(body))
    with pytest.raises(RecipeError, match="there is nothing to reuse"):
        compress.check(tmp_path / "recipe.yaml", cache=tmp_path / "cache")


@pytest.mark.parametrize("other", [GRAPH, OFFLOAD])
def test_what_does_not_go_with_it(other: str, models: Mapping[str, Path], tmp_path: Path) -> None:
    for steps in ([{STEP_CACHE: {}}, {other: {}}], [{other: {}}, {STEP_CACHE: {}}]):
        assert any(
            STEP_CACHE in one.message and other in one.message for one in problems_of(models["sd"], steps, tmp_path)
        )


def test_chains_that_cannot_hold_together(models: Mapping[str, Path], tmp_path: Path) -> None:
    sd, flux = models["sd"], models["flux"]
    assert problems_of(sd, [{STEP_CACHE: {}}, {COMPILE: {}}], tmp_path) == ()
    assert problems_of(sd, [{COMPILE: {}}, {STEP_CACHE: {}}], tmp_path) == ()
    assert "would be compiled anew" in problems_of(flux, [{COMPILE: {}}, {STEP_CACHE: {}}], tmp_path)[0].message
    assert "would be compiled anew" in problems_of(flux, [{STEP_CACHE: {}}, {COMPILE: {}}], tmp_path)[0].message
    (problem,) = problems_of(sd, [{STEP_CACHE: {}}, {"accelerate.call": {}}], tmp_path, device="cpu")
    assert "the lean call goes through its steps by itself" in problem.message
    (problem,) = problems_of(sd, [{"accelerate.call": {}}, {STEP_CACHE: {}}], tmp_path, device="cpu")
    assert "the lean call goes through its steps by itself" in problem.message
    (problem,) = problems_of(sd, [{STEP_CACHE: {}}, {"build.openvino": {}}], tmp_path, device="cpu")
    assert f"{STEP_CACHE} hooks the modules of `unet`, and the engine" in problem.message
    (problem,) = problems_of(sd, [{"build.openvino": {}}, {STEP_CACHE: {}}], tmp_path, device="cpu")
    assert f"{STEP_CACHE} takes torch, but `unet` is openvino" in problem.message
    (problem,) = problems_of(sd, [{STEP_CACHE: {}}, {"prune.width": {"ratio": 0.5}}], tmp_path)
    assert f"put {STEP_CACHE} behind prune.width" in problem.fix
    assert "already" in unhookable(meant(sd, "deep"), STEP_CACHE, method="deep")


def test_a_forecast_tells_what_is_lossy(models: Mapping[str, Path]) -> None:
    stage, exact = find_stage(STEP_CACHE), find_stage(COMPILE)
    artifact = describe(models["sd"])
    assert "(lossy); that needs pare" in stage.forecast(artifact, stage.params()).reported
    assert "(exact); that needs pare" in exact.forecast(artifact, exact.params()).reported


def test_other_inputs_of_a_call_are_computed_whole(models: Mapping[str, Path]) -> None:
    """As a ControlNet's, which levels that are passed over would have to take in."""
    opened: ImageModel = open_images(meant(models["sd"], "deep"))
    unet = opened.component("unet")
    denoising = denoising_of(unet)
    assert denoising is not None
    sample, text = torch.ones(2, 4, 8, 8), torch.ones(2, 16, 32)
    with torch.no_grad(), denoising.generating(opened.stock, (), {}):
        opened.stock.scheduler.set_timesteps(4)
        unet(sample, 7, text)
        opened.stock.scheduler.step(sample, opened.stock.scheduler.timesteps[0], sample)
        unet(sample, 7, text, down_intrablock_additional_residuals=[])
    assert [bool(passed) for passed in denoising.passed] == [False, False]

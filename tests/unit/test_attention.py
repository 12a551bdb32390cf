"""accelerate.attention: what it tries, what it leaves, and that what is named computes what the model did."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from compress.artifact import Artifact
from compress.catalogue import find_stage
from compress.errors import StageFailed
from compress.model.attention_backends import candidates
from compress.model.describing import describe
from compress.model.hook_settings import ATTENTION, COMPILE, GRAPH, OFFLOAD, hooked
from compress.opening import open_images, open_language
from compress.opening.attention import attend, attended, attending
from compress.opening.hooks import ran_inside
from tests.families import MODELS
from tests.graphs import pretended
from tests.stages import apply
from tests.unit.test_hooked_models import problems_of

CALL = {"num_inference_steps": 2}
FAMILIES = ("sd", "sdxl", "sd3", "flux", "pixart-alpha", "sana", "llama")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Artifact]:
    return {name: describe(MODELS[name](tmp_path_factory.mktemp(name))) for name in FAMILIES}


def kernels_of(module: Any, *args: Any, **call: Any) -> set[str]:
    """Which of torch's operations compute attention in a call."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Hearing(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found.add(str(func))
            return func(*args, **(kwargs or {}))

    found: set[str] = set()
    with torch.no_grad(), Hearing():
        module(*args, **call)
    return {name for name in found if "attention" in name or "softmax" in name}


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "llama"])
def test_a_named_kernel_computes_the_same_images(family: str, models: Mapping[str, Artifact]) -> None:
    plain = open_images(models[family])
    want = plain.latents(plain.examples[:2], 0, **CALL)
    for backend in ("math", "flash"):
        opened = open_images(hooked(models[family], ATTENTION, (), backend=backend))
        found = opened.latents(opened.examples[:2], 0, **CALL)
        torch.testing.assert_close(found, want, rtol=1e-3, atol=1e-3 * float(want.std()))
        assert f"attention by {backend}" in ran_inside(opened)
    unet = opened.component(models[family].main)
    with attending(unet, "math"):
        assert attended(unet) == "attention by math"
    assert "forward" in vars(unet)  # the kernel that it was opened with


def test_the_kernel_is_the_one_that_was_named(models: Mapping[str, Artifact]) -> None:
    given = torch.zeros(1, 4, 8, 8), 7, torch.zeros(1, 16, 32)
    unet = open_images(models["sd"]).component("unet")
    with attending(unet, "math"):
        assert not any("flash" in name for name in kernels_of(unet, *given))
    with attending(unet, "flash"):
        assert any("flash" in name for name in kernels_of(unet, *given))
    assert "forward" not in vars(unet)


def test_a_writer_writes_the_same(models: Mapping[str, Artifact]) -> None:
    plain = open_language(models["llama"])
    opened = open_language(hooked(models["llama"], ATTENTION, (), backend="math"))
    prompts = [plain.encode("The array"), plain.encode("A function of")]
    assert opened.generate(prompts, 8) == plain.generate(prompts, 8)
    np.testing.assert_allclose(
        opened.token_logprobs(["A value."], 1)[0], plain.token_logprobs(["A value."], 1)[0], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("family", ["sd", "llama"])
def test_the_fastest_is_looked_for_by_calls(family: str, models: Mapping[str, Artifact], tmp_path: Path) -> None:
    _, (note,) = apply(ATTENTION, models[family], tmp_path / "made")
    assert set(note.facts["milliseconds"]) == {"native", "math", "flash"}
    assert note.facts["chosen"] in note.facts["milliseconds"]
    with (
        mock.patch("compress.building.racing.undecided", return_value=("math",)),
        mock.patch("compress.building.racing.fastest", return_value="math"),
    ):
        made, _ = apply(ATTENTION, models[family], tmp_path / "math")
    assert made.settings.hook[0].params == {"backend": "math"}
    with mock.patch("compress.building.racing.undecided", return_value=("native", "math")):
        made, _ = apply(ATTENTION, models[family], tmp_path / "native")
    assert made.settings == models[family].settings  # stock libraries open it as it was


def test_what_is_named_is_tried_first(models: Mapping[str, Artifact], tmp_path: Path) -> None:
    made, _ = apply(ATTENTION, models["sd"], tmp_path / "made", backend="flash")
    assert made.settings.hook[0].params == {"backend": "flash"}
    stage = find_stage(ATTENTION)
    with pytest.raises(StageFailed, match="attention by cudnn: "), pretending_able():
        apply(ATTENTION, models["sd"], tmp_path / "cudnn", backend="cudnn")
    assert stage.refuse(made, stage.params(backend="flash")) != ""


def pretending_able() -> Any:
    """No kernel for GPUs is left out here: torch says itself that it has none."""
    return mock.patch("compress.opening.attention.on_gpus_alone", return_value=False)


def test_a_model_that_computes_attention_by_itself_takes_no_kernel(
    models: Mapping[str, Artifact], tmp_path: Path
) -> None:
    folder = MODELS["llama"](tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "attn_implementation": "eager"}))
    with pytest.raises(StageFailed, match="attention by flash: LlamaForCausalLM computes attention by itself"):
        apply(ATTENTION, describe(folder), tmp_path / "made", backend="flash")
    found, recorded = apply(ATTENTION, describe(folder), tmp_path / "fastest")
    assert not found.settings.hook
    assert {"math", "flash"} <= recorded[-1].facts["left_out"].keys()


def test_what_gives_other_numbers_is_left_out(models: Mapping[str, Artifact], tmp_path: Path) -> None:
    def wrong(module: Any, backend: str) -> None:
        attend(module, backend)
        if backend == "math":
            right = vars(module)["forward"]
            vars(module)["forward"] = lambda *args, **named: tuple(2 * one for one in right(*args, **named))

    with mock.patch("compress.opening.attention.attend", wrong):
        _, (note,) = apply(ATTENTION, models["sd"], tmp_path / "made")
    assert "it gives other numbers, by 100" in note.facts["left_out"]["math"]


def test_a_kernel_for_gpus_is_refused_or_left_out_elsewhere(models: Mapping[str, Artifact], tmp_path: Path) -> None:
    sd = models["sd"]
    (problem,) = problems_of(sd.path, [{ATTENTION: {"backend": "cudnn"}}], tmp_path, device="cpu")
    assert "attention by cudnn has kernels for NVIDIA GPUs, and the device is cpu" in problem.message
    assert problems_of(sd.path, [{ATTENTION: {"backend": "cudnn"}}], tmp_path) == ()
    with pytest.warns(UserWarning, match="runs without attention by cudnn, which has kernels for GPUs alone"):
        opened = open_images(hooked(sd, ATTENTION, (), backend="cudnn"))
    opened.latents(opened.examples[:1], 0, **CALL)
    assert candidates(sd, "cpu") == ("native", "math", "flash")
    assert candidates(sd, "cuda") == ("native", "math", "flash", "efficient", "cudnn")


def test_packages_are_named_where_they_lack(models: Mapping[str, Artifact]) -> None:
    stage = find_stage(ATTENTION)

    def refused(family: str, backend: str) -> str:
        return stage.refuse(models[family], stage.params(backend=backend))

    with mock.patch("compress.machine.deps.installed", return_value=False):
        assert refused("flux", "sage") == "sageattention is not installed"
        assert refused("llama", "flash_attn") == "flash-attn is not installed"
    with mock.patch("compress.machine.deps.installed", return_value=True):
        assert refused("flux", "sage") == refused("flux", "flash_attn") == refused("llama", "flash_attn") == ""
        assert "LlamaForCausalLM has no way to compute attention by sageattention" in refused("llama", "sage")
        assert "UNet2DConditionModel has no way to compute attention by flash-attn" in refused("sd", "flash_attn")
        assert candidates(models["flux"], "cuda")[-1] == "flash_attn"
    reported = stage.forecast(models["flux"], stage.params(backend="sage")).reported
    assert "lossy" in reported


def test_packages_are_set_as_libraries_take_them_and_for_one_model(models: Mapping[str, Artifact]) -> None:
    from diffusers.models import attention_dispatch

    flux, llama = open_images(models["flux"]).component("transformer"), open_language(models["llama"]).model
    with mock.patch.object(type(llama), "set_attn_implementation") as asked, pretending_able():
        attend(llama, "flash_attn")
    assert asked.call_args.args == ("flash_attention_2",)
    active = attention_dispatch._AttentionBackendRegistry
    during: list[str] = []
    vars(flux)["forward"] = lambda: during.append(str(active._active_backend.value))
    with mock.patch.object(attention_dispatch, "_check_attention_backend_requirements"), pretending_able():
        attend(flux, "flash_attn")
        flux()
    assert during == ["flash"]
    assert active._active_backend.value == "native"  # of the baseline beside it
    assert attended(flux) == "attention by flash_attn"


def test_it_goes_with_what_stands_around_it(models: Mapping[str, Artifact], tmp_path: Path) -> None:
    sd = models["sd"]
    for steps in ([{ATTENTION: {}}, {COMPILE: {}}, {GRAPH: {}}], [{"accelerate.step_cache": {}}, {ATTENTION: {}}]):
        assert problems_of(sd.path, steps, tmp_path) == ()
    (problem,) = problems_of(sd.path, [{ATTENTION: {"backend": "math"}}, {OFFLOAD: {}}], tmp_path)
    assert "is not tried with other than weights that stay" in problem.message
    with pretended(), mock.patch("compress.model.hook_settings.kind_of", return_value="cuda"):
        opened = open_images(hooked(hooked(sd, ATTENTION, (), backend="math"), GRAPH))
        opened.latents(opened.examples[:1], 0, **CALL)
        assert "attention by math; 2 calls from 1 CUDA graphs, 0 eager" in ran_inside(opened)


@pytest.mark.parametrize(
    ("behind", "message"),
    [
        ({"prune.width": {"ratio": 0.25}}, "hooks the modules of `unet`, which prune.width changes"),
        ({"build.openvino": {}}, "hooks the modules of `unet`, and the engine that build.openvino makes has none"),
        ({ATTENTION: {}}, "the model has accelerate.attention already"),
        ({OFFLOAD: {}}, "is not tried with other than weights that stay"),
    ],
)
def test_what_goes_with_no_hook_is_refused_behind_each_choice_that_may_leave_one(
    behind: dict[str, Any], message: str, models: Mapping[str, Artifact], tmp_path: Path
) -> None:
    device = "cpu" if "build.openvino" in behind else "cuda:0"
    for backend, refused in (("fastest", True), ("math", True), ("native", False)):
        steps = [{ATTENTION: {"backend": backend}}, behind]
        problems = problems_of(models["sd"].path, steps, tmp_path, device=device)
        assert any(message in one.message for one in problems) == refused, problems


def test_torchs_own_choice_named_leaves_the_model_as_it_was(models: Mapping[str, Artifact], tmp_path: Path) -> None:
    made, _ = apply(ATTENTION, models["sd"], tmp_path / "made", backend="native")
    stage = find_stage(ATTENTION)
    assert stage.forecast(models["sd"], stage.params(backend="native")).settings is None
    assert made.settings == models["sd"].settings

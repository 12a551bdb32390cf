"""Cuts in width and depth on the model families users really have: what comes of one opens with the plain library, has the
shapes that its config says, and still generates or writes; what cannot be cut is refused before anything runs."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compress.artifact import LANGUAGE_MODEL, Artifact
from compress.catalogue import find_stage
from compress.engines.torch.runtime import find_class, silent_libraries, stored_dtype
from compress.errors import UserError
from compress.files.hashing import digest_files
from compress.model.describing import describe
from compress.opening import open_task
from compress.opening.text_to_image import noise_source
from tests.families import MODELS, tiny_text
from tests.stages import CAPTIONS, DATA, apply, forecast
from tests.tiny import tiny_diffusion, tiny_llama

STAGES = ("prune.width", "prune.depth")
FEW = {"prune.width": {}, "prune.depth": {"samples": 2}}
COMMON = ("llama", "qwen2", "gpt2", "olmo2", "gpt-oss", "sd", "sd-text", "sd-vae", "flux-deep")
FAMILIES = ("llama", "qwen2", "qwen3", "granite", "olmo2", "smollm3", "cohere", "cohere2", "mixtral", "gpt-oss", "qwen3-moe", "gpt2", "opt", "bert", "phi3", "gemma2", "sd", "sd-text", "sd-vae", "sdxl", "sdxl-text", "pixart-sigma", "sd3", "sd3-vae", "flux-deep", "sana")  # fmt: skip
NO_WIDTH = "has no field for its feed-forward width, and heads make its hidden size"
NO_DEPTH = "has no block that its config can do without"
REFUSED = {
    ("pixart-sigma", "prune.width"): f"ffn: PixArtTransformer2DModel {NO_WIDTH}",
    ("sd3", "prune.width"): f"ffn: SD3Transformer2DModel {NO_WIDTH}",
    ("flux-deep", "prune.width"): f"ffn: FluxTransformer2DModel {NO_WIDTH}",
    ("sd-vae", "prune.depth"): f"AutoencoderKL {NO_DEPTH}",
    ("sd3-vae", "prune.depth"): f"AutoencoderKL {NO_DEPTH}",
}
GRANTED = {
    "prune.width": {
        **dict.fromkeys(("bert", "phi3", "sd-text", "sdxl-text"), "intermediate_size 64 → 32 (−50.0%)"),
        **dict.fromkeys(
            (
                "llama",
                "qwen2",
                "qwen3",
                "gemma2",
                "granite",
                "olmo2",
                "smollm3",
                "cohere",
                "cohere2",
                "mixtral",
                "gpt-oss",
            ),
            "intermediate_size 64 → 32 (−50.0%), num_key_value_heads 2 → 1 (−50.0%), num_attention_heads 4 → 2 (−50.0%)",
        ),
        **dict.fromkeys(
            ("sd", "sdxl"), "block_out_channels[0] 32 → 16 (−50.0%), block_out_channels[1] 64 → 32 (−50.0%)"
        ),
        **dict.fromkeys(
            ("sd-vae", "sd3-vae"), "block_out_channels[0] 16 → 8 (−50.0%), block_out_channels[1] 16 → 8 (−50.0%)"
        ),
        "qwen3-moe": "moe_intermediate_size 32 → 16 (−50.0%), num_key_value_heads 2 → 1 (−50.0%), num_attention_heads 4 → 2 (−50.0%)",
        "gpt2": "n_inner 128 → 64 (−50.0%)",
        "opt": "ffn_dim 64 → 32 (−50.0%)",
        "sana": "mlp_ratio × hidden size 80 → 40 (−50.0%)",
    },
    "prune.depth": {
        **dict.fromkeys(FAMILIES, "num_hidden_layers 2 → 1 (−50.0%)"),
        **dict.fromkeys(("sd", "sdxl"), "blocks 12 → 6 (−50.0%)"),
        **dict.fromkeys(("pixart-sigma", "sd3", "sana"), "num_layers 2 → 1 (−50.0%)"),
        "flux-deep": "num_layers 2 → 1 (−50.0%), num_single_layers 2 → 1 (−50.0%)",
        "gpt2": "n_layer 2 → 1 (−50.0%)",
    },
}


@dataclass(frozen=True)
class Family:
    """A source model, and which of its components is cut."""

    name: str
    source: Artifact
    component: str

    @property
    def chosen(self) -> dict[str, Any]:
        return {} if self.component == self.source.main else {"components": (self.component,)}


@pytest.fixture(
    scope="module", params=[n if n in COMMON else pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES]
)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    name = request.param
    source = describe(MODELS[name.removesuffix("-text").removesuffix("-vae")](tmp_path_factory.mktemp(name)))
    if source.task == "text_to_image":
        source = source.calling(num_inference_steps=2)
    parts = {"sd-text": "text_encoder", "sdxl-text": "text_encoder_2", "sd-vae": "vae", "sd3-vae": "vae"}
    return Family(name, source, parts.get(name, source.main))


def open_plain(artifact: Artifact, component: str) -> torch.nn.Module:
    """A component as its library opens it, which must find every weight it looks for, and no other."""
    library = "transformers"
    if component != LANGUAGE_MODEL:
        library = json.loads((artifact.path / "model_index.json").read_text())[component][0]
    kind = find_class(library, artifact.components[component].kind, artifact.path)
    with silent_libraries():
        module, reported = kind.from_pretrained(str(artifact.folder(component)), output_loading_info=True)
    assert not any(reported[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    found: torch.nn.Module = module
    return found


def generate_plainly(artifact: Artifact) -> Any:
    import diffusers

    with silent_libraries():
        pipeline = diffusers.DiffusionPipeline.from_pretrained(str(artifact.path))
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        list(CAPTIONS), generator=[noise_source(0, n) for n in CAPTIONS], output_type="np", **artifact.settings.call
    ).images
    return np.round(np.clip(images, 0, 1) * 255).astype(np.uint8)


@pytest.mark.parametrize("name", STAGES)
def test_a_cut_opens_with_the_plain_library_or_is_refused(model: Family, tmp_path: Path, name: str) -> None:
    if why := REFUSED.get((model.name, name)):
        with pytest.raises(UserError) as caught:
            forecast(name, model.source, ratio=0.5, **model.chosen)
        (instead,) = set(STAGES) - {name}
        assert (caught.value.problems[0].message, caught.value.problems[0].fix) == (why, f"use {instead}")
        return
    before = digest_files(model.source.path)
    seen = forecast(name, model.source, ratio=0.5, **model.chosen)
    assert seen.reported == f"{model.component}: requested −50.0%, granted {GRANTED[name][model.name]}"
    made, notes = apply(name, model.source, tmp_path / "out", ratio=0.5, **model.chosen, **FEW[name])
    made = made.calling(**model.source.settings.call)
    assert digest_files(model.source.path) == before
    assert notes[-1].facts["granted"] in seen.reported
    config = made.config(model.component)
    open_still = seen.unsettled.get(model.component, frozenset())  # which layers go is for the work to say
    changed = {
        k: v
        for k, v in seen.configs[model.component].items()
        if k not in open_still and v != model.source.config(model.component).get(k)
    }
    assert {k: config.get(k) for k in changed} == changed
    module, whole = open_plain(made, model.component), open_plain(model.source, model.component)
    counts = [sum(p.numel() for p in m.parameters()) for m in (module, whole)]
    assert notes[-1].facts["parameters_kept"] == counts[0] / counts[1] < 0.95
    if model.source.task == "text_to_image":
        images = generate_plainly(made)
        task: Any = open_task(made)
        assert np.array_equal(images, task.generate(CAPTIONS, CAPTIONS, 0))
        assert images.std() > 5
        assert not np.array_equal(images, generate_plainly(model.source))
    else:
        logits = module(input_ids=torch.tensor([[5, 9, 30, 2]]), use_cache=False).logits
        assert logits.isfinite().all()
        assert logits.std(1).max() > 0.1  # what it says depends on what it reads
        generated = module.generate(torch.tensor([[5, 9, 30]]), max_new_tokens=6, min_new_tokens=6, do_sample=False)  # type: ignore[operator]
        assert generated.shape == (1, 9)


def test_a_width_cut_keeps_what_is_worth_most(tmp_path: Path) -> None:
    source = describe(tiny_llama(tmp_path / "model"))
    made, _ = apply("prune.width", source, tmp_path / "out", ratio=0.5, parts=("ffn",))
    before, after = (open_plain(a, LANGUAGE_MODEL).state_dict() for a in (source, made))
    layer = "model.layers.1.mlp"
    names = [f"{layer}.{n}_proj.weight" for n in ("gate", "up", "down")]
    worth = [before[n].float().square().sum(int("down" not in n)) for n in names]
    kept = sum(w / w.mean() for w in worth).topk(32).indices.sort().values  # type: ignore[union-attr]
    assert torch.equal(after[names[0]], before[names[0]][kept])
    assert torch.equal(after[names[2]], before[names[2]][:, kept])


@pytest.mark.parametrize(
    ("kind", "importance"),
    [
        ("llama", "taylor"),
        ("llama", "activation"),
        ("sd", "taylor"),
        pytest.param("sd", "activation", marks=pytest.mark.slow),
    ],
)
def test_importance_looks_at_calibration_data(tmp_path: Path, kind: str, importance: str) -> None:
    source = describe(MODELS[kind](tmp_path / "model"))
    if kind == "sd":
        source = source.calling(num_inference_steps=2)
    stage = find_stage("prune.width")
    assert stage.data(stage.params(importance=importance)) == ("calibration",)
    weights = []
    for number, options in enumerate(({}, {"importance": importance}, {"importance": importance})):
        made, _ = apply("prune.width", source, tmp_path / str(number), ratio=0.5, samples=2, **options)
        weights.append(open_plain(made, made.main).state_dict())
    assert any(not torch.equal(weights[0][n], weights[1][n]) for n in weights[0])
    assert all(torch.equal(weights[1][n], weights[2][n]) for n in weights[1])


def test_a_depth_cut_takes_out_the_block_that_does_nothing(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    path = tiny_llama(tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(path)
    layer = loaded.model.layers[0]
    for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
        linear.weight.data.zero_()
    loaded.save_pretrained(path)
    source = describe(path)
    made, notes = apply("prune.depth", source, tmp_path / "out", ratio=0.5, samples=2)
    assert notes[0].facts["removed"] == "model.layers.0"
    message = [np.concatenate(open_task(a).token_logprobs(CAPTIONS, 1)) for a in (source, made)]  # type: ignore[union-attr]
    np.testing.assert_allclose(message[0], message[1], atol=1e-5)


@pytest.mark.parametrize("name", STAGES)
def test_number_type_and_generation_settings_stay_as_they_were(tmp_path: Path, name: str) -> None:
    path = tiny_text(tmp_path / "model", "qwen2", dtype=torch.bfloat16)
    reported = {"do_sample": True, "temperature": 0.6, "eos_token_id": [1, 5]}
    (path / "generation_config.json").write_text(json.dumps(reported))
    made, _ = apply(name, describe(path), tmp_path / "out", ratio=0.5, **FEW[name])
    assert stored_dtype(made.path) == torch.bfloat16
    assert made.config(LANGUAGE_MODEL)["dtype"] == "bfloat16"
    assert json.loads((made.path / "generation_config.json").read_text()) == reported
    assert open_plain(made, LANGUAGE_MODEL).generation_config.eos_token_id == [1, 5]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "family", ["llama", "gpt2", *[pytest.param(n, marks=pytest.mark.slow) for n in ("opt", "bert", "gemma2")]]
)
def test_hidden_size_heads_and_neurons_may_go_together(tmp_path: Path, family: str) -> None:
    source = describe(MODELS[family](tmp_path / "model"))
    parts = ("ffn", "heads", "hidden") if family in ("llama", "gemma2") else ("ffn", "hidden")
    made, _ = apply("prune.width", source, tmp_path / "out", ratio=0.5, parts=parts)
    module = open_plain(made, LANGUAGE_MODEL)
    assert module.get_input_embeddings().weight.shape[1] == 16  # type: ignore[operator]
    logits = module(input_ids=torch.tensor([[5, 9, 30, 2]]), use_cache=False).logits
    assert logits.isfinite().all()
    assert logits.std(1).max() > 0.05


def test_cuts_follow_one_another_and_are_forecast_from_what_will_be(tmp_path: Path) -> None:
    source = describe(tiny_llama(tmp_path / "model"))
    seen = forecast("prune.width", source, ratio=0.5, parts=("ffn",))
    planned = forecast("prune.width", replace(source, planned=seen.configs), ratio=0.5, parts=("ffn",))
    once, _ = apply("prune.width", source, tmp_path / "once", ratio=0.5, parts=("ffn",))
    twice, notes = apply("prune.width", once, tmp_path / "twice", ratio=0.5, parts=("ffn",))
    assert notes[0].facts["granted"] == planned.reported.removeprefix("model: ")
    assert twice.config(LANGUAGE_MODEL)["intermediate_size"] == 16


@pytest.mark.parametrize(
    ("family", "name", "words"),
    [
        ("mamba", "prune.width", "models of the class MambaForCausalLM cannot be cut"),
        ("mamba", "prune.depth", "and the class works out layer_types from its blocks' numbers"),
        ("bloom", "prune.width", "ffn: BloomForCausalLM is no class whose widths pare knows"),
    ],
)
def test_a_family_that_is_not_known_is_refused(tmp_path: Path, family: str, name: str, words: str) -> None:
    source = describe(tiny_text(tmp_path / "model", family))
    with pytest.raises(UserError, match=words):
        forecast(name, source, ratio=0.5)


@pytest.mark.parametrize("stop", [1, 3, None])
def test_recording_leaves_its_listeners_gradients_as_they_were(tmp_path: Path, stop: int | None) -> None:
    task: Any = open_task(describe(tiny_diffusion(tmp_path)))
    with torch.no_grad():
        for _, call in itertools.islice(
            task.calls_of(("unet",), DATA.first(2), 0, num_inference_steps=2, batch=1), stop
        ):
            assert not torch.is_grad_enabled()
            assert not call["sample"].is_inference()  # gradients may flow through it
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("family", ["mistral", "qwen3", "gemma2", "gemma2-tied"])
def test_a_cut_of_channels_that_hold_nothing_changes_nothing(family: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    name, tied = family.removesuffix("-tied"), family.endswith("-tied")
    size = {"hidden_size": 64, "num_attention_heads": 4, "head_dim": 8, "tie_word_embeddings": tied}
    model = AutoModelForCausalLM.from_pretrained(tiny_text(tmp_path / "small", name, **size))
    with torch.no_grad():
        model.get_input_embeddings().weight[:, 32:] = 0
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[32:] = 0
            layer.mlp.down_proj.weight[32:] = 0
    tiny_text(tmp_path / "dead", name, **size)
    model.save_pretrained(tmp_path / "dead")
    made, _ = apply("prune.width", describe(tmp_path / "dead"), tmp_path / "cut", ratio=0.5, parts=("hidden",))
    narrow = AutoModelForCausalLM.from_pretrained(made.path)
    assert narrow.config.hidden_size == 32
    tokens = torch.arange(40).view(2, 20) + 5
    with torch.no_grad():
        before, after = (m(tokens).logits.float().log_softmax(-1) for m in (model, narrow))
    assert float((before.exp() * (before - after)).sum(-1).mean()) < 1e-5


def test_a_cut_level_beside_one_that_stays_whole_is_cut_right(tmp_path: Path) -> None:
    """A level of 64 channels that only halves can go from, for its norms have 32 groups, beside one of 128 that loses an eighth."""
    from diffusers import UNet2DConditionModel

    source = describe(tiny_diffusion(tmp_path / "sd"))
    wide = UNet2DConditionModel.from_config(
        {**source.config("unet"), "block_out_channels": [64, 128], "norm_num_groups": 16, "attention_head_dim": 8}
    )
    wide.save_pretrained(source.folder("unet"))
    made, _ = apply("prune.width", describe(source.path), tmp_path / "cut", ratio=0.12)
    assert made.config("unet")["block_out_channels"] == [64, 112]
    assert open_task(made).component("unet") is not None

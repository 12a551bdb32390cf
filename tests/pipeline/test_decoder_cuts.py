"""Cuts of many decoder families: what plain transformers opens gives what the cut module gave, each block keeps its kind, and a cut
model is taught."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from compress.algorithms.block_importance import off_without
from compress.artifact import LANGUAGE_MODEL, Artifact, read_json
from compress.engines.torch import runtime
from compress.errors import StageFailed, UserError
from compress.model.describing import describe
from tests.families import _MODERN, TEXT, tiny_text
from tests.stages import apply, forecast

TOKENS = torch.arange(40).view(2, 20) + 5
DENSE = ("granite", "olmo2", "smollm3", "cohere", "cohere2")
MIXTURES = ("mixtral", "qwen3-moe", "gpt-oss")
QUICK = ("olmo2", "gpt-oss")


def slow_but(quick: tuple[str, ...], names: tuple[str, ...]) -> list[Any]:
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


def logits(module: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = module(input_ids=TOKENS, use_cache=False).logits
    return found


def plain(path: Path) -> Any:
    """A model as transformers opens it, which must find every weight it looks for, and no other."""
    from transformers import AutoModelForCausalLM

    model, told = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


@contextmanager
def answers_when_saved() -> Iterator[list[torch.Tensor]]:
    """What each module gives as it is saved."""
    seen: list[torch.Tensor] = []
    save = runtime.save_component

    def saving(module: torch.nn.Module, before: Path, folder: Path, **how: Any) -> None:
        seen.append(logits(module))
        save(module, before, folder, **how)

    with mock.patch.object(runtime, "save_component", saving):
        yield seen


def model(folder: Path, family: str, **changes: Any) -> Artifact:
    return describe(tiny_text(folder / "model", family, **changes))


@pytest.mark.parametrize("family", slow_but(QUICK, (*DENSE, *MIXTURES)))
def test_a_narrow_model_gives_what_it_gave_when_it_was_saved(family: str, tmp_path: Path) -> None:
    source = model(tmp_path, family)
    parts = ("ffn", "heads", "hidden", *(["experts"] if family in MIXTURES else []))
    for some in (parts, *((part,) for part in parts)):
        with answers_when_saved() as seen:
            made, _ = apply("prune.width", source, tmp_path / "-".join(some), ratio=0.5, samples=2, parts=some)
        module = plain(made.path)
        assert torch.equal(logits(module), seen[0])
        assert seen[0].std() > 0.1
        assert sum(p.numel() for p in module.parameters()) < sum(p.numel() for p in plain(source.path).parameters())


# Four blocks, some of which differ from their neighbours.
MIXED: dict[str, dict[str, Any]] = {
    "granite": {},
    "olmo2": {},
    "smollm3": {"no_rope_layer_interval": 2},
    "cohere": {},
    "cohere2": {},
    "mixtral": {"sliding_window": 8},
    "gpt-oss": {},
    "qwen3-moe": {"decoder_sparse_step": 2, "mlp_only_layers": [1]},
}


@pytest.mark.parametrize("family", slow_but(("smollm3", "qwen3-moe"), tuple(MIXED)))
def test_a_shorter_model_is_the_whole_one_without_its_blocks(family: str, tmp_path: Path) -> None:
    source = model(tmp_path, family, num_hidden_layers=4, **MIXED[family])
    without_derived(source.path)
    made, notes = apply("prune.depth", source, tmp_path / "out", ratio=0.5, samples=2)
    gone = {int(path.rpartition(".")[2]) for path in notes[0].facts["removed"].split(", ")}
    short, whole = plain(made.path), plain(source.path)
    stay = [i for i in range(4) if i not in gone]
    whole.model.layers = torch.nn.ModuleList([whole.model.layers[i] for i in stay])
    if kinds := getattr(whole.config, "layer_types", None):  # by which the model gives each block its mask
        whole.config.layer_types = [kinds[i] for i in stay]
    whole.config.num_hidden_layers = 2
    assert torch.equal(logits(short), logits(whole))
    assert read_json(made.path / "config.json")["num_hidden_layers"] == len(short.model.layers) == 2


def without_derived(folder: Path) -> None:
    """Leave to the library what it works out from the blocks' numbers, as checkpoints of the hub do."""
    config = read_json(folder / "config.json")
    kept = {k: v for k, v in config.items() if k not in ("layer_types", "no_rope_layers")}
    (folder / "config.json").write_text(json.dumps(kept))


def test_experts_that_are_sent_least_go(tmp_path: Path) -> None:
    source = model(tmp_path, "gpt-oss")
    whole = plain(source.path)
    for number, layer in enumerate(whole.model.layers):  # the router's bias decides, whatever the token
        layer.mlp.router.bias.data = torch.tensor([50.0, -50, 40, -40] if number else [-50.0, 50, -40, 40])
    whole.save_pretrained(source.path)
    seen = forecast("prune.width", source, ratio=0.5, parts=("experts",))
    assert "num_local_experts 4 → 2" in seen.reported
    made, _ = apply("prune.width", source, tmp_path / "out", ratio=0.5, samples=2, parts=("experts",))
    short = plain(made.path)
    for kept, ours, theirs in zip(((1, 3), (0, 2)), short.model.layers, whole.model.layers, strict=True):
        assert torch.equal(ours.mlp.experts.down_proj, theirs.mlp.experts.down_proj[list(kept)])
        assert torch.equal(ours.mlp.router.bias, theirs.mlp.router.bias[list(kept)])
    assert torch.allclose(logits(short), logits(whole), atol=1e-5)  # no token went to the others


def test_a_mixture_keeps_as_many_experts_as_a_token_goes_to(tmp_path: Path) -> None:
    source = model(tmp_path, "mixtral", num_experts_per_tok=3)
    made, _ = apply("prune.width", source, tmp_path / "out", ratio=0.9, samples=2, parts=("experts",))
    assert read_json(made.path / "config.json")["num_local_experts"] == 3
    with pytest.raises(UserError, match="num_local_experts 3 → 3"):
        forecast("prune.width", made, ratio=0.9, parts=("experts",))


@pytest.mark.parametrize("importance", ["taylor", "activation"])
def test_an_experts_neurons_are_its_own(importance: str, tmp_path: Path) -> None:
    """Of each expert other neurons stay, whatever says what they are worth."""
    source = model(tmp_path, "mixtral", num_hidden_layers=1)
    options = {"ratio": 0.5, "samples": 2, "parts": ("ffn",), "importance": importance}
    made, _ = apply("prune.width", source, tmp_path / "out", **options)
    whole, narrow = (plain(one.path).model.layers[0].mlp.experts for one in (source, made))
    kept = []
    for expert in range(4):
        rows, left = (side.gate_up_proj[expert] for side in (whole, narrow))
        at = [int((rows == row).all(1).nonzero()) for row in left]
        assert at[:32] == [i - 64 for i in at[32:]] == sorted(at[:32])  # a gate with its value
        assert torch.equal(narrow.down_proj[expert], whole.down_proj[expert][:, at[:32]])
        kept.append(tuple(at[:32]))
    assert len(set(kept)) == 4


def test_an_expert_count_under_its_former_name_is_cut(tmp_path: Path) -> None:
    """As Qwen's own checkpoints have it."""
    source = model(tmp_path, "qwen3-moe")
    config = read_json(source.path / "config.json")
    config["num_experts"] = config.pop("num_local_experts")
    (source.path / "config.json").write_text(json.dumps(config))
    made, _ = apply("prune.width", source, tmp_path / "out", ratio=0.5, samples=2, parts=("experts",))
    assert len(plain(made.path).model.layers[0].mlp.gate.weight) == 2


# ---------------------------------------------------------------- decoders that no table names

_TINY = {**_MODERN, "num_hidden_layers": 4}
DERIVED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bloom": (*TEXT["bloom"][:2], {**TEXT["bloom"][2], "n_layer": 4}),
    "mpt": (*TEXT["mpt"][:2], {**TEXT["mpt"][2], "n_layers": 4}),
    "falcon": ("FalconForCausalLM", "FalconConfig", {**_TINY, "num_kv_heads": 2, "new_decoder_architecture": True}),
    "gpt-neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", _TINY),
    "stablelm": ("StableLmForCausalLM", "StableLmConfig", _TINY),
    "starcoder2": ("Starcoder2ForCausalLM", "Starcoder2Config", _TINY),
    "glm": ("GlmForCausalLM", "GlmConfig", {**_TINY, "head_dim": 8}),
    "olmo3": ("Olmo3ForCausalLM", "Olmo3Config", {**_TINY, "sliding_window": 8}),
    "hunyuan-moe": (
        "HunYuanMoEV1ForCausalLM",
        "HunYuanMoEV1Config",
        {**_TINY, "head_dim": 8, "num_experts": 4, "moe_topk": [1, 2, 2, 1]},
    ),
}


@pytest.mark.parametrize("family", slow_but(("bloom", "olmo3"), tuple(DERIVED)))
def test_a_decoder_that_no_table_names_loses_blocks_and_is_taught(family: str, tmp_path: Path) -> None:
    with mock.patch.dict(TEXT, DERIVED):
        source = model(tmp_path, family)
    without_derived(source.path)
    seen = forecast("prune.depth", source, ratio=0.5)
    with answers_when_saved() as answers:
        made, notes = apply("prune.depth", source, tmp_path / "out", ratio=0.5, samples=2)
    assert notes[-1].facts["granted"] in seen.reported
    short, whole = plain(made.path), plain(source.path)
    assert torch.equal(logits(short), answers[0])
    gone = notes[-1].facts["removed"].split(", ")
    assert len(gone) == 2
    assert off_without(whole, gone, short, {"input_ids": TOKENS, "use_cache": False}) < 1e-6
    assert off_without(whole, gone[:1], short, {"input_ids": TOKENS, "use_cache": False}) > 1e-3
    taught, _ = apply(
        "distill.logits", made, tmp_path / "taught", inputs={"teacher": source}, **TEACHING["distill.logits"]
    )
    assert not torch.equal(logits(plain(taught.path)), logits(short))
    with pytest.raises(UserError, match=r"ffn: \w+ is no class whose widths pare knows") as caught:
        forecast("prune.width", source, ratio=0.5)
    assert caught.value.problems[0].fix == "use prune.depth"


def test_a_model_that_is_another_without_its_block_is_not_saved(tmp_path: Path) -> None:
    """What the source did not show: a block that changes with those before it."""
    source = model(tmp_path, "bloom")
    with (
        mock.patch("compress.algorithms.block_importance.off_without", return_value=0.5),
        pytest.raises(
            StageFailed, match=r"BloomForCausalLM without transformer.h.\d gives something else \(0.5 of its size\)"
        ),
    ):
        apply("prune.depth", source, tmp_path / "out", ratio=0.5, samples=2)
    assert not (tmp_path / "out/model.safetensors").exists()


def test_kinds_of_blocks_that_a_library_works_out_anew_are_no_ones_to_cut(tmp_path: Path) -> None:
    import transformers

    init = transformers.Olmo3Config.__post_init__

    def anew(config: Any, **given: Any) -> None:
        init(config, **given)
        count = config.num_hidden_layers
        config.layer_types = ["full_attention" if count == 4 else "sliding_attention"] * count

    with mock.patch.dict(TEXT, DERIVED):
        source = model(tmp_path, "olmo3")
    with (
        mock.patch("transformers.models.olmo3.configuration_olmo3.Olmo3Config.__post_init__", anew),
        mock.patch("compress.algorithms.block_importance.off_without", return_value=0.0),
        pytest.raises(StageFailed, match="Olmo3ForCausalLM works out layer_types though it is given"),
    ):
        apply("prune.depth", source, tmp_path / "out", ratio=0.5, samples=2)


# ---------------------------------------------------------------- teaching

TEACHING: dict[str, dict[str, Any]] = {
    "distill.logits": {"steps": 2, "tokens": 8, "batch": 2, "precision": "float32"},
    "distill.quantized": {"steps": 2, "tokens": 8, "batch": 2, "precision": "float32", "group_size": 16},
}


@pytest.mark.parametrize("stage", TEACHING)
@pytest.mark.parametrize("family", slow_but(QUICK, (*DENSE, *MIXTURES)))
def test_a_shortened_model_is_taught(family: str, stage: str, tmp_path: Path) -> None:
    source = model(tmp_path, family)
    cut, _ = apply("prune.depth", source, tmp_path / "cut", ratio=0.5, samples=2)
    more = {"ignore": ("*experts*",)} if stage == "distill.quantized" and family in MIXTURES else {}
    made, notes = apply(stage, cut, tmp_path / "out", inputs={"teacher": source}, **{**TEACHING[stage], **more})
    assert notes[-1].facts["loss"][0][1] > 0
    assert not torch.equal(logits(plain(made.path)), logits(plain(cut.path)))
    if stage == "distill.quantized":
        assert made.components[LANGUAGE_MODEL].quantization


@pytest.mark.parametrize("family", MIXTURES)
def test_experts_are_not_packed_unasked(family: str, tmp_path: Path) -> None:
    from compress.catalogue import find_stage

    source, stage = model(tmp_path, family), find_stage("distill.quantized")
    assert "experts side by side in one tensor cannot be packed" in stage.refuse(source, stage.params(group_size=16))
    assert not stage.refuse(source, stage.params(group_size=16, ignore=("*experts*",)))


def test_tiny_models_of_these_are_tiny(tmp_path: Path) -> None:
    for family in (*DENSE, *MIXTURES):
        assert sum(p.numel() for p in plain(tiny_text(tmp_path / family, family)).parameters()) < 2e5, TEXT[family]

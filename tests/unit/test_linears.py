"""Which linear layers a component has is read from headers as its own library builds them; patterns and group sizes are compared with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compress.artifact import LANGUAGE_MODEL, Artifact, Quantization, read_json
from compress.catalogue import find_stage
from compress.errors import UserError
from compress.model.describing import describe
from compress.planning.planned_artifact import expected_of
from compress.quantization.linears import (
    Linear,
    be_faultless,
    group_faults,
    ignore_faults,
    left_alone,
    linears,
    named,
    shares,
)
from compress.quantization.patterns import matches
from tests.families import TEXT, tiny_image, tiny_text
from tests.stages import apply
from tests.tiny import tiny_diffusion, tiny_llama

FAMILIES_ = ("qwen2", "qwen3", "mistral", "gpt2", "opt", "gemma3", "bert", "phi3", "bloom", "mamba", "mpt")


def built(module: torch.nn.Module) -> dict[str, tuple[int, int]]:
    """The linear layers of a live module, and their inputs and outputs."""
    from transformers.pytorch_utils import Conv1D

    found = {n: (m.in_features, m.out_features) for n, m in module.named_modules() if isinstance(m, torch.nn.Linear)}
    return found | {n: tuple(m.weight.shape) for n, m in module.named_modules() if isinstance(m, Conv1D)}  # type: ignore[misc]


def reported(artifact: Artifact, name: str = LANGUAGE_MODEL) -> dict[str, tuple[int, int]]:
    return {one.name: (one.inputs, one.outputs) for one in linears(artifact, name)}


@pytest.mark.parametrize("family", FAMILIES_)
def test_a_language_model_has_the_layers_that_its_class_builds(family: str, tmp_path: Path) -> None:
    import transformers

    artifact = describe(tiny_text(tmp_path, family))
    live = getattr(transformers, TEXT[family][0]).from_pretrained(tmp_path)
    assert reported(artifact) == built(live)
    layers = {one.name: one for one in linears(artifact)}
    assert [one.transposed for one in layers.values() if not one.head] == [family == "gpt2"] * (len(layers) - 1)
    (head,) = (one for one in layers.values() if one.head)
    assert live.get_submodule(head.name) is live.get_output_embeddings()
    assert head.tied == (live.get_output_embeddings().weight is live.get_input_embeddings().weight)


def test_the_experts_of_a_mixture_are_known_and_its_router_is_left_alone(tmp_path: Path) -> None:
    layers = linears(describe(tiny_text(tmp_path, "qwen3-moe")))
    assert sum(one.expert for one in layers) == 2 * 4 * 3  # blocks, experts, projections
    left = named(layers, left_alone("Qwen3MoeForCausalLM"))
    assert left == {"lm_head", "model.layers.0.mlp.gate", "model.layers.1.mlp.gate"}


@pytest.mark.parametrize(("kind", "inputs", "outputs"), [("qwen3_moe", 32, 128), ("gpt_oss", 128, 32)])
def test_experts_in_one_tensor_are_one_layer(
    model_of: Callable[..., Artifact], kind: str, inputs: int, outputs: int
) -> None:
    artifact = model_of({"model.layers.0.mlp.experts.gate_up_proj": (4, 128, 32)}, model_type=kind)
    (one,) = linears(artifact)
    assert (one.inputs, one.outputs, one.stacked, one.expert, one.weights) == (inputs, outputs, 4, True, 4 * 128 * 32)


@pytest.fixture
def model_of(tmp_path: Path) -> Callable[..., Artifact]:
    def make(shapes: dict[str, tuple[int, ...]], kind: str = "LlamaForCausalLM", **config: object) -> Artifact:
        from safetensors.torch import save_file

        folder = tiny_llama(tmp_path / "m")
        save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, folder / "model.safetensors")
        message = {**read_json(folder / "config.json"), "architectures": [kind], **config}
        (folder / "config.json").write_text(json.dumps(message))
        return describe(folder)

    return make


def test_names_of_a_checkpoint_without_its_head_are_those_of_the_class(model_of: Callable[..., Artifact]) -> None:
    shapes = {"h.0.attn.c_attn.weight": (32, 96), "wte.weight": (258, 32), "h.0.ln_1.weight": (32,)}
    artifact = model_of(shapes, "GPT2LMHeadModel", model_type="gpt2", vocab_size=258)
    assert reported(artifact) == {"transformer.h.0.attn.c_attn": (32, 96), "lm_head": (32, 258)}


@pytest.mark.parametrize("family", ["flux", "sd3", "sana", "pixart-alpha"])
def test_a_pipeline_has_the_layers_that_its_classes_build(family: str, tmp_path: Path) -> None:
    assert unlike_built(describe(tiny_image(tmp_path, family))) == []


@pytest.mark.parametrize("xl", [False, True])
def test_convolutions_and_embeddings_are_no_linear_layers(tmp_path: Path, xl: bool) -> None:
    assert unlike_built(describe(tiny_diffusion(tmp_path, xl=xl))) == []


def unlike_built(artifact: Artifact) -> list[str]:
    """The components whose layers are others than those that their classes build."""
    from compress.engines.torch.runtime import load_component
    from compress.machine.devices import AS_STORED
    from compress.pipelines.index import library_of

    names = [n for n in artifact.working if n.startswith("text_encoder") or n == artifact.main]
    assert names
    kinds = {name: artifact.components[name].kind for name in names}
    modules = {
        n: load_component(artifact.folder(n), library_of(artifact.path, n), k, AS_STORED) for n, k in kinds.items()
    }
    return [name for name, module in modules.items() if reported(artifact, name) != built(module)]


# ---------------------------------------------------------------- in the middle of a plan


@pytest.mark.parametrize("family", ["qwen3", "gpt2", "opt", "phi3"])
@pytest.mark.parametrize(
    ("stage", "params"), [("prune.depth", {"ratio": 0.5}), ("prune.width", {"ratio": 0.5, "parts": ["ffn"]})]
)
def test_a_planned_cut_is_seen_in_the_layers(family: str, stage: str, params: dict[str, Any], tmp_path: Path) -> None:
    import transformers

    artifact = describe(tiny_text(tmp_path, family))
    record = find_stage(stage)
    checked = record.params(**params)
    planned = expected_of(artifact, record, checked, (LANGUAGE_MODEL,), record.forecast(artifact, checked))
    kind, config, _ = TEXT[family]
    made = getattr(transformers, kind)(getattr(transformers, config).from_dict(dict(planned.config(LANGUAGE_MODEL))))
    assert reported(planned) == built(made) != reported(artifact)


@pytest.mark.parametrize("family", ["mixtral", "qwen3-moe", "gpt-oss", "bloom"])
@pytest.mark.parametrize(
    ("stage", "params"), [("prune.depth", {"samples": 2}), ("prune.width", {"samples": 2, "parts": ["experts", "ffn"]})]
)
def test_a_planned_cut_of_a_mixture_is_what_comes_of_it(
    family: str, stage: str, params: dict[str, Any], tmp_path: Path
) -> None:
    if family == "bloom" and stage == "prune.width":
        return  # no part of it goes
    artifact = describe(tiny_text(tmp_path / "model", family))
    record = find_stage(stage)
    checked = record.params(ratio=0.5, **params)
    planned = expected_of(artifact, record, checked, (LANGUAGE_MODEL,), record.forecast(artifact, checked))
    made, _ = apply(stage, artifact, tmp_path / "out", ratio=0.5, **params)
    assert linears(planned) == linears(made) != linears(artifact)


def test_of_what_cannot_be_reported_nothing_is_message(tmp_path: Path) -> None:
    artifact = describe(tiny_llama(tmp_path))
    assert linears(artifact.packing({LANGUAGE_MODEL: Quantization("gptq", 4, "gptqmodel")})) == ()
    assert linears(artifact.replacing({LANGUAGE_MODEL: "openvino"})) == ()
    (tmp_path / "model.safetensors").unlink()
    assert linears(artifact) == ()


# ---------------------------------------------------------------- patterns

BLOCK = (("self_attn.q_proj", 32), ("self_attn.o_proj", 32), ("mlp.down_proj", 48))
LAYERS = (
    *(Linear(f"model.layers.{block}.{part}", inputs, 64) for block in range(3) for part, inputs in BLOCK),
    Linear("lm_head", 32, 258, head=True),
)


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        ("lm_head", 1),
        ("*.o_proj", 3),
        ("model.layers.1", 3),
        ("model.layers.1.*", 3),
        ("model.layers.[02].mlp", 2),
        ("re:.*(q|o)_proj", 6),
        (r"re:model\.layers\.\d+", 9),
        ("*", 10),
    ],
)
def test_a_pattern_names_modules_and_what_lies_in_them(pattern: str, count: int) -> None:
    assert len(named(LAYERS, [pattern])) == count
    assert ignore_faults(LAYERS, [pattern]) == ()


@pytest.mark.parametrize(
    ("pattern", "message", "fix"),
    [
        ("o_proj", "`o_proj` names none of the 10 linear layers", "did you mean `*.o_proj` or `*.q_proj`?"),
        ("*.down_projs", "`*.down_projs` names none", "did you mean `*.down_proj`?"),
        ("lm_heads", "`lm_heads` names none", "did you mean `lm_head`?"),
        ("re:(", "`re:(` is no regular expression", "write one, or a glob: *.o_proj"),
    ],
)
def test_a_pattern_that_names_nothing_is_reported_with_the_nearest(pattern: str, message: str, fix: str) -> None:
    (fault,) = ignore_faults(LAYERS, ["*.o_proj", pattern])
    assert message in fault.message
    assert fault.fix == fix
    assert named(LAYERS, [pattern]) == frozenset()


def test_no_pattern_is_judged_where_no_layer_is_known() -> None:
    assert ignore_faults((), ["anything"]) == ()
    (fault,) = ignore_faults((), ["re:("])
    assert "no regular expression" in fault.message


@given(st.text(st.sampled_from("ab.*[]?"), min_size=1, max_size=8), st.text("ab.", min_size=1, max_size=8))
def test_a_pattern_that_names_a_module_names_all_below_it(pattern: str, name: str) -> None:
    if matches(pattern, name):
        assert matches(pattern, f"{name}.a")


# ---------------------------------------------------------------- group sizes


def test_every_layer_that_a_group_size_does_not_divide_is_listed_with_the_ways_out() -> None:
    (fault,) = group_faults(LAYERS, 32)
    assert fault.message == (
        "group_size 32 does not divide the inputs of 3 of the 10 layers: model.layers.{0-2}.mlp.down_proj has 48 inputs"
    )
    assert fault.fix == 'group_size: 16 divides all of them; -1 gives each row one scale; or ignore: ["*.down_proj"]'
    with pytest.raises(UserError) as caught:
        be_faultless([fault, fault])
    assert len(caught.value.problems) == 2
    be_faultless([])


def test_ranges_leave_out_what_is_not_there() -> None:
    odd = [replace(one, inputs=47) if ".0.mlp" in one.name or ".2.mlp" in one.name else one for one in LAYERS]
    (fault,) = group_faults(odd, 16)
    assert "model.layers.{0,2}.mlp.down_proj has 47 inputs" in fault.message
    assert fault.fix.startswith("no group size divides all; -1")


@given(st.lists(st.integers(1, 64), min_size=1), st.integers(1, 64))
def test_what_is_proposed_fits(widths: list[int], size: int) -> None:
    layers = [Linear(f"layers.{number}.w", width, 8) for number, width in enumerate(widths)]
    for fault in group_faults(layers, size):
        assert any(width % size for width in widths)
        first = fault.fix.partition(";")[0]
        for word in first.split():
            assert not word.isdecimal() or group_faults(layers, int(word)) == ()
    assert group_faults(layers, -1) == group_faults(layers, 1) == ()


def test_the_share_of_the_weights_that_is_reached() -> None:
    assert shares(LAYERS, named(LAYERS, ["*.down_proj"])) == pytest.approx(
        (6 * 32 * 64 + 32 * 258) / sum(o.weights for o in LAYERS)
    )
    assert shares((), frozenset()) == 0


def test_where_nothing_would_be_left_another_stage_is_named() -> None:
    odd = [Linear(f"layers.{number}.{name}", 40, 40) for number in range(2) for name in ("q_proj", "o_proj")]
    (fault,) = group_faults(odd, 128, [32, 64])
    assert fault.fix.startswith("no group size divides all; -1 gives each row one scale; or take quantize.torchao")
    (fault,) = group_faults([*odd, Linear("layers.0.up_proj", 128, 128)], 128, [32, 64])
    assert 'ignore: ["*.q_proj", "*.o_proj"]' in fault.fix
    assert "group_size: 40" in group_faults(odd, 128)[0].fix  # where any size may be given

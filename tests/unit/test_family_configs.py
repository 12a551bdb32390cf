"""What each family's config can say: what is snapped to, what is reported, and what is refused, in which words."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.artifact import Artifact, Component
from compress.catalogue import find_stage
from compress.errors import UserError
from compress.model.depth_units import Pool, Unit, cut_depth, depth_pools, renamed, without
from compress.model.families import FAMILIES, PARTS, Cut, Granted, common_name, cut_width, family, feature_stacks, snap

LLAMA: dict[str, Any] = {
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
UNET: dict[str, Any] = {
    "block_out_channels": [320, 640, 1280],
    "attention_head_dim": [5, 10, 20],
    "norm_num_groups": 32,
    "layers_per_block": 2,
    "transformer_layers_per_block": [1, 2, 10],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
}
SMALL_UNET: dict[str, Any] = {
    "block_out_channels": [32, 64],
    "attention_head_dim": 8,
    "norm_num_groups": 8,
    "layers_per_block": 2,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}
RATIOS = st.floats(0.001, 0.999)


def refused(work: Any, *given: Any) -> str:
    with pytest.raises(UserError) as caught:
        work(*given)
    (problem,) = caught.value.problems
    assert problem.fix
    return f"{problem.message}: {problem.fix}"


@given(st.integers(1, 4096), RATIOS, st.integers(1, 128))
def test_a_snapped_width_is_the_nearest_multiple_that_fits(width: int, ratio: float, multiple: int) -> None:
    found, wanted = snap(width, ratio, multiple), (1 - ratio) * width
    assert 0 < found <= width
    assert found % multiple == 0 or found == width  # a width that is no multiple itself may stay
    assert found >= min(multiple, width)
    possible = list(range(multiple, width + 1, multiple)) or [width]
    assert found == width or abs(found - wanted) <= min(abs(m - wanted) for m in possible) + 1e-9


@given(st.integers(1, 64), st.integers(1, 64), RATIOS, RATIOS)
def test_asking_for_more_never_grants_less(units: int, multiple: int, one: float, other: float) -> None:
    less, more = sorted((one, other))
    assert snap(units * multiple, more, multiple) <= snap(units * multiple, less, multiple)


@given(RATIOS, st.sampled_from([1, 8, 16, 64]))
def test_every_level_of_a_unet_holds_whole_norm_groups_and_heads(ratio: float, align: int) -> None:
    try:
        cut = cut_width("UNet2DConditionModel", UNET, ratio, (), align)
    except UserError:
        return  # nothing to cut at this ratio
    before, after = UNET["block_out_channels"], cut.config["block_out_channels"]
    for old, new, heads in zip(before, after, UNET["attention_head_dim"], strict=True):
        assert new <= old
        assert new % math.lcm(32, heads, align) == 0 or new == old
    assert [g.after for g in cut.granted] == after
    assert {k: v for k, v in cut.config.items() if k != "block_out_channels"} == {
        k: v for k, v in UNET.items() if k != "block_out_channels"
    }


def test_what_is_granted_is_reported_beside_what_was_asked_for() -> None:
    cut = cut_width("LlamaForCausalLM", LLAMA, 0.3, (), 16)
    assert cut.reported(0.3) == (
        "requested −30.0%, granted intermediate_size 256 → 176 (−31.2%), num_key_value_heads 4 → 3 (−25.0%), "
        "num_attention_heads 8 → 6 (−25.0%)"
    )
    assert Cut({}, (Granted("n_layer", 3, 2),)).reported(0.5) == "requested −50.0%, granted n_layer 3 → 2 (−33.3%)"


@pytest.mark.parametrize(
    ("layers", "ratio", "reported"),
    [
        (2, 0.25, "requested −25.0%, granted num_hidden_layers 2 → 1 (−50.0%), and its config comes no nearer"),
        (8, 0.01, "requested −1.0%, granted num_hidden_layers 8 → 7 (−12.5%), and its config comes no nearer"),
        (8, 0.25, ""),
        (8, 0.07, ""),  # half a layer and more
        (8, 0.9, ""),
    ],
)
def test_a_ratio_that_lies_nearer_to_nothing_than_to_the_least_that_can_go_is_warned_of(
    layers: int, ratio: float, reported: str, tmp_path: Path
) -> None:
    config = {**LLAMA, "architectures": ["LlamaForCausalLM"], "num_hidden_layers": layers}
    (tmp_path / "config.json").write_text(json.dumps(config))
    source = Artifact(tmp_path, "text_generation", {"model": Component("torch", "", "LlamaForCausalLM")})
    stage = find_stage("prune.depth")
    found = stage.forecast(source, stage.params(ratio=ratio))
    assert " ".join(found.warnings).startswith(f"model: {reported}" if reported else "")
    assert bool(found.warnings) == bool(reported)
    assert all("leave the stage out" in message for message in found.warnings)


@given(RATIOS, st.integers(2, 40))
def test_what_is_warned_of_is_twice_what_was_asked_for(ratio: float, layers: int) -> None:
    granted = cut_depth("LlamaForCausalLM", {"num_hidden_layers": layers}, ratio)
    cut = Cut({}, granted)
    assert bool(cut.far(ratio)) == (granted[0].ratio >= 2 * ratio)
    if cut.far(ratio):
        assert granted[0].before - granted[0].after == 1  # more never goes, for the nearest does


def test_the_size_of_a_head_is_written_down_before_it_would_change() -> None:
    heads = cut_width("LlamaForCausalLM", LLAMA, 0.5, ("heads",), 8).config
    assert (heads["num_attention_heads"], heads["num_key_value_heads"], heads["head_dim"]) == (4, 2, 12)
    both = cut_width("LlamaForCausalLM", LLAMA, 0.5, ("heads", "hidden"), 8).config
    assert (both["hidden_size"], both["num_attention_heads"], both["head_dim"]) == (48, 4, 12)
    explicit = cut_width("Qwen3ForCausalLM", {**LLAMA, "head_dim": 128}, 0.5, ("hidden",), 8).config
    assert explicit["head_dim"] == 128
    assert "head_dim" not in cut_width("LlamaForCausalLM", LLAMA, 0.5, ("ffn",), 8).config


def test_a_config_without_key_heads_has_as_many_as_heads() -> None:
    config = {k: v for k, v in LLAMA.items() if k != "num_key_value_heads"}
    found = cut_width("LlamaForCausalLM", config, 0.25, ("heads",), 8).config
    assert (found["num_key_value_heads"], found["num_attention_heads"]) == (6, 6)


def test_a_feed_forward_width_that_follows_the_hidden_size_is_written_down() -> None:
    config = {"n_embd": 64, "n_inner": None, "n_head": 4, "n_layer": 2}
    assert cut_width("GPT2LMHeadModel", config, 0.5, (), 8).config["n_inner"] == 128
    hidden = cut_width("GPT2LMHeadModel", config, 0.4, ("hidden",), 1)
    assert (hidden.config["n_embd"], hidden.config["n_inner"]) == (40, 256)
    assert [g.field for g in hidden.granted] == ["n_embd"]


def test_fields_that_mean_one_width_stay_equal() -> None:
    config = {"ffn_dim": 64, "hidden_size": 32, "word_embed_proj_dim": 32, "num_attention_heads": 4}
    found = cut_width("OPTForCausalLM", config, 0.5, ("hidden",), 8).config
    assert found["word_embed_proj_dim"] == found["hidden_size"] == 16
    sana = {"mlp_ratio": 2.5, "num_attention_heads": 4, "attention_head_dim": 8}
    cut = cut_width("SanaTransformer2DModel", sana, 0.5, (), 8)
    assert int(cut.config["mlp_ratio"] * 32) == cut.granted[0].after == 40


def test_heads_are_snapped_to_what_the_config_class_accepts() -> None:
    config = {**LLAMA, "hidden_size": 64}
    asked = ("hidden_size", "num_attention_heads")
    free = cut_width("LlamaForCausalLM", config, 0.25, ("ffn", "heads"), 8).config
    assert (free["num_key_value_heads"], free["num_attention_heads"]) == (3, 6)
    held = cut_width("LlamaForCausalLM", config, 0.25, ("ffn", "heads"), 8, [asked])
    # Four and two key heads are as near: the cut never takes more than was asked for where it need not.
    assert (held.config["num_key_value_heads"], held.config["num_attention_heads"]) == (4, 8)
    assert held.config["intermediate_size"] == 192
    assert "num_key_value_heads 4 → 4 (−0.0%)" in held.reported(0.25)
    more = cut_width("LlamaForCausalLM", config, 0.4, ("heads",), 8, [asked]).config
    assert (more["num_key_value_heads"], more["num_attention_heads"]) == (2, 4)
    with pytest.raises(UserError, match="nothing to cut at this ratio"):
        cut_width("LlamaForCausalLM", config, 0.25, ("heads",), 8, [asked])


@given(
    st.sampled_from([1, 2, 4, 8]),
    st.integers(1, 8),
    st.integers(1, 16),
    RATIOS,
    st.lists(st.sampled_from(["ffn", "heads", "hidden"]), min_size=1, max_size=3),
)
def test_what_is_granted_always_divides(queries: int, keys: int, size: int, ratio: float, parts: list[str]) -> None:
    heads = queries * keys
    config = {**LLAMA, "num_attention_heads": heads, "num_key_value_heads": keys, "hidden_size": heads * size}
    try:
        cut = cut_width(
            "LlamaForCausalLM", config, ratio, tuple(parts), 1, [("hidden_size", "num_attention_heads")]
        ).config
    except UserError:
        return  # nothing to cut at this ratio
    assert cut["hidden_size"] % cut["num_attention_heads"] == 0
    assert cut["num_attention_heads"] == cut["num_key_value_heads"] * queries


MIXTURE: dict[str, Any] = {**LLAMA, "moe_intermediate_size": 64, "num_experts": 16, "num_experts_per_tok": 4}


@pytest.mark.parametrize(("ratio", "left"), [(0.25, 12), (0.5, 8), (0.9, 4)])
def test_a_mixture_keeps_what_a_token_is_sent_to(ratio: float, left: int) -> None:
    cut = cut_width("Qwen3MoeForCausalLM", MIXTURE, ratio, ("experts",), 8)
    assert cut.config["num_local_experts"] == left
    assert "num_experts" not in cut.config  # the name that it had, which would say otherwise
    assert cut.reported(ratio).endswith(f"num_local_experts 16 → {left} (−{1 - left / 16:.1%})")
    again = cut_width(
        "MixtralForCausalLM", {**LLAMA, "num_local_experts": 16, "num_experts_per_tok": 4}, ratio, ("experts",), 8
    )
    assert again.config["num_local_experts"] == left


@given(st.integers(1, 32), st.data(), RATIOS)
def test_experts_never_fall_below_what_a_token_is_sent_to(experts: int, data: st.DataObject, ratio: float) -> None:
    each = data.draw(st.integers(1, experts))
    config = {"num_local_experts": experts, "num_experts_per_tok": each}
    try:
        left = cut_width("GptOssForCausalLM", config, ratio, ("experts",), 8).config["num_local_experts"]
    except UserError:
        return  # nothing to cut at this ratio
    wanted = (1 - ratio) * experts
    assert each <= left < experts
    assert abs(left - wanted) <= 0.5 + 1e-9 or left == each


def test_the_experts_of_a_mixture_narrow_and_its_dense_blocks_do_not() -> None:
    found = cut_width("Qwen3MoeForCausalLM", MIXTURE, 0.5, ("ffn",), 8).config
    assert (found["moe_intermediate_size"], found["intermediate_size"]) == (32, 256)
    found = cut_width("MixtralForCausalLM", {**LLAMA, "num_local_experts": 4}, 0.5, ("ffn",), 8).config
    assert found["intermediate_size"] == 128  # of each of them


def test_a_part_named_twice_is_cut_once() -> None:
    one, two = (cut_width("LlamaForCausalLM", LLAMA, 0.5, ("ffn",) * n, 8) for n in (1, 2))
    assert two == one


@pytest.mark.parametrize(
    ("kind", "part", "lacking", "instead"),
    [
        ("GPT2LMHeadModel", "heads", "has no field head_dim", "cut ffn or hidden, or use prune.depth"),
        (
            "Phi3ForCausalLM",
            "heads",
            "queries, keys and values in one matrix (qkv_proj)",
            "cut ffn, or use prune.depth",
        ),
        ("Phi3ForCausalLM", "hidden", "has no field head_dim", "cut ffn, or use prune.depth"),
        ("CLIPTextModel", "hidden", "the hidden size that the denoiser reads (cross_attention_dim)", "cut ffn"),
        ("CLIPTextModelWithProjection", "heads", "has no field head_dim", "cut ffn, or use prune.depth"),
        ("UNet2DConditionModel", "ffn", "one width a level (block_out_channels)", "cut channels"),
        ("SanaTransformer2DModel", "hidden", "no field for its hidden size", "cut ffn, or use prune.depth"),
        ("FluxTransformer2DModel", "ffn", "no field for its feed-forward width", "use prune.depth"),
        ("PixArtTransformer2DModel", "channels", "has no channels", "use prune.depth"),
        ("LlamaForCausalLM", "channels", "has no channels", "use ffn or heads or hidden"),
    ],
)
def test_a_part_that_a_config_cannot_say_is_refused_with_what_to_use(
    kind: str, part: str, lacking: str, instead: str
) -> None:
    message = refused(cut_width, kind, LLAMA, 0.5, (part,), 8)
    assert message.startswith(f"{part}: {kind} ")
    assert lacking in message
    assert message.endswith(instead) or f"{instead}, or " in message


def test_every_refusal_names_only_parts_that_the_family_has() -> None:
    for kind, record in FAMILIES.items():
        assert set(record.widths).isdisjoint(record.unsaid), kind
        for why in record.unsaid.values():
            remedy = why.rsplit(": ", 1)[1]
            named = {part for part in PARTS if part in remedy}
            assert named <= set(record.widths), (kind, why)
            assert named or "prune.depth" in remedy, (kind, why)


def test_a_ratio_too_small_to_grant_anything_is_refused() -> None:
    message = refused(cut_width, "LlamaForCausalLM", LLAMA, 0.01, ("ffn",), 64)
    assert message == (
        "requested −1.0%, granted intermediate_size 256 → 256 (−0.0%): nothing to cut at this ratio: ask for more, or use "
        "prune.depth"
    )


def test_a_family_that_is_not_known_is_refused_with_those_that_are() -> None:
    with pytest.raises(UserError, match="models of the class MambaForCausalLM cannot be cut") as caught:
        family("MambaForCausalLM", {"num_hidden_layers": 2})
    assert "families it knows are Llama, Mistral, " in caught.value.problems[0].fix
    assert "ForCausalLM" not in caught.value.problems[0].fix


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("LlamaForCausalLM", "Llama"),
        ("GPT2LMHeadModel", "GPT2"),
        ("CLIPTextModel", "CLIP"),
        ("CLIPTextModelWithProjection", "CLIP"),
        ("UNet2DConditionModel", "UNet"),
        ("FluxTransformer2DModel", "Flux"),
    ],
)
def test_a_family_goes_by_the_name_that_people_know(kind: str, name: str) -> None:
    assert common_name(kind) == name


def pool(costs: list[int], rest: int) -> Pool:
    units = tuple(Unit((str(i),), (str(i),) * cost, lambda config: None) for i, cost in enumerate(costs))
    return Pool("blocks", sum(costs) + rest, units)


@given(st.lists(st.integers(1, 5), max_size=8), st.integers(0, 4), RATIOS)
def test_as_many_blocks_go_as_whole_units_allow(costs: list[int], rest: int, ratio: float) -> None:
    sums = {sum(c for i, c in enumerate(costs) if mask >> i & 1) for mask in range(2 ** len(costs))}
    found = pool(costs, rest)
    possible = {s for s in sums if 0 < s < found.count}
    got = found.removable(ratio)
    assert got in possible or (got == 0 and not possible)
    assert all(abs(got - ratio * found.count) <= abs(s - ratio * found.count) for s in possible)


def test_of_two_totals_as_near_the_smaller_one_goes() -> None:
    assert pool([1] * 4, 0).removable(0.625) == 2
    assert pool([2, 2], 2).removable(0.5) == 2
    assert pool([1, 1], 0).removable(0.99) == 1  # never all


NAMES = ["layers.0.w", "layers.1.w", "layers.2.a.0.w", "layers.2.a.1.w", "layers.10.w", "norm.w", "mid.r.0.w"]


@pytest.mark.parametrize("name", NAMES)
def test_removing_nothing_renames_nothing(name: str) -> None:
    assert renamed(name, frozenset()) == name


@given(st.integers(1, 30), st.data())
def test_what_stays_is_numbered_without_a_gap_and_in_its_order(count: int, data: st.DataObject) -> None:
    gone = data.draw(st.sets(st.integers(0, count - 1)))
    removed = frozenset(f"a.layers.{i}" for i in gone)
    found = [renamed(f"a.layers.{i}.w.0.b", removed) for i in range(count)]
    assert [f is None for f in found] == [i in gone for i in range(count)]
    assert [f for f in found if f] == [f"a.layers.{i}.w.0.b" for i in range(count - len(gone))]
    assert renamed("b.layers.29.w", removed) == "b.layers.29.w"  # another list is left alone


def test_a_removed_module_takes_what_lies_below_it() -> None:
    removed = frozenset({"mid_block", "down.0.attentions", "up.1.attentions.0.blocks.1"})
    assert renamed("mid_block.resnets.0.conv.weight", removed) is None
    assert renamed("down.0.attentions.1.weight", removed) is None
    assert renamed("down.0.resnets.1.weight", removed) == "down.0.resnets.1.weight"
    assert renamed("up.1.attentions.0.blocks.2.weight", removed) == "up.1.attentions.0.blocks.1.weight"
    assert renamed("mid_blocks.weight", removed) == "mid_blocks.weight"


def test_a_shorter_config_keeps_its_lists_in_step() -> None:
    config = {**LLAMA, "num_hidden_layers": 4, "layer_types": ["full", "sliding", "sliding", "full"]}
    (stack,) = depth_pools("Gemma2ForCausalLM", config)
    found = without(config, (stack.units[0], stack.units[2]))
    assert (found["num_hidden_layers"], found["layer_types"]) == (2, ["sliding", "full"])
    assert config["layer_types"] == ["full", "sliding", "sliding", "full"]  # the one it was made from is as it was
    assert without(config, ()) == config


def test_rope_goes_with_the_block_that_goes_without() -> None:
    config = {**LLAMA, "num_hidden_layers": 4, "layer_types": ["a", "a", "a", "b"], "no_rope_layers": [1, 1, 1, 0]}
    (stack,) = depth_pools("SmolLM3ForCausalLM", {**config, "no_rope_layer_interval": 4})
    found = without(config, (stack.units[0], stack.units[1]))
    assert (found["layer_types"], found["no_rope_layers"]) == (["a", "b"], [1, 0])


@given(st.integers(1, 4), st.sets(st.integers(0, 7)), st.sets(st.integers(0, 7), min_size=1, max_size=7))
def test_blocks_keep_their_kind_where_a_period_gave_it(step: int, dense: set[int], gone: set[int]) -> None:
    def kinds(config: dict[str, Any]) -> list[bool]:
        """As the class has it: which blocks have experts."""
        only, every = config["mlp_only_layers"], config["decoder_sparse_step"]
        return [i not in only and (i + 1) % every == 0 for i in range(config["num_hidden_layers"])]

    config = {"num_hidden_layers": 8, "decoder_sparse_step": step, "mlp_only_layers": sorted(dense)}
    (stack,) = depth_pools("Qwen3MoeForCausalLM", config)
    found = without(config, tuple(stack.units[i] for i in sorted(gone)))
    assert kinds(found) == [kind for i, kind in enumerate(kinds(config)) if i not in gone]
    assert found["decoder_sparse_step"] == 1


def test_a_field_that_is_one_value_for_all_blocks_is_no_list_of_theirs() -> None:
    config = {"model_type": "hunyuan_v1_moe", "num_hidden_layers": 3, "num_experts": 4, "moe_topk": [1, 2, 2]}
    (stack,) = depth_pools("HunYuanMoEV1ForCausalLM", config)
    found = without(config, stack.units[:1])
    assert (found["num_hidden_layers"], found["num_experts"], found["moe_topk"]) == (2, 4, [2, 2])


def test_a_block_that_differs_from_the_others_stays_and_block_numbers_follow() -> None:
    config = {"num_layers": 4, "dual_attention_layers": (0, 1, 2)}
    (stack,) = depth_pools("SD3Transformer2DModel", config)
    assert [u.removes for u in stack.units] == [(f"transformer_blocks.{i}",) for i in range(3)]
    found = without(config, (stack.units[0], stack.units[1]))
    assert (found["num_layers"], found["dual_attention_layers"]) == (2, [0])


def test_both_stacks_of_flux_lose_their_share() -> None:
    config = {"num_layers": 4, "num_single_layers": 8}
    assert [(g.field, g.before, g.after) for g in cut_depth("FluxTransformer2DModel", config, 0.25)] == [
        ("num_layers", 4, 3),
        ("num_single_layers", 8, 6),
    ]


@pytest.mark.parametrize(
    ("kind", "config", "words"),
    [
        ("LlamaForCausalLM", {**LLAMA, "num_hidden_layers": 1}, "(num_hidden_layers 1): use prune.width"),
        (
            "FluxTransformer2DModel",
            {"num_layers": 1, "num_single_layers": 1},
            "(num_layers 1, num_single_layers 1): leave this stage out: its widths have no field either, so it can only be quantized",
        ),
    ],
)
def test_a_model_of_one_block_is_refused(kind: str, config: dict[str, Any], words: str) -> None:
    assert refused(cut_depth, kind, config, 0.5) == f"{kind} has no block that its config can do without {words}"


@pytest.mark.parametrize("config", [UNET, SMALL_UNET, {**SMALL_UNET, "layers_per_block": 1}])
def test_the_units_of_a_unet_are_apart_and_leave_a_config_that_opens(config: dict[str, Any]) -> None:
    import diffusers
    import torch

    if config is UNET:
        config = {**UNET, "block_out_channels": [32, 32, 64], "attention_head_dim": 4, "norm_num_groups": 8}
        config["transformer_layers_per_block"] = [1, 2, 3]
    whole = {**config, "sample_size": 8, "cross_attention_dim": 16}
    with torch.device("meta"):
        names = list(diffusers.UNet2DConditionModel.from_config(whole).state_dict())
    (units,) = (p.units for p in depth_pools("UNet2DConditionModel", whole))
    assert len(units) > 2
    assert len({b for u in units for b in u.blocks}) == sum(len(u.blocks) for u in units)
    for some in [(), *((u,) for u in units), units]:
        removed = frozenset(path for unit in some for path in unit.removes)
        with torch.device("meta"):
            shorter = diffusers.UNet2DConditionModel.from_config(without(whole, some))
        assert {r for n in names if (r := renamed(n, removed))} == set(shorter.state_dict()), removed


def test_the_blocks_of_a_unet_are_all_counted() -> None:
    """Two levels of one layer: three resnets a level, three attentions on the level that has them, and the middle's three."""
    (found,) = depth_pools("UNet2DConditionModel", {**SMALL_UNET, "layers_per_block": 1})
    assert found.count == 2 * 3 + 3 + 3
    (bare,) = depth_pools("UNet2DConditionModel", {**SMALL_UNET, "layers_per_block": 1, "mid_block_type": None})
    assert bare.count == found.count - 3
    assert len(bare.units) == len(found.units) - 1


def test_levels_of_an_unknown_make_are_left_whole() -> None:
    config = {**SMALL_UNET, "down_block_types": ["SimpleCrossAttnDownBlock2D", "DownBlock2D"]}
    (found,) = depth_pools("UNet2DConditionModel", config)
    assert [u.removes for u in found.units] == [("down_blocks.1.resnets.1", "up_blocks.0.resnets.1"), ("mid_block",)]


def test_a_student_without_a_middle_still_has_its_stacks() -> None:
    assert feature_stacks("LlamaForCausalLM", {"num_hidden_layers": 2}) == (("model.layers.0", "model.layers.1"),)
    whole, cut = (
        feature_stacks("UNet2DConditionModel", {**SMALL_UNET, **more}) for more in ({}, {"mid_block_type": None})
    )
    assert len(whole) == len(cut) == 5
    assert (whole[2], cut[2]) == (("mid_block",), ())

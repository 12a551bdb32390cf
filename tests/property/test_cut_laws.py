"""Laws of structured cuts on tiny real models: what is coupled is coupled whole, and what is worth nothing costs nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import combinations
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from compress.algorithms import weight_importance
from compress.algorithms.block_importance import of_blocks
from compress.algorithms.coupled_units import ALL, Group, Site, cut_state, positions
from compress.algorithms.dependency_groups import find_groups, parameter_shapes
from compress.algorithms.expert_groups import sent
from compress.engines.torch.runtime import blank, first_tensor
from compress.errors import StageFailed
from compress.model.depth_units import least_missed
from compress.model.families import cut_width
from tests import families
from tests.tiny import _clip, _unet

TOKENS = {"input_ids": torch.tensor([[5, 9, 30, 2, 17, 44]])}


def language_model(kind: str, config: str, options: Mapping[str, Any]) -> nn.Module:
    import transformers

    made: nn.Module = getattr(transformers, kind)(getattr(transformers, config)(vocab_size=60, **options))
    return made


def unet_like(**options: Any) -> nn.Module:
    plain = _unet(False)
    message = {k: v for k, v in plain.config.items() if k != "_use_default_values"}  # which would win over the options
    made: nn.Module = type(plain).from_config({**message, **options})  # type: ignore[attr-defined]
    return made


def unet_call() -> dict[str, Any]:
    random = torch.Generator().manual_seed(3)
    sample, text = torch.randn(1, 4, 8, 8, generator=random), torch.randn(1, 5, 32, generator=random)
    return {"sample": sample, "timestep": torch.tensor(500), "encoder_hidden_states": text}


# One layer, four key heads of two queries each, which are wider together than the hidden size.
GROUPED = {**families._GEMMA, "num_hidden_layers": 1, "num_attention_heads": 8, "num_key_value_heads": 4}
# name: how it is made, its parts that are cut, one call
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...], dict[str, Any]]] = {
    **{
        name: (
            partial(language_model, f"{kind}ForCausalLM", f"{kind}Config", GROUPED),
            ("ffn", "heads"),
            {**TOKENS, "use_cache": False},
        )
        for name, kind in (("llama", "Llama"), ("qwen2", "Qwen2"), ("gemma2", "Gemma2"), ("olmo2", "Olmo2"))
    },
    "cohere": (
        lambda: language_model("CohereForCausalLM", "CohereConfig", {**GROUPED, "use_qk_norm": True}),
        ("ffn", "heads"),
        {**TOKENS, "use_cache": False},
    ),
    **{
        name: (
            partial(language_model, f"{kind}ForCausalLM", f"{kind}Config", {**GROUPED, **families._EXPERTS, **more}),
            ("ffn", "heads", "experts"),
            {"input_ids": TOKENS["input_ids"][:, :1], "use_cache": False},  # of four experts two have no token
        )
        for name, kind, more in (
            ("mixtral", "Mixtral", {"num_local_experts": 4}),
            ("gpt-oss", "GptOss", {"num_local_experts": 4}),
            ("qwen3-moe", "Qwen3Moe", {"norm_topk_prob": True}),
        )
    },
    "gpt-oss-hidden": (
        lambda: language_model("GptOssForCausalLM", "GptOssConfig", families._GPT_OSS),
        ("ffn", "heads", "hidden", "experts"),
        {**TOKENS, "use_cache": False},
    ),
    "llama-hidden": (
        lambda: language_model("LlamaForCausalLM", "LlamaConfig", families._MODERN),
        ("ffn", "heads", "hidden"),
        {**TOKENS, "use_cache": False},
    ),
    "gpt2": (
        lambda: language_model("GPT2LMHeadModel", "GPT2Config", families._GPT2),
        ("ffn", "hidden"),
        {**TOKENS, "use_cache": False},
    ),
    "opt": (
        lambda: language_model("OPTForCausalLM", "OPTConfig", families._OPT),
        ("ffn", "hidden"),
        {**TOKENS, "use_cache": False},
    ),
    "unet": (lambda: _unet(False), (), unet_call()),
    "unet-lcm": (
        lambda: unet_like(time_cond_proj_dim=6),
        (),
        {**unet_call(), "timestep_cond": torch.ones(1, 6)},
    ),
    "unet-deep": (
        lambda: unet_like(
            layers_per_block=2,
            down_block_types=("CrossAttnDownBlock2D",) * 2,
            up_block_types=("CrossAttnUpBlock2D",) * 2,
            transformer_layers_per_block=(1, 2),
            attention_head_dim=(2, 4),  # how diffusers names the number of heads
            use_linear_projection=True,
        ),
        (),
        unet_call(),
    ),
    "clip": (lambda: _clip(60), (), TOKENS),
}


@dataclass(frozen=True)
class Case:
    """A model, its narrower shapes, and its groups."""

    module: nn.Module
    smaller: nn.Module
    groups: tuple[Group, ...]
    call: dict[str, Any]

    @property
    def targets(self) -> dict[str, torch.Size]:
        return parameter_shapes(self.smaller)


@cache
def case(name: str) -> Case:
    make, parts, call = MODELS[name]
    torch.manual_seed(0)
    module = make().eval()
    for parameter in module.parameters():  # biases and norms begin as noughts and ones, which would hide a mistake
        parameter.data += 0.1 * torch.randn_like(parameter)
    config = module.config if isinstance(module.config, Mapping) else module.config.to_dict()  # type: ignore[union-attr]
    cut = cut_width(type(module).__name__, config, 0.5, parts, 8)
    heads = next((g.before for g in cut.granted if g.field == "num_key_value_heads"), 0)
    smaller = blank(module, cut.config)
    return Case(module, smaller, find_groups(module, call, parameter_shapes(smaller), heads), call)


@pytest.fixture(params=MODELS)
def found(request: pytest.FixtureRequest) -> Case:
    return case(request.param)


def answer(module: nn.Module, call: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        return first_tensor(module(**call))


def narrowed(module: nn.Module, groups: tuple[Group, ...], kept: list[torch.Tensor]) -> nn.Module:
    """The model with these groups cut out of its parameters, whether a config could say it or not."""
    cut, made = cut_state(module.state_dict(), groups, kept), copy.deepcopy(module)
    for name, parameter in made.named_parameters(remove_duplicate=False):
        parameter.data = cut[name]
    for layer in made.modules():
        if isinstance(layer, Conv1D):
            layer.nf = layer.weight.shape[1]
    return made


def without_units(module: nn.Module, group: Group, units: torch.Tensor) -> nn.Module:
    """The model with all weights of these units at nought."""
    made = copy.deepcopy(module)
    parameters = dict(made.named_parameters(remove_duplicate=False))
    for site in group.sites:
        whole = parameters[site.parameter].data
        part, axis = (whole, site.axis) if site.entry == ALL else (whole[site.entry], site.axis - 1)
        part.index_fill_(axis, positions(site, group, units), 0)
    return made


def test_every_axis_that_shrinks_is_covered_once_and_no_other(found: Case) -> None:
    covered = {(n, a): torch.zeros(s[a]) for n, s in parameter_shapes(found.module).items() for a in range(len(s))}
    for group in found.groups:
        for site in group.sites:
            held = positions(site, group, torch.arange(group.units))
            share = 1 if site.entry == ALL else 1 / parameter_shapes(found.module)[site.parameter][0]
            covered[site.parameter, site.axis][held] += share
    for (name, axis), times in covered.items():
        shrinks = found.targets[name][axis] < len(times)
        assert torch.equal(times, torch.full_like(times, float(shrinks))), (name, axis)
    assert any(times.any() for times in covered.values())


def test_a_cut_of_nothing_is_the_identity(found: Case) -> None:
    state = found.module.state_dict()
    cut = cut_state(state, found.groups, [torch.arange(g.units) for g in found.groups])
    assert cut.keys() == state.keys()
    assert all(torch.equal(cut[name], state[name]) for name in state)


def test_what_is_kept_fits_the_smaller_model_and_runs(found: Case) -> None:
    scores = weight_importance.magnitude(found.module)
    kept = [g.choose(weight_importance.of_units(g, scores)) for g in found.groups]
    smaller = copy.deepcopy(found.smaller)
    smaller.load_state_dict(cut_state(found.module.state_dict(), found.groups, kept))
    given = answer(smaller, found.call)
    assert given.isfinite().all()
    assert given.std() > 0


def neurons(name: str) -> list[Group]:
    """The groups of a model's feed-forwards: no norm looks at them, and no softmax is scaled by their number."""
    last = ("mlp.down_proj.weight", "mlp.c_proj.weight", "fc2.weight", "ff.net.2.weight")
    axis = 0 if name == "gpt2" else 1
    return [g for g in case(name).groups if any(s.parameter.endswith(last) and s.axis == axis for s in g.sites)]


@pytest.mark.parametrize(
    ("name", "count"), [("llama", 1), ("qwen2", 1), ("gemma2", 1), ("gpt2", 2), ("opt", 2), ("clip", 2), ("unet", 4)]
)
def test_cutting_dead_neurons_changes_nothing(name: str, count: int) -> None:
    one, groups = case(name), neurons(name)
    assert len(groups) == count
    for group in groups:
        kept = group.choose(torch.rand(group.units, generator=torch.Generator().manual_seed(1)))
        killed = without_units(one.module, group, others(group, kept))
        wanted = answer(killed, one.call)
        assert torch.allclose(answer(narrowed(killed, (group,), [kept]), one.call), wanted, atol=1e-5)
        assert not torch.allclose(answer(one.module, one.call), wanted, atol=1e-4)  # alive, they did something
        wrong = others(group, kept)[: group.keep]
        assert not torch.allclose(answer(narrowed(killed, (group,), [wrong]), one.call), wanted, atol=1e-4)


@pytest.mark.parametrize("alive", [(0, 1), (1, 2), (0, 3)])
@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma2", "cohere"])
def test_cutting_dead_key_heads_with_their_queries_changes_nothing(name: str, alive: tuple[int, int]) -> None:
    """Through the config, as the stage does: of four key heads with two queries each, two stay."""
    one = case(name)
    (heads,) = (g for g in one.groups if g.units == 4)
    (inner,) = neurons(name)
    kept = [torch.tensor(alive) if g is heads else torch.arange(1, 64, 2) for g in one.groups]
    assert {id(g) for g in one.groups} == {id(heads), id(inner)}
    killed = one.module
    for group, units in zip(one.groups, kept, strict=True):
        killed = without_units(killed, group, others(group, units))
    scores = weight_importance.magnitude(killed)
    assert all(
        torch.equal(g.choose(weight_importance.of_units(g, scores)), k) for g, k in zip(one.groups, kept, strict=True)
    )
    smaller = copy.deepcopy(one.smaller)
    smaller.load_state_dict(cut_state(killed.state_dict(), one.groups, kept))
    assert torch.allclose(answer(smaller, one.call), answer(killed, one.call), atol=1e-5)
    assert not torch.allclose(answer(smaller, one.call), answer(one.module, one.call), atol=1e-3)


@pytest.mark.parametrize("name", ["mixtral", "gpt-oss", "qwen3-moe"])
def test_cutting_dead_neurons_dead_heads_and_experts_without_a_token_changes_nothing(name: str) -> None:
    """Through the config, as the stage does; each expert has other dead neurons."""
    one = case(name)
    tokens = sent(one.module, one.groups, [one.call])
    random = torch.Generator().manual_seed(2)
    kept = [g.choose(tokens[g.router] if g.router else torch.rand(g.units, generator=random)) for g in one.groups]
    assert sorted((g.units, g.keep) for g in one.groups if g.units == 4) == [(4, 2)] * 2  # key heads, and experts
    assert [int(t.sum()) for t in tokens.values()] == [2]
    killed = one.module
    for group, units in zip(one.groups, kept, strict=True):
        if not group.router:
            killed = without_units(killed, group, others(group, units))
    # What a router sends where must be as it was, which dead heads would change.
    kept = [
        g.choose(sent(killed, [g], [one.call])[g.router]) if g.router else k
        for g, k in zip(one.groups, kept, strict=True)
    ]
    smaller = copy.deepcopy(one.smaller)
    smaller.load_state_dict(cut_state(killed.state_dict(), one.groups, kept))
    assert torch.allclose(answer(smaller, one.call), answer(killed, one.call), atol=1e-5)
    assert not torch.allclose(answer(smaller, one.call), answer(one.module, one.call), atol=1e-3)


def others(group: Group, kept: torch.Tensor) -> torch.Tensor:
    return torch.tensor([u for u in range(group.units) if u not in kept.tolist()])


def test_a_dead_channel_before_a_group_norm_does_count() -> None:
    """A norm's mean and variance are taken over dead channels too, so they cannot go without a trace: this is why channels
    are chosen by what they are worth, and why a cut UNet needs `distill.features`."""
    one = case("unet")
    group = next(g for g in one.groups if any(s.parameter == "down_blocks.0.resnets.0.norm2.weight" for s in g.sites))
    kept = group.choose(torch.rand(group.units, generator=torch.Generator().manual_seed(1)))
    killed = without_units(one.module, group, others(group, kept))
    cut = narrowed(killed, (group,), [kept])
    for layer in cut.modules():
        if isinstance(layer, nn.GroupNorm):
            layer.num_channels = len(layer.weight)
    assert group.blocks == 8
    assert not torch.allclose(answer(cut, one.call), answer(killed, one.call), atol=1e-3)


@given(st.integers(1, 6), st.integers(1, 8), st.data())
def test_a_choice_keeps_equally_many_of_each_block_and_the_best_there(
    blocks: int, each: int, data: st.DataObject
) -> None:
    stay = data.draw(st.integers(1, each))
    numbers = data.draw(st.permutations(range(blocks * each)))
    group = Group((Site("w", 0, 0, blocks * each),), blocks * each, blocks * stay, blocks)
    scores = torch.tensor(numbers, dtype=torch.float32)
    kept = group.choose(scores).tolist()
    wanted = []
    for block in range(blocks):
        inside = range(block * each, (block + 1) * each)
        wanted += sorted(sorted(inside, key=lambda u: -numbers[u])[:stay])
    assert kept == wanted


@given(st.integers(1, 64), st.data())
def test_frequencies_are_thinned_out_evenly_whatever_their_scores(units: int, data: st.DataObject) -> None:
    keep = data.draw(st.integers(1, units))
    group = Group((Site("w", 1, 0, 2 * units, 2),), units, keep, even=True)
    kept = group.choose(torch.rand(units))
    steps = kept.diff()
    assert len(kept) == keep
    assert kept[0] == 0
    assert kept[-1] < units
    assert keep == 1 or steps.max() - steps.min() <= 1


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 3), st.integers(0, 7), st.data())
def test_a_sites_positions_are_its_units_in_every_copy(
    copies: int, units: int, size: int, start: int, data: st.DataObject
) -> None:
    chosen = sorted(data.draw(st.sets(st.integers(0, units - 1), min_size=1)))
    site = Site("w", 0, start, copies * units * size, copies)
    found = positions(site, Group((site,), units, len(chosen)), torch.tensor(chosen)).tolist()
    assert found == [start + (c * units + u) * size + i for c in range(copies) for u in chosen for i in range(size)]


def test_an_axis_that_no_group_covers_is_refused() -> None:
    one = case("clip")
    name = "embeddings.position_embedding.weight"
    targets = {**parameter_shapes(one.module), name: torch.Size([8, 32])}  # positions are no channels
    with pytest.raises(StageFailed, match=f"axis 0 of {name} shrinks from 16 to 8, and 0 of its entries") as caught:
        find_groups(one.module, one.call, targets)
    assert "use prune.depth" in caught.value.problems[0].fix


def test_finding_groups_leaves_the_model_as_it_was() -> None:
    one = case("llama")
    before = {k: v.clone() for k, v in one.module.state_dict().items()}
    message = answer(one.module, one.call)
    find_groups(one.module, one.call, one.targets, 4)
    assert all(torch.equal(before[k], v) for k, v in one.module.state_dict().items())
    assert torch.equal(answer(one.module, one.call), message)  # its rotary positions turn again


class Small(nn.Module):
    """A linear layer, GPT-2's transposed one, a convolution and a depthwise one, one behind the other."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.turned = nn.Linear(3, 4), Conv1D(6, 4)
        self.conv, self.depth = nn.Conv2d(6, 5, 2), nn.Conv2d(5, 5, 1, groups=5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.turned(self.first(x).tanh())
        return self.depth(self.conv(hidden.movedim(-1, 1)))


def small() -> tuple[Small, list[dict[str, torch.Tensor]]]:
    torch.manual_seed(0)
    return Small(), [{"x": torch.randn(n, 3, 3, 3)} for n in (1, 2)]  # of unequal size: the mean is over positions


def test_magnitude_is_every_weight_squared_under_every_name() -> None:
    module, _ = small()
    module.tied = module.first
    found = weight_importance.magnitude(module)
    assert found.keys() == {n for n, _ in module.named_parameters(remove_duplicate=False)}
    assert all(torch.equal(found[n], p**2) for n, p in module.named_parameters(remove_duplicate=False))
    assert torch.equal(found["tied.weight"], found["first.weight"])


def test_activation_is_a_plain_loop() -> None:
    module, calls = small()
    found = weight_importance.activation(module, calls)
    module.requires_grad_(False)
    with torch.no_grad():
        inputs = torch.cat([c["x"].flatten(0, -2) for c in calls])
        hidden = module.first(inputs).tanh()
        images = torch.cat([module.turned(module.first(c["x"]).tanh()).flatten(0, -2) for c in calls])
    for i in range(4):
        for j in range(3):
            wanted = float(module.first.weight[i, j] ** 2 * (inputs[:, j] ** 2).mean())
            assert float(found["first.weight"][i, j]) == pytest.approx(wanted, rel=1e-4)
        for j in range(6):
            wanted = float(module.turned.weight[i, j] ** 2 * (hidden[:, i] ** 2).mean())
            assert float(found["turned.weight"][i, j]) == pytest.approx(wanted, rel=1e-4)
    for i in range(6):
        wanted_all = module.conv.weight[:, i] ** 2 * (images[:, i] ** 2).mean()
        assert torch.allclose(found["conv.weight"][:, i], wanted_all, rtol=1e-4)
    assert torch.equal(found["depth.weight"], module.depth.weight**2)
    assert torch.equal(found["first.bias"], module.first.bias**2)
    assert not module.first._forward_pre_hooks


def test_taylor_is_what_the_loss_moves_by_to_first_order() -> None:
    module, calls = small()
    module.double()
    calls = [{"x": c["x"].double()} for c in calls]

    def loss_of(call: Mapping[str, Any]) -> torch.Tensor:
        return module(**call).square().sum()

    found = weight_importance.taylor(module, calls, loss_of)
    step = 1e-5  # of the weight: the loss's move, scaled up to the whole weight
    for name, place in [
        ("first.weight", (2, 1)),
        ("turned.weight", (3, 5)),
        ("conv.weight", (0, 1, 1, 0)),
        ("first.bias", (2,)),
    ]:
        parameter, moves = module.get_parameter(name), []
        for call in calls:
            with torch.no_grad():
                kept, losses = parameter[place].item(), []
                for sign in (1, -1):
                    parameter[place] = kept * (1 + sign * step)
                    losses.append(loss_of(call).item())
                parameter[place] = kept
            moves.append((losses[0] - losses[1]) / (2 * step))
        assert float(found[name][place]) == pytest.approx(sum(m**2 for m in moves), rel=1e-4), name
    assert all(p.grad is None for p in module.parameters())


def test_a_units_worth_is_its_share_at_every_site() -> None:
    group = Group((Site("a", 0, 0, 4), Site("b", 1, 2, 8, 2)), 4, 2)
    a, b = torch.rand(4, 3), torch.rand(5, 12)
    found = weight_importance.of_units(group, {"a": a, "b": b})
    for unit in range(4):
        first = float(a[unit].sum() / (a.sum() / 4))
        second = float((b[:, 2 + unit] + b[:, 6 + unit]).sum() / (b[:, 2:10].sum() / 4))
        assert float(found[unit]) == pytest.approx(first + second, rel=1e-5)
    louder = weight_importance.of_units(group, {"a": 1000 * a, "b": b})  # no site drowns another
    assert torch.allclose(louder, found, rtol=1e-5)
    assert weight_importance.of_units(group, {"a": torch.zeros(4, 3), "b": torch.zeros(5, 12)}).tolist() == [0] * 4


@given(st.lists(st.tuples(st.integers(1, 4), st.floats(0, 10)), max_size=8), st.integers(0, 16))
def test_the_least_missed_set_is_the_one_that_trying_all_finds(units: list[tuple[int, float]], total: int) -> None:
    costs, scores = [c for c, _ in units], [s for _, s in units]
    every = [some for n in range(len(units) + 1) for some in combinations(range(len(units)), n)]
    fitting = [sum(scores[u] for u in some) for some in every if sum(costs[u] for u in some) == total]
    chosen = least_missed(costs, scores, total)
    if not fitting:
        assert chosen == ()
        return
    assert sum(costs[u] for u in chosen) == total
    assert len(set(chosen)) == len(chosen)
    assert sum(scores[u] for u in chosen) == pytest.approx(min(fitting))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=10, unique=True), st.data())
def test_of_single_blocks_those_of_least_influence_go(scores: list[float], data: st.DataObject) -> None:
    total = data.draw(st.integers(0, len(scores)))
    wanted = sorted(sorted(range(len(scores)), key=scores.__getitem__)[:total])
    found = least_missed([1] * len(scores), scores, total)
    assert sum(scores[u] for u in found) == pytest.approx(sum(scores[u] for u in wanted))


class Scaled(nn.Module):
    """A block that turns what it is given by an angle."""

    def __init__(self, angle: float) -> None:
        super().__init__()
        self.angle = torch.tensor(angle)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        x, y = hidden_states.unbind(-1)
        return 3 * torch.stack(
            [x * self.angle.cos() - y * self.angle.sin(), x * self.angle.sin() + y * self.angle.cos()], -1
        )


def test_influence_is_the_turn_and_not_the_length() -> None:
    module = nn.Sequential(Scaled(0.0), Scaled(0.5), Scaled(3.1416))
    calls = [{"input": torch.randn(2, 5, 2)}, {"input": torch.randn(1, 3, 2)}]
    found = of_blocks(module, ["0", "1", "2"], calls)
    assert list(found.values()) == pytest.approx([0, 1 - float(torch.tensor(0.5).cos()), 2], abs=1e-5)
    assert of_blocks(module, ["1"], []) == {"1": 0.0}
    assert not module[0]._forward_hooks


def test_influence_is_a_mean_over_positions_not_over_calls() -> None:
    class Turning(nn.Module):
        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            return -hidden_states if hidden_states.shape[0] == 3 else hidden_states

    found = of_blocks(nn.Sequential(Turning()), ["0"], [{"input": torch.randn(n, 2)} for n in (1, 3)])
    assert found["0"] == pytest.approx(2 * 3 / 4, abs=1e-5)


def test_norm_groups_and_heads_make_blocks() -> None:
    for group in case("unet").groups:
        assert group.even or group.blocks in (1, 8)
        assert group.keep % group.blocks == 0
    assert sum(g.blocks == 8 for g in case("unet").groups) > 5
    inside = [g for g in case("gpt2").groups if any(".attn.c_attn" in s.parameter and s.copies == 3 for s in g.sites)]
    assert [g.blocks for g in inside] == [4, 4]  # each head gets narrower, none goes
    assert replace(inside[0], blocks=1) != inside[0]


def test_what_is_added_to_the_frequencies_is_thinned_out_with_them() -> None:
    """A guidance embedding meets the sines and cosines of the timestep entry by entry."""
    (group,) = (g for g in case("unet-lcm").groups if g.even)
    assert {(s.parameter, s.axis, s.copies) for s in group.sites} == {
        ("time_embedding.cond_proj.weight", 0, 2),
        ("time_embedding.linear_1.weight", 1, 2),
    }
    assert (group.units, group.keep) == (16, 8)


def test_thinning_keeps_a_model_on_the_frequencies_it_will_compute() -> None:
    from diffusers.models.embeddings import get_timestep_embedding

    (group,) = (g for g in case("unet").groups if g.even)
    kept = positions(group.sites[0], group, group.choose(torch.zeros(group.units)))
    times = torch.tensor([3.0, 500.0, 999.0])
    wide, narrow = (get_timestep_embedding(times, n, flip_sin_to_cos=True, downscale_freq_shift=0) for n in (32, 16))
    assert torch.allclose(wide[:, kept], narrow, atol=1e-4)

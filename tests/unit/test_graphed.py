"""Calls replayed from graphs: the same output as eager for every signature, owned by the caller, and eager where no graph answers."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.errors import UserError
from compress.opening.call_signature import copied
from compress.opening.compile_and_capture import capture, ran
from compress.opening.graphed import KEPT, MOVES
from tests.graphs import pretended
from tests.tiny import _unet, tiny_byte_tokenizer

Call = dict[str, Any]


@pytest.fixture(autouse=True)
def graphs() -> Iterator[None]:
    with pretended(), torch.no_grad():
        yield


class Part(torch.nn.Module):
    """Takes what pipelines give: nested mappings, tuples, None and numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(4, 4)

    def forward(self, sample: torch.Tensor, timestep: Any = 1, more: Any = None, scale: float = 1.0) -> Any:
        seen = self.inner(sample) * scale + torch.as_tensor(timestep)
        for one in (more or {}).get("pair", ()):
            seen = seen + one
        return {"sample": seen, "pair": (seen * 2, None), "scale": scale}


def graphed(module: torch.nn.Module) -> torch.nn.Module:
    other = copy.deepcopy(module)
    capture(other)
    return other


def part() -> Part:
    torch.manual_seed(0)
    return Part().eval()


CALLS = st.fixed_dictionaries(
    {
        "rows": st.integers(1, 3),
        "timestep": st.sampled_from([1, 2.5, torch.tensor(7), torch.tensor([3.0])]),
        "pair": st.sampled_from([None, 0, 1, 2]),
        "scale": st.sampled_from([1.0, 2.0, 1]),
    }
)


@settings(max_examples=25, deadline=None)
@given(st.lists(CALLS, min_size=1, max_size=12))
def test_outputs_are_those_of_eager_calls_and_stay_the_callers(calls: list[Call]) -> None:
    with pretended(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # more signatures than are kept
        eager = part()
        other = graphed(eager)
        kept = []
        for seed, reported in enumerate(calls):
            torch.manual_seed(seed)
            sample = torch.randn(reported["rows"], 4)
            more = (
                None if reported["pair"] is None else {"pair": tuple(torch.randn(4) for _ in range(reported["pair"]))}
            )
            call = (sample, reported["timestep"])
            want = eager(*call, more=more, scale=reported["scale"])
            got = other(*call, more=more, scale=reported["scale"])
            kept.append((want, got, got["sample"].clone()))
        for want, got, was in kept:
            torch.testing.assert_close(got, want)
            assert torch.equal(got["sample"], was)  # later calls did not write into it
        found = ran(other).calls
        assert found is not None
        assert found.replayed + found.eager.total() == len(calls)
        assert found.captured <= KEPT


def test_one_graph_a_signature_however_it_is_spelt() -> None:
    other = graphed(part())
    x = torch.ones(2, 4)
    other(x, 1)
    other(sample=x + 1, timestep=2)  # a number is a tensor to a graph: another at each step
    other(timestep=3, sample=x)
    found = ran(other).calls
    assert found is not None
    assert (found.captured, found.replayed) == (1, 3)
    other(x, 1, scale=2.0)
    other(x, 1.0)
    assert found.captured == 3
    assert str(ran(other)) == "5 calls from 3 CUDA graphs, 0 eager"


def test_a_unet_is_replayed_with_nested_conditions() -> None:
    torch.manual_seed(0)
    eager = _unet(xl=True).eval()
    other = graphed(eager)
    for seed, rows in enumerate((2, 4, 2)):
        draw = torch.Generator().manual_seed(seed)
        call = {
            "sample": torch.randn(rows, 4, 8, 8, generator=draw),
            "timestep": torch.tensor(3 * seed),
            "encoder_hidden_states": torch.randn(rows, 6, 64, generator=draw),
            "added_cond_kwargs": {
                "text_embeds": torch.randn(rows, 32, generator=draw),
                "time_ids": torch.ones(rows, 6),
            },
            "cross_attention_kwargs": None,
        }
        torch.testing.assert_close(other(**call).sample, eager(**call).sample)
        assert torch.equal(other(**call, return_dict=False)[0], other(**call).sample)
    found = ran(other).calls
    assert found is not None
    assert (found.captured, found.eager.total()) == (4, 0)


def reported(module: torch.nn.Module, *args: Any, **kwargs: Any) -> str:
    """The one warning of a call that no graph answers."""
    with warnings.catch_warnings(record=True) as recorded:
        warnings.simplefilter("always")
        module(*args, **kwargs)
        module(*args, **kwargs)
    (one,) = recorded
    return str(one.message)


X = torch.ones(2, 4)


def test_gradients_are_eager() -> None:
    other = graphed(part())
    with torch.enable_grad():
        assert "gradients" in reported(other, X)
        other(X)["sample"].sum().backward()  # and flow
    assert other.inner.weight.grad is not None


def test_training_mode_is_eager() -> None:
    assert "training mode" in reported(graphed(part()).train(), X)


def test_autocast_is_eager() -> None:
    other = graphed(part())
    with torch.autocast("cpu", torch.bfloat16):
        assert "autocast" in reported(other, X)


def test_a_captured_forward_has_the_signature_of_its_own() -> None:
    assert list(inspect.signature(graphed(part()).forward).parameters) == ["sample", "timestep", "more", "scale"]


def test_hooks_on_parts_run() -> None:
    eager, other = part(), graphed(part())
    other(X)
    handle = other.inner.register_forward_hook(lambda module, args, output: output + 1)
    assert "hooks" in reported(other, X)
    eager.inner.register_forward_hook(lambda module, args, output: output + 1)
    torch.testing.assert_close(other(X), eager(X))
    handle.remove()
    torch.testing.assert_close(other(X), part()(X))
    found = ran(other).calls
    assert found is not None
    assert (found.captured, found.replayed) == (1, 2)


def test_hooks_on_the_module_itself_run_around_replays() -> None:
    other, recorded = graphed(part()), []
    other.register_forward_pre_hook(lambda module, args: recorded.append(1))
    other(X)
    other(X)
    assert recorded == [1, 1]
    assert str(ran(other)) == "2 calls from 1 CUDA graphs, 0 eager"


def test_what_may_change_unseen_is_eager() -> None:
    assert "`more.pair` is a set" in reported(graphed(part()), X, more={"pair": {1.0}}).replace("a value.", "")


def test_a_call_that_needs_numbers_on_the_way_is_eager() -> None:
    class Reads(Part):
        def forward(self, sample: torch.Tensor, *rest: Any, **more: Any) -> Any:
            return self.inner(sample) * (1 if sample.sum() > 0 else 2)

    message = reported(graphed(Reads().eval()), X)
    assert (
        message
        == "Reads is called without a CUDA graph: it cannot be captured: CUDA error: operation not permitted when stream is capturing"
    )


def test_what_cannot_be_captured_is_not_tried_for_ever() -> None:
    class Reads(Part):
        def forward(self, sample: torch.Tensor, *rest: Any, **more: Any) -> Any:
            tries.append(len(sample))
            return self.inner(sample) * float(sample.sum())

    tries: list[int] = []
    other = graphed(Reads().eval())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for rows in range(1, KEPT + 5):
            torch.testing.assert_close(other(torch.ones(rows, 4)), other.forward.eager(torch.ones(rows, 4)))
    assert tries.count(KEPT + 1) == 2  # the call and the one it is compared with


def test_a_call_that_writes_into_its_inputs_is_eager() -> None:
    class Writes(Part):
        def forward(self, sample: torch.Tensor, *rest: Any, **more: Any) -> Any:
            return self.inner(sample.add_(1))

    assert "writes into what it is given" in reported(graphed(Writes().eval()), X.clone())


def test_more_signatures_than_are_kept_are_eager() -> None:
    other = graphed(part())
    for rows in range(1, KEPT + 1):
        other(torch.ones(rows, 4))
    assert f"more than {KEPT} ways" in reported(other, torch.ones(KEPT + 1, 4))
    other(torch.ones(1, 4))  # those before are still answered
    found = ran(other).calls
    assert found is not None
    assert (found.captured, found.replayed) == (KEPT, KEPT + 1)


@pytest.mark.parametrize(
    "change",
    [
        lambda module: module.double().float(),
        lambda module: setattr(module.inner, "weight", torch.nn.Parameter(torch.ones(4, 4))),
        lambda module: setattr(module, "inner", torch.nn.Linear(4, 4)),
        lambda module: setattr(module.inner.weight, "data", torch.ones(4, 4)),
        lambda module: module.load_state_dict({k: v + 1 for k, v in module.state_dict().items()}, assign=True),
    ],
)
def test_weights_that_moved_are_captured_anew(change: Any) -> None:
    other = graphed(part())
    other(X)
    change(other)
    eager = copy.deepcopy(other)
    del vars(eager)["forward"]
    torch.testing.assert_close(other(X), eager(X))
    assert str(ran(other)) == "2 calls from 2 CUDA graphs, 0 eager"


def test_a_copy_takes_graphs_of_its_own() -> None:
    one = graphed(part())
    one(X)
    other = copy.deepcopy(one)
    other.inner.weight.fill_(2)
    assert not torch.equal(other(X)["sample"], one(X)["sample"])
    assert [str(ran(module)) for module in (one, other)] == [
        "2 calls from 1 CUDA graphs, 0 eager",
        "1 calls from 1 CUDA graphs, 0 eager",
    ]


def test_weights_changed_in_place_need_no_new_graph() -> None:
    other = graphed(part())
    other(X)
    other.inner.weight.add_(1)
    want = torch.nn.functional.linear(X, other.inner.weight, other.inner.bias) + 1
    torch.testing.assert_close(other(X)["sample"], want)
    assert str(ran(other)) == "2 calls from 1 CUDA graphs, 0 eager"


def test_weights_that_move_at_every_call_end_in_eager_calls() -> None:
    other = graphed(part())
    with warnings.catch_warnings(record=True) as recorded:
        warnings.simplefilter("always")
        for _ in range(MOVES + 4):
            other(X)
            other.inner.weight.data = other.inner.weight.data.clone()
    assert [str(one.message) for one in recorded] == [
        "Part is called without a CUDA graph: its weights are moved or exchanged between calls"
    ]


def test_the_processor_has_no_graphs() -> None:
    with (
        mock.patch("compress.opening.compile_and_capture.DEVICES", ("cuda",)),
        pytest.raises(UserError, match="Part lies on cpu"),
    ):
        capture(part())


def tiny_llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tiny_byte_tokenizer()),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).eval()


def test_greedy_decoding_gives_the_same_tokens() -> None:
    eager = tiny_llama()
    other = graphed(eager)
    for rows, length, new in ((1, 5, 20), (2, 7, 12), (1, 5, 20), (1, 9, 3)):
        prompt = torch.randint(2, 200, (rows, length), generator=torch.Generator().manual_seed(length))
        asked = {
            "attention_mask": torch.ones_like(prompt),
            "max_new_tokens": new,
            "min_new_tokens": new,
            "pad_token_id": 0,
        }
        want = eager.generate(prompt, do_sample=False, **asked)
        assert torch.equal(other.generate(prompt, do_sample=False, **asked), want)
    found = ran(other).calls
    assert found is not None
    assert (found.captured, found.replayed, found.eager.total(), found.prompts) == (2, 19 + 11 + 19 + 2, 0, 4)


def test_other_ways_to_generate_are_the_models_own() -> None:
    eager = tiny_llama()
    other = graphed(eager)
    prompt = torch.randint(2, 200, (1, 5), generator=torch.Generator().manual_seed(1))
    asked = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 6, "pad_token_id": 0, "do_sample": False}
    for more in ({"num_beams": 2}, {"use_cache": False}, {"cache_implementation": "dynamic"}):
        assert torch.equal(other.generate(prompt, **asked, **more), eager.generate(prompt, **asked, **more))
    assert ran(other).calls.captured == 0  # type: ignore[union-attr]


def test_a_cache_that_is_gone_takes_its_graph_with_it() -> None:
    other = graphed(tiny_llama())
    prompt = torch.randint(2, 200, (1, 5), generator=torch.Generator().manual_seed(1))
    asked = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 4, "pad_token_id": 0, "do_sample": False}
    for _ in range(KEPT + 2):
        other.generate(prompt, cache_implementation="static", disable_compile=True, **asked)
    found = ran(other).calls
    assert found is not None
    assert found.eager.total() == 0


def records() -> list[Any]:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
    from transformers.modeling_outputs import CausalLMOutputWithPast

    states = (torch.ones(1), torch.zeros(1))
    return [CausalLMOutputWithPast(logits=torch.ones(2), hidden_states=states), UNet2DConditionOutput(torch.ones(2))]


@pytest.mark.parametrize("record", records(), ids=lambda one: type(one).__name__)
def test_a_librarys_record_is_copied_to_what_its_class_would_make(record: Any) -> None:
    found, made = copied(record, torch.device("cpu")), type(record)(**dict(record.items()))
    assert type(found) is type(made)
    assert list(found.keys()) == list(made.keys())
    assert vars(found).keys() == vars(made).keys()
    assert torch.equal(found[0], made[0])
    assert found[0] is not record[0]
    assert len(found.to_tuple()) == len(made.to_tuple())
    for name in vars(made):
        assert (getattr(found, name) is None) == (getattr(made, name) is None), name

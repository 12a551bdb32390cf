"""Regional compilation: which blocks are compiled, that they give what eager blocks give, and what is reported of it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch

from compress.errors import UserError
from compress.opening.compile_and_capture import blocks_of, capture, compile_blocks, ran
from tests.graphs import pretended
from tests.tiny import _unet
from tests.unit.test_graphed import tiny_llama


@pytest.fixture(autouse=True)
def compiler() -> Iterator[None]:
    """What the compiler traces is run as it stands; `test_real_code` makes real code."""
    torch._dynamo.reset()
    with mock.patch("torch._inductor.compile_fx.compile_fx", lambda graph, examples: graph.forward), torch.no_grad():
        yield


def unet_call(rows: int = 2, side: int = 8) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(rows)
    return {
        "sample": torch.randn(rows, 4, side, side, generator=draw),
        "timestep": torch.tensor(5),
        "encoder_hidden_states": torch.randn(rows, 6, 32, generator=draw),
    }


def test_a_unets_blocks_share_their_code() -> None:
    torch.manual_seed(0)
    eager = _unet(xl=False).eval()
    other = copy.deepcopy(eager)
    compile_blocks(other)
    assert {type(one).__name__ for one in blocks_of(other)} == {"BasicTransformerBlock"}
    for call in (unet_call(), unet_call(), unet_call(4), unet_call(2, 16)):
        torch.testing.assert_close(other(**call).sample, eager(**call).sample)
    code = ran(other).code
    assert code is not None
    # Blocks are of two widths, and were called at three sizes: all of one width share their code.
    assert (code.blocks, code.graphs) == (len(blocks_of(other)), 2 * 3)
    assert "BasicTransformerBlock" in str(ran(other))


def test_a_decoders_layers_are_compiled_each() -> None:
    eager = tiny_llama()
    other = copy.deepcopy(eager)
    compile_blocks(other)
    tokens = torch.randint(2, 200, (1, 9), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(other(input_ids=tokens).logits, eager(input_ids=tokens).logits)
    assert str(ran(other)).startswith("2 blocks (LlamaDecoderLayer) on 2 compiled graphs")


def test_steps_of_compiled_layers_are_captured() -> None:
    with pretended():
        eager = tiny_llama()
        other = copy.deepcopy(eager)
        compile_blocks(other)
        capture(other)
        prompt = torch.randint(2, 200, (1, 5), generator=torch.Generator().manual_seed(1))
        asked = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 8, "pad_token_id": 0, "do_sample": False}
        want = eager.generate(prompt, **asked)
        assert torch.equal(other.generate(prompt, **asked), want)
        assert torch.equal(other.generate(prompt, **asked), want)
    found = ran(other)
    assert found.calls is not None
    assert found.code is not None
    assert (found.calls.captured, found.calls.eager.total()) == (1, 0)
    assert found.code.graphs <= 2 * len(blocks_of(other))  # a prompt's and a step's


def test_further_parts_can_be_compiled() -> None:
    other = _unet(xl=False).eval()
    compile_blocks(other, also=("ResnetBlock2D",))
    other(**unet_call())
    assert "ResnetBlock2D" in str(ran(other))


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(UserError, match="Linear has no repeated blocks"):
        compile_blocks(torch.nn.Linear(2, 2))

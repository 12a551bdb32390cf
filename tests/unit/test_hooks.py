"""Hooks are there while the context lasts, and gone however it ends."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compress.algorithms.forward_hooks import hearing


def layers() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))


def hooks_of(module: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())


def test_every_call_of_the_named_layers_is_reported_in_order() -> None:
    module, recorded = layers(), list[str]()
    with hearing(
        module, ("2", "0"), lambda name, args, named, output: recorded.append(f"{name} {tuple(output.shape)}")
    ):
        module(torch.ones(1, 2))
        module(torch.ones(4, 2))
    assert recorded == ["0 (1, 3)", "2 (1, 2)", "0 (4, 3)", "2 (4, 2)"]
    assert hooks_of(module) == 0


def test_arguments_come_as_they_were_given() -> None:
    module, recorded = nn.Bilinear(2, 2, 1), list[object]()
    one, two = torch.ones(1, 2), torch.zeros(1, 2)
    with hearing(module, ("",), lambda name, args, named, output: recorded.extend((args, dict(named)))):
        module(one, input2=two)
    assert recorded == [(one,), {"input2": two}]


def test_a_call_that_fails_leaves_no_hook_behind() -> None:
    module = layers()
    with pytest.raises(RuntimeError), hearing(module, ("0",), lambda *_: None):
        module(torch.ones(1, 5))
    assert hooks_of(module) == 0


def test_a_layer_that_is_not_there_sets_none() -> None:
    module = layers()
    with pytest.raises(AttributeError), hearing(module, ("0", "nine"), lambda *_: None):
        raise AssertionError("never entered")
    assert hooks_of(module) == 0

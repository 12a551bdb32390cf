"""Recorded calls come back as they were, each tensor stored once, and a crash leaves no half file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from compress.training.recordings import count_calls, read_call, write_calls


def calls() -> list[dict[str, Any]]:
    torch.manual_seed(0)
    prompt, flags = torch.randn(2, 3, 4), torch.tensor([True, False])
    extra = {"text_embeds": torch.randn(2, 4), "time_ids": torch.arange(6).view(2, 3)}
    return [
        {
            "sample": torch.randn(2, 4, 8, 8),
            "timestep": torch.tensor(900 - 100 * i),
            "encoder_hidden_states": prompt.clone(),
            "mask": flags,
            "added_cond_kwargs": {**extra, "deeper": {"guidance": None, "scale": 1.5}},
            "return_dict": False,
            "cross_attention_kwargs": None,
        }
        for i in range(3)
    ]


def equal(one: Any, other: Any) -> bool:
    if torch.is_tensor(one):
        return torch.is_tensor(other) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and list(one) == list(other) and all(equal(one[k], other[k]) for k in one)
    return type(one) is type(other) and one == other


def stored(path: Path) -> int:
    with safe_open(path, framework="pt") as file:
        return len(list(file.keys()))


def test_calls_come_back_as_they_were(tmp_path: Path) -> None:
    path, given = tmp_path / "calls.safetensors", calls()
    assert write_calls(path, given) == count_calls(path) == 3
    assert all(equal(read_call(path, i), call) for i, call in enumerate(given))
    assert not equal(read_call(path, 0), given[1])
    with pytest.raises(IndexError):
        read_call(path, 3)


def test_a_tensor_that_comes_again_is_stored_once(tmp_path: Path) -> None:
    path = tmp_path / "calls.safetensors"
    write_calls(path, calls())
    assert stored(path) == 3 + 3 + 4  # the samples, the timesteps, and what all calls share


@pytest.mark.parametrize(
    "others",
    [
        [torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0], dtype=torch.bfloat16)],
        [torch.tensor([1, 0]), torch.tensor([1.0, 0.0]), torch.tensor([True, False])],
        [torch.zeros(2, 1), torch.zeros(1, 2), torch.zeros(2)],
        [torch.tensor(float("nan")), torch.tensor(float("nan"))],
    ],
)
def test_what_differs_in_type_or_shape_stays_apart(tmp_path: Path, others: list[torch.Tensor]) -> None:
    path = tmp_path / "calls.safetensors"
    write_calls(path, [{"x": x} for x in others])
    found = [read_call(path, i)["x"] for i in range(len(others))]
    assert [(f.dtype, f.shape) for f in found] == [(x.dtype, x.shape) for x in others]
    assert stored(path) == len(others)


def test_a_view_is_stored_with_its_own_values(tmp_path: Path) -> None:
    path, table = tmp_path / "calls.safetensors", torch.arange(12.0).view(3, 4)
    write_calls(path, [{"turned": table.T, "spread": table[:1].expand(3, 4)}, {"part": table[1:], "whole": table}])
    assert torch.equal(read_call(path, 0)["turned"], table.T)
    assert torch.equal(read_call(path, 0)["spread"], table[:1].expand(3, 4))
    assert equal(read_call(path, 1), {"part": table[1:], "whole": table})


def test_calls_without_tensors_and_no_calls_at_all(tmp_path: Path) -> None:
    assert write_calls(tmp_path / "plain.safetensors", [{"use_cache": False}]) == 1
    assert read_call(tmp_path / "plain.safetensors", 0) == {"use_cache": False}
    assert write_calls(tmp_path / "none.safetensors", []) == 0
    assert count_calls(tmp_path / "none.safetensors") == 0


def test_a_crash_while_recording_leaves_no_file(tmp_path: Path) -> None:
    def crashing() -> Iterator[dict[str, Any]]:
        yield calls()[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_calls(tmp_path / "calls.safetensors", crashing())
    assert list(tmp_path.iterdir()) == []


def test_a_crash_while_writing_leaves_nothing_under_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, *args: Any) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "calls.safetensors"
    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(OSError, match="No space"):
        write_calls(path, calls())
    assert count_calls(path) == 0
    assert not path.exists()
    monkeypatch.undo()
    assert write_calls(path, calls()) == 3  # what is left of the crash is in nobody's way
    assert [f.name for f in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("value", [object(), [torch.zeros(2)], (1, torch.zeros(1))])
def test_an_argument_that_cannot_be_written_down_is_an_error(tmp_path: Path, value: Any) -> None:
    with pytest.raises(TypeError, match="JSON serializable"):
        write_calls(tmp_path / "calls.safetensors", [{"x": value}])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", [b"", b"garbage", None])
def test_a_file_that_does_not_read_holds_no_calls(tmp_path: Path, damage: bytes | None) -> None:
    path = tmp_path / "calls.safetensors"
    write_calls(path, calls())
    whole = path.read_bytes()
    path.write_bytes(whole[:-10] if damage is None else damage)
    assert count_calls(path) == 0


def test_tensors_on_two_devices_are_stored_apart_and_never_compared() -> None:
    """Of a device without numbers a comparison fails: as the processor's with a GPU's does."""
    from compress.training.recordings import _same

    assert not _same(torch.zeros(2), torch.zeros(2, device="meta"))
    assert _same(torch.zeros(2), torch.zeros(2))

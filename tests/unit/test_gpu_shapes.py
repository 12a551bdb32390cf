"""The large shapes' measurements at tiny sizes, graphs pretended: every way gives eager's output and a row that says what ran."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any
from unittest import mock

import pytest
import torch

from tests.gpu import large, ways
from tests.gpu.bench import Bench, Way, measure
from tests.gpu.fp8 import RowwiseLinear, rowwise
from tests.gpu.limits import TookTooLong, within
from tests.gpu.shapes import PARTS
from tests.graphs import pretended

SECTIONS = {one.name: one for part in PARTS.values() for one in part}
ROUNDING = {"fp8": 0.2, "torchao": 0.1, "": 0.05}  # of bfloat16, and of 8 bits


@pytest.fixture
def quick() -> Any:
    """As few blocks, and no clock."""
    torch._dynamo.reset()
    with mock.patch("tests.gpu.bench.TINY_BLOCKS", 2):
        yield


def rows_of(name: str) -> dict[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    SECTIONS[name].run(True, lambda row, values: found.update({row: values}))
    return found


@pytest.mark.parametrize("name", [*(pytest.param(one, marks=pytest.mark.slow) for one in ("sdxl", "flux")), "llama"])
@pytest.mark.usefixtures("quick")
def test_every_way_is_tried(name: str) -> None:
    with pretended(), mock.patch("torch.cuda.synchronize"):
        rows = rows_of(name)
    tried = {"sdxl": ways.XL, "flux": ways.FLUX, "llama": ways.LLAMA}[name]
    assert list(rows) == ["model", *(way.name for way in tried)]
    for way in tried:
        row = rows[way.name]
        assert "failed" not in row, row
        most = next(limit for word, limit in ROUNDING.items() if word in way.name)
        assert float(row["deviation_norm"]) < most, (way.name, row)
        assert way.graph == ("CUDA graphs, 0 eager" in row["ran"]), row
        assert ("compile" in way.name) == ("compiled graphs" in row["ran"]), row


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", ["llama", "sd15"])
def test_without_a_gpu_graphs_are_not_run(name: str) -> None:
    rows = rows_of(name)
    assert rows["CUDA graph"] == {"not run": "the processor has no CUDA graphs"}
    assert "times_eager" in rows["regional compile"]


def test_a_way_that_fails_or_takes_too_long_is_a_row() -> None:
    def forever(bench: object) -> Any:
        while True:
            time.sleep(0.01)

    def broken(bench: object) -> Any:
        raise ValueError("no such thing")

    rows: dict[str, Mapping[str, object]] = {}
    module = torch.nn.Linear(2, 2)
    bench = Bench(module, [{"input": torch.ones(1, 2)}], lambda row, values: rows.update({row: values}), False, 0.0)
    bench.until = time.monotonic() + 60
    measured = [Way("forever", forever, 0.2, graph=False), Way("broken", broken, 5, graph=False)]
    measure(bench, measured)
    assert rows == {
        "forever": {"failed": "TookTooLong: broken off after 0 s"},
        "broken": {"failed": "ValueError: no such thing"},
    }
    bench.until = time.monotonic() + 3
    measure(bench, measured[1:])
    assert rows["broken"] == {"not run": "3 s are left"}


def test_work_is_broken_off() -> None:
    with pytest.raises(TookTooLong), within(0.1):
        time.sleep(5)
    with within(0.1):
        pass
    time.sleep(0.15)  # the alarm is off


def test_parts_take_four_minutes() -> None:
    assert all(sum(one.seconds for one in sections) <= 240 for sections in PARTS.values())


def test_rows_in_eight_bits_are_near_the_exact_product() -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 32).requires_grad_(False)
    given = (
        torch.randn(3, 5, 64) * torch.logspace(-3, 3, 5)[:, None]
    )  # tokens of very different size, each with its own scale
    found, want = RowwiseLinear(linear)(given), linear(given)
    assert found.shape == want.shape
    error = (found - want).norm(dim=-1) / want.norm(dim=-1)
    assert float(error.max()) < 0.1
    assert float(error.min()) > 0  # it does round


def test_only_wide_layers_of_repeated_blocks_are_rounded() -> None:
    module, _ = large.flux(True)
    before = {name for name, one in module.named_modules() if isinstance(one, torch.nn.Linear)}
    rowwise(module)
    left = {name for name, one in module.named_modules() if isinstance(one, torch.nn.Linear)}
    gone = before - left
    assert {"transformer_blocks.0.attn.to_q", "single_transformer_blocks.1.proj_mlp"} <= gone
    assert not any("norm" in name or not name.startswith(("transformer", "single")) for name in gone)
    assert {"x_embedder", "proj_out", "transformer_blocks.0.norm1.linear"} <= left

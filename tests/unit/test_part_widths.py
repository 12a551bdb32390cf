"""The plan of a pipeline whose parts are packed says of each part how wide its weights will be, as what is made then holds them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import compress
from compress.machine.deps import installed
from compress.model import bit_widths
from compress.model.describing import describe
from compress.planning.part_widths import part_widths
from compress.planning.plan import Plan
from compress.planning.show import plan_dict, plan_text
from tests.stages import apply
from tests.tiny import tiny_diffusion

AO = "quantize.torchao"
UNET: Mapping[str, Any] = {"components": ["unet"], "ignore": ["time_embedding.*"]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_diffusion(tmp_path_factory.mktemp("model"))


def planned(model: Path, folder: Path, *stages: object) -> Plan:
    import yaml

    file = folder / "r.yaml"
    file.write_text(yaml.safe_dump({"schema": 1, "name": "r", "model": str(model), "stages": list(stages)}))
    found = compress.plan(file, cache=folder / "cache")
    assert isinstance(found, Plan)
    return found


def test_every_part_is_told_also_one_that_is_left(model: Path, tmp_path: Path) -> None:
    found = planned(model, tmp_path, {AO: UNET})
    widths = part_widths(found)
    assert set(widths) == {"unet", "vae", "text_encoder"}
    assert set(widths["unet"].shares) == {"8 bits", "float32"}
    assert widths["vae"].shares == {"float32": 1.0} == widths["text_encoder"].shares
    assert widths["vae"].convolutions > 0.9
    assert widths["text_encoder"].convolutions == 0.0
    assert all(sum(one.shares.values()) == pytest.approx(1) for one in widths.values())
    lines = plan_text(found).splitlines()
    at = lines.index("  weights of each part:")
    assert [line.split()[0] for line in lines[at + 1 : at + 4]] == list(widths)
    assert lines[at + 1 + list(widths).index("vae")].endswith("in convolutions)")
    assert plan_dict(found)["widths"]["unet"] == dict(widths["unet"].shares)


def test_what_is_ignored_stays_wide(model: Path, tmp_path: Path) -> None:
    narrow = [part_widths(planned(model, tmp_path, {AO: one}))["unet"].shares["8 bits"] for one in ({}, UNET)]
    assert narrow[0] > narrow[1] > 0


@pytest.mark.skipif(not installed("torchao"), reason="pare[torchao] is not installed")
def test_what_is_made_holds_what_was_planned(model: Path, tmp_path: Path) -> None:
    found = part_widths(planned(model, tmp_path, {AO: UNET}))["unet"].shares
    made, _ = apply(AO, describe(model), tmp_path / "out", components=("unet",), ignore=("time_embedding.*",))
    held = bit_widths.shares(made, "unet")
    assert held["int8"] == pytest.approx(found["8 bits"], abs=1e-6)
    assert held["float32"] == pytest.approx(found["float32"], abs=1e-6)


def test_an_engine_says_what_it_will_hold_and_a_plan_that_packs_nothing_says_nothing(
    model: Path, tmp_path: Path
) -> None:
    build: dict[str, Any] = {"build.openvino": {}}
    quantized = planned(model, tmp_path, build, {"quantize.nncf": {"mode": "int8_weights"}})
    assert str(part_widths(quantized)["unet"]) == "int8_weights, counted when it is made, on openvino"
    assert str(part_widths(quantized)["vae"]) == "as wide as they were, on openvino"
    assert part_widths(planned(model, tmp_path, build)) == {}
    assert "weights of each part" not in plan_text(planned(model, tmp_path, build))

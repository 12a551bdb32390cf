"""Weights that are no numbers are found before anything runs, and a model that was read is not read again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import compress
from compress.errors import ManyProblems, ModelError, RecipeError, UserError
from compress.events import Event
from compress.model import finite_checks
from compress.model.describing import describe
from compress.model.finite_checks import not_finite, refuse_nonfinite
from compress.recipe.options import read_metrics
from tests.fakes import language_model, pipeline

TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2, torch.float8_e4m3fn)
RECIPE = "schema: 1\nname: t\nmodel: ./model\nevaluate: {metrics: [size]}\n"


def spoil(file: Path, value: float = float("nan"), **more: torch.Tensor) -> None:
    tensors = load_file(file)
    first = sorted(tensors)[0]
    tensors[first].view(-1)[-1] = value
    save_file({**tensors, **more}, file)


@pytest.mark.parametrize("dtype", TYPES)
@settings(max_examples=40, deadline=None)
@given(values=st.lists(st.floats(width=32), min_size=1, max_size=9))
def test_it_agrees_with_torch(
    dtype: torch.dtype, values: list[float], tmp_path_factory: pytest.TempPathFactory
) -> None:
    tensor = torch.tensor(values).to(dtype)
    file = tmp_path_factory.getbasetemp() / f"{dtype}.safetensors"
    save_file({"w": tensor, "whole": torch.arange(3), "mask": torch.full((2,), -torch.inf)}, file)
    assert list(not_finite(file)) == ([] if bool(tensor.float().isfinite().all()) else ["w"])


def test_every_piece_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finite_checks, "PIECE", 3)
    for place in range(8):
        tensor = torch.zeros(8)
        tensor[place] = torch.inf
        save_file({"w": tensor}, tmp_path / "f.safetensors")
        assert list(not_finite(tmp_path / "f.safetensors")) == ["w"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_run_is_refused_before_its_first_stage(value: float, tmp_path: Path) -> None:
    spoil(language_model(tmp_path / "model") / "model.safetensors", value)
    (tmp_path / "r.yaml").write_text(RECIPE)
    recorded: list[Event] = []
    with pytest.raises(ModelError, match=r"`w` in model holds values that are not finite, before any stage"):
        compress.run(tmp_path / "r.yaml", cache=tmp_path / "cache", out=tmp_path / "out", emit=recorded.append)
    assert not [event for event in recorded if event.kind == "started"]


def test_so_is_a_comparison(tmp_path: Path) -> None:
    sound, nonfinite = language_model(tmp_path / "sound"), language_model(tmp_path / "nonfinite")
    spoil(nonfinite / "model.safetensors")
    with pytest.raises(UserError, match="not finite"):
        compress.evaluate(
            str(nonfinite), str(sound), metrics=read_metrics("size", []), cache=tmp_path / "cache", out=tmp_path / "out"
        )


def test_all_parts_are_reported_at_once(tmp_path: Path) -> None:
    folder = pipeline(tmp_path, unet=(2, 3), vae=(2, 3))
    for part in ("unet", "vae"):
        spoil(folder / part / "diffusion_pytorch_model.safetensors")
    with pytest.raises(ManyProblems) as caught:
        refuse_nonfinite(describe(folder), "key")
    assert len(caught.value.problems) == 2


def test_what_was_read_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = describe(language_model(tmp_path / "model"))
    refuse_nonfinite(artifact, "key", tmp_path / "digests")

    def refuse(*given: Any) -> Any:
        raise AssertionError("read again")

    monkeypatch.setattr(finite_checks, "not_finite", refuse)
    refuse_nonfinite(artifact, "key", tmp_path / "digests")
    with pytest.raises(AssertionError):
        refuse_nonfinite(artifact, "another", tmp_path / "digests")


def test_an_adapter_is_refused_by_the_plan(tmp_path: Path) -> None:
    language_model(tmp_path / "model")
    pair = {f"base_model.model.x.lora_{side}.weight": torch.full((2, 2), torch.nan) for side in "AB"}
    (tmp_path / "lora").mkdir()
    save_file(pair, tmp_path / "lora/adapter_model.safetensors")
    (tmp_path / "lora/adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 2}')
    (tmp_path / "r.yaml").write_text(f"{RECIPE}adapter: ./lora\n")
    with pytest.raises(RecipeError, match="of the adapter holds values that are not finite") as caught:
        compress.check(tmp_path / "r.yaml", cache=tmp_path / "cache")
    assert caught.value.problems[0].place.endswith("r.yaml:5:10")

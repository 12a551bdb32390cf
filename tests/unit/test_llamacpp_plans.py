"""What quantize.llamacpp tells and refuses before anything runs; llama-cpp-python is not needed for that."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
from pydantic import ValidationError

import compress
from compress.artifact import LANGUAGE_MODEL
from compress.catalogue import find_stage
from compress.errors import Problem, RecipeError
from compress.machine import deps
from compress.model.describing import describe
from compress.stages.quantize.llamacpp import NEED_IMPORTANCE, QuantizeLlamaCpp, Type, refuse, widths
from tests.families import tiny_text
from tests.stages import forecast
from tests.tiny import tiny_llama

STAGE = "quantize.llamacpp"
Problems = Callable[..., tuple[Problem, ...]]


@pytest.fixture
def reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Problems:
    """The problems of a recipe with these steps on a tiny Llama, as if llama-cpp-python were installed."""
    real = deps.version
    monkeypatch.setattr(deps, "version", lambda name: real(name) or ("1" if name == "llama-cpp-python" else ""))
    tiny_llama(tmp_path / "model")

    def check(*steps: str, data: str = "") -> tuple[Problem, ...]:
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(f"schema: 1\nname: x\nmodel: ./model\n{data}stages: [{', '.join(steps)}]\n")
        try:
            compress.check(recipe, cache=tmp_path / "cache")
        except RecipeError as error:
            return error.problems
        return ()

    return check


def test_a_file_of_floats_is_quantized_and_nothing_else(reported: Problems) -> None:
    assert reported("build.gguf: {precision: bfloat16}", STAGE) == ()
    assert any("takes gguf" in p.message for p in reported(STAGE))
    (packed,) = reported("build.gguf: {precision: int4_weights}", STAGE)
    assert "already" in packed.message
    assert STAGE in packed.message
    (twice,) = reported("build.gguf", STAGE, f"{STAGE}: {{type: q2_k}}")
    assert "already" in twice.message


def test_calibration_texts_are_asked_for_where_importance_is(reported: Problems) -> None:
    (missing,) = reported("build.gguf", f"{STAGE}: {{importance: true}}")
    assert "calibration" in missing.message
    data = "data: {calibration: zoo://docstrings/validation}\n"
    assert reported("build.gguf", f"{STAGE}: {{importance: true}}", data=data) == ()


def test_what_importance_alone_uses_is_refused_without_it(reported: Problems) -> None:
    samples, length = reported("build.gguf", f"{STAGE}: {{samples: 16, length: 64}}")
    assert "importance false has no use for samples" in samples.message
    assert samples.fix == "leave samples out, or give importance: true"
    assert "length" in length.message


def test_an_older_library_takes_no_importance_matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llama = describe(tiny_llama(tmp_path))
    monkeypatch.setattr("compress.stages.quantize.llamacpp.version", lambda name: "0.3.9")
    assert "takes llama-cpp-python 0.3.36, and 0.3.9 is installed" in refuse(llama, QuantizeLlamaCpp(importance=True))
    assert not refuse(llama, QuantizeLlamaCpp())


def test_importance_is_given_where_it_counts(tmp_path: Path) -> None:
    llama = describe(tiny_llama(tmp_path))
    for name in NEED_IMPORTANCE:
        assert "importance: true" in refuse(llama, QuantizeLlamaCpp(type=name))
        assert not refuse(llama, QuantizeLlamaCpp(type=name, importance=True))
    assert "leave importance out" in refuse(llama, QuantizeLlamaCpp(type="q8_0", importance=True))
    with pytest.raises(ValidationError):
        QuantizeLlamaCpp.model_validate({"type": "q4_k_x"})


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_rows_that_a_type_does_not_divide_are_told_with_their_lengths(family: str, tmp_path: Path) -> None:
    artifact = describe(tiny_llama(tmp_path) if family == "llama" else tiny_text(tmp_path, family))
    lengths = widths(artifact.known_config(LANGUAGE_MODEL))
    assert len(lengths) == 3
    (told,) = forecast(STAGE, artifact, type="q4_k_m").warnings
    assert all(f"{what} {size}" in told for what, size in lengths.items() if size % 256)
    odd = [size for size in lengths.values() if size % 32]
    assert len(forecast(STAGE, artifact, type="q4_0").warnings) == bool(odd)


def test_what_is_left_has_the_bits_of_its_name(tmp_path: Path) -> None:
    llama = describe(tiny_llama(tmp_path))
    found = {name: forecast(STAGE, llama, type=name).quantization[LANGUAGE_MODEL] for name in get_args(Type)}
    assert {name: packed.bits for name, packed in found.items()} == {
        name: int("".join(filter(str.isdecimal, name))[0]) for name in found
    }
    assert {packed.method for packed in found.values()} == set(found)
    assert find_stage(STAGE).takes("gguf")
    assert not find_stage(STAGE).takes("torch")

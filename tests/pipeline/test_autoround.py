"""quantize.autoround on tiny Llamas: what it packs is what it was reported to, stock transformers opens it, and it keeps to its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from compress.artifact import LANGUAGE_MODEL, Artifact, Quantization
from compress.errors import StageFailed
from compress.machine.deps import installed
from compress.model.describing import describe
from tests.opened_alone import WRITTEN, Job, called_here, open_alone, written_here
from tests.packed_codes import dequantized, nearest
from tests.stages import apply
from tests.tiny import tiny_llama

STAGE = "quantize.autoround"
PROMPT = [5, 9, 30, 2, 17]
LITTLE = {"iters": 10, "samples": 8, "length": 16, "batch": 4}
NARROW = ("*.k_proj", "*.v_proj")  # 16 wide in the tiny Llama, and 32 is what auto-round takes
ASKED = {"group_size": 32, "ignore": NARROW}

pytestmark = pytest.mark.skipif(not installed("auto_round"), reason="pip install 'pare[autoround]'")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return describe(tiny_llama(tmp_path_factory.mktemp("llama")))


@pytest.fixture(scope="module")
def rounded(source: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return apply(STAGE, source, tmp_path_factory.mktemp("rtn") / "out", method="rtn", **ASKED)[0]


@pytest.fixture(scope="module")
def learnt(source: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return apply(STAGE, source, tmp_path_factory.mktemp("signed") / "out", **LITTLE, **ASKED)[0]


def weights(artifact: Artifact) -> Mapping[str, torch.Tensor]:
    return load_file(artifact.path / "model.safetensors")


def test_one_folder_in_the_layout_that_libraries_read(source: Artifact, rounded: Artifact) -> None:
    assert {f.name for f in rounded.path.iterdir()} == {f.name for f in source.path.iterdir()} | {"pare.json"}
    assert rounded.components[LANGUAGE_MODEL].quantization == Quantization(
        "compressed-tensors", 4, "compressed-tensors"
    )
    config = {**rounded.config(LANGUAGE_MODEL)}
    packed = config.pop("quantization_config")
    assert config == source.config(LANGUAGE_MODEL)
    assert (packed["quant_method"], packed["format"]) == ("compressed-tensors", "pack-quantized")


def test_plain_rounding_is_to_the_nearest(source: Artifact, rounded: Artifact) -> None:
    name, after = "model.layers.1.mlp.down_proj", weights(rounded)
    before = weights(source)[f"{name}.weight"].double().numpy()
    scales = after[f"{name}.weight_scale"].double().numpy()
    found = dequantized(after, name, bits=4, group_size=32)
    assert np.abs(found - nearest(before, scales, bits=4, group_size=32)).max() < 1e-9
    assert np.abs(found - before).max() <= 1.01 * np.abs(scales).max()  # half a step, but for the ends of a range


def test_what_is_ignored_and_what_is_no_layer_stays_to_the_bit(
    source: Artifact, rounded: Artifact, learnt: Artifact
) -> None:
    before = weights(source)
    for artifact in (rounded, learnt):
        after = weights(artifact)
        wide = {name for name in after if name in before}
        assert wide == {n for n in before if not n.endswith("_proj.weight") or n.split(".")[-2] in ("k_proj", "v_proj")}
        assert all(torch.equal(after[name], before[name]) for name in wide)


def test_learnt_rounding_is_another_one(rounded: Artifact, learnt: Artifact) -> None:
    name = "model.layers.0.mlp.up_proj"
    plain, signed = (dequantized(weights(a), name, bits=4, group_size=32) for a in (rounded, learnt))
    assert not np.array_equal(plain, signed)
    assert np.corrcoef(plain.ravel(), signed.ravel())[0, 1] > 0.9


def test_transformers_alone_gives_what_pare_measures(learnt: Artifact, tmp_path: Path) -> None:
    call = {"input_ids": torch.tensor([PROMPT])}
    (alone,) = open_alone([Job(learnt, LANGUAGE_MODEL, call, written=WRITTEN)], tmp_path / "alone")
    assert torch.allclose(alone["found"], called_here(learnt, LANGUAGE_MODEL, call), atol=1e-5)
    assert alone["written"].tolist() == written_here(learnt, PROMPT)


def test_it_says_how_it_runs_and_how_far_it_is(source: Artifact, tmp_path: Path) -> None:
    _, notes = apply(STAGE, source, tmp_path / "out", method="awq", samples=8, length=16, batch=4, **ASKED)
    (note,) = notes
    assert note.facts["runs_as"] == "decompressed"
    assert (note.facts["rows"], note.facts["tokens"]) == (8, 16)
    assert note.facts["peak_bytes"] > 10**8


def test_nothing_is_written_elsewhere(source: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    for folder in (home, here):
        folder.mkdir()
    for name in ("HOME", "XDG_CACHE_HOME", "HF_HOME"):
        monkeypatch.setenv(name, str(home))
    monkeypatch.chdir(here)
    apply(STAGE, source, tmp_path / "out", method="rtn", **ASKED)
    assert list(home.rglob("*")) == []
    assert list(here.rglob("*")) == []
    assert not (tmp_path / "out-scratch/made").exists()


def test_a_failure_of_auto_round_is_reported_in_its_words(source: Artifact, tmp_path: Path) -> None:
    config = json.loads((source.path / "config.json").read_text())
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in source.path.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    (broken / "config.json").write_text(json.dumps({**config, "hidden_act": "no such function"}))
    with pytest.raises(StageFailed, match="auto-round: KeyError: 'no such function'"):
        apply(STAGE, describe(broken), tmp_path / "out", method="rtn", **ASKED)


@pytest.mark.parametrize(
    ("layout", "method"),
    [
        ("awq", "rtn"),
        *(
            pytest.param(*one, marks=pytest.mark.slow)
            for one in (("gptq", "rtn"), ("awq", "autoround"), ("gptq", "awq"))
        ),
    ],
)
def test_the_other_layouts_are_written_too(layout: str, method: str, source: Artifact, tmp_path: Path) -> None:
    little = {name: value for name, value in LITTLE.items() if name != "iters" or method == "autoround"}
    asked = ASKED if method == "rtn" else {**little, **ASKED}
    made, _ = apply(STAGE, source, tmp_path / "out", **{**asked, "layout": layout, "method": method})
    part = made.components[LANGUAGE_MODEL].quantization
    assert part is not None
    assert (part.method, part.bits) == (layout, 4)
    packed = {name.rpartition(".")[2] for name in weights(made) if ".mlp." in name}
    assert {"qweight", "qzeros", "scales"} <= packed

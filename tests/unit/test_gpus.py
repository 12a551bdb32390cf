"""Which TensorRT library builds for which GPU: what the driver tells, who is chosen, and why engines stay unavailable."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from compress.engines.tensorrt.quantize import BLOCK, round_blocks, round_channels
from compress.errors import MissingLibrary, UserError
from compress.machine import gpus
from compress.machine.gpus import DATA_CENTRE, HERE, RTX, Gpu, Library, choose, why_unavailable


def ask_the_driver() -> Gpu | None:
    return next(iter(gpus.reported_gpus.__wrapped__()), None)


def at_hand(patch: pytest.MonkeyPatch, gpu: Gpu | None, *installed: Library) -> None:
    patch.setattr(gpus, "gpu_here", lambda: gpu)
    patch.setattr(gpus, "torch_without_cuda", lambda: "")
    patch.setattr(Library, "version", property(lambda self: "1.0" if self in installed else ""))


def test_the_driver_is_asked_for_the_first_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    driver.write_text("#!/bin/sh\necho '8.9, NVIDIA L4'\necho '8.6, NVIDIA A10'\n")
    driver.chmod(0o755)
    assert ask_the_driver() == Gpu("NVIDIA L4", "SM89")
    driver.write_text("#!/bin/sh\necho 'No devices were found'\n")
    assert ask_the_driver() is None
    driver.write_text("#!/bin/sh\nexit 9\n")
    assert ask_the_driver() is None
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert ask_the_driver() is None


def test_the_data_centre_library_builds_for_the_gpu_at_hand_and_rtx_for_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at_hand(monkeypatch, Gpu("NVIDIA L4", "SM89"), RTX, DATA_CENTRE)
    assert choose("auto", HERE) == (DATA_CENTRE, ("SM89",))
    assert choose("auto", ("SM86", "SM89")) == (RTX, ("SM86", "SM89"))
    assert choose("tensorrt-rtx", HERE) == (RTX, ("SM89",))
    with pytest.raises(UserError, match=r"tensorrt 1\.0 does not build for SM86 here") as caught:
        choose("tensorrt", ("SM86",))
    assert caught.value.problems[0].fix == "targets it builds for: SM89"


def test_without_the_data_centre_library_a_gpu_that_rtx_does_not_know_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at_hand(monkeypatch, Gpu("NVIDIA H100", "SM90"), RTX)
    with pytest.raises(UserError, match="does not build for SM90 here") as caught:
        choose("auto", HERE)
    assert "SM75, SM80, SM86, SM89, SM120, SM121" in caught.value.problems[0].fix
    assert why_unavailable(RTX, ("SM89",)).endswith(": its NVIDIA H100 is SM90, which tensorrt-rtx does not know")
    at_hand(monkeypatch, Gpu("NVIDIA H100", "SM90"), RTX, DATA_CENTRE)
    assert choose("auto", HERE) == (DATA_CENTRE, ("SM90",))
    assert why_unavailable(DATA_CENTRE, ("SM90",)) == ""
    assert why_unavailable(RTX, ("SM89",)) != ""  # what RTX built, RTX must run


@pytest.mark.parametrize("name", ["auto", "tensorrt", "tensorrt-rtx"])
def test_a_library_that_lacks_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    at_hand(monkeypatch, None)
    with pytest.raises(MissingLibrary, match="is not installed") as caught:
        choose(name, ("SM89",))
    assert caught.value.problems[0].fix == (DATA_CENTRE if name == "tensorrt" else RTX).install


def test_engines_are_unavailable_without_a_gpu_and_rebuilt_for_another_that_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at_hand(monkeypatch, None, RTX)
    assert "for SM86, SM89 cannot run on this machine: it has no NVIDIA GPU" in why_unavailable(RTX, ("SM86", "SM89"))
    with pytest.raises(UserError, match="no NVIDIA GPU available here to build for"):
        choose("auto", HERE)
    at_hand(monkeypatch, Gpu("NVIDIA RTX 5090", "SM120"), RTX)
    assert why_unavailable(RTX, ("SM86",)) == ""
    monkeypatch.setattr(gpus, "torch_without_cuda", lambda: "2.13.0+cpu")
    assert why_unavailable(RTX, ("SM86",)).endswith(": its torch 2.13.0+cpu is built without CUDA")


@pytest.mark.parametrize(("version", "reported"), [("2.13.0+cpu", "2.13.0+cpu"), ("2.13.0+cu130", ""), ("2.13.0", "")])
def test_a_torch_without_cuda_is_reported_by_its_version(
    monkeypatch: pytest.MonkeyPatch, version: str, reported: str
) -> None:
    monkeypatch.setattr(gpus.deps, "version", {"torch": version}.__getitem__)
    assert gpus.torch_without_cuda() == reported


def test_the_fingerprint_tells_gpus_and_versions_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    reported = set()
    for gpu in (None, Gpu("a", "SM86"), Gpu("b", "SM89")):
        for installed in ((), (RTX,), (RTX, DATA_CENTRE)):
            at_hand(monkeypatch, gpu, *installed)
            reported.add(gpus.fingerprint())
    assert len(reported) == 9


def test_rounded_weights_are_near_and_no_code_leaves_its_bits() -> None:
    weight = np.random.default_rng(0).normal(size=(4 * BLOCK, 6)).astype(np.float32)
    codes, scales = round_channels(weight, 1)
    assert np.abs(codes).max() == 127
    assert (np.abs(codes * scales - weight) <= scales / 2 * 1.001).all()
    codes, scales = round_blocks(weight, 0)
    wide = np.repeat(scales, BLOCK, axis=0)
    assert scales.shape == (4, 6)
    assert np.abs(codes.astype(np.float32)).max() == 7
    assert (np.abs(codes.astype(np.float32) * wide - weight) <= wide / 2 * 1.001).all()
    turned, _ = round_blocks(np.ascontiguousarray(weight.T), 1)
    assert (turned.T.astype(np.int8) == codes.astype(np.int8)).all()

"""What stands beside an offloaded candidate is offloaded too where it is too large for the GPU, and that is stated."""

from __future__ import annotations

from unittest import mock

import pytest

from compress.artifact import Artifact
from compress.events import Event
from compress.machine.devices import Opening
from compress.model.describing import describe
from compress.model.hook_settings import GRAPH, OFFLOAD, hooked, movable
from compress.quantization.sizes import held_bytes
from evaluation.comparison import fitting as module
from evaluation.comparison.fitting import fitting
from tests.tiny import tiny_diffusion

HERE = Opening("bfloat16", "cuda:0")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return describe(tiny_diffusion(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def candidate(plain: Artifact) -> Artifact:
    return hooked(plain, OFFLOAD, movable(plain), how="blocks")


def fitted(artifact: Artifact, candidate: Artifact, opening: Opening = HERE) -> tuple[Artifact, list[str]]:
    heard: list[Event] = []
    found = fitting("baseline", artifact, candidate, opening, heard.append)
    return found, [event.message for event in heard]


def size_of(artifact: Artifact) -> int:
    return sum(held_bytes(artifact, name) for name in artifact.working)


def test_what_is_too_large_by_itself_takes_turns_as_the_candidate_does(
    plain: Artifact, candidate: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = size_of(plain) // 2  # float32 is stored, and opened in bfloat16
    monkeypatch.setattr(module, "device_bytes", lambda device: there)
    found, (message,) = fitted(plain, candidate)
    assert found.settings.hook == candidate.settings.hook
    assert found.settings.needs_pare
    assert "take turns there as the candidate's do" in message
    monkeypatch.setattr(module, "device_bytes", lambda device: 2 * there)
    assert fitted(plain, candidate) == (plain, [])
    assert len(fitted(plain, candidate, Opening(None, "cuda:0"))[1]) == 1  # as stored, it is twice as large


def test_nothing_changes_where_nothing_is_offloaded(
    plain: Artifact, candidate: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "device_bytes", lambda device: 1)
    assert fitted(plain, hooked(plain, GRAPH)) == (plain, [])
    assert fitted(candidate, candidate) == (candidate, [])
    assert fitted(plain, candidate, Opening("float32")) == (plain, [])  # on a processor


def test_a_gpus_memory_is_what_torch_says() -> None:
    with mock.patch("torch.cuda.get_device_properties") as asked:
        asked.return_value.total_memory = 16_000_000_000
        assert module.device_bytes("cuda:1") == 16_000_000_000
    asked.assert_called_once_with("cuda:1")

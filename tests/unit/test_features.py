"""The feature extractor: a local folder, known by its content, and refused in words when it is no CLIP."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compress.errors import ModelError
from compress.files.hashing import digest_folder
from compress.zoo import scenes, zoo_model
from evaluation.features.clip import BATCH, Clip, open_clip

ZOO = "zoo://digits-clip"


@pytest.fixture(scope="module")
def clip() -> Clip:
    return open_clip(ZOO)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(zoo_model("digits-clip"), tmp_path / "my-clip"))


def test_it_is_opened_once(clip: Clip) -> None:
    assert open_clip(ZOO) is clip


def test_a_copy_elsewhere_has_its_own_name_and_the_same_digest(clip: Clip, copied: Path) -> None:
    other = open_clip(str(copied))
    assert (other.name, other.digest) == ("my-clip", clip.digest)
    assert other.digest == digest_folder(copied)
    images = np.stack([scenes.render(scenes.scene("test", i)) for i in range(3)])
    assert np.array_equal(other.images(iter([images])), clip.images(iter([images])))


def test_other_weights_have_another_digest(clip: Clip, copied: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(copied / "model.safetensors")
    tensors["logit_scale"] = tensors["logit_scale"] + 1
    save_file(tensors, copied / "model.safetensors", {"format": "pt"})
    assert open_clip(str(copied)).digest != clip.digest


def test_nothing_is_looked_up_anywhere(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert open_clip(str(copied)).model is not None


@pytest.mark.parametrize("name", ["docs-llama", "digits-diffusion", "digits-reader"])
def test_a_model_that_is_no_clip_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="is no CLIP model") as caught:
        open_clip(f"zoo://{name}")
    assert name in caught.value.problems[0].place
    assert "transformers" in caught.value.problems[0].fix


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is no CLIP model"):
        open_clip(str(tmp_path / "nowhere"))


def test_a_clip_without_its_weights_is_refused(copied: Path) -> None:
    (copied / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="is no CLIP model"):
        open_clip(str(copied))


def test_captions_are_unit_vectors_that_do_not_depend_on_their_company(clip: Clip) -> None:
    captions = [scenes.scene("test", i).caption for i in range(BATCH + 3)]
    together = clip.captions(captions)
    assert together.shape == (BATCH + 3, 64)
    assert together.dtype == np.float32
    assert np.linalg.norm(together, axis=1) == pytest.approx(np.ones(BATCH + 3), abs=1e-6)
    assert np.abs(together[-1] - clip.captions(captions[-1:])[0]).max() < 1e-4


def test_a_caption_longer_than_the_model_reads_is_cut_and_not_refused(clip: Clip) -> None:
    words = "a red three left of a blue seven on yellow paper"
    found = clip.captions([f"{words} {words} {words}"])
    assert np.isfinite(found).all()


def test_a_caption_is_closest_to_its_own_image(clip: Clip) -> None:
    """The judge must see what it judges: nearly every caption of 32 different ones finds its image first."""
    chosen: dict[str, int] = {}
    index = 0
    while len(chosen) < 32:
        chosen.setdefault(scenes.scene("test", index).caption, index)
        index += 1
    images = clip.images(iter([np.stack([scenes.render(scenes.scene("test", i)) for i in chosen.values()])]))
    closest = (clip.captions(list(chosen)) @ images.T).argmax(axis=1)
    assert (closest == np.arange(32)).mean() >= 0.85


def test_a_recoloured_digit_moves_the_features_more_than_a_rounding_error(clip: Clip) -> None:
    image = scenes.render(scenes.scene("test", 0))
    rounded = np.clip(image.astype(int) + 1, 0, 255).astype(np.uint8)
    turned = image[..., ::-1].copy()
    base, near, far = clip.images(iter([np.stack([image, rounded, turned])]))
    assert base @ near > 0.99
    assert base @ far < base @ near - 0.05

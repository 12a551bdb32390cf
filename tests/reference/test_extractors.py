"""Extractors against stock transformers and against themselves in other batches; what is none is refused in words."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compress.errors import ModelError, UserError
from evaluation.features.clip import open_clip
from evaluation.features.extractor import BATCH, Extractor
from evaluation.features.inception import BLOCKS, Inception
from evaluation.features.opening import open_features

RNG = np.random.default_rng(5)


def images(count: int, size: int = 64) -> np.ndarray:
    return RNG.integers(0, 256, (count, size, size, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("dino") / "tiny-dinov2"
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, mlp_ratio=2, image_size=28, patch_size=14
    )
    Dinov2Model(config).save_pretrained(folder)
    crop = {"height": 42, "width": 42}
    message = {"crop_size": crop, "do_center_crop": True, "size": {"shortest_edge": 48}, "image_mean": [0.4, 0.5, 0.6]}
    (folder / "preprocessor_config.json").write_text(json.dumps(message))
    return folder


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(Inception().state_dict() | {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}, file)
    return file


def test_dinov2_is_the_class_token_of_stock_transformers(dinov2: Path) -> None:
    from transformers import Dinov2Model

    batch = images(3, 42)
    pixels = (batch.astype(np.float32) / 255 - np.array([0.4, 0.5, 0.6])) / np.array([0.229, 0.224, 0.225])
    with torch.inference_mode():
        output = Dinov2Model.from_pretrained(dinov2).eval()(
            torch.from_numpy(pixels).float().permute(0, 3, 1, 2), output_hidden_states=True
        )
    extractor = open_features(str(dinov2))
    assert (extractor.size, extractor.fit, extractor.name) == (42, "crop", "tiny-dinov2")
    assert np.abs(extractor.images([batch]) - output.pooler_output.numpy()).max() < 1e-5
    layers = extractor.layers(batch)
    assert [layer.shape for layer in layers] == [(3, 10, 32)] * 2  # 3 × 3 patches and the class
    for found, expected in zip(layers, output.hidden_states[1:], strict=True):
        assert np.abs(found - expected.numpy()).max() < 1e-5


def test_dinov2_with_registers_opens_too(tmp_path: Path) -> None:
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    config = Dinov2WithRegistersConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14, num_register_tokens=4
    )
    Dinov2WithRegistersModel(config).save_pretrained(tmp_path)
    extractor = open_features(str(tmp_path))
    assert extractor.images([images(2)]).shape == (2, 16)
    assert extractor.layers(images(2))[0].shape == (2, 1 + 4 + 4, 16)


def test_clips_layers_are_the_vision_towers() -> None:
    clip = open_clip("zoo://digits-clip")
    layers = clip.layers(images(BATCH + 2))
    assert [layer.shape for layer in layers] == [(BATCH + 2, 65, 128)] * 4
    assert all(layer.dtype == np.float32 for layer in layers)
    last = clip.model.vision_model.post_layernorm(torch.from_numpy(layers[-1][:, 0]))
    assert len(last) == BATCH + 2


def test_the_zoos_images_are_squeezed_because_its_file_says_so() -> None:
    assert (open_clip("zoo://digits-clip").fit, open_clip("zoo://digits-clip").size) == ("squash", 64)


def test_inception_gives_2048_numbers_and_no_layers(inception: Path) -> None:
    extractor = open_features(str(inception))
    assert extractor.images([images(2)]).shape == (2, 2048)
    with pytest.raises(UserError, match="no sequences"):
        extractor.layers(images(1))


@pytest.mark.parametrize("which", ["clip", "dinov2", "inception"])
def test_the_callers_batches_change_nothing(which: str, dinov2: Path, inception: Path) -> None:
    reference = {"clip": "zoo://digits-clip", "dinov2": str(dinov2), "inception": str(inception)}[which]
    extractor, count = open_features(reference), 4 if which == "inception" else BATCH + 3
    shown = images(count)
    once = extractor.images([shown])
    assert np.array_equal(once, extractor.images(shown[i : i + 3] for i in range(0, count, 3)))
    assert once.dtype == np.float32
    alone = np.concatenate([extractor.images([shown[i : i + 1]]) for i in range(count)])
    assert np.abs(once - alone).max() < 1e-4 * np.abs(once).max()


def test_images_of_different_sizes_may_share_a_batch(dinov2: Path) -> None:
    extractor = open_features(str(dinov2))
    small, large = images(1, 30)[0], images(1, 90)[0]
    found = extractor.images([[small, large]])
    assert np.abs(found[1] - extractor.images([[large]])[0]).max() < 1e-5


def test_resizing_is_part_of_what_an_extractor_is(dinov2: Path) -> None:
    pil, tf1 = open_features(str(dinov2)), open_features(str(dinov2), "tf1")
    assert (pil.resize, tf1.resize) == ("pil", "tf1")
    assert open_features(str(dinov2), "tf1") is tf1
    right, wrong = images(2, 42), images(2, 50)
    assert np.array_equal(pil.images([right]), tf1.images([right]))
    assert np.abs(pil.images([wrong]) - tf1.images([wrong])).max() > 1e-3


def _renamed(name: str) -> str:
    """As pytorch-fid's own module calls a layer."""
    for number, block in enumerate(BLOCKS):
        for index, layer in enumerate(block):
            name = name.replace(f"{layer}.", f"blocks.{number}.{index}.")
    return name


def test_the_same_weights_under_pytorch_fids_names_and_as_safetensors(inception: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    stored = torch.load(inception, weights_only=True)
    renamed = {_renamed(name): tensor for name, tensor in stored.items() if not name.startswith("fc.")}
    assert "blocks.1.0.conv.weight" in renamed
    assert not renamed.keys() & Inception().state_dict().keys()
    save_file(renamed, tmp_path / "renamed.safetensors")
    shown = images(2)
    expected = open_features(str(inception)).images([shown])
    assert np.array_equal(open_features(str(tmp_path / "renamed.safetensors")).images([shown]), expected)


def _less(stored: dict[str, Any]) -> dict[str, Any]:
    return {name: tensor for name, tensor in stored.items() if not name.startswith("Mixed_7c")}


def _torchvisions(stored: dict[str, Any]) -> dict[str, Any]:
    return stored | {"fc.weight": torch.zeros(1000, 2048)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_less, r"lacks 45 of 470 weights.*Mixed_7c.branch1x1.conv.weight.*…"),
        (_torchvisions, "1000 classes"),
        (lambda stored: {"state": stored}, "more than tensors"),
    ],
)
def test_other_weights_are_refused(change: Callable[..., Any], message: str, inception: Path, tmp_path: Path) -> None:
    torch.save(change(torch.load(inception, weights_only=True)), tmp_path / "other.pth")
    with pytest.raises(ModelError, match=message) as caught:
        open_features(str(tmp_path / "other.pth"))
    assert str(tmp_path) in caught.value.problems[0].place
    assert "2015-12-05" in caught.value.problems[0].fix


def test_a_pickle_that_would_run_something_is_not_opened(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "sprung",)

    torch.save({"weight": Trap()}, tmp_path / "trap.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Trap()))
    for name in ("trap.pt", "plain.pt"):
        with pytest.raises(ModelError, match="does not read as weights"):
            open_features(str(tmp_path / name))
    assert not (tmp_path / "sprung").exists()


def test_a_cut_off_model_is_refused_and_never_filled_up_with_random_numbers(dinov2: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((dinov2 / name).read_bytes())
    weights = load_file(dinov2 / "model.safetensors")
    gone = sorted(weights)[-1]
    save_file({n: t for n, t in weights.items() if n != gone}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=f"1 weights are missing: {gone}"):
        open_features(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "no feature extractor lies there"),
        ({"config.json": '{"model_type": "llama"}'}, "type llama"),
        ({"config.json": "[1]"}, "holds no JSON object"),
        ({"config.json": "{"}, "does not read as JSON"),
        ({"config.json": '{"model_type": "dinov2"}'}, "is no DINOv2 model that loads"),
    ],
)
def test_what_is_no_extractor_is_refused(content: dict[str, str], message: str, tmp_path: Path) -> None:
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ModelError, match=message) as caught:
        open_features(str(tmp_path))
    assert caught.value.problems[0].fix


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match="no file of weights"):
        open_features(str(tmp_path / "weights.bin"))


def test_features_that_are_not_finite_are_an_error() -> None:
    broken = Extractor(
        "broken", "0", "pil", 8, "squash", lambda pixels: pixels[:, :, 0, 0] * float("nan"), lambda pixels: []
    )
    with pytest.raises(ModelError, match="not finite"):
        broken.images([images(2)])

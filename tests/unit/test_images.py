"""Images are read as every viewer shows them, and what nobody can show is refused by its name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays
from PIL import Image

from compress.data.images import read_image, refuse_other
from compress.errors import DataError

RAMP = np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5


def saved(folder: Path, image: Image.Image, name: str = "a.png", **options: object) -> Path:
    image.save(folder / name, **options)
    return folder / name


def test_plain_images_are_as_they_are(tmp_path: Path) -> None:
    for name in ("a.png", "a.bmp", "a.tif"):
        assert np.array_equal(read_image(saved(tmp_path, Image.fromarray(RAMP), name)), RAMP)
    assert read_image(saved(tmp_path, Image.fromarray(RAMP), "a.jpg")).shape == (4, 4, 3)


@given(arrays(np.uint16, (3, 2)))
def test_sixteen_bits_are_scaled_and_never_clipped(values: np.ndarray) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        found = read_image(saved(Path(folder), Image.fromarray(values)))
    assert found.shape == (3, 2, 3)
    assert np.array_equal(found[..., 0], np.round(values / 257).astype(np.uint8))
    assert (found == found[..., :1]).all()


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "RGB", "YCbCr"])
def test_every_eight_bit_mode_becomes_red_green_and_blue(mode: str, tmp_path: Path) -> None:
    name = "a.tif" if mode in ("CMYK", "YCbCr") else "a.png"
    found = read_image(saved(tmp_path, Image.fromarray(RAMP).convert(mode), name))
    assert found.shape == (4, 4, 3)
    assert found.dtype == np.uint8


@pytest.mark.parametrize(("orientation", "corner"), [(1, (0, 0)), (3, (-1, -1)), (6, (0, -1)), (8, (-1, 0))])
def test_orientation_is_applied(orientation: int, corner: tuple[int, int], tmp_path: Path) -> None:
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:8, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = read_image(saved(tmp_path, Image.fromarray(pixels), "a.jpg", exif=exif, quality=95))
    assert found[corner].min() > 200
    assert found[-1 - corner[0], -1 - corner[1]].max() < 50


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_lies_on_white(mode: str, tmp_path: Path) -> None:
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 255))
    found = read_image(saved(tmp_path, image.convert(mode)))
    assert found[0, 0].tolist() == [255, 255, 255]
    assert found[0, 1].tolist() == [0, 0, 0]


def test_half_transparent_is_half_white(tmp_path: Path) -> None:
    assert read_image(saved(tmp_path, Image.new("RGBA", (1, 1), (0, 0, 0, 128))))[0, 0].tolist() == [127, 127, 127]


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tif"])
def test_several_frames_are_refused_with_their_number(name: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue", "green")]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match="holds 3 frames"):
        read_image(tmp_path / name)


def test_numbers_without_a_range_are_refused_by_their_mode(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="mode F"):
        read_image(saved(tmp_path, Image.fromarray(np.ones((2, 2), np.float32)), "a.tif"))
    with pytest.raises(DataError, match="mode I"):
        read_image(saved(tmp_path, Image.fromarray(np.full((2, 2), 70000, np.int32)), "a.tif"))


@pytest.mark.parametrize("raw", [b"", b"text", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0 cut short"])
def test_a_broken_file_is_named(raw: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(raw)
    with pytest.raises(DataError, match="is no image that reads") as caught:
        read_image(tmp_path / "a.png")
    assert caught.value.problems[0].place.endswith("a.png")


def test_a_image_too_large_to_be_meant_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = saved(tmp_path, Image.fromarray(RAMP), "a.ppm")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2)
    with pytest.raises(DataError, match="is no image that reads: Image size"):
        read_image(large)
    refuse_other(large)


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    whole = saved(tmp_path, Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)))
    whole.write_bytes(whole.read_bytes()[:-3000])
    with pytest.raises(DataError, match="is no image that reads"):
        read_image(whole)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.bmp", "a.tif", "a.gif", "a.ppm"])
def test_a_plan_knows_a_image_by_its_first_bytes(name: str, tmp_path: Path) -> None:
    refuse_other(saved(tmp_path, Image.fromarray(RAMP), name))
    (tmp_path / name).write_bytes(b"PK\3\4")
    with pytest.raises(DataError, match="is no image"):
        refuse_other(tmp_path / name)

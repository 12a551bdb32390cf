"""Several frames in an image's file, read from headers alone: as the library that decodes them counts."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from tempfile import NamedTemporaryFile

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from compress.catalogue import find_stage
from compress.data.animation import has_several_frames
from compress.errors import RecipeError
from compress.planning.plan import make_plan
from compress.recipe.values import EvalSpec
from compress.store.cache import Cache
from tests.fakes import pipeline, recipe, step

FORMATS = ("gif", "png", "webp", "tiff")


def drawn(path: Path, frames: int) -> Path:
    first, *more = (Image.effect_noise((9, 7), 30 + number).convert("RGB") for number in range(frames))
    first.save(path, save_all=True, append_images=more)
    return path


@pytest.mark.parametrize("frames", [1, 2, 5])
@pytest.mark.parametrize("suffix", FORMATS)
def test_headers_tell_what_the_library_counts(suffix: str, frames: int, tmp_path: Path) -> None:
    file = drawn(tmp_path / f"a.{suffix}", frames)
    with Image.open(file) as opened:
        assert getattr(opened, "n_frames", 1) == frames
    assert has_several_frames(file) == (frames > 1)


def test_an_animation_of_one_frame_is_one_image(tmp_path: Path) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return kind + len(content).to_bytes(4, "little") + content + b"\0" * (len(content) % 2)

    plain = BytesIO()
    Image.effect_noise((9, 7), 30).convert("RGB").save(plain, "webp", lossless=True)
    size = (8).to_bytes(3, "little") + (6).to_bytes(3, "little")
    frame = bytes(6) + size + bytes(4) + plain.getvalue()[12:]
    for frames in (1, 2):
        head = chunk(b"VP8X", b"\x02\0\0\0" + size) + chunk(b"ANIM", bytes(6))
        body = b"WEBP" + head + frames * chunk(b"ANMF", frame)
        (tmp_path / "a.webp").write_bytes(chunk(b"RIFF", body))
        with Image.open(tmp_path / "a.webp") as opened:
            assert getattr(opened, "n_frames", 1) == frames
        assert has_several_frames(tmp_path / "a.webp") == (frames > 1)


@pytest.mark.parametrize("suffix", [*FORMATS, "jpg", "bmp"])
def test_a_file_that_is_cut_anywhere_is_no_fault_of_the_header(suffix: str, tmp_path: Path) -> None:
    whole = BytesIO()
    Image.effect_noise((9, 7), 30).save(whole, {"jpg": "jpeg"}.get(suffix, suffix))
    for length in (*range(60), *range(60, len(whole.getvalue()), 11)):
        (tmp_path / "cut").write_bytes(whole.getvalue()[:length])
        assert not has_several_frames(tmp_path / "cut")


@given(st.sampled_from([b"GIF89a", b"\x89PNG\r\n\x1a\n", b"II*\0", b"RIFF\0\0\0\0WEBPVP8X"]), st.binary(max_size=60))
def test_any_bytes_are_answered(start: bytes, more: bytes) -> None:
    with NamedTemporaryFile() as file:
        file.write(start + more)
        file.flush()
        assert has_several_frames(Path(file.name)) in (True, False)


@pytest.mark.parametrize(
    ("role", "latents", "reported"),
    [("train", "auto", True), ("train", "teacher", False), ("evaluate", "", True)],
)
def test_a_plan_names_them_where_they_will_be_read(role: str, latents: str, reported: bool, tmp_path: Path) -> None:
    (folder := tmp_path / "data").mkdir()
    rows = [{"file_name": f"{number}.gif", "text": f"number {number}"} for number in range(4)]
    for number, row in enumerate(rows):
        drawn(folder / row["file_name"], 1 + number % 2)
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    model = pipeline(tmp_path / "model")
    scheduler = {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "prediction_type": "epsilon"}
    (model / "scheduler/scheduler_config.json").write_text(json.dumps(scheduler))
    taught = step(find_stage("distill.guidance"), guidance=3.0, latents=latents) if latents else None
    spec = EvalSpec(metrics={} if taught else {"kid": {}}, samples=4)
    asked = recipe(model, *([taught] if taught else []), data={role: str(folder)}, evaluate=spec)
    if not reported:
        assert make_plan(asked, Cache(tmp_path / "cache")).nodes
        return
    with pytest.raises(RecipeError) as caught:
        make_plan(asked, Cache(tmp_path / "cache"))
    assert [Path(p.message.split()[0]).name for p in caught.value.problems] == ["1.gif", "3.gif"]

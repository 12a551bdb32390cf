"""Which images a side is compared with, and that features are computed once and kept apart by all that decides them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from compress.artifact import Artifact
from compress.catalogue import find_metric
from compress.data.images import SUFFIXES
from compress.data.items import Item
from compress.errors import DataError, ModelError, UserError
from compress.events import Event
from compress.model.describing import describe
from compress.store.cache import Cache
from compress.zoo import zoo_model
from evaluation.distances.image_sets import observe, paired
from evaluation.evidence import Evidence
from evaluation.features import feature_cache, opening, statistics
from evaluation.features import images as under_test
from evaluation.features.extractor import BATCH, Extractor
from evaluation.features.images import against_real, export_reference
from evaluation.observe.repeats import repeated
from evaluation.preflight.image_folders import files_of
from evaluation.preflight.references import AgainstReal

COUNT = BATCH + 5
RNG = np.random.default_rng(3)
GENERATED, BEFORE, REAL = RNG.integers(0, 256, (3, COUNT, 8, 8, 3), dtype=np.uint8)


class Counting:
    """An extractor of the 64 red values, that counts the images it was shown."""

    def __init__(self, digest: str = "weights") -> None:
        self.seen = 0
        self.most = 0
        self.extractor = Extractor("counting", digest, "pil", 8, "squash", self.features, lambda pixels: [])

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        self.seen, self.most = self.seen + len(pixels), max(self.most, len(pixels))
        return pixels[:, 0].flatten(1)


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Counting:
    made = Counting()
    monkeypatch.setattr(under_test, "open_features", lambda reference, resize: replace(made.extractor, resize=resize))
    return made


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    return describe(zoo_model("docs-llama"))


def red(images: np.ndarray) -> np.ndarray:
    return images[..., 0].reshape(len(images), -1).astype(np.float32)


def _give(images: np.ndarray, index: int) -> Callable[[], Any]:
    return lambda: images[index]


def side(
    artifact: Artifact, folder: Path | None, *, real: bool = True, key: str = "generated", **more: Any
) -> Evidence:
    items = tuple(Item(str(i), f"caption {i}", _give(REAL, i) if real else None) for i in range(COUNT))
    reported: dict[str, Any] = {"items": items, "image": lambda i: GENERATED[i], "key": key, "data_key": "data"} | more
    return Evidence(artifact, memory=folder, **reported)


def image_folder(folder: Path, images: np.ndarray) -> Path:
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:03d}.png")
    return folder


def test_values_are_of_the_generated_and_reference_of_the_real(counting: Counting, artifact: Artifact) -> None:
    found = against_real(side(artifact, None), "any", "tf1")
    assert np.array_equal(found.values, red(GENERATED))
    assert found.reference is not None
    assert np.array_equal(found.reference, red(REAL))
    assert (found.values.dtype, found.reference.dtype) == (np.float32, np.float32)
    assert found.protocol == {
        "features": "counting",
        "weights": "weights",
        "resize": "tf1",
        "reference": "the data's images",
    }


@pytest.mark.parametrize("each", [1, 2])
def test_a_real_image_with_several_captions_counts_once(
    each: int, counting: Counting, artifact: Artifact, tmp_path: Path
) -> None:
    files = [0, 0, 1, 2, 1, 0]
    items = [Item(f"item {n}", "", _give(REAL, file), f"{file}.png") for n, file in enumerate(files)]
    shown = side(artifact, tmp_path, items=repeated(items, each), each=each)
    found = observe(shown, AgainstReal())
    assert found.reference is not None
    assert np.array_equal(found.reference, red(REAL[:3]))
    assert (len(found.values), found.unit_ids) == (6 * each, tuple(item.id for item in items))
    assert (found.protocol["reference"], found.protocol["paired"]) == ("the data's 3 images", "no")
    assert not paired(found)
    kid = find_metric("kid")
    assert np.isfinite(kid.score(found).value)
    alone = observe(replace(shown, items=repeated(items[1:4], each)), AgainstReal())
    assert (alone.protocol["reference"], alone.protocol["paired"]) == ("the data's images", "by item")


def test_without_real_images_the_originals_are_what_counts(counting: Counting, artifact: Artifact) -> None:
    original = side(artifact, None, real=False, key="before", image=lambda i: BEFORE[i])
    for items in (
        original.items,
        side(artifact, None).items[:1] + original.items[1:],
    ):  # one real image is not enough
        found = against_real(side(artifact, None, original=original, items=items), "any")
        assert found.reference is not None
        assert np.array_equal(found.values, red(GENERATED))
        assert np.array_equal(found.reference, red(BEFORE))
        assert found.protocol["reference"] == "the baseline's images"
    itself = against_real(original, "any")
    assert itself.reference is not None
    assert np.array_equal(itself.reference, itself.values)
    assert itself.protocol == found.protocol


def test_features_are_computed_once(counting: Counting, artifact: Artifact, tmp_path: Path) -> None:
    first = against_real(side(artifact, tmp_path), "any")
    assert (counting.seen, counting.most) == (2 * COUNT, BATCH)
    second = against_real(side(artifact, tmp_path), "any")
    assert counting.seen == 2 * COUNT
    assert np.array_equal(first.values, second.values)
    assert first.reference is not None
    assert second.reference is not None
    assert np.array_equal(first.reference, second.reference)
    assert [f.suffix for f in tmp_path.iterdir()] == [".safetensors"] * 2  # and nothing half made
    against_real(side(artifact, tmp_path, key="another"), "any")
    assert counting.seen == 3 * COUNT  # the same real images, another side's generated ones


def test_the_original_and_its_reader_share_what_was_computed(
    counting: Counting, artifact: Artifact, tmp_path: Path
) -> None:
    original = side(artifact, tmp_path, real=False, key="before", image=lambda i: BEFORE[i])
    against_real(original, "any")
    against_real(side(artifact, tmp_path, real=False, original=original), "any")
    assert counting.seen == 2 * COUNT


@pytest.mark.parametrize("change", ["memory", "key", "first", "resize", "weights", "library"])
def test_whatever_decides_features_has_them_computed_again(
    change: str, counting: Counting, artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = side(artifact, tmp_path, real=False)
    against_real(before, "any")
    if change == "weights":
        other = replace(counting.extractor, digest="other")
        monkeypatch.setattr(under_test, "open_features", lambda *_: other)
    if change == "library":
        monkeypatch.setattr(feature_cache, "version", lambda name: "99")
    again = {
        "memory": replace(before, memory=tmp_path / "elsewhere"),
        "key": replace(before, key="other"),
        "first": before.first(3),
    }.get(change, before)
    found = against_real(again, "any", "mlperf" if change == "resize" else "pil")
    assert counting.seen == COUNT + len(again.items)
    assert np.array_equal(found.values, red(GENERATED)[: len(again.items)])


@pytest.mark.parametrize("known", [{"memory": None}, {"key": ""}])
def test_nothing_is_remembered_of_what_has_no_key_or_no_place(
    known: dict[str, Any], counting: Counting, artifact: Artifact, tmp_path: Path
) -> None:
    for _ in range(2):
        against_real(replace(side(artifact, tmp_path, real=False), **known), "any")
    assert counting.seen == 2 * COUNT
    assert not list(tmp_path.iterdir())


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-9])


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)


def _empty(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize("spoil", [_cut, _flip, _empty])
def test_a_broken_file_is_computed_again_and_mended(
    spoil: Callable[[Path], None], counting: Counting, artifact: Artifact, tmp_path: Path
) -> None:
    evidence = side(artifact, tmp_path, real=False)
    against_real(evidence, "any")
    for file in tmp_path.iterdir():
        spoil(file)
    for _ in range(2):
        assert np.array_equal(against_real(evidence, "any").values, red(GENERATED))
    assert counting.seen == 2 * COUNT


def test_a_memory_that_cannot_be_written_costs_only_time(
    counting: Counting, artifact: Artifact, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    found = against_real(side(artifact, tmp_path / "file" / "features"), "any")
    assert np.array_equal(found.values, red(GENERATED))


def test_a_folder_is_held_against_in_the_order_of_its_names(
    counting: Counting, artifact: Artifact, tmp_path: Path
) -> None:
    folder = image_folder(tmp_path / "real", REAL[:4])
    (folder / "notes.txt").write_text("no image")
    evidence = side(artifact, tmp_path / "memory", real=False)
    found = against_real(evidence, "any", "pil", str(folder))
    assert found.reference is not None
    assert np.array_equal(found.reference, red(REAL[:4]))
    seen = counting.seen
    again = against_real(evidence, "any", "pil", str(folder.rename(tmp_path / "moved")))
    assert counting.seen == seen  # its content counts, not where it lies
    assert again.protocol == found.protocol
    Image.fromarray(REAL[9]).save(tmp_path / "moved" / "002.png")
    changed = against_real(evidence, "any", "pil", str(tmp_path / "moved"))
    assert changed.reference is not None
    assert np.array_equal(changed.reference[2], red(REAL[9:10])[0])
    assert changed.protocol != found.protocol


def test_a_folder_of_no_images_or_of_a_broken_one_is_refused(
    counting: Counting, artifact: Artifact, tmp_path: Path
) -> None:
    evidence = side(artifact, None, real=False)
    with pytest.raises(DataError, match="holds no images"):
        against_real(evidence, "any", "pil", str(tmp_path))
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="is no image that reads") as caught:
        against_real(evidence, "any", "pil", str(tmp_path))
    assert "broken.png" in caught.value.problems[0].place


def test_statistics_go_out_and_come_back(counting: Counting, artifact: Artifact, tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "real", REAL)
    assert export_reference(str(folder), "any", "pil", tmp_path / "out" / "stats.npz") == COUNT
    found = against_real(side(artifact, None), "any", "pil", str(tmp_path / "out" / "stats.npz"))
    assert found.reference is None
    assert found.moments is not None
    mean, covariance = found.moments
    assert mean == pytest.approx(red(REAL).astype(float).mean(axis=0))
    assert covariance == pytest.approx(np.cov(red(REAL).astype(float), rowvar=False))
    assert str(found.protocol["reference"]).startswith("statistics ")
    assert [f.name for f in (tmp_path / "out").iterdir()] == ["stats.npz"]


def test_copies_in_a_reference_count_once_and_are_reported(
    counting: Counting, artifact: Artifact, tmp_path: Path
) -> None:
    folder, plain = (
        image_folder(tmp_path / "real", np.concatenate([REAL[:4], REAL[:3]])),
        image_folder(tmp_path / "plain", REAL[:4]),
    )
    evidence = side(artifact, None, real=False)
    found, expected = (against_real(evidence, "any", "pil", str(place)) for place in (folder, plain))
    assert found.reference is not None
    assert np.array_equal(found.reference, red(REAL[:4]))
    assert found.protocol == expected.protocol
    assert (found.left_out, expected.left_out) == (f"4 of 7 images in {folder} count: the others are copies", "")
    recorded: list[Event] = []
    assert export_reference(str(folder), "any", "pil", tmp_path / "stats.npz", emit=recorded.append) == 4
    assert [event.message for event in recorded if event.kind == "warning"] == [found.left_out]


def test_statistics_of_data_by_name(counting: Counting, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="as many images as one wants"):
        export_reference("zoo://digits/test", "any", "pil", tmp_path / "stats.npz")
    assert export_reference("zoo://digits/test", "any", "pil", tmp_path / "stats.npz", count=40) == 40
    with pytest.raises(DataError, match="without an image"):
        export_reference("zoo://docstrings/test", "any", "pil", tmp_path / "stats.npz")
    one = image_folder(tmp_path / "one", REAL[:1])
    with pytest.raises(DataError, match="no covariance"):
        export_reference(str(one), "any", "pil", tmp_path / "stats.npz")


def test_every_image_that_an_evaluation_sees_is_seen_by_a_reference(counting: Counting, tmp_path: Path) -> None:
    for index, suffix in enumerate(SUFFIXES):
        Image.fromarray(REAL[index]).save(tmp_path / f"{index}{suffix}")
    Image.fromarray(REAL[0]).save(tmp_path / "loud.BMP")
    (tmp_path / "notes.txt").write_text("no image")
    assert len(files_of(tmp_path)) == len(SUFFIXES) + 1
    assert export_reference(str(tmp_path), "any", "pil", tmp_path / "stats.npz") == len(SUFFIXES) + 1
    assert counting.seen == len(SUFFIXES) + 1


def test_streamed_statistics_are_those_of_numpy_far_from_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "CHUNK", 7)
    features = (RNG.normal(size=(50, 6)) + 1e3).astype(np.float32)
    mean, covariance = statistics.statistics_of(features)
    assert (mean.dtype, covariance.dtype) == (np.float64, np.float64)
    assert mean == pytest.approx(features.astype(float).mean(axis=0), abs=1e-9)
    assert covariance == pytest.approx(np.cov(features.astype(float), rowvar=False), abs=1e-9)


MU, SIGMA = np.zeros(4), np.eye(4)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": MU}, "is no file of statistics.*sigma"),
        ({"mu": np.array([None] * 4), "sigma": SIGMA}, "is no file of statistics.*allow_pickle"),
        ({"mu": MU, "sigma": np.eye(3)}, r"mu \[4\] and sigma \[3, 3\]"),
        ({"mu": MU[None], "sigma": SIGMA}, r"mu \[1, 4\]"),
        ({"mu": MU, "sigma": SIGMA * np.nan}, "not finite"),
        ({"mu": MU, "sigma": np.triu(np.ones((4, 4)))}, "not symmetric"),
        ({"mu": np.zeros(3), "sigma": np.eye(3)}, "3 features, where the extractor gives 4"),
    ],
)
def test_a_file_of_other_statistics_is_refused(arrays: dict[str, Any], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "stats.npz", **arrays)
    with pytest.raises(DataError, match=message) as caught:
        statistics.read_statistics(tmp_path / "stats.npz", 4)
    assert caught.value.problems[0].place.endswith("stats.npz")
    assert caught.value.problems[0].fix


def test_no_file_and_no_npz_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("mu sigma")
    np.save(tmp_path / "array.npy", MU)
    for name in ("nowhere.npz", "text.npz", "array.npy"):
        with pytest.raises(DataError, match="is no file of statistics"):
            statistics.read_statistics(tmp_path / name, 4)


def test_an_unknown_resizing_is_refused_before_anything_is_opened(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nearest"):
        opening.open_features(str(tmp_path), "nearest")
    with pytest.raises(ModelError):
        opening.open_features(str(tmp_path), "tf1")


def test_two_runs_at_one_time_compute_once(counting: Counting, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    cache.prepare()
    folder, computed = cache.root / "features", []
    begun, end = threading.Event(), threading.Event()

    def compute() -> feature_cache.Features:
        computed.append(1)
        begun.set()
        assert end.wait(60)
        return np.ones((3, 2), np.float32)

    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(feature_cache.remembered, folder, counting.extractor, "content", 3, compute)
        assert begun.wait(60)
        other = pool.submit(feature_cache.remembered, folder, counting.extractor, "content", 3, compute)
        time.sleep(0.2)  # enough for it to come to the lock
        end.set()
        assert np.array_equal(one.result(60), other.result(60))
    assert computed == [1]


def test_features_that_were_used_are_dropped_last(counting: Counting, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    cache.prepare()
    for content in ("one", "other"):
        feature_cache.remembered(
            cache.root / "features", counting.extractor, content, 1, lambda: np.ones((1, 2), np.float32)
        )
    for file in (cache.root / "features").iterdir():
        os.utime(file, (10**9, 10**9))
    feature_cache.remembered(
        cache.root / "features", counting.extractor, "one", 1, lambda: np.zeros((1, 2), np.float32)
    )
    keys = [feature_cache.features_key(counting.extractor, content, 1) for content in ("other", "one")]
    assert [one.key for one in cache.evict(0)] == keys

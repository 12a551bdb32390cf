"""`pare eval`, `compare`, `report` and `reference` as a user types them, on folders of images and a tiny model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

import compress
from compress.errors import DataError, StageFailed, UserError
from compress.recipe.gates import Gate
from compress.recipe.values import EvalSpec
from compress.sources.data import open_data
from evaluation.preflight.image_folders import captions_of, describe_generated, images_for, is_generated
from tests.tiny import tiny_diffusion

SCENES = "zoo://digits/test"
COUNT = 80  # more than the zoo CLIP has features


@dataclass(frozen=True)
class Places:
    """`real`: images called as the items of the data; `other`: as many of other scenes under the same names."""

    root: Path
    real: Path
    other: Path


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    root = tmp_path_factory.mktemp("eval")
    data = open_data(SCENES, Path())
    for name, start in (("real", 0), ("other", 500)):
        (root / name / "test").mkdir(parents=True)
        for index in range(COUNT):
            shown = data.read(start + index).image
            assert shown
            Image.fromarray(shown()).save(root / name / f"{data.read(index).id}.png")
    return Places(root, root / "real", root / "other")


def pare(places: Places, *arguments: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "compress.cli", *map(str, arguments)]
    environment = {**os.environ, "PARE_CACHE": str(places.root / "cache"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, capture_output=True, text=True, cwd=places.root, env=environment, timeout=300, check=False
    )


def evaluate(places: Places, candidate: Path, baseline: Path | str, name: str, **more: Any) -> Any:
    options: dict[str, Any] = {"spec": EvalSpec(samples=COUNT), **more}
    return compress.evaluate(candidate, baseline, cache=places.root / "cache", out=places.root / name, **options)


# ---------------------------------------------------------------- two folders, no model


@pytest.fixture(scope="module")
def shell(places: Places) -> subprocess.CompletedProcess[str]:
    metrics, gate = "fid,kid,precision,recall,ssim,lpips", "ssim.worse_by=0.1"
    return pare(places, "eval", "other", "real", "--metrics", metrics, "--gate", gate, "--out", "out", "--json")


def test_two_folders_of_images_are_compared_without_a_model(shell: Any, places: Places) -> None:
    assert shell.returncode == 1, shell.stderr  # other scenes are not pixel by pixel the same
    found = json.loads(shell.stdout)
    rows = {row["metric"]: row for row in found["rows"]}
    assert rows["fid"]["baseline"]["value"] == rows["kid"]["baseline"]["value"] == 0
    assert rows["fid"]["candidate"]["value"] > 0
    assert rows["kid"]["protocol"]["reference"] == "the baseline's images"
    (said,) = (message for message in found["warnings"] if message.startswith("reference: "))
    assert "fid, kid, precision, recall are distances from the baseline's own" in said
    assert rows["ssim"]["verdict"]["status"] == "fail"
    assert found["candidate"]["engine"] == "a folder of images"
    assert found == json.loads((places.root / "out" / "result.json").read_text())


def test_every_gate_is_a_test_case_that_a_parser_reads(shell: Any, places: Places) -> None:
    suite = ElementTree.parse(places.root / "out" / "junit.xml").getroot()
    (case,) = suite.findall("testcase")
    assert case.attrib["name"] == "ssim: not worse by 0.1"
    assert case.find("failure") is not None
    assert (suite.attrib["tests"], suite.attrib["failures"]) == ("1", "1")


def test_the_same_evaluation_twice_gives_the_same_numbers(shell: Any, places: Places) -> None:
    again = evaluate(places, places.other, places.real, "again", metrics=["fid", "kid", "ssim"])
    first = {row["metric"]: row for row in json.loads(shell.stdout)["rows"]}
    for row in again.rows:
        for side in ("baseline", "candidate", "contrast"):
            assert getattr(row, side).value == first[row.metric][side]["value"]
            assert getattr(row, side).low == first[row.metric][side]["low"]


def test_features_are_taken_once_and_kept(shell: Any, places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("features were taken again")

    monkeypatch.setattr("evaluation.features.extractor.Extractor.images", refuse)
    first = {row["metric"]: row for row in json.loads(shell.stdout)["rows"]}
    for row in evaluate(places, places.other, places.real, "kept", metrics=["fid", "kid"]).rows:
        assert row.candidate.value == first[row.metric]["candidate"]["value"]
    with pytest.raises(StageFailed, match="taken again"):  # what was never seen before is not in the cache
        evaluate(places, places.other, places.real, "unseen", metrics=["kid"], spec=EvalSpec(samples=COUNT - 1))


def test_with_data_the_folders_images_are_held_against_the_real_ones(places: Places) -> None:
    metrics, gates = ["clip_score", "kid"], {"clip_score": Gate(within="5%")}
    found = evaluate(places, places.other, places.real, "with data", metrics=metrics, gates=gates, data=SCENES)
    rows = {row.metric: row for row in found.rows}
    assert rows["kid"].protocol["reference"] == "the data's images"
    assert not any("no real images" in message for message in found.warnings)
    assert rows["kid"].baseline.value == pytest.approx(0, abs=1e-9)  # they are the real ones
    assert rows["clip_score"].verdict.status == "fail"  # other scenes than the captions tell of
    assert len(found.images) > 6
    assert {p.caption for p in found.images} < {i.text for i in open_data(SCENES, Path()).first(COUNT)}


def test_a_model_generates_what_a_folder_shows(places: Places) -> None:
    """One side a tiny model, the other a folder with captions."""
    folder = places.root / "captioned"
    folder.mkdir()
    rows = []
    for index in range(4):
        image = np.random.default_rng(index).integers(0, 255, (16, 16, 3)).astype(np.uint8)
        Image.fromarray(image).save(folder / f"{index}.png")
        rows.append({"file_name": f"{index}.png", "text": f"a red {index} on white paper"})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    model = tiny_diffusion(places.root / "model")
    spec = EvalSpec(samples=4, baseline={"steps": 2})  # type: ignore[arg-type]
    found = evaluate(places, folder, str(model), "mixed", metrics=["psnr", "clip_score"], spec=spec)
    assert [p.caption for p in found.images] == [row["text"] for row in rows]
    assert found.rows[0].candidate.value < 20


# ---------------------------------------------------------------- what cannot be


def test_a_metric_that_needs_a_model_is_refused_before_anything_is_read(places: Places) -> None:
    done = pare(places, "eval", "other", "real", "--metrics", "kid,latency", "--out", "refused")
    assert done.returncode == 2
    assert "latency needs a model, and one side is a folder of images" in done.stderr
    assert "fix:" in done.stderr
    assert not (places.root / "refused").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--metrics", "clip_score"), "needs a caption for each image"),
        (("--metrics", "kid", "--gate", "kid.speedup=2"), "compared by its difference"),
        (("--metrics", "kid", "--gate", "fid.worse_by=1"), "fid is gated and not measured"),
        (("--metrics", "kid", "--set", "kid.featurs=x"), "kid.featurs"),
        (("--metrics", "kid", "--set", "kid.features=nowhere/"), "nowhere"),
        (("--metrics", "psnr", "--reference", "real"), "none of these metrics has a reference"),
        (("--metrics", "psnr,kid", "--features", "nowhere/"), "nowhere"),
        (("--metrics", "fid", "--samples", "20"), "65"),  # a covariance of 64 features from 20 images
    ],
)
def test_mistakes_are_one_clear_error(arguments: tuple[str, ...], message: str, places: Places) -> None:
    done = pare(places, "eval", "other", "real", *arguments, "--out", "mistaken")
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "fix:" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_item_without_a_image_is_named(places: Places) -> None:
    with pytest.raises(DataError, match="no image for 'test/80'"):
        evaluate(places, places.other, places.real, "few", metrics=["kid"], data=SCENES, spec=EvalSpec(samples=81))


@pytest.fixture
def odd(places: Places, tmp_path: Path) -> Path:
    """A folder like `real`, for a test to spoil."""
    shutil.copytree(places.real, tmp_path / "odd")
    return tmp_path / "odd"


def test_folders_of_differently_called_images_are_not_paired_by_position(places: Places, odd: Path) -> None:
    (odd / "test" / "3.png").rename(odd / "test" / "3b.png")
    with pytest.raises(UserError, match=r"'test/3\.png'") as caught:
        evaluate(places, odd, places.real, "unpaired", metrics=["ssim"])
    assert "--reference" in caught.value.problems[0].fix
    found = evaluate(places, odd, odd, "one set", metrics=["fid"], reference=str(places.real))
    assert found.rows[0].candidate.value == pytest.approx(0, abs=1e-9)  # the same images under other names


def test_a_image_that_does_not_read_is_named(places: Places, odd: Path) -> None:
    (odd / "test" / "5.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="no image that reads") as caught:
        evaluate(places, odd, places.real, "unread", metrics=["psnr"])
    assert caught.value.problems[0].place.endswith("5.png")


def test_a_run_that_fails_leaves_no_samples_beside_another_runs_result(places: Places) -> None:
    evaluate(places, places.other, places.real, "kept whole", metrics=["psnr"])
    before = (places.root / "kept whole" / "samples" / "psnr.safetensors").read_bytes()
    known = places.root / "known.npz"  # of other features, which fid finds out when it is scored
    np.savez(known, mu=np.zeros(3), sigma=np.eye(3))
    with pytest.raises(UserError, match="is of 3 features"):
        evaluate(places, places.real, places.real, "kept whole", metrics=["psnr", "fid"], reference=str(known))
    assert (places.root / "kept whole" / "samples" / "psnr.safetensors").read_bytes() == before


def test_a_folder_of_images_is_reported_from_a_model_and_from_nothing(places: Places, tmp_path: Path) -> None:
    assert is_generated(places.real)
    assert not is_generated(tmp_path)
    assert not is_generated(tmp_path / "nowhere")
    assert not is_generated(tiny_diffusion(tmp_path / "model"))


def test_a_changed_image_changes_the_digest_and_other_files_do_not(places: Places, tmp_path: Path) -> None:
    for index in range(2):
        Image.fromarray(np.full((4, 4, 3), index, np.uint8)).save(tmp_path / f"{index}.png")
    before = describe_generated(tmp_path, "text_to_image").digest
    (tmp_path / "notes.txt").write_text("made on a Tuesday")
    assert describe_generated(tmp_path, "text_to_image").digest == before
    Image.fromarray(np.full((4, 4, 3), 9, np.uint8)).save(tmp_path / "1.png")
    assert describe_generated(tmp_path, "text_to_image").digest != before
    items = captions_of(tmp_path).first(9)
    assert [f.name for f in images_for(tmp_path, items)] == ["0.png", "1.png"]


# ---------------------------------------------------------------- many runs, and reference statistics


def test_many_runs_are_one_table(shell: Any, places: Places) -> None:
    evaluate(places, places.real, places.real, "same", metrics=["ssim"], gates={"ssim": Gate(worse_by=0.1)})
    done = pare(places, "report", "out", "same")
    assert done.returncode == 0, done.stderr
    assert "fail" in done.stdout
    assert "pass" in done.stdout
    table = pare(places, "report", "out", "same", "--markdown").stdout.splitlines()
    assert table[0].startswith("| run | verdict |")
    assert len(table) == 4
    tidy = json.loads(pare(places, "report", "out", "same", "--json").stdout)
    assert {row["run"] for row in tidy} == {"out", "same"}
    assert all(row["contrast_low"] is None or row["contrast_low"] <= row["contrast_high"] for row in tidy)


def test_a_folder_without_runs_is_named(places: Places, tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError) as caught:
            compress.report([place])
        assert caught.value.problems[0].place == str(place)


def test_a_comparison_is_a_tidy_frame(places: Places) -> None:
    frame = evaluate(places, places.real, places.real, "framed", metrics=["ssim", "psnr"]).to_frame()
    assert list(frame["metric"]) == ["ssim", "psnr"]
    assert {"run", "task", "baseline", "candidate", "contrast", "contrast_low", "verdict", "n"} <= set(frame.columns)
    assert frame["contrast"].tolist() == [0.0, 0.0]


def test_reference_statistics_go_out_and_come_in_again(shell: Any, places: Places) -> None:
    done = pare(places, "reference", "real", "--out", "real.npz")
    assert done.returncode == 0, done.stderr
    assert f"of {COUNT} images" in done.stdout
    with np.load(places.root / "real.npz") as stored:
        assert stored["mu"].shape == (64,)
        assert stored["sigma"].shape == (64, 64)
    metrics = {"fid": {"reference": str(places.root / "real.npz")}}
    found = evaluate(places, places.other, places.real, "by statistics", metrics=metrics)
    direct = next(row for row in json.loads(shell.stdout)["rows"] if row["metric"] == "fid")
    assert found.rows[0].candidate.value == pytest.approx(direct["candidate"]["value"], rel=1e-6)


def test_an_endless_source_says_how_many_it_wants(places: Places) -> None:
    done = pare(places, "reference", SCENES, "--out", "endless.npz")
    assert done.returncode == 2
    assert "say how many" in done.stderr
    assert pare(places, "reference", SCENES, "--samples", 70, "--out", "some.npz").returncode == 0

"""Sizes that a pipeline cannot generate are reported when planning, each with the nearest; what is not reported is generated as it was asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import compress
from compress.artifact import Artifact, write_manifest
from compress.commands.evaluate import prepare
from compress.commands.wanted import Wanted
from compress.errors import ManyProblems, RecipeError
from compress.model.describing import describe
from compress.opening import open_task
from compress.pipelines.image_sizes import BINNED, own_size, size_multiple, size_problems, unbinned
from compress.store.cache import open_cache
from compress.zoo import zoo_model
from tests.families import CALLS, IMAGES, tiny_image
from tests.stages import DATA
from tests.tiny import tiny_diffusion


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion whose VAE makes one latent of two by two pixels."""
    return tiny_diffusion(tmp_path_factory.mktemp("sd"))


def sized(folder: Path, **call: object) -> list[str]:
    return [f"{p.message}: {p.fix}" for p in size_problems(describe(folder).calling(**call))]


def generated(artifact: Artifact, height: int, width: int) -> tuple[int, ...]:
    """The size of the image that comes of a call; () where the pipeline refuses it."""
    task: Any = open_task(artifact)
    try:
        images, _ = task.images(DATA.first(1), 0, num_inference_steps=2, height=height, width=width)
    except ValueError:
        return ()
    return tuple(images.shape[1:3])


@pytest.mark.parametrize("family", IMAGES)
def test_a_family_generates_the_multiple_that_is_reported_and_nothing_less(family: str, tmp_path: Path) -> None:
    source = describe(tiny_image(tmp_path, family)).calling(**CALLS[family])
    multiple = size_multiple(source)
    assert multiple > 1
    assert generated(source, multiple, 2 * multiple) == (multiple, 2 * multiple)
    odd = multiple + multiple // 2
    assert generated(source, odd, 2 * multiple) != (odd, 2 * multiple)


def test_a_stable_diffusion_says_the_nearest_of_both_sides(generator: Path) -> None:
    assert sized(generator, height=18, width=22) == [
        "height 18 cannot be generated: it is no multiple of 8: 16 is the nearest",
        "width 22 cannot be generated: it is no multiple of 8: 24 is the nearest",
    ]
    assert sized(generator, height=3) == ["height 3 cannot be generated: it is no multiple of 8: 8 is the nearest"]
    assert sized(generator, height=16, width=None) == []
    assert sized(generator) == []
    assert generated(describe(generator), 18, 22) == ()


@pytest.mark.parametrize("size", [0, -8, 16.0, "16", True, [16]])
def test_a_size_is_a_whole_number_of_pixels(generator: Path, size: object) -> None:
    (found,) = sized(generator, height=size)
    assert "a whole number of pixels" in found


def test_sizes_that_are_binned_are_generated_and_resized(tmp_path: Path) -> None:
    source = describe(tiny_image(tmp_path, "pixart-sigma"))
    assert list(size_problems(source.calling(height=1000, use_resolution_binning=True))) == []
    assert len(list(size_problems(source.calling(height=1001, use_resolution_binning=False)))) == 1


@pytest.mark.parametrize(("family", "size"), [("pixart-alpha", 16), ("pixart-sigma", 16), ("sana", 8)])
def test_a_model_whose_own_size_is_in_no_table_is_generated_without_looking(
    family: str, size: int, tmp_path: Path
) -> None:
    folder = tiny_image(tmp_path, family)
    kept = {name: value for name, value in CALLS[family].items() if name in ("max_sequence_length", "clean_caption")}
    (folder / "pare.json").unlink()
    assert unbinned(describe(folder)) == ()
    assert describe(folder).settings.call == {}
    config = json.loads((folder / "transformer/config.json").read_text())
    (folder / "transformer/config.json").write_text(json.dumps({**config, "sample_size": size}))
    source = describe(folder)
    assert source.settings.call == {BINNED: False}
    assert list(size_problems(source)) == []
    if family == "pixart-sigma":  # this Alpha is reported the image's size, which its pipeline does for 128 alone
        assert generated(source.calling(**kept), own_size(source), own_size(source)) == (2 * size, 2 * size)
    write_manifest(source.calling(use_resolution_binning=True))
    (found,) = sized(folder)
    assert f"no table of image sizes (there are some for {', '.join(map(str, unbinned(source)))})" in found
    assert '"use_resolution_binning": false' in found


def test_a_table_of_positions_ends_somewhere(tmp_path: Path) -> None:
    (found,) = sized(tiny_image(tmp_path, "sd3"), height=64)
    assert found == "height 64 is more than the positions of `transformer` reach: at most 32"


def test_of_an_unknown_pipeline_nothing_is_reported(generator: Path, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "NoSuchPipeline"}')
    assert list(size_problems(Artifact(tmp_path, "text_to_image", {}).calling(height=17))) == []


def test_the_zoos_pipeline_generates_its_own_size() -> None:
    assert sized(zoo_model("digits-diffusion")) == []


@pytest.fixture
def wrong(generator: Path, tmp_path: Path) -> Path:
    """A model whose manifest asks for a size that it cannot generate."""
    import shutil

    folder = shutil.copytree(generator, tmp_path / "wrong")
    write_manifest(describe(folder).calling(height=18))
    return folder


def test_every_verb_asks(wrong: Path, generator: Path, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(json.dumps({"schema": 1, "name": "x", "model": "./wrong"}))
    with pytest.raises(RecipeError, match="height 18 cannot be generated"):
        compress.plan(tmp_path / "r.yaml", cache=tmp_path / "cache")
    for sides in ((wrong, generator), (generator, wrong)):
        with pytest.raises(ManyProblems, match="height 18 cannot be generated"):
            prepare(*map(str, sides), Wanted({"size": {}}), open_cache(tmp_path / "cache"), tmp_path / "out")
    with pytest.raises(compress.PareError, match="height 18 cannot be generated"):
        compress.apply("accelerate.steps", wrong, cache=tmp_path / "cache", steps=2)


def test_what_a_recipe_asks_of_its_baseline_is_held_against_its_scheduler(generator: Path, tmp_path: Path) -> None:
    import shutil

    folder = shutil.copytree(generator, tmp_path / "sd")
    (folder / "scheduler" / "scheduler_config.json").write_text('{"num_train_timesteps": 20}')
    recipe = {"schema": 1, "name": "x", "model": "./sd", "evaluate": {"baseline": {"steps": 21}}}
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    with pytest.raises(RecipeError, match="DDIMScheduler cannot do 21 steps: at most 20"):
        compress.plan(tmp_path / "r.yaml", cache=tmp_path / "cache")
    recipe["evaluate"] = {"baseline": {"steps": 20}}
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    compress.plan(tmp_path / "r.yaml", cache=tmp_path / "cache")

"""A checkpoint in one file is the model of diffusers that it was written from: its images are equal to the bit, whatever is done to it; it is
planned before it is converted, and converted whole or not at all."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import compress
from compress.artifact import Artifact
from compress.commands.run import with_weights
from compress.errors import ModelError, UserError
from compress.events import Event, silent
from compress.execution.execute import execute
from compress.files.safetensors_headers import read_header
from compress.making.ready import base_of, disk_bytes, memory_bytes, ready
from compress.model.describing import describe
from compress.opening import open_images
from compress.planning.plan import Plan, make_plan
from compress.recipe.reading import read_values
from compress.sources import models
from compress.sources.models import find_source
from compress.store.cache import Cache
from tests.adapters import branches, of_kinds, shapes, write_kohya
from tests.editors import tiny_editor
from tests.families import tiny_image
from tests.originals import DENOISER, part, unet, write_original
from tests.tiny import tiny_diffusion

CALL = {"num_inference_steps": 3, "output_type": "np"}


def folder_of(at: Path, family: str) -> Path:
    """The pipeline that a checkpoint is written from."""
    if family != "sd3":
        return tiny_diffusion(at, xl=family == "sdxl", second=16)
    found = tiny_image(at, "sd3")
    file = found / "text_encoder/model.safetensors"
    weights = load_file(file)
    weights["text_projection.weight"] = torch.eye(32)  # as diffusers takes it for granted
    save_file(weights, file, {"format": "pt"})
    return found


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders and the checkpoints that hold the same, by family."""
    found = tmp_path_factory.mktemp("originals")
    for family in ("sd1", "sd2", "sdxl", "sd3"):
        shutil.move(folder_of(found / f"{family}-made", family), found / family)
        write_original(found / family, found / f"{family}.safetensors", family)
    return found


def planned(home: Path, model: str, cache: Path, **more: Any) -> tuple[Plan, Cache]:
    (recipe,) = read_values({"schema": 1, "name": "o", "model": model, **more}, "test")
    return make_plan(recipe, Cache(cache)), Cache(cache)


def images(model: Any) -> np.ndarray[Any, Any]:
    generator = torch.Generator().manual_seed(3)
    extra = {"height": 16, "width": 16} if "XL" in type(model).__name__ or "3" in type(model).__name__ else {}
    found: np.ndarray[Any, Any] = model("a red seven", generator=generator, **CALL, **extra).images
    return found


def weights(folder: Path, name: str) -> Mapping[str, Any]:
    (file,) = (folder / name).glob("*.safetensors")
    return {tensor: (one.shape, one.dtype) for tensor, one in read_header(file).tensors.items()}


@pytest.mark.parametrize(
    "family", ["sd1", *(pytest.param(one, marks=pytest.mark.slow) for one in ("sd2", "sdxl")), "sd3"]
)
def test_a_checkpoint_is_the_model_that_it_was_written_from(home: Path, tmp_path: Path, family: str) -> None:
    plan, cache = planned(
        home,
        f"{home / family}.safetensors::{home / family}",
        tmp_path / "cache",
        stages=[{"accelerate.steps": {"steps": 3}}],
    )
    sketch, conversion = plan.source.artifact, plan.source.making
    assert conversion
    assert not plan.nodes[0].cached
    assert plan.disk_bytes >= disk_bytes(plan.source, cache) > 0 < memory_bytes(plan.source, cache)
    found = with_weights(plan, cache, silent)
    made = found.source.artifact
    for name in conversion.parts:
        assert weights(sketch.path, name) == weights(made.path, name) == weights(home / family, name)
        assert part(made.path, name)[1] == part(home / family, name)[1]
        for tensor, one in part(home / family, name)[0].items():
            assert torch.equal(part(made.path, name)[0][tensor], one), f"{name}: {tensor}"
    (done,) = execute(found, cache, silent)
    wanted = images(compress.load(home / family))
    assert np.isfinite(wanted).all()
    assert np.array_equal(images(compress.load(made)), wanted)
    assert np.array_equal(images(compress.load(done.artifact)), wanted)
    again, _ = planned(home, plan.recipe.model, cache.root, stages=[{"accelerate.steps": {"steps": 3}}])
    assert [node.key for node in again.nodes] == [node.key for node in plan.nodes]
    assert again.nodes[0].cached
    assert disk_bytes(again.source, cache) == memory_bytes(again.source, cache) == 0


@pytest.mark.parametrize(
    ("kind", "channels", "family"),
    [
        ("StableDiffusionInpaintPipeline", 9, "stable-diffusion-inpainting"),
        ("StableDiffusionInstructPix2PixPipeline", 8, "instruct-pix2pix"),
    ],
)
def test_a_checkpoint_of_a_pipeline_that_is_given_images_is_opened_with_its_configs(
    kind: str, channels: int, family: str, tmp_path: Path
) -> None:
    """Its UNet takes more channels than a latent has; configs of one that takes these alone are not those of the file."""
    folder = tiny_editor(tmp_path / "model", kind)
    file = write_original(folder, tmp_path / "one.safetensors", "sd1")
    found = ready(find_source(f"{file}::{folder}", Path(), tmp_path / "digests"), Cache(tmp_path / "cache"), silent)
    own, made = (open_images(one) for one in (describe(folder), found.artifact))
    assert found.artifact.task == describe(folder).task
    assert np.array_equal(own.images(own.examples, 0)[0], made.images(made.examples, 0)[0])
    plain = tiny_editor(tmp_path / "plain", "StableDiffusionImg2ImgPipeline")
    with pytest.raises(UserError, match=f"32×{channels}×3×3, and by this config 32×4×3×3") as refused:
        find_source(f"{file}::{plain}", Path(), tmp_path / "digests")
    assert family in refused.value.problems[0].fix


def test_weights_stay_as_wide_as_the_file_has_them(home: Path, tmp_path: Path) -> None:
    file = write_original(home / "sdxl", tmp_path / "half.safetensors", "sdxl", dtype=torch.float16)
    mixed = load_file(file)
    mixed = {n: t.float() if n.startswith("first_stage_model.") else t for n, t in mixed.items()}
    save_file(mixed, file)
    source = find_source(f"{file}::{home / 'sdxl'}", Path(), tmp_path / "cache/digests")
    made = ready(source, Cache(tmp_path / "cache"), silent).artifact
    for name, dtype in {"unet": "F16", "text_encoder": "F16", "text_encoder_2": "F16", "vae": "F32"}.items():
        assert {dtype} == {one for _, one in weights(made.path, name).values()}
        assert weights(source.artifact.path, name) == weights(made.path, name)
    for name, kind in {"text_encoder": "float16", "text_encoder_2": "float16"}.items():
        assert part(made.path, name)[1]["dtype"] == kind


def alone(home: Path, file: Path, spelt: str) -> Path:
    """A UNet by itself, under the names of a whole checkpoint, without their prefix, or under diffusers' own."""
    tensors, config = part(home / "sd1", "unet")
    front = DENOISER if spelt == "prefixed" else ""
    own = tensors if spelt == "diffusers" else unet(tensors, config)
    save_file({f"{front}{name}": tensor + 0.01 for name, tensor in own.items()}, file)
    return file


@pytest.mark.parametrize("spelt", ["prefixed", "bare", "diffusers"])
def test_of_a_unet_by_itself_all_else_is_the_configs_folders(home: Path, tmp_path: Path, spelt: str) -> None:
    file = alone(home, tmp_path / "unet.safetensors", spelt)
    source = find_source(f"{file}::{home / 'sd1'}", Path(), None)
    assert source.making
    assert set(source.making.parts) == {"unet"}
    made = ready(source, Cache(tmp_path / "cache"), silent).artifact
    before, after = part(home / "sd1", "unet")[0], part(made.path, "unet")[0]
    assert all(torch.equal(after[name], one + 0.01) for name, one in before.items())
    for name in ("vae", "text_encoder"):
        assert all(torch.equal(part(made.path, name)[0][n], one) for n, one in part(home / "sd1", name)[0].items())
    assert np.isfinite(images(compress.load(made))).all()


def test_the_configs_of_the_hub_are_fetched_with_what_the_file_lacks(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jsons = shutil.copytree(home / "sd1", tmp_path / "jsons", ignore=shutil.ignore_patterns("*.safetensors"))
    asked = []

    def fetch(repo: str, revision: str, *, weights: bool) -> Path:
        asked.append(weights)
        return home / "sd1" if weights else jsons

    monkeypatch.setattr(models, "fetch_hub", fetch)
    reference = f"::hf://org/base@{'0' * 40}"
    whole = find_source(f"{home / 'sd1'}.safetensors{reference}", Path(), tmp_path / "cache/digests")
    assert not whole.remote
    plan, cache = planned(home, f"{alone(home, tmp_path / 'unet.safetensors', 'bare')}{reference}", tmp_path / "cache")
    assert plan.source.remote
    assert asked == [False, False]
    made = with_weights(plan, cache, silent).source.artifact
    assert asked == [False, False, True]
    assert np.isfinite(images(compress.load(made))).all()


def test_a_stage_that_reads_headers_plans_on_what_will_be_there(home: Path, tmp_path: Path) -> None:
    stages = [{"prune.depth": {"ratio": 0.3}}]
    more = {"stages": stages, "data": {"calibration": "zoo://digits/validation"}}
    one, _ = planned(home, f"{home / 'sd1'}.safetensors::{home / 'sd1'}", tmp_path / "cache", **more)
    other, _ = planned(home, str(home / "sd1"), tmp_path / "cache", **more)
    assert one.nodes[0].reported == other.nodes[0].reported
    assert one.nodes[0].expected.planned == other.nodes[0].expected.planned
    assert one.nodes[0].memory_bytes == other.nodes[0].memory_bytes
    assert one.nodes[0].key != other.nodes[0].key


def test_planning_loads_nothing_heavy(home: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"schema: 1\nname: r\nmodel: {{file: {home / 'sdxl.safetensors'}, config: {home / 'sdxl'}}}\n"
        "stages:\n  - accelerate.steps: {steps: 2}\n"
    )
    program = (
        f"import sys, compress; compress.plan({str(recipe)!r}, cache={str(tmp_path / 'cache')!r}); "
        "print([name for name in ('torch', 'diffusers', 'transformers') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_an_adapter_is_fused_into_what_was_converted(home: Path, tmp_path: Path) -> None:
    known = shapes(home / "sd1/unet/diffusion_pytorch_model.safetensors")
    pairs = branches(of_kinds(known, ["attn1.to_q", "attn2.to_k"]))
    lora = write_kohya(tmp_path / "lora.safetensors", {"lora_unet": pairs})
    results = []
    for model in (f"{home / 'sd1'}.safetensors::{home / 'sd1'}", str(home / "sd1")):
        plan, cache = planned(home, model, tmp_path / "cache", adapter=str(lora))
        seen: list[Event] = []
        made = with_weights(plan, cache, seen.append).source.artifact
        results.append(images(compress.load(made)))
        if "::" in model:
            assert [e.kind for e in seen] == ["started", "finished"] * 2
            assert base_of(plan.source).key != plan.source.key
            assert len(made.lineage) == 2
    assert np.array_equal(*results)
    assert not np.array_equal(results[0], images(compress.load(home / "sd1")))


def _die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _convert_and_die(reference: str, cache: Path) -> None:
    with mock.patch("compress.making.converting.write_manifest", _die):
        ready(find_source(reference, Path(), cache / "digests"), Cache(cache), silent)


def test_a_run_that_is_killed_while_converting_leaves_nothing_half_made(home: Path, tmp_path: Path) -> None:
    reference, cache = f"{home / 'sd1'}.safetensors::{home / 'sd1'}", tmp_path / "cache"
    killed = multiprocessing.get_context("fork").Process(target=_convert_and_die, args=(reference, cache))
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert not list((cache / "entries").iterdir())
    made = ready(find_source(reference, Path(), cache / "digests"), Cache(cache), silent).artifact
    assert made.path.parent == cache / "entries"
    seen: list[Event] = []
    assert ready(find_source(reference, Path(), None), Cache(cache), seen.append).artifact.path == made.path
    assert seen == []


def test_another_file_or_config_is_another_model(home: Path, tmp_path: Path) -> None:
    def key(file: Path, configs: Path) -> str:
        return find_source(f"{file}::{configs}", Path(), None).key

    file, configs = tmp_path / "x.safetensors", tmp_path / "configs"
    shutil.copyfile(home / "sd1.safetensors", file)
    shutil.copytree(home / "sd1", configs)
    first = key(file, configs)
    assert key(home / "sd1.safetensors", home / "sd1") == first, "places count"
    weight = configs / "unet/diffusion_pytorch_model.safetensors"
    weight.write_bytes(weight.read_bytes()[:-1] + b"\1")
    assert key(file, configs) == first, "weights count that the file has itself"
    scheduler = configs / "scheduler/scheduler_config.json"
    scheduler.write_text(json.dumps({**json.loads(scheduler.read_text()), "steps_offset": 0}))
    assert key(file, configs) != first
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    assert key(file, home / "sd1") != first


def test_a_file_that_lacks_weights_is_refused_when_it_is_converted(home: Path, tmp_path: Path) -> None:
    gone = "model.diffusion_model.middle_block.0.in_layers.2.weight"
    file = write_original(home / "sd1", tmp_path / "x.safetensors", "sd1", lambda name: name != gone)
    source = find_source(f"{file}::{home / 'sd1'}", Path(), None)
    with pytest.raises(ModelError, match=r"does not make `unet`.*no weights for mid_block\.resnets\.0\.conv1\.weight"):
        ready(source, Cache(tmp_path / "cache"), silent)
    assert not list((tmp_path / "cache/entries").iterdir())


@pytest.mark.parametrize(
    "name", [f"{DENOISER}middle_block.0.out_layers.9.weight", f"{DENOISER}output_blocks.9.0.in_layers.0.bias"]
)
def test_a_file_with_weights_that_its_config_has_no_place_for_is_refused_when_it_is_converted(
    home: Path, tmp_path: Path, name: str
) -> None:
    file = tmp_path / "x.safetensors"
    save_file({**load_file(home / "sd1.safetensors"), name: torch.zeros(2)}, file)
    source = find_source(f"{file}::{home / 'sd1'}", Path(), None)
    with pytest.raises(ModelError, match=r"does not make `unet`.*by its config it has no place for the file's "):
        ready(source, Cache(tmp_path / "cache"), silent)
    assert not list((tmp_path / "cache/entries").iterdir())


def test_converting_in_a_fresh_process_says_nothing(home: Path, tmp_path: Path) -> None:
    program = (
        "from pathlib import Path; from compress.events import silent; from compress.store.cache import Cache; "
        "from compress.making.ready import ready; from compress.sources.models import find_source; "
        f"ready(find_source({f'{home}/sd1.safetensors::{home}/sd1'!r}, Path(), None), Cache(Path({str(tmp_path / 'cache')!r})), silent)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "diffusers" not in ran.stderr
    assert "should be kept" not in ran.stdout + ran.stderr


def test_python_the_command_line_and_teachers_take_the_same_spelling(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    monkeypatch.setenv("PARE_CACHE", str(tmp_path / "cache"))
    model = compress.load("sd1.safetensors::sd1")
    assert np.array_equal(images(model), images(compress.load("sd1")))
    applied = compress.apply("accelerate.steps", "sd1.safetensors::sd1", steps=2)
    assert isinstance(applied, Artifact)
    teacher = {"distill.features": {"teacher": "./sd1.safetensors::./sd1"}}
    plan, _ = planned(home, "./sd1", tmp_path / "cache", stages=[teacher], data={"train": "zoo://digits/train"})
    assert plan.models["./sd1.safetensors::./sd1"].making
    found = compress.evaluate("sd1.safetensors::sd1", "sd1", metrics=["size"], out=tmp_path / "out")
    (size,) = found.rows
    assert size.candidate.value == pytest.approx(size.baseline.value, rel=1e-3)


def test_init_writes_a_recipe_for_a_checkpoint(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from compress.commands.init import init

    monkeypatch.chdir(home)
    file, found = init("sd1.safetensors::sd1", (), "faster", "", tmp_path / "r.yaml", Cache(tmp_path / "cache"))
    assert "sd1.safetensors::" in found.text
    assert compress.plan(file, cache=tmp_path / "cache").source.making
    with pytest.raises(ModelError, match="holds no configs"):
        init("sd1.safetensors", (), "faster", "", tmp_path / "other.yaml", Cache(tmp_path / "cache"))

"""What every shipped model must be, whichever training its weights come from: stock, small, and reported about."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from compress.errors import DataError, ModelError
from compress.files.hashing import digest_file
from compress.model.describing import describe
from compress.sources.models import check_safetensors, find_source
from compress.zoo import MODELS, docstrings, open_zoo_data, scenes, zoo_model
from compress.zoo.training import captions, digits_dit

LARGEST_FILE = 15_000_000
ALL_FILES = 42_000_000
NAMES = tuple(sorted(p.name for p in MODELS.iterdir() if p.is_dir()))
STOCK = ("digits-clip", "digits-diffusion", "digits-dit", "digits-editing", "digits-inpainting", "docs-llama")
GENERATORS = {"digits-diffusion": {}, "digits-dit": digits_dit.CALL}  # and how each is called
GIVEN_IMAGES = {"digits-editing": "zoo://digits-edits/test", "digits-inpainting": "zoo://digits-holes/test"}


def weights() -> Iterator[Path]:
    for name in NAMES:
        yield from sorted((MODELS / name).rglob("*.safetensors"))


def test_the_zoo_holds_its_seven_models_and_nothing_unknown() -> None:
    assert tuple(sorted((*STOCK, "digits-reader"))) == NAMES
    assert len(list(weights())) == 16


@pytest.mark.parametrize("file", list(weights()), ids=lambda f: str(f.relative_to(MODELS).parent))
def test_weights_are_whole_finite_bfloat16_and_within_15_mb(file: Path) -> None:
    assert file.stat().st_size <= LARGEST_FILE
    assert check_safetensors(file) > 1000
    with safe_open(file, "pt") as tensors:
        for key in tensors.keys():  # noqa: SIM118
            tensor = tensors.get_tensor(key)
            assert tensor.dtype == torch.bfloat16, key
            assert tensor.isfinite().all(), key


def test_all_weights_together_are_small_and_what_two_models_share_lies_there_once() -> None:
    links = [file for file in weights() if file.is_symlink()]
    assert all(file.resolve().is_relative_to(MODELS) and not file.readlink().is_absolute() for file in links)
    own = [file for file in weights() if not file.is_symlink()]
    assert sum(file.stat().st_size for file in own) <= ALL_FILES
    digests = [digest_file(file) for file in own]
    assert len(set(digests)) == len(digests)


def test_no_shipped_file_is_larger_or_of_a_format_that_runs_code() -> None:
    files = [f for f in MODELS.rglob("*") if f.is_file()]
    assert len(files) > 20
    assert max(f.stat().st_size for f in files) <= LARGEST_FILE
    assert {f.suffix for f in files} == {".json", ".safetensors"}


@pytest.mark.parametrize("name", NAMES)
def test_no_model_asks_for_code_of_its_own_or_knows_where_it_was_made(name: str) -> None:
    for file in (MODELS / name).rglob("*.json"):
        text = file.read_text()
        assert "auto_map" not in text
        assert "trust_remote_code" not in text
        assert "_name_or_path" not in text, f"{file} says where its part was loaded from"


# ---------------------------------------------------------------- stock libraries


def stock_pipeline(name: str) -> Any:
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(MODELS / name)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def stock_modules(name: str) -> list[torch.nn.Module]:
    from transformers import AutoModel, AutoModelForCausalLM

    if name in GENERATORS or name in GIVEN_IMAGES:
        return [part for part in stock_pipeline(name).components.values() if isinstance(part, torch.nn.Module)]
    kind = AutoModelForCausalLM if name == "docs-llama" else AutoModel
    return [kind.from_pretrained(MODELS / name)]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("digits-clip", 1),
        ("digits-diffusion", 3),
        ("digits-dit", 4),
        ("digits-editing", 3),
        ("digits-inpainting", 3),
        ("docs-llama", 1),
    ],
)
def test_a_model_opens_by_the_librarys_automatic_class_as_one_of_its_own(name: str, parts: int) -> None:
    modules = stock_modules(name)
    assert len(modules) == parts
    for module in modules:
        homes = {type(m).__module__.split(".")[0] for m in module.modules()}
        assert homes <= {"diffusers", "transformers", "torch"}
        stored = sum(check_safetensors(f) for f in (MODELS / name).rglob("*.safetensors"))
        assert sum(p.numel() for m in modules for p in m.parameters()) == pytest.approx(stored, rel=0.01)


@pytest.mark.parametrize("name", GENERATORS)
def test_the_pipeline_generates_by_itself_and_hears_its_prompt(name: str) -> None:
    pipeline, asked = stock_pipeline(name), {**GENERATORS[name], "num_inference_steps": 3, "output_type": "np"}
    images = [
        pipeline(caption, **asked, generator=torch.Generator().manual_seed(0)).images[0]
        for caption in ("a red three on white paper", "a blue seven on yellow paper")
    ]
    assert images[0].shape == (scenes.SIZE, scenes.SIZE, 3)
    assert np.isfinite(images[0]).all()
    assert images[0].std() > 0.01
    assert np.abs(images[0] - images[1]).mean() > 0.02


def test_the_language_model_writes_text_by_itself() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODELS / "docs-llama")
    model = AutoModelForCausalLM.from_pretrained(MODELS / "docs-llama")
    ids = tokenizer("The array of", return_tensors="pt").input_ids
    written = model.generate(ids, max_new_tokens=8, min_new_tokens=8, do_sample=False)
    assert written.shape[1] == ids.shape[1] + 8
    assert tokenizer.decode(written[0]).startswith("The array of")
    assert model.config.vocab_size == len(tokenizer)


def test_the_language_model_knows_english_from_shuffled_words() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODELS / "docs-llama")
    model = AutoModelForCausalLM.from_pretrained(MODELS / "docs-llama", dtype=torch.float32)
    words = docstrings.held_out("test")[3].text.split()[:80]
    shuffled = np.random.default_rng(0).permutation(words)
    losses = []
    for text in (" ".join(words), " ".join(shuffled)):
        ids = tokenizer(text, return_tensors="pt").input_ids
        with torch.inference_mode():
            losses.append(float(model(input_ids=ids, labels=ids).loss))
    assert losses[0] < losses[1] - 0.5
    assert losses[0] < 0.6 * math.log(len(tokenizer))


@pytest.mark.parametrize("folder", ["digits-clip", "digits-diffusion/tokenizer"])
def test_the_image_tokenizers_have_one_token_for_each_word_of_a_caption(folder: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODELS / folder)
    numbers = {word: tokenizer(word, add_special_tokens=False)["input_ids"] for word in captions.WORDS}
    assert {word for word, ids in numbers.items() if len(ids) != 1} == set()
    assert len({ids[0] for ids in numbers.values()}) == len(captions.WORDS) == 26
    for index in range(50):
        caption = scenes.scene("test", index).caption
        ids = tokenizer(caption)["input_ids"]
        assert len(ids) == len(caption.split()) + 2 <= tokenizer.model_max_length
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == caption


def test_an_export_forgets_the_place_its_autoencoder_was_loaded_from(tmp_path: Path) -> None:
    from diffusers import AutoencoderKL

    from compress.zoo.training import digits_diffusion

    AutoencoderKL(block_out_channels=(8,), norm_num_groups=8, sample_size=8).save_pretrained(tmp_path / "vae-trained")
    vae = AutoencoderKL.from_pretrained(tmp_path / "vae-trained")
    tokenizer = captions.new_tokenizer()
    model = digits_diffusion.Denoiser(len(tokenizer), tokenizer.eos_token_id)
    digits_diffusion.export(model, vae, tmp_path / "out", {})
    configs = list((tmp_path / "out").rglob("*.json"))
    assert len(configs) > 5
    assert [f for f in configs if "vae-trained" in f.read_text()] == []


# ---------------------------------------------------------------- what is reported


@pytest.fixture(params=NAMES)
def reported(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return request.param, json.loads((MODELS / request.param / "training.json").read_text())


def test_training_json_tells_steps_seconds_and_a_curve_that_falls(reported: tuple[str, dict[str, Any]]) -> None:
    name, facts = reported
    assert facts["steps"] > 100
    assert facts["seconds"] > 10
    if name == "docs-llama":
        losses = [point["validation_bits_per_byte"] for point in facts["curve"]]
    else:
        steps = [step for step, _ in facts["loss"]]
        losses = [loss for _, loss in facts["loss"]]
        assert steps == sorted(steps)
        assert steps[-1] <= facts["steps"]
    assert len(losses) > 3
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.8 * losses[0]


def test_training_json_tells_numbers_on_held_out_data(reported: tuple[str, dict[str, Any]]) -> None:
    name, facts = reported
    if name == "docs-llama":
        test = facts["bits_per_byte"]["test"]
        assert 0 < test["docs_llama"] < test["five_gram"] < 8
        return
    shares = {
        "digits-clip": lambda: [facts["test_top1_of_64"]],
        "digits-reader": lambda: [facts["digits_right"], facts["inks_right"]],
        **dict.fromkeys(
            (*GENERATORS, *GIVEN_IMAGES),
            lambda: [group[mark] for group in _groups(facts).values() for mark in ("digits_read", "inks_right")],
        ),
    }[name]()
    assert all(0.5 < share <= 1 for share in shares)


def _groups(facts: dict[str, Any]) -> dict[str, dict[str, float]]:
    """What was measured of each group of held-out items."""
    return {name: found for name, found in facts["test"].items() if isinstance(found, dict)}


@pytest.mark.parametrize("name", [*GENERATORS, *GIVEN_IMAGES])
def test_the_generators_numbers_say_how_they_were_measured(name: str) -> None:
    facts = json.loads((MODELS / name / "training.json").read_text())
    test, groups = facts["test"], _groups(facts)
    assert test["steps"] > 0
    assert test["guidance"] > 0
    assert ("image_guidance" in test) == (name == "digits-editing")
    assert test["dtype"] in ("float32", "bfloat16")
    assert groups.keys() == ({"digit", "ink", "paper"} if name == "digits-editing" else {"one_digit", "two_digits"})
    assert {group["prompts"] for group in groups.values()} == {256}
    assert all(group.get("kept_psnr", 99) > 20 for group in groups.values())


@pytest.mark.parametrize("name", GIVEN_IMAGES)
def test_the_models_that_are_given_images_do_what_they_are_asked_for_in_nine_of_ten(name: str) -> None:
    groups = _groups(json.loads((MODELS / name / "training.json").read_text()))
    assert min(group[mark] for group in groups.values() for mark in ("digits_read", "inks_right")) >= 0.9


# ---------------------------------------------------------------- by name


@pytest.mark.parametrize(
    ("name", "task", "main"),
    [
        ("digits-diffusion", "text_to_image", "unet"),
        ("digits-dit", "text_to_image", "transformer"),
        ("digits-editing", "instruction_editing", "unet"),
        ("digits-inpainting", "inpainting", "unet"),
        ("docs-llama", "text_generation", "model"),
    ],
)
def test_a_zoo_model_is_found_by_its_name(name: str, task: str, main: str) -> None:
    source = find_source(f"zoo://{name}", Path("anywhere"), None)
    assert source.artifact == describe(zoo_model(name))
    assert (source.artifact.task, source.artifact.main) == (task, main)
    assert len(source.key) == 64


@pytest.mark.parametrize(
    "name", ["digit-diffusion", "docs-lama", "nothing of the sort", "digits-diffusion/unet", "..", ""]
)
def test_an_unknown_model_is_refused_with_what_there_is(name: str) -> None:
    with pytest.raises(ModelError, match="the zoo has no model") as caught:
        zoo_model(name)
    assert "digits-" in caught.value.problems[0].fix or "docs-llama" in caught.value.problems[0].fix


@pytest.mark.parametrize("source", ["zoo://digits", "zoo://digits/all", "zoo://digit/test", "zoo://docstring/train"])
def test_an_unknown_set_or_split_is_refused_with_a_remedy(source: str) -> None:
    with pytest.raises(DataError) as caught:
        open_zoo_data(source)
    fix = caught.value.problems[0].fix
    assert "/test" in fix or "did you mean" in fix


def test_digits_are_as_many_as_wanted_with_images_made_when_asked_for() -> None:
    data = open_zoo_data("zoo://digits/test")
    items = data.first(5)
    assert data.count == -1
    assert [i.id for i in items] == [f"test/{i}" for i in range(5)]
    for index, item in enumerate(items):
        scene = scenes.scene("test", index)
        assert item.text == scene.caption
        assert item.image is not None
        assert np.array_equal(item.image(), scenes.render(scene))


@pytest.mark.parametrize("kind", ["digits", "digits-edits", "digits-holes", "docstrings"])
def test_splits_have_digests_of_their_own_which_stay(kind: str) -> None:
    digests = [open_zoo_data(f"zoo://{kind}/{split}").digest for split in ("validation", "test")]
    assert digests[0] != digests[1]
    assert digests == [open_zoo_data(f"zoo://{kind}/{split}").digest for split in ("validation", "test")]


def test_held_out_documents_are_items_in_their_shipped_order() -> None:
    data = open_zoo_data("zoo://docstrings/test")
    shipped = docstrings.held_out("test")
    assert data.count == len(shipped)
    assert [(i.id, i.text) for i in data.first(10_000)] == [(d.id, d.text) for d in shipped]
    assert data.first(3) == data.first(10)[:3]


def test_training_documents_are_known_by_versions_and_read_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    few = docstrings.held_out("test")[:3]
    monkeypatch.setattr(docstrings, "train_documents", lambda: asked.append(1) or few)
    data = open_zoo_data("zoo://docstrings/train")
    assert data.digest == open_zoo_data("zoo://docstrings/train").digest
    assert not asked
    assert [item.text for item in data.first(5)] == [document.text for document in few]
    monkeypatch.setattr(docstrings, "version", lambda distribution: "0.0")
    assert open_zoo_data("zoo://docstrings/train").digest != data.digest


def test_a_package_that_the_training_documents_lack_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(docstrings.PACKAGES, "nowhere", "no-such-distribution")
    with pytest.raises(DataError, match="reads nowhere, which is not installed") as caught:
        open_zoo_data("zoo://docstrings/train")
    assert caught.value.problems[0].fix == "pip install no-such-distribution"

"""Metrics that compare a side with the original's own output: plain loops in float64, and the libraries they stand on."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from compress.artifact import Artifact
from compress.data.items import Item
from compress.errors import ModelError, StageFailed, UserError
from compress.machine.devices import Opening
from compress.model.describing import describe
from evaluation.evidence import Evidence
from evaluation.features import alexnet
from evaluation.metrics import kl, latent_cosine, lpips, psnr, ssim
from tests.fakes import pipeline
from tests.tiny import tiny_llama

RNG = np.random.default_rng(5)
COUNT = 11  # more than a batch of pairs
GENERATED = Artifact(Path("generated"), "text_to_image", {})
IMAGES = {
    lpips: (lpips.Lpips(), 0.0),
    ssim: (ssim.Ssim(), 1.0),
    psnr: (psnr.Psnr(), psnr.CAP),
    latent_cosine: (latent_cosine.LatentCosine(), 1.0),
}


def side(images: Any, latents: Any = None, original: Evidence | None = None) -> Evidence:
    items = tuple(Item(f"p{i}", f"image {i}") for i in range(len(images)))
    decoded = None if latents is None else (lambda i: latents[i])
    return Evidence(GENERATED, items, original, lambda i: images[i], decoded)


def noise(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def disturbed(images: np.ndarray, strength: float) -> np.ndarray:
    return np.clip(images + RNG.normal(0, strength, images.shape), 0, 255).round().astype(np.uint8)


def both(one: np.ndarray, other: np.ndarray) -> Evidence:
    """The candidate's evidence, whose original generated `one`; latents are the images themselves."""
    return side(other, other.astype(np.float32), side(one, one.astype(np.float32)))


@pytest.mark.parametrize("metric", IMAGES, ids=lambda m: m.measure.name)
def test_the_originals_own_number_is_that_of_no_change(metric: Any) -> None:
    params, unchanged = IMAGES[metric]
    images = noise(COUNT, 24, 20, 3)
    original = metric.measure.measure(side(images, images.astype(np.float32)), params)
    assert original.values.tolist() == [unchanged] * COUNT
    same = metric.measure.measure(both(images, images.copy()), params)
    assert same.values == pytest.approx(original.values, abs=1e-6)
    assert same.protocol == original.protocol
    assert same.unit_ids == tuple(f"p{i}" for i in range(COUNT))
    assert metric.measure.own


@pytest.mark.parametrize("metric", IMAGES, ids=lambda m: m.measure.name)
def test_the_stronger_the_change_the_worse_each_number(metric: Any) -> None:
    params, _ = IMAGES[metric]
    images = noise(COUNT, 64, 64, 3)
    found = [metric.measure.measure(both(images, disturbed(images, s)), params).values for s in (0, 5, 40, 120)]
    means = [float(values.mean()) for values in found]
    assert means == sorted(means, reverse=metric.measure.better == "higher")
    assert len(set(means)) == 4


@pytest.mark.parametrize("metric", IMAGES, ids=lambda m: m.measure.name)
def test_images_of_two_sizes_are_refused_with_a_remedy(metric: Any) -> None:
    params, _ = IMAGES[metric]
    with pytest.raises(StageFailed, match="the original") as caught:
        metric.measure.measure(both(noise(2, 24, 20, 3), noise(2, 24, 16, 3)), params)
    assert caught.value.problems[0].place == "p0"
    assert "let both generate one size" in caught.value.problems[0].fix


# ---------------------------------------------------------------- LPIPS


def lpips_by_loops(one: list[np.ndarray], other: list[np.ndarray], weights: list[np.ndarray]) -> list[float]:
    """Zhang et al., equation 1, a position and a channel at a time."""
    found = []
    for n in range(len(one[0])):
        total = 0.0
        for layer, w in enumerate(weights):
            positions = len(one[layer][n])
            for u, v in zip(one[layer][n].tolist(), other[layer][n].tolist(), strict=True):
                long_u, long_v = math.sqrt(sum(a * a for a in u)), math.sqrt(sum(b * b for b in v))
                total += sum(w[c] * (u[c] / long_u - v[c] / long_v) ** 2 for c in range(len(u))) / positions
        found.append(total)
    return found


def test_lpips_is_the_papers_formula() -> None:
    shapes = ((2, 6, 4), (2, 3, 5))
    one, other = ([RNG.normal(size=s).astype(np.float32) for s in shapes] for _ in range(2))
    weights = [RNG.uniform(size=s[2]).astype(np.float32) for s in shapes]
    assert lpips.distances(one, other, weights) == pytest.approx(lpips_by_loops(one, other, weights), rel=1e-5)
    ones = [np.ones(s[2]) for s in shapes]
    assert lpips.distances(one, other) == pytest.approx(lpips_by_loops(one, other, ones), rel=1e-5)
    assert lpips.distances(one, other) == pytest.approx(lpips.distances(other, one))


def test_lpips_of_the_zoos_clip_is_that_formula_on_its_layers() -> None:
    from evaluation.features.opening import open_features

    one, other = noise(COUNT, 32, 32, 3), noise(COUNT, 32, 32, 3)
    layers = [open_features("zoo://digits-clip", "pil").layers(images) for images in (one, other)]
    found = lpips.measure.measure(both(one, other), lpips.Lpips())
    ones = [np.ones(layer.shape[2]) for layer in layers[0]]
    assert found.values == pytest.approx(lpips_by_loops(*layers, ones), rel=1e-4)
    assert found.protocol["channels"] == "one each, unlearned"


@pytest.fixture(scope="module")
def alexnet_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """AlexNet with torch's own random weights from seed 0, and LPIPS' learned channel weights, which torchmetrics ships."""
    import torchmetrics

    torch.manual_seed(0)
    sizes = ((3, 64, 11), (64, 192, 5), (192, 384, 3), (384, 256, 3), (256, 256, 3))
    tensors = {}
    for (number, *_), (i, o, k) in zip(alexnet.STAGES, sizes, strict=True):
        made = torch.nn.Conv2d(i, o, k)
        tensors |= {f"features.{number}.{name}": value.detach() for name, value in made.named_parameters()}
    learned = Path(torchmetrics.__file__).parent / "functional/image/lpips_models/alex.pth"
    tensors |= {
        k: v.contiguous()
        for k, v in torch.load(learned, map_location="cpu", weights_only=True).items()
        if k.startswith("lin")
    }
    path = tmp_path_factory.mktemp("lpips") / "alex.safetensors"
    save_file(tensors, path)
    return path


def alexnet_pairs() -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(3)
    one = draw.integers(0, 256, (3, 64, 48, 3), dtype=np.uint8)
    return one, np.clip(one.astype(int) + draw.normal(0, 30, one.shape), 0, 255).round().astype(np.uint8)


def test_lpips_with_alexnet_is_that_of_the_lpips_package(alexnet_file: Path) -> None:
    """The numbers are those of lpips 0.1.4 (`LPIPS(net="alex", pnet_rand=True)` under seed 0) with torchvision 0.28."""
    found = lpips.measure.measure(both(*alexnet_pairs()), lpips.Lpips(features=str(alexnet_file)))
    assert found.values == pytest.approx([0.01430275, 0.01232998, 0.01383791], rel=1e-5)
    assert found.protocol["features"] == "alex"
    assert len(str(found.protocol["weights"])) == 64
    assert found.protocol["channels"] == "weighed as learned"


def test_lpips_with_alexnet_is_that_of_torchmetrics(alexnet_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import load_file
    from torch import nn
    from torchmetrics.functional.image import lpips as theirs

    convolutions = [
        nn.Conv2d(*sizes)
        for sizes in (
            (3, 64, 11, 4, 2),
            (64, 192, 5, 1, 2),
            (192, 384, 3, 1, 1),
            (384, 256, 3, 1, 1),
            (256, 256, 3, 1, 1),
        )
    ]
    one, two, *rest = ([c, nn.ReLU()] for c in convolutions)
    features = nn.Sequential(*one, nn.MaxPool2d(3, 2), *two, nn.MaxPool2d(3, 2), *[m for pair in rest for m in pair])
    stored = load_file(alexnet_file)
    features.load_state_dict({k.removeprefix("features."): v for k, v in stored.items() if k.startswith("features")})
    monkeypatch.setattr(theirs, "_get_tv_model_features", lambda net, pretrained=False: features)
    network = theirs._LPIPS(pretrained=True, net="alex", pnet_rand=True).eval()
    pixels = [torch.from_numpy(p.astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2) for p in alexnet_pairs()]
    with torch.inference_mode():
        expected = network(*pixels).flatten().numpy()
    found = lpips.measure.measure(both(*alexnet_pairs()), lpips.Lpips(features=str(alexnet_file)))
    assert found.values == pytest.approx(expected, rel=1e-4)


def test_a_file_without_all_of_alexnet_is_refused(alexnet_file: Path, tmp_path: Path) -> None:
    save_file({"features.0.weight": torch.zeros(1)}, tmp_path / "part.safetensors")
    for path in (tmp_path / "part.safetensors", tmp_path / "absent.safetensors"):
        with pytest.raises(ModelError, match="no AlexNet of LPIPS"):
            alexnet.open_alexnet(path)
    with pytest.raises(UserError, match="30 × 64 pixels are too small"):
        alexnet.open_alexnet(alexnet_file).layers(noise(1, 64, 30, 3))
    assert alexnet.open_alexnet(alexnet_file).layers(noise(1, 64, 31, 3))[-1].shape == (1, 3, 256)


# ---------------------------------------------------------------- SSIM, PSNR, latents


def test_ssim_is_wangs_with_a_gaussian_window_of_eleven() -> None:
    """One colour and one window by hand: weighted moments, K₁ = 0.01, K₂ = 0.03, inside the border that windows fit into."""
    one, other = noise(13, 12, 3), noise(13, 12, 3)
    offsets = np.arange(-5, 6)
    line = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    found = []
    for colour in range(3):
        for y in range(13 - 10):
            for x in range(12 - 10):
                a, b = (p[y : y + 11, x : x + 11, colour].astype(float) for p in (one, other))
                ma, mb = (window * a).sum(), (window * b).sum()
                va, vb = (window * a * a).sum() - ma**2, (window * b * b).sum() - mb**2
                cov = (window * a * b).sum() - ma * mb
                c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
                found.append((2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
    assert ssim.similarity(one, other) == pytest.approx(np.mean(found), abs=1e-6)


def test_images_smaller_than_ssims_window_are_refused() -> None:
    with pytest.raises(UserError, match="10 × 16 pixels are smaller than SSIM's window of 11"):
        ssim.similarity(noise(16, 10, 3), noise(16, 10, 3))
    assert ssim.similarity(noise(11, 11, 3), noise(11, 11, 3)) < 0.5


def test_psnr_of_a_constant_error_is_the_closed_form() -> None:
    grey = np.full((1, 8, 8, 3), 100, np.uint8)
    found = psnr.measure.measure(
        both(np.repeat(grey, 3, 0), np.stack([grey[0] + 5, grey[0] - 1, grey[0]])), psnr.Psnr()
    )
    expected = [20 * math.log10(255 / 5), 20 * math.log10(255), 10 * math.log10(255**2 * 12)]
    assert found.values == pytest.approx(expected)
    assert psnr.measure.score(found).value == pytest.approx(np.mean(expected))
    assert round(psnr.CAP, 1) == 58.9
    assert psnr.measure.score(found).note.startswith("58.9 dB is the same image")


def test_psnr_knows_errors_below_rounding_no_better_than_none() -> None:
    one = np.zeros((1, 16, 16, 3), np.uint8)
    other = one.copy()
    other[0, 0, 0, 0] = 1
    assert psnr.peak_ratio(one[0], other[0]) == psnr.peak_ratio(one[0], one[0]) == psnr.CAP


def test_latent_cosine_is_that_of_the_flattened_latents() -> None:
    images = noise(3, 8, 8, 3)
    one, other = RNG.normal(size=(2, 3, 4, 6, 5)).astype(np.float32)
    found = latent_cosine.measure.measure(side(images, other, side(images, one)), latent_cosine.LatentCosine())
    for i in range(3):
        u, v = one[i].ravel().tolist(), other[i].ravel().tolist()
        dot = sum(a * b for a, b in zip(u, v, strict=True))
        assert found.values[i] == pytest.approx(dot / math.sqrt(sum(a * a for a in u) * sum(b * b for b in v)))
    assert latent_cosine.cosine(one[0], -3 * one[0]) == pytest.approx(-1)
    assert latent_cosine.cosine(one[0], 0 * one[0]) == 0


def test_latents_that_a_decoder_is_given_unscaled_are_those_that_another_is_given_scaled(tmp_path: Path) -> None:
    images, one = noise(3, 8, 8, 3), RNG.normal(size=(3, 4, 6, 5)).astype(np.float32)
    sides = []
    for name, latents, vae in (
        ("large", one / 0.5 + 3, {"scaling_factor": 0.5, "shift_factor": 3.0}),
        ("small", one, {"scaling_factor": 1.0, "shift_factor": 0.0}),
    ):
        folder = pipeline(tmp_path / name)
        (folder / "vae" / "config.json").write_text(json.dumps(vae))
        index = json.loads((folder / "model_index.json").read_text())
        (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": "FluxPipeline"}))
        sides.append(replace(side(images, latents), artifact=describe(folder)))
    found = latent_cosine.measure.measure(replace(sides[1], original=sides[0]), latent_cosine.LatentCosine())
    assert found.values == pytest.approx(np.ones(3))
    assert latent_cosine.cosine(one[0] / 0.5 + 3, one[0]) < 0.9


def test_a_pipeline_that_decodes_nothing_has_no_cosine_and_says_why() -> None:
    images, latents = noise(3, 8, 8, 3), RNG.normal(size=(3, 4, 2, 2)).astype(np.float32)
    with_latents, without = side(images, latents), side(images)
    for candidate in (replace(without, original=with_latents), replace(with_latents, original=without), without):
        found = latent_cosine.measure.measure(candidate, latent_cosine.LatentCosine())
        assert np.isnan(found.values).all()
        estimate = latent_cosine.measure.score(found)
        assert math.isnan(estimate.value)
        assert "this pipeline decodes nothing" in estimate.note
        assert "decodes nothing" in latent_cosine.measure.contrast(found, found).note


# ---------------------------------------------------------------- KL


TEXTS = ("def mean(x): return sum(x) / len(x)", "a", "", "three red digits on white paper, and no more than that" * 2)


@pytest.fixture(scope="module")
def llamas(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Artifact]:
    folder = tmp_path_factory.mktemp("llamas")
    one, other = (describe(tiny_llama(folder / str(seed), seed=seed)) for seed in (0, 1))
    return one, other


def reading(artifact: Artifact, original: Evidence | None = None) -> Evidence:
    from compress.opening import open_task

    items = tuple(Item(str(i), text) for i, text in enumerate(TEXTS))
    logprobs = tuple(open_task(artifact).token_logprobs(TEXTS, 2))  # type: ignore[union-attr]
    return Evidence(artifact, items, original, token_logprobs=logprobs, opening=Opening("float32"))


def kl_by_loops(one: Artifact, other: Artifact, text: str) -> tuple[float, int]:
    """Every position and every token of the vocabulary, on whole softmaxes in float64."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(one.path)
    ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]][:64]
    with torch.inference_mode():
        p, q = (
            torch.softmax(AutoModelForCausalLM.from_pretrained(a.path)(torch.tensor([ids])).logits[0].double(), -1)
            for a in (one, other)
        )
    nats = 0.0
    for row_p, row_q in zip(p[:-1].tolist(), q[:-1].tolist(), strict=True):
        nats += sum(a * math.log(a / b) for a, b in zip(row_p, row_q, strict=True))
    return nats, len(ids) - 1


def test_kl_is_that_of_a_loop_over_whole_softmaxes(llamas: tuple[Artifact, Artifact]) -> None:
    one, other = llamas
    found = kl.measure.measure(reading(other, reading(one)), kl.Kl())
    every = np.array([kl_by_loops(one, other, text) for text in TEXTS])
    expected = every[every[:, 1] > 0]  # a text without a scored token is no evidence
    assert len(expected) == len(every) - 1
    assert found.values[:, 1].tolist() == expected[:, 1].tolist()
    assert found.values[:, 0] == pytest.approx(expected[:, 0], rel=1e-4)
    whole = expected[:, 0].sum() / expected[:, 1].sum()
    assert whole > 0.1
    assert kl.measure.score(found).value == pytest.approx(whole, rel=1e-4)
    assert kl.measure.statistic.units(found) == pytest.approx(expected[:, 0] / expected[:, 1], rel=1e-4)


def test_kl_has_a_direction(llamas: tuple[Artifact, Artifact]) -> None:
    one, other = llamas
    there, back = (kl.measure.measure(reading(b, reading(a)), kl.Kl()).values for a, b in ((one, other), (other, one)))
    assert abs(there[0, 0] - back[0, 0]) > 0.01 * there[0, 0]


def test_kl_of_the_original_with_itself_is_nothing(llamas: tuple[Artifact, Artifact]) -> None:
    original = reading(llamas[0])
    alone = kl.measure.measure(original, kl.Kl())
    same = kl.measure.measure(reading(llamas[0], original), kl.Kl())
    assert same.values == pytest.approx(alone.values, abs=1e-9)
    assert kl.measure.score(alone).value == 0
    found = kl.measure.contrast(same, alone)
    assert (found.low, found.value, found.high) == pytest.approx((0, 0, 0), abs=1e-9)


def test_kl_does_not_depend_on_the_batch(llamas: tuple[Artifact, Artifact], monkeypatch: pytest.MonkeyPatch) -> None:
    evidence = reading(llamas[1], reading(llamas[0]))
    together = kl.measure.measure(evidence, kl.Kl()).values
    monkeypatch.setattr("compress.opening.text_generation.CELLS", 1)
    assert kl.measure.measure(evidence, kl.Kl()).values == pytest.approx(together, rel=1e-5, abs=1e-9)


def test_models_of_two_vocabularies_have_no_kl(llamas: tuple[Artifact, Artifact], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_llama(tmp_path / "larger"))
    model.resize_token_embeddings(300)
    model.save_pretrained(tmp_path / "larger")
    with pytest.raises(StageFailed, match="258 tokens apart and the candidate 300") as caught:
        kl.measure.measure(reading(describe(tmp_path / "larger"), reading(llamas[0])), kl.Kl())
    assert "drop kl" in caught.value.problems[0].fix


def test_batches_hold_each_index_once_and_no_more_than_fits(
    llamas: tuple[Artifact, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    from compress.opening import open_task

    task: Any = open_task(llamas[0])
    monkeypatch.setattr("compress.opening.text_generation.CELLS", 20 * len(task.tokenizer))
    lengths = [3, 50, 7, 7, 1, 20, 4]
    found = list(task.batches(lengths))
    assert sorted(i for batch in found for i in batch) == list(range(7))
    assert all(len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 20 for batch in found)
    assert found[:3] == [[1], [5], [2, 3]]
    assert list(task.batches([])) == []
    assert [len(batch) for batch in task.batches([1] * 7, 3)] == [3, 3, 1]
    task.known = 10 * len(task.tokenizer)  # a model that tells more tokens apart than its tokenizer has
    assert all(len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 2 for batch in task.batches(lengths))

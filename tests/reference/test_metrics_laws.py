"""Metrics against closed forms, plain loops in float64, and the code of the libraries they stand on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.artifact import Artifact, Component
from compress.catalogue import find_metric
from compress.data.items import Item
from compress.errors import DataError
from compress.machine.devices import Opening
from compress.model.describing import describe
from compress.opening import open_task
from compress.zoo import docstrings, scenes, zoo_model
from evaluation.distances import frechet, mmd
from evaluation.distances.frechet import Moments
from evaluation.evidence import Evidence, Timings
from evaluation.features import clip as clip_features
from evaluation.values import Sample

RNG = np.random.default_rng(11)
CLIP_FOLDER = zoo_model("digits-clip")
COUNT = 40  # more than one batch of the extractor
clip_score, digits_read, fid, inks_right, kid = map(
    find_metric, ("clip_score", "digits_read", "fid", "inks_right", "kid")
)
cmmd, fid_infinity, precision, recall = map(find_metric, ("cmmd", "fid_infinity", "precision", "recall"))
latency, perplexity, size, throughput = map(find_metric, ("latency", "perplexity", "size", "throughput"))


def sample(values: np.ndarray, reference: np.ndarray | None = None) -> Sample:
    return Sample(tuple(map(str, range(len(values)))), values, reference)


def directions(n: int, d: int, shift: float = 0.0) -> np.ndarray:
    rows = RNG.normal(size=(n, d)) + shift
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def exactly(mean: np.ndarray, covariance: np.ndarray, n: int = 60) -> np.ndarray:
    """Rows whose sample mean and sample covariance are these to the last digits."""
    rows = RNG.normal(size=(n, len(mean)))
    rows -= rows.mean(axis=0)
    whitened = rows @ np.linalg.inv(np.linalg.cholesky(np.cov(rows, rowvar=False))).T
    return mean + whitened @ np.linalg.cholesky(covariance).T


def between(x: np.ndarray, y: np.ndarray) -> float:
    return frechet.distance(Moments.of(x), Moments.of(y)).value


def kid_of(x: np.ndarray, y: np.ndarray) -> float:
    return mmd.linear(x, y, mmd.cubic(x, y), paired=True).value


# ---------------------------------------------------------------- FID


def turned(angle: float, one: float, other: float) -> np.ndarray:
    c, s = math.cos(angle), math.sin(angle)
    turn = np.array([[c, -s], [s, c]])
    return turn @ np.diag([one, other]) @ turn.T


@pytest.mark.parametrize("angle", [0.0, 0.4, 1.1])
def test_fid_of_two_turned_gaussians_is_the_closed_form(angle: float) -> None:
    """In two dimensions tr (Σ₁Σ₂)^½ = √(tr Σ₁Σ₂ + 2 √det Σ₁Σ₂), whether or not the two commute."""
    one, other = turned(0.0, 4.0, 0.25), turned(angle, 1.5, 0.5)
    root = math.sqrt(np.trace(one @ other) + 2 * math.sqrt(np.linalg.det(one) * np.linalg.det(other)))
    expected = 3**2 + 1**2 + np.trace(one) + np.trace(other) - 2 * root
    found = between(exactly(np.array([3.0, 0.0]), one), exactly(np.array([0.0, 1.0]), other, 45))
    assert found == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("d", [2, 3, 20])
def test_fid_of_round_gaussians_is_shift_squared_and_difference_of_spreads(d: int) -> None:
    shift, identity = np.full(d, 0.5), np.eye(d)
    found = between(exactly(shift, 4 * identity), exactly(np.zeros(d), 9 * identity))
    assert found == pytest.approx(0.25 * d + d * (3 - 2) ** 2, abs=1e-9)


def test_fid_knows_no_order_no_rotation_and_no_side() -> None:
    x, y = RNG.normal(size=(50, 6)), RNG.normal(size=(70, 6)) * 1.5 + 0.2
    value = between(x, y)
    rotation = np.linalg.qr(RNG.normal(size=(6, 6)))[0]
    assert value > 1
    for one, other in (
        (x[RNG.permutation(50)], y[RNG.permutation(70)]),
        (x @ rotation, y @ rotation),
        (y, x),
    ):
        assert between(one, other) == pytest.approx(value, abs=1e-9)


def test_fid_grows_with_the_square_of_the_features_scale() -> None:
    x, y = RNG.normal(size=(50, 6)), RNG.normal(size=(50, 6)) + 1
    assert between(3 * x, 3 * y) == pytest.approx(9 * between(x, y))


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 30), st.integers(2, 40), st.floats(0.01, 10))
def test_fid_is_real_and_never_below_zero_however_singular(n: int, d: int, scale: float) -> None:
    draw = np.random.default_rng([n, d])
    x = scale * draw.normal(size=(n, d))
    y = x + 1e-9 * draw.normal(size=(n, d))
    assert 0 <= between(x, y) < 1e-5 * (1 + scale**2) * d
    assert between(np.repeat(x[:1], n, axis=0), x) >= 0


@pytest.mark.parametrize(("n", "comparable"), [(7, False), (8, False), (9, True)])
def test_fid_with_no_more_images_than_features_is_marked_and_n_is_always_shown(n: int, comparable: bool) -> None:
    side = sample(directions(n, 8), directions(n, 8))
    note = fid.score(side).note
    assert ("not comparable" not in note) == comparable
    assert str(n) in note
    assert ("not comparable" not in fid.contrast(side, side).note) == comparable


def test_fids_interval_counts_images() -> None:
    side = sample(directions(100, 6, 0.3), directions(100, 6))
    found = fid.score(side)
    assert found.n == 100
    assert found.low < found.value < found.high
    assert found.value == between(side.values, side.reference)


# ---------------------------------------------------------------- KID


def kid_by_loops(x: np.ndarray, y: np.ndarray) -> float:
    """Bińkowski et al.: polynomial kernel of degree 3 on features of length √d, every pair i ≠ j of all three sums."""
    d = x.shape[1]
    x, y = math.sqrt(d) * x, math.sqrt(d) * y
    pairs = [(i, j) for i in range(len(x)) for j in range(len(x)) if i != j]
    sums = [sum((float(p[i] @ q[j]) / d + 1) ** 3 for i, j in pairs) for p, q in ((x, x), (y, y), (x, y))]
    return (sums[0] + sums[1] - 2 * sums[2]) / len(pairs)


@pytest.mark.parametrize(("n", "d"), [(2, 3), (5, 2), (13, 7)])
def test_kid_is_the_plain_double_loop(n: int, d: int) -> None:
    x, y = directions(n, d), directions(n, d, 0.7)
    assert kid_of(x, y) == pytest.approx(kid_by_loops(x, y), abs=1e-12)
    assert kid_of(y, x) == pytest.approx(kid_by_loops(x, y), abs=1e-12)


@pytest.mark.parametrize("n", [5, 20])
def test_kid_has_the_same_mean_at_every_n(n: int) -> None:
    """Unbiased: small samples of two distributions estimate what a large one does, and 0 where they are one."""
    draws = [(directions(n, 4, 0.8), directions(n, 4), directions(n, 4)) for _ in range(12_000 // n)]
    apart = np.array([kid_of(x, y) for x, y, _ in draws])
    alike = np.array([kid_of(x, y) for _, x, y in draws])
    large = kid_of(directions(3000, 4, 0.8), directions(3000, 4))
    error = apart.std() / math.sqrt(len(apart))
    assert abs(apart.mean() - large) < 4 * error + 0.03 * large
    assert abs(alike.mean()) < 4 * alike.std() / math.sqrt(len(alike))
    assert (alike < 0).any()  # an estimate that is never below zero cannot have mean zero


def test_kid_of_a_set_with_itself_is_nothing_and_order_does_not_matter() -> None:
    x, y = directions(20, 5), directions(20, 5, 0.5)
    order = RNG.permutation(20)
    assert kid_of(x, x) == 0
    assert kid_of(x[order], y[order]) == pytest.approx(kid_of(x, y), abs=1e-12)


def test_kid_tells_a_collapsed_side_from_a_varied_one() -> None:
    """One image over and over has the right mean direction and is still far."""
    real = directions(60, 6, 1.0)
    centre = real.mean(axis=0) / np.linalg.norm(real.mean(axis=0))
    collapsed, varied = np.repeat(centre[None], 60, axis=0), directions(60, 6, 1.0)
    assert kid_of(collapsed, real) > 5 * abs(kid_of(varied, real))


@pytest.mark.parametrize(("metric", "n"), [(kid, 2), (fid, 2), (fid, 3)])
def test_too_few_images_for_a_jackknife_give_a_number_without_an_interval(metric: Any, n: int) -> None:
    """A gate on it is inconclusive, and nothing crashes: a recipe may ask for two samples."""
    side, other = (sample(directions(n, 3), directions(n, 3)) for _ in range(2))
    for found in (metric.score(side), metric.contrast(side, other)):
        assert math.isfinite(found.value)
        assert math.isnan(found.low)
        assert math.isnan(found.high)


@pytest.mark.parametrize("metric", [kid, cmmd, fid, fid_infinity, precision, recall])
def test_a_distance_without_real_images_is_refused(metric: Any) -> None:
    with pytest.raises(ValueError, match="real images"):
        metric.score(sample(directions(9, 3)))


# ---------------------------------------------------------------- images, features and what is made of them


@cache
def generated() -> tuple[tuple[Item, ...], np.ndarray]:
    found = [scenes.scene("test", i) for i in range(COUNT)]
    items = tuple(
        Item(str(i), s.caption, lambda i=i: scenes.render(scenes.scene("test", i)))  # type: ignore[misc]
        for i, s in enumerate(found)
    )
    return items, np.stack([scenes.render(s) for s in found])


def evidence(images: np.ndarray | None = None, items: tuple[Item, ...] | None = None) -> Evidence:
    known, real = generated()
    chosen = real if images is None else images
    return Evidence(describe(zoo_model("docs-llama")), known if items is None else items, image=lambda i: chosen[i])


@cache
def stock_clip() -> tuple[Any, Any]:
    from transformers import CLIPModel, CLIPTokenizer

    return CLIPModel.from_pretrained(CLIP_FOLDER, dtype=torch.float32).eval(), CLIPTokenizer.from_pretrained(
        CLIP_FOLDER
    )


def pixels_by_hand(images: np.ndarray) -> torch.Tensor:
    """uint8 to −1..1, after Pillow's own bicubic (antialiased) resize to 64 pixels where that is needed."""
    from PIL import Image

    resized = [
        np.asarray(Image.fromarray(p).resize((scenes.SIZE, scenes.SIZE), Image.Resampling.BICUBIC)) for p in images
    ]
    return torch.from_numpy(np.stack(resized).astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2)


def test_clip_score_is_a_hundred_times_the_cosine_of_plain_transformers() -> None:
    model, tokenizer = stock_clip()
    items, images = generated()
    words = tokenizer([i.text for i in items], padding="max_length", return_tensors="pt")
    with torch.inference_mode():
        output = model(pixel_values=pixels_by_hand(images), **words)
    expected = 100 * (output.image_embeds * output.text_embeds).sum(-1).numpy()
    found = clip_score.measure(evidence(), clip_score.params())
    assert found.values == pytest.approx(expected, abs=1e-3)
    assert clip_score.score(found).value == pytest.approx(expected.mean(), abs=1e-3)
    assert found.unit_ids == tuple(i.id for i in items)


def test_clip_score_falls_when_images_belong_to_other_captions() -> None:
    right = clip_score.measure(evidence(), clip_score.params())
    swapped = clip_score.measure(evidence(np.roll(generated()[1], 1, axis=0)), clip_score.params())
    assert clip_score.contrast(swapped, right).high < -1


@pytest.mark.parametrize("size", [1, 7, COUNT])
def test_clip_features_do_not_depend_on_the_batch(size: int) -> None:
    clip = clip_features.open_clip("zoo://digits-clip")
    images = generated()[1]
    fixed = clip.images(images[i : i + clip_features.BATCH] for i in range(0, COUNT, clip_features.BATCH))
    other = clip.images(images[i : i + size] for i in range(0, COUNT, size))
    assert np.abs(fixed - other).max() < 1e-4
    assert fixed.dtype == np.float32
    assert np.linalg.norm(fixed, axis=1) == pytest.approx(np.ones(COUNT), abs=1e-6)


def test_clip_features_belong_to_images_not_to_places() -> None:
    clip = clip_features.open_clip("zoo://digits-clip")
    images, order = generated()[1][:12], RNG.permutation(12)
    there, back = clip.images(iter([images])), clip.images(iter([images[order]]))
    assert np.abs(there[order] - back).max() < 1e-5
    assert np.abs(there - back).max() > 0.01


def test_larger_images_are_resized_as_pillow_does_it_and_not_cropped() -> None:
    model, _ = stock_clip()
    large = np.kron(generated()[1][:4], np.ones((1, 2, 3, 1), np.uint8))  # 128 × 192
    large[:, :, :40] = (large[:, :, :40] * 0.5).astype(np.uint8)  # an edge that a crop would lose
    with torch.inference_mode():
        expected = model.get_image_features(pixel_values=pixels_by_hand(large)).pooler_output
    expected = torch.nn.functional.normalize(expected, dim=-1).numpy()
    found = clip_features.open_clip("zoo://digits-clip").images(iter([large]))
    assert np.abs(found - expected).max() < 1e-3


def test_the_protocol_names_the_extractor_by_what_it_is() -> None:
    protocol = clip_score.measure(evidence(), clip_score.params()).protocol
    assert protocol["features"] == "digits-clip"
    assert protocol["weights"] == clip_features.digest_folder(CLIP_FOLDER)
    assert protocol["resize"] == "pil"
    against = {"paired": "by item", "reference": "the data's images"}
    assert kid.measure(evidence(), kid.params()).protocol == protocol | against


def test_real_images_against_themselves_are_at_no_distance() -> None:
    found = kid.measure(evidence(), kid.params())
    assert np.array_equal(found.values, found.reference)
    assert kid.score(found).value == 0
    assert fid.score(found).value == pytest.approx(0, abs=1e-6)


def test_spoiled_images_are_further_in_kid_and_fid_alike() -> None:
    noisy = np.clip(generated()[1] + RNG.normal(0, 40, generated()[1].shape), 0, 255).astype(np.uint8)
    real, spoiled = (kid.measure(evidence(p), kid.params()) for p in (None, noisy))
    assert kid.contrast(spoiled, real).low > 0
    assert fid.contrast(spoiled, real).low > 0


def test_captions_alone_are_held_against_what_the_baseline_generated() -> None:
    items = tuple(replace(item, image=None) for item in generated()[0])
    base = evidence(items=items)
    noisy = np.clip(generated()[1] + RNG.normal(0, 40, generated()[1].shape), 0, 255).astype(np.uint8)
    candidate = replace(evidence(noisy, items), original=base)
    one, other = (kid.measure(side, kid.params()) for side in (candidate, base))
    assert kid.score(other).value == 0
    assert kid.contrast(one, other).value == kid.score(one).value > 0
    assert one.protocol == other.protocol


@pytest.mark.parametrize("metric", [digits_read, inks_right])
def test_marks_of_real_scenes_are_nearly_full_and_of_swapped_ones_nearly_none(metric: Any) -> None:
    right, swapped = (metric.measure(evidence(p), metric.params()) for p in (None, np.roll(generated()[1], 1, axis=0)))
    assert metric.score(right).value > 0.9
    assert metric.contrast(swapped, right).high < -0.3
    assert set(right.values) <= {0.0, 0.5, 1.0}


def test_marks_of_captions_outside_the_grammar_are_refused() -> None:
    items = (replace(generated()[0][0], text="a cat"), *generated()[0][1:])
    with pytest.raises(DataError, match="a cat"):
        digits_read.measure(evidence(items=items), digits_read.params())


# ---------------------------------------------------------------- perplexity


@pytest.fixture(scope="module")
def documents() -> tuple[Item, ...]:
    """Short ones, so that nothing is cut, and of lengths that pad a batch unevenly."""
    short = [d for d in docstrings.held_out("test") if len(d.text) < 700][:4]
    return tuple(Item(d.id, d.text) for d in short)


@pytest.fixture(scope="module")
def llama() -> Any:
    return open_task(describe(zoo_model("docs-llama")), Opening("float32"))


@pytest.fixture(scope="module")
def scored(documents: tuple[Item, ...], llama: Any) -> Evidence:
    logprobs = tuple(llama.token_logprobs([d.text for d in documents], len(documents)))
    return read(documents, logprobs)


def read(documents: tuple[Item, ...], logprobs: tuple[np.ndarray, ...]) -> Evidence:
    """Evidence of documents that were read whole."""
    sizes = tuple(len(d.text.encode()) for d in documents)
    return Evidence(describe(zoo_model("docs-llama")), documents, token_logprobs=logprobs, bytes_read=sizes)


@pytest.fixture(scope="module")
def stock_llama() -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = zoo_model("docs-llama")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def test_perplexity_is_that_of_transformers_own_loss(
    documents: tuple[Item, ...], scored: Evidence, stock_llama: tuple[Any, Any]
) -> None:
    model, tokenizer = stock_llama
    nats = tokens = 0.0
    for item in documents:
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(item.text, add_special_tokens=False)["input_ids"]]])
        with torch.inference_mode():
            loss = model(input_ids=ids, labels=ids).loss.double()
        nats, tokens = nats + float(loss) * (ids.shape[1] - 1), tokens + ids.shape[1] - 1
    found = perplexity.score(perplexity.measure(scored, perplexity.params()))
    assert found.value == pytest.approx(math.exp(nats / tokens), rel=1e-5)
    assert f"{int(tokens)} tokens" in found.note
    assert found.n == len(documents)


def test_perplexity_is_that_of_a_plain_loop_in_float64(
    documents: tuple[Item, ...], scored: Evidence, stock_llama: tuple[Any, Any]
) -> None:
    model, tokenizer = stock_llama
    total, count = 0.0, 0
    for item in documents[:2]:
        ids = [tokenizer.bos_token_id, *tokenizer(item.text, add_special_tokens=False)["input_ids"]]
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([ids])).logits[0].double().numpy()
        for position, following in enumerate(ids[1:]):
            row = logits[position]
            total += math.log(np.exp(row - row.max()).sum()) + row.max() - row[following]
            count += 1
    two = read(documents[:2], scored.token_logprobs[:2])
    found = perplexity.score(perplexity.measure(two, perplexity.params()))
    assert found.value == pytest.approx(math.exp(total / count), rel=1e-5)


def test_perplexity_weighs_tokens_and_not_documents() -> None:
    """A lopsided pair: one long easy document, one short hard one. A mean of perplexities would say 7.5."""
    rows = np.array([[1000 * math.log(2), 1000, 4000], [10 * math.log(13), 10, 40]])
    found = perplexity.score(sample(rows))
    assert found.value == pytest.approx(2 ** (1000 / 1010) * 13 ** (10 / 1010))
    assert found.value < 2.05


def test_bits_per_byte_are_nats_over_utf8_bytes() -> None:
    """Two bytes a letter in "ππππ": eight bytes, 8 ln 2 nats, one bit each."""
    scored = read((Item("0", "ππππ"),), (np.full(2, -4 * math.log(2)),))
    found = perplexity.score(perplexity.measure(scored, perplexity.params()))
    assert found.note.startswith("1.000 bits per byte")


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary() -> None:
    lengths = (3, 50, 7)
    items = tuple(Item(str(n), "x" * n) for n in lengths)
    scored = read(items, tuple(np.full(n, -math.log(4096)) for n in lengths))
    found = perplexity.score(perplexity.measure(scored, perplexity.params()))
    assert [found.value, found.low, found.high] == pytest.approx([4096] * 3)


def test_worse_documents_weigh_in_the_comparison_by_their_tokens() -> None:
    base = np.array([[100.0, 50, 200], [10.0, 5, 20]])
    long_worse, short_worse = base * [[1.1], [1]] + [0, 0, 0], base * [[1], [1.1]]
    long_worse[:, 1:] = short_worse[:, 1:] = base[:, 1:]
    found = [perplexity.contrast(sample(c), sample(base)).value for c in (long_worse, short_worse)]
    assert found[0] == pytest.approx(math.exp(120 / 55) - math.exp(110 / 55))
    assert found[1] == pytest.approx(math.exp(111 / 55) - math.exp(110 / 55))


# ---------------------------------------------------------------- times and sizes


def timed(seconds: list[float], first: list[float], work: int, items: int) -> Evidence:
    timings = Timings(np.array(seconds), np.array(first), work, items)
    return replace(evidence(), timings=timings)


def test_latency_is_milliseconds_of_a_whole_call_whatever_its_batch() -> None:
    side = latency.measure(timed([0.5, 0.7, 0.6], [], 20, 4), latency.params())
    found = latency.score(side)
    assert side.values.tolist() == pytest.approx([500, 700, 600])
    assert found.value == pytest.approx(600)
    assert found.note.startswith("p50 600.0, p90 680.0")
    assert side.protocol["batch"] == 4
    assert side.protocol["work"] == 20


def test_throughput_of_images_counts_images_and_not_calls_or_steps() -> None:
    side = throughput.measure(timed([0.5, 0.25], [], 20, 4), throughput.params())
    assert side.values.tolist() == pytest.approx([8, 16])
    assert side.protocol["counts"] == "images"


def test_throughput_of_text_is_the_speed_of_decoding_after_the_first_token() -> None:
    """Two sequences of 11 tokens: the first token of each came out of the prompt, ten more take 0.4 seconds."""
    side = throughput.measure(timed([0.5], [0.1], 11, 2), throughput.params())
    assert side.values.tolist() == pytest.approx([2 * 10 / 0.4])
    slow_start = throughput.measure(timed([5.4], [5.0], 11, 2), throughput.params())
    assert slow_start.values == pytest.approx(side.values)


@pytest.mark.parametrize("metric", [latency, throughput])
def test_a_side_of_half_the_time_is_twice_as_good_in_either_measure(metric: Any) -> None:
    base, candidate = (metric.measure(timed([t, 1.1 * t, 0.9 * t], [], 20, 1), metric.params()) for t in (1.0, 0.5))
    assert metric.contrast(candidate, base).value == pytest.approx(2)
    assert metric.contrast(base, candidate).value == pytest.approx(0.5)


@pytest.mark.parametrize("metric", [latency, throughput])
def test_what_was_not_timed_has_no_speed(metric: Any) -> None:
    with pytest.raises(ValueError, match="timed"):
        metric.measure(evidence(), metric.params())


def test_one_hanging_block_moves_the_p99_and_not_the_latency() -> None:
    calm, hung = [0.1] * 19 + [0.11], [0.1] * 19 + [3.0]
    found = [latency.score(latency.measure(timed(s, [], 1, 1), latency.params())) for s in (calm, hung)]
    assert found[0].value == found[1].value
    assert "p99 109.8" not in found[0].note
    assert found[0].note != found[1].note


PARTS = {  # of a pipeline: each component's format, and what lies in its folder
    "unet": ("torch", {"diffusion_pytorch_model.safetensors": 3000, "diffusion_pytorch_model.bin": 3100}),
    "vae": ("torch", {"model-00001-of-00002.bin": 11, "model-00002-of-00002.bin": 5, "training_args.bin": 7}),
    "text_encoder": ("openvino", {"openvino_model.bin": 70, "openvino_model.xml": 600, "model.safetensors": 900}),
    "text_encoder_2": ("onnx", {"model.onnx": 2, "model.onnx.data": 4, "engine.json": 100}),
    "transformer": ("tensorrt", {"SM86.engine": 20, "SM89.engine": 30, "model.onnx": 500, "model.onnx.data": 400}),
}
READ = {"unet": 3000, "vae": 16, "text_encoder": 70, "text_encoder_2": 6, "transformer": 30}


def size_of(artifact: Artifact) -> float:
    return size.score(size.measure(Evidence(artifact), size.params())).value


def test_size_is_what_running_every_component_reads_on_disk(tmp_path: Path) -> None:
    for name, (_, files) in PARTS.items():
        for file, count in {**files, "config.json": 900}.items():
            (tmp_path / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_bytes(b"\0" * count)
    parts = {name: Component(form, name, "Any") for name, (form, _) in PARTS.items()}
    whole = Artifact(tmp_path, "text_to_image", parts)
    assert size_of(whole) * 1e6 == pytest.approx(sum(READ.values()))
    for name in parts:
        rest = replace(whole, components={n: part for n, part in parts.items() if n != name})
        assert size_of(rest) * 1e6 == pytest.approx(sum(READ.values()) - READ[name])


def test_a_checkpoint_that_components_share_counts_once(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 1000)
    both = {name: Component("torch", "", "Any", module=name) for name in ("encoder", "decoder")}
    assert size_of(Artifact(tmp_path, "text_generation", both)) * 1e6 == pytest.approx(1000)


def test_size_of_a_shipped_model_is_its_safetensors_in_megabytes() -> None:
    folder = zoo_model("digits-diffusion")
    expected = sum(f.stat().st_size for f in folder.rglob("*.safetensors"))
    assert size_of(describe(folder)) == pytest.approx(expected / 1e6)
    assert 1 < size_of(describe(folder)) < 45


def test_sizes_compare_as_how_many_times_smaller() -> None:
    four, one = sample(np.array([4.0])), sample(np.array([1.0]))
    assert size.contrast(one, four).value == 4
    assert size.contrast(four, one).value == 0.25


# ---------------------------------------------------------------- all metrics


MEASURED: dict[Any, Callable[[], Sample]] = {
    clip_score: lambda: sample(RNG.normal(size=30)),
    digits_read: lambda: sample(RNG.integers(0, 2, 30).astype(float)),
    inks_right: lambda: sample(RNG.integers(0, 2, 30).astype(float)),
    **{
        m: lambda: sample(directions(30, 4), directions(30, 4))
        for m in (kid, cmmd, fid, fid_infinity, precision, recall)
    },
    perplexity: lambda: sample(RNG.uniform(1, 2, (30, 3))),
    latency: lambda: sample(RNG.uniform(1, 2, 30)),
    throughput: lambda: sample(RNG.uniform(1, 2, 30)),
}


@pytest.mark.parametrize("metric", MEASURED, ids=lambda m: m.name)
def test_a_side_against_itself_is_exactly_even(metric: Any) -> None:
    """Shares alone keep an interval: that not one of thirty pairs differs does not prove that none would."""
    side = MEASURED[metric]()
    found = metric.contrast(side, side)
    even = 1 if metric.compared == "ratio" else 0
    spread = 0.2 if metric in (digits_read, inks_right, precision, recall) else 0
    assert found.value == even
    assert even - spread <= found.low <= even <= found.high <= even + spread
    assert (found.low < found.high) == bool(spread)


@pytest.mark.parametrize("metric", MEASURED, ids=lambda m: m.name)
def test_changing_sides_turns_the_contrast_over(metric: Any) -> None:
    one, other = MEASURED[metric](), MEASURED[metric]()
    if one.reference is not None:
        other = replace(other, reference=one.reference)
    there, back = metric.contrast(one, other), metric.contrast(other, one)
    if metric.compared == "ratio":
        assert there.value * back.value == pytest.approx(1)
    else:
        assert there.value == pytest.approx(-back.value, abs=1e-12)
    assert there.value != 0 or metric in (precision, recall)  # of 30 images, as many may lie within


@pytest.mark.parametrize("metric", MEASURED, ids=lambda m: m.name)
def test_an_interval_holds_its_own_estimate(metric: Any) -> None:
    side = MEASURED[metric]()
    found = metric.score(side)
    assert found.low <= found.value <= found.high
    assert found.low < found.high
    assert found.n == 30

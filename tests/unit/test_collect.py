"""Evidence of quality: cached by what decides it, made whole or not at all, and never of a broken model."""

from __future__ import annotations

import gc
import json
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compress.artifact import Artifact
from compress.data.items import Item, Message
from compress.errors import StageFailed
from compress.events import Event, silent
from compress.machine.devices import Opening
from compress.model.describing import describe
from compress.model.exportable import ANY_SIZE
from compress.opening.text_generation import TextGeneration
from compress.opening.text_to_image import TextToImage
from compress.recipe.values import EvalSpec
from compress.store.cache import Cache
from evaluation.observe.collect import KINDS, MANIFEST, Viewpoint, collect
from tests.chat_templates import chatting
from tests.tiny import tiny_diffusion, tiny_llama

CAPTIONS = ("a red three", "a blue seven", "green on white paper", "the array", "a red seven on paper")
TEXTS = ("the array of values", "a", "return the sum of all elements of it", "b c", "no")
ITEMS = tuple(Item(f"p{i}", text) for i, text in enumerate(CAPTIONS))
DOCUMENTS = tuple(Item(f"d{i}", text) for i, text in enumerate(TEXTS))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Viewpoint:
    artifact = replace(describe(tiny_diffusion(tmp_path_factory.mktemp("diffusion"))), digest="diffusion")
    return Viewpoint(artifact, Opening("float32"), {"num_inference_steps": 2}, ITEMS, "words", 0, 2, {"images": ()})


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Viewpoint:
    artifact = replace(describe(tiny_llama(tmp_path_factory.mktemp("llama"))), digest="llama")
    return Viewpoint(artifact, Opening("float32"), {}, DOCUMENTS, "words", 0, 2, {"documents": ()})


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every item that a model is asked for, in order, from here on."""
    asked: list[str] = []
    generate, score = TextToImage.generate_items, TextGeneration.token_logprobs

    def generating(self: Any, items: Any, seed: int, **call: Any) -> Any:
        asked.extend(item.id for item in items)
        return generate(self, items, seed, **call)

    def scoring(self: Any, documents: Any, batch: int) -> Any:
        asked.extend(document.text for document in documents)
        return score(self, documents, batch)

    monkeypatch.setattr(TextToImage, "generate_items", generating)
    monkeypatch.setattr(TextGeneration, "token_logprobs", scoring)
    return asked


def files(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def all_images(view: Viewpoint, folder: Path) -> np.ndarray:
    return collect(view, (folder,), "baseline", silent).images(0, len(view.items)).astype(int)


# ---------------------------------------------------------------- what decides it


CHANGES: dict[str, Callable[[Viewpoint], Viewpoint]] = {
    "the model": lambda v: replace(v, artifact=replace(v.artifact, digest="other")),
    "its number type": lambda v: replace(v, opening=Opening("bfloat16")),
    "the steps": lambda v: replace(v, call={"num_inference_steps": 3}),
    "the guidance": lambda v: replace(v, call={**v.call, "guidance_scale": 2.0}),
    "the data": lambda v: replace(v, data_digest="others"),
    "the count": lambda v: replace(v, items=v.items[:-1]),
    "the seed": lambda v: replace(v, seed=1),
}


@pytest.mark.parametrize("what", CHANGES)
def test_the_key_changes_with(what: str, images: Viewpoint) -> None:
    assert CHANGES[what](images).key("images") != images.key("images")


def test_neither_the_batch_nor_the_folder_nor_the_order_of_arguments_is_in_the_key(images: Viewpoint) -> None:
    moved = replace(images.artifact, path=Path("elsewhere"))
    assert replace(images, batch=7, artifact=moved).key("images") == images.key("images")
    one, other = ({"a": 1, "b": 2}, {"b": 2, "a": 1})
    assert replace(images, call=one).key("images") == replace(images, call=other).key("images")


def test_real_images_that_are_read_otherwise_have_another_key(
    images: Viewpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = replace(images, evidence={})
    before = collect(empty, (tmp_path / "evidence",), "baseline", silent).data_key
    monkeypatch.setattr("evaluation.observe.collect.READER", -1)
    assert collect(empty, (tmp_path / "evidence",), "baseline", silent).data_key != before


def test_what_was_seen_once_is_not_made_again(
    images: Viewpoint, texts: Viewpoint, tmp_path: Path, work: list[str]
) -> None:
    for view in (images, texts):
        first = collect(view, (tmp_path,), "baseline", silent)
        assert len(work) == len(view.items)
        again = collect(view, (tmp_path,), "candidate", silent)
        assert len(work) == len(view.items)
        work.clear()
        assert again.unit_ids == first.unit_ids == tuple(i.id for i in view.items)
        assert again.protocol == {"samples": len(view.items), "seed": 0, "data": "words"}


def test_another_viewpoint_has_a_folder_of_its_own(texts: Viewpoint, tmp_path: Path, work: list[str]) -> None:
    few = replace(texts, items=DOCUMENTS[:2])
    for view in (texts, few, texts, few):
        collect(view, (tmp_path,), "baseline", silent)
    assert len(work) == len(DOCUMENTS) + 2
    assert {f.name for f in tmp_path.iterdir()} == {v.key("documents") for v in (texts, few)}


# ---------------------------------------------------------------- noise and order


def test_a_images_noise_is_its_prompts_whatever_the_batch(images: Viewpoint, tmp_path: Path) -> None:
    two, all_, one = (all_images(replace(images, batch=b), tmp_path / str(b)) for b in (2, len(ITEMS), 1))
    assert two.std() > 5
    assert np.abs(two - all_).max() <= 1
    assert np.abs(two - one).max() <= 1


def test_a_images_noise_is_its_prompts_whatever_its_place(images: Viewpoint, tmp_path: Path) -> None:
    there = all_images(images, tmp_path / "there")
    back = all_images(replace(images, items=ITEMS[::-1]), tmp_path / "back")
    alone = all_images(replace(images, items=ITEMS[3:4]), tmp_path / "alone")
    assert np.abs(there - back[::-1]).max() <= 1
    assert np.abs(there[3] - alone[0]).max() <= 1


def test_another_seed_or_another_prompt_id_is_other_noise(images: Viewpoint, tmp_path: Path) -> None:
    one = all_images(images, tmp_path / "one")
    renamed = tuple(replace(item, id=f"other {item.id}") for item in ITEMS)
    for changed in (replace(images, seed=1), replace(images, items=renamed)):
        other = all_images(changed, tmp_path / changed.items[0].id / str(changed.seed))
        assert (np.abs(one - other).max(axis=(1, 2, 3)) > 10).all()


def test_both_sides_start_from_the_same_noise(
    images: Viewpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first latents that each side's denoiser sees, for two models, two batch sizes and two step counts."""
    seen: list[torch.Tensor] = []
    generate = TextToImage.generate_items

    def watching(self: Any, items: Any, seed: int, **call: Any) -> Any:
        calls: list[Any] = []
        with self.watch("unet", lambda args, kwargs: calls.append(args)):
            found = generate(self, items, seed, **call)
        seen.append(calls[0][0][: len(items)])  # the guided half is the same latents again
        return found

    monkeypatch.setattr(TextToImage, "generate_items", watching)
    other = describe(tiny_diffusion(tmp_path / "other", seed=9))
    base = replace(images, call={"num_inference_steps": 4})
    candidate = replace(base, artifact=replace(other, digest="other"), batch=5, call={"num_inference_steps": 4})
    for view in (base, candidate):
        collect(view, (tmp_path / "evidence",), "baseline", silent)
    assert torch.equal(torch.cat(seen[:-1]), seen[-1])


def test_items_that_move_each_other_are_generated_one_at_a_time(
    images: Viewpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    generate = TextToImage.generate_items

    def generating(self: Any, items: Any, seed: int, **call: Any) -> Any:
        sizes.append(len(items))
        return generate(self, items, seed, **call)

    monkeypatch.setattr(TextToImage, "generate_items", generating)
    monkeypatch.setattr("evaluation.observe.collect.company", lambda artifact: "alone")
    collect(replace(images, items=ITEMS[:3]), (tmp_path,), "baseline", silent)
    assert sizes == [1, 1, 1]


def test_scores_are_stored_in_the_order_of_the_data_though_read_by_length(texts: Viewpoint, tmp_path: Path) -> None:
    found = collect(texts, (tmp_path,), "baseline", silent).token_logprobs
    assert [len(f) for f in found] == [len(t) for t in TEXTS]  # a token a byte
    task = TextGeneration(texts.artifact, Opening("float32"))
    for text, stored in zip(TEXTS, found, strict=True):
        assert stored == pytest.approx(task.token_logprobs([text], 1)[0], abs=1e-5)


def test_a_document_that_was_cut_counts_the_bytes_that_were_read(texts: Viewpoint, tmp_path: Path) -> None:
    """A model of 64 positions reads 63 bytes behind the first token; bits per byte of all 500 would flatter it."""
    items = (Item("long", "π" * 250), Item("short", "ππ"), Item("brim", "x" * 63), Item("over", "x" * 64))
    found = collect(replace(texts, items=items), (tmp_path,), "baseline", silent)
    assert [len(f) for f in found.token_logprobs] == [63, 4, 63, 63]
    assert found.bytes_read[1:] == (4, 63, 63)
    assert 62 <= found.bytes_read[0] <= 65  # the cut went through the middle of a letter


def test_an_empty_document_keeps_its_place(texts: Viewpoint, tmp_path: Path) -> None:
    items = (DOCUMENTS[0], Item("empty", ""), DOCUMENTS[1])
    found = collect(replace(texts, items=items), (tmp_path,), "baseline", silent).token_logprobs
    assert [len(f) for f in found] == [len(TEXTS[0]), 0, len(TEXTS[1])]


def test_what_is_longer_than_the_model_reads_is_said(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "llama")  # of 64 positions
    chatting(folder)
    long = "and so it goes on " * 10
    items = (Item("a", "short"), Item("b", long))
    task = TextGeneration(describe(folder), Opening("float32"))
    assert task.cut_short(items[:1]) == ""
    assert (
        task.cut_short(items)
        == "1 of 2 documents are longer than the 64 tokens that the model reads: the tokens behind those are not scored"
    )
    exact = Item("c", "x" * 63)  # behind the token that begins a text
    assert task.cut_short((exact,)) == ""
    assert "1 of 1" in task.cut_short((replace(exact, text="x" * 64),))
    chat = Item("d", "x", messages=(Message("user", long), Message("assistant", "yes")))
    assert task.questions_cut((chat, items[1]), 8) == (
        "1 of 2 conversations leave no room for 8 tokens: of each the last 56 tokens are continued"
    )
    assert task.questions_cut(items, 8) == ""
    artifact = replace(describe(folder), digest="chats")
    view = Viewpoint(artifact, Opening("float32"), {}, items, "words", 0, 2, {"documents": ()})
    for _ in range(2):  # made, and read
        assert collect(view, (tmp_path / "evidence",), "baseline", silent).message == (task.cut_short(items),)


def test_latents_are_what_the_images_were_decoded_from(images: Viewpoint, tmp_path: Path) -> None:
    evidence = collect(images, (tmp_path,), "baseline", silent)
    task: Any = TextToImage(images.artifact, Opening("float32"))
    assert evidence.latent is not None
    for index in (0, len(ITEMS) - 1):  # of the first batch and of the last
        with torch.inference_mode():
            generated = task.pipeline.vae.decode(torch.tensor(evidence.latent(index))[None]).sample[0]
        pixels = ((generated / 2 + 0.5).clamp(0, 1) * 255).permute(1, 2, 0).numpy()
        assert np.abs(pixels - evidence.images(index, index + 1)[0]).max() <= 2  # stored in half precision


def test_prompts_are_continued_until_the_model_ends_them_and_no_further(texts: Viewpoint, tmp_path: Path) -> None:
    view = replace(texts, evidence={"documents": (), "continuations": (3, 6, 5)})
    evidence = collect(view, (tmp_path,), "baseline", silent)
    task = TextGeneration(texts.artifact, Opening("float32"))
    assert len(evidence.continuations) == 3
    for text, found in zip(TEXTS, evidence.continuations, strict=False):
        prompt = task.encode(text)[: min(6, max(1, len(task.encode(text)) // 2))]
        assert found.tokens == tuple(task.complete(prompt, 5))
        assert 1 <= len(found.tokens) <= 5
        assert found.text == task.tokenizer.decode(list(found.tokens))
    assert {f.name for f in tmp_path.iterdir()} == {view.key("documents"), view.key("continuations")}
    assert replace(view, evidence={"continuations": (3, 6, 4)}).key("documents") == view.key("documents")


def test_a_document_of_nothing_is_continued_by_nothing_or_from_the_token_that_begins_one(
    texts: Viewpoint, tmp_path: Path
) -> None:
    view = replace(texts, items=(Item("empty", ""),), evidence={"continuations": (1, 6, 5)})
    assert len(collect(view, (tmp_path,), "baseline", silent).continuations) == 1


def test_all_that_a_pipeline_is_given_of_an_item_comes_from_one_place(images: Viewpoint) -> None:
    seen: list[Item] = []

    class Listening(TextToImage):
        def given(self, items: Sequence[Item]) -> dict[str, Any]:
            seen.extend(items)
            return {"prompt": [f"the {item.text}" for item in items]}

    task = Listening(images.artifact, Opening("float32"))
    shown = replace(ITEMS[0], image=lambda: np.zeros((2, 2, 3), np.uint8))
    generated, _ = task.images((shown,), 0, num_inference_steps=2)
    plain = TextToImage(images.artifact, Opening("float32"))
    assert np.array_equal(generated, plain.generate([f"the {shown.text}"], [shown.id], 0, num_inference_steps=2))
    timed = task.timed((shown,), EvalSpec(timing_batch=2), {"num_inference_steps": 2})
    timed.run()
    assert list(task.calls_of(("unet",), (shown,), 0, num_inference_steps=2))
    assert [item.id for item in seen if item.image] == [shown.id, "timing/0", "timing/1", shown.id]


def test_images_come_back_to_the_byte(images: Viewpoint, tmp_path: Path) -> None:
    task = TextToImage(images.artifact, Opening("float32"))
    expected = task.generate([i.text for i in ITEMS[:2]], [i.id for i in ITEMS[:2]], 0, num_inference_steps=2)
    evidence = collect(images, (tmp_path,), "baseline", silent)
    assert np.array_equal(evidence.images(0, 2), expected)
    assert len(evidence.images(4, 400)) == 1  # the last batch is what is left


# ---------------------------------------------------------------- what is damaged


def truncate(folder: Path) -> None:
    victim = max((f for f in folder.iterdir() if f.name != MANIFEST), key=lambda f: f.name)
    victim.write_bytes(victim.read_bytes()[:-3])


def remove(folder: Path) -> None:
    next(f for f in folder.iterdir() if f.name != MANIFEST).unlink()


def garble(folder: Path) -> None:
    (folder / MANIFEST).write_text("{")


def empty(folder: Path) -> None:
    (folder / MANIFEST).write_text("{}")


@pytest.mark.parametrize("damage", [truncate, remove, garble, empty])
def test_corrupt_evidence_is_collected_again_with_a_warning(
    damage: Callable[[Path], None], texts: Viewpoint, tmp_path: Path, work: list[str]
) -> None:
    first = collect(texts, (tmp_path,), "baseline", silent)
    whole = files(tmp_path)
    damage(tmp_path / texts.key("documents"))
    recorded: list[Event] = []
    again = collect(texts, (tmp_path,), "baseline", recorded.append)
    warnings = [e for e in recorded if e.kind == "warning"]
    assert len(warnings) == 1
    assert "corrupt" in warnings[0].message
    assert len(work) == 2 * len(DOCUMENTS)
    assert files(tmp_path) == whole
    assert all(np.array_equal(a, b) for a, b in zip(first.token_logprobs, again.token_logprobs, strict=True))


def test_a_changed_image_is_noticed(images: Viewpoint, tmp_path: Path, work: list[str]) -> None:
    collect(images, (tmp_path,), "baseline", silent)
    one, other = (tmp_path / images.key("images") / f"0000{i}.png" for i in (0, 1))
    one.write_bytes(other.read_bytes())
    recorded: list[Event] = []
    collect(images, (tmp_path,), "baseline", recorded.append)
    assert ["00000.png changed" in e.message for e in recorded if e.kind == "warning"] == [True]
    assert len(work) == 2 * len(ITEMS)


class Killed(BaseException):
    """Not an `Exception`, like the signals that end a process."""


@pytest.mark.parametrize("after", [0, 1])
def test_evidence_stopped_half_way_leaves_no_entry(
    after: int, images: Viewpoint, tmp_path: Path, work: list[str]
) -> None:
    def stop(event: Event) -> None:
        if event.kind == "progress" and event.done > after:
            raise Killed

    with pytest.raises(Killed):
        collect(images, (tmp_path,), "baseline", stop)
    assert list(tmp_path.iterdir()) == []
    work.clear()
    assert len(collect(images, (tmp_path,), "baseline", silent).images(0, 99)) == len(ITEMS)
    assert len(work) == len(ITEMS)


def test_what_a_killed_process_left_is_neither_read_nor_in_the_way(texts: Viewpoint, tmp_path: Path) -> None:
    """Not even `finally` runs after kill -9: the unfinished folder lies beside the entries, under another name."""
    left = tmp_path / ".making-abc"
    left.mkdir()
    (left / "logprobs.safetensors").write_bytes(b"half")
    collect(texts, (tmp_path,), "baseline", silent)
    manifest = json.loads((tmp_path / texts.key("documents") / MANIFEST).read_text())
    assert manifest["key"] == texts.key("documents")
    assert list(manifest["files"]) == ["logprobs.safetensors"]


# ---------------------------------------------------------------- shipped evidence


def test_shipped_evidence_is_read_and_never_written(texts: Viewpoint, tmp_path: Path, work: list[str]) -> None:
    shipped, cache = tmp_path / "shipped", tmp_path / "cache"
    collect(texts, (shipped,), "baseline", silent)
    before = files(shipped)
    work.clear()
    collect(texts, (cache, shipped), "baseline", silent)
    assert work == []
    assert not cache.exists()
    collect(replace(texts, seed=1), (cache, shipped), "baseline", silent)
    assert files(shipped) == before
    assert {f.name for f in cache.iterdir()} == {replace(texts, seed=1).key("documents")}


def test_corrupt_shipped_evidence_is_made_in_the_cache_and_left_as_it_is(
    texts: Viewpoint, tmp_path: Path, work: list[str]
) -> None:
    shipped, cache = tmp_path / "shipped", tmp_path / "cache"
    collect(texts, (shipped,), "baseline", silent)
    truncate(shipped / texts.key("documents"))
    before = files(shipped)
    collect(texts, (cache, shipped), "baseline", silent)
    assert files(shipped) == before
    assert len(work) == 2 * len(DOCUMENTS)
    collect(texts, (cache, shipped), "baseline", silent)
    assert len(work) == 2 * len(DOCUMENTS)


def test_the_caches_own_evidence_comes_before_the_shipped(texts: Viewpoint, tmp_path: Path) -> None:
    shipped, cache = tmp_path / "shipped", tmp_path / "cache"
    for folder in (shipped, cache):
        collect(texts, (folder,), "baseline", silent)
    truncate(shipped / texts.key("documents"))
    recorded: list[Event] = []
    collect(texts, (cache, shipped), "baseline", recorded.append)
    assert recorded == []


# ---------------------------------------------------------------- broken models


def broken(artifact: Artifact, folder: Path, component: str, spoil: Callable[[torch.nn.Module], None]) -> Artifact:
    """A copy of the tiny pipeline with one component's weights nonfinite."""
    import shutil

    shutil.copytree(artifact.path, folder)
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    with torch.no_grad():
        spoil(getattr(pipeline, component))
    getattr(pipeline, component).save_pretrained(folder / component)
    return replace(describe(folder), digest="broken")


def silence(module: Any) -> None:
    module.decoder.conv_out.weight.zero_()
    module.decoder.conv_out.bias.zero_()


def poison(module: Any) -> None:
    module.conv_out.weight.fill_(torch.nan)


BROKEN = [
    ("vae", silence, "the candidate generated a constant image for 'a red three'"),
    ("unet", poison, "an image for 'a red three' or those beside it holds values that are no numbers"),
]


def test_latents_of_no_numbers_are_an_error_though_their_decoder_paints_them(
    images: Viewpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = TextToImage(images.artifact, Opening("float32"))
    vae = task.component("vae")
    real = vae.decode
    monkeypatch.setattr(vae, "decode", lambda z, **named: real(torch.ones_like(z).cumsum(-1), **named))
    with torch.no_grad():
        poison(task.component("unet"))
    for call in (lambda: task.images(ITEMS[:2], 0), lambda: task.probe(ANY_SIZE)):
        with pytest.raises(StageFailed, match=r"the latents of an image for .* holds values that are no numbers"):
            call()
    monkeypatch.undo()
    with torch.no_grad():
        task.component("unet").conv_out.weight.zero_()
    assert np.isfinite(task.probe(ANY_SIZE)).all()


@pytest.mark.parametrize(("component", "spoil", "message"), BROKEN)
def test_a_constant_image_or_one_of_no_numbers_is_an_error_that_names_the_prompt(
    component: str, spoil: Callable[[Any], None], message: str, images: Viewpoint, tmp_path: Path
) -> None:
    view = replace(images, artifact=broken(images.artifact, tmp_path / "broken", component, spoil))
    with pytest.raises(StageFailed, match=message) as caught:
        collect(view, (tmp_path / "evidence",), "candidate", silent)
    assert caught.value.problems[0].place == "p0"
    assert list((tmp_path / "evidence").iterdir()) == []


def test_one_black_image_among_good_ones_is_found(
    images: Viewpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = TextToImage.generate_items

    def generating(self: Any, items: Any, seed: int, **call: Any) -> Any:
        found = generate(self, items, seed, **call)
        found[[item.id == "p3" for item in items]] = 0
        return found

    monkeypatch.setattr(TextToImage, "generate_items", generating)
    with pytest.raises(StageFailed, match="'the array'"):
        collect(images, (tmp_path,), "baseline", silent)


def test_a_score_that_is_no_number_is_an_error_that_names_the_document(
    texts: Viewpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = TextGeneration.token_logprobs

    def scoring(self: Any, documents: Any, batch: int) -> Any:
        found = score(self, documents, batch)
        for document, values in zip(documents, found, strict=True):
            if document.text == TEXTS[3]:
                values[-1] = -np.inf
        return found

    monkeypatch.setattr(TextGeneration, "token_logprobs", scoring)
    with pytest.raises(StageFailed, match="no finite probability") as caught:
        collect(texts, (tmp_path,), "candidate", silent)
    assert caught.value.problems[0].place == "d3"
    assert "the candidate" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- several runs on one cache


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    store = Cache(tmp_path / "cache")
    store.prepare()
    return store


@pytest.mark.parametrize("plain", [False, True], ids=["cache", "plain folder"])
def test_two_runs_at_one_time_collect_once(
    texts: Viewpoint, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain: bool
) -> None:
    folder = tmp_path / "plain" if plain else cache.root / "evidence"
    made, at_work, waited = [], threading.Event(), threading.Event()
    score = KINDS["documents"][0]

    def scoring(view: Viewpoint, where: Path, side: str, emit: Any) -> None:
        made.append(side)
        at_work.set()
        assert waited.wait(60)  # until the other has come, and found the lock taken
        score(view, where, side, emit)

    def listening(event: Event) -> None:
        if "another run is collecting it" in event.message:
            waited.set()

    monkeypatch.setitem(KINDS, "documents", (scoring, KINDS["documents"][1]))
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(collect, texts, (folder,), "first", silent)
        assert at_work.wait(60)
        other = pool.submit(collect, texts, (folder,), "second", listening)
        scores = [run.result(timeout=120).token_logprobs for run in (one, other)]
    assert made == ["first"]
    assert all(np.array_equal(a, b) for a, b in zip(*scores, strict=True))
    assert {f.name for f in folder.iterdir()} == {texts.key(kind) for kind in texts.kinds}


def test_images_stay_while_somebody_may_still_look_at_them(images: Viewpoint, cache: Cache) -> None:
    folder = cache.root / "evidence"
    seen = collect(images, (folder,), "baseline", silent)
    few = replace(seen, items=seen.items[:1])
    assert cache.evict(0) == ()
    del seen
    assert cache.evict(0) == ()
    assert few.images(0, 1).std() > 0
    del few
    gc.collect()
    assert [(one.kind, one.key) for one in cache.evict(0)] == [("evidence", images.key("images"))]


def test_evidence_that_was_used_is_dropped_after_what_was_not(texts: Viewpoint, cache: Cache) -> None:
    folder = cache.root / "evidence"
    views = [texts, replace(texts, seed=1), replace(texts, seed=2)]
    for age, view in enumerate(views):
        collect(view, (folder,), "baseline", silent)
        os.utime(folder / view.key("documents") / MANIFEST, (10**9 - age, 10**9 - age))
    collect(views[2], (folder,), "baseline", silent)
    gc.collect()
    assert [one.key for one in cache.evict(0)] == [views[i].key("documents") for i in (1, 0, 2)]


def test_evidence_that_another_run_has_just_dropped_is_collected_again(
    texts: Viewpoint, cache: Cache, work: list[str]
) -> None:
    folder = cache.root / "evidence"
    collect(texts, (folder,), "baseline", silent)
    gc.collect()
    assert cache.evict(0)
    collect(texts, (folder,), "baseline", silent)
    assert len(work) == 2 * len(DOCUMENTS)

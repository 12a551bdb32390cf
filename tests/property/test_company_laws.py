"""A score is its item's own: that of a batch equals those of its items one by one, whatever positions depend on, in any order."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.artifact import LANGUAGE_MODEL, Artifact, Component, Quantization
from compress.data.items import Item
from compress.machine.devices import AS_STORED
from compress.model.batching import Company, apart, company
from compress.model.describing import describe
from compress.opening import open_language
from evaluation.metrics.kl import divergences
from evaluation.observe.collect import Viewpoint
from tests.families import TEXT, tiny_text

# By what a position's meaning rests on: learned (with an offset in OPT), rotary, rotary that changes with the length, slopes on
# distances, windows, states.
READERS = (
    "gpt2",
    "opt",
    "bert",
    "qwen2",
    "dynamic-rope",
    "phi3",
    "bloom",
    "mpt",
    "mistral",
    "gemma2",
    "gemma3",
    "mamba",
)
TOLERANCE = 1e-4  # nats, of a token: batches of another size add in another order
LETTERS = st.text("ab é", min_size=0, max_size=70)  # past 64 positions, where a text is cut


@cache
def reader(family: str) -> Any:
    with TemporaryDirectory() as folder:
        task: Any = open_language(describe(tiny_text(Path(folder), family)))
        task.encode("loaded")
    return task


@cache
def alone(family: str, text: str) -> np.ndarray:
    found: np.ndarray = reader(family).token_logprobs([text], 1)[0]
    return found


def test_every_way_of_telling_positions_is_among_them() -> None:
    assert set(READERS) <= TEXT.keys()


@pytest.mark.parametrize("family", READERS)
@settings(max_examples=8, deadline=None)
@given(texts=st.lists(LETTERS, min_size=1, max_size=5), batch=st.integers(1, 5))
def test_a_batch_scores_as_its_items_do_one_by_one(family: str, texts: list[str], batch: int) -> None:
    texts = [*texts, "a", "b" * 40]  # on both sides of the 16 tokens beyond which phi3 takes its other frequencies
    together = reader(family).token_logprobs(texts, batch + 2)
    for text, found in zip(texts, together, strict=True):
        np.testing.assert_allclose(found, alone(family, text), atol=TOLERANCE)


@pytest.mark.parametrize("family", READERS)
def test_divergences_of_a_batch_are_those_of_its_texts(family: str) -> None:
    one, other = reader(family), reader("qwen2")
    texts = ["a", "", "ab" * 12, "b" * 63, "abc"]
    together = divergences(one, other, texts)
    apart_too = np.concatenate([divergences(one, other, [text]) for text in texts])
    np.testing.assert_allclose(together, apart_too, rtol=1e-4, atol=1e-4)


@given(st.lists(st.integers(0, 5), min_size=1), st.sampled_from(["any", "equal", "alone"]))
def test_every_row_has_its_one_call(lengths: list[int], kept: Company) -> None:
    calls = apart(kept, lengths)
    assert sorted(row for call in calls for row in call) == list(range(len(lengths)))
    if kept == "equal":
        assert all(len({lengths[row] for row in call}) == 1 for call in calls)
    assert len(calls) == {"any": 1, "equal": len(set(lengths)), "alone": len(lengths)}[kept]


def model(folder: Path, config: dict[str, Any], kind: str = "LlamaForCausalLM", packed: str = "") -> Artifact:
    (folder / "config.json").write_text(json.dumps(config))
    how = Quantization(packed, 8, packed) if packed else None
    return Artifact(folder, "text_generation", {LANGUAGE_MODEL: Component("torch", "", kind, quantization=how)})


OVER_CALL = {"config_groups": {"g": {"input_activations": {"dynamic": True, "strategy": "tensor"}}}}
OVER_TOKEN = {"config_groups": {"g": {"input_activations": {"dynamic": True, "strategy": "token"}}}}


@pytest.mark.parametrize(
    ("config", "kind", "packed", "kept"),
    [
        ({}, "LlamaForCausalLM", "", "any"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4}}, "LlamaForCausalLM", "", "any"),
        ({"rope_scaling": {"type": "su", "short_factor": []}}, "Phi3ForCausalLM", "", "equal"),
        ({"text_config": {"rope_parameters": {"full": {"rope_type": "longrope"}}}}, "LlamaForCausalLM", "", "equal"),
        ({"auto_map": {"AutoModelForCausalLM": "own.OwnForCausalLM"}}, "OwnForCausalLM", "", "equal"),
        ({"auto_map": {"AutoModelForCausalLM": "own.LlamaForCausalLM"}}, "LlamaForCausalLM", "", "any"),
        ({"quantization_config": {"load_in_8bit": True}}, "LlamaForCausalLM", "bitsandbytes", "alone"),
        ({"quantization_config": {"load_in_4bit": True}}, "LlamaForCausalLM", "bitsandbytes", "any"),
        ({"quantization_config": OVER_CALL}, "LlamaForCausalLM", "compressed-tensors", "alone"),
        ({"quantization_config": OVER_TOKEN}, "LlamaForCausalLM", "compressed-tensors", "any"),
    ],
)
def test_a_config_tells_who_may_share_a_call(
    tmp_path: Path, config: dict[str, Any], kind: str, packed: str, kept: Company
) -> None:
    assert company(model(tmp_path, config, kind, packed)) == kept


@pytest.mark.parametrize(("precision", "kept"), [("int8_dynamic", "alone"), ("int8_weights", "any")])
def test_an_engine_that_scales_a_whole_call_reads_each_text_by_itself(
    tmp_path: Path, precision: str, kept: Company
) -> None:
    (tmp_path / "engine.json").write_text(json.dumps({"precision": precision}))
    part = Component("onnx", "", "LlamaForCausalLM")
    assert company(Artifact(tmp_path, "text_generation", {LANGUAGE_MODEL: part})) == kept


@pytest.mark.parametrize(
    ("pipeline", "kept"),
    [
        ("StableDiffusionPipeline", "any"),  # which looks at untruncated tokens, to say what it cuts
        ("FluxPipeline", "any"),
        ("PixArtSigmaPipeline", "any"),
        ("CogView4Pipeline", "alone"),
        ("QwenImagePipeline", "alone"),
        ("UnknownPipeline", "any"),
    ],
)
def test_a_pipeline_that_pads_to_the_longest_prompt_generates_each_by_itself(
    tmp_path: Path, pipeline: str, kept: Company
) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    made = Artifact(tmp_path, "text_to_image", {"transformer": Component("torch", "transformer", "Any")})
    assert company(made) == kept


def test_only_what_was_read_together_is_looked_at_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = model(tmp_path, {"rope_scaling": {"rope_type": "longrope"}}, "Phi3ForCausalLM")
    view = Viewpoint(
        made, AS_STORED, {}, (Item("0", "a"),), "data", 0, 2, {"documents": (), "continuations": (1, 2, 3)}
    )
    documents, written = view.key("documents"), view.key("continuations")
    monkeypatch.setattr("evaluation.observe.collect.company", lambda artifact: "any")
    assert view.key("documents") != documents
    assert view.key("continuations") == written

"""Opened tasks: the same answer from torch and from the engine, whatever the batch, the thread, or what ran before."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from compress.artifact import Artifact
from compress.catalogue import find_stage
from compress.context import Context
from compress.engines.module import EngineModule, flatten
from compress.engines.openvino.runtime import Graph
from compress.errors import ModelError, UserError
from compress.machine.devices import Opening
from compress.model.describing import describe
from compress.opening import open_task
from compress.opening.text_to_image import noise_source
from tests.tiny import tiny_diffusion, tiny_llama

PROMPTS = [[5, 6, 7], [8, 9], [10, 11, 12]]


def build(artifact: Artifact, out: Path) -> Artifact:
    stage = find_stage("build.openvino")
    stage.run(artifact, stage.params(), Context(out, out))
    return describe(out)


@pytest.fixture(scope="module")
def llamas(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    model = describe(tiny_llama(tmp_path_factory.mktemp("llama")))
    return open_task(model), open_task(build(model, tmp_path_factory.mktemp("engine")))


@pytest.fixture(scope="module")
def generators(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    model = describe(tiny_diffusion(tmp_path_factory.mktemp("pipeline")))
    return open_task(model), open_task(build(model, tmp_path_factory.mktemp("engine")))


def test_logprobs_are_those_of_the_plain_forward(llamas: tuple[Any, Any]) -> None:
    task = llamas[0]
    tokens = torch.tensor([task.encode("hello")])
    assert tokens[0, 0] == task.tokenizer.bos_token_id
    with torch.no_grad():
        expected = torch.log_softmax(task.model(tokens).logits[0, :-1], -1).gather(-1, tokens[0, 1:, None])[:, 0]
    found = task.token_logprobs(["hello"], 1)[0]
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected.double().numpy(), rtol=1e-6)


@pytest.mark.parametrize("which", [0, 1])
def test_logprobs_do_not_depend_on_the_batch(llamas: tuple[Any, Any], which: int) -> None:
    texts = ["hello world", "a", "", "x" * 500]
    together, alone = llamas[which].token_logprobs(texts, 4), llamas[which].token_logprobs(texts, 1)
    assert [len(t) for t in together] == [11, 1, 0, 63]  # 64 positions: the last text is cut, and `bos` takes one
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_the_engine_scores_and_writes_as_torch_does(llamas: tuple[Any, Any]) -> None:
    plain, engine = llamas
    for a, b in zip(plain.token_logprobs(["hello", "abc"], 2), engine.token_logprobs(["hello", "abc"], 2), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    answers = plain.generate(PROMPTS, 6)
    assert engine.generate(PROMPTS, 6) == answers
    assert [len(a) for a in answers] == [6, 6, 6]
    assert engine.generate(PROMPTS[:1], 6) == answers[:1]  # nothing of the last generation is left in the cache


def test_stock_beam_search_and_streaming_run_on_the_engine(llamas: tuple[Any, Any]) -> None:
    tokens = torch.tensor([PROMPTS[0]])
    call = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "pad_token_id": 1}
    beams = [t.model.generate(tokens, num_beams=3, **call).tolist() for t in llamas]
    assert beams[0] == beams[1]
    recorded: list[int] = []

    class Streamer:
        def put(self, value: torch.Tensor) -> None:
            recorded.extend(value.flatten().tolist())

        def end(self) -> None:
            recorded.append(-1)

    grown = llamas[1].model.generate(tokens, streamer=Streamer(), **call)
    assert recorded == [*grown[0].tolist(), -1]


def test_threads_do_not_mix_their_caches(llamas: tuple[Any, Any]) -> None:
    engine = llamas[1]
    alone = [engine.generate([p], 20) for p in PROMPTS]
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(lambda p: engine.generate([p], 20), PROMPTS)) == alone


def test_left_padding_and_a_stale_cache_are_refused(llamas: tuple[Any, Any]) -> None:
    model, tokens = llamas[1].model, torch.tensor([[1, 5, 6]])
    with pytest.raises(UserError, match="no padding before a token"):
        model(tokens, attention_mask=torch.tensor([[0, 1, 1]]))
    stale = model(tokens).past_key_values
    model(tokens)
    with pytest.raises(UserError, match="another began"):
        model(tokens, past_key_values=stale)


@pytest.mark.parametrize("which", [0, 1])
def test_a_image_depends_on_its_noise_not_on_its_place(generators: tuple[Any, Any], which: int) -> None:
    task = generators[which]
    pair = task.generate(["a red three", "blue"], ["x", "y"], 0, num_inference_steps=2).astype(int)
    alone = task.generate(["blue"], ["y"], 0, num_inference_steps=2).astype(int)
    other = task.generate(["blue"], ["z"], 0, num_inference_steps=2).astype(int)
    assert np.abs(pair[1] - alone[0]).max() <= 1
    assert np.abs(other - alone).mean() > 1


def test_noise_is_fixed_by_seed_and_name() -> None:
    draw = [
        torch.randn(4, generator=noise_source(seed, name)).tolist()
        for seed, name in ((0, "a"), (0, "a"), (1, "a"), (0, "b"))
    ]
    assert draw[0] == draw[1]
    assert len({tuple(d) for d in draw}) == 3


def test_guidance_off_runs_the_engine_at_half_the_batch(generators: tuple[Any, Any]) -> None:
    images = [t.generate(["blue"], ["0"], 0, num_inference_steps=2, guidance_scale=1.0).astype(int) for t in generators]
    assert np.abs(images[0] - images[1]).max() <= 1


def test_engine_outputs_outlive_the_next_call(generators: tuple[Any, Any]) -> None:
    unet = generators[1].pipeline.unet
    assert isinstance(unet, EngineModule)
    state = torch.randn(1, 16, 32)
    first = unet(torch.randn(1, 4, 8, 8), torch.tensor(5), encoder_hidden_states=state, return_dict=False)[0]
    kept = first.clone()
    unet(torch.randn(1, 4, 8, 8), 0 * torch.ones(()), encoder_hidden_states=state)
    assert torch.equal(first, kept)


def test_a_missing_argument_is_named(generators: tuple[Any, Any]) -> None:
    with pytest.raises(UserError, match="needs encoder_hidden_states"):
        generators[1].pipeline.unet(torch.randn(1, 4, 8, 8), torch.tensor(5))


def test_what_no_processor_could_run_is_not_blamed_on_the_size_of_the_call(generators: tuple[Any, Any]) -> None:
    def refuses(feed: Any) -> Any:  # what OpenVINO says of a bfloat16 graph where oneDNN is held to AVX2
        raise RuntimeError(
            "Exception from src/plugins/intel_cpu\n[CPU] node could not create a primitive descriptor for it"
        )

    graph: Any = generators[1].pipeline.unet.runner
    with pytest.raises(UserError, match="this processor cannot run the graph") as caught:
        graph.call(refuses, [])
    assert "precision: float32" in (caught.value.problems[0].fix or "")


def test_flatten_keeps_tensors_and_names_nested_ones() -> None:
    one = torch.ones(1)
    assert list(flatten({"a": one, "b": {"c": one, "d": None}, "e": 3})) == ["a", "b.c"]


def test_an_unknown_dtype_and_an_empty_engine_are_message_so(generators: tuple[Any, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="float33 is no dtype"):
        open_task(generators[0].artifact, Opening("float33"))
    with pytest.raises(ModelError, match=r"holds no engine\.json"):
        Graph(tmp_path)


def test_the_checkpoints_own_dtype_is_kept_unless_another_is_asked_for(
    generators: tuple[Any, Any], tmp_path: Path
) -> None:
    generators[0].pipeline.to(torch.bfloat16).save_pretrained(tmp_path)
    generators[0].pipeline.to(torch.float32)
    task: Any = open_task(describe(tmp_path))
    wide: Any = open_task(describe(tmp_path), Opening("float32"))
    assert task.pipeline.unet.dtype == torch.bfloat16
    assert wide.pipeline.unet.dtype == torch.float32
    assert task.generate(["a red three"], ["0"], 0, num_inference_steps=2).dtype == np.uint8


def test_the_beginning_of_a_text_is_read_off_a_graph_that_nobody_compiles() -> None:
    from compress.engines.openvino.runtime import start_of_text

    graph: Any = SimpleNamespace(
        inputs=(("attention_mask", torch.int64), ("input_ids", torch.int64), ("beam_idx", torch.int32))
    )
    found = {name: array.tolist() for name, array in start_of_text([5, 6], graph).items()}
    assert found == {"attention_mask": [[1, 1]], "input_ids": [[5, 6]], "beam_idx": [0]}

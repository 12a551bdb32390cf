"""The lean loop of an engine writes the very tokens of transformers' own, random numbers and padding included."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import GenerationMixin, LlamaForCausalLM
from transformers.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from compress.engines import decoding
from compress.engines.language import EngineLanguageModel, TensorPast
from compress.engines.module import ENGINE
from compress.errors import UserError
from tests.tiny import tiny_llama

PROMPTS = [[5, 6, 7, 8], [9, 9, 5, 7], [200, 3, 4, 17]]
EOS, PAD = [11, 40, 90], 2
ASKED: dict[str, dict[str, Any]] = {
    "greedy": {},
    "exactly so many": {"min_new_tokens": 24, "eos_token_id": EOS},
    "at least so long": {"min_length": 10, "eos_token_id": EOS},
    "until the text ends": {"eos_token_id": list(range(0, 300, 3))},
    "a token that the model lacks": {"eos_token_id": [10**6], "min_new_tokens": 5},
    "sampled": {"do_sample": True, "temperature": 1.3, "top_k": 40, "top_p": 0.9},
    "sampled until the text ends": {"do_sample": True, "eos_token_id": list(range(0, 300, 7))},
    "without repeating": {"repetition_penalty": 1.6, "no_repeat_ngram_size": 2},
    "no more than so long": {"max_length": 9, "max_new_tokens": None},
    "with all beside": {"return_dict_in_generate": True, "output_scores": True},
    "without a cache": {"use_cache": False},
}


class Steps:
    """A decoder that reads all again at each step: the torch model behind the door of engines."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        self.model = model

    def begin(self, batch: int) -> TensorPast:
        return TensorPast([torch.empty(batch, 0, dtype=torch.long)])

    def step(self, tokens: torch.Tensor, past: TensorPast) -> torch.Tensor:
        past.tensors = (torch.cat((past.tensors[0], tokens), 1),)
        logits: torch.Tensor = self.model(past.tensors[0], use_cache=False).logits
        return logits[:, -tokens.shape[1] :]


class Heard(BaseStreamer):
    def __init__(self) -> None:
        self.message: list[Any] = []

    def put(self, value: torch.Tensor) -> None:
        self.message.append(value.tolist())

    def end(self) -> None:
        self.message.append("end")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineLanguageModel]:
    folder = tiny_llama(tmp_path_factory.mktemp("llama") / "model")
    (folder / ENGINE).write_text(json.dumps({"engine": "steps", "precision": "float32"}))
    torch_model = LlamaForCausalLM.from_pretrained(folder).eval()
    with torch.inference_mode():
        yield EngineLanguageModel(folder, "LlamaForCausalLM", Steps(torch_model))


def both(model: EngineLanguageModel, monkeypatch: pytest.MonkeyPatch, **asked: Any) -> tuple[Any, Any]:
    """What each loop says: all that a streamer hears, and what comes back."""
    found = []
    for lean in (True, False):
        with monkeypatch.context() as patch:
            if not lean:
                patch.setattr(EngineLanguageModel, "_sample", GenerationMixin._sample)
            torch.manual_seed(3)
            recorded, given = Heard(), {"max_new_tokens": 24, "pad_token_id": PAD, "do_sample": False, **asked}
            out = model.generate(
                torch.tensor(PROMPTS), streamer=recorded if given.pop("alone", False) else None, **given
            )
            tokens = out if isinstance(out, torch.Tensor) else out.sequences
            found.append((tokens.tolist(), recorded.message))
    return found[0], found[1]


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
def test_the_tokens_are_those_of_transformers_own_loop(
    asked: dict[str, Any], model: EngineLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = both(model, monkeypatch, **asked)
    assert ours == theirs
    assert len(ours[0][0]) > len(PROMPTS[0])


def test_rows_end_by_themselves_and_are_padded(model: EngineLanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = both(model, monkeypatch, **ASKED["until the text ends"])
    assert ours == theirs
    ends = [row[4:].index(PAD) if PAD in row[4:] else len(row) for row in ours[0]]
    assert len(set(ends)) > 1, "the rows were to end at different tokens"


def test_a_streamer_hears_each_token_and_the_end(model: EngineLanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.unit.test_decoding.PROMPTS", PROMPTS[:1])
    ours, theirs = both(model, monkeypatch, alone=True)
    assert ours == theirs
    assert len(ours[1]) == 24 + 2


def test_a_criterion_of_the_users_own_is_asked(model: EngineLanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    class AfterSeven(StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, scores: Any, **more: Any) -> torch.Tensor:
            return torch.full((len(input_ids),), input_ids.shape[1] >= 7)

    ours, theirs = both(model, monkeypatch, stopping_criteria=StoppingCriteriaList([AfterSeven()]))
    assert ours == theirs
    assert len(ours[0][0]) == 7


@pytest.mark.parametrize("asked", ["greedy", "sampled", "exactly so many"])
def test_what_asks_for_tokens_alone_goes_through_the_lean_loop(
    asked: str, model: EngineLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    real = decoding.decode
    monkeypatch.setattr("compress.engines.language.decode", lambda *args: seen.append(1) or real(*args))
    both(model, monkeypatch, **ASKED[asked])
    assert seen == [1]


def test_a_padded_prompt_is_refused(model: EngineLanguageModel) -> None:
    mask = torch.ones(3, 4, dtype=torch.long)
    mask[0, 0] = 0
    with pytest.raises(UserError, match="no padded prompts"):
        model.generate(torch.tensor(PROMPTS), attention_mask=mask, max_new_tokens=2, pad_token_id=PAD)

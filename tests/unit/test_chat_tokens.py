"""The assistant's tokens of a conversation, through templates as their makers publish them: what is counted decodes to the answers and
to what ends a turn, and nothing else is learnt or scored."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from compress.context import Context
from compress.data.items import Data, Item, Message
from compress.errors import DataError
from compress.events import silent
from compress.machine.devices import Opening
from compress.model.describing import describe
from compress.opening import open_language
from compress.opening.full_rows import full_rows
from compress.opening.rows import calibration_rows
from compress.publishing.chat_templates import turns_of
from compress.stages.distill.logits import DistillLogits, Rows, rows_of, target
from compress.tokenizers.chats import answers, on_one_day, question_of, reading_of
from compress.zoo import zoo_model
from evaluation.evidence import Evidence
from evaluation.metrics import kl, perplexity
from evaluation.metrics.kl import divergences
from evaluation.observe.collect import Viewpoint, collect
from tests.chat_templates import TEMPLATES, THINKING, chat_of, chatting
from tests.families import tiny_text
from tests.tiny import tiny_byte_tokenizer

WORDS = st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1).map(str.strip).filter(bool)
CLOSED = {"phi 3": "<eos>"}  # what a template puts behind a whole conversation
CHAT = ("Hi", "Hello!", "Bye", "So long.")


def item(*texts: str, system: str = "") -> Item:
    turns = [Message(("user", "assistant")[i % 2], text) for i, text in enumerate(texts)]
    return Item("c", "a chat", messages=(*([Message("system", system)] if system else []), *turns))


def tokenizer(template: str) -> Any:
    found: Any = tiny_byte_tokenizer()
    found.chat_template = template
    return found


@cache
def zoo_words() -> Any:
    return AutoTokenizer.from_pretrained(str(zoo_model("docs-llama")))


def counted(words: Any, chat: Item) -> str:
    found = reading_of(words, chat)
    assert found.counted is not None
    return str(words.decode([t for t, own in zip(found.tokens, found.counted, strict=True) if own]))


@settings(max_examples=15, deadline=None)
@given(turns=st.lists(WORDS, min_size=2, max_size=6).filter(lambda found: len(found) % 2 == 0))
@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "what is learnt"])
def test_what_counts_is_the_answers_and_what_ends_a_turn(name: str, turns: list[str]) -> None:
    chat = turns_of(chat_of(name))
    before, after = chat.assistant
    begun = before.removeprefix(chat.answer)  # what of an answer's beginning the generation prompt has not
    after = after.removesuffix("<bos>")  # with which the next turn of Llama 2 begins
    wanted = "".join(f"{begun}{text}{after}" for text in turns[1::2]) + CLOSED.get(name, "")
    words = tokenizer(TEMPLATES[name])
    whole = words.apply_chat_template([{"role": m.role, "content": m.content} for m in item(*turns).messages])
    assert reading_of(words, item(*turns)).tokens == whole["input_ids"]
    assert counted(words, item(*turns)) == wanted


@pytest.mark.parametrize("name", ["chatml", "llama 3", "gemma 2"])
def test_the_prompt_is_all_before_the_last_answer_and_what_begins_that(name: str) -> None:
    words = tokenizer(TEMPLATES[name])
    prompt, whole = question_of(words, item(*CHAT)), reading_of(words, item(*CHAT)).tokens
    assert whole[: len(prompt)] == prompt
    assert words.decode(whole[len(prompt) :]).startswith("So long.")


def test_a_template_that_marks_answers_is_taken_at_its_word() -> None:
    words = tokenizer(TEMPLATES["what is learnt"])
    assert counted(words, item(*CHAT)) == "A: Hello!\nA: So long.\n"
    words.chat_template = THINKING.replace("A: {% if", "A: {% generation %}{% if").replace(
        "{{ message.content }}\n{% else", "{{ message.content }}{% endgeneration %}\n{% else"
    )
    assert counted(words, item(*CHAT)) == "Hello!(thought) So long."


def test_a_template_that_writes_answers_otherwise_later_is_refused_for_long_conversations_alone() -> None:
    words = tokenizer(THINKING)
    assert counted(words, item("Hi", "Hello!")) == "(thought) Hello!\n"
    with pytest.raises(DataError, match=r"nobody knows which tokens are the assistant's(.|\n)*one answer each"):
        reading_of(words, item(*CHAT))


def test_a_template_that_marks_nothing_or_refuses_is_an_error() -> None:
    with pytest.raises(DataError, match="marks no token"):
        reading_of(tokenizer("{{ messages[0].content }}{% generation %}{% endgeneration %}"), item("Hi", "Hello!"))
    with pytest.raises(DataError, match=r"refuses a conversation \(system user assistant\): System role not supported"):
        reading_of(tokenizer(TEMPLATES["gemma 2"]), item("Hi", "Hello!", system="Be brief."))
    with pytest.raises(DataError, match="the tokenizer has no chat template"):
        reading_of(tiny_byte_tokenizer(), item("Hi", "Hello!"))


def test_a_token_on_both_sides_of_where_an_answer_begins_is_the_assistants() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {c: i for i, c in enumerate([*alphabet, "ĊĊ"])}  # two ends of a line are one token
    pairs = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ċ", "Ċ")]))
    pairs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pairs.decoder = decoders.ByteLevel()
    words: Any = PreTrainedTokenizerFast(tokenizer_object=pairs)
    words.chat_template = TEMPLATES["chatml"]
    assert counted(words, item("Hi", "\n\nyes")) == "\n\n\nyes<|im_end|>\n"
    assert counted(words, item("Hi", "yes")) == "yes<|im_end|>\n"


@settings(max_examples=60, deadline=None)
@given(
    turns=st.lists(st.text("ab \n.,:()", min_size=1, max_size=8), min_size=2, max_size=4).filter(
        lambda t: len(t) % 2 == 0
    )
)
@pytest.mark.parametrize("template", ["chatml", "mistral 0.1"])
def test_with_a_real_vocabulary_no_token_of_an_answer_ends_before_it_begins(template: str, turns: list[str]) -> None:
    """By where the tokenizer itself says that each token stands."""
    words = zoo_words()
    words.chat_template = TEMPLATES[template]
    chat = [{"role": one.role, "content": one.content} for one in item(*turns).messages]
    whole = words.apply_chat_template(chat, tokenize=False)
    ends = [end for _, end in words(whole, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]]
    render = lambda some, ahead: words.apply_chat_template(some, tokenize=False, add_generation_prompt=ahead)  # noqa: E731
    spans = answers(render, chat, "")
    wanted = [any(start < end <= stop for start, stop in spans) for end in ends]
    assert reading_of(words, item(*turns)).counted == wanted


def test_the_day_is_the_same_on_any_day() -> None:
    day = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}, {{ strftime_now('%Y-%m-%d') }}{% endif %}"
    words = tokenizer(day + TEMPLATES["chatml"])
    assert words.decode(reading_of(words, item("Hi", "Hello!")).tokens).startswith(
        "26 Jul 2024, 2024-07-26<|im_start|>"
    )
    for template in TEMPLATES.values():
        assert on_one_day(template) == template


def test_answers_are_found_by_the_prefix_law() -> None:
    chat = chat_of("mistral 0.3")  # it joins a system message to the last question, wherever that is
    given = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "A"},
    ]
    render = lambda some, ahead: chat.render(some, ahead=ahead)  # noqa: E731
    assert [chat.render(given[1:], ahead=False)[a:b] for a, b in answers(render, given[1:])] == [" A<eos>"]
    with pytest.raises(DataError, match="place:1"):
        answers(render, given, "<eos>", "place:1")


# What is made of it


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("chats")
    made = [tiny_text(folder / f"{seed}", "qwen2", seed=seed, max_position_embeddings=256) for seed in (0, 1)]
    return chatting(made[0]), chatting(made[1])


ITEMS = (item("Hi", "Hello!"), Item("t", "the array of values"), item(*CHAT), item("Hi" * 200, "Too late."))


def test_scores_are_of_the_assistants_tokens_alone(models: tuple[Path, Path]) -> None:
    one, other = (open_language(describe(folder), Opening("float32")) for folder in models)
    scores, nats = one.token_logprobs(ITEMS, 2), divergences(one, other, ITEMS)
    for at, read in enumerate(ITEMS):
        tokens = one.encode(read)
        assert len(tokens) <= 256
        flags = one.read(read).counted or [True] * len(tokens)
        wanted, apart = [], 0.0
        p, q = (side.logits([tokens])[0].float().log_softmax(-1) for side in (one, other))
        for place in range(1, len(tokens)):
            if flags[place]:
                wanted.append(float(p[place - 1, tokens[place]]))
                apart += float((p[place - 1].exp() * (p[place - 1] - q[place - 1])).sum())
        np.testing.assert_allclose(scores[at], wanted, atol=1e-4)
        assert nats[at] == pytest.approx((apart, len(wanted)), rel=1e-4)
    assert not len(scores[3])  # cut before its answer


def test_n_stays_conversations(models: tuple[Path, Path]) -> None:
    task = open_language(describe(models[0]), Opening("float32"))
    scores = tuple(task.token_logprobs(ITEMS, 2))
    items = tuple(replace(one, id=str(at)) for at, one in enumerate(ITEMS))
    seen = Evidence(task.artifact, items, token_logprobs=scores, bytes_read=(6, 19, 14, 0))
    for measure, params in ((perplexity.measure, perplexity.Perplexity()), (kl.measure, kl.Kl())):
        found = measure.measure(seen, params)
        assert found.unit_ids == ("0", "1", "2")
        assert "3 of 4 documents count" in found.left_out


def test_evidence_is_of_answers_and_of_what_follows_the_last_question(
    models: tuple[Path, Path], tmp_path: Path
) -> None:
    items = tuple(replace(one, id=str(at)) for at, one in enumerate(ITEMS))
    artifact, kinds = replace(describe(models[0]), digest="chats"), {"documents": (), "continuations": (4, 4, 8)}
    found = collect(
        Viewpoint(artifact, Opening("float32"), {}, items, "d", 0, 2, kinds), (tmp_path,), "baseline", silent
    )
    one, two = "Hello!<|im_end|>\n", "So long.<|im_end|>\n"
    assert found.bytes_read == (len(one), len(ITEMS[1].text), len(one + two), 0)
    assert [len(scores) for scores in found.token_logprobs] == [len(one), len(ITEMS[1].text), len(one + two), 0]
    asked = [continuation.prompt for continuation in found.continuations]
    begins = "<|im_start|>assistant\n"
    assert asked[0] == f"<|im_start|>user\nHi<|im_end|>\n{begins}"
    assert asked[1] == "the"  # behind the token that begins a document
    assert asked[2].endswith(f"user\nBye<|im_end|>\n{begins}")
    assert len(asked[3]) == 256 - 8
    assert asked[3].endswith(f"Hi<|im_end|>\n{begins}")
    assert found.counted == {"tokens": "all of documents, and the assistant's"}


def data(*items: Item) -> Data:
    return Data("chats", "texts", "digest", len(items), items.__getitem__)


def test_all_tokens_count_for_calibration(models: tuple[Path, Path], tmp_path: Path) -> None:
    artifact = describe(models[0])
    task, context = open_language(artifact), Context(tmp_path, tmp_path, data={"calibration": data(*ITEMS)})
    whole = [task.encode(one) for one in ITEMS]
    assert calibration_rows(artifact, 9, 1000, context) == whole
    assert full_rows(artifact, 1, 100, context) == [[token for row in whole for token in row][:100]]


def test_the_loss_is_of_the_assistants_tokens_alone(models: tuple[Path, Path], tmp_path: Path) -> None:
    """Against a plain loop over the rows that are drawn."""
    task, teacher = (open_language(describe(folder), Opening("float32")) for folder in models)
    context = Context(
        tmp_path, tmp_path, data={"train": data(*[item(f"What is {n}?", f"It is {n}.") for n in range(9)])}
    )
    params = DistillLogits(tokens=40, batch=3, hidden_weight=0.5, data_weight=1.0)
    rows = rows_of(task, params, context)
    assert rows.counted is not None
    _, loss_at = target(task, teacher, rows, params, context)
    drawn = np.random.default_rng([0, 7]).integers(len(rows.tokens), size=3)
    kls, texts = [], []
    for row in drawn:
        tokens = rows.tokens[row]
        p, q = (side.logits([tokens.tolist()])[0].float().log_softmax(-1) for side in (teacher, task))
        for place in range(39):
            if rows.counted[row, place]:
                kls.append(float((p[place].exp() * (p[place] - q[place])).sum()))
                texts.append(-float(q[place, tokens[place + 1]]))
    losses = {name: loss.detach() for name, loss in loss_at(7).items()}
    assert float(losses["kl"]) == pytest.approx(np.mean(kls), rel=1e-4)
    assert float(losses["text"]) == pytest.approx(np.mean(texts), rel=1e-4)
    assert float(losses["hidden"]) > 0
    everything = target(task, teacher, Rows(rows.tokens), params, context)[1](7)
    assert all(float(everything[name].detach()) != float(losses[name]) for name in losses)


def test_rows_keep_what_is_foretold_and_leave_out_those_without(models: tuple[Path, Path], tmp_path: Path) -> None:
    task = open_language(describe(models[0]))
    chat = item("Hi" * 40, "Hello!")
    context = Context(tmp_path, tmp_path, data={"train": data(chat)})
    reading = task.read(chat)
    assert reading.counted is not None
    rows = rows_of(task, DistillLogits(tokens=16), context)
    assert rows.counted is not None
    assert len(rows.tokens) < len(reading.tokens) // 16
    learnt = [rows.tokens[r, c + 1].item() for r, c in rows.counted.nonzero().tolist()]
    assert task.tokenizer.decode(learnt) in "Hello!<|im_end|>\n"
    assert rows.share.endswith("of them the assistant's")
    with pytest.raises(DataError, match=r"none of 1 rows of 100 tokens has a token of the assistant's"):
        rows_of(task, DistillLogits(tokens=100), context)
    beyond = item("Hi" * 4 * task.max_tokens, "Hello!")
    told: list[str] = []
    context = replace(context, data={"train": data(beyond)}, emit=lambda event: told.append(event.message))
    with pytest.raises(DataError, match=f"give shorter conversations: the model reads {task.max_tokens} tokens"):
        rows_of(task, DistillLogits(tokens=task.max_tokens + 1), context)
    assert list(filter(None, told)) == [
        f"rows of {task.max_tokens} tokens, the most that the model reads, where {task.max_tokens + 1} were asked for"
    ]
    plain = rows_of(
        task, DistillLogits(tokens=16), Context(tmp_path, tmp_path, data={"train": data(Item("t", "a" * 40))})
    )
    assert plain.counted is None
    assert plain.share == ""
    assert torch.equal(plain.tokens.flatten(), torch.tensor(task.encode("a" * 40)[:32]))

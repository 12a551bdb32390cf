"""GGUF files of tiny real models: each tensor against torch, read back by transformers, and run by llama.cpp where it is installed."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import compress
from compress.artifact import Artifact
from compress.catalogue import find_engine, find_stage
from compress.engines import TOLERANCE
from compress.engines.gguf import MODEL
from compress.engines.gguf.build import named_tensors, neighbours_turn, write_gguf
from compress.engines.gguf.reading import read_model
from compress.engines.gguf.tokenizer import piece_scores
from compress.engines.language import Past
from compress.errors import ModelError, RecipeError, StageFailed, UserError
from compress.machine.deps import installed
from compress.machine.devices import Opening
from compress.machine.llama_cpp import _SPLITS, KNOWN_SPLITS, Vocabulary, refuse_config, vocabulary
from compress.model.describing import describe
from compress.opening import open_task
from compress.opening.text_generation import TextGeneration
from tests.families import piecewise, tiny_text
from tests.stages import apply
from tests.tiny import tiny_llama

_OWN_SCALE = {"query_pre_attn_scalar": 8}
FAMILIES: dict[str, dict[str, Any]] = {  # and what llama.cpp asks of the config
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "gemma2": {"tie_word_embeddings": True, **_OWN_SCALE},
    "gemma3": {"layer_types": ["sliding_attention", "full_attention"], **_OWN_SCALE},
    "gpt2": {},
}
PRECISIONS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int8_weights": "Q8_0", "int4_weights": "Q4_0"}
PROMPTS = [[5, 6, 7], [8, 9], [10, 11, 12]]


@pytest.fixture(scope="module", params=FAMILIES)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder, family = tmp_path_factory.mktemp(request.param), request.param
    return describe(tiny_llama(folder) if family == "llama" else tiny_text(folder, family, **FAMILIES[family]))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return describe(tiny_llama(tmp_path_factory.mktemp("llama")))


@pytest.fixture(scope="module")
def built(llama: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return apply("build.gguf", llama, tmp_path_factory.mktemp("built") / "out", precision="float32")[0]


def plain(artifact: Artifact) -> TextGeneration:
    found = open_task(artifact, Opening("float32"))
    assert isinstance(found, TextGeneration)
    return found


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_tensor_is_in_the_file_as_near_as_its_type_allows(
    source: Artifact, tmp_path: Path, precision: str
) -> None:
    task = plain(source)
    held = write_gguf(task.model, task.tokenizer, tmp_path / MODEL, precision)
    stored = {t.name: t for t in GGUFReader(tmp_path / MODEL).tensors}
    expected = dict(named_tensors(task.model))
    assert stored.keys() == expected.keys()
    assert held[PRECISIONS[precision]] > 5
    for name, tensor in expected.items():
        found = dequantize(stored[name].data, stored[name].tensor_type).reshape(tensor.shape)
        wanted = tensor.detach().float().numpy()
        error = np.sqrt(np.square(found - wanted).mean() / max(np.square(wanted).mean(), 1e-30))
        assert error <= {"F32": 0, "F16": 1e-3, "BF16": 5e-3, "Q8_0": 1e-2, "Q4_0": 0.12}[stored[name].tensor_type.name]


def test_transformers_reads_the_file_as_the_same_model(source: Artifact, tmp_path: Path) -> None:
    made, notes = apply("build.gguf", source, tmp_path / "out", precision="float32")
    assert 0 <= notes[0].facts["relative"] < TOLERANCE["float32"]
    assert "read back by " in notes[-1].message
    tokens = torch.tensor([PROMPTS[0]])
    with torch.no_grad():
        ours = read_model(made.path, source.components["model"].kind)(tokens).logits
        theirs = plain(source).model(tokens).logits
    assert float((ours - theirs).abs().max()) < 1e-4
    assert float(theirs.std()) > 0.01


def test_the_file_says_how_the_model_is_run_and_how_text_is_cut(built: Artifact) -> None:
    fields = GGUFReader(built.path / MODEL).fields
    reported = {name: field.contents() for name, field in fields.items() if not name.startswith("GGUF")}
    config = built.config("model")
    assert reported["general.architecture"] == "llama"
    assert reported["llama.block_count"] == config["num_hidden_layers"]
    assert reported["llama.attention.head_count_kv"] == config["num_key_value_heads"]
    assert reported["tokenizer.ggml.model"] == "gpt2"
    assert reported["tokenizer.ggml.pre"] in KNOWN_SPLITS
    vocabulary = json.loads((built.path / "tokenizer.json").read_text())["model"]["vocab"]
    assert {token: reported["tokenizer.ggml.tokens"][number] for token, number in vocabulary.items()} == {
        token: token for token in vocabulary
    }


def test_equal_models_give_equal_bytes(llama: Artifact, tmp_path: Path) -> None:
    task = plain(llama)
    files = [tmp_path / name for name in ("a.gguf", "b.gguf")]
    for file in files:
        write_gguf(task.model, task.tokenizer, file, "int4_weights")
    assert files[0].read_bytes() == files[1].read_bytes()


def test_rows_that_turn_together_stand_side_by_side() -> None:
    rows = torch.arange(8)[:, None]
    assert neighbours_turn(rows, 2).flatten().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"model_type": "opt"},
            "pare writes GGUF files of llama, mistral, qwen2, qwen3, gemma2, gemma3_text, gpt2, and this model is of opt",
        ),
        (
            {"model_type": "llama", "hidden_act": "relu"},
            "computes llama with hidden_act silu, and this model's is relu",
        ),
        ({"model_type": "mistral", "sliding_window": 8, "max_position_embeddings": 64}, "sees 8 of 64 tokens"),
        ({"model_type": "qwen2", "rope_scaling": {"rope_type": "yarn"}}, "scaled as yarn"),
        ({"model_type": "llama", "rope_scaling": {"rope_type": "llama3"}}, ""),
        ({"model_type": "gpt2"}, ""),
        ({"model_type": "gemma2"}, ""),
        ({"model_type": "gemma2", "tie_word_embeddings": False}, "tie_word_embeddings True, and this model's is False"),
        ({"model_type": "gemma2", "head_dim": 128}, "scales its attention by 128, and this model has query_pre_attn_"),
        (
            {
                "model_type": "gemma3_text",
                "num_hidden_layers": 62,
                "hidden_size": 5376,
                "num_attention_heads": 32,
                "head_dim": 128,
                "query_pre_attn_scalar": 168,
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            },
            "",
        ),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_refused_from_the_config(config: dict[str, Any], message: str) -> None:
    found = refuse_config(config)
    assert (message in found) if message else found == ""


def test_a_tokenizer_that_llama_cpp_cannot_cut_as_is_refused(llama: Artifact, tmp_path: Path) -> None:
    import shutil

    model = shutil.copytree(llama.path, tmp_path / "model")
    spelt = json.loads((model / "tokenizer.json").read_text())
    assert vocabulary(spelt) == Vocabulary("gpt2", "gpt-2")
    spelt["pre_tokenizer"] = {"type": "Whitespace"}
    (model / "tokenizer.json").write_text(json.dumps(spelt))
    stage = find_stage("build.gguf")
    assert "does not know how its tokenizer cuts text" in stage.refuse(describe(model), stage.params())
    task = plain(llama)
    task.tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(ModelError, match="cuts text"):
        write_gguf(task.model, task.tokenizer, tmp_path / MODEL, "float32")


def test_a_file_that_differs_from_torch_names_its_layer(
    llama: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(find_engine("gguf").precisions, "int4_weights", 1e-6)
    with pytest.raises(StageFailed, match=r"first in its layer `model\.embed_tokens`; at most 1e-06"):
        apply("build.gguf", llama, tmp_path / "out", precision="int4_weights")


def rotated(folder: Path, **rope: Any) -> Artifact:
    """A Llama with biases and scaled rotary positions."""
    tiny_llama(folder)
    config = LlamaConfig.from_pretrained(folder)
    config.attention_bias = config.mlp_bias = True
    config.rope_parameters = {"rope_theta": 10000.0, **rope}
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(weight)
    model.save_pretrained(folder)
    return describe(folder)


LLAMA_3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


@pytest.mark.parametrize("rope", [LLAMA_3, {"rope_type": "linear", "factor": 4.0}], ids=["llama3", "linear"])
def test_biases_and_scaled_positions_are_kept(rope: dict[str, Any], tmp_path: Path) -> None:
    source = rotated(tmp_path / "model", **rope)
    made, notes = apply("build.gguf", source, tmp_path / "out", precision="float32")
    assert 0 <= notes[0].facts["relative"] < 1e-4
    reader = GGUFReader(made.path / MODEL)
    assert {t.name for t in reader.tensors} >= {"blk.0.attn_q.bias", "blk.0.attn_output.bias", "blk.0.ffn_up.bias"}
    factors = [t.data for t in reader.tensors if t.name == "rope_freqs.weight"]
    turned = plain(source).model.model.rotary_emb.inv_freq.numpy()
    unscaled = 10000.0 ** -(np.arange(0, 8, 2) / 8)
    if rope is LLAMA_3:
        np.testing.assert_allclose(unscaled / factors[0], turned, rtol=1e-6)
    else:
        assert not factors
        np.testing.assert_allclose(unscaled / reader.fields["llama.rope.scaling.factor"].contents(), turned, rtol=1e-6)


TEXT = "It's 1234 O'CLOCK,  don't\n\n  panic!! naïve façade 数学 x=10^-3\t(end)\r\n"


def bpe(split: str) -> Any:
    """A byte-level BPE that cuts text as llama.cpp's pre-tokenizer of this name."""
    patterns = {name: parts for parts, name in _SPLITS.items()}[split]
    digits = len(patterns) > 1
    cuts: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    own = [] if split in ("gpt-2", "smollm") else [pre_tokenizers.Split(Regex(patterns[-1]), "isolated")]
    spelling = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not own)
    made = Tokenizer(models.BPE(ignore_merges=split == "llama-bpe"))
    made.pre_tokenizer = pre_tokenizers.Sequence([*cuts, *own, spelling])
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=["<bos>", "<eos>"])
    made.train_from_iterator([TEXT * 4, "the panic at the clock, 1234 times 10"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<bos>", eos_token="<eos>")


def one_layer(rows: int) -> LlamaForCausalLM:
    config = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=rows, **config))


@pytest.mark.parametrize("split", KNOWN_SPLITS)
def test_the_file_cuts_text_as_the_tokenizer_does(split: str, tmp_path: Path) -> None:
    tokenizer = bpe(split)
    model = one_layer(len(tokenizer) + 3)
    assert vocabulary(json.loads(tokenizer.backend_tokenizer.to_str())) == Vocabulary("gpt2", split)
    write_gguf(model, tokenizer, tmp_path / MODEL, "float32")
    wanted = tokenizer(TEXT)["input_ids"]
    assert len(wanted) < len(TEXT.encode())
    if split != "smollm":  # transformers' reader takes it for plain GPT-2, whose numbers stay together
        read = AutoTokenizer.from_pretrained(str(tmp_path), gguf_file=MODEL)
        assert read(TEXT, add_special_tokens=False)["input_ids"] == wanted
        assert read.decode(wanted, clean_up_tokenization_spaces=False) == TEXT
    if installed("llama_cpp"):
        import llama_cpp

        opened = llama_cpp.Llama(str(tmp_path / MODEL), vocab_only=True, verbose=False)
        assert opened.tokenize(TEXT.encode(), add_bos=False) == wanted
        assert opened.n_vocab() == len(tokenizer) + 3
        opened.close()


@pytest.mark.parametrize(("manner", "space_first"), [("gemma", False), ("llama", True), ("metaspace", True)])
def test_the_file_joins_pieces_as_the_tokenizer_does(manner: str, space_first: bool, tmp_path: Path) -> None:
    tokenizer = piecewise(manner, [TEXT * 4, "the panic at the clock, 1234 times 10"])
    assert vocabulary(json.loads(tokenizer.backend_tokenizer.to_str())) == Vocabulary("llama", "default", space_first)
    model = one_layer(len(tokenizer) + 3)
    write_gguf(model, tokenizer, tmp_path / MODEL, "float32")
    wanted = tokenizer(TEXT)["input_ids"]
    assert len(wanted) < len(TEXT)
    assert any(tokenizer.convert_ids_to_tokens(wanted)[i].startswith("<0x") for i in range(len(wanted)))
    if space_first:  # transformers' reader writes one whatever the file says
        read = AutoTokenizer.from_pretrained(str(tmp_path), gguf_file=MODEL)
        assert read(TEXT, add_special_tokens=False)["input_ids"] == wanted
    if installed("llama_cpp"):
        import llama_cpp

        opened = llama_cpp.Llama(str(tmp_path / MODEL), vocab_only=True, verbose=False)
        assert opened.tokenize(TEXT.encode(), add_bos=False) == wanted
        assert opened.tokenize(b"<bos>the<eos>", add_bos=False, special=True)[0] == tokenizer.bos_token_id
        opened.close()


def test_pieces_that_llama_cpp_would_join_otherwise_are_refused(tmp_path: Path) -> None:
    halves = [("a", "b"), ("ab", "c"), ("b", "c"), ("a", "bc")]
    pieces = {"a", "b", "c", "ab", "bc", "abc"}
    assert piece_scores(pieces, halves[:1] + halves[2:3]) is None, "abc is no merge, and llama.cpp would join it"
    assert piece_scores(pieces, halves) is None, "bc comes between the two ways to abc"
    together = [halves[0], halves[2], halves[1], halves[3]]
    assert piece_scores(pieces, together) == {"ab": 0.0, "bc": -1.0, "abc": -2.0}
    assert piece_scores(pieces - {"bc", "abc"}, halves[:1]) == {"ab": 0.0}
    tokenizer = piecewise("gemma", [TEXT])
    spelt = json.loads(tokenizer.backend_tokenizer.to_str())
    spelt["model"]["merges"] = spelt["model"]["merges"][::2]
    mixed = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(spelt)))
    with pytest.raises(ModelError, match="joins pieces in an order"):
        write_gguf(one_layer(len(mixed)), mixed, tmp_path / MODEL, "float32")
    del spelt["model"]["vocab"]["<0x0A>"]
    assert vocabulary(spelt) is None, "llama.cpp ends the process at a byte that has no token"


def test_without_llama_cpp_a_plan_measures_nothing_but_the_size(
    llama: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compress.stages.build.gguf.installed", lambda name: False)
    recipe = tmp_path / "recipe.yaml"
    text = f"schema: 1\nname: x\nmodel: {llama.path}\nstages:\n  - build.gguf: {{}}\n"
    recipe.write_text(text + "evaluate: {metrics: [throughput, size]}\n")
    with pytest.raises(RecipeError, match=r"throughput needs the model to run, and llama-cpp-python is not installed"):
        compress.check(recipe, cache=tmp_path / "cache")
    recipe.write_text(text + "evaluate: {metrics: [size]}\n")
    compress.check(recipe, cache=tmp_path / "cache")


def test_a_file_cut_short_is_one_clear_error(built: Artifact, tmp_path: Path) -> None:
    import shutil

    broken = shutil.copytree(built.path, tmp_path / "broken")
    body = (broken / MODEL).read_bytes()
    (broken / MODEL).write_bytes(body[: len(body) // 2])
    with pytest.raises(ModelError, match=str(broken)):
        read_model(broken, "LlamaForCausalLM")


needs_llama_cpp = pytest.mark.skipif(not installed("llama_cpp"), reason="llama-cpp-python compiles for ten minutes")


@needs_llama_cpp
def test_llama_cpp_scores_and_writes_as_torch_does(source: Artifact, tmp_path: Path) -> None:
    ours, theirs = plain(apply("build.gguf", source, tmp_path / "out", precision="float32")[0]), plain(source)
    for a, b in zip(ours.token_logprobs(["hello", "abc"], 2), theirs.token_logprobs(["hello", "abc"], 2), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3)
    assert ours.generate(PROMPTS, 20) == theirs.generate(PROMPTS, 20)


@needs_llama_cpp
def test_its_own_loop_writes_what_transformers_loop_writes(built: Artifact) -> None:
    model = plain(built).model
    call = {"max_new_tokens": 12, "min_new_tokens": 12, "pad_token_id": 1}
    tokens = torch.tensor([PROMPTS[0]])

    class Streamer:
        def put(self, value: torch.Tensor) -> None: ...

        def end(self) -> None: ...

    for options in (
        {"do_sample": False},
        {"do_sample": False, "repetition_penalty": 1.3},
        {"do_sample": True, "temperature": 0.7, "top_k": 5},
    ):
        torch.manual_seed(0)
        quick = model.generate(tokens, **call, **options).tolist()
        torch.manual_seed(0)
        assert model.generate(tokens, streamer=Streamer(), **call, **options).tolist() == quick


@needs_llama_cpp
def test_each_row_ends_where_torch_ends_it(llama: Artifact, built: Artifact) -> None:
    tokens = torch.tensor([[5, 6, 7], [10, 11, 12], [20, 21, 22], [30, 31, 32]])
    free = plain(llama).generate(tokens.tolist(), 24)
    ends = [free[0][3], free[1][8]]
    call = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 1, "eos_token_id": ends}
    for options in ({}, {"min_new_tokens": 6}):
        ours, theirs = (
            plain(a).model.generate(tokens, attention_mask=torch.ones_like(tokens), **call, **options)
            for a in (built, llama)
        )
        assert ours.tolist() == theirs.tolist()
        assert (ours[:, 3:] == 1).any()  # some row waits for the others


@needs_llama_cpp
def test_a_text_outgrows_its_room(llama: Artifact, built: Artifact) -> None:
    """What llama.cpp remembers moves to a larger context."""
    ours, theirs = plain(built).model, plain(llama).model
    tokens = torch.arange(300)[None] % 250 + 2
    with torch.no_grad():
        first = ours(tokens[:, :200])
        rest = ours(tokens[:, 200:], past_key_values=first.past_key_values)
        whole = theirs(tokens, use_cache=False).logits
    np.testing.assert_allclose(torch.cat([first.logits, rest.logits], 1).numpy(), whole.numpy(), atol=1e-3)
    fresh = plain(built)
    assert fresh.generate([tokens[0, :240].tolist()], 40) == plain(llama).generate([tokens[0, :240].tolist()], 40)
    assert fresh.model.decoder._threads.context.room == 512


@needs_llama_cpp
def test_what_llama_cpp_cannot_hold_is_one_clear_error(tmp_path: Path, built: Artifact) -> None:
    import shutil

    made, _ = apply("build.gguf", describe(tiny_text(tmp_path / "gpt2", "gpt2")), tmp_path / "out")
    with pytest.raises(UserError, match="the model has 64 positions, and this text 300 tokens"):
        plain(made).model(torch.ones(1, 300, dtype=torch.long))
    with pytest.raises(UserError, match="the model has 64 positions, and this text 65 tokens"):
        plain(made).generate(PROMPTS[:1], 70)
    for length, more in ((3, 62), (64, 1)):  # the last one is not read any more
        assert len(plain(made).generate([list(range(length))], more)[0]) == more
    model = plain(built).model
    with pytest.raises(UserError, match="keeps 256 texts at a time, and these are 257"):
        model(torch.ones(257, 2, dtype=torch.long))
    with pytest.raises(UserError, match="tokens go from 0 to 257, and these from 999 to 999"):
        model(torch.full((1, 2), 999))
    with pytest.raises(UserError, match="this cache is another engine's"):
        model(torch.ones(1, 2, dtype=torch.long), past_key_values=Past())
    old = model(torch.ones(1, 2, dtype=torch.long)).past_key_values
    model(torch.ones(1, 2, dtype=torch.long))
    with pytest.raises(UserError, match="another began in this thread"):
        model(torch.ones(1, 1, dtype=torch.long), past_key_values=old)
    broken = shutil.copytree(built.path, tmp_path / "broken")
    body = (broken / MODEL).read_bytes()
    (broken / MODEL).write_bytes(body[: len(body) // 2])
    with pytest.raises(ModelError, match=r"does not read: .*(corrupted|incomplete|not within)") as caught:
        open_task(describe(broken))
    assert caught.value.problems[0].place.endswith(MODEL)


@needs_llama_cpp
def test_a_context_has_room_for_the_texts_at_hand_and_not_for_all_before(built: Artifact) -> None:
    model = plain(built).model
    threads = model.decoder._threads
    model(torch.ones(16, 4, dtype=torch.long))
    assert threads.context.rows == 16
    few = threads.context
    model(torch.ones(2, 4, dtype=torch.long))
    assert threads.context is few  # as long as it is large enough
    model(torch.ones(1, threads.context.room + 1, dtype=torch.long))
    assert (threads.context.rows, threads.context.room > few.room) == (1, True)


@needs_llama_cpp
def test_memory_is_freed_with_the_model(built: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    import gc

    import llama_cpp

    freed: list[str] = []
    for name in ("llama_free", "llama_model_free"):
        own = getattr(llama_cpp, name)
        monkeypatch.setattr(llama_cpp, name, lambda p, name=name, own=own: (freed.append(name), own(p)))
    task = plain(built)
    task.generate(PROMPTS[:1], 4)
    assert not freed
    del task
    gc.collect()
    assert freed == ["llama_free", "llama_model_free"]


@needs_llama_cpp
def test_llama_cpp_refuses_beams_and_serves_two_threads(built: Artifact) -> None:
    task = plain(built)
    with pytest.raises(UserError, match="no beams"):
        task.model.generate(torch.tensor([PROMPTS[0]]), num_beams=2, max_new_tokens=4, do_sample=False, pad_token_id=1)
    alone = [task.generate([p], 20) for p in PROMPTS]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda p: task.generate([p], 20), PROMPTS)) == alone

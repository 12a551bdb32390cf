"""Which decoders' blocks may go one by one, as the source of their class tells: the installed ones, and one with each thing that is not
plain."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import run

import pytest

from compress.errors import UserError
from compress.machine import block_sources, library_classes
from compress.machine.block_sources import Blocks, blocks_of
from compress.model.families import FAMILIES, derived_fields, family, feature_stacks, stacks_of

PLAIN = """
class OddAttention(nn.Module):
    def __init__(self, config, layer_idx=None):
        super().__init__()
        self.layer_idx = layer_idx
        if layer_idx is None:
            logger.warning(f"{layer_idx}")
        self.window = config.layer_types[layer_idx]

    def forward(self, x, past_key_values):
        return past_key_values.update(x, self.layer_idx)


class OddBlock(nn.Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        self.attention = OddAttention(config, layer_idx=layer_idx)


class OddModel(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size)
        self.h = nn.ModuleList([OddBlock(config, i) for i in range(config.num_hidden_layers)])
        self.norm = OddNorm(config.hidden_size)

    def _init_weights(self, module):
        module.weight.data.normal_(std=1 / self.config.num_hidden_layers)

    def forward(self, input_ids, past_key_values=None):
        hidden_states = self.wte(input_ids)
        past = past_key_values or [None] * len(self.h)
        seen = ()
        for i, block in enumerate(self.h[: self.config.num_hidden_layers]):
            mask = masks[self.config.layer_types[i]]
            seen = seen + (hidden_states,)
            hidden_states = block(hidden_states, mask, past_key_values=past_key_values)
        return self.norm(hidden_states), seen


class OddForCausalLM(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.transformer = OddModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
"""
CONFIG = """
class OddConfig(PreTrainedConfig):
    model_type = "odd"
    attribute_map = {"num_hidden_layers": "n_layer"}
    n_layer: int = 2
    layer_types: list[str] | None = None
"""
CALL = "hidden_states = block(hidden_states, mask, past_key_values=past_key_values)"
LOOP = "for i, block in enumerate(self.h[: self.config.num_hidden_layers]):"
LIST = "nn.ModuleList([OddBlock(config, i) for i in range(config.num_hidden_layers)])"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A transformers of one model type."""
    (tmp_path / "models/odd").mkdir(parents=True)
    (tmp_path / "models/odd/configuration_odd.py").write_text(CONFIG)
    monkeypatch.setattr(library_classes, "_home", lambda library: tmp_path)
    caches = (blocks_of, library_classes.model_sources, library_classes._text)
    for one in caches:
        one.cache_clear()
    yield tmp_path
    for one in caches:
        one.cache_clear()


def told(home: Path, *changes: tuple[str, str]) -> Blocks | str:
    text = PLAIN
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    (home / "models/odd/modeling_odd.py").write_text(text)
    return blocks_of("OddForCausalLM", "odd")


def test_a_chain_of_blocks_is_found_with_its_fields(home: Path) -> None:
    assert told(home) == Blocks("transformer.h", ("n_layer", "num_hidden_layers"), ("layer_types",))


@pytest.mark.parametrize(
    "changes",
    [
        ((CALL, f"outputs = {CALL[16:]}\n            hidden_states = outputs[0]"),),
        ((CALL, f"hidden_states, _ = {CALL[16:]}"),),
        ((CALL, "hidden_states = block(hidden_states=hidden_states, mask=mask)"),),
        ((LOOP, "for block in self.h:"), ("self.config.layer_types[i]", "0")),
    ],
)
def test_it_may_be_written_otherwise(home: Path, changes: tuple[tuple[str, str], ...]) -> None:
    assert isinstance(told(home, *changes), Blocks)


FIRST = "self.norm = OddNorm(config.hidden_size)"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (("self.h[: self.config.num_hidden_layers]", "self.h[1:]"), "runs some of its blocks alone"),
        ((CALL, f"hidden_states = hidden_states + mask\n            {CALL}"), "gives its blocks something else than"),
        ((FIRST, f"self.scale = 1 / math.sqrt(config.num_hidden_layers)\n        {FIRST}"), "reckons with how many"),
        ((FIRST, f"self.scale = pow(config.num_hidden_layers, -0.5)\n        {FIRST}"), "reckons with how many"),
    ],
)
def test_what_would_change_the_blocks_that_stay_is_refused(home: Path, change: tuple[str, str], why: str) -> None:
    found = told(home, change)
    assert isinstance(found, str)
    assert why in found


NUMBER, MORE = "has blocks that reckon with their own number", "hands more from block to block than the stream"


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("self.window = config.layer_types[layer_idx]", "self.window = layer_idx % 2", NUMBER),
        ("self.window = config.layer_types[layer_idx]", "self.window = layer_idx in config.dense", NUMBER),
        ("self.window = config.layer_types[layer_idx]", "self.window = period(layer_idx)", NUMBER),
        ("self.window = config.layer_types[layer_idx]", "self.window = SLOPES[layer_idx]", NUMBER),
        ("self.window = config.layer_types[layer_idx]", "self.window = config.every[layer_idx]", "works out every from"),
        ("mask = masks[self.config.layer_types[i]]", "mask = masks[i]", NUMBER),
        ("mask = masks[self.config.layer_types[i]]", "mask = masks[i % 2]", NUMBER),
        ("self.window = config.layer_types[layer_idx]", "self.window = 2 * config.num_hidden_layers", "reckons with how many"),
        ("self.window = config.layer_types[layer_idx]", "self.linear = 'linear_attention'", "another kind (linear_attention)"),
        (LIST, "nn.ModuleList(made)", "makes its blocks one by one"),
        (LIST, LIST.replace("config, i)", "config, i == 0)"), "makes its blocks by their numbers"),
        (LIST, LIST.replace("OddBlock(config, i)", "OddBlock(config, i) if i else OddFirst(config)"), "one by one"),
        ("self.norm = OddNorm", f"self.more = {LIST}\n        self.norm = OddNorm", "has 2 lists of modules"),
        (f"self.h = {LIST}", "self.h = OddStack(config)", "has no lists of modules"),
        (CALL, f"{CALL}\n            hidden_states = self.shared(hidden_states)", "does more with what a block gives"),
        (CALL, f"{CALL}\n            extra = self.shared(i)", "does more between its blocks than run them (self.shared)"),
        (CALL, f"bias = {CALL[16:]}\n            hidden_states = bias[1]", "does more with what a block gives"),
        (CALL, "hidden_states, bias = block(hidden_states, bias)", MORE),
        (CALL, "hidden_states = block(hidden_states, seen)", MORE),
        (CALL, "hidden_states = block(embedded, mask)", "does more with what a block gives"),
        (CALL, "hidden_states = block(hidden_states + embedded, mask)", "gives its blocks something else"),
        (CALL, f"{CALL}\n            {CALL}", "does not call each of its blocks once"),
        (LOOP, "for i, block in zip(self.more, self.h):", "runs something beside each"),
        (LOOP, "for i, block in enumerate(self.other):", "does not run its blocks in one loop"),
        ("return self.norm(hidden_states), seen", "return self.norm(hidden_states), self.h[0]", "in one loop"),
        ("return self.norm(hidden_states), seen", "return self.mix(hidden_states, seen)", "listens to single blocks"),
        ("class OddForCausalLM", "class EvenForCausalLM", "is no class of the transformers installed here"),
    ],
)  # fmt: skip
def test_what_is_not_plain_is_said(home: Path, before: str, after: str, words: str) -> None:
    found = told(home, (before, after))
    assert isinstance(found, str)
    assert words in found


def test_a_count_that_is_another_parts_is_no_count_of_blocks(home: Path) -> None:
    assert told(home, ("range(config.num_hidden_layers)", "range(config.n_decoder)")) == (
        "counts its blocks by a field that is not its own (n_decoder)"
    )


# ---------------------------------------------------------------- those installed

KNOWN = {
    "BloomForCausalLM": ("bloom", "transformer.h", "n_layer"),
    "MptForCausalLM": ("mpt", "transformer.blocks", "n_layers"),
    "FalconForCausalLM": ("falcon", "transformer.h", "num_hidden_layers"),
    "GPTNeoXForCausalLM": ("gpt_neox", "gpt_neox.layers", "num_hidden_layers"),
    "StableLmForCausalLM": ("stablelm", "model.layers", "num_hidden_layers"),
    "Starcoder2ForCausalLM": ("starcoder2", "model.layers", "num_hidden_layers"),
    "GlmForCausalLM": ("glm", "model.layers", "num_hidden_layers"),
}
REFUSED = {
    "JambaForCausalLM": "jamba",
    "ZambaForCausalLM": "zamba",  # blocks that share one
    "Zamba2ForCausalLM": "zamba2",
    "Gemma3nForCausalLM": "gemma3n_text",
    "RwkvForCausalLM": "rwkv",
    "MambaForCausalLM": "mamba",
    "GPTNeoForCausalLM": "gpt_neo",  # attention_types repeats a pattern
    "Qwen2MoeForCausalLM": "qwen2_moe",
}


@pytest.mark.parametrize("kind", KNOWN)
def test_a_decoder_that_no_table_names_has_the_blocks_of_its_source(kind: str) -> None:
    model_type, path, field = KNOWN[kind]
    config = {"model_type": model_type, field: 3}
    (stack,) = family(kind, config).stacks
    assert (stack.path, stack.field) == (path, field)
    assert feature_stacks(kind, config) == (tuple(f"{path}.{i}" for i in range(3)),)
    assert kind not in FAMILIES


@pytest.mark.parametrize("kind", REFUSED)
def test_one_that_is_not_a_plain_chain_is_refused(kind: str) -> None:
    config = {"model_type": REFUSED[kind], "num_hidden_layers": 3, "num_layers": 3}
    with pytest.raises(UserError, match=rf"models of the class {kind} cannot be cut .*, and the class \w+") as caught:
        family(kind, config)
    assert "\n" not in caught.value.problems[0].message
    assert stacks_of(kind, config) == ()


@pytest.mark.parametrize("kind", [k for k in FAMILIES if k.endswith("ForCausalLM")])
def test_what_the_source_says_is_what_the_table_says(kind: str) -> None:
    name, types = (
        kind.removesuffix("ForCausalLM"),
        {"GptOss": "gpt_oss", "Qwen3Moe": "qwen3_moe", "Gemma3": "gemma3_text"},
    )
    model_type = types.get(name, name.lower())
    found = blocks_of(kind, model_type)
    if isinstance(found, str):
        assert kind in ("OPTForCausalLM", "Qwen3MoeForCausalLM"), (
            found
        )  # drops blocks in training; dense blocks by a period
        return
    (stack,) = FAMILIES[kind].stacks
    assert (stack.path, stack.field) == (found.path, found.fields[0])
    assert set(found.lists) <= set(stack.lists)


def test_fields_are_under_whatever_name_a_config_has_them() -> None:
    (stack,) = stacks_of("BloomForCausalLM", {"model_type": "bloom", "num_hidden_layers": 3})
    assert stack.field == "num_hidden_layers"
    with pytest.raises(UserError, match=r"does not say how many blocks they have \(n_layer\)"):
        family("BloomForCausalLM", {"model_type": "bloom"})
    assert derived_fields("Olmo3ForCausalLM", {"model_type": "olmo3", "num_hidden_layers": 2}) == ("layer_types",)


def test_what_is_no_decoder_is_not_looked_up() -> None:
    with pytest.raises(UserError) as caught:
        family("T5EncoderModel", {"model_type": "t5", "num_layers": 2})
    assert caught.value.problems[0].message.endswith("block by block: pare does not know their family")


def test_no_model_library_is_imported() -> None:
    asked = "from compress.machine.block_sources import blocks_of; import sys; print(blocks_of('GlmForCausalLM', 'glm').path); "
    asked += "assert not {'torch', 'transformers'} & set(sys.modules)"
    done = run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "model.layers"
    assert block_sources.COUNT == "num_hidden_layers"

"""What a plan grants is what the library's own config class accepts; here those classes are made, which takes a plan too long."""

from __future__ import annotations

from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.errors import UserError
from compress.machine.library_classes import divisions_of
from compress.model.families import FAMILIES, cut_width

# As transformers names them: by the class of a model, its config's.
DECODERS = [kind for kind, record in FAMILIES.items() if kind.endswith(("LMHeadModel", "ForCausalLM"))]
LLAMA_3_2_1B = {"hidden_size": 2048, "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 8192}
LLAMA_3_1_8B = {"hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336}
SMALL = {"hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 128}


def config_class(kind: str) -> Any:
    return getattr(transformers, kind).config_class


@pytest.mark.parametrize("shape", [LLAMA_3_2_1B, LLAMA_3_1_8B, SMALL])
def test_a_default_cut_of_these_llamas_is_one_that_transformers_makes(shape: dict[str, int]) -> None:
    config = {**shape, "num_hidden_layers": 2, "vocab_size": 512}
    cut = cut_width("LlamaForCausalLM", config, 0.25, (), 8, divisions_of("llama"))
    made = transformers.LlamaConfig(**cut.config)
    assert made.intermediate_size == shape["intermediate_size"] * 3 // 4
    assert made.hidden_size % made.num_attention_heads == 0


@pytest.mark.parametrize("kind", DECODERS)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_every_granted_cut_is_accepted_by_the_config_class(kind: str, data: st.DataObject) -> None:
    made = config_class(kind)
    keys, queries, size = (data.draw(st.integers(1, most)) for most in (4, 4, 8))
    heads = keys * queries
    hidden = heads * size * 2
    config = {**made().to_dict(), "hidden_size": hidden, "num_attention_heads": heads, "num_hidden_layers": 2}
    config |= {"n_embd": hidden, "n_head": heads, "n_layer": 2, "intermediate_size": 64, "ffn_dim": 64, "n_inner": 64}
    config |= {"num_key_value_heads": keys, "word_embed_proj_dim": hidden, "layer_types": None}
    config = {name: value for name, value in config.items() if name in made().to_dict()}
    parts = tuple(data.draw(st.lists(st.sampled_from(sorted(FAMILIES[kind].widths)), min_size=1, unique=True)))
    ratio = data.draw(st.floats(0.05, 0.95))
    try:
        cut = cut_width(kind, config, ratio, parts, 1, divisions_of(made.model_type))
    except UserError:
        return  # nothing to cut at this ratio
    whole = made(**cut.config)
    assert {g.field: getattr(whole, g.field) for g in cut.granted} == {g.field: g.after for g in cut.granted}
    assert any(g.after < g.before for g in cut.granted)


def test_the_divisions_are_read_from_the_source_of_the_very_class() -> None:
    asked = ("hidden_size", "num_attention_heads")
    assert asked in divisions_of("llama")
    with pytest.raises(Exception, match="not a multiple"):
        transformers.LlamaConfig(hidden_size=65, num_attention_heads=8)
    assert asked in divisions_of("clip_text_model")
    assert divisions_of("qwen3") == frozenset()  # which says how wide a head is
    assert divisions_of("no such type") == divisions_of("") == frozenset()

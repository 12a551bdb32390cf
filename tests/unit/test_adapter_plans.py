"""What of an adapter cannot be kept is refused when planning, from headers and JSON, with its place and a way out; nothing of it is
left out in silence."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import compress
from compress.adapters.fusing import STAGE, reported
from compress.adapters.lora import scale
from compress.adapters.names import named
from compress.cli import main
from compress.errors import ManyProblems, RecipeError
from compress.events import silent
from compress.files.safetensors_headers import Stored, read_header, read_scalar
from compress.making.ready import ready
from compress.planning.plan import Plan
from compress.planning.show import plan_dict, plan_text
from compress.recipe.schema import recipe_schema
from compress.sources.models import Source
from compress.store.cache import Cache
from tests.adapters import write_config
from tests.fakes import language_model, pipeline, write_headers

Shapes = Mapping[str, Sequence[int]]
LAYER = "model.layers.0.self_attn.q_proj"
MODEL = {f"{LAYER}.weight": (6, 4), "model.embed_tokens.weight": (9, 4), "lm_head.weight": (9, 4)}


def pair(module: str = LAYER, rows: int = 6, columns: int = 4, rank: int = 2) -> dict[str, tuple[int, ...]]:
    front = f"base_model.model.{module}"
    return {f"{front}.lora_A.weight": (rank, columns), f"{front}.lora_B.weight": (rows, rank)}


def embedding() -> dict[str, tuple[int, ...]]:
    """As peft saves an update of embeddings: inputs first, and a copy of the layer."""
    front = "base_model.model.model.embed_tokens"
    return {
        f"{front}.lora_embedding_A": (2, 9),
        f"{front}.lora_embedding_B": (4, 2),
        f"{front}.base_layer.weight": (9, 4),
    }


def magnitude(outputs: int = 6, module: str = LAYER) -> dict[str, tuple[int, ...]]:
    return {f"base_model.model.{module}.lora_magnitude_vector": (outputs,)}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model, an adapter that fits it, and a recipe of both."""
    monkeypatch.chdir(tmp_path)
    language_model(tmp_path / "base")
    write_headers(tmp_path / "base/model.safetensors", MODEL)
    config = {"architectures": ["LlamaForCausalLM"], "vocab_size": 9, "tie_word_embeddings": False}
    (tmp_path / "base/config.json").write_text(json.dumps(config))
    adapter(tmp_path, pair())
    (tmp_path / "r.yaml").write_text("schema: 1\nname: a\nmodel: ./base\nadapter: ./lora\n")
    return tmp_path


def adapter(here: Path, tensors: Shapes, dtype: str = "F32", **config: Any) -> None:
    write_headers(here / "lora/adapter_model.safetensors", tensors, dtype)
    write_config(here / "lora", **{"r": 2, **config})


def plan(here: Path, *changes: str) -> Plan:
    return compress.plan(here / "r.yaml", changes, cache=here / "cache")


def refused(here: Path, *changes: str) -> str:
    with pytest.raises(RecipeError) as caught:
        plan(here, *changes)
    assert all(p.fix for p in caught.value.problems)
    assert all(p.place for p in caught.value.problems)
    return str(caught.value)


def test_the_adapter_is_part_of_every_key_and_is_shown(here: Path) -> None:
    found = plan(here)
    assert "with adapter ./lora, trained on org/base" in plan_text(found)
    assert plan_dict(found)["adapters"] == ["adapter ./lora, trained on org/base"]
    scaled = plan(here, "adapter={path: ./lora, scale: 0.5}")
    assert "adapter ./lora × 0.5" in plan_text(scaled)
    keys = {found.source.key, scaled.source.key, plan(here, "adapter=null").source.key}
    assert len(keys) == 3
    adapter(here, pair(), lora_alpha=1)
    assert plan(here).source.key not in keys
    assert plan(here).disk_bytes > plan(here, "adapter=null").disk_bytes


def test_without_an_adapter_keys_are_what_they_were(here: Path) -> None:
    from compress.files.hashing import digest_folder

    assert plan(here, "adapter=null").source.key == digest_folder(here / "base")


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        ("3", "adapter must be a folder, not 3"),
        ("[./lora, 3]", "adapter.1 must be a folder, not 3"),
        ("{scale: 1}", "adapter.path is missing"),
        ("{path: ./lora, strength: 1}", "adapter.strength: unknown key"),
        ("[{path: ./lora, scale: much}]", "adapter.0.scale must be a number"),
        ("./none", "no such adapter"),
        ("./base", "is a whole model, and no adapter"),
        ("hf://org/name", "is not pinned"),
        ("~nobody-at-all/lora", "no such adapter"),
        ("'" + "x" * 5000 + "'", "cannot be looked at"),
    ],
)
def test_what_names_no_adapter_is_reported_at_its_place(here: Path, message: str, problem: str) -> None:
    text = (here / "r.yaml").read_text().replace("adapter: ./lora", f"adapter: {message}")
    (here / "r.yaml").write_text(text)
    found = refused(here)
    assert problem in found
    assert f"{here / 'r.yaml'}:4:" in found


def test_a_relative_path_starts_at_the_file_that_it_is_written_in(here: Path) -> None:
    (here / "deeper").mkdir()
    (here / "deeper/over.yaml").write_text("extends: ../r.yaml\nname: b\n")
    found = compress.plan(here / "deeper/over.yaml", cache=here / "cache")
    assert found.source.key == plan(here).source.key


BROKEN: Mapping[str, tuple[dict[str, tuple[int, ...]], dict[str, Any], str]] = {
    "another model": (pair("model.layers.7.mlp.up_proj"), {}, "is for base_model.model.model.layers.7.mlp.up_proj, which the model does not have"),
    "another size": (pair(rows=8), {}, "8×2 in the adapter, 6×4 in the model"),
    "another rank": (pair(rank=3), {}, f"of rank 3 by its tensors, and of rank 2 by its config (r): {LAYER}"),
    "half a pair": ({k: v for k, v in pair().items() if "lora_A" in k}, {}, f"{LAYER} (no lora_B)"),
    "nothing of each": (pair(rank=0), {}, "0×4 and 6×0 in the adapter"),
    "one pair twice": (pair() | {f"base_model.model.{LAYER}.lora_down.weight": (2, 4)}, {}, "1 tensors that are no LoRA pair"),
    "nothing": ({}, {}, "holds no update"),
    "no magnitude": (pair(), {"use_dora": True}, f"use_dora in its config, and no lora_magnitude_vector for {LAYER}"),
    "a magnitude against its config": (pair() | magnitude(), {}, f"use_dora: false in its config, and a lora_magnitude_vector for {LAYER}"),
    "a magnitude alone": (magnitude(), {"use_dora": True}, "updates that are not whole"),
    "too many magnitudes": (pair() | magnitude(7), {"use_dora": True}, "7 magnitudes of 6 outputs"),
    "other trainers' magnitudes": (pair() | {f"{LAYER}.dora_scale": (6, 1)}, {}, "tensors that are DoRA as other trainers"),
    "magnitudes of embeddings": (embedding() | magnitude(4, "model.embed_tokens"), {"use_dora": True}, "each embedding"),
    "loha": ({"lora_unet_x.hada_w1_a": (1, 2)}, {}, "that are LoHa"),
    "lokr": ({"lora_unet_x.lokr_w1": (1, 2)}, {}, "that are LoKr"),
    "tucker": ({"lora_unet_x.lora_mid.weight": (1, 2)}, {}, "LoCon with a core"),
    "no pair": (pair() | {"surprise": (1,)}, {}, "no LoRA pair, such as surprise"),
    "a bias of its own": (pair() | {f"{LAYER}.lora_B.bias": (6,)}, {"lora_bias": True}, "a bias beside an update"),
    "tokens": (pair(), {"trainable_token_indices": [1]}, "embeddings of single tokens"),
    "parameters": (pair(), {"target_parameters": ["experts"]}, "no layer's weight"),
    "replication": (pair(), {"layer_replication": [[0, 1]]}, "several times"),
    "activated": (pair(), {"alora_invocation_tokens": [3]}, "aLoRA"),
    "another method": (pair(), {"peft_type": "IA3"}, "is of peft's type IA3"),
    "pissa": (pair(), {"init_lora_weights": "pissa_niter_4"}, "began from a model that pissa_niter_4 had changed"),
    "the future": (pair(), {"use_novelty": True}, "an option that this pare does not know: use_novelty"),
    "a garbled pattern": (pair(), {"alpha_pattern": {"(": 3}}, "has a config that does not read"),
    "a garbled number": (pair(), {"lora_alpha": "much"}, "has a config that does not read"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_what_cannot_be_kept_is_refused(here: Path, case: str) -> None:
    tensors, config, problem = BROKEN[case]
    adapter(here, tensors, **config)
    found = refused(here)
    assert problem in found
    assert "adapter ./lora" in found
    assert f"{here / 'r.yaml'}:4:10" in found


def test_all_of_it_is_reported_at_once_and_alike_things_together(here: Path) -> None:
    tensors = pair() | pair("one.two") | pair("three") | pair("four") | pair("five")
    adapter(here, tensors, use_qalora=True, peft_version="9")
    (here / "r.yaml").write_text((here / "r.yaml").read_text() + "seed: -1\n")
    assert "seed" in refused(here)
    found = refused(here, "seed=1", "stages=[{demo.none: {}}]")
    assert "demo.none" in found
    found = refused(here, "seed=1")
    assert "QALoRA" in found
    assert "and 1 more, which the model does not have" in found


@pytest.mark.parametrize("tied", [True, False])
def test_one_of_two_weights_that_are_one_is_not_changed_alone(here: Path, tied: bool) -> None:
    adapter(here, pair("lm_head", rows=9) | embedding())
    config = json.loads((here / "base/config.json").read_text())
    (here / "base/config.json").write_text(json.dumps({**config, "tie_word_embeddings": tied}))
    if tied:
        assert "embeddings and head are one tensor" in refused(here)
    else:
        assert plan(here).source.making


def test_a_head_that_only_the_embeddings_hold_is_no_layer_of_the_file(here: Path) -> None:
    write_headers(here / "base/model.safetensors", {k: v for k, v in MODEL.items() if k != "lm_head.weight"})
    adapter(here, pair("lm_head", rows=9))
    assert "is for base_model.model.lm_head, which the model does not have" in refused(here)


@pytest.mark.parametrize("rows", [9, 11])
def test_whole_modules_are_kept_where_they_fit(here: Path, rows: int) -> None:
    adapter(here, pair() | {"base_model.model.lm_head.weight": (rows, 4)}, modules_to_save=["lm_head"])
    if rows == 9:
        assert plan(here).source.making
        assert "of which there is no share (scale 0.5)" in refused(here, "adapter={path: ./lora, scale: 0.5}")
    else:
        assert "lm_head.weight: 11×4 in the adapter, 9×4 in the model" in refused(here)


def test_an_adapter_does_not_undo_an_earlier_one(here: Path) -> None:
    bare = {name.removeprefix("base_model.model."): shape for name, shape in pair("lm_head", rows=9).items()}
    write_headers(here / "one.safetensors", bare)
    adapter(here, {"base_model.model.lm_head.weight": (9, 4)}, modules_to_save=["lm_head"])
    assert plan(here, "adapter=[./lora, ./one.safetensors]").source.making
    found = refused(here, "adapter=[./one.safetensors, ./lora]")
    assert "adapter ./lora replaces lm_head.weight, which adapter ./one.safetensors changed" in found


def test_the_same_adapter_twice_is_refused_by_whatever_name(here: Path) -> None:
    text = (here / "r.yaml").read_text()
    (here / "r.yaml").write_text(text.replace("./lora", "[./lora, {path: ./lora/adapter_model.safetensors, scale: 2}]"))
    found = refused(here)
    assert "adapter ./lora/adapter_model.safetensors is listed twice, as ./lora" in found
    assert "with the sum of both scales (3)" in found
    assert f"{here / 'r.yaml'}:4:26: " in found
    write_headers(here / "other/adapter_model.safetensors", pair(rank=1))
    write_config(here / "other", r=1)
    assert plan(here, "adapter=[./lora, ./other]").warnings == ()


def test_magnitudes_act_at_any_scale(here: Path) -> None:
    adapter(here, pair() | magnitude(), use_dora=True)
    found = plan(here, "adapter={path: ./lora, scale: 0}")
    assert found.warnings == ()
    assert found.source.making


def test_an_adapter_of_no_strength_is_warned_of(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(here, "adapter={path: ./lora, scale: 0.1}").warnings == ()
    (here / "r.yaml").write_text((here / "r.yaml").read_text().replace("./lora", "{path: ./lora, scale: 0}"))
    (message,) = plan(here).warnings
    assert message.startswith(f"{here / 'r.yaml'}:4:17: adapter ./lora has scale 0 and changes no weight")
    assert f"warning: {message}" in plan_text(plan(here))
    assert plan_dict(plan(here))["warnings"] == [message]
    with pytest.raises(SystemExit) as left:
        main(["check", "r.yaml", "--cache", "cache"])
    assert left.value.code == 0
    assert capsys.readouterr().err == f"warning: {message.removeprefix(f'{here}/')}\n"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 1.0),  # of no alpha, as diffusers has it
        ({"r": 4, "lora_alpha": 6}, 1.5),
        ({"r": 4, "lora_alpha": 6, "use_rslora": True}, 3.0),
        ({"r": 4, "lora_alpha": 6, "alpha_pattern": {"q_proj": 2}}, 0.5),
        ({"r": 4, "lora_alpha": 6, "alpha_pattern": {"layers.1.*": 2, "^model.layers.0.*": 8}}, 2.0),
        ({"r": 4, "lora_alpha": 6, "alpha_pattern": {"proj": 2}}, 1.5),  # no whole part of the name
    ],
)
def test_a_pair_is_scaled_as_peft_scales_it(options: dict[str, Any], expected: float) -> None:
    assert scale(options, LAYER, 4) == expected


def test_of_a_model_still_to_be_fetched_only_the_adapter_is_looked_at(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = plan(here).source.making
    assert found
    away = replace(found, base=replace(found.base, remote="org/base"))
    write_headers(here / "base/model.safetensors", {"other.weight": (6, 4)})
    assert reported(away) == []
    monkeypatch.setattr("compress.making.ready.fetch_weights", lambda source: source)
    with pytest.raises(ManyProblems, match="which the model does not have"):
        ready(Source(found.base.artifact, "key", "org/base", away), Cache(here / "cache"), silent)


def test_biases_that_were_trained_are_kept_where_the_model_has_them(here: Path) -> None:
    adapter(here, pair() | {f"base_model.model.{LAYER}.bias": (6,)}, bias="lora_only")
    assert f"is for {LAYER}.bias, which the model does not have" in refused(here)
    write_headers(here / "base/model.safetensors", {**MODEL, f"{LAYER}.bias": (6,)})
    assert plan(here).source.making


def test_packed_weights_take_no_adapter(here: Path) -> None:
    config = json.loads((here / "base/config.json").read_text())
    packed = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (here / "base/config.json").write_text(json.dumps({**config, "quantization_config": packed}))
    assert "cannot be added to the weights of `model`, which are packed (bitsandbytes)" in refused(here)


def test_weights_that_are_no_floats_take_no_adapter(here: Path) -> None:
    write_headers(here / "base/model.safetensors", MODEL, "I32")
    assert "is for weights that are stored as I32" in refused(here)


@pytest.mark.parametrize("form", ["tokenizer", "added"])
def test_a_tokenizer_with_other_tokens_is_not_left_out_in_silence(here: Path, form: str) -> None:
    words = {"a": 0, "b": 1}
    (here / "base/tokenizer.json").write_text(json.dumps({"model": {"vocab": words}, "added_tokens": []}))
    (here / "lora/tokenizer.json").write_text(json.dumps({"model": {"vocab": words}, "padding": {"length": 3}}))
    assert plan(here).source.making
    if form == "added":
        (here / "lora/added_tokens.json").write_text('{"<think>": 2}')
    else:
        added = [{"id": 2, "content": "<think>"}]
        (here / "lora/tokenizer.json").write_text(json.dumps({"model": {"vocab": words}, "added_tokens": added}))
    assert "other tokens than the model's: '<think>' (2)" in refused(here)


def test_padding_of_the_adapters_own_is_used_by_nothing(here: Path) -> None:
    whole = {"model": {"vocab": {"a": 0}}, "added_tokens": []}
    (here / "base/tokenizer.json").write_text(json.dumps(whole))
    whole["added_tokens"] = [{"id": 8, "content": "<|PAD_TOKEN|>"}]
    (here / "lora/tokenizer.json").write_text(json.dumps(whole))
    (here / "lora/special_tokens_map.json").write_text('{"pad_token": {"content": "<|PAD_TOKEN|>"}}')
    assert plan(here).source.making
    (here / "lora/tokenizer_config.json").write_text('{"eos_token": "<|PAD_TOKEN|>"}')  # it ends texts, too
    assert "other tokens than the model's: '<|PAD_TOKEN|>' (8)" in refused(here)


@pytest.mark.parametrize("message", [{}, {"added_tokens_decoder": {"1": {"content": "<s>"}}}, {"bos_token": "<s>"}])
@pytest.mark.parametrize("form", ["tokenizer.json", "tokenizer_config.json"])
def test_a_vocabulary_that_is_no_json_is_held_by_what_was_added_to_it(here: Path, form: str, message: object) -> None:
    (here / "base/tokenizer.json").unlink(missing_ok=True)
    (here / "base/tokenizer.model").write_bytes(b"\x0a\x0e")
    (here / "base/tokenizer_config.json").write_text(json.dumps(message))
    begins = {"id": 1, "content": "<s>"}
    if form == "tokenizer.json":
        whole = {"model": {"vocab": {"<unk>": 0, "<s>": 1, "a": 2}}, "added_tokens": [begins]}
    else:  # both kept as tokenizer.model
        whole = {"added_tokens_decoder": {"1": begins} if message else {}}
    (here / "lora" / form).write_text(json.dumps(whole))
    assert plan(here).source.making
    (here / "lora/added_tokens.json").write_text('{"<think>": 3}')
    assert "other tokens than the model's: '<think>' (3)" in refused(here)


def test_a_template_that_is_no_text_is_reported(here: Path) -> None:
    (here / "lora/chat_template.jinja").write_bytes(b"\xff\xfe")
    assert "has a template of conversations that does not read" in refused(here)


def test_without_its_config_nobody_knows_how_strong_peft_made_it(here: Path) -> None:
    config = here / "lora/adapter_config.json"
    assert plan(here, "adapter=./lora/adapter_model.safetensors").source.key == plan(here).source.key
    config.unlink()
    for given in ("./lora", "./lora/adapter_model.safetensors"):
        assert "peft's adapter_config.json is not beside it" in refused(here, f"adapter={given}")


def test_pickled_and_several_adapters_are_reported(here: Path) -> None:
    (here / "lora/adapter_model.safetensors").rename(here / "lora/one.safetensors")
    assert plan(here).source.making  # whatever its name, where it is alone
    write_headers(here / "lora/two.safetensors", pair())
    assert "holds several adapters: one.safetensors, two.safetensors" in refused(here)
    for file in (here / "lora").glob("*.safetensors"):
        file.unlink()
    (here / "lora/adapter_model.bin").write_bytes(b"pickle")
    assert "pickled adapter alone (adapter_model.bin)" in refused(here)
    (here / "lora/adapter_model.bin").unlink()
    assert "is no adapter" in refused(here)


@pytest.mark.parametrize("given", ["./base", "./base/model.safetensors"])
def test_a_whole_model_is_no_adapter(here: Path, given: str) -> None:
    message = refused(here, f"adapter={given}")
    assert "is a whole model, and no adapter" in message
    assert "give it as model: " in message


# Pipelines


UNET = {"down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight": (6, 4), "conv_in.weight": (6, 4, 3, 3)}
TO_Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture
def generator(here: Path) -> Path:
    pipeline(here / "base")
    (here / "base/config.json").unlink()
    (here / "base/model.safetensors").unlink()
    write_headers(here / "base/unet/diffusion_pytorch_model.safetensors", UNET)
    write_headers(here / "base/text_encoder/model.safetensors", {"encoder.layers.0.self_attn.out_proj.weight": (4, 4)})
    (here / "lora/adapter_config.json").unlink()
    (here / "lora/adapter_model.safetensors").unlink()
    return here


SPELLED = {
    "peft": f"unet.{TO_Q}.lora_A.weight unet.{TO_Q}.lora_B.weight",
    "without its part": f"{TO_Q}.lora_A.weight {TO_Q}.lora_B.weight",
    "default": f"unet.{TO_Q}.lora_A.default.weight unet.{TO_Q}.lora_B.default.weight",
    "old": f"unet.{TO_Q}.lora.down.weight unet.{TO_Q}.lora.up.weight",
    "processor": f"unet.{TO_Q.replace('attn1', 'attn1.processor')}_lora.down.weight unet.{TO_Q.replace('attn1', 'attn1.processor')}_lora.up.weight",
    "kohya": "lora_unet_{0}.lora_down.weight lora_unet_{0}.lora_up.weight".format(TO_Q.replace(".", "_")),
    "comfy": f"diffusion_model.{TO_Q}.lora_down.weight diffusion_model.{TO_Q}.lora_up.weight",
}  # fmt: skip


@pytest.mark.parametrize("spelling", SPELLED)
def test_every_spelling_of_a_layer_is_understood(generator: Path, spelling: str) -> None:
    down, up = SPELLED[spelling].split()
    write_headers(generator / "lora/pytorch_lora_weights.safetensors", {down: (2, 4), up: (6, 2)})
    assert plan(generator).source.making


def test_a_text_encoder_may_be_named_as_attention_processors_once_were(generator: Path) -> None:
    front = "text_encoder.text_model.encoder.layers.0.self_attn.to_out_lora"
    write_headers(generator / "lora/old.safetensors", {f"{front}.down.weight": (2, 4), f"{front}.up.weight": (4, 2)})
    assert plan(generator).source.making


def test_a_file_may_be_given_as_the_adapter(generator: Path) -> None:
    front = f"unet.{TO_Q}"
    write_headers(generator / "style.safetensors", {f"{front}.lora_A.weight": (2, 4), f"{front}.lora_B.weight": (6, 2)})
    assert "adapter style.safetensors" in plan_text(plan(generator, "adapter=style.safetensors"))


def test_updates_of_a_convolution_fit_whole_or_as_a_matrix(generator: Path) -> None:
    for down, up, fits in (
        ((2, 4, 3, 3), (6, 2, 1, 1), True),
        ((2, 36), (6, 2), True),
        ((2, 4, 1, 9), (6, 2, 1, 1), False),
        ((2, 4), (6, 2), False),
    ):
        front = "unet.conv_in"
        write_headers(generator / "lora/x.safetensors", {f"{front}.lora_A.weight": down, f"{front}.lora_B.weight": up})
        assert plan(generator).source.making if fits else "updates of other shapes: conv_in" in refused(generator)


def test_an_adapter_of_a_part_that_the_pipeline_lacks_is_refused(generator: Path) -> None:
    for front, where in (
        ("transformer.x", "unet"),
        ("lora_te2_x", "text_encoder_2"),
        ("lora_unet_double_blocks_0", "unet"),
    ):
        write_headers(
            generator / "lora/x.safetensors", {f"{front}.lora_down.weight": (2, 4), f"{front}.lora_up.weight": (6, 2)}
        )
        assert f"which `{where}` does not have" in refused(generator)


def test_an_alpha_for_some_and_none_for_others_is_refused(generator: Path) -> None:
    tensors: dict[str, Sequence[int]] = {"unet.conv_in.alpha": ()}
    for front, columns in ((f"unet.{TO_Q}", 4), ("unet.conv_in", 36)):
        tensors |= {f"{front}.lora_down.weight": (2, columns), f"{front}.lora_up.weight": (6, 2)}
    write_headers(generator / "lora/x.safetensors", tensors)
    assert "says its alpha for some updates and not for others" in refused(generator)


def test_what_diffusers_wrote_down_of_a_config_is_held_to_the_same(generator: Path) -> None:
    front = f"unet.{TO_Q}"
    pairs = {f"{front}.lora_A.weight": (2, 4), f"{front}.lora_B.weight": (6, 2)}
    for message in ({"unet.use_qalora": True}, {"use_qalora": True}):
        file = generator / "lora/pytorch_lora_weights.safetensors"
        write_headers(file, pairs, lora_adapter_metadata=json.dumps(message))
        assert "QALoRA" in refused(generator)


def test_an_engine_takes_no_adapter(generator: Path) -> None:
    parts = {"unet": {"format": "openvino", "path": "unet", "kind": "UNet2DConditionModel"}}
    manifest = {"schema": 1, "task": "text_to_image", "components": parts, "settings": {}, "lineage": []}
    (generator / "base/pare.json").write_text(json.dumps(manifest))
    front = f"unet.{TO_Q}"
    write_headers(
        generator / "lora/x.safetensors", {f"{front}.lora_A.weight": (2, 4), f"{front}.lora_B.weight": (6, 2)}
    )
    assert "are built into an engine already (`unet`, openvino)" in refused(generator)


# Names and numbers


@pytest.mark.parametrize(("dtype", "code"), [("F32", "<f"), ("F16", "<e"), ("F64", "<d"), ("I64", "<q")])
def test_an_alpha_is_read_without_a_library(tmp_path: Path, dtype: str, code: str) -> None:
    (tmp_path / "x").write_bytes(b"..." + struct.pack(code, 6))
    assert read_scalar(tmp_path / "x", Stored(dtype, (), 3)) == 6


def test_an_alpha_in_bfloat16_is_read_too(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(struct.pack("<f", 6.0)[2:])
    assert read_scalar(tmp_path / "x", Stored("BF16", (1,), 0)) == 6


def test_a_header_tells_names_types_shapes_and_metadata(tmp_path: Path) -> None:
    found = read_header(write_headers(tmp_path / "x.safetensors", {"a": (2, 3), "b": ()}, "F32", format="pt"))
    assert {name: (one.dtype, one.shape, one.count) for name, one in found.tensors.items()} == {
        "a": ("F32", (2, 3), 6),
        "b": ("F32", (), 1),
    }
    assert found.metadata == {"format": "pt"}


def test_a_tensor_without_a_known_ending_is_nothing() -> None:
    assert named("unet.conv_in.weight") is None
    assert named("unet.conv_in.weight", ("conv_in",)) is not None
    assert named("unet.conv_in.lora_B.bias") is None


def test_the_schema_knows_every_form_of_the_key() -> None:
    import jsonschema

    head = {"schema": 1, "name": "a", "model": "./m"}
    for message in ("./lora", {"path": "./lora"}, ["./lora", {"path": "./x", "scale": 0.5}], "${lora}", None):
        jsonschema.validate({**head, "adapter": message}, recipe_schema())
    for message in (3, {"scale": 1}, {"path": "x", "more": 1}, [3], ""):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**head, "adapter": message}, recipe_schema())


def test_the_word_in_the_cache_is_no_stages() -> None:
    from compress.catalogue import stage_names

    assert STAGE not in stage_names()

"""A fused model is its base with a branch beside each layer, whatever the family and however the adapter was written; it is what the
chain begins with and the candidate is compared with; and it is made whole or not at all."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import compress
from compress.adapters.fusing import STAGE
from compress.artifact import Artifact, read_json
from compress.commands.run import with_weights
from compress.errors import UserError
from compress.events import Event, silent
from compress.execution.execute import execute, node_refs, run_node
from compress.making.ready import ready
from compress.planning.plan import make_plan
from compress.recipe.reading import read_values
from compress.store.cache import Cache
from tests import adapters
from tests.adapters import Branch, beside, branches, of_kinds, shapes, write_diffusers, write_kohya, write_peft
from tests.families import tiny_image, tiny_text
from tests.tiny import tiny_diffusion, tiny_llama

STRENGTH = 0.7


def fused(model: Path, *named: Path | Mapping[str, Any], cache: Path) -> Path:
    """The model's folder with these adapters in it."""
    message = [{"path": str(one)} if isinstance(one, Path) else {**one, "path": str(one["path"])} for one in named]
    (recipe,) = read_values({"schema": 1, "name": "fuse", "model": str(model), "adapter": message}, "test")
    store = Cache(cache)
    return ready(make_plan(recipe, store).source, store, silent).artifact.path


def language_logits(folder: Path, pairs: Mapping[str, Branch] = {}, strength: float = 1.0) -> Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return beside(model, pairs, strength)(torch.arange(24).reshape(2, 12)).logits


TEXT = {
    "llama": (False, ["q_proj", "v_proj", "down_proj", "lm_head"]),
    "qwen2": (False, ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj"]),  # with biases
    "gpt2": (True, ["c_attn", "c_proj", "c_fc"]),  # stored transposed; c_proj of attention is square
    "qwen3-moe": (False, ["experts.0.gate_proj", "experts.2.down_proj", "q_proj"]),
    "phi3": (False, ["qkv_proj", "gate_up_proj"]),
}


@pytest.mark.parametrize("family", TEXT)
def test_a_fused_language_model_is_its_base_with_the_branches(tmp_path: Path, family: str) -> None:
    base = tiny_llama(tmp_path / "base") if family == "llama" else tiny_text(tmp_path / "base", family)
    transposed, endings = TEXT[family]
    weights = of_kinds(
        shapes(base / "model.safetensors"), [f".{end}" for end in endings] + ["lm_head"] * (family == "llama")
    )
    pairs = branches(weights, transposed=transposed)
    lora = write_peft(tmp_path / "lora", pairs, fan_in_fan_out=transposed)
    result = fused(base, {"path": lora, "scale": STRENGTH}, cache=tmp_path / "cache")
    reported = language_logits(result)
    if family == "qwen3-moe":  # transformers keeps all experts in one tensor: there is no layer to put a branch beside
        formula(base / "model.safetensors", result / "model.safetensors", pairs)
        return
    assert torch.allclose(reported, language_logits(base, pairs, STRENGTH), atol=2e-5)
    assert (reported - language_logits(base)).abs().max() > 1e-2


def formula(before: Path, after: Path, pairs: Mapping[str, Branch]) -> set[str]:
    """Each weight with a pair is W + strength · scale · up · down, and every other one is as it was. Returns the modules that changed."""
    old, new = load_file(before), load_file(after)
    assert old.keys() == new.keys() >= {f"{module}.weight" for module in pairs}
    for name, weight in old.items():
        pair = pairs.get(name.removesuffix(".weight"))
        update = STRENGTH * pair.scale * (pair.up @ pair.down) if pair else 0
        assert torch.allclose(new[name], weight + update, atol=1e-6)
    return {name.removesuffix(".weight") for name, weight in old.items() if not torch.equal(new[name], weight)}


Call = Callable[[nn.Module], Tensor]


def call_unet(unet: nn.Module) -> Tensor:
    g = torch.Generator().manual_seed(1)
    return unet(torch.randn(2, 4, 8, 8, generator=g), 7, torch.randn(2, 16, 32, generator=g)).sample


def call_sd3(transformer: nn.Module) -> Tensor:
    g = torch.Generator().manual_seed(1)
    latents, text, pooled = (torch.randn(*s, generator=g) for s in ((2, 4, 8, 8), (2, 16, 64), (2, 64)))
    return transformer(latents, text, pooled, torch.tensor([7.0, 7.0])).sample


def call_flux(transformer: nn.Module) -> Tensor:
    g = torch.Generator().manual_seed(1)
    latents, text, pooled = (torch.randn(*s, generator=g) for s in ((1, 16, 16), (1, 8, 32), (1, 32)))
    where = torch.zeros(16, 3), torch.zeros(8, 3)
    time = torch.tensor([0.5])
    return transformer(latents, text, pooled, time, *where, guidance=time).sample


def call_text(encoder: nn.Module) -> Tensor:
    return encoder(torch.arange(16).reshape(1, 16)).last_hidden_state


def opened(folder: Path, part: str) -> nn.Module:
    import diffusers
    import transformers

    library, kind = read_json(folder / "model_index.json")[part]
    cls = getattr(diffusers if library == "diffusers" else transformers, kind)
    return cls.from_pretrained(folder / part).eval()


UNET = ["to_q", "to_out.0", "ff.net.0.proj", "proj_in", "resnets.0.conv1", "downsamplers.0.conv", "time_emb_proj"]
IMAGES: dict[str, tuple[str, list[str], Call]] = {
    "sd": ("unet", UNET, call_unet),
    "sd3": ("transformer", ["attn.to_q", "attn.add_k_proj", "ff.net.2", "norm1.linear"], call_sd3),
    "flux": ("transformer", ["attn.to_q", "add_v_proj", "proj_mlp", "proj_out"], call_flux),
}


def generator(folder: Path, family: str) -> Path:
    return tiny_diffusion(folder) if family == "sd" else tiny_image(folder, family)


@pytest.mark.parametrize("alphas", [True, False])
@pytest.mark.parametrize("family", IMAGES)
def test_a_fused_denoiser_is_its_base_with_the_branches(tmp_path: Path, family: str, alphas: bool) -> None:
    base, (part, endings, call) = generator(tmp_path, family), IMAGES[family]
    weights = of_kinds(shapes(base / part / "diffusion_pytorch_model.safetensors"), endings)
    pairs = branches(weights)
    lora = write_diffusers(tmp_path / "lora", {part: pairs}, alphas=alphas)
    result = fused(base, {"path": lora, "scale": STRENGTH}, cache=tmp_path / "cache")
    with torch.no_grad():
        reported, plain = call(opened(result, part)), call(opened(base, part))
        asked = call(beside(opened(base, part), pairs, STRENGTH))
    assert torch.allclose(reported, asked, atol=1e-4)
    assert (reported - plain).abs().max() > 1e-2
    assert {f.name for f in (result / "text_encoder").iterdir()} == {f.name for f in (base / "text_encoder").iterdir()}


@pytest.mark.parametrize("front", ["", "text_model."])
def test_a_text_encoder_is_fused_whether_its_names_have_their_first_part_or_not(tmp_path: Path, front: str) -> None:
    base = tiny_diffusion(tmp_path)
    pairs = branches(of_kinds(shapes(base / "text_encoder/model.safetensors"), ["q_proj", "fc1"]))
    lora = write_diffusers(tmp_path / "lora", {"text_encoder": {front + name: pair for name, pair in pairs.items()}})
    result = fused(base, lora, cache=tmp_path / "cache")
    with torch.no_grad():
        reported, asked = (
            call_text(opened(result, "text_encoder")),
            call_text(beside(opened(base, "text_encoder"), pairs)),
        )
    assert torch.allclose(reported, asked, atol=1e-5)


def sgm(name: str) -> str:
    """Names of the tiny XL UNet as kohya's files spell them: those of the original Stable Diffusion, one layer a block."""
    for ours, theirs in (
        ("down_blocks.0.resnets.0.conv1", "input_blocks.1.0.in_layers.2"),
        ("down_blocks.0.attentions.0", "input_blocks.1.1"),
        ("down_blocks.0.downsamplers.0.conv", "input_blocks.2.0.op"),
        ("down_blocks.1.resnets.0.conv_shortcut", "input_blocks.3.0.skip_connection"),
        ("mid_block.attentions.0", "middle_block.1"),
        ("mid_block.resnets.1.time_emb_proj", "middle_block.2.emb_layers.1"),
        ("up_blocks.0.resnets.1.conv2", "output_blocks.1.0.out_layers.3"),
        ("up_blocks.0.upsamplers.0.conv", "output_blocks.1.1.conv"),
        ("up_blocks.1.attentions.1", "output_blocks.3.1"),
        ("conv_in", "input_blocks.0.0"),
        ("time_embedding.linear_2", "time_embed.2"),
    ):
        if name == ours or name.startswith(f"{ours}."):
            return theirs + name.removeprefix(ours)
    return ""


@pytest.mark.parametrize("original", [False, True])
def test_kohyas_files_are_fused_in_either_of_their_spellings(tmp_path: Path, original: bool) -> None:
    base = tiny_diffusion(tmp_path, xl=True)
    weights = shapes(base / "unet/diffusion_pytorch_model.safetensors")
    layers = {
        n: s for n, s in weights.items() if n.endswith(".weight") and len(s) > 1 and sgm(n.removesuffix(".weight"))
    }
    pairs = branches(layers)
    text = branches(of_kinds(shapes(base / "text_encoder_2/model.safetensors"), ["q_proj"]), seed=1)
    mine = {sgm(n) if original else n: pair for n, pair in pairs.items()}
    assert len(layers) > 40
    file = write_kohya(tmp_path / "style.safetensors", {"lora_unet": mine, "lora_te2": text}, torch.float32)
    result = fused(base, {"path": file, "scale": STRENGTH}, cache=tmp_path / "cache")
    old, new = (load_file(f / "unet/diffusion_pytorch_model.safetensors") for f in (base, result))
    for name, weight in old.items():
        pair = pairs.get(name.removesuffix(".weight"))
        update = (pair.up.flatten(1) @ pair.down.flatten(1)).reshape(weight.shape) * pair.scale if pair else 0 * weight
        assert torch.allclose(new[name], weight + STRENGTH * update, atol=1e-6), name
    formula(base / "text_encoder_2/model.safetensors", result / "text_encoder_2/model.safetensors", text)


@pytest.mark.parametrize("form", ["kohya", "comfy"])
def test_one_layer_of_flux_is_several_of_diffusers(tmp_path: Path, form: str) -> None:
    base = tiny_image(tmp_path, "flux")
    weights = shapes(base / "transformer/diffusion_pytorch_model.safetensors")
    text, single = "transformer_blocks.0.attn.add_{}_proj", "single_transformer_blocks.0.{}"
    layers = {
        "double_blocks.0.txt_attn.qkv": [text.format(one) for one in "qkv"],
        "double_blocks.0.img_mlp.2": ["transformer_blocks.0.ff.net.2"],
        "single_blocks.0.linear1": [single.format(one) for one in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")],
        "single_blocks.0.modulation.lin": [single.format("norm.linear")],
        "vector_in.in_layer": ["time_text_embed.text_embedder.linear_1"],
    }
    stacked = {
        name: (sum(weights[f"{one}.weight"][0] for one in those), weights[f"{those[0]}.weight"][1])
        for name, those in layers.items()
    }
    pairs = branches(stacked)
    flat = {"lora_unet": pairs} if form == "kohya" else {}
    file = write_kohya(tmp_path / "lora/x.safetensors", flat, torch.float32)
    if form == "comfy":
        write_diffusers(tmp_path / "lora", {"diffusion_model": pairs})
        file = tmp_path / "lora/pytorch_lora_weights.safetensors"
    result = fused(base, {"path": file, "scale": STRENGTH}, cache=tmp_path / "cache")
    split = {}
    for name, those in layers.items():
        begin = 0
        for one in those:
            end = begin + weights[f"{one}.weight"][0]
            split[one] = Branch(pairs[name].down, pairs[name].up[begin:end], pairs[name].scale)
            begin = end
    file = Path("transformer/diffusion_pytorch_model.safetensors")
    assert formula(base / file, result / file, split) == split.keys()


def test_several_adapters_add_up_whatever_their_order(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    weights = of_kinds(shapes(base / "model.safetensors"), ["q_proj"])
    one, two = (branches(weights, seed=seed) for seed in (1, 2))
    loras = [write_peft(tmp_path / f"lora{n}", pairs) for n, pairs in enumerate((one, two))]
    both = fused(base, *loras, cache=tmp_path / "cache")
    other = fused(base, *reversed(loras), cache=tmp_path / "cache")
    assert both != other  # float addition is not associative, so the order counts
    assert torch.allclose(language_logits(both), language_logits(other), atol=1e-5)
    added = {
        n: Branch(torch.cat([one[n].down, two[n].down]), torch.cat([one[n].up, two[n].up], 1), one[n].scale)
        for n in one
    }
    assert torch.allclose(language_logits(both), language_logits(base, added), atol=1e-5)


def test_nothing_is_changed_by_an_adapter_at_scale_0(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    lora = write_peft(tmp_path / "lora", branches(of_kinds(shapes(base / "model.safetensors"), ["q_proj"])))
    result = fused(base, {"path": lora, "scale": 0}, cache=tmp_path / "cache")
    old, new = (load_file(f / "model.safetensors") for f in (base, result))
    assert all(torch.equal(old[name], new[name]) for name in old)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_are_exact_and_rounded_once_into_the_weights_own_type(tmp_path: Path, dtype: torch.dtype) -> None:
    base = tiny_text(tmp_path / "base", "qwen2", dtype=dtype)
    pairs = branches(of_kinds(shapes(base / "model.safetensors"), ["up_proj"]))
    result = fused(base, write_peft(tmp_path / "lora", pairs), cache=tmp_path / "cache")
    old, new = (load_file(f / "model.safetensors") for f in (base, result))
    for name, pair in pairs.items():
        weight = f"{name}.weight"
        exact = old[weight].double() + pair.scale * (pair.up.double() @ pair.down.double())
        assert new[weight].dtype == dtype
        assert (new[weight].double() - exact).abs().max() <= torch.finfo(dtype).eps * exact.abs().max() / 2 + 1e-6


def test_only_the_shards_with_a_changed_weight_are_written_anew(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    first = {n: t for n, t in tensors.items() if "layers.0" in n}
    rest = {n: t for n, t in tensors.items() if n not in first}
    files = {"model-00001-of-00002.safetensors": first, "model-00002-of-00002.safetensors": rest}
    for file, inside in files.items():
        save_file(inside, base / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {n: file for file, inside in files.items() for n in inside}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    (base / "model.fp16.safetensors").write_bytes((base / "model-00001-of-00002.safetensors").read_bytes())
    pairs = branches({n: tuple(t.shape) for n, t in first.items() if n.endswith("q_proj.weight")})
    result = fused(base, write_peft(tmp_path / "lora", pairs), cache=tmp_path / "cache")
    assert torch.allclose(language_logits(result), language_logits(base, pairs), atol=1e-5)
    same = {file: (result / file).read_bytes() == (base / file).read_bytes() for file in files}
    assert list(same.values()) == [False, True]
    assert not (result / "model.fp16.safetensors").exists()  # another variant, without the adapter


LEFT = [
    "tf_model.h5",
    "flax_model.msgpack",
    "model-q4.gguf",
    "onnx/model.onnx",
    "onnx/model.onnx_data",
    "original/a.pth",
]
LEFT += [
    "openvino_model.xml",
    "openvino_model.bin",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "rust_model.ot",
]
STAYING = [
    "openvino_tokenizer.xml",
    "openvino_tokenizer.bin",
    "tokenizer.model",
    "LICENSE",
    "notes/more.txt",
    "vocab.json",
]


def test_copies_of_the_weights_for_other_libraries_stay_behind(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    for name in (*LEFT, *STAYING, "model.safetensors.index.json"):  # an index beside the plain file is never read
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text("{}")
    pairs = branches(of_kinds(shapes(base / "model.safetensors"), ["q_proj"]))
    result = fused(base, write_peft(tmp_path / "lora", pairs), cache=tmp_path / "cache")
    was, now = ({f.relative_to(root).as_posix() for f in root.rglob("*") if f.is_file()} for root in (base, result))
    assert was - now == {*LEFT, "model.safetensors.index.json"}


def test_so_do_those_of_a_whole_pipeline_but_not_of_its_other_parts(tmp_path: Path) -> None:
    base = tiny_diffusion(tmp_path / "base")
    for name in (
        "whole.safetensors",
        "unet/model.onnx",
        "unet/flax.msgpack",
        "vae/model.onnx",
        "vae_decoder/model.onnx",
    ):
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_bytes(b"")
    (base / "whole.safetensors").write_bytes((base / "vae/diffusion_pytorch_model.safetensors").read_bytes())
    unet = shapes(base / "unet/diffusion_pytorch_model.safetensors")
    result = fused(
        base, write_diffusers(tmp_path / "lora", {"unet": branches(of_kinds(unet, ["to_q"]))}), cache=tmp_path / "c"
    )
    assert not any((result / name).exists() for name in ("whole.safetensors", "unet/model.onnx", "unet/flax.msgpack"))
    assert (result / "vae/model.onnx").exists()


def test_modules_that_were_trained_whole_take_the_place_of_the_models(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    weights = shapes(base / "model.safetensors")
    lora = write_peft(tmp_path / "lora", branches(of_kinds(weights, ["q_proj"])), modules_to_save=["lm_head"])
    head = torch.randn(weights["lm_head.weight"])
    tensors = load_file(lora / "adapter_model.safetensors") | {"base_model.model.lm_head.weight": head}
    save_file(tensors, lora / "adapter_model.safetensors")
    result = fused(base, lora, cache=tmp_path / "cache")
    assert torch.equal(load_file(result / "model.safetensors")["lm_head.weight"], head)


def test_the_conversations_that_an_adapter_was_trained_on_keep_their_form(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    base = tiny_llama(tmp_path / "base")
    lora = write_peft(tmp_path / "lora", branches(of_kinds(shapes(base / "model.safetensors"), ["q_proj"])))
    AutoTokenizer.from_pretrained(base).save_pretrained(lora)
    plain = fused(base, lora, cache=tmp_path / "cache")
    assert not (plain / "chat_template.jinja").exists()
    (lora / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    result = AutoTokenizer.from_pretrained(fused(base, lora, cache=tmp_path / "cache"))
    assert result.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi!"


def test_weights_that_are_too_large_for_their_type_are_refused(tmp_path: Path) -> None:
    base = tiny_text(tmp_path / "base", "qwen2", dtype=torch.float16)
    lora = write_peft(tmp_path / "lora", branches(of_kinds(shapes(base / "model.safetensors"), ["q_proj"])))
    with pytest.raises(UserError, match=r"q_proj.weight` is not finite any more"):
        fused(base, {"path": lora, "scale": 1e7}, cache=tmp_path / "cache")
    assert not list((tmp_path / "cache/entries").iterdir())


def test_an_adapter_that_holds_no_numbers_is_blamed_itself(tmp_path: Path) -> None:
    base = tiny_text(tmp_path / "base", "qwen2")
    lora = write_peft(tmp_path / "lora", branches(of_kinds(shapes(base / "model.safetensors"), ["q_proj"])))
    tensors = load_file(lora / "adapter_model.safetensors")
    nonfinite = sorted(tensors)[0]
    tensors[nonfinite] = tensors[nonfinite] * float("nan")
    save_file(tensors, lora / "adapter_model.safetensors")
    with pytest.raises(UserError, match="of the adapter holds values that are not finite") as caught:
        fused(base, lora, cache=tmp_path / "cache")
    assert str(lora / "adapter_model.safetensors") in str(caught.value)


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    """A recipe of a stage, beside its model and an adapter."""
    base = tiny_diffusion(tmp_path / "base")
    pairs = branches(of_kinds(shapes(base / "unet/diffusion_pytorch_model.safetensors"), ["to_q", "to_v"]), scale=20.0)
    write_diffusers(tmp_path / "lora", {"unet": pairs})
    text = (
        "schema: 1\nname: tuned\nmodel: ./base/model\nadapter: ./lora\ndata: {evaluate: zoo://digits/test}\n"
        "stages: [{accelerate.steps: {steps: 2}}]\n"
        "evaluate:\n  metrics: [psnr, size]\n  samples: 2\n  stage_samples: 0\n  batch: 2\n"
        "  baseline: {steps: 3}\n"
    )
    (tmp_path / "r.yaml").write_text(text)
    return tmp_path / "r.yaml"


def test_a_run_compares_with_the_fused_model_and_saves_what_it_made(asked: Path, tmp_path: Path) -> None:
    recorded: list[str] = []
    keep = {
        "cache": tmp_path / "cache",
        "out": tmp_path / "out",
        "emit": lambda e: recorded.append(f"{e.kind} {e.what}"),
    }
    found: Any = compress.run(asked, **keep, save=tmp_path / "mine")
    assert f"finished {STAGE}" in recorded
    lineages = [[step["stage"] for step in side.lineage] for side in (found.baseline, found.candidate)]
    assert lineages == [[STAGE], [STAGE, "accelerate.steps"]]
    base, mine = (
        load_file(f / "unet/diffusion_pytorch_model.safetensors") for f in (tmp_path / "base/model", tmp_path / "mine")
    )
    assert any(not torch.equal(base[name], mine[name]) for name in base)
    recorded.clear()
    compress.run(asked, **keep, save=tmp_path / "mine")
    assert "cached accelerate.steps" in recorded
    assert f"started {STAGE}" not in recorded


def test_an_adapter_that_changes_nothing_is_reported_in_the_report_too(asked: Path, tmp_path: Path) -> None:
    lora = next((tmp_path / "lora").glob("*.safetensors"))
    tensors = {name: t * (0 if "lora_B" in name or "up" in name else 1) for name, t in load_file(lora).items()}
    save_file(tensors, lora, {"format": "pt"})
    reported = f"{STAGE}: adapter ./lora changes no weight: its updates are 0"
    recorded: list[Event] = []
    for times in (1, 2):  # also where it was fused before
        found = compress.run(asked, cache=tmp_path / "cache", out=tmp_path / "out", emit=recorded.append)
        assert [f"{e.what}: {e.message}" for e in recorded if e.kind == "warning"].count(reported) == times
        assert found.warnings.count(reported) == 1


def test_a_stage_in_another_process_finds_the_fused_model_by_itself(asked: Path, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    plan = compress.plan(asked, cache=cache.root)
    (done,) = (run_node(ref, cache, silent) for ref in node_refs(plan))
    assert [step.stage for step in done.artifact.lineage] == [STAGE, "accelerate.steps"]
    assert [one.key for one in execute(plan, cache, silent)] == [done.key]


def _kill(artifact: Artifact) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _die(asked: Path, cache: Path) -> None:
    from unittest import mock

    plan = compress.plan(asked, cache=cache)
    with mock.patch("compress.adapters.fusing.write_manifest", _kill):
        with_weights(plan, Cache(cache), silent)


def test_a_run_that_is_killed_while_fusing_leaves_nothing_half_made(asked: Path, tmp_path: Path) -> None:
    killed = multiprocessing.get_context("fork").Process(target=_die, args=(asked, tmp_path / "cache"))
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert not list((tmp_path / "cache/entries").iterdir())
    plan = compress.plan(asked, cache=tmp_path / "cache")
    made = with_weights(plan, Cache(tmp_path / "cache"), silent).source.artifact
    assert made.path.parent == tmp_path / "cache/entries"
    assert adapters.shapes(made.path / "unet/diffusion_pytorch_model.safetensors")

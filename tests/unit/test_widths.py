"""How wide the weights of a component are is counted in its files; what a quantizer passed over, or made larger, is reported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from compress.artifact import Artifact, Component, Quantization
from compress.catalogue import find_engine
from compress.engines.onnx.stored import stored as in_onnx
from compress.engines.openvino.stored import stored as in_openvino
from compress.engines.torch.stored import stored as in_torch
from compress.model import bit_widths
from compress.model.describing import quantization_of
from compress.quantization.linears import left_wide
from compress.sources.models import parameter_count
from evaluation.metrics.size import weights_read
from tests.headers import WIDE, WORDS, llama

INT4 = Quantization("int4_weights", 4, "onnxruntime")


def artifact(folder: Path, format: str, packed: Quantization | None = None) -> Artifact:
    return Artifact(folder, "text_generation", {"model": Component(format, "", "LlamaForCausalLM", "", packed)})


def test_safetensors_are_counted_by_their_headers(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(4, 8), "b": torch.zeros(2, 8, dtype=torch.bfloat16), "norm": torch.zeros(100)}
    save_file(tensors, tmp_path / "model.safetensors")
    assert in_torch(tmp_path) == {"float32": 32, "bfloat16": 16}
    found = bit_widths.shares(artifact(tmp_path, "torch"), "model")
    assert bit_widths.reported(found) == "66.7% float32, 33.3% bfloat16"


INT32 = torch.int32
PACKINGS = {  # 64 inputs and 16 outputs, packed, beside a head of as many
    "gptq-4": ({"l.qweight": (8, 16), "l.qzeros": (2, 2), "l.g_idx": (64,)}, {"int4": 1024}),
    "gptq-3": ({"l.qweight": (6, 16), "l.qzeros": (2, 2), "l.g_idx": (64,)}, {"int3": 1024}),
    "awq": ({"l.qweight": (64, 2), "l.qzeros": (2, 2)}, {"int4": 1024}),
    "compressed-tensors": ({"l.weight_packed": (16, 8), "l.weight_zero_point": (2, 2)}, {"int4": 1024}),
}


@pytest.mark.parametrize("how", PACKINGS)
def test_packed_weights_are_counted_as_many_as_they_are(tmp_path: Path, how: str) -> None:
    shapes, found = PACKINGS[how]
    tensors = {name: torch.zeros(shape, dtype=INT32) for name, shape in shapes.items()}
    more = {"l.scales": torch.zeros(2, 16), "l.weight_scale": torch.zeros(16, 2), "head.weight": torch.zeros(16, 64)}
    save_file({**tensors, **more}, tmp_path / "model.safetensors")
    message = {"quantization_config": {"quant_method": how.partition("-")[0], "bits": 4}}
    (tmp_path / "config.json").write_text(json.dumps(message))
    assert in_torch(tmp_path) == {**found, "float32": 1024}
    packed = artifact(tmp_path, "torch", Quantization(how, 4, how))
    assert bit_widths.shares(packed, "model") == {**dict.fromkeys(found, 0.5), "float32": 0.5}


def test_layers_of_several_widths_are_counted_each_by_its_own(tmp_path: Path) -> None:
    tensors = {
        f"{name}.weight_packed": torch.zeros(16, 64 * bits // 32, dtype=INT32) for name, bits in (("a", 4), ("b", 3))
    }
    save_file(tensors, tmp_path / "model.safetensors")
    groups = {
        f"group_{n}": {"weights": {"num_bits": bits}, "targets": [name]}
        for n, (name, bits) in enumerate((("a", 4), ("b", 3)))
    }
    stored = {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": groups}}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    assert in_torch(tmp_path) == {"int4": 1024, "int3": 1024}
    assert quantization_of(stored) == Quantization("compressed-tensors", 0, "compressed-tensors")


def test_two_weights_in_a_byte_of_bitsandbytes_are_two(tmp_path: Path) -> None:
    byte = torch.uint8
    tensors = {"l.weight": torch.zeros(512, 1, dtype=byte), "l.weight.absmax": torch.zeros(16, dtype=byte)}
    tensors |= {"l.weight.quant_state.bitsandbytes__nf4": torch.zeros(90, dtype=byte), "m.weight": torch.zeros(16, 64)}
    save_file(tensors, tmp_path / "model.safetensors")
    assert in_torch(tmp_path) == {"nf4": 1024, "float32": 1024}


@pytest.mark.parametrize("stem", ["model", "diffusion_pytorch_model"])
@pytest.mark.parametrize("shards", [False, True])
def test_of_several_variants_only_that_which_is_read_counts(tmp_path: Path, stem: str, shards: bool) -> None:
    files = [f"{stem}-0000{n}-of-00002.safetensors" for n in (1, 2)] if shards else [f"{stem}.safetensors"]
    for number, file in enumerate(files):
        save_file({f"w{number}": torch.zeros(4, 8)}, tmp_path / file)
    index = {"weight_map": {f"w{number}": file for number, file in enumerate(files)}}
    if shards:
        (tmp_path / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
    read = sum((tmp_path / file).stat().st_size for file in files)
    for other in ("fp16", "non_ema"):
        save_file({"w0": torch.zeros(4, 8, dtype=torch.float16)}, tmp_path / f"{stem}.{other}.safetensors")
    whole = artifact(tmp_path, "torch")
    assert bit_widths.size(whole, "model") == read == sum(f.stat().st_size for f in weights_read(whole))
    assert parameter_count(tmp_path) == 32 * len(files)
    assert in_torch(tmp_path) == {"float32": 32 * len(files)}


def test_an_openvino_graph_is_counted_without_its_scales(tmp_path: Path) -> None:
    import openvino
    from openvino import opset13 as ops

    from compress.engines.openvino.quantize import Compression, compress_weights
    from compress.engines.openvino.runtime import save_graph

    weights = torch.randn(64, 32).numpy()
    x = ops.parameter([1, 32], name="x")
    model = openvino.Model([ops.matmul(x, ops.constant(weights), False, True)], [x])
    save_graph(model, tmp_path)
    assert in_openvino(tmp_path) == {"float32": 2048}
    save_graph(compress_weights(model, Compression(4, 8, symmetric=False)), tmp_path)
    assert in_openvino(tmp_path) == {"int4": 2048}


def test_an_onnx_graph_is_counted_without_its_scales(tmp_path: Path) -> None:
    import onnx
    from onnx import helper

    from compress.engines.onnx import GRAPH
    from compress.engines.onnx.build import save_graph
    from compress.engines.onnx.quantize import compress_weights

    weight = onnx.numpy_helper.from_array(torch.randn(64, 32).numpy(), "w")
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    ports = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s) for n, s in (("x", [1, 64]), ("y", [1, 32]))]
    graph = helper.make_graph([node], "g", ports[:1], ports[1:], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]), tmp_path / GRAPH)
    assert in_onnx(tmp_path) == {"float32": 2048}
    for bits in (4, 8):
        (tmp_path / str(bits)).mkdir()
        save_graph(compress_weights(tmp_path / GRAPH, bits), tmp_path / str(bits))
        assert in_onnx(tmp_path / str(bits)) == {f"int{bits}": 2048}


@pytest.mark.parametrize(
    ("counts", "before", "after", "message"),
    [
        ({"int4": 95, "float32": 5}, 100, 40, ()),
        ({"int4": 80, "float32": 20}, 100, 60, ("20% of its weights are float32",)),
        ({"int4": 20, "float32": 60, "float16": 20}, 50, 90, ("60% of its weights are float32 and 20%", "takes")),
        ({"int4": 100}, 50, 90, ("takes 0.00 MB as int4_weights, more than",)),
    ],
)
def test_what_was_passed_over_and_what_grew_is_warned_of(
    counts: dict[str, int],
    before: int,
    after: int,
    message: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("compress.engines.onnx.stored.stored", lambda folder: counts)
    sides = []
    for name, format, size, packed in (("a", "torch", before, None), ("b", "onnx", after, INT4)):
        (tmp_path / name).mkdir()
        (tmp_path / name / find_engine(format).files[0].replace("*", "w")).write_bytes(b"\0" * size)
        sides.append(artifact(tmp_path / name, format, packed))
    found = list(bit_widths.warnings(*sides, "model"))
    assert len(found) == len(message)
    assert all(words in line for words, line in zip(message, found, strict=True))
    assert list(bit_widths.warnings(sides[0], artifact(tmp_path / "b", "onnx"), "model")) == []


def test_what_stays_wide_by_rights_is_no_warning_and_what_falls_out_beside_it_is_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = llama(tmp_path / "model")
    rights = 2 * WORDS * WIDE  # embeddings and head
    assert left_wide(model, "model", ()) == rights
    assert left_wide(model, "model", ("*.0.*.q_proj", "lm_head")) == rights + WIDE * WIDE
    total = sum(in_torch(model.path).values())
    monkeypatch.setattr(bit_widths, "size", lambda artifact, name: 1)
    packed = model.packing({"model": INT4})

    def warned(more: int) -> list[str]:
        wide = {"int4": total - rights - more, "bfloat16": rights + more}
        monkeypatch.setattr("compress.engines.torch.stored.stored", lambda folder: wide)
        return list(bit_widths.warnings(model, packed, "model", rights))

    assert warned(0) == warned(total // 11) == []
    (message,) = warned(total // 8)
    assert "in part only: 43% of its weights are bfloat16, which the quantizer does not reach" in message
    assert message.endswith("(12% beside embeddings, heads and what `ignore` names)")


def test_a_precision_of_few_bits_is_a_packing_and_others_are_none() -> None:
    assert bit_widths.packing(("unet",), "openvino", "int8") == {"unet": Quantization("int8", 8, "openvino")}
    assert bit_widths.packing(("model",), "gguf", "int4_weights") == {
        "model": Quantization("int4_weights", 4, "llama-cpp-python")
    }
    for name in ("float32", "float16", "bfloat16"):
        assert bit_widths.packing(("unet",), "openvino", name) == {}
    narrow = {name for engine in ("onnx", "openvino", "gguf", "tensorrt") for name in find_engine(engine).precisions}
    assert {name for name in narrow if not name.startswith(("float16", "float32", "bfloat16"))} <= set(bit_widths.BITS)
    assert set(bit_widths.BITS) - narrow == {"int8_hybrid"}  # of quantize.nncf, and of no build

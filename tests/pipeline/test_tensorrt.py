"""Real TensorRT-RTX engines, built without a GPU: their records against their ONNX, and all that can be known before one runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

import compress
from compress.artifact import Artifact
from compress.catalogue import find_stage
from compress.engines import TOLERANCE
from compress.engines.onnx import GRAPH
from compress.engines.onnx.runtime import Decoder
from compress.engines.onnx.runtime import load_component as load_onnx
from compress.engines.tensorrt import runtime as tensorrt
from compress.engines.tensorrt.compile import Network
from compress.engines.tensorrt.record import Ports, Record, Target, check_record, read_ports
from compress.engines.torch.runtime import load_component as load_torch
from compress.errors import ModelError, RecipeError, StageFailed, UserError
from compress.files.hashing import digest_file, digest_files
from compress.machine import gpus
from compress.machine.devices import Opening
from compress.machine.gpus import RTX, Gpu
from compress.model.describing import describe
from compress.zoo import zoo_model
from tests.families import MODELS
from tests.stages import apply
from tests.tiny import tiny_diffusion, tiny_llama

TARGETS = ("SM86", "SM89")
HERE = Target("SM89", "tensorrt-rtx", RTX.version)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return describe(tiny_diffusion(tmp_path_factory.mktemp("pipeline")))


@pytest.fixture(scope="module")
def stored_narrow(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return describe(tiny_diffusion(tmp_path_factory.mktemp("bfloat16"), dtype=torch.bfloat16))


@pytest.fixture(scope="module")
def built(pipeline: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return apply(
        "build.tensorrt", pipeline, tmp_path_factory.mktemp("built") / "out", targets=TARGETS, components=("vae",)
    )[0]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return describe(tiny_llama(tmp_path_factory.mktemp("llama")))


@pytest.fixture(scope="module")
def zoo_unet(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, list[Any]]:
    source = describe(zoo_model("digits-diffusion"))
    out = tmp_path_factory.mktemp("zoo-unet") / "out"
    return apply("build.tensorrt", source, out, targets=TARGETS, components=("unet",))


@pytest.fixture(scope="module")
def zoo_llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, list[Any]]:
    source = describe(zoo_model("docs-llama"))
    profile = {"batch": (1, 1, 8), "tokens": (1, 128, 512)}
    return apply(
        "build.tensorrt", source, tmp_path_factory.mktemp("zoo-llama") / "out", targets=TARGETS, profile=profile
    )


def records_of(artifact: Artifact, name: str) -> tuple[Record, ...]:
    return tensorrt.read_records(artifact.folder(name))


def check_whole(artifact: Artifact, name: str) -> None:
    """Each target has an engine that fits its ONNX, and its own target alone."""
    folder, ports = artifact.folder(name), read_ports(artifact.folder(name))
    records = records_of(artifact, name)
    assert tuple(r.target.gpu for r in records) == TARGETS
    for record in records:
        file = folder / record.file
        assert file.stat().st_size > 10_000
        assert digest_file(file) == record.digest
        assert check_record(record, ports, record.target) == []
        other = replace(record.target, gpu="SM120")
        assert check_record(record, ports, other) == [f"it was built for {record.target.gpu}, and this is SM120"]
    assert len({r.digest for r in records}) == 2


def test_the_zoos_denoiser_has_an_engine_for_each_target_and_its_onnx_agrees_with_torch(
    zoo_unet: tuple[Artifact, list[Any]],
) -> None:
    made, notes = zoo_unet
    check_whole(made, "unet")
    assert notes[0].facts["relative"] < 1e-5  # through ONNX Runtime, in the build itself
    assert notes[-1].facts["compared"] == "onnx"
    assert notes[-1].facts["targets"] == list(TARGETS)
    rows = records_of(made, "unet")[0].profile["input.sample"]
    assert (rows[0][0], rows[2][0]) == (1, 32)  # 16 prompts, twice for guidance
    source = zoo_model("digits-diffusion")
    plain = load_torch(source / "unet", "diffusers", "UNet2DConditionModel", Opening("float32"))
    graph = load_onnx(made.folder("unet"), "diffusers", "UNet2DConditionModel", Opening())
    ports = {p.name.removeprefix("input."): p.shape[1:] for p in read_ports(made.folder("unet")).inputs}
    for rows in (1, 5):
        sample, texts = (torch.randn(rows, *ports[name]) for name in ("sample", "encoder_hidden_states"))
        call = (sample, torch.tensor(500.0), texts)
        with torch.no_grad():
            ours, theirs = graph(*call).sample, plain(*call).sample
        assert float((ours - theirs).abs().max()) < 1e-4
        assert float(theirs.std()) > 0.1


@pytest.mark.slow
def test_the_zoos_language_model_has_an_engine_for_each_target(zoo_llama: tuple[Artifact, list[Any]]) -> None:
    made, notes = zoo_llama
    check_whole(made, "model")
    assert notes[0].facts["relative"] < 1e-5
    record = records_of(made, "model")[0]
    low, usual, high = record.profile["input_ids"]
    assert (low, usual, high) == ((1, 1), (1, 1), (8, 512))
    caches = [sizes for name, sizes in record.profile.items() if "past_key_values" in name]
    config = made.config("model")
    assert len(caches) == 2 * config["num_hidden_layers"]
    heads, size = config["num_key_value_heads"], config["hidden_size"] // config["num_attention_heads"]
    assert all(sizes[0] == (1, heads, 0, size) and sizes[2] == (8, heads, 511, size) for sizes in caches)


@pytest.mark.parametrize(
    "precision",
    ["int4_weights", *(pytest.param(p, marks=pytest.mark.slow) for p in ("float16", "bfloat16", "int8_weights"))],
)
def test_a_narrow_network_is_built_and_its_onnx_is_near_torch_in_calls_of_its_profile(
    llama: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    profile = {"batch": (1, 1, 1), "tokens": (1, 8, 20)}
    recorded: list[tuple[int, ...]] = []
    step = Decoder.step
    monkeypatch.setattr(
        Decoder, "step", lambda self, tokens, past: recorded.append(tuple(tokens.shape)) or step(self, tokens, past)
    )
    made, notes = apply(
        "build.tensorrt", llama, tmp_path / "out", precision=precision, targets=("SM89",), profile=profile
    )
    record = records_of(made, "model")[0]
    narrow = {"bfloat16": "bfloat16"}.get(precision, "float16")
    assert record.layers[narrow] > record.layers.get("float32", 0)
    assert record.ports.inputs[0].dtype == "int64"
    assert {p.dtype for p in record.ports.outputs if p.name == "logits"} == {"float32"}
    assert 0 < notes[0].facts["relative"] <= TOLERANCE[precision]
    assert recorded == [(1, 13), (1, 7), (1, 20)]  # 20 tokens in two parts, and at once


FAMILIES = (
    "sd",
    "sdxl",
    "pixart-sigma",
    "sd3",
    "flux",
    "sana",
    "qwen2",
    "qwen3",
    "gpt2",
    "opt",
    "mistral",
    "gemma2",
    "phi3",
)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_component_of_a_model_becomes_an_engine(family: str, tmp_path: Path) -> None:
    made, notes = apply(
        "build.tensorrt", describe(MODELS[family](tmp_path / "model")), tmp_path / "out", targets=TARGETS
    )
    engines = [name for name, part in made.components.items() if part.format == "tensorrt"]
    assert set(engines) == set(made.working)
    for name in engines:
        check_whole(made, name)
        assert not list(made.folder(name).glob("*.safetensors"))
    agreed = {n.facts["component"]: n.facts["relative"] for n in notes if "relative" in n.facts}
    assert set(agreed) == set(engines)
    assert all(0 < relative < TOLERANCE["float32"] for relative in agreed.values())


@pytest.mark.parametrize(
    ("precision", "codes"), [("float8", "FLOAT8E4M3FN"), pytest.param("int8", "INT8", marks=pytest.mark.slow)]
)
def test_a_denoiser_in_eight_bits_is_calibrated_on_real_calls(
    tmp_path: Path, stored_narrow: Artifact, precision: str, codes: str
) -> None:
    made, notes = apply(
        "build.tensorrt",
        stored_narrow,
        tmp_path / "out",
        precision=precision,
        targets=("SM89",),
        components=("unet",),
        samples=4,
    )
    graph = onnx.load(str(made.folder("unet") / GRAPH), load_external_data=False).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("QuantizeLinear") > 10
    stored = [value for value in graph.initializer if value.name.endswith(".weight_quantized")]
    assert len(stored) > 20
    assert {onnx.TensorProto.DataType.Name(value.data_type) for value in stored} == {codes}
    assert 0 < notes[0].facts["relative"] <= TOLERANCE[precision]
    assert records_of(made, "unet")[0].precision == precision


def test_a_record_is_held_against_its_onnx_and_its_machine(zoo_unet: tuple[Artifact, list[Any]]) -> None:
    folder = zoo_unet[0].folder("unet")
    record, ports = records_of(zoo_unet[0], "unet")[1], read_ports(folder)
    assert check_record(record, ports, HERE) == []
    old = replace(HERE, version="0.0.1")
    assert check_record(record, ports, old) == [
        f"it was built by tensorrt-rtx {RTX.version}, and here is tensorrt-rtx 0.0.1"
    ]
    assert check_record(record, replace(ports, digest="other"), HERE) == [
        "it was built from another ONNX than the one beside it"
    ]
    fewer = Ports(ports.digest, ports.inputs[1:], ports.outputs)
    assert check_record(record, fewer, HERE) == ["its input input.sample is none of the ONNX"]
    narrow = tuple(replace(p, dtype="float16") if p.name == "output.sample" else p for p in ports.outputs)
    assert "is float32" in check_record(record, replace(ports, outputs=narrow), HERE)[0]
    assert check_record(record, ports, HERE, {"input.sample": (64, 4, 8, 8)}) == [
        "input.sample [64, 4, 8, 8] lies outside its profile, [1, 4, 8, 8] to [32, 4, 8, 8]"
    ]
    torn = replace(record, profile={k: v for k, v in record.profile.items() if k != "timestep"})
    assert check_record(torn, ports, HERE) == ["the profile of its input timestep does not fit []"]


def test_an_engine_is_taken_only_where_all_fits(built: Artifact) -> None:
    records, ports = records_of(built, "vae"), read_ports(built.folder("vae"))
    assert tensorrt.fitting(records, ports, HERE, lambda record: True) == (records[1], ())
    for target, intact in ((replace(HERE, gpu="SM120"), True), (replace(HERE, version="2"), True), (HERE, False)):
        found, against = tensorrt.fitting(records, ports, target, lambda record, intact=intact: intact)
        assert found is None
        assert len(against) == 2
    assert "its file has changed" in against[1]


def at_hand(patch: pytest.MonkeyPatch, target: str) -> None:
    patch.setattr(tensorrt, "gpu_here", lambda: Gpu("Some GPU", target))
    patch.setattr(tensorrt, "torch_without_cuda", lambda: "")


def test_a_foreign_engine_is_built_anew_from_the_onnx_in_memory(
    built: Artifact, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """All but opening what was built, which takes the GPU."""
    at_hand(monkeypatch, "SM120")
    opened: list[int] = []
    monkeypatch.setattr(tensorrt.Engine, "_deserialize", lambda self, body: opened.append(len(body)) or "engine")
    before = digest_files(built.path)
    engine = tensorrt.Engine(built.folder("vae"), torch.device("cpu"))
    assert engine.open() == engine.open() == "engine"
    assert len(opened) == 1
    assert opened[0] > 10_000
    assert "built anew in memory for SM120" in caplog.text
    assert digest_files(built.path) == before


def test_an_engine_that_fits_is_read_from_its_file(built: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    at_hand(monkeypatch, "SM89")
    opened: list[bytes] = []
    monkeypatch.setattr(tensorrt.Engine, "_deserialize", lambda self, body: opened.append(body) or "engine")
    tensorrt.Engine(built.folder("vae"), torch.device("cpu")).open()
    assert opened == [(built.folder("vae") / "SM89.engine").read_bytes()]


def test_a_call_outside_the_profile_is_refused_before_the_gpu_is_asked(
    built: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_hand(monkeypatch, "SM89")
    engine = tensorrt.Engine(built.folder("vae"), torch.device("cpu"))
    with pytest.raises(UserError, match=r"\[17, 4, 8, 8\] lies outside its profile, \[1, 4, 8, 8\] to \[16, 4, 8, 8\]"):
        engine.run([torch.zeros(17, 4, 8, 8)])


@pytest.mark.slow
def test_a_language_models_cache_is_empty_where_it_begins(
    zoo_llama: tuple[Artifact, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _ = zoo_llama
    at_hand(monkeypatch, "SM89")
    config = made.config("model")
    past = tensorrt.Decoder(tensorrt.Engine(made.folder("model"), torch.device("cpu"))).begin(3)
    heads, size = config["num_key_value_heads"], config["hidden_size"] // config["num_attention_heads"]
    assert [tuple(t.shape) for t in past.tensors] == [(3, heads, 0, size)] * (2 * config["num_hidden_layers"])


def test_a_torch_without_cuda_is_reported_with_its_remedy(built: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    at_hand(monkeypatch, "SM89")
    monkeypatch.setattr(tensorrt, "torch_without_cuda", lambda: "2.13.0+cpu")
    with pytest.raises(UserError, match=r"torch 2\.13\.0\+cpu is built without CUDA") as caught:
        tensorrt.Engine(built.folder("vae"), torch.device("cpu"))
    assert "a torch with CUDA" in caught.value.problems[0].fix


def test_without_a_gpu_loading_says_what_was_built_and_what_to_do(built: Artifact, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no NVIDIA GPU here .* built for SM86 \(tensorrt-rtx"):
        compress.load(built)
    (tmp_path / "engine.json").write_text(json.dumps({"engine": "tensorrt"}))
    with pytest.raises(ModelError, match="holds no TensorRT engine"):
        tensorrt.read_records(tmp_path)


def test_an_operator_it_does_not_know_is_named_with_its_node(tmp_path: Path) -> None:
    node = onnx.helper.make_node("Unheard", ["x"], ["y"], name="odd_one", domain="somebodys")
    kinds = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1]) for n in "xy"]
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("somebodys", 1)]
    onnx.save(
        onnx.helper.make_model(onnx.helper.make_graph([node], "g", kinds[:1], kinds[1:]), opset_imports=opsets),
        tmp_path / GRAPH,
    )
    with pytest.raises(StageFailed, match="cannot read the operator Unheard of the node `odd_one`"):
        Network(tmp_path, RTX)


def recipe(folder: Path, model: Path, step: str, evaluate: str = "metrics: [size]") -> Path:
    data = "data: {evaluate: zoo://digits/test, calibration: zoo://digits/validation}\n"
    path = folder / "recipe.yaml"
    path.write_text(
        f"schema: 1\nname: x\nmodel: {model}\n{data}stages:\n  - build.tensorrt: {step}\nevaluate: {{{evaluate}}}\n"
    )
    return path


@pytest.mark.parametrize(
    ("step", "evaluate", "message", "fix"),
    [
        ("{}", "metrics: [size]", "no NVIDIA GPU available here to build for", "targets: [SM86, SM89]"),
        ("{targets: [SM90]}", "metrics: [size]", "does not build for SM90", "SM75, SM80, SM86"),
        ("{targets: [SM86, SM89], precision: float8}", "metrics: [size]", "SM86 does not compute in float8", "int8"),
        ("{targets: [SM86, SM86]}", "metrics: [size]", "name each target once", ""),
        ("{targets: [SM86], profile: {batch: [4, 2, 8]}}", "metrics: [size]", "batch must rise", ""),
        ("{targets: [SM86]}", "metrics: [latency, size]", "cannot run on this machine: it has no NVIDIA GPU", "[size]"),
    ],
)
def test_what_cannot_work_is_one_located_error_at_plan_time(
    pipeline: Artifact, tmp_path: Path, step: str, evaluate: str, message: str, fix: str
) -> None:
    path = recipe(tmp_path, pipeline.path, step, evaluate)
    with pytest.raises(RecipeError) as caught:
        compress.check(path, cache=tmp_path / "cache")
    problems = caught.value.problems
    assert len(problems) == 1
    assert message in problems[0].message
    assert fix in problems[0].fix
    assert "recipe.yaml:" in problems[0].place


def test_a_profile_that_leaves_out_the_recipes_own_batch_is_refused(
    pipeline: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus, "gpu_here", lambda: Gpu("Some GPU", "SM89"))
    monkeypatch.setattr(gpus, "torch_without_cuda", lambda: "")
    step = "{targets: [SM89], profile: {batch: [1, 1, 4]}}"
    path = recipe(tmp_path, pipeline.path, step, "metrics: [latency, clip_score], batch: 16")
    with pytest.raises(RecipeError, match=r"evaluate\.batch makes calls of 16, .* takes batch from 1 to 4"):
        compress.check(path, cache=tmp_path / "cache")
    compress.check(
        recipe(tmp_path, pipeline.path, step, "metrics: [latency, clip_score], batch: 4"), cache=tmp_path / "c"
    )


def test_too_little_memory_is_reported_with_both_numbers(
    pipeline: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 500_000}
    monkeypatch.setattr("os.sysconf", pages.__getitem__)
    with pytest.raises(RecipeError, match=r"needs about .* GB of memory, and this machine has 2.0 GB"):
        compress.plan(recipe(tmp_path, pipeline.path, "{targets: [SM86]}"), cache=tmp_path / "cache")


def test_a_run_on_a_machine_without_a_gpu_measures_the_size_and_warns(pipeline: Artifact, tmp_path: Path) -> None:
    recorded: list[Any] = []
    path = recipe(tmp_path, pipeline.path, "{targets: [SM86], components: [vae]}")
    found = compress.run(path, cache=tmp_path / "cache", out=tmp_path / "runs", emit=recorded.append)
    assert [row.metric for row in found.rows] == ["size"]
    assert any("not opened again" in event.message for event in recorded if event.kind == "warning")


def test_a_failed_build_leaves_the_model_as_it_was_and_nothing_in_the_cache(
    pipeline: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: Any) -> Any:
        raise StageFailed("made no engine")

    monkeypatch.setattr(Network, "build", refuse)
    before, cache = digest_files(pipeline.path), tmp_path / "cache"
    path = recipe(tmp_path, pipeline.path, "{targets: [SM86], components: [vae]}")
    with pytest.raises(StageFailed, match="made no engine"):
        compress.run(path, cache=cache, out=tmp_path / "runs")
    assert digest_files(pipeline.path) == before
    assert not list(cache.rglob("*.engine")) + list(cache.rglob(GRAPH))


def test_explain_tells_what_this_machine_can_build() -> None:
    reported = find_stage("build.tensorrt").machine()
    assert f"tensorrt-rtx {RTX.version}, builds for SM75, SM80, SM86, SM89" in reported
    assert "engines can be built and not run" in reported

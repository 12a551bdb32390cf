"""accelerate.offload: what it leaves, what it goes with, and that a model whose weights take turns gives the very same, here on the processor."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

import compress
from compress.artifact import Artifact, Setting
from compress.catalogue import find_stage
from compress.errors import Problem, RecipeError, UserError
from compress.machine.devices import Opening
from compress.machine.gpus import supposing
from compress.machine.kernels import Card, gpu_of
from compress.model.describing import describe
from compress.model.hook_settings import COMPILE, GRAPH, OFFLOAD, hooked, loaded_to, movable, unhookable, unhooked
from compress.opening import open_images, open_language
from compress.opening.hooks import ran_inside
from compress.opening.offloading import by_turns, size, stack_of
from compress.planning.hardware import fits, room
from compress.planning.step_checks import source_problems
from compress.recipe.gates import Gate
from evaluation.comparison.rows import row_of
from evaluation.evidence import Evidence, Start
from evaluation.metrics import device_memory
from tests.fakes import language_model, pipeline
from tests.stages import apply, forecast
from tests.tiny import tiny_diffusion, tiny_llama

CPU = torch.device("cpu")
CALL: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 2.0}
Steps = list[dict[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return describe(tiny_diffusion(tmp_path_factory.mktemp("generator")))


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return describe(tiny_llama(tmp_path_factory.mktemp("writer")))


@pytest.fixture
def on_a_gpu() -> Iterator[None]:
    """The processor counts as a GPU: weights are moved from it to itself."""
    with mock.patch("compress.model.hook_settings.kind_of", return_value="cuda"):
        yield


def meant(artifact: Artifact, **params: object) -> Artifact:
    return hooked(artifact, OFFLOAD, movable(artifact), **params)


def problems_of(model: Path, steps: Steps, folder: Path, device: str = "cuda:0") -> tuple[Problem, ...]:
    """What a plan tells, on a machine that is stated to have the device."""
    file = folder / "recipe.yaml"
    file.write_text(json.dumps({"schema": 1, "name": "x", "model": str(model), "stages": steps}))
    try:
        with mock.patch("compress.planning.plan.settled", return_value=device):
            compress.check(file, cache=folder / "cache")
    except RecipeError as error:
        return error.problems
    return ()


def refused(model: Path, steps: Steps, folder: Path, device: str = "cuda:0") -> tuple[str, str]:
    (problem,) = problems_of(model, steps, folder, device)
    return problem.message, problem.fix


# ---------------------------------------------------------------- what it leaves, and where it is refused


def test_every_part_that_is_opened_has_the_hook_and_files_stay(generator: Artifact, tmp_path: Path) -> None:
    made, _ = apply(OFFLOAD, generator, tmp_path / "out", how="layers")
    assert made.settings.hook == tuple(Setting(OFFLOAD, name, {"how": "layers"}) for name in generator.components)
    assert made.settings.needs_pare
    for name in generator.components:
        for file in generator.folder(name).iterdir():
            assert (made.folder(name) / file.name).read_bytes() == file.read_bytes()
    assert f"{OFFLOAD} already" in unhookable(made, OFFLOAD)


def test_without_a_word_a_pipeline_goes_by_components_and_a_writer_by_blocks(
    generator: Artifact, writer: Artifact
) -> None:
    assert "go to the GPU by components; that" in forecast(OFFLOAD, generator).reported
    found = forecast(OFFLOAD, writer, keep="0.01 MB")
    assert "go to the GPU by blocks; 0.01 MB of them may stay there" in found.reported
    assert found.settings is not None
    assert found.settings.hook == (Setting(OFFLOAD, "model", {"how": "blocks", "keep": 10_000}),)


def test_on_a_gpu_it_can_be_planned_and_elsewhere_not(tmp_path: Path) -> None:
    for model in (language_model(tmp_path / "llama"), pipeline(tmp_path / "generator")):
        assert problems_of(model, [{OFFLOAD: {}}], tmp_path) == ()
        message, fix = refused(model, [{OFFLOAD: {}}], tmp_path, device="cpu")
        assert message == f"{OFFLOAD}: it spares the memory of an NVIDIA GPU, and the device is cpu"
        assert fix == "give another device, or leave this stage out"


@pytest.mark.parametrize("other", [COMPILE, GRAPH])
def test_what_wants_weights_that_stay_is_refused_beside_it(other: str, tmp_path: Path) -> None:
    llama = language_model(tmp_path / "llama")
    for steps in ([{other: {}}, {OFFLOAD: {}}], [{OFFLOAD: {}}, {other: {}}]):
        message, fix = refused(llama, steps, tmp_path)
        assert f"{other} wants weights that stay where they are, and {OFFLOAD} moves them at each call" in message
        assert fix == "leave one of the two out"


def test_the_lean_call_is_refused_on_either_side(generator: Artifact, tmp_path: Path) -> None:
    call = "accelerate.call"
    for steps in ([{call: {}}, {OFFLOAD: {}}], [{OFFLOAD: {}}, {call: {}}]):
        message, fix = refused(generator.path, steps, tmp_path)
        assert "the lean call wants components that stay where they are" in message
        assert fix == "leave one of the two out"


def test_what_follows_must_change_no_part_that_is_moved(tmp_path: Path) -> None:
    generator = pipeline(tmp_path / "generator")
    pack = {"quantize.torchao": {"mode": "int8_weights", "components": ["text_encoder"]}}
    with mock.patch("compress.machine.deps.version", return_value="1"):
        found = problems_of(generator, [{OFFLOAD: {}}, pack], tmp_path)
    assert any(f"put {OFFLOAD} behind quantize.torchao" in one.fix for one in found)
    llama = language_model(tmp_path / "llama")
    found = problems_of(llama, [{OFFLOAD: {}}, {"build.openvino": {}}], tmp_path)
    assert any(f"{OFFLOAD} hooks the modules of `model`, and the engine" in one.message for one in found)


def test_engines_and_packed_weights_are_not_moved(generator: Artifact, writer: Artifact, tmp_path: Path) -> None:
    assert "`vae` is tensorrt, an engine" in unhookable(generator.replacing({"vae": "tensorrt"}), OFFLOAD)
    llama = language_model(tmp_path / "llama")
    config = json.loads((llama / "config.json").read_text())
    packed = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (llama / "config.json").write_text(json.dumps({**config, "quantization_config": packed}))
    assert "are packed (bitsandbytes), and packed weights are not moved" in unhookable(describe(llama), OFFLOAD)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"how": "components"}, "a language model's weights take turns by blocks, and not by components"),
        ({"keep": "much"}, "keep: `much` is no size"),
        ({"keep": "9 GB"}, "keep: 9 GB holds the whole model"),
    ],
)
def test_a_writers_words_are_checked(given: dict[str, Any], why: str, writer: Artifact, tmp_path: Path) -> None:
    message, fix = refused(writer.path, [{OFFLOAD: given}], tmp_path)
    assert why in message
    assert fix


def test_keep_is_a_writers(generator: Artifact, tmp_path: Path) -> None:
    message, fix = refused(generator.path, [{OFFLOAD: {"keep": "1 GB"}}], tmp_path)
    assert message == f"{OFFLOAD}: keep is about a language model's blocks"
    assert fix == "leave keep out"


def test_a_plan_for_a_gpu_knows_it(tmp_path: Path) -> None:
    llama, file = tiny_llama(tmp_path / "llama"), tmp_path / "recipe.yaml"
    small = Card("small", "SM90", 1)
    steps: tuple[Steps, ...] = ([{"accelerate.cuda_graph": {}}], [{OFFLOAD: {}}])
    words = []
    for stages in steps:
        recipe = {"schema": 1, "name": "x", "model": str(llama), "device": "cuda", "stages": stages}
        file.write_text(json.dumps(recipe))
        with supposing(gpu_of(small)):
            plan = compress.plan(file, cache=tmp_path / "cache")
        assert all(fit.runs for fit in fits(plan, small))
        words.append(room(plan, Card("tiny", "SM90", 1)))
        with mock.patch("compress.planning.hardware.loaded_weights", return_value=[mock.Mock(**_of_bytes(10**9))]):
            words.append(room(plan, small))
    assert "processor's memory" not in words[0]
    assert f"leaves no room to work: quantize it, put {OFFLOAD} last, or take a larger one" in words[1]
    assert words[3].endswith("and wait in the processor's memory for their turn")


def _of_bytes(count: int) -> dict[str, object]:
    return {"stat.return_value.st_size": count}


# ---------------------------------------------------------------- the same numbers


@pytest.mark.usefixtures("on_a_gpu")
@pytest.mark.parametrize("how", ["components", "blocks", "layers"])
@pytest.mark.parametrize("xl", [False, True])
def test_a_generator_generates_the_very_same(how: str, xl: bool, tmp_path: Path) -> None:
    artifact = describe(tiny_diffusion(tmp_path, xl=xl))
    plain, opened = open_images(artifact), open_images(meant(artifact, how=how))
    items, parts = plain.examples[:2], list(artifact.components)
    want, latents = plain.images(items, 0, **CALL)
    calls = list(plain.calls_of(parts, items, 0, **CALL))
    for _ in range(2):  # at the first call diffusers sees the order of layers, and exchanges its hooks meanwhile
        recorded = list(opened.calls_of(parts, items, 0, **CALL))
        assert [name for name, _ in recorded] == [name for name, _ in calls]
        found, between = opened.images(items, 0, **CALL)
        assert (found == want).all()
        assert latents is not None
        assert between is not None
        assert (between == latents).all()
    assert ran_inside(opened) == f"weights by {how}"


@pytest.mark.usefixtures("on_a_gpu")
def test_the_first_call_is_counted_whole(generator: Artifact) -> None:
    from compress.opening.text_to_image import TextToImage

    opened = open_images(meant(generator, how="blocks"))
    assert isinstance(opened, TextToImage)
    spec = mock.Mock(timing_batch=1)
    timed = opened.timed(opened.examples, spec, CALL)
    assert timed.work == 3
    timed.run()
    (first,) = opened.first_step(opened.examples[:1], 0, 3, guidance_scale=1.0).calls
    assert first["encoder_hidden_states"].shape[0] == 1
    assert timed.run()[0] > 0  # a stand-in's end leaves the weights' turns as they were


@pytest.mark.usefixtures("on_a_gpu")
@pytest.mark.parametrize("keep", [0, 150_000])
def test_a_writer_writes_the_very_same(keep: int, writer: Artifact) -> None:
    plain, opened = open_language(writer), open_language(meant(writer, how="blocks", keep=keep))
    prompts = [plain.encode("The array"), plain.encode("A function of")]
    assert opened.generate(prompts, 12) == plain.generate(prompts, 12)
    assert torch.equal(opened.logits(prompts), plain.logits(prompts))
    assert ran_inside(opened) == f"weights by blocks, {0 if keep else 2} of 2"


def test_the_lean_call_of_an_offloaded_pipeline_is_refused(generator: Artifact) -> None:
    problems = source_problems(meant(generator, how="blocks").calling_lean(), Opening(device="cuda:0"), "here")
    assert [one.message for one in problems if "lean call wants components" in one.message]


def test_weights_are_loaded_to_the_processor(generator: Artifact) -> None:
    there, marked = Opening("bfloat16", "cuda:1"), meant(generator, how="blocks")
    assert loaded_to(generator, there) == there
    assert loaded_to(marked, there) == Opening("bfloat16", "cpu")
    assert loaded_to(hooked(generator, GRAPH), there) == there
    assert loaded_to(unhooked(marked), there) == there  # as a teacher is opened


def test_on_a_processor_it_is_left_out_with_one_warning(generator: Artifact) -> None:
    with pytest.warns(UserWarning, match=f"runs without {OFFLOAD}") as heard:
        opened = open_images(meant(generator, how="components"))
    assert len([one for one in heard if OFFLOAD in str(one.message)]) == 1
    assert ran_inside(opened) == ""


# ---------------------------------------------------------------- blocks in turns


class Decoder(torch.nn.Module):
    """Four blocks, and a head that shares the embedding."""

    def __init__(self, shared: bool = False) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(5, 8)
        self.register_buffer("scale", torch.ones(8))
        block = torch.nn.Linear(8, 8)
        self.layers = torch.nn.ModuleList(block if shared else torch.nn.Linear(8, 8) for _ in range(4))
        self.head = torch.nn.Linear(8, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor, order: tuple[int, ...] = (0, 1, 2, 3)) -> torch.Tensor:
        x = self.embed(tokens) * self.scale
        for number in order:
            x = self.layers[number](x)
        found: torch.Tensor = self.head(x)
        return found


@torch.no_grad()
def test_two_blocks_are_there_at_most_and_any_order_is_right() -> None:
    model, tokens = Decoder(), torch.tensor([0, 3])
    orders = ((0, 1, 2, 3), (0, 2, 3), (3, 1), (1, 1))
    want = [model(tokens, order) for order in orders]
    seen: list[int] = []
    turns = by_turns(model, CPU)
    waiting = [one.data_ptr() for one in model.layers.parameters()]
    for layer in model.layers:
        layer.register_forward_pre_hook(lambda *given: seen.append(len(turns.there)))
    for order, wanted in zip(orders, want, strict=True):
        assert torch.equal(model(tokens, order), wanted)
    assert set(seen) == {2}
    away = [one.data_ptr() for one in model.layers.parameters()]
    assert (
        sum(one != other for one, other in zip(waiting, away, strict=True)) == 2
    )  # weight and bias of the one that is next


@torch.no_grad()
def test_a_call_that_fails_leaves_the_next_right() -> None:
    model, tokens = Decoder(), torch.tensor([1])
    want = model(tokens)
    turns = by_turns(model, CPU)
    with pytest.raises(RuntimeError):
        model.layers[2](torch.zeros(1, 3))
    assert torch.equal(model(tokens), want)
    assert turns.there == {0}


@pytest.mark.parametrize(("keep", "moved"), [(0, 4), (447, 4), (448, 3), (736, 2), (1311, 1), (1312, 0)])
def test_blocks_stay_that_fit_beside_what_always_does(keep: int, moved: int) -> None:
    model = Decoder()
    assert (size(model), size(model.layers[0])) == (160 + 4 * 288, 288)
    assert len(by_turns(model, CPU, keep)._waiting) == moved


def test_what_cannot_take_turns_says_so(writer: Artifact) -> None:
    with pytest.raises(UserError, match="blocks of Decoder share weights"):
        by_turns(Decoder(shared=True), CPU)
    with pytest.raises(UserError, match="Linear has no stack of blocks"):
        stack_of(torch.nn.Linear(2, 2))


@pytest.mark.usefixtures("on_a_gpu")
def test_what_diffusers_does_not_move_is_told_from_its_source(generator: Artifact) -> None:
    def refused_as(artifact: Artifact, how: str) -> Any:
        return find_stage(OFFLOAD).refuse(artifact, find_stage(OFFLOAD).params(how=how))

    with mock.patch("compress.stages.accelerate.offload.class_of", return_value="AudioLDM2Pipeline"):
        found = refused_as(generator, "components")
    assert (found, found.fix) == (
        "diffusers does not say in which order AudioLDM2Pipeline calls its components",
        "how: blocks",
    )
    whole = generator.becoming({"unet": "HunyuanDiT2DModel"})
    for how in ("blocks", "layers"):
        found = refused_as(whole, how)
        assert (found, found.fix) == (
            "diffusers moves `unet`, a HunyuanDiT2DModel, only as a whole",
            "how: components",
        )
        assert refused_as(generator, how) == ""
    assert refused_as(whole, "components") == refused_as(generator, "components") == ""


@torch.no_grad()
def test_on_a_gpu_blocks_are_copied_beside_the_work_from_pinned_memory() -> None:
    """The order of what is asked of CUDA, written down: the processor stands in for it."""
    done: list[str] = []

    def noted(what: str) -> Any:
        return lambda *given: done.append(what)

    pinned: list[torch.Tensor] = []

    def pin(weight: torch.Tensor) -> torch.Tensor:
        pinned.append(weight)
        return weight.clone()

    work = mock.Mock(wait_stream=noted("work waits for copies"))
    work.record_event.side_effect = lambda: mock.Mock(synchronize=noted("waits for the block before"))
    fakes = {"Stream": mock.Mock(), "current_stream": lambda device: work, "stream": lambda one: nullcontext()}
    tensors = {"pin_memory": pin, "record_stream": noted("kept for the work")}
    with (
        mock.patch("compress.opening.offloading.STREAMED", ("cpu",)),
        mock.patch.multiple("torch.cuda", **fakes),
        mock.patch.multiple(torch.Tensor, **tensors),
    ):
        model, tokens = Decoder(), torch.tensor([0, 3])
        want = model(tokens)
        by_turns(model, CPU)
        assert len(pinned) == 8  # weight and bias of four blocks
        assert torch.equal(model(tokens), want)
    first = ["work waits for copies", "kept for the work", "kept for the work"]
    assert done == first + 3 * [*first, "waits for the block before"]


# ---------------------------------------------------------------- the gate


@pytest.mark.parametrize(("most", "status"), [("16 GB", "pass"), ("15 GiB", "pass"), ("8 GB", "fail")])
def test_a_gate_says_that_a_model_fits(most: str, status: str) -> None:
    def sample(size: float) -> Any:
        start = Start(10**9, 1.0, int(size), int(size), 0.1, 0.1)
        evidence = Evidence(Artifact(Path(), "text_to_image", {}), starts=(start,) * 3)
        return device_memory.measure.measure(evidence, device_memory.DeviceMemory())

    row = row_of(device_memory.measure, (sample(24e9), sample(12e9)), {}, Gate(at_most=most))
    assert row.verdict.status == status

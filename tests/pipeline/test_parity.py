"""A build that computes something else than torch is kept apart, down to the layer; and an engine looks like what it replaced."""

from __future__ import annotations

import ast
import inspect
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel

from compress.algorithms.forward_hooks import standing_in
from compress.artifact import Artifact, read_json
from compress.building.build import build_engines, calibration_calls, first_calls
from compress.context import Context
from compress.engines.builder import Example
from compress.engines.module import EngineModule, write_settings
from compress.engines.openvino.build import OpenVINOBuilder
from compress.engines.parity import compare_calls, difference, first_broken
from compress.errors import StageFailed
from compress.machine.devices import Opening
from compress.model.describing import describe
from compress.opening import open_task
from tests.families import MODELS
from tests.stages import DATA
from tests.tiny import tiny_diffusion, tiny_llama


@contextmanager
def damaged(module: torch.nn.Module, layer: str) -> Iterator[None]:
    """One layer's output is off by a fifth while the context lasts."""
    weight = module.get_submodule(layer).weight
    with torch.no_grad():
        kept = weight.clone()
        weight.mul_(1.2)
    try:
        yield
    finally:
        with torch.no_grad():
            weight.copy_(kept)


class Damaging(OpenVINOBuilder):
    """Builds graphs in which one layer is wrong."""

    def __init__(self, layer: str) -> None:
        super().__init__("float32")
        self.layer = layer

    def component(self, example: Example, folder: Path, watched: tuple[str, ...] = ()) -> None:
        with damaged(example.module, self.layer):
            super().component(example, folder, watched)

    def language_model(self, model: torch.nn.Module, folder: Path, feeds: Any) -> None:
        with damaged(model, self.layer):
            super().language_model(model, folder, feeds)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return describe(tiny_diffusion(tmp_path_factory.mktemp("pipeline")))


def context(folder: Path) -> Context:
    (folder / "out").mkdir()
    return Context(folder / "out", folder / "scratch")


def test_the_layer_that_breaks_a_decoder_is_named(pipeline: Artifact, tmp_path: Path) -> None:
    layer = "decoder.up_blocks.0.resnets.1.conv2"
    with pytest.raises(StageFailed, match="differs from torch") as caught:
        build_engines(pipeline, ("vae",), Damaging(layer), context(tmp_path))
    assert f"first in its layer `{layer}`" in str(caught.value)
    assert not (tmp_path / "scratch" / "blame").exists()


class Late(OpenVINOBuilder):
    """Builds denoisers that are wrong at the last timestep alone."""

    def component(self, example: Example, folder: Path, watched: tuple[str, ...] = ()) -> None:
        real = example.module.forward

        def forward(sample: torch.Tensor, timestep: torch.Tensor, **others: Any) -> Any:
            output = real(sample, timestep, **others)
            output.sample = output.sample * (1 + (timestep < 500).float())
            return output

        forward.__signature__ = inspect.signature(real)  # type: ignore[attr-defined]
        with standing_in(example.module, "forward", forward):
            super().component(example, folder, watched)


def test_an_engine_is_compared_on_every_call_of_a_generation(pipeline: Artifact, tmp_path: Path) -> None:
    with pytest.raises(StageFailed, match=r"differs from torch by 1 of its output's size"):
        build_engines(pipeline, ("unet",), Late("float32"), context(tmp_path))


@pytest.mark.slow
def test_the_layer_that_breaks_a_language_model_is_named(tmp_path: Path) -> None:
    layer = "model.layers.1.mlp.down_proj"
    llama = describe(tiny_llama(tmp_path / "llama"))
    with pytest.raises(StageFailed, match="differs from torch") as caught:
        build_engines(llama, ("model",), Damaging(layer), context(tmp_path))
    assert f"first in its layer `{layer}`" in str(caught.value)


def test_layers_are_looked_at_in_the_order_they_run() -> None:
    class Crossed(torch.nn.Module):
        """Runs its second layer first."""

        def __init__(self) -> None:
            super().__init__()
            self.late = torch.nn.ModuleList([torch.nn.Linear(2, 2)])
            self.early = torch.nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.late[0](self.early(x))
            return found

    asked: list[tuple[str, ...]] = []

    def watch(parts: tuple[str, ...]) -> Any:
        asked.append(parts)
        right = {part: torch.ones(3) for part in parts}
        return {part: torch.zeros(3) for part in parts}, right

    module = Crossed()
    assert first_broken(module, lambda: module(torch.ones(1, 2)), watch, 0.1) == "early"
    assert asked == [("early", "late.0")]


def test_where_every_layer_is_near_enough_none_is_blamed() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 2))
    same = {"0": torch.ones(3)}
    assert first_broken(module, lambda: module(torch.ones(1, 2)), lambda parts: (same, same), 0.1) == ""


def read_by_pipelines(kind: type) -> set[tuple[str, str]]:
    """What a pipeline's source reads of its components: (component, attribute)."""
    found = set()
    for base in (k for k in kind.__mro__ if k.__module__.startswith("diffusers")):
        for node in ast.walk(ast.parse(inspect.getsource(inspect.getmodule(base)))):  # type: ignore[arg-type]
            match node:
                case ast.Attribute(ast.Attribute(ast.Name("self"), component), attribute):
                    found.add((component, attribute))
    return found


FAMILIES = ("sd", "sdxl", "pixart-alpha", "pixart-sigma", "sd3", "flux", "sana")


def engine_of(artifact: Artifact, name: str, folder: Path) -> EngineModule:
    """A component's engine that is looked at and never called, so it needs no graph."""
    folder.mkdir()
    shutil.copyfile(artifact.folder(name) / "config.json", folder / "config.json")
    write_settings(folder, "none", "0", "float32", function="forward", arguments=[], tensors=[], constants={})
    library = read_json(artifact.path / "model_index.json")[name][0]
    return EngineModule(folder, library, artifact.components[name].kind, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_engine_has_every_attribute_that_pipelines_read(family: str, tmp_path: Path) -> None:
    source = describe(MODELS[family](tmp_path / "model"))
    plain: Any = open_task(source, Opening("float32"))
    engines = {name: engine_of(source, name, tmp_path / f"engine-{name}") for name in source.working}
    looked_at = 0
    for name, attribute in sorted(read_by_pipelines(type(plain.pipeline))):
        value = getattr(getattr(plain.pipeline, name, None), attribute, None)
        if name not in engines or value is None or inspect.ismethod(value):
            continue
        looked_at += 1
        twin = getattr(engines[name], attribute)
        if isinstance(value, torch.nn.Module):
            shapes = [[(n, p.shape, p.dtype) for n, p in m.named_parameters()] for m in (value, twin)]
            assert shapes[0] == shapes[1], f"{name}.{attribute}"
        elif isinstance(value, torch.dtype):
            assert twin == value, f"{name}.{attribute}"
        else:
            assert type(twin) is type(value), f"{name}.{attribute}"
    assert looked_at >= 4


def test_the_width_that_sdxl_reads_is_that_of_its_layer(tmp_path: Path) -> None:
    source = describe(tiny_diffusion(tmp_path, xl=True))
    assert engine_of(source, "unet", tmp_path / "engine").add_embedding.linear_1.in_features == 80


def test_an_engine_has_no_method_but_its_own(pipeline: Artifact, tmp_path: Path) -> None:
    with pytest.raises(AttributeError, match="has no method encode"):
        _ = engine_of(pipeline, "vae", tmp_path / "vae").encode
    assert not hasattr(engine_of(pipeline, "unet", tmp_path / "unet"), "no_such_thing")


def test_an_encoder_that_no_recipe_takes_becomes_an_engine_all_the_same(tmp_path: Path) -> None:
    """BERT reads a text whole and continues none, so recipes refuse it as a model; as a component it is one like any other."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    bert = BertModel(BertConfig(vocab_size=100, **shape)).eval()
    bert.save_pretrained(tmp_path)
    small, large = (
        {"input_ids": torch.randint(0, 100, (n, 9)), "attention_mask": torch.ones(n, 9).long()} for n in (2, 3)
    )
    builder = OpenVINOBuilder("float32")
    builder.component(Example(bert, "forward", small, large), tmp_path)
    engine = builder.open_component(tmp_path, "transformers", "BertModel")
    found = compare_calls(bert, engine, "forward", large)
    assert 0 < found.relative < 1e-5
    assert engine(**small).last_hidden_state.shape == (2, 9, 32)


def test_what_is_no_number_never_agrees() -> None:
    good, bad = torch.ones(2, 3), torch.ones(2, 3)
    bad[1, 2] = float("nan")
    assert difference({"x": good}, {"x": good}).relative == 0
    for ours, theirs in ((bad, good), (good, bad), (bad, bad)):
        found = difference({"first": good, "x": ours}, {"first": good, "x": theirs})
        assert found.relative == float("inf")


def test_calibration_stops_when_the_component_called_most_has_been_called_enough(tmp_path: Path) -> None:
    task = open_task(describe(tiny_diffusion(tmp_path)))
    context = Context(tmp_path, tmp_path, data={"calibration": DATA})
    one, other = (calibration_calls(task, names, 8, context) for names in (("unet", "vae"), ("vae", "unet")))  # type: ignore[arg-type]
    assert {name: len(calls) for name, calls in one.items()} == {name: len(calls) for name, calls in other.items()}
    assert len(one["unet"]) == 50  # of one batch, every step
    assert len(one["vae"]) == 1


def test_a_component_that_generating_never_calls_is_named(tmp_path: Path) -> None:
    task: Any = open_task(describe(tiny_diffusion(tmp_path)))
    task.pipeline.spare = torch.nn.Linear(1, 1)
    with pytest.raises(StageFailed, match="generates without ever calling spare"):
        first_calls(task, ("unet", "spare"), task.examples[:1])

"""Models of a few bytes and stages that only tests know: enough to plan with, and nothing heavy is imported for them."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

from pydantic import Field

from compress.artifact import Artifact, Component
from compress.catalogue import Stage, find_stage
from compress.errors import UserError, near
from compress.params import Params, Uncached
from compress.recipe.values import DataSpec, EvalSpec, Recipe, StepSpec
from evaluation.evidence import Evidence


class Cut(Params):
    ratio: float = Field(0.5, description="share to remove")
    layers: tuple[int, ...] = Field((), description="layers to leave alone")
    components: tuple[str, ...] = Field((), description="parts to work on")
    workers: Annotated[int, Uncached()] = Field(1, description="processes; changes no result")


SIDE = Evidence(Artifact(Path(), "text_to_image", {}))  # of a comparison, of which nothing was observed


def unavailable(artifact: object, params: object, context: object) -> None:
    """A stage's work that planning never gets to."""
    raise AssertionError("planning ran a stage")


CUT = Stage(
    name="demo.cut",
    version=1,
    params=Cut,
    needs=frozenset(),
    formats={"torch": "torch"},
    effects=frozenset({"weights"}),
    reproducible="bytes",
    run=unavailable,
)
BUILD = replace(CUT, name="demo.build", formats={"torch": "openvino"}, effects=frozenset({"format"}))
TUNE = replace(
    CUT, name="demo.tune", formats={"torch": "torch", "openvino": "openvino"}, effects=frozenset({"settings"})
)
STAGES = (CUT, BUILD, TUNE)


@contextmanager
def knowing(*stages: Stage) -> Iterator[None]:
    """Within it, planning and recipes know these stages and no others."""
    known = {stage.name: stage for stage in stages}

    def find(name: str) -> Stage:
        if name not in known:
            raise UserError(f"no stage is called `{name}`", fix=near(name, tuple(known)))
        return known[name]

    def also(name: str) -> Stage:  # a remedy names stages on disk too
        return known[name] if name in known else find_stage(name)

    with ExitStack() as patched:
        for place in ("planning.plan", "planning.nodes", "recipe.steps"):
            patched.enter_context(mock.patch(f"compress.{place}.find_stage", find))
        patched.enter_context(mock.patch("compress.planning.chain_remedies.find_stage", also))
        yield


def step(stage: Stage, *, id: str = "", after: str = "source", place: str = "", **more: Any) -> StepSpec:
    """A step with parameters by name; `inputs` are the step's own."""
    inputs = more.pop("inputs", {})
    return StepSpec(id or stage.name, stage.name, stage.params(**more), after, inputs, place)


def recipe(model: Path | str, *steps: StepSpec, data: Mapping[str, str] | None = None, **more: Any) -> Recipe:
    """A recipe as reading would make it, without a file behind it."""
    whole: dict[str, Any] = {"name": "demo", "seed": 0, "trust_remote_code": False, "evaluate": EvalSpec()}
    whole |= {"gates": {}, "place": {}, "model": str(model), "data": DataSpec(**(data or {})), "stages": steps}
    return Recipe(**(whole | more))


def write_safetensors(path: Path, shape: Sequence[int] = (2, 3), fill: bytes = b"\0", *, real: bool = True) -> Path:
    """One float32 tensor `w`. Not `real`: a sparse file that claims its size and takes no room."""
    count = 1
    for size in shape:
        count *= size
    header = json.dumps({"w": {"dtype": "F32", "shape": list(shape), "data_offsets": [0, 4 * count]}}).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(header)) + header + (fill * 4 * count if real else b""))
        stream.truncate(8 + len(header) + 4 * count)
    return path


def write_headers(path: Path, shapes: Mapping[str, Sequence[int]], dtype: str = "F32", **metadata: str) -> Path:
    """Tensors of these shapes, by name, all zeros and 4 bytes a number: enough for whoever reads headers."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    message = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(message)) + message + bytes(end))
    return path


def language_model(folder: Path, shape: Sequence[int] = (2, 3), *, real: bool = True) -> Path:
    """A folder that describes itself as a Llama, with one tensor in it."""
    write_safetensors(folder / "model.safetensors", shape, real=real)
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0}}, "added_tokens": []}))
    return folder


PARTS = {
    "unet": ("diffusers", "UNet2DConditionModel", "diffusion_pytorch_model"),
    "vae": ("diffusers", "AutoencoderKL", "diffusion_pytorch_model"),
    "text_encoder": ("transformers", "CLIPTextModel", "model"),
}


def pipeline(folder: Path, **shapes: Sequence[int]) -> Path:
    """A folder that describes itself as a diffusion pipeline with a unet, a vae and a text encoder."""
    index: dict[str, Any] = {"_class_name": "StableDiffusionPipeline", "scheduler": ["diffusers", "DDIMScheduler"]}
    for name, (library, kind, stem) in PARTS.items():
        write_safetensors(folder / name / f"{stem}.safetensors", shapes.get(name, (2, 3)))
        (folder / name / "config.json").write_text("{}")
        index[name] = [library, kind]
    (folder / "scheduler").mkdir(exist_ok=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_class_name": "DDIMScheduler"}))
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def scheduled(folder: Path, **config: Any) -> Artifact:
    """A pipeline of which there is no more than its scheduler."""
    (folder / "scheduler").mkdir(parents=True, exist_ok=True)
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(config))
    (folder / "model_index.json").write_text(json.dumps({"scheduler": ["diffusers", config["_class_name"]]}))
    return Artifact(
        folder, "text_to_image", {"transformer": Component("torch", "transformer", "SD3Transformer2DModel")}
    )


def refusing(stage: Stage, why: str) -> Stage:
    return replace(stage, refuse=lambda artifact, params: why)


def needing(stage: Stage, *roles: str) -> Stage:
    """The stage, unable to work without these kinds of data."""
    data: Callable[[Any], tuple[str, ...]] = lambda params: roles  # noqa: E731
    return replace(stage, data=data)

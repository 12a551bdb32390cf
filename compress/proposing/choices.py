"""What is tried for a model, task by task: steps with their reasons, the best way first. Whether one works is for the plan to say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from compress.artifact import LANGUAGE_MODEL, Artifact
from compress.pipelines.call_arguments import STEPS, call_arguments
from compress.pipelines.index import class_of
from compress.planning.durations import latent_places
from compress.proposing.machine import Machine
from compress.quantization.sizes import parameters
from compress.recipe.keep import IF_FASTER

Goal = Literal["faster", "smaller"]
FEW = 4  # steps of a student that is taught to need no more
MANY = 8  # steps from which teaching fewer pays
TEACHABLE = 100_000_000  # parameters that a processor teaches within hours
TEACHABLE_THERE = (
    1_000_000_000  # of a denoiser, times the places of its latents: the zoo's 3 M at 8 by 8 take half an hour
)
GROUPS = (128, 64, 32)  # weights that share a scale: the first that divides a model's layers


@dataclass(frozen=True)
class Step:
    """One stage with its parameters, and why it is there."""

    stage: str
    why: str
    params: Mapping[str, Any] = field(default_factory=dict)
    keep: str = ""


@dataclass(frozen=True)
class Choice:
    """title: what it is for. ways: chains of steps; the first that can be planned is taken. skipped: why none is tried, or "" ."""

    title: str
    ways: tuple[tuple[Step, ...], ...] = ()
    skipped: str = ""


@dataclass(frozen=True)
class Facts:
    """What a proposal rests on. roles: those that data are given for."""

    artifact: Artifact
    machine: Machine
    goal: Goal
    roles: frozenset[str] = frozenset()

    @property
    def faster(self) -> bool:
        return self.goal == "faster"


def choices(facts: Facts) -> tuple[Choice, ...]:
    """In the order of a recipe's steps."""
    return tuple(_of_text(facts) if facts.artifact.writes_text else _of_images(facts))


def _of_text(facts: Facts) -> Iterator[Choice]:
    taught = Step(
        "distill.logits", "the original teaches what is left", {"teacher": "source", "steps": 300, "batch": 4}
    )
    shallow = Step("prune.depth", "one block in six, those that change least of what passes through", {"ratio": 0.17})
    yield _with_data("fewer blocks", facts, "train", ((shallow, taught),))
    if facts.machine.gpu:
        yield _text_on_gpu(facts)
        return
    yield Choice("an engine for this processor", tuple(_text_engines(facts)))


def _text_on_gpu(facts: Facts) -> Choice:
    if facts.faster:
        graph = Step("accelerate.cuda_graph", "decoding steps are replayed, which takes Python out of them")
        compiled = Step("accelerate.compile", "its blocks are compiled at the first call")
        return Choice("decoding without Python", ((graph,), (compiled,)))
    tuned = tuple(
        (
            Step(
                "quantize.autoround",
                "4 bits a weight, rounded as its blocks' outputs ask for; vLLM serves it",
                {"bits": 4, "group_size": size},
            ),
        )
        for size in GROUPS
    )
    packed = Step("quantize.bitsandbytes", "4 bits a weight, without any data", {"mode": "nf4"})
    eight = Step("quantize.torchao", "8 bits a weight, without any data", {"mode": "int8_weights"})
    return Choice("fewer bits a weight", (*(tuned if "calibration" in facts.roles else ()), (packed,), (eight,)))


def _text_engines(facts: Facts) -> Iterator[tuple[Step, ...]]:
    bits, mode = (8, "int8_weights") if facts.faster else (4, "int4_weights")
    weights = f"{bits}-bit weights: decoding waits for them to come from memory"
    if facts.machine.llama_cpp:
        yield (Step("build.gguf", f"llama.cpp, which writes fastest on a processor; {weights}", {"precision": mode}),)
    precision = "bfloat16" if facts.machine.bfloat16 else "float32"
    engine = Step(
        "build.openvino", f"an OpenVINO engine that keeps its own cache, in {precision}", {"precision": precision}
    )
    yield (engine, Step("quantize.nncf", weights, {"mode": mode}))
    yield (Step("build.onnxruntime", f"an ONNX Runtime engine; {weights}", {"precision": mode}),)
    if facts.faster:
        yield (Step("build.compiled", f"native code for this processor, in {precision}", {"precision": precision}),)
        return
    packed = "8 bits a weight, in a checkpoint that stock libraries open"
    yield (Step("quantize.torchao", packed, {"mode": "int8_weights"}),)


def _of_images(facts: Facts) -> Iterator[Choice]:
    steps = own_steps(facts.artifact)
    few = bool(steps) and steps >= MANY
    if not facts.faster:
        yield Choice("fewer steps", skipped="that is faster and saves no byte: --goal faster")
    elif few:
        yield _fewer_steps(facts, steps)
    else:
        yield Choice("fewer steps", skipped=f"it generates in {steps or 'few'} already")
    if not facts.faster:
        narrow = Step("prune.depth", "a quarter of the blocks that can go, those that change least", {"ratio": 0.25})
        taught = Step("distill.features", "the original teaches what is left", {"teacher": "source", "steps": 400})
        yield _with_data("fewer blocks", facts, "train", ((narrow, taught),))
    if facts.machine.gpu:
        yield _images_on_gpu(facts)
        return
    yield Choice("an engine for this processor", tuple(_image_engines(facts)))
    if facts.machine.vnni or not facts.faster:
        yield _with_data("8-bit arithmetic", facts, "calibration", (_eight_bits(facts),))
    else:
        yield Choice("8-bit arithmetic", skipped="this processor multiplies bytes no faster than floats (no VNNI)")


def _fewer_steps(facts: Facts, steps: int) -> Choice:
    half = Step(
        "accelerate.steps",
        f"half of the pipeline's own {steps}; quality falls slowly at first",
        {"steps": max(FEW, steps // 2)},
    )
    if "train" not in facts.roles or _untaught(facts):
        return Choice("fewer steps", ((half,),))
    taught = Step(
        "distill.steps",
        f"a student that needs {FEW} steps and no guidance, where the original takes {steps} with it; the longest part of a run",
        {"steps": FEW, "updates": 2000},
    )
    return Choice("fewer steps", ((taught,), (half,)))


def _images_on_gpu(facts: Facts) -> Choice:
    if not facts.faster:
        packed = Step(
            "quantize.torchao",
            "8 bits a weight of every part that has linear layers",
            {"mode": "int8_weights", "components": "all"},
        )
        return Choice("fewer bits a weight", ((packed,),))
    compiled = Step("accelerate.compile", "the denoiser's repeated blocks are compiled at the first call")
    graph = Step("accelerate.cuda_graph", "the denoiser's calls are replayed, which takes Python out of them")
    return Choice("calls without Python", ((compiled,), (graph,)))


def _image_engines(facts: Facts) -> Iterator[tuple[Step, ...]]:
    precision = "bfloat16" if facts.machine.bfloat16 else "float32"
    given = {"precision": precision}
    yield (Step("build.openvino", f"OpenVINO engines, in {precision}", given),)
    yield (Step("build.onnxruntime", "ONNX Runtime engines"),)
    yield (Step("build.compiled", f"native code for this processor, in {precision}", given),)


def _eight_bits(facts: Facts) -> tuple[Step, ...]:
    why = "weights and activations; kept only where it is faster here" if facts.faster else "weights and activations"
    return (Step("quantize.nncf", why, {"mode": "int8"}, IF_FASTER if facts.faster else ""),)


def _with_data(title: str, facts: Facts, role: str, ways: tuple[tuple[Step, ...], ...]) -> Choice:
    if role not in facts.roles:
        return Choice(title, skipped=f"it takes {role} data: --data {role}=…")
    return Choice(title, ways, _untaught(facts) if role == "train" else "")


def _untaught(facts: Facts) -> str:
    """Why nothing is taught here that could be, or ""."""
    count = parameters(facts.artifact, facts.artifact.main)
    places = 0 if facts.artifact.writes_text else latent_places(facts.artifact)
    if facts.machine.gpu or (0 < count <= TEACHABLE and count * places <= TEACHABLE_THERE):
        return ""
    if not count:
        return "how large it is, nobody knows before it is fetched, and a processor teaches small models alone"
    there = f" at latents of {places} places" if places else ""
    return f"teaching {count / 1e6:.0f} M parameters{there} takes days on a processor: run `pare init` where there is a GPU"


def own_steps(artifact: Artifact) -> int:
    """The denoising steps that a pipeline takes where nobody says; 0 where that is not known."""
    if LANGUAGE_MODEL in artifact.components:
        return 0
    found = artifact.settings.call.get(STEPS, (call_arguments(class_of(artifact.path)) or {}).get(STEPS))
    return found if isinstance(found, int) else 0

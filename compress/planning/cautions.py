"""What a plan warns of: it can run, and may not do what was meant. Known from `check` and `plan`, and by a run before its first stage."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from compress.adapters.fusing import Fusion
from compress.adapters.names import MAGNITUDE
from compress.artifact import Artifact
from compress.catalogue import find_metric
from compress.data.items import Data
from compress.data.texts import ROWS
from compress.machine.devices import kind_of
from compress.model.device_memory import uncounted
from compress.pipelines.index_checks import sampled_otherwise
from compress.planning.evaluation_checks import beyond_training
from compress.planning.feature_cautions import foreign_features
from compress.planning.nodes import Node
from compress.recipe.values import EvalSpec, Recipe
from compress.sources.models import Source
from compress.sources.units import fewer

ONE_DOCUMENT = (
    'in a text file blank lines separate documents; give one a line as JSON lines, {"text": …} each, in a .jsonl'
)


OF_GPUS = ("device_memory", "device_time")


def cautions(recipe: Recipe, source: Source, data: Mapping[str, Data], stages: Iterable[str]) -> Iterator[str]:
    """What somebody must hear of a plan, each with what to do about it.

    Args:
        data: what was opened, by role.
        stages: what the stages tell of themselves.
    """
    if evaluated := data.get("evaluate"):
        yield from data_cautions(evaluated, recipe.evaluate, recipe.gates)
    if isinstance(source.making, Fusion):
        yield from _unavailable_adapters(source.making)
    if otherwise := sampled_otherwise(source.artifact):
        yield otherwise
    if far := beyond_training(source.artifact, recipe.evaluate, recipe.evaluate.metrics):
        yield far
    yield from stages


def data_cautions(data: Data, spec: EvalSpec, gates: Iterable[str]) -> Iterator[str]:
    """What of the evaluation data does not count, and where they are too few."""
    from evaluation.verdict.gates import FEWEST_UNITS

    if data.left_out:
        yield data.left_out
    if few := fewer(data, spec.samples, EvalSpec.model_fields["samples"].default):
        yield few
    units = spec.samples if data.count < 0 else min(spec.samples, data.count)
    gated = [name for name in gates if find_metric(name).quality and find_metric(name).needs_data]
    if gated and units < FEWEST_UNITS:
        yield f"gates on {', '.join(gated)} will stay inconclusive: they rest on {units} of at least {FEWEST_UNITS} units; give more"
    yield from foreign_features(data, spec)
    if data.kind == "texts" and data.count == 1 and Path(data.source).suffix.lower() not in ROWS:
        yield f"{data.source} is 1 document: {ONE_DOCUMENT}"


def uncounted_memory(recipe: Recipe, source: Artifact, nodes: Sequence[Node], device: str) -> Iterator[str]:
    """Gates on what is counted on a GPU alone, and on memory that a side takes there without torch's knowing."""
    if kind_of(device) != "cuda":
        for name in (one for one in OF_GPUS if one in recipe.gates):
            yield f"the gate on {name} stays inconclusive: it is counted on NVIDIA GPUs, and the device is {device}"
        return
    sides = (source, nodes[-1].expected) if nodes else (source,)
    if "device_memory" in recipe.gates and (why := next(filter(None, map(uncounted, sides)), "")):
        yield f"the gate on device_memory stays inconclusive: {why}"


def raced_otherwise(recipe: Recipe, nodes: Sequence[Node]) -> Iterator[str]:
    """A stage that times torch in other numbers than the evaluation will: what wins there need not win here."""
    measured = recipe.evaluate.baseline.dtype
    for node in nodes if recipe.evaluate.metrics else ():
        dtype = getattr(node.params, "torch_dtype", measured)
        if dtype != measured:
            yield f"`{node.id}` times torch in {dtype}, and evaluate.baseline has {measured}: set its torch_dtype to {measured}"


def _unavailable_adapters(fusion: Fusion) -> Iterator[str]:
    """Adapters that are multiplied by nothing."""
    for adapter, place in zip(fusion.adapters, fusion.places, strict=True):
        if adapter.strength == 0 and not any(MAGNITUDE in name for name in adapter.header.tensors):
            head = f"{place}: " if place else ""
            yield f"{head}adapter {adapter.name} has scale 0 and changes no weight: give another scale, or leave it out"

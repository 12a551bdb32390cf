"""Measure what quantizing each layer alone costs, and change nothing.

Use it before a quantizer, to see which layers must stay wide, and for `bits: auto`, which reads it. Each matrix of weights is rounded to
nearest by itself and put back. A language model's cost is the KL divergence from the unquantized model, nats a token, on calibration texts;
a denoiser's is the relative squared error of its output, on the calls that its pipeline makes of calibration captions, at timesteps spread
evenly over its own steps. It leaves `sensitivity.json` beside the model, where later stages find it. A run that was cut off goes on.
Source: Wu et al., "Integer Quantization for Deep Learning Inference" (2020), sensitivity of single layers; Nagel et al., "A White Paper on
Neural Network Quantization" (2021), rounding.

    - analyze.sensitivity: {bits: [8, 4], group_size: 64}
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from compress.artifact import LANGUAGE_MODEL, Artifact, derive, write_manifest
from compress.catalogue import Forecast, stage
from compress.context import Context
from compress.errors import StageFailed
from compress.params import Params
from compress.quantization import sensitivity
from compress.quantization.sensitivity import FILE, Layer, Sensitivity

if TYPE_CHECKING:
    import torch

    from compress.algorithms.rounding import Weight
    from compress.opening.models import OpenModel

Width = Annotated[int, Field(ge=2, le=8)]
PER_ROW = 8  # bits from which engines keep one scale a row
NAMED = 3  # layers that a note names
CALLS, COSTS = "calls.json", "costs.jsonl"


class AnalyzeSensitivity(Params):
    bits: tuple[Width, ...] = Field((8, 4), min_length=1, description="widths that each layer is tried in")
    group_size: int = Field(
        64,
        ge=0,
        description="weights that share a scale below 8 bits, snapped to a divisor of each layer; 0: a whole row, as in 8 bits",
    )
    symmetric: bool = Field(False, description="whether codes lie symmetrically around zero")
    samples: int = Field(8, ge=1, description="calibration texts, or captions that are generated")
    tokens: int = Field(128, ge=2, description="tokens of a text that are read at most")
    timesteps: int = Field(8, ge=1, description="of a denoiser's own steps, how many are looked at, spread evenly")
    components: tuple[str, ...] = Field((), description="which; none named: the denoiser, or the language model")


@dataclass(frozen=True)
class Look:
    """One recorded call: its file, its number in it, which of the timesteps it is at (-1: none), and its weight in the mean."""

    file: str
    number: int
    at: int
    share: float


@dataclass(frozen=True)
class Recorded:
    """The calls that a component is looked at with."""

    looks: tuple[Look, ...]
    timesteps: tuple[float, ...] = ()


def refuse(artifact: Artifact, params: AnalyzeSensitivity) -> str:
    wanted = artifact.choose(params.components, bool)
    if packed := artifact.packed(wanted):
        return f"the weights of {', '.join(packed)} are packed already: put it before the stage that packs them"
    hooks = [hook.name for hook in artifact.settings.hook if hook.component in wanted]
    return f"{hooks[0]} hooks the modules that it measures: put {hooks[0]} behind it" if hooks else ""


def forecast(artifact: Artifact, params: AnalyzeSensitivity) -> Forecast:
    wanted = artifact.choose(params.components, bool)
    widths = ", ".join(map(str, params.bits))
    reported = f"{', '.join(wanted)}: what each layer alone costs in {widths} bits; no weight changes"
    if LANGUAGE_MODEL not in wanted:
        return Forecast(reported=reported)
    words = int(artifact.known_config(LANGUAGE_MODEL).get("vocab_size") or 0)
    return Forecast(reported=reported, scratch_bytes=4 * words * params.tokens * params.samples)


@stage(
    version=1,
    params=AnalyzeSensitivity,
    formats={"torch": "torch"},
    effects=("files",),
    files=(FILE,),
    reproducible="bytes",
    bound_to=("isa",),  # costs are sums of rounded numbers
    libraries=("torch", "transformers", "diffusers"),
    data=lambda params: ("calibration",),
    refuse=refuse,
    forecast=forecast,
)
def run(artifact: Artifact, params: AnalyzeSensitivity, context: Context) -> None:
    from compress.opening import open_task

    made = derive(artifact, context.out, without=(FILE,), link=context.link)
    task = open_task(artifact, context.opening.of("float32"))
    parts = sensitivity.read(artifact)
    for name in artifact.choose(params.components, bool):
        parts[name] = found = _measured(task, name, params, context)
        worst = min(params.bits)
        named = ", ".join(f"{layer} {cost:.2g}" for layer, cost in sensitivity.costliest(found, worst, NAMED))
        message = f"{name}: of {len(found.layers)} layers in {worst} bits, {named} cost most ({found.measure})"
        context.note(message, component=name, costliest=named, sensitivity=sensitivity.shown(found))
    (context.out / FILE).write_text(sensitivity.spelled(parts))
    write_manifest(made)


def _measured(task: OpenModel, name: str, params: AnalyzeSensitivity, context: Context) -> Sensitivity:
    """What each layer of a component costs; layers that an interrupted run had finished are not measured again."""
    from compress.algorithms.rounding import matrices

    place = context.scratch / name
    place.mkdir(parents=True, exist_ok=True)
    recorded = _recorded(task, name, params, context, place)
    _write_references(task, name, recorded.looks, place)
    weights, known = tuple(matrices(task.component(name))), _known(place / COSTS)
    layers = {}
    with (place / COSTS).open("a") as finished:
        finished.write("\n")  # behind a line that was cut off
        for weight in context.progress(weights, f"{name} layers", len(weights)):
            if weight.name not in known:
                known[weight.name] = _costs(task, name, weight, recorded.looks, params, place)
                finished.write(json.dumps([weight.name, known[weight.name]]) + "\n")
                finished.flush()
            layers[weight.name] = _layer(weight, known[weight.name], recorded)
    plain = params.bits, params.group_size, params.symmetric, len(recorded.looks)
    return Sensitivity("kl" if name == LANGUAGE_MODEL else "relative error", *plain, layers, recorded.timesteps)


def _recorded(task: OpenModel, name: str, params: AnalyzeSensitivity, context: Context, place: Path) -> Recorded:
    """The component's calls, on disk: they are there once `calls.json` is."""
    from compress.store.cache import write_whole

    if not (place / CALLS).is_file():
        record = _texts if name == LANGUAGE_MODEL else _steps
        write_whole(place / CALLS, asdict(record(task, name, params, context, place)))
    found = json.loads((place / CALLS).read_text())
    return Recorded(tuple(Look(**look) for look in found["looks"]), tuple(found["timesteps"]))


def _texts(task: OpenModel, name: str, params: AnalyzeSensitivity, context: Context, place: Path) -> Recorded:
    """A call a text; each weighs as much as it has tokens."""
    import torch

    from compress.machine.devices import CPU
    from compress.opening.rows import calibration_rows
    from compress.training.recordings import write_calls

    looks = []
    for number, row in enumerate(calibration_rows(task.artifact, params.samples, params.tokens, context)):
        looks.append(Look(f"calls-{number}", 0, -1, len(row)))
        call = {"input_ids": torch.tensor([row], device=CPU), "use_cache": False}
        write_calls(place / f"calls-{number}.safetensors", [call])
    return Recorded(tuple(looks))


def _steps(task: OpenModel, name: str, params: AnalyzeSensitivity, context: Context, place: Path) -> Recorded:
    """The calls of images at a few of their timesteps, generated as the model is meant to be called."""
    from compress.building.build import IMAGES_A_BATCH
    from compress.training.recordings import write_calls

    looks: list[Look] = []
    times: list[float] = []
    items = context.data["calibration"].first(params.samples)
    for start in context.progress(range(0, len(items), IMAGES_A_BATCH), f"{name} calls", 0):
        batch = items[start : start + IMAGES_A_BATCH]
        recorded = [call for _, call in task.calls_of((name,), batch, context.seed, batch=len(batch))]
        found = [_time(call) for call in recorded]
        times = times or _spread(list(dict.fromkeys(t for t in found if t is not None)), params.timesteps)
        kept = [(call, t) for call, t in zip(recorded, found, strict=True) if t is None or t in times]
        file = f"calls-{start}"
        write_calls(place / f"{file}.safetensors", [call for call, _ in kept])
        looks += [Look(file, i, times.index(t) if t in times else -1, len(batch)) for i, (_, t) in enumerate(kept)]
    if not looks:
        message = f"the pipeline generates without ever calling {name}"
        raise StageFailed(message, place=str(task.artifact.path), fix="leave it out: name the others as `components`")
    return Recorded(tuple(looks), tuple(times))


def _time(call: Mapping[str, Any]) -> float | None:
    """The timestep of a denoiser's call; None of any other component's."""
    import torch

    given = call.get("timestep")
    return None if given is None else float(torch.as_tensor(given).flatten()[0])


def _spread(values: Sequence[float], count: int) -> list[float]:
    """So many of them, the first and the last among them where there is room for two."""
    if count >= len(values):
        return list(values)
    step = (len(values) - 1) / max(1, count - 1)
    return [values[round(i * step)] for i in range(count)]


def _outputs(task: OpenModel, name: str, looks: Iterable[Look], place: Path) -> Iterator[torch.Tensor]:
    """What the component gives for each recorded call, as it is now; one at a time."""
    from compress.algorithms.tensors import moved
    from compress.engines.torch.runtime import first_tensor
    from compress.training.recordings import read_call

    module = task.component(name)
    for look in looks:
        call = moved(read_call(place / f"{look.file}.safetensors", look.number), task.opening.device)
        yield first_tensor(getattr(module, task.function_of(name))(**call))


def _reference(place: Path, look: Look) -> Path:
    return place / f"wanted-{look.file}-{look.number}.safetensors"


def _write_references(task: OpenModel, name: str, looks: Sequence[Look], place: Path) -> None:
    """Lay down what the unquantized component gives: a vocabulary for each token is more than memory should hold."""
    import torch
    from safetensors.torch import save_file

    from compress.algorithms.tensors import to_host

    wanting = [look for look in looks if not _reference(place, look).is_file()]
    with torch.no_grad():
        for look, output in zip(wanting, _outputs(task, name, wanting, place), strict=True):
            part = place / "wanted.partial"
            save_file({"output": to_host(output, torch.float32).contiguous()}, part)
            part.replace(_reference(place, look))


def _costs(
    task: OpenModel, name: str, weight: Weight, looks: Sequence[Look], params: AnalyzeSensitivity, place: Path
) -> dict[str, list[float]]:
    """By width, the cost at each call."""
    from safetensors.torch import load_file

    from compress.algorithms.alone import costs
    from compress.algorithms.losses import relative_error, tempered_kl
    from compress.algorithms.rounding import group_of, rounded

    def outputs() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for look, found in zip(looks, _outputs(task, name, looks, place), strict=True):
            yield found, load_file(_reference(place, look))["output"].to(found.device)

    def loss(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return tempered_kl(found, wanted, 1.0) if name == LANGUAGE_MODEL else relative_error(found, wanted)

    by_width = {}
    for bits in params.bits:
        group = group_of(weight.row, params.group_size if bits < PER_ROW else 0)
        value = rounded(weight, bits, group, symmetric=params.symmetric)
        by_width[str(bits)] = found = costs(weight, value, outputs, loss)
        if not all(map(math.isfinite, found)):
            message = f"`{name}` gives values that are no numbers while `{weight.name}` alone is rounded to {bits} bits"
            raise StageFailed(message, place=str(task.artifact.path), fix="leave out that width, or look at the layer")
    return by_width


def _known(file: Path) -> dict[str, dict[str, list[float]]]:
    """By layer, what an interrupted run measured; a line that was cut off is measured again."""
    found = {}
    for line in file.read_text().splitlines() if file.is_file() else ():
        try:
            name, costs = json.loads(line)
        except ValueError:
            continue
        found[name] = costs
    return found


def _layer(weight: Weight, costs: Mapping[str, Sequence[float]], recorded: Recorded) -> Layer:
    """The means of a layer's costs over all calls, and over those at each timestep."""
    import torch

    from compress.algorithms.tensors import to_host

    shares = [look.share for look in recorded.looks]

    def mean(values: Sequence[float], at: int | None = None) -> float:
        some = [i for i, look in enumerate(recorded.looks) if at in (None, look.at)]
        return _short(sum(values[i] * shares[i] for i in some) / sum(shares[i] for i in some))

    count = range(len(recorded.timesteps))
    whole = {int(bits): mean(values) for bits, values in costs.items()}
    times = {int(bits): tuple(mean(values, at) for at in count) for bits, values in costs.items()} if count else {}
    mark = sensitivity.fingerprint(to_host(weight.table, torch.float32).numpy())
    return Layer(weight.value.numel() // weight.row, weight.row, mark, whole, times)


def _short(value: float) -> float:
    """Six digits: more say nothing of a layer."""
    return float(f"{value:.6g}")

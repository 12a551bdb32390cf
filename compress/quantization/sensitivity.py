"""What quantizing each layer alone costs, as `analyze.sensitivity` leaves it in `sensitivity.json` beside a model."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from compress.artifact import Artifact, Provenance, read_json
from compress.catalogue import find_stage, stage_names
from compress.errors import ModelError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FILE = "sensitivity.json"
STAGE = "analyze.sensitivity"
SCHEMA = 1
MEASURES = {
    "kl": "KL divergence from the unquantized model, nats a token",
    "relative error": "mean squared difference of the denoiser's output over its mean square",
}


@dataclass(frozen=True)
class Layer:
    """One matrix of weights, and its costs by width in bits.

    rows: output channels. row: weights of each. fingerprint: of its weights, by which an engine's layers, which have lost their names,
    are known. timesteps: by width, a cost for each of the component's timesteps.
    """

    rows: int
    row: int
    fingerprint: str
    cost: Mapping[int, float]
    timesteps: Mapping[int, tuple[float, ...]] = field(default_factory=dict)

    @property
    def weights(self) -> int:
        return self.rows * self.row


@dataclass(frozen=True)
class Sensitivity:
    """A component's layers by name. measure: one of `MEASURES`. calls: texts, or calls to the denoiser, that it rests on.
    timesteps: those that costs are known from, from noise to image; () where the model has none."""

    measure: str
    bits: tuple[int, ...]
    group_size: int
    symmetric: bool
    calls: int
    layers: Mapping[str, Layer]
    timesteps: tuple[float, ...] = ()


def spelled(parts: Mapping[str, Sensitivity]) -> str:
    """The text of the file: the same bytes for the same costs."""
    body = {"schema": SCHEMA, "components": {name: asdict(part) for name, part in parts.items()}}
    return json.dumps(body, indent=1) + "\n"


def read(artifact: Artifact) -> dict[str, Sensitivity]:
    """By component, what the file beside a model says; {} where there is none.

    Raises:
        ModelError: it does not read.
    """
    path = artifact.path / FILE
    if not path.is_file():
        return {}
    try:
        found = read_json(path)
        if found["schema"] != SCHEMA:
            raise ValueError(f"of schema {found['schema']}, and this pare reads {SCHEMA}")
        return {name: _component(part) for name, part in found["components"].items()}
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        message = f"is no table of sensitivities: {error}"
        raise ModelError(message, place=str(path), fix=f"run {STAGE} again, or remove the file") from error


def _component(part: Mapping[str, Any]) -> Sensitivity:
    layers = {name: _layer(one) for name, one in part["layers"].items()}
    plain = str(part["measure"]), tuple(map(int, part["bits"])), int(part["group_size"]), bool(part["symmetric"])
    return Sensitivity(*plain, int(part["calls"]), layers, tuple(map(float, part["timesteps"])))


def _layer(one: Mapping[str, Any]) -> Layer:
    cost = {int(bits): float(value) for bits, value in one["cost"].items()}
    if not all(map(math.isfinite, cost.values())):
        raise ValueError("a cost is not finite")
    times = {int(bits): tuple(map(float, row)) for bits, row in one["timesteps"].items()}
    return Layer(int(one["rows"]), int(one["row"]), str(one["fingerprint"]), cost, times)


def measured(artifact: Artifact, component: str) -> Provenance | None:
    """The last stage that measured a component, as the model's lineage tells."""
    return next((m for m in reversed(artifact.lineage) if m.stage == STAGE and _of(m, artifact, component)), None)


def stale(artifact: Artifact, component: str) -> str:
    """Why what the model's lineage says of sensitivities is not of this component as it is now, or "" where it is."""
    last = measured(artifact, component)
    if last is None:
        return f"no {STAGE} of `{component}` went before it"
    later = artifact.lineage[artifact.lineage.index(last) + 1 :]
    changed = next((m.stage for m in later if _changes(m.stage) and _of(m, artifact, component)), "")
    return f"{changed} changed `{component}` after {STAGE} had measured it" if changed else ""


def fingerprint(weights: NDArray[np.float32]) -> str:
    """Of a matrix, output channels first, whatever shapes its axes are folded into."""
    import numpy as np

    return hashlib.sha256(np.ascontiguousarray(weights, dtype="<f4").tobytes()).hexdigest()[:32]


def _of(made: Provenance, artifact: Artifact, component: str) -> bool:
    """Whether a stage worked on a component."""
    own = find_stage(made.stage).components if made.stage in stage_names() else ()
    named = made.params.get("components") or own or (artifact.main,)
    return named == "all" or component in named


def _changes(stage: str) -> bool:
    return stage not in stage_names() or "weights" in find_stage(stage).effects


def costliest(part: Sensitivity, bits: int, most: int) -> Iterator[tuple[str, float]]:
    """The layers that cost most at this width, the worst first."""
    ordered = sorted(part.layers.items(), key=lambda one: -one[1].cost[bits])
    return ((name, layer.cost[bits]) for name, layer in ordered[:most])


def shown(part: Sensitivity) -> dict[str, Any]:
    """What a report shows of a component, as JSON: its layers in the model's order; the heat map is of its fewest bits."""
    fewest = min(part.bits)
    layers = [[name, layer.weights, [_near(layer.cost[b]) for b in part.bits]] for name, layer in part.layers.items()]
    heat = [list(map(_near, layer.timesteps[fewest])) for layer in part.layers.values()] if part.timesteps else []
    reported = {"measure": part.measure, "bits": list(part.bits), "calls": part.calls}
    return {**reported, "layers": layers, "timesteps": list(part.timesteps), "heat": heat}


def _near(value: float) -> float:
    return float(f"{value:.3g}")

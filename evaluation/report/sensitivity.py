"""What quantizing each layer alone costs: a bar a layer, and a heat map of layers and timesteps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compress.quantization.sensitivity import MEASURES
from evaluation.report import formatting, plots

KEYS = frozenset({"measure", "bits", "calls", "layers", "timesteps", "heat"})
BARS = 30  # layers that are drawn; the others cost less
DECADES = 3.0  # below the largest cost, over which a colour fades


@dataclass(frozen=True)
class Table:
    """One component's. layers: name, weights, and cost by width, in the model's order. heat: layers × timesteps, at the fewest bits."""

    stage: str
    component: str
    measure: str
    bits: tuple[int, ...]
    calls: int
    layers: tuple[tuple[str, int, tuple[float, ...]], ...]
    timesteps: tuple[float, ...]
    heat: tuple[tuple[float, ...], ...]

    @property
    def worst(self) -> int:
        """Where among a layer's costs that of the fewest bits stands."""
        return self.bits.index(min(self.bits))

    @property
    def shown(self) -> tuple[int, ...]:
        """The layers that cost most at the fewest bits, the worst first."""
        order = sorted(range(len(self.layers)), key=lambda i: -self.layers[i][2][self.worst])
        return tuple(order[:BARS])


def is_table(fact: object) -> bool:
    """Whether a stage's fact is such a table."""
    return isinstance(fact, Mapping) and fact.keys() >= KEYS


def read(stages: Sequence[Mapping[str, Any]]) -> tuple[Table, ...]:
    """All tables among the stages' facts that have a layer."""
    found = [
        _table(str(stage["id"]), name.rpartition(" ")[0], fact)
        for stage in stages
        for name, fact in stage.get("facts", {}).items()
        if is_table(fact)
    ]
    return tuple(table for table in found if table.layers)


def _table(stage: str, component: str, fact: Mapping[str, Any]) -> Table:
    layers = tuple((str(name), int(weights), tuple(map(float, costs))) for name, weights, costs in fact["layers"])
    heat = tuple(tuple(map(float, row)) for row in fact["heat"])
    times, bits = tuple(map(float, fact["timesteps"])), tuple(map(int, fact["bits"]))
    return Table(stage, component, str(fact["measure"]), bits, int(fact["calls"]), layers, times, heat)


def reported(table: Table) -> str:
    """What the charts show, in words."""
    measure = MEASURES.get(table.measure, table.measure)
    count = len(table.layers)
    some = f"the {BARS} of {count} layers that cost most" if count > BARS else f"all {count} layers"
    return f"{table.component or table.stage}: {measure}, with one layer alone quantized; {some}, over {table.calls} calls."


def bars(table: Table) -> str:
    """A bar a layer, the worst first, on one logarithmic axis; a tick in it for each width that costs less."""
    drawn = [table.layers[i] for i in table.shown]
    positive = [cost for _, _, costs in drawn for cost in costs if cost > 0]
    if not positive:
        return ""
    x = plots.scale(_ends(positive), True)
    parts = []
    for name, weights, costs in drawn:
        text = ", ".join(f"{bits} bits {_cost(cost)}" for bits, cost in zip(table.bits, costs, strict=True))
        ticks = "".join(
            f'<line class="whisker" x1="{x(c):.2f}%" x2="{x(c):.2f}%" y1="2" y2="16"/>' for c in costs if c > 0
        )
        bar = f'<rect class="loss" x="0" width="{x(costs[table.worst]):.2f}%" y="4" height="10"/>{ticks}'
        label = formatting.escaped(f"{name}: {text}")
        parts.append(
            f'<div class="forest layer"><div>{formatting.escaped(name)}<small>{weights:,} weights</small></div>'
            f'<svg role="img" aria-label="{label}">{bar}</svg><div class="n">{formatting.escaped(text)}</div></div>'
        )
    return "".join(parts)


def _ends(values: Sequence[float]) -> list[float]:
    """The ends of the axis: no more decades than can be kept apart."""
    high = max(values)
    return [max(min(values), high / 10 ** (2 * DECADES)), high]


def heat(table: Table) -> str:
    """A row a layer in the model's order, a column a timestep from noise to image; darker costs more. "" without timesteps."""
    most = max((cost for row in table.heat for cost in row), default=0.0)
    count = len(table.timesteps)
    if count < 2 or most <= 0:
        return ""
    parts = []
    for i in sorted(table.shown):
        name, costs = formatting.escaped(table.layers[i][0]), table.heat[i]
        cells = "".join(_cell(100 * j / count, 100 / count, cost, most) for j, cost in enumerate(costs))
        least, largest = _cost(min(costs)), _cost(max(costs))
        label = f"{name}: from {least} to {largest} over {count} timesteps"
        parts.append(
            f'<div class="forest layer"><div>{name}</div><svg role="img" aria-label="{label}">{cells}</svg>'
            f'<div class="n">{least} to {largest}</div></div>'
        )
    middle = [100 * (j + 0.5) / count for j in range(count)]
    texts = "".join(plots.labels(table.timesteps, lambda t: middle[table.timesteps.index(t)], "", 14))
    return (
        "".join(parts)
        + f'<div class="forest layer ruler"><div>timestep</div><svg aria-hidden="true">{texts}</svg><div></div></div>'
    )


def _cell(left: float, width: float, cost: float, most: float) -> str:
    title = f"<title>{_cost(cost)}</title>"
    return f'<rect class="hot" x="{left:.2f}%" width="{width:.2f}%" y="0" height="18" fill-opacity="{_share(cost, most):.2f}">{title}</rect>'


def _cost(value: float) -> str:
    return f"{value:.2g}".replace("-", "−")


def _share(cost: float, most: float) -> float:
    """How dark a cell is, 0 to 1: logarithmic over `DECADES`."""
    return max(0.0, 1 + math.log10(cost / most) / DECADES) if cost > 0 else 0.0


def lines(stages: Sequence[Mapping[str, Any]]) -> list[str]:
    """For each table, the costliest layers in words."""
    return list(map(_line, read(stages)))


def _line(table: Table) -> str:
    worst = [(table.layers[i][0], table.layers[i][2][table.worst]) for i in table.shown[:3]]
    named = ", ".join(f"{name} {_cost(cost)}" for name, cost in worst)
    measure = MEASURES.get(table.measure, table.measure)
    return f"{table.component or table.stage}: in {min(table.bits)} bits alone, {named} cost most ({measure})"

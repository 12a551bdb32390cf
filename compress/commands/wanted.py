"""What an evaluation is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from compress.catalogue import find_metric, metric_names
from compress.endpoints.address import TIMEOUT
from compress.errors import Problem
from compress.machine.devices import CPU
from compress.params import faults
from compress.recipe.gates import Gate
from compress.recipe.shared_parameters import spread
from compress.recipe.values import EvalSpec


@dataclass(frozen=True)
class Wanted:
    """What `eval` measures: metrics with their parameters, gates, the data's name ("" for none), how much of it, where, and
    whether the models' own Python code may run, and how many seconds an endpoint may be silent."""

    metrics: Mapping[str, Mapping[str, Any]]
    gates: Mapping[str, Gate] = field(default_factory=dict)
    data: str = ""
    spec: EvalSpec = field(default_factory=EvalSpec)
    device: str = CPU
    trust_remote_code: bool = False
    timeout: float = TIMEOUT

    @property
    def spread(self) -> dict[str, dict[str, Any]]:
        """The metrics that there are, with what they leave open; that there is none of a name is reported elsewhere."""
        return spread({name: given for name, given in self.metrics.items() if name in metric_names()}, self.spec)

    def misplaced(self) -> Iterator[Problem]:
        """What is wrong with what metrics name on disk."""
        for name, given in self.spread.items():
            for setting, wrong in faults(find_metric(name).params, given).items():
                yield Problem("metrics", f"{name}.{setting}: {wrong.message}", wrong.fix)

"""How the zoo trains: pare's own loop on a budget of minutes, with checkpoints that a fresh clone goes on from.

They lie in `training/NAME/` of pare's cache folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import torch

from compress.events import Event
from compress.params import Training
from compress.store.cache import default_root
from compress.training import loop
from compress.training.checkpoints import STATE, Curve, Spent

CHECKPOINTS = default_root() / "training"


def train(
    name: str,
    module: torch.nn.Module,
    loss_at: Callable[[int], torch.Tensor],
    how: Training,
    minutes: float,
    every: Callable[[int], None] | None = None,
    before: Spent | None = None,
) -> Curve:
    """Train `module` in place until the steps or the time are spent; it then holds its averaged weights.

    A checkpoint is gone on from whatever its settings were, so that more `--steps` may follow. For the arguments and the
    result see `compress.training.loop.train`.
    """

    def say(event: Event) -> None:
        if event.kind == "loss":
            print(f"{name}: step {event.facts['step']}/{how.steps} loss {event.facts['loss']:.5f}", flush=True)
        elif event.message:
            print(f"{name}: {event.message}", flush=True)

    return loop.train(
        module,
        lambda batch: {"loss": loss_at(batch)},
        how,
        folder=CHECKPOINTS / name,
        seed=0,
        emit=say,
        seconds=minutes * 60,
        before=before,
        every=every,
        lenient=True,
    )


def spent(name: str) -> dict[str, int]:
    """The steps and seconds that the last checkpoint of `name` stands for, over all its resumed runs."""
    facts = json.loads((CHECKPOINTS / name / STATE).read_text())
    return {"steps": facts["step"], "seconds": round(facts["seconds"])}

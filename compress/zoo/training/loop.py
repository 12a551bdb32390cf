"""The loop that trained the zoo: bf16 autocast, AdamW, cosine schedule, EMA, and checkpoints that survive a kill.

Checkpoints are safetensors and JSON in `training/NAME/` of pare's cache folder, so a fresh clone goes on where another stopped.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.nn.attention import SDPBackend, sdpa_kernel

from compress.cache import default_root

CHECKPOINTS = default_root() / "training"
EVERY_SECONDS = 90.0


@dataclass(frozen=True)
class Schedule:
    """`steps` in all; the rate rises over `warmup` steps and falls along a cosine to a twentieth.

    A run that starts at `origin`, from the shipped weights, warms up there: its optimiser knows nothing yet.
    """

    steps: int
    rate: float
    warmup: int = 100
    decay: float = 0.01
    ema: float = 0.999
    origin: int = 0

    def rate_at(self, step: int) -> float:
        rising = min(1.0, (step - self.origin + 1) / self.warmup)
        return self.rate * rising * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.steps))))


@dataclass(frozen=True)
class Spent:
    """What went into some weights."""

    steps: int = 0
    seconds: float = 0.0
    curve: tuple[tuple[int, float], ...] = ()
    recent: tuple[float, ...] = ()  # the losses since the curve's last point


def train(
    name: str,
    module: torch.nn.Module,
    loss_at: Callable[[int], torch.Tensor],
    schedule: Schedule,
    minutes: float,
    every: Callable[[int], None] | None = None,
    before: Spent | None = None,
) -> list[tuple[int, float]]:
    """Train `module` in place until the schedule or the time ends; it then holds its averaged (EMA) weights.

    Args:
        loss_at: step to scalar loss; draws its batch by the step's number, so a resumed run sees what it would have seen.
        every: called with the step after each checkpoint.
        before: what the weights in `module` have been trained already, where there is no checkpoint to go on from.

    Returns:
        The loss curve, (step, mean loss of the fifty steps before).
    """
    folder = CHECKPOINTS / name
    weights = dict(module.named_parameters())
    optimiser = torch.optim.AdamW(weights.values(), lr=schedule.rate, weight_decay=schedule.decay, betas=(0.9, 0.99))
    average = {key: value.detach().clone() for key, value in weights.items()}
    state = _resume(folder, weights, average, optimiser) or before or Spent()
    step, curve, spent = state.steps, list(state.curve), state.seconds
    began = saved = time.monotonic()
    recent = list(state.recent)
    while step < schedule.steps and spent + time.monotonic() - began < minutes * 60:
        loss = _learn(step, loss_at, schedule, weights, average, optimiser)
        step += 1
        recent.append(loss)
        if step % 50 == 0:
            curve.append((step, round(sum(recent) / len(recent), 5)))
            recent.clear()
            print(
                f"{name}: step {step}/{schedule.steps} loss {curve[-1][1]} {(time.monotonic() - began) / 60:.1f} min",
                flush=True,
            )
        if time.monotonic() - saved > EVERY_SECONDS:
            saved = time.monotonic()
            so_far = Spent(step, spent + saved - began, tuple(curve), tuple(recent))
            _save(folder, weights, average, optimiser, so_far)
            if every:
                with Averaged(weights, average):
                    every(step)
    so_far = Spent(step, spent + time.monotonic() - began, tuple(curve), tuple(recent))
    _save(folder, weights, average, optimiser, so_far)
    for key, value in weights.items():
        value.data.copy_(average[key])
    return curve


def _learn(
    step: int,
    loss_at: Callable[[int], torch.Tensor],
    schedule: Schedule,
    weights: dict[str, torch.nn.Parameter],
    average: dict[str, torch.Tensor],
    optimiser: torch.optim.Optimizer,
) -> float:
    """One step of the optimiser and of the average; returns the loss before it."""
    for group in optimiser.param_groups:
        group["lr"] = schedule.rate_at(step)
    torch.manual_seed(step)
    optimiser.zero_grad(set_to_none=True)
    # Flash attention's backward pass on a CPU costs more than all the rest of a small denoiser's step.
    with sdpa_kernel(SDPBackend.MATH):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_at(step)
        loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
    optimiser.step()
    since = step - schedule.origin
    keep = min(schedule.ema, (since + 1) / (since + 10))
    torch._foreach_lerp_(list(average.values()), [w.detach() for w in weights.values()], 1 - keep)
    return float(loss.detach())


def spent(name: str) -> dict[str, int]:
    """The steps and seconds that the last checkpoint of `name` stands for, over all its resumed runs."""
    facts = json.loads((CHECKPOINTS / name / "state.json").read_text())
    return {"steps": facts["step"], "seconds": round(facts["seconds"])}


class Averaged:
    """Within: the module holds its averaged weights."""

    def __init__(self, weights: dict[str, torch.nn.Parameter], average: dict[str, torch.Tensor]) -> None:
        self.weights, self.average = weights, average

    def __enter__(self) -> None:
        self.kept = {key: value.detach().clone() for key, value in self.weights.items()}
        for key, value in self.weights.items():
            value.data.copy_(self.average[key])

    def __exit__(self, *error: object) -> None:
        for key, value in self.weights.items():
            value.data.copy_(self.kept[key])


def _save(
    folder: Path,
    weights: dict[str, torch.nn.Parameter],
    average: dict[str, torch.Tensor],
    optimiser: torch.optim.Optimizer,
    done: Spent,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"weight/{k}": v.detach().contiguous() for k, v in weights.items()}
    tensors |= {f"average/{k}": v.contiguous() for k, v in average.items()}
    for key, value in weights.items():
        for moment in ("exp_avg", "exp_avg_sq"):
            if value in optimiser.state:
                tensors[f"{moment}/{key}"] = optimiser.state[value][moment].contiguous()
    save_file(tensors, folder / "next.safetensors")
    facts = {"step": done.steps, "curve": done.curve, "seconds": done.seconds, "recent": done.recent}
    (folder / "next.json").write_text(json.dumps(facts))
    (folder / "next.safetensors").replace(folder / f"state-{done.steps}.safetensors")
    (folder / "next.json").replace(folder / "state.json")  # last: it names the tensors that are whole
    for old in folder.glob("state-*.safetensors"):
        if old.name != f"state-{done.steps}.safetensors":
            old.unlink()


def _resume(
    folder: Path,
    weights: dict[str, torch.nn.Parameter],
    average: dict[str, torch.Tensor],
    optimiser: torch.optim.Optimizer,
) -> Spent | None:
    if not (folder / "state.json").is_file():
        return None
    facts = json.loads((folder / "state.json").read_text())
    tensors = load_file(folder / f"state-{facts['step']}.safetensors")
    for key, value in weights.items():
        value.data.copy_(tensors[f"weight/{key}"])
        average[key].copy_(tensors[f"average/{key}"])
        if f"exp_avg/{key}" in tensors:
            state = {m: tensors[f"{m}/{key}"].clone() for m in ("exp_avg", "exp_avg_sq")}
            optimiser.state[value] = {"step": torch.tensor(float(facts["step"])), **state}
    curve = tuple((step, loss) for step, loss in facts["curve"])
    return Spent(facts["step"], facts["seconds"], curve, tuple(facts.get("recent", ())))

"""The one training loop, on accelerate: distillation, recovery and the zoo hand it a module and a loss.

Stopped at any moment, by Ctrl-C or `kill -9`, the next run goes on from the last checkpoint and, on a CPU, ends in the same
bits and the same loss curve as one that was never disturbed: each batch draws from its own seed, and a checkpoint is whole or
not there (with as many threads: sums are rounded in their order). accelerate's own `save_state` pickles, so checkpoints are ours.
"""

from __future__ import annotations

import hashlib
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import GradientAccumulationPlugin
from safetensors import SafetensorError
from torch.nn.attention import SDPBackend, sdpa_kernel

from compress.context import Context
from compress.errors import StageFailed
from compress.events import Emit, Event, silent
from compress.files.hashing import digest_json
from compress.machine.devices import CPU, kind_of
from compress.params import Training
from compress.training import checkpoints
from compress.training.checkpoints import Curve, Spent
from compress.training.precision import mixed_precision, without_cudnn_attention

UNFUSED = (
    "Mismatch dtype between input and weight"  # of torch in autocast: a norm keeps its weights in float32, as it should
)

Losses: TypeAlias = Mapping[str, torch.Tensor]  # named scalars; their sum is what is minimised

POINTS = 100
LARGEST_NORM = 1.0
LAST_SHARE = 0.05  # of the peak learning rate, at the last step
REMEDY = "set a lower learning_rate, or precision: float32"


def train(
    module: torch.nn.Module,
    loss_at: Callable[[int], Losses],
    how: Training,
    *,
    folder: Path,
    seed: int,
    device: str = CPU,
    emit: Emit = silent,
    what: str = "",
    seconds: float = math.inf,
    before: Spent | None = None,
    every: Callable[[int], None] | None = None,
    lenient: bool = False,
    dropout: bool = True,
    held_back: Callable[[], float] | None = None,
) -> Curve:
    """Train `module` in place; it then holds its averaged weights and is in evaluation mode.

    Only parameters with `requires_grad` are trained, averaged and kept in checkpoints; they must be float32, whatever the
    precision of the arithmetic. Buffers are not kept. One progress event a step and one loss event a point of the curve.

    Args:
        loss_at: number of the batch (step * accumulate + part) to named scalar losses on `device`. It must draw its batch by
            that number alone, and chance from torch's own generator, which is seeded before each call. Runs in autocast.
        folder: where checkpoints live; the next call with the same folder and settings goes on from there.
        device: as openings name it, cpu, cuda:0, mps; accelerate chooses the precision that it has.
        seconds: budget of training time, over all resumed runs; it ends early, without an error, when this is spent.
        before: what the weights were trained already, counted on where there is no checkpoint: the schedule goes on at that
            step, and warms up there, for the optimiser knows nothing yet.
        every: called with the step after each checkpoint but the last, while the module holds its averaged weights.
        dropout: whether the module's dropout works while it learns; a student held to a teacher that has none does without.
        held_back: the loss on what nothing is taught with: the averaged weights are kept only where theirs is no higher than the last ones'.
        lenient: go on from a checkpoint with other settings too, such as another number of steps.

    Returns:
        The loss curve, about a hundred points at most.

    Raises:
        StageFailed: a loss or gradient is not finite, nothing is to be trained, half-precision weights, no such device.
    """
    with _accelerator(how, device) as accelerator, without_cudnn_attention():
        module.to(torch.device(device)).train(dropout)  # accelerate would take the first of its kind
        learner = _new_learner(module, how, accelerator)
        settings = _settings(how, seed, accelerator, before or Spent())
        run = _Run(accelerator, module, learner, loss_at, how, folder, seed, emit, what, before or Spent(), settings)
        run.resume(lenient)
        try:
            run.go(seconds, every)
        except KeyboardInterrupt:
            if learner.whole:
                run.save()
            raise
        module.eval()
        if held_back is None or run.average_is_better(held_back):
            learner.keep_average()
    return run.spent.curve


def teach(
    student: torch.nn.Module,
    loss_at: Callable[[int], Losses],
    how: Training,
    context: Context,
    held_back: Callable[[], float] | None = None,
) -> Curve:
    """`train` as a distillation stage does: checkpoints in its scratch folder, and no dropout, which its teacher has not either."""
    where: dict[str, Any] = {
        "folder": context.scratch / "training",
        "seed": context.seed,
        "device": context.opening.device,
    }
    where |= {"emit": context.emit, "what": context.node, "held_back": held_back}
    return train(student, loss_at, how, **where, dropout=False)


def rate_at(how: Training, step: int, origin: int = 0) -> float:
    """The learning rate of a step: a cosine down to a twentieth at `how.steps`, rising over `how.warmup` steps at `origin`."""
    rising = min(1.0, (step - origin + 1) / max(1, how.warmup))
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / how.steps)))
    return how.learning_rate * rising * (LAST_SHARE + (1 - LAST_SHARE) * cosine)


def kept_share(ema: float, since: int) -> float:
    """Share of the old average that step `since` of a run keeps: a young average forgets fast."""
    return min(ema, (since + 1) / (since + 10))


# ---------------------------------------------------------------- accelerate


@contextmanager
def _accelerator(how: Training, device: str) -> Iterator[Accelerator]:
    """An Accelerator of our own. Its state is one per process and refuses a second precision, so put another's aside.

    Raises:
        StageFailed: accelerate finds no such device.
    """
    states = (AcceleratorState, PartialState, GradientState)
    others = [dict(state._shared_state) for state in states]
    for state in states:
        state._shared_state.clear()
    try:
        accelerator = Accelerator(
            cpu=kind_of(device) == CPU,
            mixed_precision=mixed_precision(how.precision, device),
            # Both named outright: left out, they are read from the environment.
            gradient_accumulation_plugin=GradientAccumulationPlugin(
                num_steps=how.accumulate, sync_with_dataloader=False
            ),
        )
        if accelerator.device.type != torch.device(device).type:
            raise StageFailed(f"there is no device `{device}` to train on", fix="train with device: cpu")
        if accelerator.num_processes > 1:  # they would all train the same batches and write the same files
            raise StageFailed("training runs in one process", fix="start pare without torchrun or accelerate launch")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", UNFUSED)
            yield accelerator
    finally:
        for state, other in zip(states, others, strict=True):
            state._shared_state.clear()
            state._shared_state.update(other)


def _settings(how: Training, seed: int, accelerator: Accelerator, before: Spent) -> str:
    """Digest of all that decides the result besides the module and its loss."""
    counted = {key: value for key, value in how.counted().items() if key != "precision"}
    kind = [accelerator.mixed_precision, accelerator.device.type]
    return digest_json([counted, seed, kind, before.steps, list(before.curve)])


# ---------------------------------------------------------------- what learns


@dataclass
class _Learner:
    """The weights, their average and the optimiser: the tensors of a checkpoint."""

    weights: dict[str, torch.nn.Parameter]
    average: dict[str, torch.Tensor]  # empty where the last weights are kept
    optimiser: torch.optim.Optimizer
    whole: bool = True  # False while they change: an interrupt then must not make a checkpoint

    def tensors(self) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {f"weight/{key}": weight for key, weight in self.weights.items()}
        found |= {f"average/{key}": value for key, value in self.average.items()}
        for key, weight in self.weights.items():
            found |= {f"{name}/{key}": value for name, value in self.optimiser.state.get(weight, {}).items()}
        return {name: value.detach().contiguous() for name, value in found.items()}

    def check(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Raises ValueError where `tensors` are another module's."""
        kinds = ("weight/", "average/") if self.average else ("weight/",)
        expected = {f"{k}{key}": (w.shape, w.dtype) for k in kinds for key, w in self.weights.items()}
        found = {name: (t.shape, t.dtype) for name, t in tensors.items() if name.startswith(kinds)}
        if odd := sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)):
            raise ValueError(f"`{odd[0].split('/', 1)[1]}` is missing, foreign or of another shape")

    def take(self, tensors: Mapping[str, torch.Tensor], steps: int) -> None:
        """Put the tensors of a checkpoint back. The zoo's older ones lack the optimiser's count of steps."""
        for key, weight in self.weights.items():
            weight.data.copy_(tensors[f"weight/{key}"])
            if self.average:
                self.average[key].copy_(tensors[f"average/{key}"])
            if f"exp_avg/{key}" in tensors:
                moments = {
                    name: torch.empty_like(weight, requires_grad=False).copy_(tensors[f"{name}/{key}"])
                    for name in ("exp_avg", "exp_avg_sq")
                }
                count = tensors.get(f"step/{key}", torch.tensor(float(steps), device=CPU))
                self.optimiser.state[weight] = {"step": count.clone(), **moments}

    def step(self, keep: float) -> None:
        self.optimiser.step()
        if self.average:
            torch._foreach_lerp_(list(self.average.values()), [w.detach() for w in self.weights.values()], 1 - keep)

    @contextmanager
    def changing(self) -> Iterator[None]:
        self.whole = False
        yield
        self.whole = True

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within: the module holds its averaged weights."""
        kept = {key: weight.detach().clone() for key, weight in self.weights.items()} if self.average else {}
        self.whole = False
        self.keep_average()
        try:
            yield
        finally:
            for key, value in kept.items():
                self.weights[key].data.copy_(value)
            self.whole = True

    def keep_average(self) -> None:
        for key, value in self.average.items():
            self.weights[key].data.copy_(value)


def _new_learner(module: torch.nn.Module, how: Training, accelerator: Accelerator) -> _Learner:
    weights = {key: value for key, value in module.named_parameters() if value.requires_grad}
    if not weights:
        raise StageFailed("no parameter of the model is to be trained", fix="leave something unfrozen")
    if half := sorted(key for key, value in weights.items() if value.dtype != torch.float32):
        raise StageFailed(
            f"`{half[0]}` is {weights[half[0]].dtype}: small steps vanish in such weights",
            fix="open the model in float32; `precision` chooses the arithmetic",
        )
    adam = torch.optim.AdamW(weights.values(), lr=how.learning_rate, weight_decay=how.weight_decay, betas=(0.9, 0.99))
    adam.zero_grad()
    average = {key: value.detach().clone() for key, value in weights.items()} if how.ema else {}
    return _Learner(weights, average, accelerator.prepare_optimizer(adam, device_placement=False))


# ---------------------------------------------------------------- the loop


@dataclass
class _Run:
    accelerator: Accelerator
    module: torch.nn.Module
    learner: _Learner
    loss_at: Callable[[int], Losses]
    how: Training
    folder: Path
    seed: int
    emit: Emit
    what: str
    spent: Spent
    settings: str
    saved: int = -1  # the step of the checkpoint on disk

    def __post_init__(self) -> None:
        self.origin, self.began = self.spent.steps, time.monotonic()

    def resume(self, lenient: bool) -> None:
        """Go on from the checkpoint in the folder, if there is one and it is this training's."""
        if not (self.folder / checkpoints.STATE).is_file():
            return
        try:
            spent, tensors = checkpoints.read(self.folder, None if lenient else self.settings)
            self.learner.check(tensors)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            self.emit(Event("warning", self.what, f"the checkpoint does not fit ({reason}); training starts anew"))
            return
        self.learner.take(tensors, spent.steps)
        self.spent, self.saved = spent, spent.steps
        self.emit(Event("note", self.what, f"training goes on at step {spent.steps} of {self.how.steps}"))

    def go(self, seconds: float, every: Callable[[int], None] | None) -> None:
        self.began = time.monotonic() - self.spent.seconds
        saved = time.monotonic()
        self._show_progress()
        # Measured: flash attention's backward pass on a CPU costs more than all the rest of a small denoiser's step.
        on_cpu = self.accelerator.device.type == "cpu"
        with sdpa_kernel(SDPBackend.MATH) if on_cpu else nullcontext():
            while self.spent.steps < self.how.steps and time.monotonic() - self.began < seconds:
                self._step()
                self._show_progress()
                if time.monotonic() - saved >= self.how.checkpoint_seconds:
                    self.save()
                    if every:
                        with self.learner.averaged():
                            every(self.spent.steps)
                    saved = time.monotonic()
        self.save()

    def average_is_better(self, held_back: Callable[[], float]) -> bool:
        """Whether the averaged weights do at least as well as the last ones on what is held back; it is stated."""
        if not self.learner.average:
            return False
        with self.accelerator.autocast():
            last = held_back()
        # In an autocast of its own: it keeps the half-precision copies of weights that it made, also of weights changed meanwhile.
        with self.learner.averaged(), self.accelerator.autocast():
            averaged = held_back()
        better = averaged <= last
        which = "averaged weights kept" if better else "last weights kept, not their average"
        message = f"{which}: {averaged:.4g} averaged, {last:.4g} last, on what was held back"
        self.emit(Event("note", self.what, message, facts={"averaged": averaged, "last": last}))
        return better

    def _step(self) -> None:
        """One step of the optimiser and of the average.

        Raises:
            StageFailed: a loss or the gradient is not finite.
        """
        before, step = self.spent, self.spent.steps
        for group in self.learner.optimiser.param_groups:
            group["lr"] = rate_at(self.how, step, self.origin)
        parts = [self._gradient(step * self.how.accumulate + part) for part in range(self.how.accumulate)]
        norm = self.accelerator.clip_grad_norm_(self.learner.weights.values(), LARGEST_NORM)
        if not math.isfinite(norm):
            raise StageFailed(f"the gradient of step {step + 1} is not finite", fix=REMEDY)
        losses = _means(parts)
        with self.learner.changing():
            self.learner.step(kept_share(self.how.ema, step - self.origin))
            self.spent = _count(before, losses, self.how.steps)
        self.learner.optimiser.zero_grad()
        if len(self.spent.curve) > len(before.curve):
            at, loss = self.spent.curve[-1]
            means = _means([*before.recent, losses])
            self.emit(Event("loss", self.what, facts={**means, "step": at, "loss": loss}))

    def _gradient(self, batch: int) -> dict[str, float]:
        """Add the gradient of one batch to those there; returns its losses."""
        torch.manual_seed(_batch_seed(self.seed, batch))
        with self.accelerator.accumulate(self.module):
            with self.accelerator.autocast():
                losses = {name: value.float() for name, value in self.loss_at(batch).items()}
            total = torch.stack(list(losses.values()))
            values = dict(zip(losses, total.tolist(), strict=True))
            if odd := [name for name, value in values.items() if not math.isfinite(value)]:
                step = batch // self.how.accumulate + 1
                raise StageFailed(f"the loss `{odd[0]}` of step {step} is {values[odd[0]]}", fix=REMEDY)
            self.accelerator.backward(total.sum())
        return values

    def _show_progress(self) -> None:
        activity = f"{self.what} training".strip()
        self.emit(Event("progress", activity, done=self.spent.steps, total=self.how.steps))

    def save(self) -> None:
        """Write a checkpoint, unless this step's is there. Until its JSON is renamed, the one before stays whole."""
        if self.spent.steps == self.saved:
            return
        spent = replace(self.spent, seconds=time.monotonic() - self.began)
        checkpoints.write(self.folder, spent, self.learner.tensors(), self.settings)
        self.saved = spent.steps


def _count(spent: Spent, losses: Mapping[str, float], steps: int) -> Spent:
    """`spent` after one step more; a point of the curve where one is due, and at the end."""
    step, recent = spent.steps + 1, (*spent.recent, losses)
    if step % math.ceil(steps / POINTS) and step != steps:
        return replace(spent, steps=step, recent=recent)
    mean = sum(math.fsum(one.values()) for one in recent) / len(recent)
    return replace(spent, steps=step, recent=(), curve=(*spent.curve, (step, float(f"{mean:.6g}"))))


def _means(losses: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each named loss; one that a batch lacks counts as zero there."""
    names = dict.fromkeys(name for one in losses for name in one)
    return {name: math.fsum(one.get(name, 0.0) for one in losses) / len(losses) for name in names}


def _batch_seed(seed: int, batch: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {batch}".encode()).digest()[:7], "big")

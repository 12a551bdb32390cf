"""The one training loop: stopped or not it ends in the same bits, and a kill costs a minute at most."""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits

from compress.errors import StageFailed
from compress.events import Event
from compress.params import Training
from compress.training import loop as training
from compress.training.checkpoints import Spent
from compress.training.loop import Losses, kept_share, rate_at, train
from compress.training.precision import mixed_precision
from compress.zoo.training import loop

STEPS = 120  # two to a point of the curve
EACH_STEP = 1e-9  # seconds between checkpoints
NEVER = 1e9
HOW = Training(steps=STEPS, learning_rate=1e-2, warmup=10, ema=0.9, precision="float32", checkpoint_seconds=NEVER)
OFTEN = HOW.model_copy(update={"checkpoint_seconds": EACH_STEP})


class Stopped(BaseException):
    """Not an `Exception`, like the signals that end a process."""


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Scanned digits, float32 [1797, 64] in 0..1, and their values [1797]."""
    scans = load_digits()
    return torch.from_numpy(scans.data).float() / 16, torch.from_numpy(scans.target)


PIXELS, VALUES = digits()


class Reader(torch.nn.Module):
    """Dropout draws from the global generator; the scale is frozen."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(64, 16), torch.nn.SiLU(), torch.nn.Dropout(0.1), torch.nn.Linear(16, 10)
        )
        self.scale = torch.nn.Parameter(torch.tensor(2.0), requires_grad=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.scale * self.layers(pixels)


def task(module: torch.nn.Module, size: int = 32, **stops: BaseException) -> Callable[[int], Losses]:
    """Cross entropy and a small penalty, on batches drawn by their number. `at_12=error` raises it at batch 12."""

    def loss_at(batch: int) -> Losses:
        if error := stops.get(f"at_{batch}"):
            raise error
        draw = torch.from_numpy(np.random.default_rng(batch).integers(len(PIXELS), size=size))
        message = module(PIXELS[draw])
        cross = torch.nn.functional.cross_entropy(message.float(), VALUES[draw])
        return {"cross_entropy": cross, "size": 1e-4 * message.float().square().mean()}

    return loss_at


def run(folder: Path, how: Training = HOW, **options: Any) -> tuple[Reader, training.Curve]:
    """An undisturbed run of the task."""
    module = Reader()
    return module, train(module, task(module), how, folder=folder, seed=0, **options)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As many threads as the killed process can use: sums are rounded in their order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Reader, training.Curve]:
    return run(tmp_path_factory.mktemp("whole"))


def equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def changed(**fields: Any) -> Training:
    return HOW.model_copy(update=fields)


def facts(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "state.json").read_text())
    return found


# ---------------------------------------------------------------- it learns


def test_the_loss_falls_and_the_module_ends_in_evaluation_mode(whole: tuple[Reader, training.Curve]) -> None:
    module, curve = whole
    assert [step for step, _ in curve] == list(range(2, STEPS + 1, 2))
    assert curve[0][1] > 2
    assert curve[-1][1] < 0.5 * curve[0][1]
    assert not module.training
    right = module(PIXELS).argmax(1) == VALUES
    assert right.float().mean() > 0.8


def test_equal_runs_are_equal_and_another_seed_is_not(whole: tuple[Reader, training.Curve], tmp_path: Path) -> None:
    again, curve = run(tmp_path / "again")
    assert equal(again, whole[0])
    assert curve == whole[1]
    other = Reader()
    train(other, task(other), HOW, folder=tmp_path / "other", seed=1)  # other dropout
    assert not equal(other, whole[0])


def test_the_averaged_weights_are_those_of_a_plain_loop(tmp_path: Path) -> None:
    """A plain AdamW loop with the paper's average: avg ← keep · avg + (1 − keep) · w."""
    module, plain = Reader(), Reader()
    module.layers[2].p = plain.layers[2].p = 0.0
    how = changed(steps=30, ema=0.6, weight_decay=0.1)
    train(module, task(module), how, folder=tmp_path, seed=0)
    loss_at, weights = task(plain), list(plain.layers.parameters())
    optimiser = torch.optim.AdamW(weights, weight_decay=0.1, betas=(0.9, 0.99))
    average = [w.detach().clone() for w in weights]
    for step in range(30):
        optimiser.param_groups[0]["lr"] = (
            1e-2 * min(1, (step + 1) / 10) * (0.525 + 0.475 * math.cos(math.pi * step / 30))
        )
        sum(loss_at(step).values(), torch.tensor(0.0)).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        keep = min(0.6, (step + 1) / (step + 10))
        average = [keep * a + (1 - keep) * w.detach() for a, w in zip(average, weights, strict=True)]
    for found, expected, last in zip(module.layers.parameters(), average, weights, strict=True):
        assert torch.allclose(found, expected, atol=1e-5)
        assert not torch.allclose(found, last, atol=1e-4)  # it ends with the average, not with the last weights


def test_without_an_average_the_last_weights_are_kept(tmp_path: Path) -> None:
    module, _ = run(tmp_path, changed(ema=0.0))
    stored = load_file(tmp_path / f"state-{STEPS}.safetensors")
    assert torch.equal(stored["weight/layers.0.weight"], module.layers[0].weight)
    assert not any(name.startswith("average/") for name in stored)
    fresh = Reader()
    with pytest.raises(KeyboardInterrupt):
        train(fresh, task(fresh, at_20=KeyboardInterrupt()), changed(ema=0.0), folder=tmp_path / "cut", seed=0)
    assert equal(run(tmp_path / "cut", changed(ema=0.0))[0], module)


@pytest.mark.parametrize(("losses", "kept"), [([1.0, 0.5], "average"), ([0.5, 1.0], "weight"), ([0.5, 0.5], "average")])
def test_which_weights_are_kept_is_for_what_was_held_back_to_say(
    losses: list[float], kept: str, tmp_path: Path
) -> None:
    """Asked with the last weights first and with the averaged ones then, in evaluation mode; the choice is stated."""
    module, asked, recorded = Reader(), list(losses), list[Event]()
    seen: list[torch.Tensor] = []

    def held_back() -> float:
        assert not module.training
        seen.append(module.layers[0].weight.detach().clone())
        return asked.pop(0)

    train(module, task(module), changed(steps=10), folder=tmp_path, seed=0, held_back=held_back, emit=recorded.append)
    stored = load_file(tmp_path / "state-10.safetensors")
    assert torch.equal(module.layers[0].weight, stored[f"{kept}/layers.0.weight"])
    assert torch.equal(seen[0], stored["weight/layers.0.weight"])
    assert torch.equal(seen[1], stored["average/layers.0.weight"])
    assert [e.facts for e in recorded if e.kind == "note"] == [{"averaged": losses[1], "last": losses[0]}]


def test_the_average_is_judged_by_its_own_weights_in_half_precision_too(tmp_path: Path) -> None:
    """Autocast keeps the copies that it made of weights, also of those that were changed since."""
    module, message = Reader(), list[torch.Tensor]()

    def held_back() -> float:
        with torch.no_grad():
            message.append(module(PIXELS[:8]))
        return 0.0

    train(module, task(module), changed(steps=10, precision="bfloat16"), folder=tmp_path, seed=0, held_back=held_back)
    assert message[0].dtype == torch.bfloat16
    assert not torch.equal(*message)


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulating_batches_equals_one_batch_as_large(parts: int, tmp_path: Path) -> None:
    one, many = torch.nn.Linear(64, 10), torch.nn.Linear(64, 10)
    many.load_state_dict(one.state_dict())
    asked: list[int] = []

    def large(batch: int) -> Losses:
        rows = slice(batch * 64, (batch + 1) * 64)
        return {"loss": torch.nn.functional.cross_entropy(one(PIXELS[rows]), VALUES[rows])}

    def small(batch: int) -> Losses:
        asked.append(batch)
        rows = slice(batch * 64 // parts, (batch + 1) * 64 // parts)
        return {"loss": torch.nn.functional.cross_entropy(many(PIXELS[rows]), VALUES[rows])}

    how = changed(steps=20, accumulate=parts)
    curve = train(one, large, how.model_copy(update={"accumulate": 1}), folder=tmp_path / "one", seed=0)
    found = train(many, small, how, folder=tmp_path / "many", seed=0)
    assert asked == list(range(20 * parts))
    assert torch.allclose(one.weight, many.weight, atol=1e-5)
    assert [loss for _, loss in found] == pytest.approx([loss for _, loss in curve], rel=1e-4)


def test_frozen_parameters_stay_and_are_not_stored(whole: tuple[Reader, training.Curve], tmp_path: Path) -> None:
    module, _ = run(tmp_path)
    assert module.scale == 2.0
    assert module.scale.grad is None
    assert not any("scale" in name for name in load_file(tmp_path / f"state-{STEPS}.safetensors"))


def test_batch_normalisation_trains(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(64, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 10))
    curve = train(module, task(module), changed(steps=40), folder=tmp_path, seed=0)
    assert curve[-1][1] < curve[0][1]


# ---------------------------------------------------------------- precision


def test_two_precisions_follow_each_other_in_one_process(tmp_path: Path) -> None:
    seen: list[torch.dtype] = []
    for number, precision in enumerate(("bfloat16", "float32", "bfloat16")):
        module = Reader()

        def loss_at(batch: int, module: Reader = module) -> Losses:
            message = module(PIXELS[:16])
            seen.append(message.dtype)
            return {"loss": torch.nn.functional.cross_entropy(message.float(), VALUES[:16])}

        train(module, loss_at, changed(steps=1, precision=precision), folder=tmp_path / str(number), seed=0)
        assert all(p.dtype == torch.float32 for p in module.parameters())
    assert seen == [torch.bfloat16, torch.float32, torch.bfloat16]


def test_an_accelerator_of_someone_else_is_left_as_it_was(tmp_path: Path) -> None:
    from accelerate import Accelerator

    try:
        theirs = Accelerator(cpu=True, mixed_precision="bf16")
        run(tmp_path, changed(steps=1, precision="float32"))
        assert theirs.mixed_precision == "bf16"
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize(("able", "expected"), [({"amx_bf16": True}, "bf16"), ({"avx2": True}, "no")])
def test_auto_asks_the_processor(able: dict[str, bool], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    assert mixed_precision("auto", "cpu") == expected
    assert mixed_precision("float32", "cpu") == "no"
    assert mixed_precision("bfloat16", "cpu") == "bf16"


# ---------------------------------------------------------------- stopped and gone on

ZYGOTE = """
import json, os, random, signal, sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_training import OFTEN, Reader, run
from safetensors.torch import save_file
import torch._dynamo  # which an optimiser imports at its first step

folder, out = Path(sys.argv[1]), Path(sys.argv[2])
steps = []

def step():
    return json.loads((folder / "state.json").read_text())["step"] if (folder / "state.json").is_file() else 0

for kill in range(6):
    child = os.fork()  # before this process has computed anything, so it holds no threads
    if not child:
        run(folder, OFTEN)
        os._exit(0)
    until = (steps or [0])[-1] + random.randint(1, {steps} // 6)  # by steps: how many a second makes is the machine's
    while step() < until:
        time.sleep(0.0005)
    time.sleep(random.uniform(0, 0.003))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    steps.append(step())
    if steps[-1] == {steps}:
        break
module, curve = run(folder)
save_file({{k: v.contiguous() for k, v in module.state_dict().items()}}, out / "weights.safetensors")
print(json.dumps([steps, curve]))
"""


def test_killed_at_any_moment_it_ends_in_the_same_bits(whole: tuple[Reader, training.Curve], tmp_path: Path) -> None:
    code = ZYGOTE.format(tests=str(Path(__file__).parent), steps=STEPS)
    command = [sys.executable, "-c", code, str(tmp_path / "checkpoint"), str(tmp_path)]
    one = {**os.environ, "OMP_NUM_THREADS": "1"}  # a forked process cannot use the threads of its parent
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, env=one)
    steps, curve = json.loads(done.stdout)
    assert sum(0 < step < STEPS for step in steps) > 1, steps
    assert steps == sorted(steps)
    assert tuple(map(tuple, curve)) == whole[1]
    found = load_file(tmp_path / "weights.safetensors")
    assert all(torch.equal(value, found[name]) for name, value in whole[0].state_dict().items())


@pytest.mark.parametrize("at", [0, 1, 40, 119])
def test_ctrl_c_leaves_a_checkpoint_and_the_next_run_goes_on(
    at: int, whole: tuple[Reader, training.Curve], tmp_path: Path
) -> None:
    module = Reader()
    with pytest.raises(KeyboardInterrupt):
        train(module, task(module, **{f"at_{at}": KeyboardInterrupt()}), HOW, folder=tmp_path, seed=0)
    assert facts(tmp_path)["step"] == at
    events: list[Event] = []
    fresh, curve = run(tmp_path, emit=events.append)
    assert equal(fresh, whole[0])
    assert curve == whole[1]
    assert next(e for e in events if e.kind == "progress").done == at


def test_ctrl_c_within_an_update_keeps_the_checkpoint_before(
    whole: tuple[Reader, training.Curve], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half the weights are of the next step then: they must not become a checkpoint."""
    real, calls = torch.optim.AdamW.step, [0]

    def step(self: torch.optim.AdamW, *args: object) -> object:
        calls[0] += 1
        if calls[0] == 81:
            self.param_groups[0]["params"][0].data.zero_()
            raise KeyboardInterrupt
        return real(self, *args)

    module = Reader()
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", step)
        with pytest.raises(KeyboardInterrupt):
            train(module, task(module, at_40=KeyboardInterrupt()), HOW, folder=tmp_path, seed=0)
        with pytest.raises(KeyboardInterrupt):
            train(module, task(module), HOW, folder=tmp_path, seed=0)
    assert facts(tmp_path)["step"] == 40
    assert equal(run(tmp_path)[0], whole[0])


@pytest.mark.parametrize("file", ["next.safetensors", "next.json"])
def test_a_kill_while_a_checkpoint_is_moved_leaves_the_one_before(
    file: str, whole: tuple[Reader, training.Curve], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, moves = Path.replace, [0]

    def replace(self: Path, target: Path) -> Path:
        moves[0] += self.name == file
        if moves[0] == 30:
            raise Stopped
        return real(self, target)

    module = Reader()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        with pytest.raises(Stopped):
            train(module, task(module), OFTEN, folder=tmp_path, seed=0)
    assert facts(tmp_path)["step"] == 29
    assert equal(run(tmp_path)[0], whole[0])
    assert {f.name for f in tmp_path.iterdir()} == {"state.json", f"state-{STEPS}.safetensors"}


def test_a_finished_run_trains_no_more_and_nothing_is_pickled(tmp_path: Path) -> None:
    expected, curve = run(tmp_path)
    assert {f.name for f in tmp_path.iterdir()} == {"state.json", f"state-{STEPS}.safetensors"}
    before = {f: f.stat().st_mtime_ns for f in tmp_path.iterdir()}
    module = Reader()
    refuse = task(module, **{f"at_{n}": AssertionError("another step") for n in range(STEPS + 1)})
    assert train(module, refuse, HOW, folder=tmp_path, seed=0) == curve
    assert equal(module, expected)
    assert before == {f: f.stat().st_mtime_ns for f in tmp_path.iterdir()}


# ---------------------------------------------------------------- checkpoints that do not fit


def cut(folder: Path) -> None:
    file = next(folder.glob("state-*.safetensors"))
    file.write_bytes(file.read_bytes()[:-5])


def flip(folder: Path) -> None:
    file = next(folder.glob("state-*.safetensors"))
    raw = bytearray(file.read_bytes())
    raw[-3] ^= 1
    file.write_bytes(raw)


def lose(folder: Path) -> None:
    next(folder.glob("state-*.safetensors")).unlink()


def garble(folder: Path) -> None:
    (folder / "state.json").write_text('{"step": 3')


def swap(folder: Path) -> None:
    (folder / "state.json").write_text("[1, 2]")


def strip(folder: Path) -> None:
    reported = facts(folder)
    reported.pop("recent")
    reported.pop("settings")
    (folder / "state.json").write_text(json.dumps(reported))


@pytest.mark.parametrize("damage", [cut, flip, lose, garble, swap, strip])
def test_a_corrupt_checkpoint_is_reported_and_training_starts_anew(
    damage: Callable[[Path], None], whole: tuple[Reader, training.Curve], tmp_path: Path
) -> None:
    module = Reader()
    with pytest.raises(Stopped):
        train(module, task(module, at_20=Stopped()), OFTEN, folder=tmp_path, seed=0)
    damage(tmp_path)
    events: list[Event] = []
    fresh, curve = run(tmp_path, emit=events.append, what="student")
    assert [(e.what, "starts anew" in e.message) for e in events if e.kind == "warning"] == [("student", True)]
    assert equal(fresh, whole[0])
    assert curve == whole[1]


@pytest.mark.parametrize(
    "fields", [{"steps": 50}, {"learning_rate": 1e-3}, {"ema": 0.5}, {"accumulate": 2}, {"precision": "bfloat16"}]
)
def test_a_checkpoint_of_other_settings_is_foreign(fields: dict[str, Any], tmp_path: Path) -> None:
    run(tmp_path, changed(steps=5) if "steps" not in fields else HOW)
    events: list[Event] = []
    asked = {"steps": 5, **fields}
    run(tmp_path, changed(**asked), emit=events.append)
    assert ["other settings" in e.message for e in events if e.kind == "warning"] == [True]
    again: list[Event] = []
    run(tmp_path, changed(**asked, checkpoint_seconds=7.0), emit=again.append)
    assert not [e for e in again if e.kind == "warning"]  # the time between checkpoints counts for nothing


@pytest.mark.parametrize("layers", [(64, 8, 10), (64, 16, 16, 10)])
def test_a_checkpoint_of_another_model_is_foreign(layers: tuple[int, ...], tmp_path: Path) -> None:
    run(tmp_path, changed(steps=5))
    other = Reader()
    other.layers = torch.nn.Sequential(*(torch.nn.Linear(a, b) for a, b in itertools.pairwise(layers)))
    events: list[Event] = []
    curve = train(other, task(other), changed(steps=5), folder=tmp_path, seed=0, emit=events.append)
    assert ["another shape" in e.message for e in events if e.kind == "warning"] == [True]
    assert len(curve) == 5


# ---------------------------------------------------------------- what cannot go on


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_names_the_step_and_the_remedy(value: float, tmp_path: Path) -> None:
    module = Reader()
    good = task(module)

    def loss_at(batch: int) -> Losses:
        return {**good(batch), **({"feature": torch.tensor(value)} if batch == 25 else {})}

    with pytest.raises(StageFailed, match=r"`feature` of step 13 is (nan|inf)(.|\n)*lower learning_rate.*float32"):
        train(module, loss_at, OFTEN.model_copy(update={"accumulate": 2}), folder=tmp_path, seed=0)
    assert facts(tmp_path)["step"] == 12


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(tmp_path: Path) -> None:
    module = torch.nn.Linear(4, 1)

    def loss_at(batch: int) -> Losses:
        zero = (module.weight * 0).sum()
        return {"loss": torch.sqrt(zero)}  # zero, with an infinite slope

    with pytest.raises(StageFailed, match="gradient of step 1 is not finite"):
        train(module, loss_at, changed(), folder=tmp_path, seed=0)
    assert torch.isfinite(module.weight).all()


def test_what_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    module = Reader()
    with pytest.raises(StageFailed, match=r"bfloat16(.|\n)*open the model in float32"):
        train(module.bfloat16(), task(module), HOW, folder=tmp_path, seed=0)
    with pytest.raises(StageFailed, match="no parameter"):
        train(Reader().requires_grad_(False), task(module), HOW, folder=tmp_path, seed=0)
    if not torch.cuda.is_available():
        with pytest.raises(StageFailed, match=r"no device `cuda`(.|\n)*device: cpu"):
            train(Reader(), task(module), HOW, folder=tmp_path, seed=0, device="cuda")


# ---------------------------------------------------------------- what is reported on the way


def test_each_step_moves_the_bar_and_each_point_tells_its_losses(tmp_path: Path) -> None:
    events: list[Event] = []
    _, curve = run(tmp_path, changed(steps=250), emit=events.append, what="distill.logits")
    bar = [(e.done, e.total) for e in events if e.kind == "progress"]
    assert bar == [(step, 250) for step in range(251)]
    assert {e.what for e in events if e.kind == "progress"} == {"distill.logits training"}
    reported = [e.facts for e in events if e.kind == "loss"]
    assert [(f["step"], f["loss"]) for f in reported] == list(curve)
    assert [step for step, _ in curve] == [*range(3, 250, 3), 250]
    assert all(f["cross_entropy"] + f["size"] == pytest.approx(f["loss"], rel=1e-4) for f in reported)
    assert all(json.loads(json.dumps(f)) == f for f in reported)


def test_the_bar_shows_the_last_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    import rich.console

    from compress.commands.progress import Progress

    text, now = io.StringIO(), [0.0]
    console = rich.console.Console(file=text, force_terminal=True, width=120, color_system=None)
    monkeypatch.setattr("rich.console.Console", lambda **options: console)
    monkeypatch.setattr("compress.commands.progress.time", SimpleNamespace(monotonic=lambda: now[0]))
    with Progress(quiet=False) as listen:
        listen(Event("loss", "distill", facts={"step": 1, "loss": 9.0}))  # no bar yet
        listen(Event("progress", "distill training", done=1, total=9))
        now[0] = 3.0
        listen(Event("progress", "distill training", done=2, total=9))
        listen(Event("loss", "distill", facts={"step": 2, "loss": 0.123456}))
    assert "distill training, loss 0.1235" in text.getvalue()
    assert "9.0" not in text.getvalue()


def test_piped_a_loss_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    from compress.commands.progress import Progress

    with Progress(quiet=True) as listen:
        listen(Event("loss", "distill", facts={"step": 1, "loss": 9.0}))
    assert capsys.readouterr() == ("", "")


def test_training_warns_of_nothing(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(tmp_path, changed(steps=2, precision="bfloat16"))


# ---------------------------------------------------------------- the schedule's laws

HOWS = st.builds(Training, steps=st.integers(1, 5000), learning_rate=st.floats(1e-6, 1.0), warmup=st.integers(0, 500))


@given(how=HOWS, data=st.data())
def test_the_rate_rises_to_its_peak_and_falls_to_a_twentieth(how: Training, data: st.DataObject) -> None:
    step = data.draw(st.integers(0, how.steps - 1))
    rate, after = rate_at(how, step), rate_at(how, step + 1)
    assert 0 < rate <= how.learning_rate
    plain = rate_at(how.model_copy(update={"warmup": 0}), step)
    assert rate == pytest.approx(plain * min(1, (step + 1) / max(1, how.warmup)))
    if step >= how.warmup:
        assert after <= rate
    assert rate_at(how.model_copy(update={"warmup": 0}), how.steps) == pytest.approx(how.learning_rate / 20)


@given(how=HOWS, origin=st.integers(0, 5000), since=st.integers(0, 600))
def test_a_run_that_starts_late_warms_up_there(how: Training, origin: int, since: int) -> None:
    plain = rate_at(how.model_copy(update={"warmup": 0}), origin + since)
    assert rate_at(how, origin + since, origin) == pytest.approx(plain * min(1, (since + 1) / max(1, how.warmup)))


@given(ema=st.floats(0, 0.9999), since=st.integers(0, 100_000))
def test_an_average_forgets_fast_while_young(ema: float, since: int) -> None:
    keep = kept_share(ema, since)
    assert 0 <= keep <= ema
    assert keep <= kept_share(ema, since + 1)
    assert keep == ema or keep < (since + 1) / (since + 9)


def test_the_optimiser_runs_at_the_scheduled_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    real = torch.optim.AdamW.step

    def step(self: torch.optim.AdamW, *args: object) -> object:
        rates.append(self.param_groups[0]["lr"])
        return real(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    run(tmp_path, changed(accumulate=2))
    assert rates == [rate_at(HOW, step) for step in range(STEPS)]


@pytest.mark.parametrize("fields", [{"steps": 0}, {"learning_rate": 0}, {"ema": 1}, {"accumulate": 0}, {"rate": 1}])
def test_settings_out_of_bounds_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Training(**fields)


# ---------------------------------------------------------------- the zoo's budget of minutes


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[float]:
    """A clock that a test moves by hand, and the zoo's checkpoints in a folder of its own."""
    now = [0.0]
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(loop, "CHECKPOINTS", tmp_path)
    return now


def ticking(module: torch.nn.Module, now: list[float], by: float) -> Callable[[int], torch.Tensor]:
    """The task, each batch taking `by` seconds."""
    losses = task(module)

    def loss_at(step: int) -> torch.Tensor:
        now[0] += by
        return torch.stack(list(losses(step).values())).sum()

    return loss_at


def zoo(name: str, now: list[float], minutes: float, how: Training = HOW, by: float = 1.0, **options: Any) -> Any:
    module = Reader()
    return module, loop.train(name, module, ticking(module, now, by), how, minutes, **options)


def test_a_run_out_of_time_keeps_what_it_has_and_goes_on_later(seconds: list[float]) -> None:
    expected, curve = zoo("whole", seconds, 60)
    zoo("slow", seconds, 0.5)  # thirty seconds: thirty steps
    assert loop.spent("slow") == {"steps": 30, "seconds": 30}
    zoo("slow", seconds, 0.5)  # its time is spent already
    assert loop.spent("slow") == {"steps": 30, "seconds": 30}
    found, again = zoo("slow", seconds, 60)
    assert again == curve
    assert equal(found, expected)


def test_a_zoo_run_goes_on_to_more_steps(seconds: list[float]) -> None:
    zoo("more", seconds, 60)
    zoo("more", seconds, 60, changed(steps=STEPS + 20))
    assert loop.spent("more") == {"steps": STEPS + 20, "seconds": STEPS + 20}


def test_who_watches_sees_the_average_and_training_goes_on_with_the_weights(seconds: list[float]) -> None:
    expected, _ = zoo("whole", seconds, 60)
    module, steps = Reader(), []

    def every(step: int) -> None:
        steps.append(step)
        stored = load_file(loop.CHECKPOINTS / "watched" / f"state-{step}.safetensors")
        assert torch.equal(module.layers[0].weight, stored["average/layers.0.weight"])
        assert step == 1 or not torch.equal(module.layers[0].weight, stored["weight/layers.0.weight"])

    how = changed(checkpoint_seconds=15.0)
    loop.train("watched", module, ticking(module, seconds, 10), how, 60, every=every)
    assert steps == list(range(2, STEPS + 1, 2))  # the first moment past fifteen seconds
    assert equal(module, expected)


def test_a_watcher_that_fails_leaves_a_checkpoint_and_the_weights(seconds: list[float]) -> None:
    expected, _ = zoo("whole", seconds, 60)
    module = Reader()

    def every(step: int) -> None:
        if step == 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.train("watched", module, ticking(module, seconds, 1), OFTEN, 60, every=every)
    stored = load_file(loop.CHECKPOINTS / "watched" / "state-30.safetensors")
    assert torch.equal(module.layers[0].weight, stored["weight/layers.0.weight"])
    assert equal(zoo("watched", seconds, 60)[0], expected)


def test_what_was_spent_before_is_counted_on_and_a_stop_changes_nothing(seconds: list[float]) -> None:
    before = Spent(40, 100.0, ((50, 1.0),))
    expected, curve = zoo("more", seconds, 60, by=2, before=before)
    assert loop.spent("more") == {"steps": STEPS, "seconds": 100 + 2 * (STEPS - 40)}
    assert curve[0] == (50, 1.0)
    assert [step for step, _ in curve[1:]] == list(range(42, STEPS + 1, 2))
    zoo("cut", seconds, 2, by=2, before=before)
    assert loop.spent("cut") == {"steps": 50, "seconds": 120}
    found, again = zoo("cut", seconds, 60, by=2, before=before)
    assert again == curve
    assert equal(found, expected)
    untrained, _ = zoo("none", seconds, 1, before=before)
    assert loop.spent("none") == {"steps": 40, "seconds": 100}
    assert equal(untrained, Reader())


def test_a_checkpoint_of_the_zoo_s_former_loop_still_opens(seconds: list[float]) -> None:
    expected, curve = zoo("whole", seconds, 60)
    zoo("old", seconds, 0.51)  # an odd number of steps: one loss waits for its point
    path = loop.CHECKPOINTS / "old" / "state.json"
    reported = facts(path.parent)
    loss = reported["recent"][0]["loss"]
    reported = {key: reported[key] for key in ("step", "curve", "seconds")}
    path.write_text(json.dumps({**reported, "recent": [loss]}))
    stored = load_file(path.parent / "state-31.safetensors")
    kept = {k: v for k, v in stored.items() if not k.startswith("step/")}
    save_file(kept, path.parent / "state-31.safetensors")
    found, again = zoo("old", seconds, 60)
    assert again == curve
    assert equal(found, expected)


def test_the_zoo_prints_its_losses(seconds: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    zoo("reported", seconds, 0.5)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 15
    assert lines[-1].startswith("reported: step 30/120 loss ")


def test_attention_whose_gradients_may_be_no_numbers_is_left_alone_while_it_trains(tmp_path: Path) -> None:
    before, seen = torch.backends.cuda.cudnn_sdp_enabled(), []
    losses = task(reader := Reader())

    def loss_at(batch: int) -> Losses:
        seen.append(torch.backends.cuda.cudnn_sdp_enabled())
        return losses(batch)

    train(reader, loss_at, HOW.model_copy(update={"steps": 2}), folder=tmp_path, seed=0)
    assert seen == [False, False]
    assert torch.backends.cuda.cudnn_sdp_enabled() == before

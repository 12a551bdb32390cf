"""The loop that trains the zoo: stopped or not it ends in the same weights, and a kill costs minutes at most."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from compress.zoo.training import loop
from compress.zoo.training.loop import Schedule, Spent, train

STEPS = 120
SCHEDULE = Schedule(STEPS, 1e-2, warmup=10, ema=0.99)


class Stopped(BaseException):
    """Not an `Exception`, like the signals that end a process."""


@pytest.fixture(autouse=True)
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(loop, "CHECKPOINTS", tmp_path)
    return tmp_path


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint after every step."""
    monkeypatch.setattr(loop, "EVERY_SECONDS", -1.0)


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that a test moves by hand."""
    now = [0.0]
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def network() -> torch.nn.Module:
    torch.manual_seed(7)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.SiLU(), torch.nn.Dropout(0.2), torch.nn.Linear(8, 1))


def task(module: torch.nn.Module, stop_at: int = -1) -> Callable[[int], torch.Tensor]:
    """Regress a sum, on batches drawn by the step's number; the dropout draws from the global generator."""

    def loss_at(step: int) -> torch.Tensor:
        if step == stop_at:
            raise Stopped
        inputs = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
        return (module(inputs).float() - inputs.sum(1, keepdim=True)).square().mean()

    return loss_at


def whole(name: str = "whole", schedule: Schedule = SCHEDULE) -> tuple[torch.nn.Module, list[tuple[int, float]]]:
    module = network()
    return module, train(name, module, task(module), schedule, 60)


def equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


# ---------------------------------------------------------------- it learns


def test_the_loss_falls_and_the_curve_has_a_point_every_fifty_steps() -> None:
    module, curve = whole()
    assert [step for step, _ in curve] == [50, 100]
    assert curve[1][1] < 0.5 * curve[0][1]
    assert not equal(module, network())


def test_equal_runs_are_equal_to_the_bit() -> None:
    one, other = whole("one"), whole("other")
    assert equal(one[0], other[0])
    assert one[1] == other[1]


def test_the_curve_is_the_mean_loss_of_the_fifty_steps_before() -> None:
    module, losses = network(), []

    def heard(step: int) -> torch.Tensor:
        loss = task(module)(step)
        losses.append(float(loss.detach()))
        return loss

    curve = train("heard", module, heard, SCHEDULE, 60)
    for step, mean in curve:
        assert mean == pytest.approx(sum(losses[step - 50 : step]) / 50, abs=1e-5)


@pytest.mark.parametrize(("steps", "ema"), [(12, 0.999), (30, 0.6)])
def test_the_averaged_weights_are_those_of_a_plain_loop(steps: int, ema: float) -> None:
    """avg ← keep · avg + (1 − keep) · w, with keep = min(ema, (t + 1)/(t + 10)): a young average forgets fast."""
    module, before = network(), []

    def watched(step: int) -> torch.Tensor:
        before.append([p.detach().clone() for p in module.parameters()])
        return task(module)(step)

    train("watched", module, watched, Schedule(steps, 1e-2, warmup=5, ema=ema), 60)
    average = before[0]
    after = [*before[1:], read_raw("watched", module)]  # the weights after a step are those before the next
    for step, weights in enumerate(after):
        keep = min(ema, (step + 1) / (step + 10))
        average = [keep * a + (1 - keep) * w for a, w in zip(average, weights, strict=True)]
    for found, expected, last in zip(module.parameters(), average, after[-1], strict=True):
        assert torch.allclose(found, expected, atol=1e-6)
        assert not torch.allclose(found, last, atol=1e-4)  # it ends with the average, not with the last weights


def read_raw(name: str, module: torch.nn.Module) -> list[torch.Tensor]:
    """The weights themselves, as the last checkpoint keeps them beside their average."""
    from safetensors.torch import load_file

    stored = load_file(next((loop.CHECKPOINTS / name).glob("state-*.safetensors")))
    return [stored[f"weight/{key}"] for key, _ in module.named_parameters()]


# ---------------------------------------------------------------- stopped and gone on


@pytest.mark.parametrize("stop_at", [1, 50, 75, 119])
def test_a_run_stopped_and_gone_on_ends_as_an_undisturbed_one_to_the_bit(stop_at: int, often: None) -> None:
    expected, curve = whole()
    module = network()
    with pytest.raises(Stopped):
        train("stopped", module, task(module, stop_at), SCHEDULE, 60)
    fresh = network()
    resumed = train("stopped", fresh, task(fresh), SCHEDULE, 60)
    assert equal(fresh, expected)
    assert resumed == curve


def test_a_run_goes_on_from_its_checkpoint_whatever_weights_it_is_given(often: None) -> None:
    expected, _ = whole()
    module = network()
    with pytest.raises(Stopped):
        train("stopped", module, task(module, 60), SCHEDULE, 60)
    torch.manual_seed(99)
    other = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.SiLU(), torch.nn.Dropout(0.2), torch.nn.Linear(8, 1))
    train("stopped", other, task(other), SCHEDULE, 60)
    assert equal(other, expected)


def test_a_run_out_of_time_keeps_what_it_has_and_goes_on_later(seconds: list[float]) -> None:
    expected, curve = whole()
    module = network()

    def slow(step: int) -> torch.Tensor:
        seconds[0] += 1
        return task(module)(step)

    train("slow", module, slow, SCHEDULE, 0.5)  # thirty seconds: thirty steps
    assert loop.spent("slow") == {"steps": 30, "seconds": 30}
    train("slow", module, slow, SCHEDULE, 0.5)  # its time is spent already
    assert loop.spent("slow") == {"steps": 30, "seconds": 30}
    fresh = network()
    assert train("slow", fresh, task(fresh), SCHEDULE, 60) == curve
    assert equal(fresh, expected)


def test_a_finished_run_trains_no_more(often: None) -> None:
    expected, curve = whole("done")
    module = network()

    def refuse(step: int) -> torch.Tensor:
        raise AssertionError("another step")

    assert train("done", module, refuse, SCHEDULE, 60) == curve
    assert equal(module, expected)


@pytest.mark.parametrize("file", ["next.safetensors", "next.json"])
def test_a_kill_while_a_checkpoint_is_moved_leaves_the_one_before(
    file: str, often: None, checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the new tensors and the state that names them lies a moment; the old tensors are still there in it."""
    expected, curve = whole()
    real = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if self.name == file and steps[-1] == 40:
            raise Stopped
        return real(self, target)

    module, steps = network(), [0]

    def counted(step: int) -> torch.Tensor:
        steps.append(step)
        return task(module)(step)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        with pytest.raises(Stopped):
            train("killed", module, counted, SCHEDULE, 60)
    assert loop.spent("killed")["steps"] == 40
    assert (checkpoints / "killed" / "state-40.safetensors").is_file()
    fresh = network()
    assert train("killed", fresh, task(fresh), SCHEDULE, 60) == curve
    assert equal(fresh, expected)


def test_a_kill_while_tensors_are_written_leaves_the_checkpoint_before(
    often: None, checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(tensors: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise Stopped

    expected, _ = whole()
    module = network()
    with pytest.raises(Stopped):
        train("killed", module, task(module, 40), SCHEDULE, 60)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_file", half)
        with pytest.raises(Stopped):
            train("killed", module, task(module), SCHEDULE, 60)
    fresh = network()
    train("killed", fresh, task(fresh), SCHEDULE, 60)
    assert equal(fresh, expected)


def test_only_the_last_checkpoint_stays_on_disk(often: None, checkpoints: Path) -> None:
    whole()
    assert {f.name for f in (checkpoints / "whole").iterdir()} == {"state.json", f"state-{STEPS}.safetensors"}


def test_a_checkpoint_of_an_earlier_pare_which_kept_no_recent_losses_still_opens(checkpoints: Path) -> None:
    module = network()
    train("old", module, task(module), Schedule(70, 1e-2), 60)
    path = checkpoints / "old" / "state.json"
    kept = json.loads(path.read_text())
    assert len(kept.pop("recent")) == 20
    path.write_text(json.dumps(kept))
    curve = train("old", module, task(module), Schedule(110, 1e-2), 60)
    assert [step for step, _ in curve] == [50, 100]


def test_two_runs_do_not_share_their_checkpoints(checkpoints: Path) -> None:
    whole("one")
    other, _ = whole("other", Schedule(20, 1e-2))
    assert loop.spent("one")["steps"] == STEPS
    assert loop.spent("other")["steps"] == 20
    assert not equal(other, whole("one")[0])


# ---------------------------------------------------------------- what is watched on the way


def test_who_watches_sees_the_average_and_training_goes_on_with_the_weights(often: None) -> None:
    expected, _ = whole()
    module, seen = network(), []

    def every(step: int) -> None:
        raw = read_raw("watched", module)
        held = [p.detach() for p in module.parameters()]
        seen.append((step, any(not torch.equal(a, b) for a, b in zip(raw, held, strict=True))))

    train("watched", module, task(module), SCHEDULE, 60, every=every)
    assert [step for step, _ in seen] == list(range(1, STEPS + 1))
    assert all(differs for _, differs in seen[1:])
    assert equal(module, expected)


def test_a_watcher_that_fails_leaves_a_checkpoint_and_the_weights(often: None) -> None:
    expected, _ = whole()
    module = network()

    def every(step: int) -> None:
        if step == 30:
            raise Stopped

    with pytest.raises(Stopped):
        train("watched", module, task(module), SCHEDULE, 60, every=every)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), read_raw("watched", module), strict=True))
    fresh = network()
    train("watched", fresh, task(fresh), SCHEDULE, 60)
    assert equal(fresh, expected)


def test_checkpoints_come_with_the_clock(seconds: list[float]) -> None:
    module, steps = network(), []

    def slow(step: int) -> torch.Tensor:
        seconds[0] += 10
        return task(module)(step)

    train("timed", module, slow, Schedule(40, 1e-2), 60, every=steps.append)
    assert steps == [10, 20, 30, 40]  # the first moment past ninety seconds


# ---------------------------------------------------------------- from shipped weights


def test_what_was_spent_before_is_counted_on(seconds: list[float]) -> None:
    module, asked = network(), []

    def slow(step: int) -> torch.Tensor:
        asked.append(step)
        seconds[0] += 2
        return task(module)(step)

    before = Spent(40, 100.0, ((50, 1.0),))
    curve = train("more", module, slow, Schedule(110, 1e-2, origin=40), 60, before=before)
    assert asked == list(range(40, 110))
    assert [step for step, _ in curve] == [50, 50, 100]
    assert loop.spent("more") == {"steps": 110, "seconds": 240}


def test_time_spent_before_is_part_of_the_budget(seconds: list[float]) -> None:
    module = network()
    train("more", module, task(module), SCHEDULE, 2, before=Spent(10, 120.0))
    assert loop.spent("more") == {"steps": 10, "seconds": 120}
    assert equal(module, network())


def test_a_checkpoint_counts_more_than_what_was_before_it(often: None) -> None:
    module = network()
    schedule = Schedule(STEPS, 1e-2, warmup=10, origin=40)
    with pytest.raises(Stopped):
        train("more", module, task(module, 60), schedule, 60, before=Spent(40))
    asked = []

    def heard(step: int) -> torch.Tensor:
        asked.append(step)
        return task(module)(step)

    train("more", module, heard, schedule, 60, before=Spent(40))
    assert asked == list(range(60, STEPS))


# ---------------------------------------------------------------- the rate


def test_the_rate_warms_up_to_its_peak_and_falls_to_a_twentieth() -> None:
    schedule = Schedule(1000, 2e-3, warmup=100)
    rates = [schedule.rate_at(step) for step in range(1001)]
    assert rates[0] == pytest.approx(2e-3 / 100, rel=1e-4)
    assert rates[:100] == sorted(rates[:100])
    assert rates[99:] == sorted(rates[99:], reverse=True)
    assert 0.95 * 2e-3 < max(rates) <= 2e-3
    assert rates[1000] == pytest.approx(2e-3 / 20)
    assert schedule.rate_at(5000) == rates[1000]


@pytest.mark.parametrize("step", [0, 250, 500, 999])
def test_the_rate_is_the_cosine_of_the_share_done(step: int) -> None:
    expected = 0.05 + 0.95 * (1 + math.cos(math.pi * step / 1000)) / 2
    assert Schedule(1000, 1.0, warmup=1).rate_at(step) == pytest.approx(expected)


def test_a_run_from_shipped_weights_warms_up_where_it_begins() -> None:
    cold, warm = Schedule(1000, 1.0, warmup=100, origin=600), Schedule(1000, 1.0, warmup=100)
    assert cold.rate_at(600) == pytest.approx(warm.rate_at(600) / 100)
    assert cold.rate_at(649) == pytest.approx(warm.rate_at(649) / 2)
    assert cold.rate_at(700) == warm.rate_at(700)


def test_the_optimiser_runs_at_the_scheduled_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    real = torch.optim.AdamW.step

    def step(self: torch.optim.AdamW, *args: object) -> object:
        rates.append(self.param_groups[0]["lr"])
        return real(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    module = network()
    schedule = Schedule(20, 1e-2, warmup=5)
    train("rated", module, task(module), schedule, 60)
    assert rates == [schedule.rate_at(s) for s in range(20)]

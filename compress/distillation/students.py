"""What a denoiser was taught to need few steps for, read from its lineage, and what a later stage would undo of it."""

from __future__ import annotations

from dataclasses import dataclass

from compress.artifact import Artifact
from compress.distillation.few_steps import ORIGIN, Method, flows
from compress.pipelines.schedulers import changes, config_of, read_class


@dataclass(frozen=True)
class Student:
    """How a denoiser was taught to need few steps. origin: the most steps that a consistent one is good for."""

    steps: int
    method: Method
    origin: int


def student_of(artifact: Artifact) -> Student | None:
    """What the last teaching in few steps left, made already or only planned; None where there was none."""
    made = next((p for p in reversed(artifact.lineage) if p.stage == "distill.steps"), None)
    if made is None:
        return None
    return Student(int(made.params["steps"]), made.params["method"], int(made.params.get("origin") or ORIGIN))


def undone(artifact: Artifact, steps: int, scheduler: str | None, spacing: str | None) -> str:
    """That a call in other steps, or by another scheduler, is none that a student of few steps was taught for; or ""."""
    student = student_of(artifact)
    if student is None:
        return ""
    taught = f"it was taught {student.steps} steps of its own scheduler"
    if student.method == "consistency":
        taught = f"it was taught for up to {student.origin} steps of its own scheduler"
    fits = steps <= student.origin if student.method == "consistency" else steps == student.steps
    config = config_of(artifact)
    other = any(config.get(name) != value for name, value in (changes(config, scheduler) if scheduler else {}).items())
    others = [f"{steps} steps"] * (not fits) + [f"scheduler {scheduler}"] * other
    others += [f"spacing {spacing}"] * (spacing is not None and spacing != config.get("timestep_spacing"))
    if not others:
        return ""
    return f"{' and '.join(others)} undo what distill.steps taught: {taught}; leave this stage out, or teach it that"


def levels_of(artifact: Artifact) -> int | None:
    """How many levels of noise a diffusion's training schedule has; None of a flow, and where that is not known."""
    config = config_of(artifact)
    known = read_class(str(config.get("_class_name", "")))
    most = known.value(config, "num_train_timesteps") if known and not flows(config) else None
    return most if isinstance(most, int) else None


def uneven(artifact: Artifact, origin: int) -> str:
    """Why a consistent student would be sampled at other levels of noise than it is taught, or "": LCMScheduler rounds the distance
    between two down, and so begins below the noisiest."""
    most = levels_of(artifact) or origin
    if most % origin == 0:
        return ""
    nearest = min((n for n in range(2, most + 1) if most % n == 0), key=lambda n: abs(n - origin))
    return f"`origin` {origin} does not divide the {most} levels of noise of the training schedule: ask for {nearest}"


def too_fine(artifact: Artifact, parts: int, what: str) -> str:
    """Why a diffusion's training schedule has too few levels of noise to be gone in so many parts, or ""."""
    most = levels_of(artifact)
    if most is None or parts <= most:
        return ""
    return f"{what} make {parts} parts, and the training schedule has {most} levels of noise: ask for fewer"

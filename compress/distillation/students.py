"""What a denoiser was taught about its calls, read from its lineage, and what a later stage would undo of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compress.artifact import Artifact
from compress.distillation.few_steps import ORIGIN, SUBSTEPS, Method, flows, folded
from compress.errors import Refusal
from compress.pipelines.schedulers import changes, config_of, read_class

STEPS = "distill.steps"  # the stage that teaches so


@dataclass(frozen=True)
class Student:
    """How a denoiser was taught to need few steps. origin: the most steps that a consistent one is good for."""

    steps: int
    method: Method
    origin: int

    def fits(self, steps: int) -> bool:
        """Whether it was taught to be called in so many steps."""
        return steps <= self.origin if self.method == "consistency" else steps == self.steps

    def reported(self) -> str:
        """What it was taught, in words."""
        if self.method == "consistency":
            return f"it was taught for up to {self.origin} steps of its own scheduler"
        return f"it was taught {self.steps} steps of its own scheduler"


def student_of(artifact: Artifact) -> Student | None:
    """What the last teaching in few steps left, made already or only planned; None where there was none."""
    made = next((p for p in reversed(artifact.lineage) if p.stage == STEPS), None)
    if made is None:
        return None
    return Student(int(made.params["steps"]), made.params["method"], int(made.params.get("origin") or ORIGIN))


def parts_of(params: Mapping[str, Any]) -> int:
    """Into how many steps of the teacher the way from noise to image is cut, by the parameters of a teaching in few steps."""
    if params["method"] == "consistency":
        return int(params.get("origin") or ORIGIN)
    return int(params["steps"]) * int(params.get("substeps") or SUBSTEPS)


def undone(artifact: Artifact, steps: int, scheduler: str | None, spacing: str | None) -> str:
    """That a call in other steps, or by another scheduler, is none that a student of few steps was taught for; or ""."""
    student = student_of(artifact)
    if student is None:
        return ""
    config = config_of(artifact)
    other = any(config.get(name) != value for name, value in (changes(config, scheduler) if scheduler else {}).items())
    others = [f"{steps} step{'s' * (steps != 1)}"] * (not student.fits(steps)) + [f"scheduler {scheduler}"] * other
    others += [f"spacing {spacing}"] * (spacing is not None and spacing != config.get("timestep_spacing"))
    if not others:
        return ""
    undo = "undoes" if len(others) == 1 and (student.fits(steps) or steps == 1) else "undo"
    return f"{' and '.join(others)} {undo} what distill.steps taught: {student.reported()}; leave this stage out, or teach it that"


def forgotten(artifact: Artifact, teacher: Artifact) -> str:
    """What a denoiser would unlearn that is held to what its teacher says at every step, and was taught by another stage what that
    teacher was not; or ""."""
    known = (p.stage for p in reversed(artifact.lineage) if p.stage in ("distill.steps", "distill.guidance"))
    target = next(known, "")
    if target == "distill.steps" and student_of(artifact) != student_of(teacher):
        return "the student would unlearn what distill.steps taught it, the way it goes in few steps: this teacher goes another"
    if target == "distill.guidance" and not folded(teacher):
        return "the student would unlearn what distill.guidance taught it: this teacher's guidance is not folded in"
    return ""


def recorded_otherwise(artifact: Artifact, steps: int | None) -> str:
    """That a student of few steps would be shown images made in more or fewer steps than it was taught, or "".

    Args:
        steps: `denoising_steps` of a stage that records calls; None where those are as the model is meant to be called.
    """
    student = student_of(artifact)
    if student is None or steps is None or student.fits(steps):
        return ""
    best = student.origin if student.method == "consistency" else student.steps
    return f"calls of {steps} steps are recorded, and the student's are others: {student.reported()}; set denoising_steps: {best}"


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
    message = f"`origin` {origin} does not divide the {most} levels of noise of the training schedule"
    return Refusal(message, f"set origin: {nearest}")


def too_fine(artifact: Artifact, parts: int, what: str) -> str:
    """Why a diffusion's training schedule has too few levels of noise to be gone in so many parts, or ""."""
    most = levels_of(artifact)
    if most is None or parts <= most:
        return ""
    message = f"{what} make {parts} parts, and the training schedule has {most} levels of noise"
    return Refusal(message, f"ask for at most {most} parts: fewer `steps`, or fewer `substeps`")


def off_grid(teacher: Artifact, parts: int) -> str:
    """That a student would be taught at levels of noise, or over distances between them, that its teacher, a student of few steps
    itself, never was; or "".

    Args:
        parts: steps of the teacher on the whole way from noise to image.
    """
    known = student_of(teacher)
    if known is None or known.method == "consistency" or known.steps == parts:
        return ""
    message = f"its teacher was taught {known.steps} step{'s' * (known.steps != 1)}, and is to go {parts} of them"
    return f"{message}, most of which it never learned: let `steps` times `substeps` make {known.steps}, or set teacher: source"

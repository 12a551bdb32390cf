"""What a plan can tell of teaching a denoiser to need fewer calls: how its pipeline is guided, and what will sample from the student."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import Field

from compress.artifact import MANIFEST, SCHEDULER, SCHEDULER_CONFIG, Artifact
from compress.catalogue import Forecast
from compress.data.items import Data
from compress.distillation.conditioning import caption_values
from compress.errors import Refusal
from compress.machine.library_classes import source_of
from compress.params import TRAINED, Later, Optimising, Params, Training
from compress.pipelines.call_arguments import (
    GUIDANCE,
    MOST_GUIDANCE,
    NEGATIVE,
    STEPS,
    TRUE_GUIDANCE,
    call_arguments,
    tells_guidance,
)
from compress.pipelines.image_inputs import IMAGE_GUIDANCE, PASTED, STRENGTH, too_weak
from compress.pipelines.index import class_of
from compress.pipelines.schedulers import config_of, faults, foreign, read_class
from compress.sources.models import parameter_count

Method = Literal["progressive", "consistency"]
ORIGIN = 20  # levels of noise between which a consistent student agrees with itself, where a recipe does not say
SUBSTEPS = 2  # steps of the teacher that one of a progressive student covers, where a recipe does not say
FLOW = "FlowMatchEulerDiscreteScheduler"
EVENLY = "np.linspace(1.0, 1 / num_inference_steps"  # in pipelines which say themselves where a flow's steps begin
SAMPLER: Mapping[Method, str] = {"progressive": "DDIMScheduler", "consistency": "LCMScheduler"}


class FewSteps(Optimising):
    """What stages that teach a denoiser by its own trajectories can be reported."""

    guidance: float | None = Field(
        None,
        ge=0,
        le=MOST_GUIDANCE,
        description="the teacher's guidance scale, which is taught as its own output; default: the teacher's own",
    )
    negative_prompt: str | None = Field(
        None, min_length=1, description="what the teacher's guidance leads away from; it is taught with it"
    )
    image_guidance: Annotated[float | None, Later()] = Field(
        None,
        ge=1,
        le=MOST_GUIDANCE,
        description="the teacher's guidance by the image that it edits (image_guidance_scale), taught too; default: the teacher's own",
    )
    strength: Annotated[float | None, Later()] = Field(
        None,
        gt=0,
        le=1,
        description="of a pipeline that takes one, with which the student will be called; default: the model's own",
    )
    updates: int = Field(400, ge=1, description="optimiser steps")
    batch: int = Field(32, ge=1, description="latents of a step of the optimiser")
    captions: int = Field(4096, ge=2, description="captions of the training data that are used, at most")
    latents: Literal["auto", "pictures", "teacher"] = Field(
        "auto",
        description="what noise is added to: the training data's images, encoded, or what the teacher generates for its captions; "
        "auto is images where the data has some",
    )
    teacher_steps: int = Field(
        20, ge=1, le=1000, description="denoising steps of what the teacher generates, where it does"
    )
    learning_rate: float = Field(2e-4, gt=0, description="peak of the learning rate, which then falls to a twentieth")
    warmup: int = Field(50, ge=0, description="steps over which the learning rate rises")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay of AdamW")

    def training(self) -> Training:
        """What the training loop reads of it."""
        return Training(steps=self.updates, **{name: getattr(self, name) for name in Optimising.model_fields})


def images_read(params: FewSteps) -> int:
    """How many items' images are encoded, at most."""
    return 0 if params.latents == "teacher" else params.captions


def without_images(params: Params, train: Data | None) -> str:
    """Why training data have not what noise is to be added to, or ""."""
    asked = isinstance(params, FewSteps) and params.latents == "pictures"
    if not asked or train is None or train.kind != "texts":
        return ""
    return f"latents: images are asked for, and {train.source} holds captions alone"


@dataclass(frozen=True)
class Guiding:
    """How a pipeline is guided.

    argument: of its call, the scale; "" where nothing guides it. folds: whether a student can do without: a scale that the
    denoiser is given as an input stays one. scale: by which it is guided, as its own call says or by default. away: the negative
    prompt of its own call.
    """

    argument: str
    folds: bool
    scale: float | None = None
    away: object = None

    def call(self, scale: float | None, negative: str | None = None) -> dict[str, object]:
        """The arguments by which a pipeline is guided so; {} leaves it as it is."""
        found: dict[str, object] = {} if scale is None or not self.argument else {self.argument: scale}
        if negative is not None:
            found[NEGATIVE] = negative
        elif found and self.argument == TRUE_GUIDANCE:
            found[NEGATIVE] = self.away or ""  # such pipelines are guided only away from something, be it nothing
        return found

    def student(self, scale: float | None) -> dict[str, object]:
        """The arguments by which a student is called that needs no guidance, or still is reported its scale."""
        if self.folds:
            return {self.argument: 1.0}
        return {self.argument: scale} if self.argument and scale is not None else {}


def guiding(artifact: Artifact) -> Guiding:
    """How a pipeline is guided, read from its class and its denoiser's config."""
    takes, own = call_arguments(class_of(artifact.path)) or {}, artifact.settings.call
    reported = tells_guidance(artifact)
    argument = GUIDANCE if reported else next((name for name in (TRUE_GUIDANCE, GUIDANCE) if name in takes), "")
    scale = own.get(argument, takes.get(argument))
    number = float(scale) if isinstance(scale, int | float) else None
    return Guiding(argument, bool(argument) and not reported, number, own.get(NEGATIVE))


def image_guidance(artifact: Artifact, params: FewSteps) -> float | None:
    """The scale by which a pipeline is led towards the image that it edits; None of one that is not."""
    takes = call_arguments(class_of(artifact.path)) or {}
    if IMAGE_GUIDANCE not in takes:
        return None
    if params.image_guidance is not None:
        return params.image_guidance
    own = artifact.settings.call.get(IMAGE_GUIDANCE, takes[IMAGE_GUIDANCE])
    return float(own) if isinstance(own, int | float) else 1.0


def strength(params: FewSteps) -> dict[str, object]:
    """The argument that says with which strength a student is called; {} leaves it as it is."""
    return {} if params.strength is None else {STRENGTH: params.strength}


def folded(artifact: Artifact) -> str:
    """In words, that guidance was taught to a denoiser as its own output; or ""."""
    how, own = guiding(artifact), artifact.settings.call
    if not how.folds or how.scale is None or how.scale > 1 or how.argument not in own:
        return ""
    return f"its guidance is folded in already (its own call has {how.argument} {how.scale:g})"


def ill_guided(artifact: Artifact, scale: float | None) -> str:
    """Why a pipeline has no use for a guidance scale that it is to generate with, or ""."""
    if scale is None:
        return ""
    if not guiding(artifact).argument:
        return f"{class_of(artifact.path)} takes no guidance scale"
    called = folded(artifact) if scale > 1 else ""
    return f"{called}, and guidance {scale:g} would guide it once more" if called else ""


def guided_twice(artifact: Artifact) -> str:
    """Why no trajectories of a pipeline are followed whose denoiser is given a scale and which is guided truly beside that, by its own
    call; or ""."""
    how, own = guiding(artifact), artifact.settings.call
    scale = own.get(TRUE_GUIDANCE, (call_arguments(class_of(artifact.path)) or {}).get(TRUE_GUIDANCE))
    if how.folds or how.away is None or not isinstance(scale, int | float) or scale <= 1:
        return ""
    return f"its denoiser is given {how.argument}, and its own call guides it once more ({TRUE_GUIDANCE} {scale:g}), which is not taught"


def flows(config: Mapping[str, Any]) -> bool:
    """Whether a scheduler, by its config, goes along a flow from noise to image."""
    kind, predicts = str(config.get("_class_name", "")), str(config.get("prediction_type", ""))
    return kind.startswith("FlowMatch") or predicts == "flow_prediction"


def last_level(artifact: Artifact, steps: int) -> float | None:
    """Where along a flow the last of a student's steps is to begin; 0 where it is the first, None where nothing is to be stated.

    Left to itself FLOW spaces its steps down to where a thousandth of the noise is left, and adds the way from there to none: the
    last call of the denoiser would do nothing, and two steps be one. Pipelines that space them evenly themselves leave none over.
    """
    config = config_of(artifact)
    if not flows(config) or EVENLY in source_of(class_of(artifact.path), "pipelines"):
        return None
    if steps < 2:
        return 0.0 if config.get("shift_terminal") else None
    shift = config.get("flow_shift") or (1.0 if config.get("use_dynamic_shifting") else config.get("shift")) or 1.0
    return float(shift / (steps + shift - 1))  # of 1 / steps, shifted


def sampler(config: Mapping[str, Any], method: Method, origin: int, last: float | None = None) -> dict[str, Any]:
    """The settings of the scheduler that samples from a student, which come out otherwise; its class among them.

    Steps begin at noise alone and end at no noise at all.

    Args:
        last: where along a flow the last of them begins, as `last_level` says.
    """
    if flows(config):
        reported = {"shift": config.get("flow_shift"), "shift_terminal": last}
        return {"_class_name": FLOW} | {name: value for name, value in reported.items() if value is not None}
    plain = {"timestep_spacing": "trailing", "set_alpha_to_one": True, "clip_sample": False, "thresholding": False}
    if method == "consistency":
        plain["original_inference_steps"] = origin
    return {"_class_name": SAMPLER[method], **plain}


def refusal(artifact: Artifact, params: FewSteps, steps: int | None, method: Method, origin: int = 0) -> str:
    """Why a pipeline's denoiser cannot be taught by its trajectories, or "".

    Args:
        steps: of the student, where another scheduler samples it; None where its own does.
        origin: levels that a consistent student's scheduler takes its own from.
    """
    config = config_of(artifact)
    kind, main = str(config.get("_class_name", "")), artifact.main
    known = read_class(kind)
    if not config or known is None:
        return _unknown(kind)
    if not flows(config) and (
        "beta_schedule" not in known.defaults or str(config.get("prediction_type")) == "trigflow"
    ):
        return f"{kind} tells no training schedule of noise (beta_schedule), and goes along no flow"
    if method == "consistency" and flows(config):
        why = f"consistency is sampled with fresh noise at each step, which no pipeline draws from its seed with {FLOW}"
        return Refusal(why, "leave `method` out: progressive teaches along a flow too")
    if not flows(config) and (why := foreign(config, "lcm" if method == "consistency" else "ddim")):
        return why
    if artifact.known_config(main).get("time_cond_proj_dim"):
        return f"`{main}` takes its guidance as an input (time_cond_proj_dim), as a model that was taught already is"
    if params.latents == "pictures" and artifact.known_config("vae").get("latents_mean") is not None:
        why = "how its `vae` scales latents channel by channel (latents_mean) is not known here"
        return Refusal(why, "set latents: teacher")
    if why := _unguided(artifact, params) or _unlike_noise(artifact, params, steps):
        return why
    if why := guided_twice(artifact):
        return Refusal(why, f"take {NEGATIVE} out of the call in its {MANIFEST}")
    if steps is None:
        return ""
    changed = {**config, **sampler(config, method, origin, last_level(artifact, steps))}
    before = {problem.message for problem in faults(config, "")}
    found = faults(changed, "", steps, class_of(artifact.path))
    return next((Refusal(new.message, new.fix) for new in found if new.message not in before), "")


def _unknown(kind: str) -> Refusal:
    """That a pipeline has no scheduler, or none of a class that the installed diffusers has."""
    if not kind:
        fix = f"give the pipeline's folder whole, with its {SCHEDULER_CONFIG}"
        return Refusal("the pipeline has no scheduler, which tells the noise that a denoiser is taught at", fix)
    fix = "upgrade diffusers, or put `- accelerate.steps: {steps: …, scheduler: ddim}` in front"
    return Refusal(f"{kind} is no scheduler that this diffusers has", fix)


def _unguided(artifact: Artifact, params: FewSteps) -> str:
    """Why what the parameters say of guidance means nothing to a pipeline, or ""."""
    how, kind = guiding(artifact), class_of(artifact.path)
    if params.guidance is not None and not how.argument:
        return Refusal(f"{kind} takes no guidance scale", "leave `guidance` out")
    if params.guidance is not None and params.guidance <= 1 and params.image_guidance is not None:
        why = f"{kind} ignores image_guidance unless guidance is above 1, and it is {params.guidance:g}"
        return Refusal(why, "leave `image_guidance` out, or set `guidance` above 1")
    if params.negative_prompt is None:
        return ""
    if NEGATIVE not in (call_arguments(kind) or {}) or not how.folds:
        return Refusal(f"{kind} leads away from nothing", "leave `negative_prompt` out")
    if params.guidance is not None and params.guidance <= 1:
        why = f"nothing leads away from a negative prompt at guidance {params.guidance:g}"
        return Refusal(why, "leave `negative_prompt` out, or set `guidance` above 1")
    return ""


def _unlike_noise(artifact: Artifact, params: FewSteps, steps: int | None) -> str:
    """Why no trajectories are followed from the image that a pipeline is given, or ""."""
    kind = class_of(artifact.path)
    takes, own = call_arguments(kind) or {}, artifact.settings.call
    for name, value in ((IMAGE_GUIDANCE, params.image_guidance), (STRENGTH, params.strength)):
        if value is not None and name not in takes:
            return Refusal(f"{kind} takes no {name}", f"leave `{name.removesuffix('_scale')}` out")
    if own.get(PASTED) is not None:
        why = f"{PASTED} makes it work on each image by itself, on a part of it"
        return Refusal(why, f"take {PASTED} out of the call in its {MANIFEST}")
    if steps is None:
        return ""
    weak = next(too_weak(artifact, strength(params), takes, steps), "")
    return Refusal(weak, "ask for more steps, or for a larger `strength`") if weak else ""


def forecast_taught(artifact: Artifact, params: FewSteps, **call: object) -> Forecast:
    """What comes of it: the call of a student, and the disk and memory that teaching takes."""
    weights = 4 * parameter_count(artifact.folder(artifact.main))
    config = artifact.known_config(artifact.main)
    side = config.get("sample_size") or 128
    latent = int(config.get("in_channels", 4)) * (side if isinstance(side, int) else max(side)) ** 2
    text = 3 * caption_values(artifact)  # of the student, and of the teacher with the prompt and without
    how = guiding(artifact)
    # A negative prompt that was taught, be it the model's own, is asked for no more: it would be ignored.
    away = {NEGATIVE: None} if params.negative_prompt is not None or (how.folds and how.away) else {}
    called = artifact.calling(**call, **how.student(params.guidance), **strength(params), **away)
    return Forecast(
        scratch_bytes=2 * 4 * weights,
        item_bytes={"captions": 4 * (latent + text)},
        memory_bytes=TRAINED * weights,
        settings=called.settings,
    )


def forecast_sampled(artifact: Artifact, params: FewSteps, steps: int, method: Method, origin: int) -> Forecast:
    """As `forecast_taught`, of a student that is sampled in so many steps."""
    config = config_of(artifact)
    changed = sampler(config, method, origin, last_level(artifact, steps))
    found = forecast_taught(artifact, params, **{STEPS: steps})
    reported = f"{steps} {'step' if steps == 1 else 'steps'} of {changed['_class_name']}"
    return replace(found, configs={SCHEDULER: {**config, **changed}}, reported=reported)

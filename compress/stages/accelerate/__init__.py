"""Stages that write nothing anew, and say how a pipeline is called, or what is done inside its modules when it is opened."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from compress.artifact import Artifact, derive, write_manifest
from compress.catalogue import Forecast, Stage, stage
from compress.context import Context
from compress.model.hook_settings import hooked, losses, unhookable
from compress.params import Params

P = TypeVar("P", bound=Params)


def call_stage(
    *,
    version: int,
    params: type[P],
    lossy: bool,
    refuse: Callable[[Artifact, P], str],
    forecast: Callable[[Artifact, P], Forecast],
) -> Callable[[Callable[[Artifact, P, Context], None]], Stage]:
    """The record of a stage that leaves a pipeline's settings and its scheduler otherwise, and none of its weights."""
    return stage(
        version=version,
        params=params,
        needs=("denoising",),
        lossy=lossy,
        effects=("settings",),
        reproducible="bytes",
        libraries=("diffusers",),
        refuse=refuse,
        forecast=forecast,
    )


def hook_stage(
    *, version: int, params: type[P], name: str, reported: str, elsewhere: Callable[[str], str]
) -> Callable[[Callable[[Artifact, P, Context], None]], Stage]:
    """The record of a stage that leaves all files as they are, and a hook for the main component's torch module."""

    def refuse(artifact: Artifact, given: P) -> str:
        return unhookable(artifact, name)

    def forecast(artifact: Artifact, given: P) -> Forecast:
        return forecast_hooked(artifact, name, reported)

    return stage(
        version=version,
        params=params,
        formats={"torch": "torch"},
        effects=("settings",),
        reproducible="bytes",
        libraries=("transformers",),
        refuse=refuse,
        forecast=forecast,
        elsewhere=elsewhere,
    )


def forecast_hooked(artifact: Artifact, name: str, reported: str, **params: object) -> Forecast:
    """What comes of a hook: whether the model then gives other numbers, beyond rounding, and that stock libraries open it without."""
    made = hooked(artifact, name, (), **params)
    kept = "lossy" if name in losses(made) else "exact"
    return Forecast(settings=made.settings, reported=f"`{artifact.main}`: {reported} ({kept}); that needs pare")


def leave_hooked(artifact: Artifact, name: str, context: Context, **params: object) -> None:
    """The artifact with a hook more."""
    made = derive(artifact, context.out, link=context.link)
    write_manifest(hooked(made, name, (), **params))

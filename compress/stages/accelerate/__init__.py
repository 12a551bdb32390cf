"""Stages that write nothing anew, and say how a pipeline is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from compress.artifact import Artifact
from compress.catalogue import Foresight, Stage, stage
from compress.context import Context
from compress.params import Params

P = TypeVar("P", bound=Params)


def call_stage(
    *, version: int, params: type[P], refuse: Callable[[Artifact, P], str], foresee: Callable[[Artifact, P], Foresight]
) -> Callable[[Callable[[Artifact, P, Context], None]], Stage]:
    """The record of a stage that leaves a pipeline's settings and its scheduler otherwise, and none of its weights."""
    return stage(
        version=version,
        params=params,
        needs=("denoising",),
        effects=("settings",),
        reproducible="bytes",
        libraries=("diffusers",),
        refuse=refuse,
        foresee=foresee,
    )

"""How a pipeline has its denoiser asked without a prompt beside with one, read from its class's source."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal

from compress.artifact import Artifact
from compress.machine.library_classes import source_of
from compress.pipelines.call_arguments import GUIDANCE, NEGATIVE, TRUE_GUIDANCE, call_arguments
from compress.pipelines.image_inputs import IMAGE_GUIDANCE
from compress.pipelines.index import class_of

Asked = Literal["halves", "thirds", "passes", ""]
# As pipelines write it: one call on both halves of a batch, the one without a prompt first; on three thirds, with the prompt and the image first,
# then with the image alone, then with neither; or two calls in a step, the one with a prompt first.
DOUBLED = "torch.cat([latents] * 2)"
TRIPLED = "torch.cat([latents] * 3)"
HALVED = re.compile(r"\w*uncond\w*, \w*(?:text|cond)\w* = noise_pred\.chunk\(2\)")
IN_THIRDS = "noise_pred_text, noise_pred_image, noise_pred_uncond = noise_pred.chunk(3)"
PASS = re.compile(r"\.cache_context\(\"(\w+)\"")


@cache
def asked_how(kind: str) -> Asked:
    """Whether a pipeline's class asks on the `halves` or `thirds` of one batch, or in two `passes` of a step; "" where none of them is seen."""
    text = source_of(kind, "pipelines") if kind else ""
    if DOUBLED in text and HALVED.search(text) and "chunk(3)" not in text:
        return "halves"
    if TRIPLED in text and IN_THIRDS in text:
        return "thirds"
    return "passes" if PASS.findall(text) == ["cond", "uncond"] else ""


def unguided(artifact: Artifact, call: Mapping[str, Any] | None = None) -> str:
    """Why a pipeline, called as it is meant to be or with these arguments, asks its denoiser with the prompt alone; or ""."""
    kind, own = class_of(artifact.path), artifact.settings.call if call is None else call
    takes = call_arguments(kind) or {}
    argument = TRUE_GUIDANCE if TRUE_GUIDANCE in takes else GUIDANCE
    scale = own.get(argument, takes.get(argument))
    if isinstance(scale, int | float) and scale <= 1:
        return f"{kind} is called without guidance ({argument} {scale:g})"
    shown = own.get(IMAGE_GUIDANCE, takes.get(IMAGE_GUIDANCE))
    if isinstance(shown, int | float) and shown < 1:
        return f"{kind} is called without guidance ({IMAGE_GUIDANCE} {shown:g})"
    if argument == TRUE_GUIDANCE and own.get(NEGATIVE) is None:
        return f"{kind} is guided where it is given a {NEGATIVE}, and its own call has none"
    if artifact.known_config(artifact.main).get("time_cond_proj_dim"):
        return f"`{artifact.main}` takes its guidance as an input (time_cond_proj_dim)"
    return ""

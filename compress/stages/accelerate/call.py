"""Generate through the lean call: the stock pipeline's very images, without most of the Python around its components.

A stock call of diffusers takes some milliseconds beside its components: it looks for hooks and devices in every module, makes its schedule
anew, tokenizes each prompt twice. That is a large share of an image once a student generates it in two steps behind an engine, and nothing of
one that takes a second. The model's files stay as they are; with another caller than pare it is the stock pipeline. Put it last.
Source: the calls of diffusers' pipelines, whose arithmetic the lean call repeats operation by operation.

    - accelerate.call: {}
"""

from __future__ import annotations

from compress.artifact import Artifact, derive, write_manifest
from compress.catalogue import Forecast
from compress.context import Context
from compress.params import Params
from compress.pipelines.lean import without_lean_call
from compress.stages.accelerate import call_stage

SUMMARY = "call path: stock → lean; the images are the same, and calling it so needs pare"


class Call(Params):
    """It has no parameters."""


def refuse(artifact: Artifact, params: Call) -> str:
    if artifact.settings.lean:
        return "the model is called the lean way already"
    return without_lean_call(artifact, artifact.settings.call)


def forecast(artifact: Artifact, params: Call) -> Forecast:
    return Forecast(settings=artifact.calling_lean().settings, reported=SUMMARY)


@call_stage(version=1, params=Call, refuse=refuse, forecast=forecast)
def run(artifact: Artifact, params: Call, context: Context) -> None:
    made = derive(artifact, context.out, link=context.link)
    context.note(SUMMARY)
    write_manifest(made.calling_lean())

"""What a pipeline does not have, or does not go by when it is called so, of the settings that reports tell of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compress.artifact import Artifact
from compress.catalogue import find_task
from compress.machine.library_classes import source_of
from compress.pipelines.call_arguments import GIVEN_SCALE, GUIDANCE, call_arguments, tells_guidance
from compress.pipelines.guided_calls import unguided
from compress.pipelines.image_inputs import IMAGE_GUIDANCE
from compress.pipelines.index import class_of


def unheeded(artifact: Artifact, call: Mapping[str, Any]) -> tuple[str, ...]:
    """The settings that mean nothing to a model when it is called with these arguments, by the names that its task has for them: their
    defaults decide nothing. () of a class that is not known."""
    task, kind = find_task(artifact.task), class_of(artifact.path)
    takes, arguments = call_arguments(kind), task.arguments({**artifact.settings.call, **call})
    if takes is None:
        return ()
    lost = set(arguments.values()) - set(takes)
    if unguided(artifact, call):  # the text does not lead it, so the image does not either
        lost.add(IMAGE_GUIDANCE)
    if GIVEN_SCALE.search(source_of(kind, "pipelines")) and not tells_guidance(artifact):
        lost.add(GUIDANCE)
    return tuple(name for name in task.reported if arguments[name] in lost)

"""What of steps may not have been meant: as many as before, or, of a student of few steps, what it is taught and then not compared by: another
guidance or strength than the baseline's, steps that its teacher itself was never taught."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from compress.artifact import Artifact
from compress.catalogue import find_task
from compress.distillation.compatibility import TEACHER
from compress.distillation.few_steps import FewSteps, folded, guiding, image_guidance
from compress.distillation.students import STEPS, off_grid, parts_of
from compress.pipelines.call_arguments import NEGATIVE, call_arguments
from compress.pipelines.call_arguments import STEPS as CALLED_STEPS
from compress.pipelines.guided_calls import unguided
from compress.pipelines.image_inputs import IMAGE_GUIDANCE, STRENGTH, strength_of
from compress.pipelines.index import class_of
from compress.planning.calls import baseline_call
from compress.recipe.values import Recipe
from compress.sources.models import Source

if TYPE_CHECKING:
    from compress.planning.nodes import Node

FEWER = "accelerate.steps"


def student_cautions(
    recipe: Recipe, source: Artifact, nodes: Sequence[Node], models: Mapping[str, Source]
) -> Iterator[str]:
    """What may not have been meant of the teaching of each student of a plan.

    Args:
        models: of their own that stages are given, as nodes name them.
    """
    known = {name: one.artifact for name, one in models.items()} | {node.id: node.expected for node in nodes}
    for node in nodes:
        teacher = known.get(node.inputs.get(TEACHER, ""), source)
        if isinstance(node.params, FewSteps) and (message := _otherwise_guided(recipe, source, teacher, node.params)):
            yield f"{node.id}: {message}"
        if node.stage.name == STEPS and (message := _of_another_strength(recipe, source, teacher, node.params)):
            yield f"{node.id}: {message}"
        if isinstance(node.params, FewSteps) and (message := _otherwise_shown(recipe, source, teacher, node.params)):
            yield f"{node.id}: {message}"
        if isinstance(node.params, FewSteps) and (message := _otherwise_away(recipe, source, node.params)):
            yield f"{node.id}: {message}"
        if node.stage.name == STEPS and (message := off_grid(teacher, parts_of(node.params.counted()))):
            yield f"{node.id}: {message}"


def saving_nothing(recipe: Recipe, source: Artifact, nodes: Sequence[Node]) -> Iterator[str]:
    """Stages that leave as many steps as the baseline takes, or more, by the same scheduler."""
    takes, call = call_arguments(class_of(source.path)) or {}, baseline_call(source, recipe.evaluate.baseline)
    before = call.get(CALLED_STEPS, takes.get(CALLED_STEPS))
    for node in nodes:
        given = node.params.counted()
        steps = given.get("steps")
        if node.stage.name != FEWER or not isinstance(steps, int) or not isinstance(before, int) or steps < before:
            continue
        if given.get("scheduler") is None and given.get("spacing") is None:
            yield f"{node.id}: {steps} steps are no fewer than the baseline's {before}: this saves nothing"


def _of_another_strength(recipe: Recipe, source: Artifact, teacher: Artifact, params: Any) -> str:
    """That a student is taught the way of another strength than the baseline goes that it is compared with, or ""."""
    takes = call_arguments(class_of(source.path)) or {}
    if STRENGTH not in takes:
        return ""
    taught = params.strength or strength_of(teacher, {}, takes)
    asked = strength_of(source, baseline_call(source, recipe.evaluate.baseline), takes)
    if taught == asked:
        return ""
    return f"it is taught the way of strength {taught:g}, and the baseline goes that of {asked:g}: set the same in both"


def _otherwise_shown(recipe: Recipe, source: Artifact, teacher: Artifact, params: FewSteps) -> str:
    """That a student is taught another guidance by the image that it edits than the baseline has, or ""."""
    taught = image_guidance(teacher, params)
    takes, call = call_arguments(class_of(source.path)) or {}, baseline_call(source, recipe.evaluate.baseline)
    asked = call.get(IMAGE_GUIDANCE, takes.get(IMAGE_GUIDANCE))
    if taught is None or folded(teacher) or not isinstance(asked, int | float) or taught == asked:
        return ""
    scale = guiding(teacher).scale if params.guidance is None else params.guidance
    if unguided(source, call) or (
        scale is not None and scale <= 1
    ):  # the text does not lead, and so the image does not
        return ""
    return f"it is taught image_guidance {taught:g}, and the baseline edits with {asked:g}: set the same in both"


def _otherwise_away(recipe: Recipe, source: Artifact, params: FewSteps) -> str:
    """That a student is taught to lead away from what the baseline does not, or ""."""
    asked = baseline_call(source, recipe.evaluate.baseline).get(NEGATIVE)
    if params.negative_prompt is None or params.negative_prompt == asked:
        return ""
    beside = f"{asked!r}" if asked else "none"
    return f"it is taught the negative prompt {params.negative_prompt!r}, and the baseline has {beside}: set the same in both"


def _otherwise_guided(recipe: Recipe, source: Artifact, teacher: Artifact, params: FewSteps) -> str:
    """That a teacher generates with another guidance than the baseline that its student is compared with, or "". One that was taught
    its guidance has none left to differ by."""
    how, baseline = guiding(teacher), guiding(source)
    taught = how.scale if params.guidance is None else params.guidance
    asked = baseline_call(source, recipe.evaluate.baseline).get(baseline.argument, baseline.scale)
    if not how.argument or folded(teacher) or taught is None or not isinstance(asked, int | float) or taught == asked:
        return ""
    which = "the pipeline's own " if params.guidance is None else ""
    given = find_task(source.task).asked(recipe.evaluate.baseline, source.settings.call)
    own = "" if baseline.argument in given else "the pipeline's own "
    message = f"it is taught {which}guidance {taught:g}, and the baseline generates with {own}{asked:g}"
    return f"{message}: set the same in both, unless another look is meant"

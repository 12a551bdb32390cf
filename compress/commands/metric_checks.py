"""Whether what an evaluation is asked for fits its two sides and its data: metrics, their parameters, gates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from compress.artifact import Artifact
from compress.catalogue import find_metric, find_task
from compress.commands.wanted import Wanted
from compress.data.items import Data
from compress.errors import ManyProblems, Problem, UserError
from compress.planning.chat_checks import chat_problems
from compress.planning.evaluation_checks import kind_problems, misfit
from compress.recipe.shared_parameters import spread, takers, unused
from compress.recipe.validate import check_values
from compress.recipe.values import EvalSpec

if TYPE_CHECKING:
    from compress.params import Params
    from evaluation.metrics import Metric


def filled_in(wanted: Wanted, sides: Sequence[Artifact], data: Data | None) -> dict[str, dict[str, Any]]:
    """The metrics with every parameter filled in.

    Raises:
        UserError: one of them, a parameter or a gate does not fit.
    """
    from evaluation.preflight.endpoint_checks import beyond_endpoints

    metrics = _fitting(wanted, sides, data)
    problems = [
        Problem(
            f"--{name}", f"none of these metrics has a {name}", f"add one of {', '.join(takers(name))} to --metrics"
        )
        for name in unused(wanted.spec, wanted.metrics)
    ]
    checked = {
        name: check_values(metrics[name].params, given, name, "metrics", problems)
        for name, given in spread(wanted.metrics, wanted.spec).items()
    }
    problems += wanted.misplaced()
    problems += beyond_endpoints(sides, wanted.metrics, data, wanted.spec)
    if wanted.spec.controls:
        message = "evaluate.controls names steps of a recipe, and here are two models"
        problems.append(Problem("spec", message, "compare each control with the baseline by itself, or write a recipe"))
    problems += _gate_problems(wanted, metrics)
    if problems:
        raise ManyProblems(tuple(problems))
    return {name: params.model_dump(mode="json") for name, params in checked.items() if params is not None}


def _fitting(wanted: Wanted, sides: Sequence[Artifact], data: Data | None) -> dict[str, Metric[Params]]:
    """The metrics and those that gates name, where each can be had of these sides with this data.

    Raises:
        UserError: one cannot.
    """
    from evaluation.preflight.image_folders import check_metrics, is_folder

    if len({side.task for side in sides}) > 1:
        raise UserError("the two models do different tasks", fix="compare two models of one task")
    task = find_task(sides[0].task)
    folders = any(map(is_folder, sides))
    metrics = {name: find_metric(name) for name in (*wanted.metrics, *wanted.gates)}
    if folders:
        check_metrics([(name, metric.needs) for name, metric in metrics.items()])
    if data and (misplaced := tuple(kind_problems(data, task, "--data"))):
        raise ManyProblems(misplaced)
    if data and (unread := [p for side in sides if side.components for p in chat_problems(data, side, "--data")]):
        raise ManyProblems(tuple(dict.fromkeys(unread)))
    for name, metric in metrics.items():
        if why := misfit(name, task, data):
            raise UserError(
                why.replace("this model does", "these do"), fix="drop it from --metrics (metrics= in Python)"
            )
        if metric.needs_data and data is None and not folders:
            raise UserError(f"{name} needs evaluation data", fix="give some with --data (data= in Python)")
    return metrics


def _gate_problems(wanted: Wanted, metrics: Mapping[str, Metric[Params]]) -> Iterator[Problem]:
    from evaluation.verdict.gates import problems

    for name, gate in wanted.gates.items():
        if name not in wanted.metrics:
            yield Problem("gates", f"{name} is gated and not measured", f"add it to --metrics: …,{name}")
        if why := problems(gate, metrics[name]):
            yield Problem("gates", f"gate {name}: {why}", f"`pare explain {name}` and `pare explain gates`")


def too_few_images(
    metrics: Mapping[str, Mapping[str, Any]], data: Data | None, spec: EvalSpec, each: int
) -> Iterator[Problem]:
    """Which metrics will have too few images.

    Args:
        metrics: with every parameter filled in.
        each: how many images a caption is generated as.
    """
    from evaluation.preflight.image_counts import too_few

    for name, values in metrics.items():
        if few := too_few(find_metric(name), values, data, spec.samples, each):
            yield Problem("metrics", few.message, few.fix)

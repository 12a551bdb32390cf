"""Endpoints before anything is measured: what each was seen to do, by a few small calls, and which metrics ask more than that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.artifact import Artifact
from compress.catalogue import find_metric, find_task, task_names, tasks_for
from compress.data.items import Data
from compress.endpoints.images import PROMPT, ImageCalls, probe_images, seed_of
from compress.endpoints.served import Served
from compress.endpoints.texts import TextCalls, offers, probe_texts
from compress.errors import ManyProblems, Problem, UserError
from compress.files.user_paths import expanded
from compress.recipe.values import EvalSpec
from compress.sources.units import TEXT
from compress.tasks import COST, Observable
from evaluation.metrics import Metric
from evaluation.preflight.image_folders import is_generated

if TYPE_CHECKING:
    from compress.params import Params

ANSWERS = "answers"  # in a run's folder
SIZES = ("height", "width")  # of the baseline's settings, those that an endpoint can be asked for
# What no endpoint shows, why, and what is measured in its place.
NEVER: Mapping[Observable, tuple[str, str]] = {
    "files": ("its files are its server's own", "measure it of the two models' folders"),
    "starts": ("its process is its server's own", "measure it of the two models' folders, or latency here"),
    "energy": ("it runs where no counter is read from here", "measure it of the two models' folders, or latency here"),
    "latents": ("it gives images and nothing that they are decoded from", "use lpips or ssim"),
    "denoising": ("it gives images and nothing of how they come about", "use lpips or ssim"),
    "language_model": (
        "it does not give the probabilities of all tokens, nor is it called by other libraries",
        "use token_agreement, text_agreement, or perplexity where the server echoes; or give the two models' folders",
    ),
}
# And in place of what some do not.
INSTEAD: Mapping[Observable, str] = {
    "completions": "use text_agreement, which needs texts alone, or a server that answers with logprobs",
    "documents": "use token_agreement or text_agreement, or a server that echoes with logprobs, as vLLM does",
    "timings": "measure quality alone",
    "token_timings": "measure quality alone",
}
UNSEEDED = "use kid, cmmd or clip_score, which need no common noise"
Asked = Mapping[str, Mapping[str, Any]]


def overwritten(named: Sequence[object], out: Path) -> Iterator[Problem]:
    """What a run of endpoints reads that lies where its answers will, or that holds those.

    Args:
        named: sides, data and settings of metrics; what is no path of this machine is passed by.
    """
    answers = (out / ANSWERS).resolve()
    for name in dict.fromkeys(one for one in named if isinstance(one, str) and one and "://" not in one):
        place = expanded(name).resolve()
        if place.is_relative_to(answers) and place.exists():
            message = "lies where this run's answers will, which replace those of another run"
        elif place.is_dir() and answers.is_relative_to(place) and is_generated(place):
            message = f"holds {out / ANSWERS}, where this run's answers will lie"
        else:
            continue
        yield Problem(name, message, "give this run another folder with --out (out= in Python)")


def task_served(metrics: Sequence[str], data: Data | None, served: Served) -> str:
    """What an endpoint is for: what its metrics are of, or else the data, or else what it answers."""
    needs: frozenset[Observable] = frozenset().union(*(find_metric(name).needs - COST for name in metrics))
    fitting = _served(needs) if needs else ()
    if len(fitting) == 1:
        return fitting[0]
    if data is not None and data.kind != "texts":  # which may be captions
        return next(name for name in task_names() if find_task(name).data == data.kind)
    client, model = served.client, served.address.model
    writes = any(offers(client, model, chat=chat) is None for chat in (False, True))
    return _served(frozenset({"continuations"} if writes else {"images"}))[0]


def _served(needs: frozenset[Observable]) -> tuple[str, ...]:
    """The tasks that endpoints can do, which are given texts alone."""
    return tuple(name for name in tasks_for(needs) if not find_task(name).takes)


def beyond_endpoints(sides: Sequence[Artifact], metrics: Asked, data: Data | None, spec: EvalSpec) -> Iterator[Problem]:
    """What no endpoint can be measured by, or asked for."""
    served = [side for side in sides if isinstance(side, Served)]
    if not served:
        return
    for metric in map(find_metric, metrics):
        for need in sorted(metric.needs & NEVER.keys()):
            why, fix = NEVER[need]
            yield Problem(str(served[0].address), f"{metric.name} cannot be measured of an endpoint: {why}", fix)
            break
    given = sorted(spec.baseline.model_fields_set - {*SIZES})
    if given:
        message = f"evaluate.baseline sets {', '.join(given)}, which an endpoint does not take"
        yield Problem(str(served[0].address), message, "set it at the server")
    if len(served) < len(sides):
        yield from _mixed(served[0], metrics)
    scored = [name for name in metrics if "documents" in find_metric(name).needs]
    if scored and data is not None and data.conversations:
        message = f"{scored[0]} of conversations counts the assistant's tokens alone, and a server does not tell which those are"
        yield Problem(str(served[0].address), message, "give texts, or use token_agreement")


def _mixed(served: Served, metrics: Asked) -> Iterator[Problem]:
    """What a side that is no endpoint keeps from being compared with one that is."""
    if "images" not in find_task(served.task).yields:
        fix = "serve both, or give two models' folders"
        message = "an endpoint of texts is compared with another: tokens and prompts are its server's own"
        yield Problem(str(served.address), message, fix)
        return
    for name in metrics:
        if find_metric(name).needs & COST:
            message = f"{name} of an endpoint has the network in it, and the other side's has not"
            yield Problem(str(served.address), message, "serve both, or measure quality alone")
        elif find_metric(name).own:
            message = f"{name} compares images of one noise, and an endpoint's is its server's own"
            yield Problem(str(served.address), message, UNSEEDED)


def looked_at(
    sides: Sequence[Artifact], metrics: Asked, data: Data | None, spec: EvalSpec, out: Path
) -> list[Artifact]:
    """The sides, endpoints with what they were seen to do; each is asked for a few small answers.

    Args:
        out: the run's folder, where answers are put.

    Raises:
        UserError: one is out of reach, or does not do what a metric needs.
    """
    wanted = frozenset[Observable]().union(*(find_metric(name).needs for name in metrics))
    chat = _by_chat(sides, data)
    found: list[Artifact] = []
    for name, side in zip(("candidate", "baseline"), sides, strict=True):
        if isinstance(side, Served):
            calls = _images(side, metrics, data, spec) if chat is None else _texts(side, chat, wanted)
            side = replace(side, calls=calls, wanted=wanted, answers=out / ANSWERS / name)
        found.append(side)
    each = find_task(sides[0].task).repeats(spec)
    lacking = [p for side in found if isinstance(side, Served) for p in _lacking(side, metrics, each)]
    if problems := (*lacking, *_unlike(found, metrics)):
        raise ManyProblems(problems)
    return found


def _unlike(sides: Sequence[Artifact], metrics: Asked) -> Iterator[Problem]:
    """Metrics that look at two images point by point, where the two endpoints' have not one size."""
    calls = [side.calls for side in sides if isinstance(side, Served) and isinstance(side.calls, ImageCalls)]
    sizes = [f"{one.gave[1]}x{one.gave[0]}" for one in calls]
    if len(set(sizes)) < 2:
        return
    for metric in filter(_of_one_noise, map(find_metric, metrics)):
        message = (
            f"{metric.name} compares images of one size, and the candidate's are {sizes[0]}, the baseline's {sizes[1]}"
        )
        fix = "ask both for one, spec=EvalSpec(baseline={'height': …, 'width': …}), or let both servers give one"
        yield Problem("metrics", message, fix)


def _by_chat(sides: Sequence[Artifact], data: Data | None) -> bool | None:
    """Whether endpoints of texts are asked by `chat/completions`, both alike; None for images.

    Raises:
        UserError: one answers neither call.
    """
    served = [side for side in sides if isinstance(side, Served)]
    if not served or "images" in find_task(served[0].task).yields:
        return None
    refused = [None if data and data.conversations else offers(s.client, s.address.model, chat=False) for s in served]
    if not (data and data.conversations) and not any(refused):
        return False
    for side, plain in zip(served, refused, strict=True):
        if error := offers(side.client, side.address.model, chat=True):
            raise plain or error
    return True


def _images(side: Served, metrics: Asked, data: Data | None, spec: EvalSpec) -> ImageCalls:
    item = next(iter(data.first(1)), None) if data else None
    prompt, name = (item.text, item.id) if item else (PROMPT, "0")
    height, width = (getattr(spec.baseline, name) for name in SIZES)
    if bool(height) != bool(width):
        raise UserError("evaluate.baseline sets one of height and width", fix="set both, or none")
    several = find_task(side.task).repeats(spec) > 1 or _repeat(data, spec.samples)
    seeded = several or any(_of_one_noise(find_metric(name)) for name in metrics)
    size = f"{width}x{height}" if height else ""
    return probe_images(side.client, side.address.model, size, prompt, seed_of(spec.seed, name), seeded=seeded)


def _repeat(data: Data | None, samples: int) -> bool:
    """Whether a prompt is among the first ones several times."""
    if data is None:
        return False
    texts = [row[TEXT] for row in data.rows[:samples]] or [item.text for item in data.first(samples)]
    return len(set(texts)) < len(texts)


def _texts(side: Served, chat: bool, wanted: frozenset[Observable]) -> TextCalls:
    return probe_texts(side.client, side.address.model, chat=chat, wants=wanted)


def _of_one_noise(metric: Metric[Params]) -> bool:
    return metric.own and "images" in metric.needs


def _lacking(side: Served, metrics: Asked, each: int) -> Iterator[Problem]:
    """Which metrics need what this endpoint was seen not to do; `each`: how many images of a prompt are asked for."""
    if side.calls is None:
        return
    if each > 1 and isinstance(side.calls, ImageCalls) and side.calls.alike:
        message = (
            f"{each} images of each prompt are asked for, and its server gives a prompt one image, whatever the seed"
        )
        yield Problem(str(side.address), message, "set evaluate.images_per_prompt to 1, and leave out variety")
    for metric in map(find_metric, metrics):
        if need := next(iter(sorted(metric.needs & side.calls.lacks.keys())), None):
            why = side.calls.lacks[need]
            yield Problem(str(side.address), f"{metric.name} cannot be measured: {why}", INSTEAD.get(need, ""))
        elif isinstance(side.calls, ImageCalls) and side.calls.unseeded and _of_one_noise(metric):
            yield Problem(str(side.address), f"{metric.name} cannot be measured: {side.calls.unseeded}", UNSEEDED)


def cautions(sides: Sequence[Artifact], metrics: Asked, data: Data | None) -> Iterator[tuple[str, str]]:
    """What a reader must know of a comparison with endpoints in it."""
    served = [side for side in sides if isinstance(side, Served)]
    if not served:
        return
    message = "what a server serves is not known here, so nothing that it answers is kept for another run"
    quality = any(find_metric(name).quality for name in metrics)
    place = served[0].answers.parent if served[0].answers and quality else None
    yield "endpoints", message + (f"; this run's answers lie in {place}" if place else "")
    if isinstance(served[0].calls, TextCalls) and served[0].calls.chat and not (data and data.conversations):
        yield (
            "endpoints",
            "texts are put as questions, whole (chat/completions): one side does not go on from a text (completions)",
        )
    if alike := [str(one.address) for one in served if isinstance(one.calls, ImageCalls) and one.calls.alike]:
        yield (
            alike[0],
            "its server gives a prompt one image, whatever the seed: the images of a prompt that is there twice are copies",
        )
    if not any(find_metric(name).timed for name in metrics):
        return
    yield (
        "endpoints",
        (
            "times go from the request to the last byte of its answer, network and server's queue included, and each block asks the same"
            " again, of which a server may keep what it has read; what else ran there meanwhile is not known"
        ),
    )
    hosts = sorted({side.address.machine for side in served})
    if len(hosts) > 1:
        yield "endpoints", f"the two sides run on different hosts, {' and '.join(hosts)}: times differ by these, too"

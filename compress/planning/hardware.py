"""What each stage of a plan is worth on a GPU that need not be here: whether what it leaves runs there, with which kernels, and why not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

from compress.artifact import CHOSEN, loaded_weights
from compress.catalogue import find_engine
from compress.errors import UserError
from compress.machine.devices import Opening, kind_of
from compress.machine.gpus import supposing
from compress.machine.kernels import FORMATS, Card, card, gpu_of
from compress.model.hook_settings import OFFLOAD, offloaded
from compress.params import Optimising
from compress.planning.nodes import Node
from compress.planning.plan import Plan

CUDA = "cuda"
PRODUCTS = ("float32", "float16", "bfloat16", "int8", "float8", "int4", "nvfp4")


@dataclass(frozen=True)
class Fit:
    """One stage on one GPU.

    runs: whether what it leaves does anything there. computes: what numbers are multiplied in, in words; "" where the stage has no part
    in that. why: of what does not run, or what to know of what does.
    """

    id: str
    stage: str
    runs: bool
    computes: str = ""
    why: str = ""


@contextmanager
def as_if(word: str | None) -> Iterator[Card | None]:
    """Within: plans are made as if this machine had the GPU of a name; None for none.

    Raises:
        UserError: as `card`.
    """
    asked = None if word is None else card(word)
    with supposing(gpu_of(asked)) if asked else nullcontext():
        yield asked


def fits(plan: Plan, card: Card) -> tuple[Fit, ...]:
    """Each stage of a plan on a GPU."""
    return tuple(_fit(node, card, plan.opening) for node in plan.nodes)


def room(plan: Plan, card: Card) -> str:
    """How much of the GPU's memory the model takes as it comes, in words; "" where nobody knows one of the two."""
    artifact = plan.source.artifact
    size = sum(file.stat().st_size for name in artifact.working for file in loaded_weights(artifact.folder(name)))
    if not card.gigabytes or not size:
        return ""
    share = size / 1e9 / card.gigabytes
    fitting = (
        "" if share < 0.9 else f", which leaves no room to work: quantize it, put {OFFLOAD} last, or take a larger one"
    )
    if plan.nodes and offloaded(plan.nodes[-1].expected):
        fitting = ", and wait in the processor's memory for their turn"  # the baseline's too, where they do not fit
    return f"weights as they come take {size / 1e9:.2g} GB of its {card.gigabytes} GB{fitting}"


def _fit(node: Node, card: Card, opening: Opening) -> Fit:
    made = (node.id, node.stage.name)
    if why := next(_hindrances(node, card, opening), ""):
        return Fit(*made, runs=False, why=why)
    if isinstance(node.params, Optimising):
        return Fit(*made, True, *_training(node.params.precision, card.target))
    name = node.stage.kernels(node.params)
    if not name and any(node.expected.components[one].format == CHOSEN for one in node.components):
        return Fit(*made, True, why=node.reported)
    return Fit(*made, True, *(_computing(name, card.target) if name else ()))


def _hindrances(node: Node, card: Card, opening: Opening) -> Iterator[str]:
    """Why what a stage leaves does not run on a GPU."""
    if why := node.stage.elsewhere(CUDA) or node.stage.misplaced(node.expected, node.params, CUDA):
        yield why
    for name in node.components:
        format = node.expected.components[name].format
        if format == CHOSEN:
            if kind_of(opening.device) != CUDA:
                yield f"it chooses what is fastest on the device of the run, here {opening.device}: device: cuda"
        elif format != "torch" and CUDA not in find_engine(format).devices:
            yield f"{find_engine(format).title} runs on a processor here: leave `{name}` to torch, or to build.tensorrt"
        elif find_engine(format).native and kind_of(opening.device) != CUDA:
            yield f"it is compiled for the device of the run, here {opening.device}: device: cuda"
    if why := _not_built_for(node, card):
        yield why
    found = FORMATS.get(node.stage.kernels(node.params))
    if found and not found.has_kernels(card.target) and not found.otherwise:
        yield f"{found.title} take kernels that there are {found.where}, and this is {card.target} ({found.source})"


def _not_built_for(node: Node, card: Card) -> str:
    """Why an engine that is built for some generations is not for this one, and whether it can be; ""."""
    targets = node.stage.built_for(node.params)
    if not targets or card.target in targets:
        return ""
    try:
        node.stage.built_for(node.params.model_copy(update={"targets": (card.target,)}))
    except UserError as error:
        return error.problems[0].message
    return f"it is built for {', '.join(targets)}, and this is {card.target}: targets: [{card.target}]"


def _training(asked: str, target: str) -> tuple[str, str]:
    """As accelerate settles `auto`: bfloat16 wherever torch has it."""
    name = (
        "bfloat16" if asked == "auto" and FORMATS["bfloat16"].has_kernels(target) else asked.replace("auto", "float32")
    )
    computes, why = _computing(name, target)
    return f"teaches in {computes}", why


def _computing(name: str, target: str) -> tuple[str, str]:
    found = FORMATS[name]
    if found.has_kernels(target):
        return found.title, found.caution
    return found.title, f"{found.otherwise}; kernels {found.where} ({found.source})"


def _abilities(target: str) -> Iterator[str]:
    """Which products a GPU has kernels for, and which it has none for."""
    products = {name: FORMATS[name] for name in PRODUCTS}
    there = [name for name, one in products.items() if one.has_kernels(target)]
    yield f"multiplies {', '.join(there)}"
    if lacking := [f"{name} ({one.where})" for name, one in products.items() if name not in there]:
        yield f"has no kernels for {', '.join(lacking)}"


def fits_dict(card: Card, plan: Plan) -> dict[str, Any]:
    """The same as JSON's own types."""
    return {"gpu": asdict(card), "room": room(plan, card), "stages": [asdict(fit) for fit in fits(plan, card)]}


def fits_text(card: Card, plan: Plan) -> str:
    """The same as lines for a terminal."""
    generation = "" if card.name == card.target else f", {card.target}"
    lines = [f"  on {card.name}{generation}: {room(plan, card)}".removesuffix(": ")]
    lines += [f"    {line}" for line in _abilities(card.target)]
    for fit in fits(plan, card):
        known = "; ".join(filter(None, (fit.computes, fit.why)))
        lines.append(f"    {'runs' if fit.runs else 'no  '}  {fit.id:<20} {known}".rstrip())
    return "\n".join(lines)

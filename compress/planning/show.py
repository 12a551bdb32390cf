"""A plan, shown."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from compress.adapters.fusing import Fusion
from compress.events import lasting
from compress.machine.devices import CPU
from compress.planning.nodes import SOURCE
from compress.planning.part_widths import part_widths
from compress.planning.plan import Plan
from compress.planning.steps_left import in_words, steps_left
from compress.recipe.keep import IF_FASTER
from compress.recipe.values import Recipe


def checked_dict(found: Plan) -> dict[str, Any]:
    """What a check found of a recipe that can work, as JSON's own types."""
    steps = [step.id for step in found.recipe.stages]
    return {"name": found.recipe.name, "stages": steps, "warnings": list(found.warnings)}


def checked_text(recipe: Recipe) -> str:
    """The same as a line."""
    counts = (("stage", recipe.stages), ("metric", recipe.evaluate.metrics), ("gate", recipe.gates))
    held = ", ".join(f"{len(of)} {what}{'s' * (len(of) != 1)}" for what, of in counts)
    return f"{recipe.name}: good ({held})"


def plan_dict(found: Plan) -> dict[str, Any]:
    """A plan as JSON's own types."""
    return {
        "name": found.recipe.name,
        "device": found.opening.device,
        "adapters": _adapters(found),
        "nodes": [
            {
                "id": n.id,
                "stage": n.stage.name,
                "params": n.params.counted(),
                "components": list(n.components),
                "after": n.after,
                "key": n.key,
                "cached": n.cached,
                "disk_bytes": n.disk_bytes,
                "kept_bytes": n.kept_bytes,
                "memory_bytes": n.memory_bytes,
                "seconds": n.seconds,
                "told": n.reported,
                **({"keep": IF_FASTER} if n.made else {}),
                "inputs": dict(n.inputs),
            }
            for n in found.nodes
        ],
        "widths": {name: dict(one.shares) for name, one in part_widths(found).items()},
        "controls": list(found.recipe.evaluate.controls),
        "steps": {
            side: asdict(one) for side, one in steps_left(found.recipe, found.source.artifact, found.nodes).items()
        },
        "disk_bytes": found.disk_bytes,
        "kept_bytes": found.kept_bytes,
        "memory_bytes": found.memory_bytes,
        "seconds": found.seconds,
        "measuring_seconds": found.measuring_seconds,
        "warnings": list(found.warnings),
        "left_out": {role: data.left_out for role, data in found.data.items() if data.left_out},
    }


def _adapters(found: Plan) -> list[str]:
    """What is fused into the model, and into which it stated it belongs."""
    fusion = found.source.making if isinstance(found.source.making, Fusion) else None
    return [
        f"adapter {one.name}"
        + (f", kept beside it as {one.kept}" if one.kept else "")
        + (f" × {one.strength:g}" if one.strength != 1 else "")
        + (f", trained on {one.base}" if one.base else "")
        for one in (fusion.adapters if fusion else ())
    ]


def plan_text(found: Plan) -> str:
    """A plan as lines for a terminal."""
    chosen = ", the best there is here" if found.recipe.device == "auto" else ""
    where = f", on {found.opening.device}{chosen}" if chosen or found.opening.device != CPU else ""
    lines = [f"{found.recipe.name}: {found.recipe.model}, {found.source.artifact.task}{where}"]
    lines += [f"  with {line}" for line in _adapters(found)]
    for number, node in enumerate(found.nodes, 1):
        state = (
            "cached" if node.cached else f"~{lasting(node.seconds)}" if node.seconds is not None else "first time here"
        )
        formats = ", ".join(f"{c}: {node.expected.components[c].format}" for c in node.components)
        lines.append(f"  {number}. {node.id:<20} {state:<16} {node.key[:12]}  {formats}")
        if node.reported:
            lines.append(f"     {node.reported}")
        lines += [f"     {role}: {name}" for role, name in node.inputs.items() if name != SOURCE]
    if widths := part_widths(found):
        lines += ["  weights of each part:", *(f"     {name:<16} {one}" for name, one in widths.items())]
    lines.append(
        f"  leaves about {found.kept_bytes / 1e6:.0f} MB on disk, at most {found.disk_bytes / 1e6:.0f} MB meanwhile; "
        f"about {found.memory_bytes / 1e9:.1f} GB of memory{_time(found)}"
    )
    if message := in_words(steps_left(found.recipe, found.source.artifact, found.nodes)):
        lines.append(f"  {message}")
    named = found.recipe.evaluate.controls
    beside = f", beside the control{'s' * (len(named) > 1)} {', '.join(named)}" if named else ""
    lines.append(f"  then measures {', '.join(found.recipe.evaluate.metrics) or 'nothing'}{beside}")
    lines += [f"  warning: {message}" for message in found.warnings]
    return "\n".join(lines)


def _time(found: Plan) -> str:
    """How long it will take, in words; "" where nobody knows."""
    counted = {"of stages": found.seconds, "of measuring": found.measuring_seconds}
    known = [f"~{lasting(seconds)} {what}" for what, seconds in counted.items() if seconds]
    return f", {' and '.join(known)}" if known else ""

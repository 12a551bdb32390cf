"""Plan to Artifacts: the only caller of a stage, and the judge of what it left behind. Knows no model."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compress.artifact import Artifact, weight_files, write_manifest
from compress.cache import Cache, disk_errors, full_disk
from compress.checker import Checker, lent_checker
from compress.context import Context
from compress.describing import describe
from compress.errors import ContractError, ModelError, PareError, StageFailed
from compress.events import Emit, Event
from compress.hashing import digest_file, list_files
from compress.planning import Node, Plan, with_lineage
from compress.sources import check_safetensors

# What engines write beside their settings: graphs, weights and compiled code.
ENGINE_FILES = ("*.bin", "*.xml", "*.onnx", "*.onnx.data", "*.engine", "*.gguf", "*.pt2")


@dataclass(frozen=True)
class Done:
    """A node that ran, or was found in the cache."""

    node: Node
    artifact: Artifact
    cached: bool
    seconds: float
    facts: Mapping[str, Any]


def execute(plan: Plan, cache: Cache, emit: Emit) -> tuple[Done, ...]:
    """Run what is not cached, in order.

    Raises:
        StageFailed: a stage raised, or its artifact broke the contract; earlier stages stay cached.
        UserError: what the user can mend: a full disk, a missing library.
    """
    cache.prepare()
    cache.sweep()
    done: dict[str, Done] = {}
    artifacts = {"source": replace(plan.source.artifact, digest=plan.source.key)}
    with lent_checker() as checker, disk_errors(cache.root):
        for node in plan.nodes:
            inputs = {role: artifacts[name] for role, name in node.inputs.items()}
            done[node.id] = _one(node, artifacts[node.after], inputs, plan, cache, checker, emit)
            artifacts[node.id] = done[node.id].artifact
    return tuple(done.values())


def _one(
    node: Node,
    artifact: Artifact,
    inputs: Mapping[str, Artifact],
    plan: Plan,
    cache: Cache,
    checker: Checker,
    emit: Emit,
) -> Done:
    def warn(message: str) -> None:
        emit(Event("warning", node.id, message))

    def waiting() -> None:
        emit(Event("note", node.id, "another run is at work on it; waiting"))

    with cache.locked(node.key, waiting):
        if found := cache.get(node.key, warn):
            emit(Event("cached", node.id, facts={"key": node.key}))
            facts = cache.facts(node.key)
            return Done(node, found, True, float(facts.get("seconds", 0)), facts.get("notes", {}))
        checker.start()
        emit(Event("started", node.id, facts={"key": node.key}))
        began = time.monotonic()
        notes: dict[str, Any] = {}
        out = cache.fresh()
        try:
            _run_stage(node, artifact, inputs, plan, cache, out, _noting(emit, node.id, notes))
            _check_contract(node, artifact, out, checker, warn)
            seconds = time.monotonic() - began
            facts = {"stage": node.stage.name, "seconds": round(seconds, 3), "notes": notes}
            made = cache.put(node.key, out, facts)
        finally:
            shutil.rmtree(out, ignore_errors=True)
    _remember_seconds(cache, node.stage.name, seconds)
    emit(Event("finished", node.id, facts={"key": node.key, "seconds": round(seconds, 3)}))
    return Done(node, made, False, seconds, notes)


def _noting(emit: Emit, node: str, notes: dict[str, Any]) -> Emit:
    """Pass events on, and keep the facts of a stage's notes for the report, each under its component's name."""

    def listen(event: Event) -> None:
        if event.kind == "note" and event.what == node:
            part = f"{event.facts['component']} " if "component" in event.facts else ""
            notes.update({f"{part}{name}": fact for name, fact in event.facts.items() if name != "component"})
        emit(event)

    return listen


def _run_stage(
    node: Node, artifact: Artifact, inputs: Mapping[str, Artifact], plan: Plan, cache: Cache, out: Path, emit: Emit
) -> None:
    context = Context(
        out=out,
        scratch=cache.scratch(node.key),
        seed=plan.recipe.seed,
        opening=plan.opening,
        inputs=inputs,
        data={role: plan.data[role] for role in node.stage.data(node.params)},  # only what is part of its key
        emit=emit,
        node=node.id,
        link=node.after != "source",
    )
    try:
        with disk_errors(cache.root):
            node.stage.run(artifact, node.params, context)
    except PareError:
        raise
    except Exception as error:
        # Libraries that write by themselves say something else instead, and may have taken away what they began.
        written = sum((out / f).stat().st_size for f in list_files(out))
        if shutil.disk_usage(out).free + written < node.disk_bytes:
            raise full_disk(cache.root) from error
        raise StageFailed(
            f"stage `{node.id}` ({node.stage.name}) failed: {type(error).__name__}: {error}",
            place=node.place,
            fix="run the same command again once the cause is gone: finished stages are cached and training resumes",
        ) from error
    try:
        write_manifest(replace(describe(out), lineage=with_lineage(node, artifact)))
    except ModelError as error:
        raise _broken(node, f"what it left is no model: {error.problems[0].message}") from error


def _broken(node: Node, what: str) -> ContractError:
    message = f"stage `{node.id}` ({node.stage.name}) broke its contract: {what}"
    return ContractError(
        message, place=node.place, fix="this is a fault of the stage; please report it with the recipe"
    )


def _check_contract(node: Node, before: Artifact, out: Path, checker: Checker, warn: Callable[[str], None]) -> None:
    """Hold a stage's artifact to what the stage declared.

    Raises:
        ContractError: a format, an effect, the weights or the output is not as declared.
    """
    after = describe(out)
    formats = {name: part.format for name, part in node.expected.components.items()}
    chosen = {name for name, form in formats.items() if form == "fastest"}  # told only by what was kept
    found = {name: part.format for name, part in after.components.items()}
    if {n: f for n, f in found.items() if n not in chosen} != {n: f for n, f in formats.items() if n not in chosen}:
        raise _broken(node, "the formats of its components are not the declared ones")
    looked_at = after.components if not node.stage.makes else node.components
    changed = {n for n in looked_at if _weights_digest(before, n) != _weights_digest(after, n)}
    if not node.stage.makes and changed:
        raise _broken(node, f"it declared a change of settings and changed the weights of {', '.join(sorted(changed))}")
    left = {n for n in set(node.components) - changed if n not in chosen or found[n] != before.components[n].format}
    if node.stage.makes and left:
        raise _broken(node, f"it left {', '.join(sorted(left))} as it was")
    for name in sorted(changed):
        try:
            bad = _not_finite(after, name)
        except ModelError as error:
            raise _broken(node, f"its {name} does not read: {error.problems[0].message}") from error
        if bad:
            raise _broken(node, f"`{bad}` in {name} holds values that are not finite")
    if node.idle:
        warn(f"not opened again after it was made: {node.idle}")
        return
    try:
        answer = checker.probe(out, node.profile)
    except ContractError as error:
        raise _broken(node, error.problems[0].message) from error
    if not answer["finite"]:
        raise _broken(node, "the reloaded model gives values that are not finite")
    if answer["spread"] == 0:
        raise _broken(node, "the reloaded model gives a constant output")


def _weights_digest(artifact: Artifact, component: str) -> tuple[str, ...]:
    folder = artifact.folder(component)
    files = (*weight_files(folder), *(file for kind in ENGINE_FILES for file in sorted(folder.glob(kind))))
    return tuple(digest_file(f) for f in dict.fromkeys(files))


def _not_finite(artifact: Artifact, component: str) -> str:
    """The name of a tensor with NaN or infinity in a torch component, or "".

    Raises:
        ModelError: a file of weights is cut short or garbled.
    """
    import torch
    from safetensors import safe_open

    for file in artifact.folder(component).glob("*.safetensors"):
        check_safetensors(file)
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (safe_open is no mapping)
                if not torch.isfinite(tensors.get_tensor(name).float()).all():
                    return str(name)
    return ""


def _remember_seconds(cache: Cache, stage: str, seconds: float) -> None:
    note = cache.root / "seconds" / stage
    note.parent.mkdir(exist_ok=True)
    note.write_text(f"{seconds:.3f}")

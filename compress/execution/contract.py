"""What a stage is held to: the formats, the effect and the configs that were declared and forecast, weights that are finite, and
a model that a stranger can open. Knows no stage, runs none."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from compress.artifact import CHOSEN, MANIFEST, SCHEDULER, Artifact, Component
from compress.catalogue import find_engine
from compress.errors import ContractError, ModelError
from compress.execution.unopened import unopened
from compress.files.hashing import digest_file, list_files
from compress.model.exportable import ANY_SIZE, Batches
from compress.model.finite_checks import not_finite
from compress.model.weight_files import loaded_files
from compress.pipelines.schedulers import config_of
from compress.planning.nodes import Node

NOTHING = "nothing"
SCALES = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")  # of latents, which no shape shows
WRITTEN_ANEW = (
    "_diffusers",
    "_name",
    "_commit",
    "transformers_version",
    "dtype",
    "torch_dtype",
)  # by whatever library saves a model


@dataclass(frozen=True)
class Digested:
    """An artifact, and the digest of each of its files by relative POSIX path."""

    artifact: Artifact
    files: Mapping[str, str]

    def weights(self, component: str) -> tuple[str, ...]:
        """Digests of the files that hold a component's weights, or its engine. What was hashed before is not read."""
        engine = find_engine(self.artifact.components[component].format)
        written = engine.written(self.artifact.folder(component))
        return tuple(self.digest(file.relative_to(self.artifact.path).as_posix()) for file in written)

    def digest(self, file: str) -> str:
        """A file's digest, by its relative POSIX path."""
        return self.files.get(file) or digest_file(self.artifact.path / file)


class Prober(Protocol):
    """Loads an artifact in a process that never held the live model, and calls it once: whether all it gave is `finite`, and
    its `spread`, the standard deviation."""

    def probe(self, folder: Path, profile: Batches, *, trust: bool) -> Mapping[str, Any]: ...


def check(before: Digested, after: Digested, node: Node, prober: Prober, warn: Callable[[str], None]) -> None:
    """Hold a stage's artifact to what the stage declared and what was forecast of it.

    Raises:
        ContractError: a format, an effect, a config, the weights or the output is not as declared.
    """
    _check_formats(before, after, node)
    changed = _check_effect(before, after, node)
    _check_forecast(after.artifact, node)
    _check_untold(before.artifact, after.artifact, node)
    _check_weights(before.artifact, after.artifact, changed, node)
    if node.unavailable:
        warn(unopened(node.unavailable))
    else:
        _check_reload(before.artifact, after.artifact, node, prober)


def broken(node: Node, what: str) -> ContractError:
    """The error that says what of its contract a stage did not keep."""
    message = f"stage `{node.id}` ({node.stage.name}) broke its contract: {what}"
    return ContractError(
        message, place=node.place, fix="this is a fault of the stage; please report it with the recipe"
    )


def _chosen(node: Node) -> frozenset[str]:
    """The components whose format only the stage's choice tells."""
    return frozenset(name for name, part in node.expected.components.items() if part.format == CHOSEN)


def _check_formats(before: Digested, after: Digested, node: Node) -> None:
    chosen = _chosen(node)

    def formats(parts: Mapping[str, Component]) -> dict[str, str]:
        return {name: part.format for name, part in parts.items() if name not in chosen}

    if formats(after.artifact.components) != formats(node.expected.components):
        raise broken(node, "the formats of its components are not the declared ones")


def _check_effect(before: Digested, after: Digested, node: Node) -> tuple[str, ...]:
    """The components whose weights changed."""
    chosen, makes = _chosen(node), node.stage.makes
    parts, parts_before = after.artifact.components, before.artifact.components
    changed = {name for name in {*node.components, *parts} if before.weights(name) != after.weights(name)}
    if changed and not makes:
        declared = "a change of settings" if "settings" in node.stage.effects else "files of its own"
        raise broken(node, f"it declared {declared} and changed the weights of {', '.join(sorted(changed))}")
    if stray := changed - set(node.components):
        raise broken(node, f"it changed the weights of {', '.join(sorted(stray))}, which it did not name")
    left = {
        name
        for name in set(node.components) - changed
        if name not in chosen or parts[name].format != parts_before[name].format
    }
    if left and makes:
        raise broken(node, f"it left {', '.join(sorted(left))} as it was")
    _check_files(before, after, node)
    if "settings" not in node.stage.effects and after.artifact.settings != before.artifact.settings:
        raise broken(node, "it declared no change of settings, and left others")
    return tuple(sorted(changed))


def _check_files(before: Digested, after: Digested, node: Node) -> None:
    """A stage leaves the files that it says, and one that says nothing else leaves all others as they were."""
    own, there = set(node.stage.files), {f.as_posix() for f in list_files(after.artifact.path)}
    if lacking := own - there:
        raise broken(node, f"it declared {', '.join(sorted(lacking))} and left none")
    if node.stage.effects != {"files"}:
        return
    was = {f.as_posix() for f in list_files(before.artifact.path)} - own - {MANIFEST}
    left = there - own - {MANIFEST}
    other = (was ^ left) | {f for f in was & left if before.digest(f) != after.digest(f)}
    if other:
        raise broken(node, f"it declared {', '.join(sorted(own))} alone, and changed {', '.join(sorted(other))}")


def _check_forecast(after: Artifact, node: Node) -> None:
    """Later stages were planned on the configs, the packing, the settings and the adapters that this one was forecast to leave."""
    if after.adapters.keys() != node.expected.adapters.keys():
        raise broken(node, "the adapters beside the model are others than those that it was given")
    for name, part in node.expected.components.items():
        if name not in _chosen(node) and part.quantization != (packed := after.components[name].quantization):
            planned, is_ = (vars(q) if q else NOTHING for q in (part.quantization, packed))
            raise broken(node, f"the packing of {name} was forecast to be {planned}, and is {is_}")
    for name, fields in node.forecast.items():
        try:
            config = after.config(name)
        except ModelError as error:
            raise broken(node, f"the config of its {name} {error.problems[0].message}") from error
        for key, value in fields.items():
            # A config may leave out what is not set.
            if (found := config.get(key)) != json.loads(json.dumps(value)):
                planned, is_ = (NOTHING if v is None else json.dumps(v) for v in (value, found))
                raise broken(node, f"`{key}` of {name} was forecast to be {planned}, and is {is_}")


def _check_untold(before: Artifact, after: Artifact, node: Node) -> None:
    """What nobody forecast stays as it was: another scale of latents, or another prediction that a scheduler takes, spoils every
    image without any weight being at fault. Of what a stage makes anew, its shapes show when it is opened again."""
    for name in (*(n for n in after.components if n not in _chosen(node)), SCHEDULER):
        planned = {*node.forecast.get(name, ()), *node.unsettled.get(name, ())}
        was, is_ = (_config(side, name) for side in (before, after))
        made = name in node.components and node.stage.makes
        for key in sorted(was.keys() & is_.keys() - planned):
            if was[key] != is_[key] and (key in SCALES if made else not key.startswith(WRITTEN_ANEW)):
                values = f"is {json.dumps(is_[key])}, where it was {json.dumps(was[key])}"
                raise broken(node, f"`{key}` of {name} {values}, and no change was forecast")


def _config(artifact: Artifact, name: str) -> Mapping[str, Any]:
    return config_of(artifact) if name == SCHEDULER else artifact.known_config(name)


def _check_weights(before: Artifact, after: Artifact, changed: tuple[str, ...], node: Node) -> None:
    for name in changed:
        try:
            bad = _not_finite(after, name)
        except ModelError as error:
            raise broken(node, f"its {name} does not read: {error.problems[0].message}") from error
        if bad:
            _blame_weights(before, name)
            raise broken(node, f"`{bad}` in {name} holds values that are not finite")


def _blame_weights(before: Artifact, name: str) -> None:
    """Raises a ModelError where a component was broken before the stage touched it."""
    nonfinite = _not_finite(before, name) if before.components[name].format == "torch" else ""
    if nonfinite:
        message = f"`{nonfinite}` in {name} holds values that are not finite, before any stage"
        raise ModelError(message, place=str(before.path), fix="give another checkpoint, or save this one anew")


def _not_finite(artifact: Artifact, component: str) -> str:
    """The name of a tensor with NaN or infinity among a component's weights, or "".

    Raises:
        ModelError: a file of weights is cut short or garbled.
    """
    files = loaded_files(artifact, component) or sorted(artifact.folder(component).glob("*.safetensors"))
    return next((name for file in files for name in not_finite(file)), "")


def _check_reload(before: Artifact, after: Artifact, node: Node, prober: Prober) -> None:
    try:
        answer = prober.probe(after.path, node.profile, trust=node.trusted)
    except ContractError as error:
        raise broken(node, error.problems[0].message) from error
    if why := _senseless(answer):
        _blame_source(before, node, prober)
        raise broken(node, f"the reloaded model gives {why}")


def _senseless(answer: Mapping[str, Any]) -> str:
    """What is wrong with what a model gave, or ""."""
    if not answer["finite"]:
        return "values that are not finite"
    return "a constant output" if answer["spread"] == 0 else ""


def _blame_source(before: Artifact, node: Node, prober: Prober) -> None:
    """Raises a ModelError where what the stage was given makes as little sense as what it left."""
    for name in before.components:
        _blame_weights(before, name)
    try:
        answer = prober.probe(before.path, ANY_SIZE, trust=node.trusted)
    except ContractError:
        return  # that it cannot be called so tells nothing of what it gives
    if why := _senseless(answer):
        message = f"this model gives {why}, before the stage `{node.id}` ({node.stage.name})"
        half = " in float32, if it is a half-precision checkpoint that overflows" if "finite" in why else ""
        raise ModelError(message, place=str(before.path), fix=f"give another checkpoint, or save this one anew{half}")

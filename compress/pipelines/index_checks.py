"""What `model_index.json` names compared with what the folders hold: parts that are not there, or are of another make."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from compress.artifact import SCHEDULER, SCHEDULER_CONFIG, Artifact, read_json
from compress.errors import ModelError, Problem
from compress.machine.library_classes import defines, has_class
from compress.pipelines.image_inputs import base_of
from compress.pipelines.index import INDEX, LEFT_OUT, named_parts
from compress.pipelines.schedulers import config_of, left_out

FETCH = "fetch the folder again, or save the pipeline again with save_pretrained"
FLOW = "Flow"  # how the classes begin that go along a flow
SPARED = {
    "StableDiffusion3Pipeline": ("text_encoder_3", "tokenizer_3")
}  # what a pipeline generates texts without as well
PRE = ("Processor", "Extractor")  # in names of classes that make images ready, and have no config.json
LEGACY = "Transformer2DModel"  # how diffusers once called all that end so
KIN = frozenset({"t5", "mt5", "umt5"})  # one class opens them all


def part_problems(artifact: Artifact, index: Mapping[str, Any]) -> Iterator[Problem]:
    """Parts that the index names and no folder holds, and parts whose own config says that they are something else."""
    for name, (library, kind) in named_parts(index).items():
        part = artifact.components.get(name)
        if name in LEFT_OUT or (part and part.format != "torch"):
            continue
        if message := _lacking(artifact, name, kind):
            yield Problem(str(artifact.path / INDEX), f"names `{name}` ({kind}), and {message}", _remedy(name, index))
        elif name == SCHEDULER:
            yield from _scheduler(artifact, kind)
        elif part:
            yield from _other_make(artifact, name, library, kind)


def _lacking(artifact: Artifact, name: str, kind: str) -> str:
    """What is not there of a part; "" where it is."""
    if not (folder := artifact.path / name).is_dir():
        return f"there is no folder {name}"
    if name == SCHEDULER and not (artifact.path / SCHEDULER_CONFIG).is_file():
        return f"there is no {SCHEDULER_CONFIG}"
    configless = name == SCHEDULER or name.startswith("tokenizer") or any(word in kind for word in PRE)
    if name in artifact.components or configless or (folder / "config.json").is_file():
        return ""
    return f"there is no {name}/config.json"


def _remedy(name: str, index: Mapping[str, Any]) -> str:
    if name in SPARED.get(base_of(str(index.get("_class_name", ""))), ()):
        return f'{FETCH}; to generate without it, write "{name}": [null, null] there'
    return FETCH


def _scheduler(artifact: Artifact, kind: str) -> Iterator[Problem]:
    """A scheduler whose settings are another class's that goes another way, a flow in place of a diffusion: the class that the index
    names would leave them at its defaults. One that goes the same way is often meant (`sampled_otherwise`)."""
    try:
        own = read_json(artifact.path / SCHEDULER_CONFIG).get("_class_name")
    except ModelError as error:
        yield from error.problems
        return
    if isinstance(own, str) and own.startswith(FLOW) != kind.startswith(FLOW) and has_class(kind, "diffusers"):
        message = f"holds the settings of {own}, and {INDEX} names {kind}, which would leave what it does not know at its defaults"
        yield Problem(str(artifact.path / SCHEDULER_CONFIG), message, _meant("scheduler", own, kind))


def sampled_otherwise(artifact: Artifact) -> str:
    """Which settings of a pipeline's scheduler the class that its index names does not take, in words; "" where it takes all, or they
    are its own class's. Whoever edits the index alone means that class."""
    file = artifact.path / SCHEDULER_CONFIG
    own, named = read_json(file) if file.is_file() else {}, config_of(artifact)
    kind = str(named.get("_class_name", ""))
    lost = left_out(own, kind) if own and _plain(str(own.get("_class_name", ""))) != _plain(kind) else ()
    if not lost:
        return ""
    message = f"{INDEX} names {kind}, and {SCHEDULER_CONFIG} holds the settings of {own['_class_name']}"
    return f"{message}, of which it takes no {', '.join(lost)}: if that is not meant, name {own['_class_name']} there"


def _other_make(artifact: Artifact, name: str, library: str, kind: str) -> Iterator[Problem]:
    """A part whose config is of another class of diffusers, or of another family of transformers, than the index says."""
    config = artifact.known_config(name)
    place, own = str(artifact.folder(name) / "config.json"), str(config.get("_class_name") or "")
    if library == "diffusers" and own and not _same(own, kind):
        yield Problem(place, f"`{name}` is a {own}, and {INDEX} names {kind}", _meant(name, own, kind))
    type_, named = str(config.get("model_type") or ""), config.get("architectures")
    if library != "transformers" or not type_ or kind.startswith("Auto") or (isinstance(named, list) and kind in named):
        return
    if defines(type_, kind) is False and not _kindred(type_, kind) and has_class(kind, library):
        what = f"{named[0]} ({type_})" if isinstance(named, list) and named else f"a model of type {type_}"
        yield Problem(place, f"`{name}` is of {what}, and {INDEX} names {kind}", _meant(name, what, kind))


def _meant(name: str, own: str, kind: str) -> str:
    return f"put the {kind} that the pipeline was saved with into {name}, or name {own.split()[0]} in {INDEX} if that is meant"


def _plain(kind: str) -> str:
    return kind.removeprefix("Flax")  # jax kept its configs beside torch's


def _same(own: str, kind: str) -> bool:
    own, kind = _plain(own), _plain(kind)
    return own == kind or (LEGACY in (own, kind) and own.endswith(LEGACY) and kind.endswith(LEGACY))


def _kindred(type_: str, kind: str) -> bool:
    return type_ in KIN and any(defines(one, kind) for one in KIN)

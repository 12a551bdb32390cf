"""Python code that lies in a model's own folder: what asks for it, read from JSON. It runs only where a recipe trusts it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from compress.artifact import LANGUAGE_MODEL, Artifact
from compress.errors import Problem
from compress.machine import deps
from compress.machine.library_classes import has_class

AUTO = "AutoModelForCausalLM"
PUT = "put it there; of a hub model no code is fetched: download it with its code, and name that folder"


def remote_class(config: Mapping[str, Any], auto: str = AUTO) -> str:
    """The class that a `config.json` names for one of transformers' Auto classes, as `module.Class`; "" where it names none."""
    named = config.get("auto_map")
    return str(named.get(auto, "")) if isinstance(named, Mapping) else ""


def code_problems(artifact: Artifact, trusted: bool, place: str) -> Iterator[Problem]:
    """Why a language model's class cannot be had: it is none of transformers', and its own code is not trusted, or not there."""
    part = artifact.components.get(LANGUAGE_MODEL)
    if part is None or part.format != "torch" or has_class(part.kind):
        return
    own = remote_class(artifact.known_config(LANGUAGE_MODEL))
    if not own:
        message = f"transformers {deps.version('transformers')} has no class {part.kind}, and the model brings none"
        yield Problem(place, message, "upgrade transformers, or give a model of a class that it has")
    elif "--" in own:  # transformers would fetch it, at whatever commit stands there on that day
        message = f"{part.kind} is Python code of another repository ({own}), which no key of pare can name"
        yield Problem(
            place, message, "copy that code into the model's folder, and name it in auto_map without the repository"
        )
    elif not (artifact.folder(LANGUAGE_MODEL) / file_of(own)).is_file():
        yield Problem(place, f"config.json names {own}, and there is no {file_of(own)} in the folder", PUT)
    elif not trusted:
        message = f"{part.kind} is the model's own Python code ({own}), which runs only where a recipe trusts it"
        yield Problem(
            place,
            message,
            "read that code, then write trust_remote_code: true (`pare eval --trust-remote-code`, trust_remote_code=True in Python)",
        )


def file_of(named: str) -> str:
    """The file of a class that is named as `module.Class`."""
    return named.rpartition(".")[0].replace(".", "/") + ".py"

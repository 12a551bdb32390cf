"""Whether a model's weights have as many layers as its config says, read from their headers: a layer without weights is opened with random
ones, and weights without a layer are left out, both in silence."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from compress.artifact import LANGUAGE_MODEL, Artifact
from compress.errors import ModelError, Problem
from compress.files.safetensors_headers import read_header
from compress.model.families import FAMILIES, Stack
from compress.model.weight_files import loaded_files
from compress.pipelines.index import LEFT_OUT

WITHIN = "text_model."  # where transformers kept CLIP's layers formerly


def layer_problems(artifact: Artifact) -> Iterator[Problem]:
    """Torch components of a known family whose weights are of more or fewer layers than their config's."""
    for name, part in artifact.components.items():
        if part.format != "torch" or part.kind not in FAMILIES or part.module or name in LEFT_OUT:
            continue
        if not (stacks := FAMILIES[part.kind].stacks):
            continue
        try:
            names = [tensor for file in loaded_files(artifact, name) for tensor in read_header(file).tensors]
        except ModelError as error:
            yield from error.problems
            continue
        config, place = artifact.known_config(name), str(artifact.folder(name) / "config.json")
        for stack in stacks:
            if message := _misfit(stack, config, names):
                whose = "the model" if name == LANGUAGE_MODEL else f"`{name}`"
                yield Problem(place, f"{whose} {message[0]}", message[1])


def _misfit(stack: Stack, config: Mapping[str, Any], names: Iterable[str]) -> tuple[str, str] | None:
    """What is wrong with a stack's numbers, and the remedy; None of one that fits, or is kept under names that are not known."""
    found, wanted = layers(stack.path, names), config.get(stack.field)
    if not found or type(wanted) is not int or found == set(range(wanted)):
        return None
    count = len(found)
    if found == set(range(count)):
        more = "the rest would be random" if count < wanted else "the rest would be left out"
        message = f"has weights of {count} layers ({stack.path}), and its config says {wanted} ({stack.field}): {more}"
        return message, f"set {stack.field} back to {count}, or fetch the weights that belong to this config"
    gone = sorted(set(range(max(wanted, max(found) + 1))) - found)
    message = f"lacks the weights of layer {', '.join(map(str, gone[:3]))}{' …' * (len(gone) > 3)} of {stack.path}"
    return f"{message}, and its config says {wanted} layers ({stack.field})", "fetch the weights again"


def layers(path: str, names: Iterable[str]) -> frozenset[int]:
    """The numbers of the layers below a path of which there are weights. Checkpoints may be of a model without its head, whose
    names lack the path's front (GPT-2's `h.0.…`)."""
    words, known = path.split("."), tuple(names)
    for front in (WITHIN + path, *(".".join(words[i:]) for i in range(len(words)))):
        rests = (name.removeprefix(f"{front}.").partition(".")[0] for name in known if name.startswith(f"{front}."))
        if found := frozenset(int(number) for number in rests if number.isdecimal()):
            return found
    return frozenset()

"""Which items may share a call of a model: a score is its item's own, so what would move it runs by itself. Read from JSON.

Most models read each row of a batch apart from the others, and no token sees the padding behind its text: any rows go together.
LongRoPE chooses its frequencies by the longest row of a call, and a model's own Python code may do anything: rows of one length.
Where activations get one scale over a whole call, every row moves it: each item by itself. So do pipelines that bring their prompts
to the length of the longest one (CogView 4, Qwen-Image).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Literal

from compress.artifact import LANGUAGE_MODEL, Artifact, read_json
from compress.catalogue import find_engine
from compress.machine.library_classes import has_class, source_of
from compress.model.remote_code import remote_class
from compress.pipelines.index import INDEX

Company = Literal["any", "equal", "alone"]
LONG_ROPE = {"longrope", "su"}  # as Phi-3's first configs named it
ENGINE = "engine.json"
LONGEST = re.compile(r"""padding=(True|["']longest["'])""")


def company(artifact: Artifact) -> Company:
    """Whose rows may stand in one call: any, those of one length, or one alone."""
    if any(_scales_the_call(artifact, name) for name in artifact.working):
        return "alone"
    if artifact.writes_text:
        return "equal" if _looks_at_lengths(artifact) else "any"
    index = artifact.path / INDEX
    return "alone" if index.is_file() and _pads_to_longest(str(read_json(index).get("_class_name"))) else "any"


def apart(kept: Company, lengths: Sequence[int]) -> list[list[int]]:
    """The rows of a batch, by index, in as many calls as they need."""
    if kept == "alone":
        return [[row] for row in range(len(lengths))]
    if kept == "any":
        return [list(range(len(lengths)))]
    return [[row for row, n in enumerate(lengths) if n == length] for length in sorted(set(lengths))]


def _scales_the_call(artifact: Artifact, name: str) -> bool:
    """Whether a component's activations are rounded by what all rows of a call hold together."""
    part = artifact.components[name]
    if part.format != "torch":
        over_call = find_engine(part.format).over_call
        file = artifact.folder(name) / ENGINE
        return bool(over_call) and file.is_file() and read_json(file).get("precision") in over_call
    if part.quantization is None:
        return False
    stored = artifact.known_config(name).get("quantization_config")
    packed = stored if isinstance(stored, Mapping) else {}
    if part.quantization.method == "bitsandbytes":  # LLM.int8 keeps the columns wide in which any row has an outlier
        return bool(packed.get("load_in_8bit")) and packed.get("llm_int8_threshold", 6.0) != 0
    if part.quantization.method == "torchao" and any(one.get("_type") == "PerTensor" for one in _objects(packed)):
        return (
            True  # whichever side of a product has one scale: a weight's would not matter, and torchao's pair is alike
        )
    rounded = (found.get("input_activations") for found in _objects(packed))
    return any(isinstance(r, Mapping) and r.get("dynamic") is True and r.get("strategy") == "tensor" for r in rounded)


def _looks_at_lengths(artifact: Artifact) -> bool:
    """Whether a language model's positions depend on how long a call's rows are, or nobody knows."""
    config, part = artifact.known_config(LANGUAGE_MODEL), artifact.components[LANGUAGE_MODEL]
    for found in _objects(config):
        if {str(found.get("rope_type")), str(found.get("type"))} & LONG_ROPE or "long_factor" in found:
            return True
    return part.format == "torch" and bool(remote_class(config)) and not has_class(part.kind)


@cache
def _pads_to_longest(pipeline: str) -> bool:
    """Whether a class of diffusers' pipelines tokenizes prompts to no fixed length, read from its source."""
    text = source_of(pipeline, "pipelines")
    if LONGEST.search(text) is None:  # reading the tree takes longer
        return False
    made = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Assign))
    calls = [
        call for node in made if not _looked_at(node) for call in ast.walk(node.value) if isinstance(call, ast.Call)
    ]
    return any(LONGEST.fullmatch(ast.unparse(keyword)) for call in calls for keyword in call.keywords)


def _looked_at(node: ast.Assign) -> bool:
    """Whether tokens are only compared with those that a prompt is cut to."""
    return ast.unparse(node.targets[0]).startswith("untruncated")


def _objects(node: object) -> Iterator[Mapping[str, Any]]:
    """Every object of nested JSON."""
    if isinstance(node, Mapping):
        yield node
    for inner in node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ():
        yield from _objects(inner)

"""What can become an engine, read from configs alone: shared by every stage that builds one, so that a plan can refuse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from compress.artifact import LANGUAGE_MODEL, Artifact, Format
from compress.catalogue import find_engine, halved
from compress.errors import Refusal
from compress.machine.library_classes import has_class
from compress.params import Params

Components = Annotated[tuple[str, ...], Field(min_length=1)] | Literal["all"]

# By model_type, what was tried and cannot work with the exporters of transformers 5.23.
NO_GRAPH = {
    "mamba": "is recurrent, and its graph takes texts of one length",
    "falcon_mamba": "is recurrent, and its graph takes texts of one length",
    "mamba2": "is recurrent, and its graph takes texts up to one chunk",
    "mpt": "loses its attention bias in a graph with a KV cache",
}
GATED_DELTA = "linear_key_head_dim"  # in configs of gated delta nets: Qwen3-Next, Qwen3.5, OLMo hybrid


class Batches(Params):
    """The batches an engine is built for. It takes any between the smallest and the largest, and is fastest at the middle one."""

    batch: tuple[int, int, int] = Field((1, 1, 16), description="prompts or sequences a call: fewest, usual, most")

    @model_validator(mode="after")
    def _in_order(self) -> Batches:
        for name in type(self).model_fields:
            low, usual, high = getattr(self, name)
            if not 1 <= low <= usual <= high:
                raise ValueError(f"{name} must rise from at least 1: fewest, usual, most")
        return self

    def nearest(self, axis: Literal["batch", "tokens"], size: int) -> int:
        """The size nearest to this one that an engine takes."""
        low, _, high = getattr(self, axis, (size,) * 3)
        return int(min(max(low, size), high))


class Profile(Batches):
    """The sizes an engine is built for, texts' lengths among them."""

    tokens: tuple[int, int, int] = Field(
        (1, 128, 1024), description="tokens of a text, those in the cache included: fewest, usual, most"
    )

    @model_validator(mode="after")
    def _reaches_a_second(self) -> Profile:
        if self.tokens[2] < 2:
            raise ValueError("tokens must reach 2 at least: one that is seen, and one that follows")
        return self


ANY_SIZE = Batches(batch=(1, 1, 2**31))


def wanted(artifact: Artifact, components: Components) -> tuple[str, ...]:
    """The components to build: those named, or all that generate or write and are torch's still."""
    found = artifact.choose(components, lambda format: format == "torch")
    return tuple(name for name in found if components != "all" or not halved(artifact, name))


def refuse_components(artifact: Artifact, components: Components) -> str:
    """Why these components cannot be built, whatever the engine, or ""."""
    if components == "all":
        return ""
    if unknown := [name for name in components if name not in artifact.components]:
        return f"the model has no component {', '.join(unknown)}; it has {', '.join(artifact.components)}"
    if unavailable := [name for name in components if name not in artifact.working]:
        return f"{', '.join(unavailable)} takes no part in generating or writing; {', '.join(artifact.working)} do"
    if both := [name for name in components if halved(artifact, name)]:
        why = f"`{both[0]}` encodes what the model is given and decodes what it makes, and an engine of {artifact.components[both[0]].kind} does one of the two"
        return Refusal(why, f"leave {both[0]} out of `components`: it stays in torch")
    return ""


def refuse_engine(artifact: Artifact, components: Components, engine: Format) -> str:
    """Why these components cannot become an engine, or ""."""
    if why := refuse_components(artifact, components):
        return why
    names = wanted(artifact, components)
    if done := [name for name in names if artifact.components[name].format == engine]:
        return f"{', '.join(done)} is an engine already"
    record = find_engine(engine)
    return next(filter(None, (_obstacle(artifact, name) or record.refuse(artifact, name) for name in names)), "")


def _obstacle(artifact: Artifact, name: str) -> str:
    """What a component's class or config, as it will be, says that no fixed graph can do."""
    config, kind = artifact.known_config(name), artifact.components[name].kind
    if name == LANGUAGE_MODEL and not has_class(kind):
        return f"{kind} is the model's own code, and an engine answers for models of transformers alone: leave this stage out"
    family = config.get("model_type", "")
    if why := NO_GRAPH.get(family, ""):
        return f"{kind} {why}: leave this stage out"
    if config.get(GATED_DELTA):
        # Tried on a tiny Qwen3-Next: the export took seven minutes, and the graph then refused texts of another length.
        return f"{kind} has recurrent layers (gated delta nets), and its graph takes texts of one length: leave this stage out"
    return _dynamic_positions(name, config)


def _dynamic_positions(name: str, config: Mapping[str, Any]) -> str:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if any(r.get("rope_type", r.get("type")) == "dynamic" for r in (rope, *rope.values()) if isinstance(r, dict)):
        limit = config.get("max_position_embeddings", "max_position_embeddings")
        return (
            f"the rotary positions of `{name}` are rescaled by the length of each text (rope_type: dynamic), and a graph is fixed: "
            f"set rope_type to default in its config.json, which is the same up to {limit} tokens, or leave this stage out"
        )
    return ""

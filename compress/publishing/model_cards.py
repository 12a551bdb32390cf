"""Model cards as the Hugging Face hub reads them: YAML metadata, where the model comes from, under which licence, how it is loaded. What
was measured of it is put in afterwards, for a stage runs before the evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

from compress.artifact import Artifact, Provenance
from compress.catalogue import find_engine, find_task
from compress.model.describing import openers_of
from compress.publishing.licences import licence_files

CARD, NAME = "README.md", "export.hub"  # the file, and the stage that writes it
CARRIED = ("license", "license_name", "license_link", "language")  # from the card of the model that it was made from
MEASURED = "## Measured"
PENDING = f"{MEASURED}\n\nNot measured: `pare run --save` puts in what the evaluation finds.\n"
NO_MARKUP = str.maketrans({c: f"\\{c}" for c in "\\`*_[]<>|#"})


@dataclass(frozen=True)
class Card:
    """A card's metadata, and the text below it."""

    data: Mapping[str, Any]
    text: str

    def __str__(self) -> str:
        head = yaml.safe_dump(dict(self.data), sort_keys=False, allow_unicode=True)
        return f"---\n{head}---\n{self.text}"


def read_card(file: Path) -> Card:
    """The card in a file; one without metadata where it has none that reads, and an empty one where there is no file."""
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    begin, _, rest = text.partition("\n")
    head, end, body = rest.partition("\n---\n")
    if begin.strip() != "---" or not end:
        return Card({}, text)
    try:
        found = yaml.safe_load(head)
    except yaml.YAMLError:
        return Card({}, text)
    return Card(found if isinstance(found, dict) else {}, body)


def has_card(artifact: Artifact) -> bool:
    """Whether its card is ours."""
    return any(made.stage == NAME for made in artifact.lineage)


@dataclass(frozen=True)
class Described:
    """What its maker says of a model. repo: the name it will have on the hub; base: that of the model that it was made from."""

    repo: str
    base: str = ""
    licence: str = ""
    tags: Sequence[str] = field(default_factory=tuple)


def write_card(
    artifact: Artifact, lineage: Sequence[Provenance], described: Described, *, code: Sequence[str], own: str
) -> Card:
    """The card of an artifact, not measured yet.

    Args:
        lineage: of all stages that made it.
        code: lines of Python that load it. own: the library that they need, "" for a stock one.
    """
    was, licences = read_card(artifact.path / CARD).data, [f.name for f in licence_files(artifact.path)]
    data: dict[str, Any] = (
        {"base_model": described.base, "base_model_relation": _relation(artifact)} if described.base else {}
    )
    library = own or _stock_library(artifact)
    data |= {"library_name": library} if library else {}
    data |= {"pipeline_tag": artifact.task.replace("_", "-")}
    data |= {key: was[key] for key in CARRIED if was.get(key)}
    if described.licence:
        data = {k: v for k, v in data.items() if not k.startswith("license")} | {"license": described.licence}
    if licences and data.get("license", "other") == "other" and "license_link" not in data:
        data |= {"license": "other", "license_link": licences[0]}
    data |= {"tags": list(dict.fromkeys((*_tags(artifact, lineage), *described.tags)))}
    body = "\n".join(
        (
            *_head(artifact, described),
            *_made(lineage),
            *_load(code, _needed(artifact, bool(own))),
            *_licence(data, licences),
            PENDING,
        )
    )
    return Card(data, f"\n{body}")


def with_measured(card: Card, lines: Sequence[str], base: str = "") -> Card:
    """The card with what was measured, in place of what it had under that heading.

    Args:
        base: the model's base on the hub, where the card names none.
    """
    before = card.text.partition(MEASURED)[0]
    known = {"base_model": base, "base_model_relation": "finetune"} if base else {}
    if base and "quantized" in card.data.get("tags", ()):
        known["base_model_relation"] = "quantized"
    data = card.data if "base_model" in card.data else {**known, **card.data}
    return Card(data, f"{before}{MEASURED}\n\n" + "\n".join(lines).strip() + "\n")


def _relation(artifact: Artifact) -> str:
    """What the hub calls the way from the base to this model."""
    return "quantized" if _quantized(artifact) else "finetune"


def _quantized(artifact: Artifact) -> bool:
    return any(part.quantization or part.format != "torch" for part in artifact.components.values())


def _tags(artifact: Artifact, lineage: Sequence[Provenance]) -> Iterator[str]:
    yield "pare"
    if _quantized(artifact):
        yield "quantized"
    yield from sorted({part.format for part in artifact.components.values() if part.format != "torch"})
    yield from (part.quantization.method for part in artifact.components.values() if part.quantization)
    yield from (made.stage for made in lineage if not made.stage.startswith("export."))


def _head(artifact: Artifact, described: Described) -> Iterator[str]:
    yield f"# {plain(described.repo.rsplit('/', 1)[-1])}\n"
    of = f"[{plain(described.base)}](https://huggingface.co/{described.base})" if described.base else "another model"
    yield f"A model for {find_task(artifact.task).title}, made of {of} with pare.\n"
    rows = sorted((name, part) for name, part in artifact.components.items() if name in artifact.working)
    yield "| part | class | format | weights |\n|---|---|---|---|"
    for name, part in rows:
        packed = f"{part.quantization.bits or 'several'} bits, {part.quantization.method}" if part.quantization else "–"
        cells = (name, part.kind, find_engine(part.format).title, packed)
        yield f"| {' | '.join(map(plain, cells))} |"
    yield ""
    for name, one in artifact.adapters.items():
        where, of = plain(one.path), plain(" and ".join(one.components))
        yield f"The LoRA {plain(name)} for {of}, in `{where}`, goes with it (scale {one.scale:g}).\n"


def _made(lineage: Sequence[Provenance]) -> Iterator[str]:
    yield "## How it was made\n\nBy these stages of pare, in this order; `pare.json` has them too.\n"
    stages = [made for made in lineage if made.stage != NAME]
    for made in stages:
        given = yaml.safe_dump(dict(made.params), default_flow_style=True, width=10_000).strip()
        yield f"    {made.stage} (version {made.version}): {given}"
    yield "" if stages else "None: the weights are as they were.\n"


def _load(code: Sequence[str], needed: Sequence[str]) -> Iterator[str]:
    yield "## How to load it\n"
    if needed:
        yield f"    pip install {' '.join(needed)}\n"
    yield from ("```python", *code, "```", "")


def _licence(data: Mapping[str, Any], files: Sequence[str]) -> Iterator[str]:
    yield "## Licence\n"
    named = str(data.get("license_name") or data.get("license") or "")
    of = (
        f"That of the model it was made from: {plain(named)}"
        if named
        else "None is known of the model it was made from"
    )
    yield f"{of}{', whose text is ' + ', '.join(f'[{plain(f)}]({quote(f)})' for f in files) if files else ''}.\n"


def _needed(artifact: Artifact, own: bool) -> list[str]:
    """What is installed to load it where more is needed than a stock library: what opens packed weights, and what runs engines."""
    parts = [artifact.components[name] for name in artifact.working]
    packed = (part.quantization for part in parts if part.format == "torch" and part.quantization)
    openers = [opener for one in packed for opener in openers_of(one)]
    engines = [find_engine(part.format).distribution for part in parts if part.format != "torch"]
    adapted = ("peft",) if artifact.adapters else ()
    more = sorted({one for one in (*openers, *engines, *adapted) if one})
    first = ("pare",) if own else find_task(artifact.task).libraries
    return [*first, *more] if more or own else []


def plain(text: str) -> str:
    """Text that is no markup."""
    return " ".join(text.split()).translate(NO_MARKUP)


def _stock_library(artifact: Artifact) -> str:
    """The library that opens models of this task: diffusers, where that is among those which run it."""
    libraries = find_task(artifact.task).libraries
    return "diffusers" if "diffusers" in libraries else "transformers"

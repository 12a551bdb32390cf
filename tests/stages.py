"""Running one stage on one artifact, as the executor does, without a recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from compress.artifact import Artifact, Provenance, write_manifest
from compress.catalogue import Forecast, find_stage
from compress.context import Context
from compress.data.items import Data, Item
from compress.events import Event
from compress.machine.devices import AS_STORED, Opening
from compress.model.describing import describe
from compress.planning.forecast import changed_fields, unsettled_fields

CAPTIONS = ("a red three", "blue", "green on paper")
DATA = Data("captions", "texts", "digest", -1, lambda i: Item(str(i), CAPTIONS[i % len(CAPTIONS)]))


def apply(
    name: str,
    artifact: Artifact,
    out: Path,
    *,
    data: Data = DATA,
    inputs: Mapping[str, Artifact] | None = None,
    opening: Opening = AS_STORED,
    **params: Any,
) -> tuple[Artifact, list[Event]]:
    """Run a stage as the executor does, hold it to the configs that it forecast, and hear its notes."""
    stage = find_stage(name)
    checked = stage.params(**params)
    assert stage.refuse(artifact, checked) == ""
    reported = stage.forecast(artifact, checked)
    out.mkdir(parents=True)
    scratch = out.parent / f"{out.name}-scratch"
    scratch.mkdir(exist_ok=True)
    recorded: list[Event] = []
    roles = {"calibration": data, "train": data}
    context = Context(out, scratch, opening=opening, inputs=inputs or {}, data=roles, emit=recorded.append, node="step")
    stage.run(artifact, checked, context)
    made_by = Provenance(name, stage.version, checked.counted(), "")
    write_manifest(replace(describe(out), lineage=(*artifact.lineage, made_by)))
    made = describe(out)
    for component, fields in changed_fields(artifact, reported, unsettled_fields(reported, {})).items():
        config = made.config(component)
        assert {name: config.get(name) for name in fields} == json.loads(json.dumps(fields))
    # Whether another process measured meanwhile is no affair of the stage.
    return made, [e for e in recorded if e.kind == "note" and e.what != "timing"]


def forecast(name: str, artifact: Artifact, **params: Any) -> Forecast:
    """What a stage tells before it runs."""
    stage = find_stage(name)
    return stage.forecast(artifact, stage.params(**params))

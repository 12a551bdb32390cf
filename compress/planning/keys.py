"""The key of a stage's result: everything that decides its bytes, known before anything runs."""

from __future__ import annotations

from collections.abc import Mapping

from compress.catalogue import Stage
from compress.files.hashing import digest_json
from compress.machine import deps
from compress.machine.devices import AS_STORED, Opening
from compress.machine.facts import machine_fact
from compress.params import Params

KEY_FORMAT = 1
BASE_LIBRARIES = ("torch", "transformers", "diffusers")


def stage_key(
    stage: Stage,
    task: str,
    params: Params,
    components: tuple[str, ...],
    inputs: Mapping[str, str],
    seed: int,
    opening: Opening = AS_STORED,
) -> str:
    """The key of a stage's result: everything that decides its bytes, known before anything runs."""
    called = {s.name: [s.version, *_surroundings(s)] for s in stage.calls(params)}
    parts = [
        KEY_FORMAT,
        stage.name,
        stage.version,
        task,
        params.counted(),
        components,
        dict(inputs),
        seed,
        *_surroundings(stage),
        *([called] if called else []),
        *([opening.counted] if opening.counted else []),
    ]
    return digest_json(parts)


def _surroundings(stage: Stage) -> tuple[dict[str, str], dict[str, str]]:
    """The versions of a stage's libraries, and what of the machine it is bound to."""
    libraries = {name: deps.version(name) for name in sorted({*BASE_LIBRARIES, *stage.libraries})}
    return libraries, {kind: machine_fact(kind) for kind in sorted(stage.bound_to)}

"""Let a model's weights wait in the processor's memory and go to the GPU for their turn, so that a model larger than the GPU runs there.

Use it where a model does not fit, and nothing smaller will do: numbers stay the same, and each call waits for weights to cross the bus, which
a denoiser's long calls hide better than a language model's steps. `how: components` has one part of a pipeline on the GPU at a time, whole.
`blocks` has a denoiser's blocks there one by one, the next on its way meanwhile, and the other parts layer by layer; `layers` has all layer by
layer, which takes least memory and most time. A language model goes by `blocks`: two at a time, beside its embeddings and head, which stay;
`keep` says how much may stay. Opening loads nothing but to the processor's memory first, which holds all weights, a pipeline's by blocks twice while it is opened. The
model's files stay as they are. Put it last; packed weights, CUDA graphs, compiled blocks and the lean call want weights that stay where
they are. It is tested without a GPU and was not run on one yet: `make gpu PART=f` measures it.
Source: diffusers' `enable_model_cpu_offload` and `apply_group_offloading`, whose way with pinned memory and a stream of its own is taken for
language models too.

    - accelerate.offload: {how: blocks}
"""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field

from compress.artifact import LANGUAGE_MODEL, Artifact, derive, write_manifest
from compress.catalogue import Forecast, stage
from compress.context import Context
from compress.errors import Refusal
from compress.machine.library_classes import source_of
from compress.model.hook_settings import OFFLOAD, hooked, movable, unhookable
from compress.params import Params
from compress.pipelines.index import class_of
from compress.quantization.budgets import bytes_of, unreadable
from compress.quantization.sizes import held_bytes

BLOCKS, COMPONENTS = "blocks", "components"


class Offload(Params):
    """How weights take turns on the GPU."""

    how: Literal["components", "blocks", "layers"] | None = Field(
        None,
        description="what is on the GPU at a time; default: components of a pipeline, blocks of a language model",
    )
    keep: str | None = Field(
        None,
        description="how much of a language model's weights may stay on the GPU, such as 8 GB: first its embeddings and head, which "
        "always do, then whole blocks; default: no block",
    )


def refuse(artifact: Artifact, params: Offload) -> str:
    if why := unhookable(artifact, OFFLOAD):
        return why
    if not artifact.writes_text and params.keep:
        return Refusal("keep is about a language model's blocks", "leave keep out")
    if not artifact.writes_text:
        return _not_so(artifact, params.how or COMPONENTS)
    if params.how not in (None, BLOCKS):
        return Refusal(f"a language model's weights take turns by blocks, and not by {params.how}", f"how: {BLOCKS}")
    return _kept_all(artifact, params.keep) if params.keep else ""


def _not_so(artifact: Artifact, how: str) -> str:
    """Why diffusers does not move a pipeline's weights this way, as the classes themselves say; or ""."""
    kind = class_of(artifact.path)
    if how == COMPONENTS and (source := source_of(kind, "pipelines")) and "model_cpu_offload_seq" not in source:
        return Refusal(f"diffusers does not say in which order {kind} calls its components", f"how: {BLOCKS}")
    for name in movable(artifact) if how != COMPONENTS else ():
        kind = artifact.components[name].kind
        body = re.search(rf"^class {kind}\(.*?(?=^class |\Z)", source_of(kind, "models"), re.DOTALL | re.MULTILINE)
        if body and "_supports_group_offloading = False" in body[0]:
            return Refusal(f"diffusers moves `{name}`, a {kind}, only as a whole", f"how: {COMPONENTS}")
    return ""


def _kept_all(artifact: Artifact, keep: str) -> str:
    """Why an amount that is kept on the GPU is none, or leaves nothing to move; or ""."""
    if why := unreadable(keep):
        return Refusal(f"keep: {why}", "write for instance keep: 8 GB")
    whole = held_bytes(artifact, LANGUAGE_MODEL)
    if bytes_of(keep, whole) < whole:
        return ""
    return Refusal(f"keep: {keep} holds the whole model, {whole / 1e9:.3g} GB", "give less, or leave this stage out")


def way(artifact: Artifact, params: Offload) -> dict[str, object]:
    """What is written down: how weights take turns, and how many bytes of them stay."""
    how = params.how or (BLOCKS if artifact.writes_text else COMPONENTS)
    return {"how": how} | ({"keep": bytes_of(params.keep, held_bytes(artifact, LANGUAGE_MODEL))} if params.keep else {})


def forecast(artifact: Artifact, params: Offload) -> Forecast:
    found = hooked(artifact, OFFLOAD, movable(artifact), **way(artifact, params))
    kept = f"; {params.keep} of them may stay there" if params.keep else ""
    reported = f"weights wait in the processor's memory and go to the GPU by {way(artifact, params)['how']}{kept}"
    return Forecast(settings=found.settings, reported=f"{reported}; that needs pare")


def elsewhere(device: str) -> str:
    return "" if device == "cuda" else f"it spares the memory of an NVIDIA GPU, and the device is {device}"


@stage(
    version=1,
    params=Offload,
    formats={"torch": "torch"},
    effects=("settings",),
    reproducible="bytes",
    libraries=("accelerate", "diffusers", "transformers"),
    refuse=refuse,
    forecast=forecast,
    elsewhere=elsewhere,
)
def run(artifact: Artifact, params: Offload, context: Context) -> None:
    made = derive(artifact, context.out, link=context.link)
    write_manifest(hooked(made, OFFLOAD, movable(made), **way(artifact, params)))

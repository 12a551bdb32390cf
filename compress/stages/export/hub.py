"""Make a folder ready to upload to the Hugging Face hub: the model, its licence, and a model card with what was measured of it.

Put it last and run with `--save FOLDER`. The stage writes README.md: metadata, the stages with their parameters, how the model is loaded,
and the licence that the model's own card names or its LICENSE file holds. A stage runs before the evaluation, so what that finds, with its
intervals, its machine and what was not measured, is put into the saved folder's card when it is there. Nothing is uploaded.
Source: the hub's specification of model cards; Mitchell et al., "Model Cards for Model Reporting" (2019).

    - prune.width: {ratio: 0.25}
    - export.hub: {repo: you/smaller-model}
"""

from __future__ import annotations

from pydantic import Field

from compress.artifact import Artifact, Provenance, derive, write_manifest
from compress.catalogue import find_engine, find_task, stage
from compress.context import Context
from compress.errors import Refusal
from compress.params import Params
from compress.publishing.licences import licence_files
from compress.publishing.model_cards import CARD, NAME, Described, read_card, write_card
from compress.publishing.modelfiles import MODELFILE
from compress.tasks import Usage, literal

VERSION = 3
_NAME = (
    r"[A-Za-z0-9](?:(?:-|\.|-\.|\.-)?[A-Za-z0-9_])*"  # the hub takes neither -- nor .., and neither of these at an end
)
REPO = f"^{_NAME}(?:/{_NAME})?$"
LICENCE = r"^[a-z0-9][a-z0-9.+-]*$"


class ExportHub(Params):
    repo: str = Field(
        "you/model",
        pattern=REPO,
        max_length=96,
        description="the name that it will have on the hub, such as you/smaller-model",
    )
    base_model: str = Field(
        "",
        pattern=f"{REPO}|^$",
        max_length=96,
        description="the name on the hub of the model it was made from, such as org/model-8B; none: the recipe's model, if it is of the hub",
    )
    license: str = Field(
        "",
        pattern=f"{LICENCE}|^$",
        description="the licence's identifier on the hub, such as apache-2.0, llama3.1 or other; none: what the model's own card says",
    )
    tags: tuple[str, ...] = Field((), description="further tags")


def refuse(artifact: Artifact, params: ExportHub) -> str:
    ends = [name for name in ("repo", "base_model") if getattr(params, name).endswith(".git")]
    return Refusal(f"{' and '.join(ends)}: no name on the hub ends in .git", "leave .git out") if ends else ""


@stage(version=VERSION, params=ExportHub, refuse=refuse, effects=("files",), files=(CARD,), reproducible="bytes")
def run(artifact: Artifact, params: ExportHub, context: Context) -> None:
    from compress.engines.torch.runtime import named_dtype

    made = derive(artifact, context.out, without=(CARD,), link=context.link)
    itself = Provenance(NAME, VERSION, params.counted(), "")
    stock = not _library(artifact)
    trusted = context.opening.trust_remote_code
    adapters = tuple((name, one.path, one.scale) for name, one in artifact.adapters.items())
    usage = Usage(params.repo, stock, trusted, artifact.settings.call, dtype=named_dtype(artifact), adapters=adapters)
    code = find_task(artifact.task).usage(usage)
    if not stock:  # pare opens folders
        opened = f"compress.load({literal(params.repo)}"
        fetched = (line.replace(opened, opened.replace("(", "(snapshot_download(") + ")") for line in code)
        code = ("from huggingface_hub import snapshot_download", *fetched)
    if (artifact.path / MODELFILE).is_file():
        code = (*code, f"# or, in its folder: ollama create {params.repo.rsplit('/', 1)[-1]} -f {MODELFILE}")
    described = Described(params.repo, params.base_model, params.license, params.tags)
    card = write_card(artifact, (*artifact.lineage, itself), described, code=code, own=_library(artifact))
    (context.out / CARD).write_text(str(card), encoding="utf-8")
    write_manifest(made)
    if not (params.license or read_card(artifact.path / CARD).data.get("license") or licence_files(artifact.path)):
        context.note(
            "no licence is known of the model: its card names none, and its folder holds none; `license` says one"
        )


def _library(artifact: Artifact) -> str:
    """The library that loads it, where that is no stock one."""
    how = artifact.settings
    if how.needs_pare or how.graph or how.hook:
        return "pare"
    formats = sorted({part.format for part in artifact.components.values()} - {"torch"})
    return find_engine(formats[0]).title.lower() if formats else ""

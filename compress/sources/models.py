"""Where a recipe's model comes from: the zoo, a local folder, or a pinned commit on the Hugging Face hub."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from compress.artifact import Artifact, loaded_weights
from compress.endpoints.address import COMPARED, NO_MODEL, is_address, plain
from compress.errors import ModelError
from compress.files.hashing import digest_folder, digest_json, unread_bytes
from compress.files.safetensors_headers import read_header
from compress.files.user_paths import expanded, file_and_config
from compress.model.describing import describe
from compress.model.weight_files import loaded_files
from compress.pipelines.index import LEFT_OUT
from compress.sources.originals import Conversion, forecast, key_of, refuse_lacking
from compress.sources.variants import opened_of, variants, view_of

if TYPE_CHECKING:
    from compress.adapters.fusing import Fusion

HUB = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
COMMIT = re.compile(r"[0-9a-f]{40}")
# Of a hub model beside its weights: configs, every kind of vocabulary, and the template of conversations.
TEXTS = ("*.json", "*.txt", "*.model", "*.tiktoken", "*.spm", "*.vocab", "*.jinja")

HOST_PORT = re.compile(
    r"(\w[\w.-]*|\[[\da-fA-F:]+\]):\d{2,5}(/|#|$)"
)  # as an endpoint is called by who leaves out its scheme


@dataclass(frozen=True)
class Source:
    """A model before any stage: `key` stands for its content."""

    artifact: Artifact
    key: str
    remote: str = (
        ""  # "org/name" while its weights are still to be fetched; of a checkpoint's other parts with the commit
    )
    # How it is still to be made, of adapters or of a checkpoint in one file, which its key counts already.
    making: Fusion | Conversion | None = None


def find_source(reference: str, base: Path, memory: Path | None) -> Source:
    """Find a model by what the recipe calls it; relative folders start at `base`. Only JSON, headers and file sizes are read.

    Raises:
        ModelError: there is none, it is no model, its weights are cut short, or a hub revision is not pinned.
    """
    file, config = file_and_config(reference, base)
    if config:
        return _original(base / expanded(file), config, base, memory)
    if reference.startswith("hf://"):
        return _hub(reference)
    if is_address(reference):
        raise ModelError(NO_MODEL, place=plain(reference), fix=COMPARED)
    path = find_folder(reference, base)
    artifact = describe(path)
    if which := variants(artifact):
        return _as_plain(artifact, which, memory)
    _check(artifact)
    return Source(artifact, digest_folder(path, memory))


def look_at(reference: str, base: Path, memory: Path | None) -> Artifact | None:
    """As `find_source`, but no weights are hashed; None where something would have to be fetched.

    Raises:
        ModelError: as `find_source` does.
    """
    file, config = file_and_config(reference, base)
    if "hf://" in (reference[:5], config[:5]):
        return None
    if config:
        return forecast(base / expanded(file), find_folder(config, base), _root(memory)).sketch
    return describe(find_folder(reference, base))


def unread(reference: str, base: Path, memory: Path) -> int:
    """How much would be read for the key of a model, bytes: nothing of one of the hub.

    Raises:
        ModelError: the zoo has no such model.
    """
    file, config = file_and_config(reference, base)
    if config:
        return unread_bytes(base / expanded(file), memory)
    return 0 if reference.startswith("hf://") else unread_bytes(find_folder(reference, base), memory)


def _root(memory: Path | None) -> Path | None:
    """The cache that digests are remembered in."""
    return memory.parent if memory else None


def _original(file: Path, config: str, base: Path, memory: Path | None) -> Source:
    """A checkpoint in one file, to be converted with the configs of a folder or of the hub."""
    remote, commit = _pinned(config) if config.startswith("hf://") else ("", "")
    folder = fetch_hub(remote, commit, weights=False) if remote else find_folder(config, base)
    found = forecast(file, folder, _root(memory))
    if not remote:
        refuse_lacking(found)
        _check(found.sketch)
    key = key_of(found, memory, f"{remote}@{commit}" if remote else "")
    left = f"{remote}@{commit}" if remote and found.lacking else ""
    return Source(found.sketch, key, left, found)


def _as_plain(artifact: Artifact, which: Mapping[str, str], memory: Path | None) -> Source:
    """The source that a folder of one variant is under plain names."""
    key = digest_json([digest_folder(artifact.path, memory), dict(which)])
    plain = describe(view_of(artifact, which, key, memory.parent if memory else None))
    _check(plain)
    return Source(plain, key)


def _check(artifact: Artifact) -> None:
    """Raises a ModelError where a file that will be opened is cut short."""
    for file in _opened(artifact):
        check_safetensors(file)


def _opened(artifact: Artifact) -> Iterator[Path]:
    """The safetensors that a library will open, each once. Others may lie beside them and never have been fetched: variants, a copy
    of the whole model in one file, parts that judge images. An index that does not read is reported with the model's other parts."""
    seen: set[Path] = set()
    for name, part in artifact.components.items():
        found: Iterable[Path] = ()
        if part.format != "torch":
            found = sorted(artifact.folder(name).glob("*.safetensors"))
        elif name not in LEFT_OUT:
            with suppress(ModelError):
                found = loaded_files(artifact, name)
        yield from (file for file in found if file not in seen)
        seen |= set(found)


def find_folder(reference: str, base: Path) -> Path:
    """The folder that `zoo://name` or a local path names.

    Raises:
        ModelError: the zoo has no such model.
    """
    if reference.startswith("zoo://"):
        from compress.zoo import zoo_model

        return zoo_model(reference.removeprefix("zoo://"))
    found = base / expanded(reference)
    if HOST_PORT.match(reference) and not found.exists():
        message, fix = "is no folder, and an address only with its scheme", f"of an endpoint, write http://{reference}"
        raise ModelError(message, place=reference, fix=fix)
    return found


def check_safetensors(file: Path) -> int:
    """Number of parameters in a safetensors file, read from its header alone.

    Raises:
        ModelError: the header does not read, or the file is shorter than it says.
    """
    return sum(one.count for one in read_header(file).tensors.values())


def parameter_count(folder: Path) -> int:
    """Parameters in the safetensors that a library reads of a component's folder; in all of them where none has a name it knows."""
    return sum(check_safetensors(f) for f in loaded_weights(folder) or sorted(folder.glob("*.safetensors")))


def _hub(reference: str) -> Source:
    repo, commit = _pinned(reference)
    folder = fetch_hub(repo, commit, weights=False)
    return Source(describe(folder), f"hf:{repo}@{commit}", remote=repo)


def _pinned(reference: str) -> tuple[str, str]:
    """The repository and the commit that a reference to the hub names."""
    match = HUB.fullmatch(reference)
    if not match or not match["revision"] or not COMMIT.fullmatch(match["revision"]):
        raise ModelError(
            f"{reference} is not pinned, so a run could not be repeated",
            fix="write hf://org/name@<40-hex commit>; `pare check --pin` finds it",
        )
    return match["repo"], match["revision"]


def fetch_weights(source: Source) -> Source:
    """The same source with its weights on this disk: those of a hub model are fetched now.

    Raises:
        ModelError: the hub does not give them.
    """
    if not source.remote:
        return source
    if isinstance(source.making, Conversion):
        repo, _, commit = source.remote.partition("@")
        whole = forecast(source.making.file, fetch_hub(repo, commit, weights=True), source.artifact.path.parents[1])
        return replace(source, artifact=whole.sketch, remote="", making=whole)
    artifact = describe(fetch_hub(source.remote, source.key.rsplit("@", 1)[1], weights=True))
    if which := variants(artifact):
        artifact = describe(view_of(artifact, which, source.key, None))
    return replace(source, artifact=artifact, remote="")


def fetch_hub(repo: str, revision: str, *, weights: bool) -> Path:
    """The local snapshot of a hub commit: JSON and text first, weights when they are about to be used.

    Raises:
        ModelError: it is gated, absent, or the hub is out of reach.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    patterns = [*TEXTS, "LICEN[CS]E*", "NOTICE*", "README.md"]
    place = f"hf://{repo}@{revision}"
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
        if not weights:
            return folder
        wanted = _weights_of(repo, revision, folder)
        return Path(snapshot_download(repo, revision=revision, allow_patterns=[*patterns, *wanted]))
    except GatedRepoError as error:
        raise ModelError(
            "is gated", place=place, fix=f"accept its licence on {constants.ENDPOINT}/{repo}, then set HF_TOKEN"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError("does not exist, or is private", place=place, fix="check the name, or set HF_TOKEN") from error
    except Exception as error:  # no network, a proxy, a name the hub does not take: its clients have types of their own
        raise ModelError(
            f"cannot be fetched: {_message(error)}", place=place, fix="go online once, or give a local folder"
        ) from error


def _weights_of(repo: str, revision: str, folder: Path) -> list[str]:
    """The safetensors of a hub model that will be opened: neither variants nor copies of the whole model beside them, which take as much again.
    All there are of what is no model, such as an adapter, and where the hub cannot be asked for their names."""
    from huggingface_hub import HfApi

    try:
        artifact, names = describe(folder), HfApi().list_repo_files(repo, revision=revision)
    except Exception:  # no network: its clients have types of their own, and what was fetched before is here
        return ["*.safetensors"]
    return list(opened_of(names, artifact)) or ["*.safetensors"]


def pin_hub(reference: str) -> str:
    """The reference with its floating revision replaced by the commit it names now.

    Raises:
        ModelError: it is no hub reference, or the hub is out of reach.
    """
    match = HUB.fullmatch(reference)
    if not match:
        raise ModelError(f"{reference} is no hub model", fix="hf://org/name or hf://org/name@branch")
    if match["revision"] and COMMIT.fullmatch(match["revision"]):
        return reference
    from huggingface_hub import model_info

    try:
        commit = model_info(match["repo"], revision=match["revision"]).sha
    except Exception as error:
        raise ModelError(
            f"cannot be looked up: {_message(error)}",
            place=reference,
            fix="check the name, go online once, or set HF_TOKEN",
        ) from error
    return f"hf://{match['repo']}@{commit}"


def _message(error: Exception) -> str:
    """An error's kind and the first line of what it says."""
    return f"{type(error).__name__}: {error}".partition("\n")[0][:200]

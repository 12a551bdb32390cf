"""Which classes the installed libraries have, told from their source: importing one takes seconds."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

AUTO = Path("models/auto/modeling_auto.py")  # of transformers: the names of most models that it has


def has_class(kind: str, library: str = "transformers", model_type: str = "") -> bool:
    """Whether a library of models has a class of this name.

    Args:
        library: transformers, diffusers, or a module of diffusers' pipelines, whose classes are not looked up.
        model_type: what the config beside its weights says, which tells where to look first.
    """
    home = _home("transformers" if library == "transformers" else "diffusers")
    if home is None:
        return False
    if library not in ("transformers", "diffusers"):
        return (home / "pipelines" / library).is_dir() or (home / "pipelines" / f"{library}.py").is_file()
    named = _text(home / (AUTO if library == "transformers" else Path("__init__.py")))
    return f'"{kind}"' in named or (
        library == "transformers" and any(f"class {kind}(" in _text(file) for file in _modeling(home, model_type))
    )


def source_of(kind: str, folder: str) -> str:
    """The text of the file of diffusers that defines a class, looked for below one of its folders; "" where none does."""
    home = _home("diffusers")
    files = sorted(home.glob(f"{folder}/**/*.py")) if home else []
    return next((text for file in files if f"class {kind}(" in (text := _text(file))), "")


def _modeling(home: Path, model_type: str) -> Iterator[Path]:
    """The files that define models: first those of a model type (clip_text_model lies in `clip`), then all others."""
    words = model_type.replace("-", "_").split("_")
    near = ["_".join(words[:count]) for count in range(len(words), 0, -1) if model_type]
    for folder in near:
        yield from sorted((home / "models" / folder).glob("modeling_*.py"))
    yield from (home / "models").glob("*/modeling_*.py")


@cache
def _home(library: str) -> Path | None:
    found = find_spec(library)
    places = found.submodule_search_locations if found else None
    return Path(places[0]) if places else None


@cache
def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8") if file.is_file() else ""

"""Which classes the installed libraries have, read from their source: importing one takes seconds."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from compress.machine import deps

# A table of positions, as the library's models make one: learned, or of ALiBi's slopes for so many and no more.
TABLE = re.compile(
    r"Embedding\(\s*(?:config|self)\.(?:max_position_embeddings|n_positions|max_positions)\b|alibi_tensor\([^)]*config\.max_seq_len\b"
)
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z][a-z]+|\d+")  # of a class's name, as the name of its file has them
AUTO = Path("models/auto/modeling_auto.py")  # of transformers: the names of most models that it has

MODULES = {"opencv": "cv2"}  # of libraries that diffusers calls by another name than Python imports


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


def defines(model_type: str, kind: str) -> bool | None:
    """Whether transformers defines a class beside the models of a type; None where it has no such type."""
    files = [file for folder in _near(model_type) for file in sorted(folder.glob("modeling_*.py"))]
    return any(f"class {kind}(" in _text(file) for file in files) if files else None


@cache
def source_of(kind: str, folder: str) -> str:
    """The text of the file of diffusers that defines a class, looked for below one of its folders; "" where none does."""
    words = {word.lower() for word in WORD.findall(kind)}
    likeliest = sorted(_sources(folder), key=lambda file: len(words ^ set(file.stem.split("_"))))
    return next((text for file in likeliest if f"class {kind}(" in (text := _text(file))), "")


@cache
def lacking_for(kind: str) -> tuple[str, ...]:
    """The libraries that are not installed and without which diffusers has of a class nothing but a dummy, which its own table of
    dummies names; all else that it has opens with what is here."""
    home = _home("diffusers")
    for file in sorted((home / "utils").glob("dummy_*_objects.py")) if home else ():
        if f"class {kind}(" in _text(file):
            backends = re.search(rf"class {kind}\(.*?_backends = \[([^\]]*)\]", _text(file), re.DOTALL)
            named = re.findall(r'"(\w+)"', backends[1]) if backends else []
            return tuple(name for name in named if not deps.installed(MODULES.get(name, name)))
    return ()


def loader_source() -> str:
    """The text of the file in which diffusers tells original checkpoints apart; "" where it is not installed."""
    home = _home("diffusers")
    return _text(home / "loaders/single_file_utils.py") if home else ""


def hooks_source() -> str:
    """The text of the file in which diffusers says what blocks of transformers give back; "" where it is not installed."""
    home = _home("diffusers")
    return _text(home / "hooks/_helpers.py") if home else ""


@cache
def _sources(folder: str) -> tuple[Path, ...]:
    """The files of Python below a folder of diffusers, sorted."""
    home = _home("diffusers")
    found = os.walk(home / folder) if home else ()
    return tuple(sorted(Path(at, name) for at, _, names in found for name in names if name.endswith(".py")))


@cache
def has_learned_positions(model_type: str) -> bool:
    """Whether transformers' model of this type looks its positions up in a table, which a longer text runs out of."""
    sources = (_text(file) for folder in _near(model_type) for file in sorted(folder.glob("modeling_*.py")))
    return any(TABLE.search(source) for source in sources)


@cache
def model_sources(kind: str, model_type: str) -> tuple[str, str]:
    """The text of the file of transformers that defines a model's class, in the folder of a model type or what it is a kind of, and the
    texts beside it that define configs; "" where there is none."""
    for folder in _near(model_type):
        modeling = next(
            (text for f in sorted(folder.glob("modeling_*.py")) if f"class {kind}(" in (text := _text(f))), ""
        )
        if modeling:
            return modeling, "\n".join(_text(f) for f in sorted(folder.glob("configuration_*.py")))
    return "", ""


@cache
def divisions_of(model_type: str) -> frozenset[tuple[str, str]]:
    """Pairs of fields of which the first must be a multiple of the second, or transformers' config class of this type refuses
    to be made: its source asks whether `self.FIRST % self.SECOND != 0`. Empty where no class of this type is found."""
    files = [file for folder in _near(model_type) for file in sorted(folder.glob("configuration_*.py"))]
    classes = (node for file in files for node in ast.parse(_text(file)).body if isinstance(node, ast.ClassDef))
    found = next((node for node in classes if _says_type(node, model_type)), None)
    return frozenset(_divisions(found)) if found else frozenset()


def _says_type(made: ast.ClassDef, model_type: str) -> bool:
    """Whether a config class is that of a model type."""
    for node in made.body:
        match node:
            case ast.Assign(targets=[ast.Name(id="model_type")], value=ast.Constant(value=message)) if (
                message == model_type
            ):
                return True
            case _:
                pass
    return False


def _divisions(made: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for node in ast.walk(made):
        match node:
            case ast.Compare(
                left=ast.BinOp(
                    left=ast.Attribute(value=ast.Name(id="self"), attr=first),
                    op=ast.Mod(),
                    right=ast.Attribute(value=ast.Name(id="self"), attr=second),
                ),
                ops=[ast.NotEq()],
            ):
                yield first, second
            case _:
                pass


def _modeling(home: Path, model_type: str) -> Iterator[Path]:
    """The files that define models: first those of a model type, then all others."""
    for folder in _near(model_type):
        yield from sorted(folder.glob("modeling_*.py"))
    yield from (home / "models").glob("*/modeling_*.py")


def _near(model_type: str) -> list[Path]:
    """Where transformers may define a model type, the likeliest first (clip_text_model lies in `clip`)."""
    home, words = _home("transformers"), model_type.replace("-", "_").split("_")
    counts = range(len(words), 0, -1) if home and model_type else ()
    return [home / "models" / "_".join(words[:count]) for count in counts] if home else []


@cache
def _home(library: str) -> Path | None:
    found = find_spec(library)
    places = found.submodule_search_locations if found else None
    return Path(places[0]) if places else None


@cache
def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8") if file.is_file() else ""

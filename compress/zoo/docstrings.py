"""The text set `zoo://docstrings`: the English of the docstrings inside the installed scientific Python packages.

Public English that every installation already carries. The held-out splits are shipped, so that a number measured today
means the same next year; training text is read from the installed sources, less whatever resembles a held-out document.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import numpy as np

from compress.errors import DataError

PACKAGES = {"sklearn": "scikit-learn", "scipy": "scipy", "numpy": "numpy", "pandas": "pandas"}
MINIMUM_CHARACTERS = 200
SHINGLE_WORDS = 6
NEAR_DUPLICATE = 0.4  # share of the shorter document's shingles found in the other one
LARGEST_HELD_OUT_CLUSTER = 6
HELD_OUT = {"validation": 100, "test": 260}
DATA = Path(__file__).parent / "data"

Split = Literal["validation", "test"]

_HEADING = re.compile(r"^\s*([-=~^]{3,})\s*$")
_NO_PROSE_SECTIONS = {"references", "see also", "methods", "routines"}
_NO_PROSE_LINE = re.compile(
    r"^\s*(>>>|\.\.\.( |$)|\.\. |\+[-=+]+|\||:[a-z]+:|={2,}[ =]*$|-{2,}[ -]*$|\$ |%\()|%\(\w+\)s"
)
_BULLET = re.compile(r"^([-*+]|\d+[.)])\s+")
_WORD = re.compile(r"[A-Za-z]{2,}")


@dataclass(frozen=True)
class Document:
    """One docstring's English. `id` is the qualified name of the module, class or function that it describes."""

    id: str
    text: str


@cache
def train_documents() -> tuple[Document, ...]:
    """Every installed docstring that shares no near-duplicate cluster with a held-out document, sorted by id.

    Raises:
        DataError: one of the packages is not installed, or a shipped split does not read.
    """
    kept_out = held_out("validation") + held_out("test")
    return without_relatives(installed_documents(), kept_out)


@cache
def held_out(split: Split) -> tuple[Document, ...]:
    """A shipped split, independent of the installed versions.

    Raises:
        DataError: there is no such split, or its file does not read.
    """
    path = DATA / f"docstrings-{split}.jsonl"
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return tuple(Document(row["id"], row["text"]) for row in rows)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"no such split of zoo://docstrings: {split}", fix="choose validation or test") from error


def corpus_versions() -> dict[str, str]:
    """The installed version of each package that the training text is read from.

    Raises:
        DataError: one of them is not installed.
    """
    return {distribution: _version(package, distribution) for package, distribution in PACKAGES.items()}


def _version(package: str, distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError as error:
        raise _missing(package) from error


def _missing(package: str) -> DataError:
    fix = f"pip install {PACKAGES[package]}"
    return DataError(f"zoo://docstrings reads {package}, which is not installed", fix=fix)


def without_relatives(documents: Sequence[Document], kept_out: Sequence[Document]) -> tuple[Document, ...]:
    """`documents` less every one that shares a near-duplicate cluster with one of `kept_out`."""
    labels = clusters([*documents, *kept_out])
    taken = set(labels[len(documents) :])
    return tuple(d for d, label in zip(documents, labels, strict=False) if label not in taken)


def clusters(documents: Sequence[Document]) -> list[int]:
    """A cluster label for each document: connected components of "shares `NEAR_DUPLICATE` of the shorter's shingles".

    Shingles are runs of `SHINGLE_WORDS` words, case and punctuation ignored. (Broder 1997, containment.)
    """
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import connected_components

    known: dict[str, int] = {}
    rows: list[int] = []
    columns: list[int] = []
    for row, document in enumerate(documents):
        found = {known.setdefault(s, len(known)) for s in _shingles(document.text)}
        rows.extend([row] * len(found))
        columns.extend(found)
    shape = (len(documents), max(1, len(known)))
    has = csr_matrix((np.ones(len(rows), dtype=np.int32), (rows, columns)), shape=shape)
    sizes = np.maximum(np.asarray(has.sum(axis=1)).ravel(), 1)
    shared = (has @ has.T).tocoo()
    close = shared.data >= NEAR_DUPLICATE * np.minimum(sizes[shared.row], sizes[shared.col])
    links = csr_matrix(
        (np.ones(int(close.sum()), dtype=np.int8), (shared.row[close], shared.col[close])), (shape[0],) * 2
    )
    return [int(label) for label in connected_components(links, directed=False)[1]]


def _shingles(text: str) -> Iterator[str]:
    words = re.findall(r"\w+", text.lower())
    for start in range(max(1, len(words) - SHINGLE_WORDS + 1)):
        yield " ".join(words[start : start + SHINGLE_WORDS])


def choose_held_out(documents: Sequence[Document], counts: dict[str, int]) -> dict[str, tuple[Document, ...]]:
    """Deal small clusters to the held-out splits in the order of a hash; a cluster gives its longest document only.

    Large clusters (boilerplate with many versions) stay whole on the training side.
    """
    groups: dict[int, list[Document]] = {}
    for document, label in zip(documents, clusters(documents), strict=True):
        groups.setdefault(label, []).append(document)
    small = (group for group in groups.values() if len(group) <= LARGEST_HELD_OUT_CLUSTER)
    chosen = [max(group, key=lambda d: (len(d.text), d.id)) for group in small]
    order = iter(sorted(chosen, key=lambda d: hashlib.sha256(d.text.encode()).digest()))
    dealt = {split: [next(order) for _ in range(count)] for split, count in counts.items()}
    return {split: tuple(sorted(some, key=lambda d: d.id)) for split, some in dealt.items()}


def installed_documents(packages: Iterable[str] = tuple(PACKAGES)) -> tuple[Document, ...]:
    """Every docstring of the installed `packages` as prose, each text once, sorted by id.

    Raises:
        DataError: one of the packages is not installed.
    """
    texts: dict[str, str] = {}
    for package in packages:
        for name, docstring in _package_docstrings(package):
            text = prose(docstring)
            if len(text) >= MINIMUM_CHARACTERS:
                texts.setdefault(name, text)
    once = {text: name for name, text in sorted(texts.items(), reverse=True)}
    return tuple(Document(name, text) for text, name in sorted(once.items(), key=lambda pair: pair[1]))


def _package_docstrings(package: str) -> Iterator[tuple[str, str]]:
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise _missing(package)
    root = Path(found.origin).parent
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if "tests" in parts or "conftest" in parts:
            continue
        module = ".".join((package, *(part for part in parts if part != "__init__")))
        yield from source_docstrings(path.read_text(encoding="utf-8"), module)


def source_docstrings(source: str, module: str) -> Iterator[tuple[str, str]]:
    """(qualified name, docstring) of a module's source, its classes and functions, and its `add_newdoc` calls."""
    tree = ast.parse(source)
    yield from _node_docstrings(tree, module)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "add_newdoc":
            words = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            if len(words) >= 2:
                yield f"{module}.{'.'.join(words[:-1])}", inspect.cleandoc(words[-1])


def _node_docstrings(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, name: str
) -> Iterator[tuple[str, str]]:
    docstring = ast.get_docstring(node)
    if docstring:
        yield name, docstring
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _node_docstrings(child, f"{name}.{child.name}")


def prose(docstring: str) -> str:
    """A docstring's English, without doctests, tables, formulas and reference lists.

    Wrapped lines are joined, one blank line separates paragraphs, a parameter's description begins a new line.
    """
    kept = []
    for section, lines in _sections(docstring.splitlines()):
        if section in _NO_PROSE_SECTIONS:
            continue
        for paragraph in _paragraphs(lines):
            text = _joined(paragraph)
            if _is_english(paragraph, text):
                kept.append(text)
    return "\n\n".join(kept)


def _sections(lines: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Split at headings underlined with dashes or equals signs; the headings themselves are dropped."""
    name: str = ""
    body: list[str] = []
    for line, below in zip(lines, [*lines[1:], ""], strict=True):
        if _HEADING.match(below) and line.strip() and len(line.strip()) <= len(below.strip()) + 2:
            yield name, body
            name, body = line.strip().lower(), []
        elif not _HEADING.match(line) or body:
            body.append(line)
    yield name, body


def _paragraphs(lines: Iterable[str]) -> Iterator[list[str]]:
    """Blank lines separate; a directive (`.. math::`) takes the indented lines below it with it."""
    paragraph: list[str] = []
    directive_indent: int | None = None
    for line in [*lines, ""]:
        indent = len(line) - len(line.lstrip())
        if directive_indent is not None and line.strip():
            if indent > directive_indent:
                continue
            directive_indent = None
        if re.match(r"\s*\.\. ", line) and not re.match(r"\s*\.\. (note|warning)::", line):
            directive_indent = indent
            continue
        if line.strip():
            paragraph.append(line)
        elif paragraph:
            yield paragraph
            paragraph = []


def _joined(paragraph: list[str]) -> str:
    """Join lines of one indentation; a new indentation (a parameter's description) or a bullet begins a new line."""
    groups: list[str] = []
    last_indent = -1
    for line in paragraph:
        text = re.sub(r"^\.\. (\w+)::\s*", "", line.strip())
        indent = len(line) - len(line.lstrip())
        bullet = _BULLET.match(text)
        if groups and indent == last_indent and not bullet and " : " not in text[:60]:
            groups[-1] = f"{groups[-1]} {text}".strip()
        else:
            groups.append(text)
        last_indent = indent + len(bullet.group()) if bullet else indent
    return re.sub(r"``", "`", re.sub(r"[ \t]+", " ", "\n".join(g for g in groups if g)))


def _is_english(paragraph: list[str], text: str) -> bool:
    if any(_NO_PROSE_LINE.search(line) for line in paragraph if not re.match(r"\s*\.\. \w+::", line)):
        return False
    words = _WORD.findall(text)
    return len(words) >= 4 and sum(map(len, words)) >= 0.6 * len(re.sub(r"\s", "", text))


def write_held_out() -> None:
    """Choose the held-out splits from the installed packages and write the shipped files anew."""
    for split, documents in choose_held_out(installed_documents(), HELD_OUT).items():
        rows = (json.dumps({"id": d.id, "text": d.text}, ensure_ascii=False) for d in documents)
        (DATA / f"docstrings-{split}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_held_out()

"""Which of pare's own source a module reaches, from syntax trees alone: what a version must answer for.

All imports are followed, in functions too; those for a type checker alone are not. A module that is named in a string, as for
`python -m` or a lookup by name, counts as imported; of a package named so all that lies right in it, and of a name with a gap,
`f"compress.engines.{format}"`, every module that fits, except that engines are only those of the formats asked for. Importing a
module runs the packages above it: they count too.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

PACKAGES = ("compress", "evaluation")
ENGINES = "compress.engines"
GAP = "{}"  # stands for what an f-string fills in
NAME = re.compile(rf"({'|'.join(PACKAGES)})(\.(\w+|{re.escape(GAP)}))+")


@dataclass(frozen=True)
class Module:
    """What counts of a file: a hash of what runs, and the dotted names that it imports or spells."""

    digest: str
    names: frozenset[str]


@dataclass(frozen=True)
class Sources:
    """The modules on disk below a checkout's root."""

    root: Path

    @cached_property
    def files(self) -> Mapping[str, Path]:
        """Each module's file, by its dotted name; a package's is its `__init__.py`."""
        found = (file for package in PACKAGES for file in sorted((self.root / package).rglob("*.py")))
        return {_dotted(file.relative_to(self.root)): file for file in found}

    @cached_property
    def modules(self) -> dict[str, Module]:
        """What counts of each file."""
        return {name: read(file.read_text(encoding="utf-8"), self._home(name)) for name, file in self.files.items()}

    @cached_property
    def engines(self) -> frozenset[str]:
        """All names that stand right below the engines' package, formats among them."""
        below = (name.removeprefix(f"{ENGINES}.") for name in self.files if name.startswith(f"{ENGINES}."))
        return frozenset(name.split(".")[0] for name in below)

    def engine(self, format: str) -> tuple[str, ...]:
        """The module that is an engine, or all of its package; none, where no engine is called so."""
        home = f"{ENGINES}.{format}"
        return tuple(n for n in self.files if n == home or n.startswith(f"{home}."))

    def imported(self, module: str, formats: Collection[str]) -> Iterator[str]:
        """The modules on disk that one module names."""
        for name in self.modules[module].names:
            yield from self._fitting(name, formats) if GAP in name else self._on_disk(name)

    def reached(self, roots: Iterable[str], formats: Collection[str], stop: Collection[str] = ()) -> frozenset[str]:
        """The roots, all that they import and what that imports; at a module of `stop` that is no root it ends.

        Args:
            formats: whose engines count where one is imported by the name of a format.
        """
        asked = frozenset(roots)
        found: set[str] = set()
        waiting = [each for root in asked for each in self._on_disk(root)]
        while waiting:
            name = waiting.pop()
            if name in found or (name in stop and name not in asked):
                continue
            found.add(name)
            waiting += self.imported(name, formats)
        return frozenset(found)

    def stopped_at(self, reach: Collection[str], formats: Collection[str]) -> frozenset[str]:
        """What the modules of a reach import and do not count."""
        return frozenset(n for module in reach for n in self.imported(module, formats)) - frozenset(reach)

    def fingerprint(self, reach: Iterable[str]) -> str:
        """A hash of what runs of these modules."""
        digests = [[name, self.modules[name].digest] for name in sorted(reach)]
        return hashlib.sha256(json.dumps(digests).encode()).hexdigest()[:16]

    def _on_disk(self, name: str) -> Iterator[str]:
        """A module and the packages above it; of a name within a module, the module."""
        parts = name.split(".")
        above = (".".join(parts[:end]) for end in range(1, len(parts) + 1))
        yield from (each for each in above if each in self.files)

    def _fitting(self, name: str, formats: Collection[str]) -> Iterator[str]:
        pattern = re.compile(re.escape(name).replace(re.escape(GAP), r"(\w+)"))
        for module in self.files:
            if (match := pattern.fullmatch(module)) and (not name.startswith(f"{ENGINES}.") or match[1] in formats):
                yield from self._on_disk(module)

    def _home(self, module: str) -> str:
        """The package that a module's relative imports start at."""
        return module if self.files[module].name == "__init__.py" else module.rpartition(".")[0]


@cache
def read(source: str, home: str) -> Module:
    """One file; checkouts that differ in little share most of the work."""
    tree = what_runs(source)
    return Module(hashlib.sha256(ast.dump(tree).encode()).hexdigest(), frozenset(named(tree, home)))


def named(tree: ast.Module, home: str) -> Iterator[str]:
    """Dotted names that a tree imports or spells in strings; `home` is the package that relative imports start at."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = home.split(".")[: len(home.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{source}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant | ast.JoinedStr) and NAME.fullmatch(text := _spelt(node, home)):
            yield from (text, f"{text}.{GAP}")


def what_runs(source: str) -> ast.Module:
    """The syntax tree without docstrings and without `if TYPE_CHECKING:`; comments and layout are in no tree."""
    tree = _Bare().visit(ast.parse(source))
    assert isinstance(tree, ast.Module)
    return tree


class _Bare(ast.NodeTransformer):
    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        lone = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if lone else self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST | None:
        checked = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        return None if checked and not node.orelse else self.generic_visit(node)


def _spelt(node: ast.expr, home: str) -> str:
    """The text of a string, with gaps where it is filled in by more than the package's own name; of another constant, none."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(_spelt(part, home) for part in node.values)
    filled = node.value if isinstance(node, ast.FormattedValue) else node
    return home if isinstance(filled, ast.Name) and filled.id in ("__name__", "__package__") else GAP


def _dotted(file: Path) -> str:
    parts = file.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

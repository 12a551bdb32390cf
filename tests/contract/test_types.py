"""Parameters say what they take: `Any` is for the few that no type can say, and for no more than 3% of them."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

import compress

ROOT = Path(compress.__file__).parent.parent
PACKAGES = ("compress", "evaluation")
MOST = 0.03
FEWEST = 1000  # parameters that there are at least: else the walk has missed some
SHOWN = 10
VAGUE = [
    *("Any", "typing.Any", "Any | None", "None | Any", "Optional[Any]", "Union[int, Any]", "Annotated[Any, 1]"),
    *("Loose", "Looser", "Quoted", "Renamed", "module.Loose"),
]
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Parameter:
    """One parameter of a function or method, where it stands, and its annotation as text; "" where it has none."""

    place: str
    name: str
    annotation: str


def parameters(tree: ast.AST, file: str = "") -> Iterator[Parameter]:
    """Those of every function and method, inner ones too: `*args` and `**kwargs` count, what a method is bound to does not."""
    bound = {id(f) for c in ast.walk(tree) if isinstance(c, ast.ClassDef) for f in c.body if _is_bound(f)}
    for function in ast.walk(tree):
        if isinstance(function, Function):
            given = function.args
            plain = [*given.posonlyargs, *given.args][1 if id(function) in bound else 0 :]
            for one in (*plain, *given.kwonlyargs, *filter(None, (given.vararg, given.kwarg))):
                yield Parameter(f"{file}:{one.lineno} {function.name}", one.arg, _spelt(one.annotation))


def _is_bound(node: ast.stmt) -> bool:
    decorators = node.decorator_list if isinstance(node, Function) else []
    return isinstance(node, Function) and not any(ast.unparse(d) == "staticmethod" for d in decorators)


def _spelt(annotation: ast.expr | None) -> str:
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        return annotation.value
    return "" if annotation is None else ast.unparse(annotation)


def aliases(tree: ast.Module) -> dict[str, str]:
    """What a module calls a type, and what it means: `X = Any`, `X: TypeAlias = …`, `import Any as X`."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = ast.unparse(node.value)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            if "TypeAlias" in ast.unparse(node.annotation):
                found[node.target.id] = _spelt(node.value)
        elif isinstance(node, ast.ImportFrom):
            found |= {one.asname: one.name for one in node.names if one.asname}
    return found


def takes_anything(annotation: str, known: Mapping[str, str]) -> bool:
    """Whether a type is `Any`, or a union with it, by whatever name. `dict[str, Any]` says something."""
    seen: set[str] = set()
    waiting = [annotation]
    while waiting:
        text = waiting.pop()
        if text in seen or not text:
            continue
        seen.add(text)
        if text.rpartition(".")[2] == "Any":
            return True
        waiting += _alternatives(ast.parse(text, mode="eval").body)
        waiting += [known[name] for name in (text, text.rpartition(".")[2]) if name in known]
    return False


def _alternatives(node: ast.expr) -> list[str]:
    """What a union, an optional or an annotated type is made of; nothing, of any other."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return [_spelt(node.left), _spelt(node.right)]
    if isinstance(node, ast.Subscript) and ast.unparse(node.value).rpartition(".")[2] in ("Union", "Optional"):
        return [_spelt(one) for one in (node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice])]
    if isinstance(node, ast.Subscript) and ast.unparse(node.value).rpartition(".")[2] == "Annotated":
        return [_spelt(node.slice.elts[0])] if isinstance(node.slice, ast.Tuple) else []
    return []


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.Module]:
    files = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]
    return {str(file.relative_to(ROOT)): ast.parse(file.read_text(encoding="utf-8")) for file in files}


@pytest.fixture(scope="module")
def known(trees: Mapping[str, ast.Module]) -> dict[str, str]:
    """All aliases of the project; one that means `Any` anywhere counts as such everywhere."""
    found: dict[str, str] = {}
    for tree in trees.values():
        for name, meant in aliases(tree).items():
            if name not in found or takes_anything(meant, {}):
                found[name] = meant
    return found


def test_few_parameters_are_any(trees: Mapping[str, ast.Module], known: Mapping[str, str]) -> None:
    given = [(file, one) for file, tree in trees.items() for one in parameters(tree, file) if one.annotation]
    vague = [(file, one) for file, one in given if takes_anything(one.annotation, known)]
    assert len(given) > FEWEST
    worst = Counter(file for file, _ in vague).most_common(SHOWN)
    lines = [f"  {count:3} {file}: {', '.join(one.name for f, one in vague if f == file)}" for file, count in worst]
    reported = f"{len(vague)} of {len(given)} parameters are Any, {len(vague) / len(given):.1%}; the most are in\n"
    assert len(vague) <= MOST * len(given), reported + "\n".join(lines)


def test_every_parameter_has_a_type(trees: Mapping[str, ast.Module]) -> None:
    found = [one for file, tree in trees.items() for one in parameters(tree, file)]
    assert not [f"{one.place}: {one.name}" for one in found if not one.annotation]


def test_what_is_bound_does_not_count_and_all_else_does() -> None:
    tree = ast.parse(
        "class C:\n"
        "    def bound(self, a: int, /, b, *c: str, d: 'Any', **e: Any): ...\n"
        "    @classmethod\n    def made(cls, f): ...\n"
        "    @staticmethod\n    def free(g): ...\n"
        "async def outer(h):\n    def inner(i: float): ...\n"
    )
    found = {one.name: one.annotation for one in parameters(tree)}
    assert found == dict(zip("abcdefghi", ("int", "", "str", "Any", "Any", "", "", "", "float"), strict=True))


@pytest.mark.parametrize("annotation", VAGUE)
def test_any_is_seen_through_unions_and_names(annotation: str) -> None:
    written = (
        "Loose = Any\nLooser: TypeAlias = Loose | None\nQuoted: TypeAlias = 'Loose'\nfrom typing import Any as Renamed"
    )
    assert takes_anything(annotation, aliases(ast.parse(written)))


@pytest.mark.parametrize(
    "annotation",
    ["object", "int | None", "dict[str, Any]", "Callable[..., Any]", "Call", "Circular", "Annotated[int, Any]"],
)
def test_types_that_say_something_do_not_count(annotation: str) -> None:
    assert not takes_anything(annotation, aliases(ast.parse("Call = dict[str, Any]\nCircular = Circular | None")))


@pytest.mark.parametrize("file", ["compress/catalogue.py", "compress/opening/__init__.py"])
def test_what_is_found_or_opened_has_a_type(trees: Mapping[str, ast.Module], file: str) -> None:
    functions = [node for node in trees[file].body if isinstance(node, Function)]
    found = {f.name: _spelt(f.returns) for f in functions if f.name.startswith(("find_", "open_"))}
    assert len(found) >= 4
    assert not {name: returns for name, returns in found.items() if not returns or "Any" in returns}

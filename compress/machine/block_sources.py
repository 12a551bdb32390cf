"""Where the blocks of a decoder of transformers lie, and whether each feeds the next one and nothing else, read from the source of its
class: no import.

A block may only go if the others would do the same without it. So whatever is not seen to be plain is refused: blocks that reckon with
their own number or with how many there are, that hand on more than the stream, or that others listen to.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from compress.machine.library_classes import model_sources

NUMBER = frozenset(("layer_idx", "layer_id", "layer_index", "layer_number"))  # what classes call a block's own
COUNT = "num_hidden_layers"  # what all configs of transformers call their number, whatever the field's name
CACHES = ("past", "cache")  # in names of what holds one entry a block, and is filled anew
HARMLESS = frozenset(("config", "training", "gradient_checkpointing"))  # of a model, while its blocks run
OTHERS = frozenset(
    ("linear_attention", "conv", "mamba", "recurrent", "hybrid")
)  # kinds of blocks that are no attention
INITIAL = ("_init_weights", "init_weights")  # where a weight's first value is drawn


@dataclass(frozen=True)
class Blocks:
    """The list of a model's blocks: its path, what configs call their number, the likeliest first, and the fields with one value each."""

    path: str
    fields: tuple[str, ...]
    lists: tuple[str, ...]


class _OddError(Exception):
    """What is not plain about a class's blocks, as the end of a sentence."""


@cache
def blocks_of(kind: str, model_type: str) -> Blocks | str:
    """The blocks of a class, or why it is not known that one of them could go, as the end of a sentence that begins with the class.

    Args:
        kind: of a decoder.
        model_type: what its config says.
    """
    modeling, configuration = model_sources(kind, model_type)
    if not modeling:
        return "is no class of the transformers installed here"
    classes = {node.name: node for node in ast.parse(modeling).body if isinstance(node, ast.ClassDef)}
    known = _Config.of(configuration, model_type)
    try:
        path, owner, made = _only_list(classes, kind)
        count = _count_of_alike(made, classes)
        lists = {*_lists_in_loop(owner, path.rpartition(".")[2]), *_lists_by_number(classes.values())}
        _count_is_no_factor(classes.values(), count)
        _all_attend(classes.values())
        if unsaid := sorted(lists - known.fields):
            raise _OddError(f"works out {unsaid[0]} from its blocks' numbers, and its config has no field to list them")
    except _OddError as odd:
        return str(odd)
    if COUNT not in (names := known.names_of(count)):
        return f"counts its blocks by a field that is not its own ({count})"
    return Blocks(path, names, tuple(sorted(lists)))


@dataclass(frozen=True)
class _Config:
    """The fields that a config class declares, and other names that it takes for them."""

    fields: frozenset[str]
    aliases: Mapping[str, str]

    @classmethod
    def of(cls, source: str, model_type: str) -> _Config:
        for node in ast.parse(source).body:
            if isinstance(node, ast.ClassDef) and _assigned(node, "model_type") == model_type:
                fields = (
                    n.target.id for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
                )
                aliases = _assigned(node, "attribute_map")
                return cls(frozenset(fields), aliases if isinstance(aliases, dict) else {})
        return cls(frozenset(), {})

    def names_of(self, field: str) -> tuple[str, ...]:
        real = self.aliases.get(field, field)
        return tuple(dict.fromkeys((real, field, *(a for a, of in self.aliases.items() if of == real))))


def _assigned(made: ast.ClassDef, name: str) -> object:
    """The constant that a class body gives a name; None where it gives none."""
    for node in made.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=target)], value=value) if target == name:
                return ast.literal_eval(value)
            case _:
                pass
    return None


# ---------------------------------------------------------------- where they are made


def _only_list(classes: Mapping[str, ast.ClassDef], kind: str) -> tuple[str, ast.ClassDef, ast.Call]:
    """The path of the one list of modules that a class makes, by itself or in the modules it is made of; the class that does; and how."""
    found = list(_lists(classes, kind, "", frozenset()))
    if len(found) != 1:
        raise _OddError(
            f"has {len(found) or 'no'} list{'s' * (len(found) != 1)} of modules, where one of blocks is looked for"
        )
    return found[0]


def _lists(
    classes: Mapping[str, ast.ClassDef], kind: str, front: str, above: frozenset[str]
) -> Iterator[tuple[str, ast.ClassDef, ast.Call]]:
    init = _method(classes[kind], "__init__") if kind in classes and kind not in above else None
    for node in ast.walk(init) if init else ():
        match node:
            case ast.Assign(targets=[ast.Attribute(value=ast.Name(id="self"), attr=name)], value=ast.Call() as made):
                if _called(made) == "ModuleList":
                    yield front + name, classes[kind], made
                else:
                    yield from _lists(classes, _called(made), f"{front}{name}.", above | {kind})
            case _:
                pass


def _count_of_alike(made: ast.Call, classes: Mapping[str, ast.ClassDef]) -> str:
    """The field of the config that counts blocks that are all made by one call."""
    match made.args:
        case [
            ast.ListComp(
                elt=ast.Call(func=ast.Name(id=block)) as one,
                generators=[
                    ast.comprehension(
                        target=ast.Name(id=number),
                        iter=ast.Call(func=ast.Name(id="range"), args=[ast.Attribute(attr=count)]),
                        ifs=[],
                    )
                ],
            )
        ] if block in classes:
            given = [*one.args, *(keyword.value for keyword in one.keywords)]
            inside = (n for part in given if not isinstance(part, ast.Name) for n in ast.walk(part))
            if any(isinstance(n, ast.Name) and n.id == number for n in inside):
                raise _OddError("makes its blocks by their numbers")
            return count
        case _:
            raise _OddError("makes its blocks one by one, and not all alike")


# ---------------------------------------------------------------- how they run


def _lists_in_loop(owner: ast.ClassDef, name: str) -> set[str]:
    """The fields that list what the model gives each of its blocks, of a model that runs them one behind the other."""
    forward = _method(owner, "forward")
    uses = [n for part in owner.body if part is not _method(owner, "__init__") for n in _uses_of(part, name)]
    loops = [n for n in ast.walk(forward) if isinstance(n, ast.For) and list(_uses_of(n.iter, name))] if forward else []
    if len(loops) != 1 or len(uses) != 1 or forward is None:
        raise _OddError("does not run its blocks in one loop")
    number, block = _loop_names(loops[0])
    stream, handed = _chained(loops[0], block)
    for node in ast.walk(ast.Module(loops[0].body, [])):
        match node:
            case ast.Attribute(value=ast.Name(id="self"), attr=attr) if attr not in HARMLESS:
                raise _OddError(f"does more between its blocks than run them (self.{attr})")
            case _:
                pass
    later = [n for n in ast.walk(forward) if isinstance(n, ast.Call) and n.lineno > (loops[0].end_lineno or 0)]
    for call in later:
        if _is_own(call.func) and _loaded(call) & handed - {stream}:
            raise _OddError("listens to single blocks")
    return _indexed([loops[0]], {number}) if number else set()


def _loop_names(loop: ast.For) -> tuple[str, str]:
    """What a loop calls the number of a block, or "", and the block."""
    match loop.target, loop.iter:
        case ast.Name(id=block), ast.Attribute() | ast.Subscript():
            return "", block
        case ast.Tuple(elts=[ast.Name(id=number), ast.Name(id=block)]), ast.Call(func=ast.Name(id="enumerate")):
            return number, block
        case _:
            raise _OddError("runs something beside each of its blocks")


def _chained(loop: ast.For, block: str) -> tuple[str, set[str]]:
    """What a loop calls the stream that each block is given and gives back; and all names that it sets."""
    calls = [
        n for n in ast.walk(loop) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id == block
    ]
    at = next((i for i, part in enumerate(loop.body) if len(calls) == 1 and calls[0] in ast.walk(part)), None)
    if at is None:
        raise _OddError("does not call each of its blocks once")
    call, ran = calls[0], loop.body[at]
    for node in ast.walk(loop.iter):
        match node:
            case ast.Subscript(slice=ast.Slice(lower=None, step=None)):
                pass
            case ast.Subscript():
                raise _OddError("runs some of its blocks alone")
            case _:
                pass
    named = next((keyword.value for keyword in call.keywords if keyword.arg == "hidden_states"), None)
    first = call.args[0] if call.args else named
    if not isinstance(first, ast.Name) or any(first.id in _stored(part) for part in loop.body[:at]):
        raise _OddError("gives its blocks something else than the stream of the one before")
    if not (
        isinstance(ran, ast.Assign) and ran.value is call and _gives_back(ran.targets[0], first.id, loop.body[at + 1 :])
    ):
        raise _OddError("does more with what a block gives than give it to the next")
    before, after = (set().union(*map(_stored, parts), set()) for parts in (loop.body[:at], loop.body[at:]))
    given = _loaded(call) - {first.id, block}
    depends = set().union(*(_loaded(part) for part in loop.body[:at] if _stored(part) & given), set())
    if (given | depends) & (after - {first.id}) or (depends & {first.id}):
        raise _OddError("hands more from block to block than the stream")
    return first.id, before | after


def _gives_back(target: ast.expr, stream: str, rest: Iterable[ast.stmt]) -> bool:
    """Whether a block's output, or the first part of it, becomes the stream, which nothing else touches."""
    rest = list(rest)
    match target:
        case ast.Name(id=name) | ast.Tuple(elts=[ast.Name(id=name), *_]) if name == stream:
            return all(stream not in _stored(part) for part in rest)
        case ast.Name(id=name):
            setting = [part for part in rest if stream in _stored(part)]
            match setting:
                case [
                    ast.Assign(
                        targets=[ast.Name()],
                        value=ast.Subscript(value=ast.Name(id=output), slice=ast.Constant(value=0)),
                    )
                ]:
                    return output == name
                case _:
                    return False
        case _:
            return False


# ---------------------------------------------------------------- what depends on numbers


def _lists_by_number(classes: Iterable[ast.ClassDef]) -> set[str]:
    """The fields that blocks read their own entry of."""
    return _indexed(classes, NUMBER)


def _indexed(roots: Iterable[ast.AST], numbers: Iterable[str]) -> set[str]:
    """The fields of the config that are read at a block's number, of code that does nothing else with it but hand it on."""
    wanted, found = set(numbers), set[str]()
    for root in roots:
        parents = {child: parent for parent in ast.walk(root) for child in ast.iter_child_nodes(parent)}
        for node in ast.walk(root):
            if _is_number(node, wanted) and isinstance(getattr(node, "ctx", None), ast.Load):
                found |= _read_at(node, parents, wanted)
    return found


def _is_number(node: ast.AST, wanted: set[str]) -> bool:
    match node:
        case ast.Name(id=name):
            return name in wanted
        case ast.Attribute(value=ast.Name(id="self"), attr=name):
            return name in wanted
        case _:
            return False


def _read_at(node: ast.AST, parents: Mapping[ast.AST, ast.AST], wanted: set[str]) -> set[str]:
    """The field that a block's number is looked up in; none where it is only handed on."""
    match parents[node]:
        case ast.Subscript(value=ast.Attribute(value=config, attr=field), slice=index) if index is node and _is_config(
            config
        ):
            return {field}
        case ast.Subscript(value=value, slice=index) if index is node and any(w in ast.unparse(value) for w in CACHES):
            return set()
        case ast.Compare(ops=[ast.Is() | ast.IsNot()], comparators=[ast.Constant(value=None)]) | ast.FormattedValue():
            return set()
        case ast.Assign(targets=[target]) if (
            not isinstance(target, ast.Tuple) and ast.unparse(target).removeprefix("self.") in wanted
        ):
            return set()
        case ast.keyword() as keyword:
            return _handed(parents[keyword])
        case ast.Call() as call:
            return _handed(call)
        case _:
            raise _OddError("has blocks that reckon with their own number")


def _handed(call: ast.AST) -> set[str]:
    """Nothing: of a number that goes to another module, as it is made, or to the cache."""
    if isinstance(call, ast.Call):
        name = ast.unparse(call.func)
        if name.endswith("__init__") or name[:1].isupper() or any(word in name for word in CACHES):
            return set()
    raise _OddError("has blocks that reckon with their own number")


def _count_is_no_factor(classes: Iterable[ast.ClassDef], count: str) -> None:
    """Raises where more than the number of blocks depends on the number of blocks, but for the weights that training begins with."""
    for made in classes:
        for part in made.body:
            if isinstance(part, ast.FunctionDef) and part.name in INITIAL:
                continue
            parents = {child: parent for parent in ast.walk(part) for child in ast.iter_child_nodes(parent)}
            for node in ast.walk(part):
                if not isinstance(node, ast.Attribute) or node.attr not in (count, COUNT):
                    continue
                if isinstance(node.ctx, ast.Load) and not _counts_alone(parents[node]):
                    raise _OddError(f"reckons with how many blocks it has ({count})")


def _counts_alone(parent: ast.AST) -> bool:
    """Whether what a number of blocks is read for is to make or to run so many, or to keep it under a name."""
    return isinstance(parent, ast.Slice | ast.Assign) or (isinstance(parent, ast.Call) and _called(parent) == "range")


def _all_attend(classes: Iterable[ast.ClassDef]) -> None:
    """Raises where some blocks are of a kind whose memory is no cache of keys: whether a model does without its last of one kind is not
    known."""
    words = {
        n.value for made in classes for n in ast.walk(made) if isinstance(n, ast.Constant) and isinstance(n.value, str)
    }
    if others := sorted(words & OTHERS):
        raise _OddError(f"mixes attention with blocks of another kind ({others[0]})")


# ---------------------------------------------------------------- reading


def _method(made: ast.ClassDef, name: str) -> ast.FunctionDef | None:
    return next((n for n in made.body if isinstance(n, ast.FunctionDef) and n.name == name), None)


def _called(call: ast.Call) -> str:
    """The last word of what is called."""
    return ast.unparse(call.func).rpartition(".")[2]


def _uses_of(root: ast.AST, name: str) -> Iterator[ast.AST]:
    """Where `self.name` is read, but for how long it is."""
    counted = {id(n.args[0]) for n in ast.walk(root) if isinstance(n, ast.Call) and _called(n) == "len" and n.args}
    for node in ast.walk(root):
        match node:
            case ast.Attribute(value=ast.Name(id="self"), attr=attr) if attr == name and id(node) not in counted:
                yield node
            case _:
                pass


def _is_config(node: ast.expr) -> bool:
    return ast.unparse(node) in ("config", "self.config")


def _is_own(node: ast.expr) -> bool:
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"


def _loaded(root: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(root) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}


def _stored(root: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(root) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}

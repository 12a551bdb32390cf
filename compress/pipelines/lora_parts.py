"""Which components of a pipeline its class loads adapters into, read from diffusers' source."""

from __future__ import annotations

import ast
from functools import cache

from compress.machine.library_classes import source_of

MIXIN = "LoraLoaderMixin"
PARTS = "_lora_loadable_modules"


@cache
def lora_parts(kind: str) -> frozenset[str]:
    """Names of components, as a pipeline's class or one it inherits from lists them; none where `load_lora_weights` is not among its methods."""
    own = _class(source_of(kind, "pipelines") if kind else "", kind)
    for base in own.bases if own else ():
        name = base.id if isinstance(base, ast.Name) else ""
        if name.endswith(MIXIN):
            return _listed(_class(source_of(name, "loaders"), name))
        if name.endswith("Pipeline") and (found := lora_parts(name)):
            return found
    return frozenset()


def _class(text: str, name: str) -> ast.ClassDef | None:
    tree = ast.parse(text) if text else ast.Module([], [])
    return next((one for one in tree.body if isinstance(one, ast.ClassDef) and one.name == name), None)


def _listed(mixin: ast.ClassDef | None) -> frozenset[str]:
    for one in mixin.body if mixin else ():
        if isinstance(one, ast.Assign) and any(isinstance(t, ast.Name) and t.id == PARTS for t in one.targets):
            return frozenset(map(str, ast.literal_eval(one.value)))
    return frozenset()

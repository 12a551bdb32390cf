"""A library that most of pare names and that few verbs work with is loaded at its first use, where a verb asks for that."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from types import ModuleType
from typing import Any


class Deferred(ModuleType):
    """A library in its place among the modules, empty until something of it is asked for. Python's own LazyLoader does not do: the
    second `import` of the library would load it."""

    def __getattr__(self, name: str) -> Any:
        spec = self.__spec__
        self.__class__ = ModuleType  # type: ignore[assignment]
        if spec is None or spec.loader is None:
            raise AttributeError(name)
        self.__path__ = spec.submodule_search_locations or []
        spec.loader.exec_module(self)
        return getattr(self, name)


def deferred(library: str) -> None:
    """Load a library when something of it is asked for, and not where it is imported. For verbs that run nothing: the first use
    must not come from two threads at once.

    Only `import LIBRARY` waits: what a module imports from within it, as `numpy.typing`, loads it.
    """
    spec = None if library in sys.modules else find_spec(library)
    if spec is not None:
        sys.modules[library] = module = Deferred(library)
        module.__spec__, module.__loader__ = spec, spec.loader
        module.__package__, module.__file__ = spec.parent, spec.origin

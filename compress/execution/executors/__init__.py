"""Who runs the stages of a plan: `compress/execution/executors/local.py` **is** the executor `local`. Nobody edits a list.

An executor is a module with a function `run`. Stages that run elsewhere travel as `NodeRef`, which `compress.execution.execute.run_node`
runs in any process that sees the same cache and the same files.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import TYPE_CHECKING, Protocol, cast

from compress.errors import UserError, near

if TYPE_CHECKING:
    from compress.events import Emit
    from compress.execution.execute import Done
    from compress.planning.plan import Plan
    from compress.store.cache import Cache

LOCAL = "local"


class Executor(Protocol):
    """Runs a plan."""

    def run(self, plan: Plan, store: Cache, emit: Emit) -> tuple[Done, ...]:
        """Run every stage of a plan after those that it needs; what is in the cache is taken from there.

        Returns:
            What each stage left, in the order of the plan; all of it lies in the cache.

        Raises:
            StageFailed: a stage raised, or its artifact broke the contract; what finished before stays cached.
        """
        ...


@cache
def executor_names() -> tuple[str, ...]:
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def find_executor(name: str) -> Executor:
    """The executor called `name`.

    Raises:
        UserError: there is none; the fix names the near matches.
    """
    if name not in executor_names():
        raise UserError(f"no executor is called `{name}`", fix=near(name, executor_names()))
    module = importlib.import_module(f"{__name__}.{name}")
    if not callable(getattr(module, "run", None)):
        raise TypeError(f"compress/execution/executors/{name}.py has no function `run`")
    return cast("Executor", module)

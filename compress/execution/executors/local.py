"""One stage after the other, in this process; one other process reopens what each left."""

from __future__ import annotations

from compress.events import Emit
from compress.execution.execute import Done, execute
from compress.planning.plan import Plan
from compress.store.cache import Cache


def run(plan: Plan, store: Cache, emit: Emit) -> tuple[Done, ...]:
    """Run what is not cached, in the order of the plan."""
    return execute(plan, store, emit)

"""Whether a module is still what its graphs were taken of, reported in some microseconds a call.

A graph reads weights where they lay, and runs no hook again. Hooks, exchanged parts and moved weights must be seen, and asking each of
some thousand parts in Python would take longer than the graph saves.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.modules import module as registering


class Registrations:
    """How often any module of this process got a part, a weight or a buffer since somebody began to count."""

    def __init__(self) -> None:
        self.count = 0
        self._counting = False

    def begin(self) -> None:
        if not self._counting:
            self._counting = True
            registering.register_module_module_registration_hook(self._counted)
            registering.register_module_parameter_registration_hook(self._counted)
            registering.register_module_buffer_registration_hook(self._counted)

    def _counted(self, module: torch.nn.Module, name: str, value: object) -> None:
        self.count += 1


REGISTRATIONS = Registrations()


class Unchanged:
    """A module's parts, hooks and weights as they were when it was last looked at. Mutable: `changes` looks again.

    hooked: whether hooks hang on its parts, or their calls are replaced: only an eager call runs these. Hooks on the module itself
        run around any call of its `forward`.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        REGISTRATIONS.begin()
        self.module = module
        self.hooked = False
        self._seen: tuple[Any, ...] = ()  # nothing yet: the first call looks

    def changes(self) -> bool:
        """Whether parts were exchanged or weights moved since the last look, so that graphs are no longer of this module."""
        if self._seen and self._fleeting() == self._seen:
            return False
        before = (self._parts, self._places) if self._seen else None
        self._look()
        return before is not None and before != (self._parts, self._places)

    def _look(self) -> None:
        modules = list(self.module.modules())
        self._parts = tuple(map(id, modules))
        self._hooks = [held for one in modules[1:] for held in (one._forward_hooks, one._forward_pre_hooks)]
        self._attributes = [vars(one) for one in modules]
        self._weights = [one for one in (*self.module.parameters(), *self.module.buffers()) if _has_place(one)]
        self.hooked = any(self._hooks) or any(map(_replaced, self._attributes[1:]))
        self._seen = self._fleeting()
        self._places = self._seen[-1]

    def _fleeting(self) -> tuple[Any, ...]:
        """What tells that a look is due: loops in C alone."""
        places = tuple(map(torch.Tensor.data_ptr, self._weights))
        return REGISTRATIONS.count, any(self._hooks), sum(map(len, self._attributes)), places


def _replaced(attributes: dict[str, Any]) -> bool:
    """Whether a library moves, caches or casts around a part's call: accelerate and diffusers put another `forward` in its place."""
    registry = attributes.get("_diffusers_hook")  # FLUX's call leaves an empty one
    return "forward" in attributes or "_hf_hook" in attributes or bool(registry is not None and registry.hooks)


def _has_place(tensor: torch.Tensor) -> bool:
    """Whether a tensor's numbers lie in one place: packed ones are made of several."""
    try:
        return tensor.data_ptr() != 0
    except RuntimeError:
        return False

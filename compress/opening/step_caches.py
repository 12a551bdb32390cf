"""Parts of a denoiser that are passed over at some steps of a generating, hooked into its modules.

A transformer's blocks are called as ever; at a step that reuses, the first one gives what its blocks are taken to give, and all others hand on
what they are given. So it goes for a UNet's inner levels. What blocks are given and give is read by diffusers' own table for its caches; its
hooks are not used, for their decisions are of a batch (an image would depend on those beside it), and one block that gives no text back, as the
last one of Stable Diffusion 3 does, is an error to them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from compress.engines.module import arguments_of
from compress.errors import UserError
from compress.model.step_caches import DEEP, FEWEST, Returned, returned_by, stacks_of
from compress.opening.denoising import At, Call, Counted
from compress.opening.reused import METHODS, Reusing, Streams

Key = object


@dataclass
class Pass:
    """One call of a denoiser while it runs. Mutable.

    passing: whether what follows is passed over. state: what the calls of this key leave each other.
    """

    at: At
    state: dict[str, Any]
    passing: bool = False
    passed: set[str] = field(default_factory=set)


class Passable:
    """What all caches do around a call: begin, keep states by key, count. `now` is the call that runs, None outside of one."""

    def __init__(self, counted: Counted) -> None:
        self.counted = counted
        self.now: Pass | None = None
        self._states: dict[Key, dict[str, Any]] = {}

    def begin(self) -> None:
        self._states.clear()

    def run(self, inner: Callable[..., Any], call: Call, at: At, key: Key) -> tuple[Any, frozenset[str]]:
        self.now = now = Pass(at, self._states.setdefault(key, {}))
        self.entered(now)
        try:
            return inner(**call), frozenset(now.passed)
        finally:
            self.now = None

    def entered(self, now: Pass) -> None:
        """A call begins."""

    def hook(self, name: str, module: torch.nn.Module, forward: Callable[..., Any]) -> None:
        """Let `forward(now, original, args, kwargs)` stand where a part's forward stood, while a call runs."""
        original = module.forward

        def call(*args: Any, **kwargs: Any) -> Any:
            now = self.now
            if now is None:
                return original(*args, **kwargs)
            before = len(now.passed)
            result = forward(now, original, args, kwargs)
            self._count(now, name, before)
            return result

        vars(module)["forward"] = call

    def _count(self, now: Pass, name: str, before: int) -> None:
        over = len(now.passed) > before
        self.counted.passed += over
        self.counted.parts += not over


class Blocks(Passable):
    """The blocks of a transformer, passed over as a method says."""

    def __init__(self, module: torch.nn.Module, reusing: Reusing, counted: Counted) -> None:
        super().__init__(counted)
        self.reusing = reusing
        blocks = blocks_of(module)
        for number, (name, block, returned) in enumerate(blocks):
            part = Block(name, block, returned)
            if number == 0:
                self.hook(name, block, part.of(self._first))
            elif number == len(blocks) - 1:
                self.hook(name, block, part.of(self._last))
            else:
                self.hook(name, block, part.of(self._between))

    def entered(self, now: Pass) -> None:
        self.reusing.begin(now.state)

    def _first(self, block: Block, now: Pass, original: Callable[..., Any], args: tuple[Any, ...], given: Call) -> Any:
        entered = block.streams(args, given)
        if (foretold := self.reusing.foretell(now.state, now.at, entered)) is not None:
            now.passing = True
            now.passed.add(block.name)
            return block.packed(foretold)
        out = original(*args, **given)
        if (rest := self.reusing.look(now.state, entered, block.unpacked(out))) is not None:
            now.passing = True
            return block.packed(rest)
        return out

    def _between(
        self, block: Block, now: Pass, original: Callable[..., Any], args: tuple[Any, ...], given: Call
    ) -> Any:
        if not now.passing:
            return original(*args, **given)
        now.passed.add(block.name)
        return block.packed(block.streams(args, given))

    def _last(self, block: Block, now: Pass, original: Callable[..., Any], args: tuple[Any, ...], given: Call) -> Any:
        if now.passing:
            return self._between(block, now, original, args, given)
        out = original(*args, **given)
        other = self.reusing.keep(now.state, now.at, block.unpacked(out))
        return out if other is None else block.packed(other)


@dataclass(frozen=True)
class Block:
    """A block of a transformer, and how it is called."""

    name: str
    module: torch.nn.Module
    returned: Returned

    def of(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *given: function(self, *given)

    @cached_property
    def _names(self) -> tuple[str, ...]:
        return arguments_of(type(self.module).forward)

    def streams(self, args: tuple[Any, ...], given: Call) -> Streams:
        """What it is given of the two streams."""
        named = {**dict(zip(self._names, args, strict=False)), **given}
        text = None if self.returned.text is None else named.get(self.returned.text_name)
        hidden = self.returned.hidden_name if self.returned.hidden_name in named else self._names[0]
        return Streams(named[hidden], text)

    def unpacked(self, out: Any) -> Streams:
        """What it gave of the two."""
        if not isinstance(out, tuple):
            return Streams(out, None)
        text = self.returned.text
        return Streams(out[self.returned.hidden], None if text is None else out[text])

    def packed(self, streams: Streams) -> Any:
        """The two as it gives them."""
        if self.returned.text is None:
            return streams.hidden
        found: list[torch.Tensor | None] = [None] * (max(self.returned.hidden, self.returned.text) + 1)
        found[self.returned.hidden], found[self.returned.text] = streams.hidden, streams.text
        return tuple(found)


class Levels(Passable):
    """The inner levels of a UNet, passed over at all but each `interval`-th step; the outermost `levels` run at each, on what came out of the
    inner ones last (Ma et al., "DeepCache", 2023)."""

    def __init__(self, unet: Any, interval: int, levels: int, counted: Counted) -> None:
        super().__init__(counted)
        self.interval = interval
        inner = len(unet.down_blocks) - levels
        if inner < 1:
            raise UserError(f"{type(unet).__name__} has no more than {levels} levels", fix="leave this stage out")
        for number, shrink in enumerate(unet.down_blocks[levels - 1].downsamplers or ()):
            name = f"down_blocks.{levels - 1}.downsamplers.{number}"
            self.hook(name, shrink, self._handing_on(name))
        for number in range(levels, levels + inner):
            self.hook(f"down_blocks.{number}", unet.down_blocks[number], self._down(f"down_blocks.{number}"))
        if unet.mid_block is not None:
            self.hook("mid_block", unet.mid_block, self._handing_on("mid_block"))
        for number in range(inner - 1):
            self.hook(f"up_blocks.{number}", unet.up_blocks[number], self._handing_on(f"up_blocks.{number}"))
        self.hook(f"up_blocks.{inner - 1}", unet.up_blocks[inner - 1], self._up(f"up_blocks.{inner - 1}"))

    def entered(self, now: Pass) -> None:
        now.passing = now.at.step % self.interval != 0 and "out" in now.state

    def _handing_on(self, name: str) -> Callable[..., Any]:
        def forward(now: Pass, original: Callable[..., Any], args: tuple[Any, ...], given: Call) -> Any:
            if not now.passing:
                return original(*args, **given)
            now.passed.add(name)
            return _hidden(args, given)

        return forward

    def _down(self, name: str) -> Callable[..., Any]:
        """Of a level on the way down: as many skip connections as it has, which the levels that are passed over take and look at no more."""

        def forward(now: Pass, original: Callable[..., Any], args: tuple[Any, ...], given: Call) -> Any:
            if now.passing:
                now.passed.add(name)
                return _hidden(args, given), (_hidden(args, given),) * now.state[name]
            out = original(*args, **given)
            now.state[name] = len(out[1])
            return out

        return forward

    def _up(self, name: str) -> Callable[..., Any]:
        """Of the last of the inner levels: what it gave stays. FreeU writes into what the next one is given, so both are copies."""

        def forward(now: Pass, original: Callable[..., Any], args: tuple[Any, ...], given: Call) -> Any:
            if now.passing:
                now.passed.add(name)
                return now.state["out"].clone()
            out = original(*args, **given)
            now.state["out"] = out.clone()
            return out

        return forward


def cached(module: torch.nn.Module, counted: Counted, params: Mapping[str, Any]) -> Passable:
    """Hook a cache into a denoiser.

    Args:
        params: of the setting, `method` among them.

    Raises:
        UserError: it has no parts that the method could pass over.
    """
    given = dict(params)
    method = given.pop("method")
    if method == DEEP:
        if not hasattr(module, "up_blocks"):
            raise UserError(f"{type(module).__name__} has no levels", fix="leave this stage out")
        return Levels(module, **given, counted=counted)
    return Blocks(module, METHODS[method](**given), counted)


def blocks_of(module: torch.nn.Module) -> list[tuple[str, torch.nn.Module, Returned]]:
    """A transformer's blocks in the order in which they run, by name, each with what it gives back.

    Raises:
        UserError: they are not known, or fewer than two.
    """
    kind = type(module).__name__
    stacks = stacks_of(kind)
    if isinstance(stacks, str):
        raise UserError(stacks, fix="leave this stage out")
    known = returned_by()
    found = [
        (f"{name}.{number}", block, known[type(block).__name__])
        for name in stacks
        for number, block in enumerate(module.get_submodule(name).children())
    ]
    if len(found) < FEWEST:
        raise UserError(f"{kind} has fewer than {FEWEST} blocks", fix="leave this stage out")
    return found


def _hidden(args: tuple[Any, ...], given: Call) -> Any:
    return args[0] if args else given["hidden_states"]

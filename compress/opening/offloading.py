"""Weights that wait in the processor's memory and go to the device for their turn: of pipelines as diffusers moves them, of language models
block by block.

accelerate's own hooks of a language model empty the GPU's cache at each weight; diffusers' would send a tied embedding away before the head reads
it, and let `generate` take the processor for the model's device. So a decoder's blocks are moved here, as diffusers moves a denoiser's: from
pinned memory, on a stream of its own, the next while this one computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from compress.algorithms.tensors import device_of
from compress.artifact import LANGUAGE_MODEL, Setting
from compress.engines.torch.runtime import silent_libraries
from compress.errors import UserError

if TYPE_CHECKING:
    from compress.opening.models import OpenModel

FEWEST = 2  # blocks that take turns
MOVED = "pare_moved"  # the attribute that says how many of a model's blocks take turns, in words
STREAMED = ("cuda",)  # kinds of devices that copy beside their work, on a stream of its own


def offload(opened: OpenModel, settings: Sequence[Setting]) -> None:
    """Let the weights of an opened model, which lie in the processor's memory, take turns on its device.

    Args:
        settings: one a component, alike in how.

    Raises:
        UserError: a part cannot be moved so.
    """
    device, how = device_of(opened.opening), str(settings[0].params["how"])
    if settings[0].component == LANGUAGE_MODEL:
        by_turns(opened.component(LANGUAGE_MODEL), device, int(settings[0].params.get("keep", 0)))
        return
    with silent_libraries():
        if how == "components":
            opened.stock.enable_model_cpu_offload(device=device)
        else:
            main = opened.artifact.main if how == "blocks" else ""
            for one in settings:
                module = getattr(opened.stock, one.component, None)
                if isinstance(module, torch.nn.Module):
                    _by_groups(module, device, blocks=one.component == main, called=opened.function_of(one.component))


def _by_groups(module: torch.nn.Module, device: torch.device, *, blocks: bool, called: str) -> None:
    """Group offloading, of blocks or of layers. What is called by another name than `forward` is not followed by diffusers' prefetching, so
    its layers come one by one, each when it is called; and a VAE that is cast for a call keeps what it was cast to."""
    from diffusers.hooks import apply_group_offloading

    # diffusers makes the stream on whichever GPU is the current one.
    streamed = device.type in STREAMED and torch.cuda.current_device() == (device.index or 0)
    apply_group_offloading(
        module,
        onload_device=device,
        offload_type="block_level" if blocks else "leaf_level",
        num_blocks_per_group=1 if blocks else None,
        use_stream=streamed and called == "forward",
    )


def by_turns(model: torch.nn.Module, device: torch.device, keep: int = 0) -> Turns:
    """Let a decoder's blocks take turns on a device; all else of the model goes there to stay, and as many of the first blocks as fit beside it
    into `keep` bytes.

    Raises:
        UserError: it has no stack of blocks, or blocks that share weights.
    """
    blocks = stack_of(model)
    held = [size(block) for block in blocks]
    weights = [id(one) for block in blocks for one in block.parameters()]
    if len(weights) != len(set(weights)):
        raise UserError(f"blocks of {type(model).__name__} share weights", fix="leave this stage out")
    rest, stay = size(model) - sum(held), 0
    while stay < len(blocks) and rest + sum(held[: stay + 1]) <= keep:
        stay += 1
    vars(model)[MOVED] = f"blocks, {len(blocks) - stay} of {len(blocks)}"
    turns = Turns(blocks[stay:], device)
    _go_to_stay(model, device, without={id(one) for block in blocks[stay:] for one in block.parameters()})
    return turns


def stack_of(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The blocks of a decoder: the list of modules that holds most of its weights.

    Raises:
        UserError: there is none.
    """
    stacks = [list(one) for one in model.modules() if isinstance(one, torch.nn.ModuleList) and len(one) >= FEWEST]
    if not stacks:
        raise UserError(f"{type(model).__name__} has no stack of blocks", fix="leave this stage out")
    return max(stacks, key=lambda stack: sum(map(size, stack)))


def size(module: torch.nn.Module) -> int:
    """Bytes of a module's weights."""
    return sum(one.numel() * one.element_size() for one in module.parameters())


def _go_to_stay(model: torch.nn.Module, device: torch.device, without: set[int]) -> None:
    """Move all weights but those of `without`, and all buffers, for good."""
    for part in model.modules():
        for weight in part._parameters.values():
            if weight is not None and id(weight) not in without:
                weight.data = weight.data.to(device)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = buffer.to(device)


class Turns:
    """Blocks that are called in order, over and over, each with its weights on the device for its call, and with it the next one's on their
    way. Mutable: `there` are those that are there now, by number; at most two.

    A call in another order is right too, and waits for its weights.
    """

    def __init__(self, blocks: Sequence[torch.nn.Module], device: torch.device) -> None:
        self.device = device
        self.there: set[int] = set()
        self._waiting = [[(one, self._waits(one)) for one in block.parameters()] for block in blocks]
        self._stream: Any = torch.cuda.Stream(device) if device.type in STREAMED else None  # type: ignore[no-untyped-call]
        self._left: Any = None  # the event behind the last block's work
        for number, block in enumerate(blocks):
            block.register_forward_pre_hook(lambda *given, number=number: self._begin(number))
            block.register_forward_hook(lambda *given, number=number: self._end(number))

    def _waits(self, weight: torch.nn.Parameter) -> torch.Tensor:
        """A weight in memory that a GPU copies from by itself, and no more where it was: else all are there twice for a while."""
        if self.device.type in STREAMED:
            weight.data = weight.data.pin_memory()
        return weight.data

    def _begin(self, number: int) -> None:
        for other in self.there - {number}:
            self._send_back(other)
        self._fetch(number)
        if self._stream is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(self._stream)
            for weight, _ in self._waiting[number]:
                weight.data.record_stream(current)  # so that its memory is used anew only when that has done with it
            if self._left is not None:
                self._left.synchronize()  # else this process runs ahead, and the memory of blocks that are done is not free yet
        following = (number + 1) % len(self._waiting)
        if following != number:
            self._fetch(following)

    def _end(self, number: int) -> None:
        self._send_back(number)
        if self._stream is not None:
            self._left = torch.cuda.current_stream(self.device).record_event()

    def _fetch(self, number: int) -> None:
        if number in self.there:
            return
        with torch.cuda.stream(self._stream):  # None: as it is
            for weight, waits in self._waiting[number]:
                weight.data = waits.to(self.device, non_blocking=True, copy=True)
        self.there.add(number)

    def _send_back(self, number: int) -> None:
        for weight, waits in self._waiting[number]:
            weight.data = waits
        self.there.discard(number)

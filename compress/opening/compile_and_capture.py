"""What is done inside a torch module to make its calls faster, its weights and its numbers left alone: blocks compiled, calls captured.

`compile_blocks` comes first, `capture` after it: a graph then replays compiled code. `ran` tells what the calls really were.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from compress.errors import UserError
from compress.opening.denoising import denoising_of
from compress.opening.graphed import DEVICES, Graphed, Ran
from compress.opening.static_caches import Generate

COMPILED = "pare_compiled"  # the attribute that holds a module's Code
VARIANTS = 64  # most compiled variants of one block: torch's own limit is met by a few sizes
FEWEST = 2  # blocks of one class that make a stack


Compiler = Callable[[torch.fx.GraphModule, Sequence[Any]], Any]


@dataclass(eq=False)
class Code:
    """What the compiler made of a module's blocks: `graphs` counts each piece of code, as many as calls needed so far."""

    blocks: int
    kinds: tuple[str, ...]
    compiler: Compiler | None = None  # inductor
    graphs: int = 0

    def __post_init__(self) -> None:
        self.__name__ = "inductor" if self.compiler is None else "given"  # libraries print a compiler's name

    def __call__(self, graph: torch.fx.GraphModule, examples: Sequence[Any]) -> Callable[..., Any]:
        """The compiler's backend: inductor, counted."""
        self.graphs += 1
        made: Callable[..., Any] = (self.compiler or _inductor)(graph, examples)
        return made


@dataclass(frozen=True)
class Found:
    """What really ran inside a module: code that was compiled, calls that were captured. Empty where nothing was asked."""

    code: Code | None = None
    calls: Ran | None = None

    def __str__(self) -> str:
        message = []
        if self.code:
            kinds = ", ".join(self.code.kinds)
            message.append(f"{self.code.blocks} blocks ({kinds}) on {self.code.graphs} compiled graphs")
        if self.calls:
            calls, eager = self.calls, self.calls.eager.total()
            message.append(f"{calls.replayed} calls from {calls.captured} CUDA graphs, {eager} eager")
            message += [f"eager because {why}: {count}" for why, count in calls.eager.items()]
        return "; ".join(message)


def _inductor(graph: torch.fx.GraphModule, examples: Sequence[Any]) -> Any:
    from torch._inductor.compile_fx import compile_fx  # some seconds

    return compile_fx(graph, examples)


def compile_blocks(module: torch.nn.Module, also: Sequence[str] = (), compiler: Compiler | None = None) -> None:
    """Let torch's compiler make code for a module's repeated blocks, each kind once and shared, at their first calls.

    Blocks are those that diffusers names, or else the longest stack of blocks of one class, as a decoder's layers are. Sizes are
    built in: each new size is compiled anew, and a language model's lengths of prompts stay open.

    Args:
        also: further classes of parts to compile, by name.
        compiler: what makes code of a traced graph; inductor where nothing is stated.

    Raises:
        UserError: it has no such blocks.
    """
    blocks, named = blocks_of(module), bool(getattr(module, "_repeated_blocks", None))
    blocks += [one for one in module.modules() if type(one).__name__ in also]
    if not blocks:
        raise UserError(f"{type(module).__name__} has no repeated blocks", fix="leave compilation out")
    import torch._dynamo as dynamo  # some seconds

    code = Code(len(blocks), tuple(dict.fromkeys(type(one).__name__ for one in blocks)), compiler)
    vars(module)[COMPILED] = code
    dynamo.config.recompile_limit = max(VARIANTS, dynamo.config.recompile_limit)
    for block in blocks:
        if named:
            block.compile(backend=code, dynamic=False)  # as diffusers' compile_repeated_blocks does
        else:
            block._compiled_call_impl = torch.compile(_with_code_of_its_own(block), backend=code)


def capturable(device: torch.device) -> bool:
    """Whether CUDA graphs are taken on a device."""
    return device.type in DEVICES


def capture(module: torch.nn.Module) -> None:
    """Let a module's calls be replayed from CUDA graphs; of a language model its decoding steps, for which `generate` keeps a cache.

    A call that no graph can answer is made as it was, with one warning that says why.

    Raises:
        UserError: it does not lie on a CUDA device.
    """
    device = next(module.parameters()).device
    if not capturable(device):
        message = f"a CUDA graph is taken on an NVIDIA GPU, and {type(module).__name__} lies on {device.type}"
        raise UserError(message, fix="device: cuda, or leave the graph out")
    if isinstance(vars(module).get("forward"), Graphed):
        return
    writes = callable(getattr(module, "generate", None))
    graphed = Graphed(module, device, steps=writes)
    vars(module)["forward"] = graphed
    if writes:
        vars(module)["generate"] = Generate(module)


def ran(module: torch.nn.Module) -> Found:
    """What a module's calls were so far."""
    denoising = denoising_of(module)
    graphed = denoising.inner if denoising else vars(module).get("forward")
    calls = graphed.ran if isinstance(graphed, Graphed) else None
    return Found(vars(module).get(COMPILED), calls)


def blocks_of(module: torch.nn.Module) -> list[torch.nn.Module]:
    """A module's repeated blocks; none where it has no stack of them."""
    if named := getattr(module, "_repeated_blocks", None):
        return [one for one in module.modules() if type(one).__name__ in named]
    stacks = [list(one) for one in module.modules() if isinstance(one, torch.nn.ModuleList)]
    alike = [stack for stack in stacks if len(stack) >= FEWEST and len(set(map(type, stack))) == 1]
    return max(alike, key=len, default=[])


def _with_code_of_its_own(block: Any) -> Callable[..., Any]:
    """A block's call as a function whose code is no other's: what is compiled for a layer of a decoder, which knows its number, is
    kept by code, and would be looked through at every other layer's call."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return block._call_impl(*args, **kwargs)

    call.__code__ = call.__code__.replace()
    return call

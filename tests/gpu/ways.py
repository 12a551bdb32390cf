"""The ways to call a large model that parts b and c try, by pare and by hand, most telling first."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from tests.gpu.bench import Bench, Way, output_of


def twin(module: Any, *, weights: bool = False) -> Any:
    """A module of its own on the same weights; with `weights`, on copies of them."""
    held = () if weights else (*module.parameters(), *module.buffers())
    return copy.deepcopy(module, {id(one): one for one in held})


def graphed(module: Any) -> Any:
    """A module on the same parts, replayed from graphs: that it was given stays as it was."""
    from compress.opening.compile_and_capture import capture

    made = copy.copy(module)
    capture(made)
    return made


def compiled(bench: Bench, module: Any, also: Sequence[str] = ()) -> Any:
    from compress.opening.compile_and_capture import compile_blocks

    compile_blocks(module, also, as_traced if bench.tiny else None)
    return module


def plainly_compiled(bench: Bench) -> Any:
    """The model with its blocks compiled, made once."""
    if "compiled" not in bench.kept:
        bench.kept["compiled"] = compiled(bench, twin(bench.module))
    return bench.kept["compiled"]


def as_traced(graph: Any, examples: object) -> Any:
    """A compiler that leaves all as it is: tiny sizes try the way, and not inductor."""
    return graph.forward


def both_anew(bench: Bench) -> Any:
    return graphed(compiled(bench, twin(bench.module)))


def graph_by_hand(bench: Bench, made: Any) -> Callable[..., Any]:
    """The same graph as somebody writes it who knows what is called: inputs copied in, output copied out."""
    import torch
    from torch.utils._pytree import tree_map

    from compress.engines.torch.runtime import first_tensor

    eager = made.forward.eager if hasattr(made.forward, "eager") else made
    static = tree_map(lambda one: one.clone() if isinstance(one, torch.Tensor) else one, bench.calls[0])
    inputs = _tensors(static)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            bench.back()
            eager(**static)
    torch.cuda.current_stream().wait_stream(stream)
    bench.back()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = first_tensor(eager(**static))

    def call(**given: Any) -> Any:
        for place, one in zip(inputs, _tensors(given), strict=True):
            place.copy_(one)
        graph.replay()
        return output.clone()

    return call


def _tensors(call: object) -> list[Any]:
    import torch
    from torch.utils._pytree import tree_leaves

    return [one for one in tree_leaves(call) if isinstance(one, torch.Tensor)]


def compile_by_hand(bench: Bench, made: object) -> Callable[..., Any]:
    other = twin(bench.module)
    other.compile_repeated_blocks(dynamic=False)
    other(**bench.calls[0])
    found: Callable[..., Any] = other
    return found


def channels_last(bench: Bench, also: Sequence[str] = ()) -> Any:
    import torch

    module = twin(bench.module, weights=True).to(memory_format=torch.channels_last)
    return graphed(compiled(bench, module, also))


def with_cudnn(make: Callable[[Bench], Any]) -> Callable[[Bench], Any]:
    """A way made and called for the first time while cuDNN is first choice for attention, and tries its convolutions: what is traced and
    captured then stays so."""

    def made(bench: Bench) -> Any:
        import torch
        from torch.nn.attention import SDPBackend, sdpa_kernel

        kinds = (
            SDPBackend.CUDNN_ATTENTION,
            SDPBackend.FLASH_ATTENTION,
            SDPBackend.EFFICIENT_ATTENTION,
            SDPBackend.MATH,
        )
        before = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = True
        try:
            with sdpa_kernel(list(kinds), set_priority=True):
                found = make(bench)
                output_of(bench, found, bench.calls[0])
        finally:
            torch.backends.cudnn.benchmark = before
        return found

    return made


def fused(bench: Bench) -> Any:
    module = twin(bench.module)
    module.fuse_qkv_projections()
    return graphed(compiled(bench, module))


def in_fp8(bench: Bench) -> Any:
    from tests.gpu.fp8 import rowwise

    return graphed(compiled(bench, rowwise(twin(bench.module))))


def packed(mode: str, then: Callable[[Bench, Any], Any]) -> Callable[[Bench], Any]:
    """The model on weights of its own, packed as quantize.torchao does it, and what is done with it then."""

    def made(bench: Bench) -> Any:
        import torch
        from torchao.quantization import quantize_

        from compress.stages.quantize.torchao import QuantizeTorchao, torchao_config

        params = QuantizeTorchao.model_validate({"mode": "int8_weights" if bench.tiny else mode})  # the processor's
        module, kinds = twin(bench.module, weights=True), torch.nn.Linear

        def within(part: Any, name: str) -> bool:
            return isinstance(part, kinds) and any(f".{place}." in f".{name}" for place in BLOCKS)

        quantize_(module, torchao_config(params), filter_fn=within)
        return then(bench, module)

    return made


def captured(bench: Bench, module: Any) -> Any:
    return graphed(module)


def compiled_and_captured(bench: Bench, module: Any) -> Any:
    return graphed(compiled(bench, module))


def again(bench: Bench) -> Any:
    """Compiled once more after the compiler forgot all but what lies on disk: a second start, imports left out."""
    import torch

    torch._dynamo.reset()
    return compiled(bench, twin(bench.module))


BLOCKS = ("layers", "transformer_blocks", "single_transformer_blocks")  # in which layers are packed
COMPILE = Way("regional compile", plainly_compiled, 75, graph=False)
BOTH = Way("regional compile + CUDA graph", lambda bench: graphed(plainly_compiled(bench)), 75, graph_by_hand)
GRAPH = Way("CUDA graph", lambda bench: graphed(bench.module), 20, graph_by_hand)
AGAIN = Way("regional compile, second start", again, 40, compile_by_hand, graph=False)
RESNETS = ("ResnetBlock2D",)
LAYOUT = "channels last + regional compile"
UNET = (
    *(COMPILE, BOTH, GRAPH),
    Way(f"{LAYOUT} + CUDA graph", channels_last, 40),
    Way(f"{LAYOUT} of ResNets too + CUDA graph", partial(channels_last, also=RESNETS), 60),
    Way(f"{LAYOUT} of ResNets too + cuDNN + CUDA graph", with_cudnn(partial(channels_last, also=RESNETS)), 45),
)
XL = (
    *(*UNET, AGAIN),
    Way("fused QKV + regional compile + CUDA graph", fused, 40),
    Way("fp8 per row + regional compile + CUDA graph", in_fp8, 60),
)
FLUX = (
    *(COMPILE, BOTH),
    Way("fp8 per row + regional compile + cuDNN attention + CUDA graph", with_cudnn(in_fp8), 60),
    Way("regional compile + cuDNN attention + CUDA graph", with_cudnn(both_anew), 40),
    Way("torchao float8 + regional compile + CUDA graph", packed("float8", compiled_and_captured), 60),
    *(GRAPH, AGAIN),
)
LLAMA = (
    *(GRAPH, COMPILE, BOTH),
    Way("torchao int4_weights + CUDA graph", packed("int4_weights", captured), 40),
    Way("torchao float8 + CUDA graph", packed("float8", captured), 30),
    Way("torchao float8 + regional compile + CUDA graph", packed("float8", compiled_and_captured), 60),
    Way("torchao int8_weights + regional compile + CUDA graph", packed("int8_weights", compiled_and_captured), 60),
)

"""Floating-point operations of one whole call, counted on models without weights: shapes alone decide them.

Counted are matrix products, convolutions and attention, a multiply-add as two, by torch's own counter on the meta device. An
engine's component keeps the config of the torch one it was built from, so that it counts the same in any format and precision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from compress.artifact import LANGUAGE_MODEL, Artifact
from compress.catalogue import both_ways
from compress.machine.devices import Opening
from compress.pipelines.index import library_of

if TYPE_CHECKING:
    import torch

ENCODE = "encode"


def count_image(artifact: Artifact, opening: Opening, call: Mapping[str, Any]) -> dict[str, int]:
    """Operations of each component while the pipeline generates one image.

    The pipeline itself runs once, for only it knows how often it calls which component on what shapes, and a cache which parts it passes over.

    Raises:
        ModelError: the pipeline does not load, or a component's class is not there.
        Exception: whatever a component's library raises where shapes alone do not let it run.
    """
    from compress.opening import open_images

    task: Any = open_images(artifact, opening)
    recorded: dict[str, list[Mapping[str, Any]]] = {name: [] for name in artifact.working}
    encoded: dict[str, list[Mapping[str, Any]]] = {n: [] for n in artifact.working if both_ways(artifact, n)}
    with ExitStack() as also:
        for name, calls in encoded.items():
            also.enter_context(task.watch(name, lambda args, kwargs, calls=calls: calls.append(_first(args)), ENCODE))
        for name, shapes in task.shapes_of(artifact.working, _note, **call):
            recorded[name].append(shapes)
    passed = {name: _passed_over(task.component(name), len(calls)) for name, calls in recorded.items()}
    found = {n: _count_calls(empty(artifact, n), task.function_of(n), c, passed[n]) for n, c in recorded.items()}
    return found | {
        n: found[n] + _count_calls(empty(artifact, n), ENCODE, c, (frozenset[str](),) * len(c))
        for n, c in encoded.items()
    }


def _first(args: Sequence[Any]) -> dict[str, Any]:
    """The shape of what an autoencoder is given to encode."""
    return {"x": _shapes(args[0])}


def count_text(artifact: Artifact, prompt_tokens: int, new_tokens: int) -> int:
    """Operations of continuing one prompt: a pass over it, and one for each further token behind the cache of those before.

    Raises:
        ModelError: the model's class is not there.
        ValueError: it keeps no cache that says what a token costs.
        Exception: whatever its library raises where shapes alone do not let it run.
    """
    import inspect

    from compress.engines.torch.runtime import count_flops

    model = empty(artifact, LANGUAGE_MODEL)
    # `generate` has the prompt's last position alone turned into probabilities, where the model can do that.
    last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    prompt = count_flops(model, {"input_ids": _tokens(prompt_tokens), "use_cache": True, **last})
    later = cache(partial(_count_token, model))
    return prompt + add_up(later, prompt_tokens, prompt_tokens + new_tokens - 2)


def add_up(count: Callable[[int], int], first: int, last: int) -> int:
    """`count` summed from `first` to `last`, for one that rises in straight pieces, at a few of its points.

    A token's operations rise by as much with each token before it, until those fill a layer's window.
    """
    terms = last - first + 1
    if terms < 3:
        return sum(map(count, range(first, last + 1)))
    middle = (first + last) // 2
    start, between, end = count(first), count(middle), count(last)
    if (between - start) * (last - first) == (end - start) * (middle - first):
        return (start + end) * terms // 2
    return add_up(count, first, middle) + add_up(count, middle + 1, last)


def empty(artifact: Artifact, component: str) -> Any:
    """The torch module that a component's config describes, on the meta device: shapes, and no numbers.

    Raises:
        ModelError: its class is not there.
    """
    import torch

    from compress.engines.torch.runtime import find_class, silent_libraries

    part, folder = artifact.components[component], artifact.folder(component)
    language = component == LANGUAGE_MODEL
    library = "transformers" if language else library_of(artifact.path, component)
    kind = find_class(library, part.kind, folder)
    with silent_libraries(), torch.device("meta"):
        if library != "transformers":
            return kind.from_config(dict(artifact.config(component))).float().eval()
        config = kind.config_class.from_pretrained(str(folder))
        config._experts_implementation = "batched_mm"  # the one way of running experts whose shapes no router decides
        return kind._from_config(config).float().eval()


def _note(name: str, call: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    # A mask decides what is computed and not how much; what builds on it would look at its numbers.
    return name, {argument: _shapes(value) for argument, value in call.items() if argument != "attention_mask"}


def _shapes(value: Any) -> Any:
    """A call's arguments, with tensors that are nothing but their shape."""
    import torch

    if isinstance(value, torch.Tensor):
        dtype = torch.float32 if value.is_floating_point() else value.dtype
        return torch.empty(value.shape, dtype=dtype, device="meta")
    if isinstance(value, Mapping):
        return {name: _shapes(v) for name, v in value.items()}
    return type(value)(map(_shapes, value)) if type(value) in (list, tuple) else value


def _passed_over(module: torch.nn.Module, calls: int) -> Sequence[frozenset[str]]:
    """By call, the parts of a module that did not run for it, where a cache passed some over."""
    from compress.opening.denoising import denoising_of

    found = denoising_of(module)
    return tuple(found.passed) if found else (frozenset[str](),) * calls


def _count_calls(
    module: torch.nn.Module, function: str, calls: Sequence[Mapping[str, Any]], passed: Sequence[frozenset[str]]
) -> int:
    """Equal calls are counted once and multiplied."""
    from compress.engines.torch.runtime import count_flops

    times: dict[tuple[str, frozenset[str]], int] = {}
    shown: dict[str, Mapping[str, Any]] = {}
    for one, parts in zip(calls, passed, strict=True):
        times[repr(one), parts] = times.get((repr(one), parts), 0) + 1
        shown[repr(one)] = one
    run = getattr(module, function)
    whole = {key: count_flops(run, call) for key, call in shown.items()}
    return sum(n * (whole[key] - _count_parts(module, shown[key], parts)) for (key, parts), n in times.items())


def _count_parts(module: torch.nn.Module, call: Mapping[str, Any], parts: frozenset[str]) -> int:
    """Operations of some parts of a module during a call."""
    import torch

    from compress.algorithms.forward_hooks import hearing
    from compress.engines.torch.runtime import count_flops

    if not parts:
        return 0
    caught: list[tuple[str, tuple[Any, ...], Mapping[str, Any]]] = []
    with torch.no_grad(), hearing(module, parts, lambda name, args, named, out: caught.append((name, args, named))):
        module(**call)
    called: list[tuple[Any, Mapping[str, Any]]] = [
        (partial(module.get_submodule(n), *args), named) for n, args, named in caught
    ]
    return sum(count_flops(part, named) for part, named in called)


def _count_token(model: torch.nn.Module, seen: int) -> int:
    import torch

    from compress.engines.torch.runtime import count_flops

    with torch.no_grad():
        past = getattr(model(input_ids=_tokens(seen), use_cache=True), "past_key_values", None)
    if past is None:
        raise ValueError(f"{type(model).__name__} keeps no cache of keys and values")
    return count_flops(model, {"input_ids": _tokens(1), "past_key_values": past, "use_cache": True})


def _tokens(count: int) -> Any:
    import torch

    return torch.zeros(1, count, dtype=torch.long, device="meta")

"""From torch to engines: each component is converted, what came out is loaded, and compared with torch on real calls.

A stage `build.NAME` gives this a `Builder`; everything that engines have in common happens here.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from compress.artifact import LANGUAGE_MODEL, Artifact, derive, weight_files, write_manifest
from compress.catalogue import both_ways, find_engine
from compress.context import Context
from compress.data.items import Item
from compress.engines import ENCODER
from compress.engines.builder import Builder, Example, Feed
from compress.engines.module import Encoding, flatten
from compress.engines.parity import Difference, Outputs, compare, compare_calls, first_broken
from compress.engines.torch.runtime import silent_libraries
from compress.engines.tracing import Call, Traced, in_float32, outline, split
from compress.errors import StageFailed
from compress.machine.devices import CPU
from compress.model.bit_widths import packing
from compress.opening import open_images, open_language
from compress.opening.models import ImageModel, LanguageModel, OpenModel
from compress.pipelines.index import library_of

LONG = 300  # tokens; beyond the chunks that some layers cut a text into
IMAGES_A_BATCH = 4
LONGEST_TEXT = 128
ENCODE = "encode"  # what a VAE is called by beside `decode`


def build_engines(
    artifact: Artifact, names: tuple[str, ...], builder: Builder, context: Context, samples: int = 0
) -> None:
    """Fill `context.out` with the artifact, these components as engines.

    Args:
        samples: calls to calibrate on, for a precision with 8-bit activations.

    Raises:
        StageFailed: an engine does not agree with torch; the message names the layer where that begins.
    """
    weights = [f.relative_to(artifact.path) for name in names for f in weight_files(artifact.folder(name))]
    made = derive(artifact, context.out, without=tuple(map(str, weights)), link=context.link)
    made = made.replacing(dict.fromkeys(names, builder.format))
    made = made.packing(packing(names, builder.format, builder.precision))
    build = _language_model if artifact.writes_text else _pipeline
    build(artifact, made, names, builder, context, samples)
    write_manifest(made)


def _pipeline(
    artifact: Artifact, made: Artifact, names: tuple[str, ...], builder: Builder, context: Context, samples: int
) -> None:
    task = open_images(artifact, context.opening)
    some = task.examples
    fits = builder.profile.nearest("batch", len(some))
    small = every_call(task, names, some[:2])
    with encoding(task, names) as given:
        large = every_call(task, names, some[:3])
    fitting = large if fits == len(some) else every_call(task, names, repeated(some, fits))
    with encoding(task, names) as calibrating:
        feeds = calibration_calls(task, names, samples, context) if samples else {}
    for name in context.progress(names, "components", len(names)):
        calls = small[name][0], large[name][0], feeds.get(name, ()), fitting[name][0]
        example = Example(task.component(name), task.function_of(name), *calls)
        _component(name, example, fitting[name], made, made.folder(name), builder, context)
        if name in given:
            example = _encoder(example, given[name], calibrating[name], fits)
            _component(name, example, [example.held], made, made.folder(name) / ENCODER, builder, context)


def _component(
    name: str, example: Example, calls: Sequence[Call], made: Artifact, folder: Path, builder: Builder, context: Context
) -> None:
    """Build an engine in a folder, and hold it against torch on these calls."""
    library, kind = library_of(made.path, name), made.components[name].kind
    if folder != made.folder(name):
        folder.mkdir()
        shutil.copyfile(made.folder(name) / "config.json", folder / "config.json")
    builder.component(example, folder)
    found, held = _farthest(example, builder.open_component(folder, library, kind), calls)
    title = name if folder == made.folder(name) else f"{name}'s {folder.name}"
    _judge(title, found, builder, replace(example, fitting=held), folder, library, kind, context)


@contextmanager
def encoding(task: ImageModel, names: Sequence[str]) -> Iterator[dict[str, list[torch.Tensor]]]:
    """Within: by component that encodes what the model is given, the images it is given."""
    found: dict[str, list[torch.Tensor]] = {name: [] for name in names if both_ways(task.artifact, name)}
    with ExitStack() as watches:
        for name, seen in found.items():
            watches.enter_context(task.watch(name, partial(_keep_image, seen), ENCODE))
        yield found


def _keep_image(seen: list[torch.Tensor], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    image: torch.Tensor = args[0] if args else kwargs["x"]
    seen.append(image.detach().clone())


def _encoder(
    decoder: Example, images: Sequence[torch.Tensor], calibrating: Sequence[torch.Tensor], fits: int
) -> Example:
    """The encoder beside a VAE's decoder, with calls of two and three images: some pipelines give it one at a time."""
    seen = torch.cat([image for image in images if image.shape[1:] == images[0].shape[1:]])

    def rows(count: int) -> Call:
        return {"x": torch.cat([seen] * -(-count // len(seen)))[:count]}

    feeds = [{"x": in_float32(image)} for image in calibrating]
    return Example(Encoding(decoder.module), "forward", rows(2), rows(3), feeds, rows(fits))


def _farthest(example: Example, engine: torch.nn.Module, calls: Sequence[Call]) -> tuple[Difference, Call]:
    """Where an engine differs most from torch, among the calls that its graph takes: a guided pipeline encodes an empty text as well,
    and a denoiser is called at each timestep."""
    compared = [
        (compare_calls(example.module, engine, example.function, call), call)
        for call in calls
        if outline(call) == outline(example.held)
    ]
    return max(compared, key=lambda one: one[0].relative)


def _language_model(
    artifact: Artifact, made: Artifact, names: tuple[str, ...], builder: Builder, context: Context, samples: int
) -> None:
    task = open_language(artifact, context.opening)
    model = task.model
    kind = artifact.components[LANGUAGE_MODEL].kind
    builder.language_model(model, made.path, text_calls(task, samples, context) if samples else ())
    engine = builder.open_language_model(made.path, kind)
    model = model.float()
    generator = torch.Generator(CPU).manual_seed(context.seed)
    near, words = builder.profile.nearest, model.config.vocab_size
    drawn = torch.randint(0, words, (max(3, near("batch", 3)), near("tokens", 24)), generator=generator, device=CPU)
    drawn = drawn.to(task.opening.device)
    tokens = drawn[: near("batch", 3)]
    longest = near("tokens", min(task.max_tokens, LONG))
    long = torch.randint(0, words, (near("batch", 1), longest), generator=generator, device=CPU)
    long = long.to(task.opening.device)
    seen = tokens.shape[1] * 2 // 3

    # What came before must reach the second part through the cache.
    def in_two_parts(reader: torch.nn.Module) -> torch.Tensor:
        first = reader(tokens[:, :seen], use_cache=True)
        rest = reader(tokens[:, seen:], past_key_values=first.past_key_values, use_cache=True)
        return torch.cat([first.logits, rest.logits], 1)

    # Torch too reads in two parts: some models, such as Phi-3, turn keys by another scale in a longer text.
    parted = compare(lambda: in_two_parts(model), lambda: in_two_parts(engine))
    whole = compare(lambda: model(long, use_cache=False).logits, lambda: engine(long).logits)
    found = max(parted, whole, key=lambda d: d.relative)
    small, large, held = ({"input_ids": t, "use_cache": False} for t in (drawn[:2], drawn[:3], tokens))
    example = Example(model, "forward", small, large, fitting=held)
    _judge(LANGUAGE_MODEL, found, builder, example, made.path, "transformers", kind, context)


def _judge(
    name: str,
    found: Difference,
    builder: Builder,
    example: Example,
    folder: Path,
    library: str,
    kind: str,
    context: Context,
) -> None:
    allowed = find_engine(builder.format).precisions[builder.precision]
    if not found.relative <= allowed:
        layer = _blame(builder, example, folder, library, kind, context, allowed)
        where = f", first in its layer `{layer}`" if layer else ", in no layer by itself: it adds up"
        raise StageFailed(
            f"the engine of `{name}` differs from torch by {found.relative:.2g} of its output's size "
            f"(largest difference {found.largest:.3g}){where}; at most {allowed:g} is accepted in {builder.precision}",
            place=str(folder),
            fix=f"{'build with precision: float32, or ' if builder.precision != 'float32' else ''}leave this component out",
        )
    context.note(
        f"{name} agrees with torch",
        component=name,
        max_difference=found.largest,
        relative=found.relative,
        tolerance=allowed,
    )


def _blame(
    builder: Builder, example: Example, folder: Path, library: str, kind: str, context: Context, allowed: float
) -> str:
    """The layer in which an engine begins to differ: it is built again with more and more of its insides coming out."""
    place = context.scratch / "blame"
    module = example.module.float()
    inputs, constants = split(example.held)
    inputs = {n: in_float32(v) for n, v in inputs.items()}

    def watch(parts: tuple[str, ...]) -> tuple[Outputs, Outputs]:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        shutil.copyfile(folder / "config.json", place / "config.json")
        builder.component(example, place, parts)
        engine = builder.open_component(place, library, kind)
        values = engine.runner.run(list(engine.feed((), inputs).values()))
        ours = dict(zip(engine.runner.outputs, values, strict=True))
        with silent_libraries(), torch.no_grad():
            theirs = Traced(module, example.function, constants, parts)(**inputs)
        return tuple({p: side[f"layer.{p}"] for p in parts if f"layer.{p}" in side} for side in (ours, theirs))  # type: ignore[return-value]

    try:
        return first_broken(module, lambda: getattr(module, example.function)(**inputs, **constants), watch, allowed)
    except Exception as error:  # whatever an exporter raises on the way: the difference itself is what must be reported
        context.note(f"could not look for the layer: {type(error).__name__}: {error}")
        return ""
    finally:
        shutil.rmtree(place, ignore_errors=True)


def first_calls(task: OpenModel, components: tuple[str, ...], items: Sequence[Item]) -> dict[str, Call]:
    """The first of `every_call`."""
    return {name: calls[0] for name, calls in every_call(task, components, items).items()}


def every_call(task: OpenModel, components: tuple[str, ...], items: Sequence[Item]) -> dict[str, list[Call]]:
    """The calls to each component while the model runs on these items as one batch, in two steps; all arguments by name.

    Raises:
        StageFailed: one is not called.
    """
    recorded: dict[str, list[Call]] = {}
    for name, call in task.calls_of(components, items, 0, batch=len(items), num_inference_steps=2):
        recorded.setdefault(name, []).append(call)
    if unavailable := [name for name in components if name not in recorded]:
        raise StageFailed(
            f"the pipeline generates without ever calling {', '.join(unavailable)}",
            place=str(task.artifact.path),
            fix="leave it out: name the others as `components`",
        )
    return recorded


def repeated(items: Sequence[Item], count: int) -> list[Item]:
    """So many items: these, and as often as it takes the same again under other ids."""
    return [replace(items[i % len(items)], id=str(i)) for i in range(count)]


def calibration_calls(task: OpenModel, names: tuple[str, ...], samples: int, context: Context) -> dict[str, list[Feed]]:
    """What each component is given while the model runs on calibration items, until the one that is called most has been
    called often enough: all timesteps, evenly. Works on torch components and on engines."""
    feeds: dict[str, list[Feed]] = {name: [] for name in names}
    items = context.data["calibration"].first(samples * IMAGES_A_BATCH)
    for start in range(0, len(items), IMAGES_A_BATCH):
        batch = items[start : start + IMAGES_A_BATCH]
        for name, call in task.calls_of(names, batch, context.seed, batch=len(batch)):
            feeds[name].append(_in_numbers(call))
        if max(map(len, feeds.values())) >= samples:
            break
    return feeds


def text_calls(task: LanguageModel, samples: int, context: Context) -> list[Feed]:
    """The tokens, int64 [1, tokens], of calibration texts."""
    items = context.data["calibration"].first(samples)
    texts = context.progress(items, "calibration texts", len(items))
    return [{"input_ids": torch.tensor([task.encode(text)[:LONGEST_TEXT]], device=CPU)} for text in texts]


def _in_numbers(call: Call) -> Feed:
    """A call's tensors by dotted name, their numbers in float32, as engines take them."""
    return {name: in_float32(value) for name, value in flatten(split(call)[0]).items()}

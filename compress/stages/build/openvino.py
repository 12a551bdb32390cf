"""Build OpenVINO engines of a model's components, each held against torch on real inputs before it is kept.

Use it after everything that changes torch weights: an engine is fast and cannot be trained or pruned any more. The result
takes any batch size, and pictures of the size the pipeline was built at. A VAE's engine is its decoder: text-to-image needs
no encoder. `bfloat16` is a compile hint, fast where the processor has the instructions; the stored weights stay as they are.
Source: OpenVINO, and the exporter of transformers (`transformers.exporters`).

    - build.openvino: {precision: bfloat16}
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from compress.artifact import LANGUAGE_MODEL, Artifact, Format, derive, read_json, weight_files, write_manifest
from compress.catalogue import stage
from compress.context import Context
from compress.errors import StageFailed
from compress.params import Params

# Largest accepted root mean square of the difference to torch, over that of torch's own output. float32 engines differ by
# the order of additions; bfloat16 has 8 bits of mantissa, and its rounding adds up over the layers.
TOLERANCE = {"float32": 1e-3, "bfloat16": 1e-1}
# By model_type, what was tried and cannot work with the exporter of transformers 5.23 and OpenVINO 2026.4.
NO_GRAPH = {
    "mamba": "is recurrent, and its graph takes texts of one length",
    "falcon_mamba": "is recurrent, and its graph takes texts of one length",
    "mamba2": "is recurrent, and its graph takes texts up to one chunk",
    "mpt": "loses its attention bias in a graph with a KV cache",
}
LONG = 300  # tokens; beyond the chunks that some layers cut a text into
PROMPTS = ("a red three", "a blue seven", "a green one")


class BuildOpenVINO(Params):
    precision: Literal["float32", "bfloat16"] = Field("float32", description="what the engine computes in")
    components: tuple[str, ...] | Literal["all"] = Field(
        "all", description="what to build; all: denoiser, VAE decoder and text encoders, or the language model"
    )


def refuse(artifact: Artifact, params: BuildOpenVINO) -> str:
    unknown = [name for name in _wanted(artifact, params) if name not in artifact.components]
    if unknown:
        return f"the model has no component {', '.join(unknown)}; it has {', '.join(artifact.components)}"
    done = [name for name in _wanted(artifact, params) if artifact.components[name].format == "openvino"]
    if done:
        return f"{', '.join(done)} is an engine already"
    return next(filter(None, (_obstacle(artifact, name) for name in _wanted(artifact, params))), "")


@stage(
    version=2,
    params=BuildOpenVINO,
    tasks=("text_to_image", "text_generation"),
    formats={"torch": "openvino"},
    effect="format",
    reproducible="bytes",
    libraries=("openvino", "transformers", "torch", "diffusers"),
    refuse=refuse,
)
def run(artifact: Artifact, params: BuildOpenVINO, context: Context) -> None:
    wanted = _wanted(artifact, params)
    weights = [f.relative_to(artifact.path) for name in wanted for f in weight_files(artifact.folder(name))]
    made = derive(artifact, context.out, without=tuple(map(str, weights)), link=context.link)
    formats: dict[str, Format] = dict.fromkeys(wanted, "openvino")
    made = made.replacing(formats)
    build = _build_language_model if artifact.task == "text_generation" else _build_pipeline
    build(artifact, made, params, context)
    write_manifest(made)


def _obstacle(artifact: Artifact, name: str) -> str:
    """What a component's config says that no fixed graph can do."""
    path = artifact.folder(name) / "config.json"
    if not path.is_file():
        return ""  # of an artifact still to be made there is nothing to read
    config = read_json(path)
    if stored := config.get("quantization_config"):
        method = stored.get("quant_method", "quantized")
        return f"the weights of `{name}` are {method} already: give the unquantized checkpoint, and use quantize.nncf after"
    if why := NO_GRAPH.get(config.get("model_type", "")):
        return f"{artifact.components[name].kind} {why}: leave this stage out"
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if any(r.get("rope_type", r.get("type")) == "dynamic" for r in (rope, *rope.values()) if isinstance(r, dict)):
        limit = config.get("max_position_embeddings", "max_position_embeddings")
        return (
            f"the rotary positions of `{name}` are rescaled by the length of each text (rope_type: dynamic), and a graph is fixed: "
            f"set rope_type to default in its config.json, which is the same up to {limit} tokens, or leave this stage out"
        )
    return ""


def _wanted(artifact: Artifact, params: BuildOpenVINO) -> tuple[str, ...]:
    if params.components != "all":
        return params.components
    return tuple(name for name in artifact.working if artifact.components[name].format != "openvino")


def _build_pipeline(artifact: Artifact, made: Artifact, params: BuildOpenVINO, context: Context) -> None:
    from compress.engines.openvino import OpenVINOModule, write_engine
    from compress.engines.openvino_build import compare_calls, convert
    from compress.tasks.text_to_image import TextToImage, function_of

    task = TextToImage(artifact)
    wanted = _wanted(artifact, params)
    small, large = (_calls(task, wanted, PROMPTS[:n]) for n in (2, 3))
    for name in context.progress(wanted, "components", len(wanted)):
        module = getattr(task.pipeline, name)
        model = convert(module, function_of(name), small[name], large[name])
        arguments = _arguments(getattr(type(module), function_of(name)))
        write_engine(model, made.folder(name), params.precision, function_of(name), arguments)
        engine = OpenVINOModule(made.folder(name), module.config)
        found = compare_calls(module, engine, function_of(name), large[name])
        _judge(name, found, params, made.folder(name), context)


def _build_language_model(artifact: Artifact, made: Artifact, params: BuildOpenVINO, context: Context) -> None:
    import torch

    from compress.engines.openvino import load_language_model, write_engine
    from compress.engines.openvino_build import compare, convert_language_model
    from compress.tasks.text_generation import TextGeneration

    task = TextGeneration(artifact)
    model = task.model
    write_engine(convert_language_model(model), made.path, params.precision)
    engine: Any = load_language_model(made.path, artifact.components[LANGUAGE_MODEL].kind, None, "cpu")
    generator = torch.Generator().manual_seed(context.seed)
    tokens = torch.randint(0, model.config.vocab_size, (3, 24), generator=generator)
    long = torch.randint(0, model.config.vocab_size, (1, min(task.max_tokens, LONG)), generator=generator)
    model = model.float()

    def in_two_parts() -> Any:  # what came before must reach the second part through the cache
        first = engine(tokens[:, :17])
        rest = engine(tokens[:, 17:], past_key_values=first.past_key_values)
        return torch.cat([first.logits, rest.logits], 1)

    parted = compare(lambda: model(tokens, use_cache=False).logits, in_two_parts)
    whole = compare(lambda: model(long, use_cache=False).logits, lambda: engine(long).logits)
    _judge(LANGUAGE_MODEL, max(parted, whole, key=lambda d: d.relative), params, made.path, context)


def _calls(task: Any, components: tuple[str, ...], prompts: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """The first call to each component while the pipeline paints these prompts, all arguments by name."""
    from contextlib import ExitStack

    from compress.tasks.text_to_image import function_of

    heard: dict[str, dict[str, Any]] = {}

    def listen(name: str) -> Any:
        names = _arguments(getattr(type(getattr(task.pipeline, name)), function_of(name)))
        return lambda call: heard.setdefault(name, {**dict(zip(names, call.args, strict=False)), **call.kwargs})

    with ExitStack() as stack:
        for name in components:
            stack.enter_context(task.watch(name, listen(name)))
        task.paint(prompts, [str(i) for i in range(len(prompts))], 0, num_inference_steps=2)
    return heard


def _arguments(function: Any) -> tuple[str, ...]:
    import inspect

    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return tuple(n for n, p in inspect.signature(function).parameters.items() if p.kind in kinds and n != "self")


def _judge(name: str, found: Any, params: BuildOpenVINO, folder: Path, context: Context) -> None:
    allowed = TOLERANCE[params.precision]
    if not found.relative <= allowed:
        raise StageFailed(
            f"the engine of `{name}` differs from torch by {found.relative:.2g} of its output's size "
            f"(largest difference {found.largest:.3g}); at most {allowed:g} is accepted in {params.precision}",
            place=str(folder),
            fix="build with precision: float32, or leave this component out of `components`",
        )
    context.note(f"{name} agrees with torch", component=name, max_difference=found.largest, relative=found.relative)

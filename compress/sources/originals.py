"""Checkpoints in one file, as A1111 and ComfyUI keep them, opened with the configs of a diffusers folder: planned from the file's header, so
that all of planning looks at a folder as it will be, and converted once, by diffusers, before the first stage.

What is planned on is a folder of links in which stand, for the weights of the file, files with the header that they will have and no content:
they take no room, and nobody reads more of them than that.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, ClassVar

from compress.artifact import MANIFEST, SCHEDULER, STEMS, Artifact, holding, read_json
from compress.errors import ManyProblems, ModelError, Problem
from compress.files.hashing import digest_json, identity, list_files, remembered_digest
from compress.files.safetensors_headers import Stored, read_header
from compress.files.views import view
from compress.machine import deps
from compress.model.describing import FUSE, describe, is_adapter
from compress.model.field_checks import field_problems
from compress.model.layer_checks import layer_problems
from compress.model.original_families import family_of, repository_of
from compress.model.original_layouts import (
    DENOISERS,
    ENCODER,
    FLUX_WIDTH,
    Layout,
    converted,
    layouts_of,
    owned,
    passed_over,
)
from compress.model.resave_advice import TYPES, shown
from compress.model.shape_checks import shape_problems
from compress.model.single_files import PART_FIX, what_it_is
from compress.model.weight_files import loaded_files
from compress.pipelines.index import INDEX, LEFT_OUT, library_of, named_parts

STAGE = "convert"  # what events, the cache and the lineage call it
VERSION = 2  # of how it is converted: in every key
BYTES = {"F32": 4, "BF16": 2, "F16": 2}
LIBRARIES = ("torch", "diffusers", "transformers")
PACKED = frozenset({"F8_E4M3", "F8_E5M2", "I8", "U8"})
WIDE = "wo"  # of T5's layers, which overflow in float16: the library keeps them in float32
V_PREDICTION = "v_prediction"  # as diffusers spells it
MARK = "v_pred"  # a tensor by which trainers tell ComfyUI what the model predicts


@dataclass(frozen=True)
class Part:
    """What a file holds of one component. tensors: as diffusers will have them. dtype: as safetensors spell it."""

    layout: Layout
    tensors: Mapping[str, tuple[int, ...]]
    dtype: str


@dataclass(frozen=True)
class Conversion:
    """A checkpoint and the folder that its configs are from. sketch: the model as it will be; lacking: components that the file does not
    hold and of which the configs' folder has no weights (yet)."""

    file: Path
    configs: Path
    parts: Mapping[str, Part]
    sketch: Artifact
    lacking: tuple[str, ...] = ()
    stage: ClassVar[str] = STAGE

    @property
    def memory_bytes(self) -> int:
        """What converting takes: the file, which is mapped, and one component after the other."""
        files = [loaded_files(self.sketch, name)[0].stat().st_size for name in self.parts]
        return self.file.stat().st_size + max(files)


def forecast(file: Path, configs: Path, root: Path | None) -> Conversion:
    """What converting a checkpoint with these configs will make. Only headers and JSON are read.

    Args:
        root: of the cache in which the sketch is made; None: the system's temporary folder, in one of this user's.

    Raises:
        ModelError: it is no checkpoint that diffusers converts; ManyProblems: it and the configs do not belong together.
    """
    tensors, layouts = _read(file)
    model = _configs(configs, file)
    found = tuple(_misfits(file, tensors, layouts, model))
    if found:
        raise ManyProblems(found)
    parts = {layout.component: _part(file, layout, tensors, model) for layout in layouts}
    sketch = describe(_sketch(file, configs, model, parts, root))
    problems = [
        *layer_problems(sketch),
        *shape_problems(sketch),
        *_levels(sketch, parts),
        *field_problems(sketch, parts),
    ]
    if apart := [replace(p, place=_in(p.place, sketch.path, configs)) for p in problems]:
        fix = _belonging(tensors)
        raise ManyProblems(tuple(Problem(p.place, f"{p.message}: not those of {shown(file)}", fix) for p in apart))
    others = [n for n, p in sketch.components.items() if n not in parts and n not in LEFT_OUT and p.format == "torch"]
    lacking = tuple(name for name in others if not loaded_files(sketch, name))
    return Conversion(file, configs, parts, sketch, lacking)


def refuse_lacking(found: Conversion) -> None:
    """Raises a ModelError where neither the file nor the folder of its configs has the weights of some part."""
    if found.lacking:
        names = ", ".join(f"`{name}`" for name in found.lacking)
        message = f"holds no {names}, and neither does {shown(found.configs)}, which its configs are from"
        fix = "give a folder that has these weights as safetensors with plain names beside its configs"
        raise ModelError(message, place=str(found.file), fix=fix)


def key_of(found: Conversion, memory: Path | None, commit: str = "") -> str:
    """What stands for the content of a model that is still to be converted.

    Args:
        memory: where digests of files are remembered.
        commit: of the hub, that the configs are from; "" of a local folder.
    """
    config: object = commit or {
        str(file): remembered_digest(found.configs / file, memory)
        for file in _taken(describe(found.configs), found.parts)
    }
    versions = {name: deps.version(name) for name in LIBRARIES}
    return digest_json([STAGE, VERSION, remembered_digest(found.file, memory), config, versions])


def _read(file: Path) -> tuple[Mapping[str, Stored], tuple[Layout, ...]]:
    """A file's tensors, and the parts that it holds.

    Raises:
        ModelError: it holds no denoiser whose layout is known.
    """
    if not file.is_file():
        folder = file.is_dir()
        message = (
            "is a folder, and `::` stands between a checkpoint in one file and its configs"
            if folder
            else "no such file"
        )
        raise ModelError(message, place=str(file), fix="give it alone" if folder else "give a .safetensors file")
    if file.suffix != ".safetensors":
        raise ModelError(
            "is no safetensors file, and reading others can run code", place=str(file), fix=what_it_is(file)[1]
        )
    if is_adapter(file):
        fix = f"in a recipe, write model: BASE and adapter: {file.name}; {FUSE}"
        raise ModelError("is an adapter, and no model by itself", place=str(file), fix=fix)
    tensors = read_header(file).tensors
    layouts = layouts_of(tensors)
    if not any(layout.component in DENOISERS for layout in layouts):
        raise _unknown(file, tensors)
    return tensors, layouts


def _unknown(file: Path, tensors: Mapping[str, Stored]) -> ModelError:
    message, fix = what_it_is(file)
    if fix == PART_FIX:
        return ModelError(message, place=str(file), fix=fix)
    family = family_of(tensors)
    known = f"of the family {family}, whose layout pare does not know" if family else "no checkpoint that pare knows"
    fix = (
        "give a checkpoint of Stable Diffusion 1, 2, 3, XL or FLUX.1, or the folder of the model, as diffusers saves it"
    )
    return ModelError(f"is {known}", place=str(file), fix=fix)


def _configs(folder: Path, file: Path) -> Artifact:
    """The folder that the configs are from, as a model.

    Raises:
        ModelError: it holds no pipeline.
    """
    try:
        found = describe(folder)
    except ModelError as error:
        first = error.problems[0]
        raise ModelError(
            f"{first.message}: the configs of {shown(file)} were to be here", place=first.place, fix=first.fix
        ) from error
    if found.writes_text or not (folder / INDEX).is_file():
        message = f"is no pipeline of diffusers, and the configs of {shown(file)} were to be here"
        raise ModelError(message, place=str(folder), fix="give the folder of one, with model_index.json")
    if (folder / MANIFEST).is_file() and any(part.format != "torch" for part in found.components.values()):
        raise ModelError(
            "holds engines, and no configs of a torch model", place=str(folder), fix="give the torch model"
        )
    return found


XL = "StableDiffusionXL"  # how the classes of its pipelines begin


def _misfits(
    file: Path, tensors: Mapping[str, Stored], layouts: tuple[Layout, ...], model: Artifact
) -> Iterator[Problem]:
    """Why a file and configs do not belong together, or diffusers would take something else of them than is meant."""
    place, fix = str(file), _belonging(tensors)
    kind = read_json(model.path / INDEX).get("_class_name", "this pipeline")
    for layout in layouts:
        part = model.components.get(layout.component)
        if part is None or (layout.kinds and part.kind not in layout.kinds):
            has = f"a {part.kind}" if part else "none"
            message = f"holds a `{layout.component}` ({layout.kinds[0]}), and {kind} of {shown(model.path)} has {has}"
            yield Problem(place, message, fix)
    read = [layout.begins for layout in layouts]
    encoders = {match[0]: name for name in tensors if (match := ENCODER.match(name))}
    for front, name in encoders.items():
        if not any(begins.startswith(front) for begins in read):
            message = f"holds a text encoder under names that diffusers does not read ({name})"
            yield Problem(
                place,
                message,
                "save it with the program that wrote it, or without this part, which then is the configs' folder's",
            )
    own = {tensors[name].dtype for layout in layouts for name in owned(layout, tensors)}
    if strange := sorted(own & PACKED):
        message = f"has weights of 8 bits ({', '.join(strange)}), which diffusers would take for plain ones"
        yield Problem(place, message, "give the same checkpoint in float16 or bfloat16; a stage quantizes it then")
    if any(layout.component == "unet" for layout in layouts):
        yield from _unet_misfits(file, tensors, model)


def _unet_misfits(file: Path, tensors: Mapping[str, Stored], model: Artifact) -> Iterator[Problem]:
    """What shapes do not tell of a UNet: whether it reads the size of the image, and what it predicts."""
    fix = _belonging(tensors)
    reads = any("label_emb.0.0." in name or "add_embedding.linear_1." in name for name in tensors)
    wanted = model.known_config("unet").get("addition_embed_type") == "text_time"
    if reads != wanted and "unet" in model.components:
        what = "is of Stable Diffusion XL's kind" if reads else "is not of Stable Diffusion XL's kind"
        place = str(model.folder("unet") / "config.json")
        yield Problem(
            place, f"addition_embed_type {'is' if wanted else 'is not'} text_time, and {shown(file)} {what}", fix
        )
    kind = str(read_json(model.path / INDEX).get("_class_name", ""))
    if kind.startswith("StableDiffusion") and kind.startswith(XL) != wanted:
        message = f"_class_name is {kind}, and its UNet {'is' if wanted else 'is not'} of Stable Diffusion XL's kind"
        yield Problem(str(model.path / INDEX), message, "give the whole folder of one family")
    if MARK in tensors and (stated := _scheduler(model).get("prediction_type", "epsilon")) != V_PREDICTION:
        place = str(model.path / "scheduler/scheduler_config.json")
        message = f"prediction_type is {stated}, and {shown(file)} says by its tensor {MARK} that it predicts v"
        yield Problem(
            place,
            message,
            "set prediction_type to v_prediction there (and rescale_betas_zero_snr to true if the file has `ztsnr`)",
        )


def _scheduler(model: Artifact) -> Mapping[str, Any]:
    """The scheduler's config; empty where there is none."""
    try:
        return model.config(SCHEDULER)
    except ModelError:
        return {}


def _belonging(tensors: Mapping[str, Stored]) -> str:
    repository = repository_of(family_of(tensors))
    hub = f": diffusers takes hf://{repository}@<commit> for its family" if repository else ""
    return f"give the configs that belong to the file{hub}"


def _part(file: Path, layout: Layout, tensors: Mapping[str, Stored], model: Artifact) -> Part:
    """Raises a ModelError where the config does not say how the part is built."""
    name = layout.component
    own = {tensor: tensors[tensor] for tensor in owned(layout, tensors)}
    kind, place = model.components[name].kind, str(model.folder(name) / "config.json")
    try:
        shapes, config = {tensor: one.shape for tensor, one in own.items()}, model.config(name)
        into, strange = converted(layout, shapes, config, kind), passed_over(layout, shapes, config)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        message = f"does not say how `{name}` of {shown(file)} is built: {type(error).__name__}: {error}"
        raise ModelError(message, place=place, fix=_belonging(tensors)) from error
    if (
        "FluxTransformer2DModel" in layout.kinds
        and (width := own[f"{layout.begins}img_in.weight"].shape[0]) != FLUX_WIDTH
    ):
        message = f"is a FLUX of width {width}, and diffusers converts those of {FLUX_WIDTH} alone"
        raise ModelError(message, place=str(file), fix="give the model's folder, as diffusers saves it")
    if strange:
        more = f" and {len(strange) - 1} more" * (len(strange) > 1)
        message = f"has tensors in `{name}` that diffusers knows nothing of, and would leave out ({strange[0]}{more})"
        raise ModelError(message, place=str(file), fix=_belonging(tensors))
    held = {one.dtype for one in own.values()}
    return Part(layout, into, next((dtype for dtype, *_ in TYPES if dtype in held), "F32"))


def _in(place: str, sketch: Path, configs: Path) -> str:
    """A place in the sketch as its user knows it."""
    return str(configs / Path(place).relative_to(sketch)) if Path(place).is_relative_to(sketch) else place


def _levels(sketch: Artifact, parts: Mapping[str, Part]) -> Iterator[Problem]:
    """Levels of a UNet, and blocks of its attention, of which the file has another number than the config."""
    if "unet" not in parts:
        return
    config, place, names = sketch.config("unet"), str(sketch.folder("unet") / "config.json"), parts["unet"].tensors
    widths = list(config.get("block_out_channels", ()))
    found = [
        names.get(f"down_blocks.{level}.resnets.0.conv1.weight", (0,))[0]
        for level in range(1 + max((int(n.split(".")[1]) for n in names if n.startswith("down_blocks.")), default=-1))
    ]
    if found != widths:
        yield Problem(place, f"block_out_channels are {widths}, and the weights' {found}")
        return
    depth = config.get("transformer_layers_per_block", 1)
    for level in range(len(widths)):
        wanted = (
            depth
            if isinstance(depth, int)
            else depth[level]
            if isinstance(depth, list) and level < len(depth)
            else None
        )
        front = f"down_blocks.{level}.attentions.0.transformer_blocks."
        blocks = {name.removeprefix(front).partition(".")[0] for name in names if name.startswith(front)}
        attends = str((config.get("down_block_types") or [""] * len(widths))[level]).startswith("CrossAttn")
        if attends != bool(blocks) or (blocks and isinstance(wanted, int) and len(blocks) != wanted):
            message = f"level {level} of `unet` has {wanted if attends else 0} blocks of attention by this config, and {len(blocks)} in the weights"
            yield Problem(place, message)
            return


def _taken(model: Artifact, parts: Mapping[str, Part]) -> Iterator[Path]:
    """The files of the configs' folder that go into the model, relative: no weights that the file replaces, nobody's copies, and no parts
    that judge images."""
    without = {file.relative_to(model.path) for file in holding(model, parts)}
    for file in list_files(model.path):
        if file not in without and file.name != MANIFEST and file.parts[0] not in LEFT_OUT:
            yield file


def _sketch(file: Path, configs: Path, model: Artifact, parts: Mapping[str, Part], root: Path | None) -> Path:
    """The folder of the model as it will be."""
    taken = tuple(_taken(model, parts))
    stamps = [[str(one), *identity(configs / one)] for one in taken]
    key = digest_json([STAGE, VERSION, str(file.resolve()), *identity(file), str(configs.resolve()), stamps])

    def fill(made: Path) -> None:
        for one in taken:
            (made / one).parent.mkdir(parents=True, exist_ok=True)
            (made / one).symlink_to((configs / one).resolve())
        _write(made / INDEX, _without_judges(read_json(configs / INDEX)))
        for name, part in parts.items():
            config = made / name / "config.json"
            _write(config, _typed(read_json(config), part.dtype))
            _write_header(made / name / f"{STEMS.get(library_of(made, name), 'model')}.safetensors", part)

    return view(root, key, fill)


def _without_judges(index: dict[str, Any]) -> dict[str, Any]:
    """An index without the parts that judge images."""
    gone = {name: [None, None] for name in named_parts(index) if name in LEFT_OUT}
    checked = {"requires_safety_checker": False} if "requires_safety_checker" in index else {}
    return {**index, **gone, **checked}


def _typed(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """A config that says of its weights what they are, if it says anything."""
    kind = next((name for stored, _, name in TYPES if stored == dtype), "float32")
    return {key: kind if key in ("torch_dtype", "dtype") else value for key, value in config.items()}


def _write(file: Path, content: Mapping[str, Any]) -> None:
    """JSON in place of a link, which is not written through."""
    file.unlink(missing_ok=True)
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_header(file: Path, part: Part) -> None:
    """The header that the weights will have, and as much room as they will take, which file systems do not allot until it is written to."""
    wide = "T5EncoderModel" in part.layout.kinds and part.dtype == "F16"
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in sorted(part.tensors.items()):
        dtype = "F32" if wide and WIDE in name.split(".") else part.dtype
        begin, end = end, end + BYTES[dtype] * prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.truncate(8 + len(text) + end)

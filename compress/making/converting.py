"""A checkpoint in one file, written as diffusers keeps models: each component by diffusers' own converter, in the number type that it has."""

from __future__ import annotations

import gc
import importlib
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.artifact import Provenance, derive, holding, write_manifest
from compress.errors import ModelError
from compress.model.original_families import PREFIX
from compress.model.original_layouts import owned, unet
from compress.model.resave_advice import TYPES
from compress.pipelines.index import library_of
from compress.sources.originals import STAGE, VERSION, Conversion, Part, refuse_lacking

if TYPE_CHECKING:
    from torch import Tensor

FAILS = (
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    RuntimeError,
    OSError,
)  # of a converter on a file that is not its own


def convert(found: Conversion, key: str, out: Path) -> None:
    """Write the model.

    Raises:
        ModelError: neither the file nor its configs' folder holds some part, or diffusers does not read it so.
    """
    refuse_lacking(found)
    sketch = found.sketch
    planned = tuple(str(file.relative_to(sketch.path)) for file in holding(sketch, found.parts))
    made = derive(sketch, out, without=planned, link=False)
    for name, part in found.parts.items():
        _component(found, name, part, out / name)
        shutil.copyfile(
            sketch.folder(name) / "config.json", out / name / "config.json"
        )  # the user's, which names no place
        gc.collect()
    params = {"file": found.file.name, "parts": sorted(found.parts)}
    write_manifest(replace(made, lineage=(*made.lineage, Provenance(STAGE, VERSION, params, key))))


def _component(found: Conversion, name: str, part: Part, out: Path) -> None:
    """Have diffusers make one component of the file's tensors.

    Raises:
        ModelError: it does not, or the file has too few for it, or more than it takes.
    """
    from safetensors import safe_open

    from compress.engines.torch.runtime import silent_libraries

    kind = found.sketch.components[name].kind
    with safe_open(found.file, framework="pt") as stored:
        held = {one: stored.get_tensor(one) for one in owned(part.layout, stored.keys())}
    try:
        with silent_libraries(diffusers=True):
            cls = getattr(importlib.import_module(library_of(found.sketch.path, name)), kind)
            _compare(part, _empty(found, name, cls))
            model = _made(found, name, part, held, cls)
            model.save_pretrained(out, safe_serialization=True)
    except FAILS as error:
        first = f"{type(error).__name__}: {error}".partition("\n")[0][:300]
        message = f"diffusers does not make `{name}` ({kind}) of it: {first}"
        fix = "give configs that belong to it, or fetch the file again"
        raise ModelError(message, place=str(found.file), fix=fix) from error


def _empty(found: Conversion, name: str, cls: Any) -> Any:
    """A component of its config, without numbers."""
    from accelerate import init_empty_weights

    folder = str(found.sketch.folder(name))
    with init_empty_weights():
        if hasattr(cls, "load_config"):
            return cls.from_config(cls.load_config(folder))
        return cls(cls.config_class.from_pretrained(folder))


def _compare(part: Part, empty: Any) -> None:
    """Raises a ValueError where a file has weights that its config has no place for, or none for some place: diffusers would leave out the
    ones, and make up the others, without a word."""
    tied = set(getattr(empty, "all_tied_weights_keys", None) or getattr(empty, "_tied_weights_keys", None) or ())
    lacking = sorted(one for one, _ in empty.named_parameters() if one not in part.tensors and one not in tied)
    extra = sorted(part.tensors.keys() - empty.state_dict().keys())
    for names, message in (
        (lacking, "the file has no weights for"),
        (extra, "by its config it has no place for the file's"),
    ):
        if names:
            raise ValueError(f"{message} {names[0]}{f' and {len(names) - 1} more' * (len(names) > 1)}")


def _made(found: Conversion, name: str, part: Part, held: Mapping[str, Tensor], cls: Any) -> Any:
    """A component with its weights, by the function that diffusers' `from_single_file` has for its kind."""
    import torch
    from diffusers.loaders import single_file_utils as loaders

    kind, library = found.sketch.components[name].kind, library_of(found.sketch.path, name)
    dtype = getattr(torch, next(torch_name for stored, _, torch_name in TYPES if stored == part.dtype))
    given = {"config": str(found.sketch.path), "subfolder": name, "torch_dtype": dtype, "local_files_only": True}
    if library == "diffusers":
        front = (
            PREFIX if part.layout.convert is unet and not part.layout.begins else ""
        )  # of a UNet by itself it asks for more
        return cls.from_single_file({f"{front}{one}": weight for one, weight in held.items()}, **given)
    if kind == "T5EncoderModel":
        made = loaders.create_diffusers_t5_model_from_checkpoint(cls, checkpoint=dict(held), **given)
        made.tie_weights()  # its embedding has two names, and files may have one
        return made
    return loaders.create_diffusers_clip_model_from_ldm(cls, checkpoint=dict(held), **given)

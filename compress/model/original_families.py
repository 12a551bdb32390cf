"""Which family of checkpoints the header of a file shows, and whose configs belong to it: by diffusers' own rule and tables, taken from the
source of the installed version, for importing it takes seconds."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from types import SimpleNamespace
from typing import Any

from compress.files.safetensors_headers import Stored
from compress.machine.library_classes import loader_source

RULE, TELLING, REPOSITORIES = "infer_diffusers_model_type", "CHECKPOINT_KEY_NAMES", "DIFFUSERS_DEFAULT_PIPELINE_PATHS"
OTHERWISE = "v1"  # what the rule says of whatever it does not know
PREFIX = "model.diffusion_model."  # of the denoiser's tensors, in files that hold more than it
UNET, SD3 = "input_blocks.", "joint_blocks."  # how the names of denoisers' tensors begin


def family_of(tensors: Mapping[str, Stored]) -> str:
    """What diffusers calls the family of a checkpoint, such as `xl_base`; "" of a file that shows none."""
    bare = any(name.startswith(UNET) for name in tensors)
    whole = {f"{PREFIX}{name}": one for name, one in tensors.items()} if bare else tensors
    rule = _taken().get(RULE)
    try:
        found = str(rule(whole)) if rule else OTHERWISE
    except (LookupError, ValueError, UnboundLocalError):  # of a file that only begins like one of a family
        return ""
    if found != OTHERWISE:
        return found
    # The rule asks for tensors that only models of the usual size have.
    if any(name.startswith("conditioner.embedders.1.") for name in whole) or f"{PREFIX}label_emb.0.0.weight" in whole:
        return "xl_base"
    if any(name.removeprefix(PREFIX).startswith(SD3) for name in whole):
        return "sd3"
    return OTHERWISE if any(name.startswith((PREFIX + UNET, f"{PREFIX}output_blocks.")) for name in whole) else ""


def repository_of(family: str) -> str:
    """The repository of the hub whose configs diffusers takes for a family; "" where it knows none."""
    return str(_taken().get(REPOSITORIES, {}).get(family, {}).get("pretrained_model_name_or_path", ""))


def families() -> tuple[str, ...]:
    """All that diffusers knows."""
    return tuple(_taken().get(REPOSITORIES, {}))


@cache
def _taken() -> Mapping[str, Any]:
    """The rule and both tables by their names; empty of a diffusers that has them elsewhere."""
    tree = ast.parse(loader_source())
    wanted = [node for node in tree.body if _named(node) in (RULE, TELLING, REPOSITORIES)]
    # One rule looks into a tensor, which a header does not have: what it tells apart is not text to image.
    found: dict[str, Any] = {"torch": SimpleNamespace(all=bool)}
    exec(compile(ast.Module(wanted, []), "diffusers", "exec"), found)
    return found


def _named(node: ast.stmt) -> str:
    if isinstance(node, ast.FunctionDef):
        return node.name
    target = node.targets[0] if isinstance(node, ast.Assign) else None
    return target.id if isinstance(target, ast.Name) else ""

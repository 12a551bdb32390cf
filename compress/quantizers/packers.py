"""Components packed one after another, and what was reached reported: what every stage does whose library packs weights while it loads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from compress.artifact import Artifact, Quantization, derive, rewritten, write_manifest
from compress.context import Context
from compress.quantization.reach import check_ignored, model_library, reach, same_layer, spellings


def pack_all(
    artifact: Artifact,
    names: tuple[str, ...],
    ignore: tuple[str, ...],
    config: Callable[[str, tuple[str, ...]], Any],
    packing: Quantization,
    context: Context,
    further: Mapping[str, tuple[str, ...]] | None = None,
) -> None:
    """Fill `context.out` with the artifact, these components packed.

    Args:
        config: of a component's quantization, given its name and the layers that stay as they are.
        further: by component, layers that stay as they are too.

    Raises:
        UserError: a pattern of `ignore` names no layer.
        StageFailed: the library packed other layers than it was asked to.
    """
    from compress.quantizers.packing import pack

    check_ignored(artifact, names, ignore)
    made = derive(artifact, context.out, without=rewritten(artifact, names), link=context.link)
    made = made.packing(dict.fromkeys(names, packing))
    for name in context.progress(names, "components", len(names)):
        found, chosen = reach(artifact, name, ignore), (further or {}).get(name, ())
        left = tuple(sorted((*(layer.name for layer in found.left), *chosen)))
        named = left if model_library(artifact, name) == "diffusers" else spellings(left)
        packed = pack(artifact, name, made.folder(name), config(name, named), left, context.opening)
        asked = (layer.name for layer in found.packed if layer.name not in chosen)
        over = sorted(layer for layer in asked if not any(same_layer(layer, one) for one in packed))
        beside = f"; not reached: {', '.join(over[:3])}{' …' if len(over) > 3 else ''}" if over else ""
        context.note(f"{name}: {len(packed)} layers packed{beside}", component=name, layers=len(packed))
    write_manifest(made)

"""Which heights and widths a pipeline can generate, read from its parts' configs and from the check in its own class's source."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from math import lcm, prod
from typing import Any

from compress.artifact import MANIFEST, Artifact, read_json
from compress.errors import Problem
from compress.machine.library_classes import source_of
from compress.pipelines.index import INDEX

SIDES = ("height", "width")
AREA, RESIZES = "max_area", "_auto_resize"
SIDE = 512  # pixels, of a pipeline that nothing tells the size of

# As pipelines write it: `height % 8 != 0`, `height % (self.vae_scale_factor * 2) != 0`.
MULTIPLE = re.compile(r"\bheight % (?:\((?P<product>[\w.* ]+)\)|(?P<one>[\w.]+)) != 0")
FIXED = re.compile(
    r"self\.vae_scale_factor = (\d+)$", re.MULTILINE
)  # as a few pipelines have it, whatever their VAE says
DEFAULT = re.compile(r"self\.default_sample_size = (\d+)$", re.MULTILINE)  # as those that no config tells
BINNED = "use_resolution_binning"  # such pipelines generate the nearest size that they know, and resize it

KNOWN = re.compile(r"[\[(](\d{3,4})(?:\.0)?, (\d{3,4})(?:\.0)?[\])]")  # sizes, as they list them
ALIKE = 0.1  # share of their pixels by which the sizes of one list differ

SIZED = re.compile(r"transformer\.config\.sample_size == (\d+)")  # as they ask which table of sizes to look in


def called_size(artifact: Artifact, call: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width of what a pipeline that is given images is given by a call, and generates."""
    own = own_size(artifact) or SIDE
    tall, wide = (call.get(side) or artifact.settings.call.get(side) or own for side in SIDES)
    return int(tall), int(wide)


def exactly(takes: Mapping[str, object], height: int, width: int) -> dict[str, Any]:
    """The arguments beside height and width with which a pipeline generates that size: FLUX Kontext would look at, and generate, the nearest that
    it was trained on.

    Args:
        takes: the arguments of its call.
    """
    return {AREA: height * width, RESIZES: False} if RESIZES in takes else {}


def size_problems(artifact: Artifact) -> Iterator[Problem]:
    """Sizes of an artifact's own call that its pipeline cannot generate."""
    reported = artifact.path / MANIFEST
    for _, message, fix in size_faults(artifact):
        yield Problem(str(reported if reported.is_file() else artifact.path), message, fix)


def size_faults(artifact: Artifact) -> Iterator[tuple[str, str, str]]:
    """Sizes of a call that its pipeline refuses, cuts down, or has no table or positions for: the argument, what is wrong, and
    the nearest that it generates."""
    call, multiple = artifact.settings.call, size_multiple(artifact)
    most = _largest(artifact)
    if call.get(BINNED, True) and (known := unbinned(artifact)):
        message = f"`{artifact.main}` has a sample_size with no table of image sizes (there are some for {', '.join(map(str, known))})"
        yield BINNED, message, f'write "{BINNED}": false among the arguments of its call, in {MANIFEST}'
    for side in SIDES:
        asked = call.get(side)
        if asked is None:
            continue
        if type(asked) is not int or asked < 1:
            message = f"{side} is {asked!r}, and an image has a whole number of pixels"
            yield side, message, "give one, or leave it out"
        elif most and asked > most:
            yield side, f"{side} {asked} is more than the positions of `{artifact.main}` reach", f"at most {most}"
        elif asked % multiple:
            near = max(multiple, round(asked / multiple) * multiple)
            message = f"{side} {asked} cannot be generated: it is no multiple of {multiple}"
            yield side, message, f"{near} is the nearest"


def unbinned(artifact: Artifact) -> tuple[int, ...]:
    """The sample sizes that a pipeline has tables of image sizes for, where its model's own is none of them: it generates only with
    `use_resolution_binning` off. () where it has one, or asks for none."""
    source, own = _source(artifact), artifact.known_config(artifact.main).get("sample_size") if artifact.main else None
    known = (
        {int(size) for size in SIZED.findall(source)} if BINNED in source and "Invalid sample size" in source else set()
    )
    return tuple(sorted(known)) if isinstance(own, int) and own not in known else ()


def bins(artifact: Artifact) -> bool:
    """Whether its pipeline generates the nearest size that it knows, and resizes that to the one that is asked for."""
    return BINNED in _source(artifact) and bool(artifact.settings.call.get(BINNED, True))


def resized(artifact: Artifact, height: int, width: int) -> bool:
    """Whether another number of pixels is generated than these, which the image is then resized to: neither its time nor its detail
    goes with them."""
    if not bins(artifact):
        return False
    known = {(int(one), int(other)) for one, other in KNOWN.findall(_source(artifact))}
    own = own_size(artifact) ** 2
    near = own and abs(height * width - own) <= ALIKE * own
    return not near and known.isdisjoint({(height, width), (width, height)})


def own_size(artifact: Artifact) -> int:
    """How high and wide a pipeline generates where a call does not say; 0 where nobody knows."""
    stated = DEFAULT.search(_source(artifact))
    known = artifact.known_config(artifact.main).get("sample_size") if artifact.main else None
    latents = int(stated[1]) if stated else known
    return latents * pixels_a_latent(artifact) if isinstance(latents, int) else 0


def _source(artifact: Artifact) -> str:
    index = artifact.path / INDEX
    return source_of(str(read_json(index).get("_class_name")), "pipelines") if index.is_file() else ""


def size_multiple(artifact: Artifact) -> int:
    """What an image's sides are multiples of; 1 where any size will do, or nothing is known."""
    source = _source(artifact)
    if bins(artifact):
        return 1
    pixels, fixed = pixels_a_latent(artifact), FIXED.search(source)
    known = {"self.vae_scale_factor": int(fixed[1]) if fixed else pixels, "self.patch_size": _patch(artifact)}
    found = MULTIPLE.search(source)
    factors = [f.strip() for f in (found["product"] or found["one"]).split("*")] if found else []
    values = [int(f) if f.isdigit() else known.get(f, 0) for f in factors]
    return lcm(prod(values) or 1, pixels or 1)  # what a latent does not cover is cut off


def pixels_a_latent(artifact: Artifact) -> int:
    """How many pixels wide a VAE's latent pixel is; 0 where its config does not say."""
    config = artifact.known_config("vae") if "vae" in artifact.components else {}
    levels = config.get("encoder_block_out_channels") or config.get("block_out_channels")
    if isinstance(levels, list) and levels:
        return 1 << (len(levels) - 1)
    halvings = config.get("temperal_downsample")  # as diffusers spells it
    return 1 << len(halvings) if isinstance(halvings, list) else 0


def _patch(artifact: Artifact) -> int:
    found = artifact.known_config(artifact.main).get("patch_size", 1) if artifact.main else 1
    return found if isinstance(found, int) else 0


def _largest(artifact: Artifact) -> int:
    """The longest side that SD3's table of positions covers; 0 where nothing limits it."""
    if not artifact.main or artifact.components[artifact.main].kind != "SD3Transformer2DModel":
        return 0
    positions = artifact.known_config(artifact.main).get("pos_embed_max_size")
    return positions * _patch(artifact) * pixels_a_latent(artifact) if isinstance(positions, int) else 0

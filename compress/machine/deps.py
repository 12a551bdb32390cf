"""Optional libraries: asked for by name, refused with the command that installs them."""

from __future__ import annotations

import importlib
import logging
import re
from functools import cache
from importlib import metadata, util
from types import ModuleType

from compress.errors import MissingLibrary

TALKATIVE = ("torchao", "torch.utils._pytree")
INSTEAD = {
    "onnxruntime": ("onnxruntime-gpu",)
}  # other distributions that bring the same module, and are installed in place of it
DEVELOPERS = "dev"  # an extra that brings what others bring, for those who work on pare


def need(module: str, extra: str = "") -> ModuleType:
    """Import `module`, or say how to install it.

    Raises:
        MissingLibrary: it is not installed.
    """
    if not installed(module):
        what = f"'pare[{extra}]'" if extra else module.replace("_", "-")
        raise MissingLibrary(f"the library `{module}` is not installed", fix=f"pip install {what}")
    return importlib.import_module(module)


def installed(module: str) -> bool:
    """Whether `module` could be imported; imports nothing but its parent packages."""
    try:
        return util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def hush() -> None:
    """Keep to themselves what optional libraries say of their own insides when they are imported, such as of kernels for other GPUs."""
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)


def version(library: str) -> str:
    """The installed version of a distribution, or of one that is installed in place of it; "" when it is absent."""
    for name in (library, *INSTEAD.get(library, ())):
        try:
            return _version(name)
        except metadata.PackageNotFoundError:
            continue
    return ""


def both_installed(library: str) -> bool:
    """Whether a distribution and one that is meant to be in place of it are there at once, in one folder."""
    return sum(map(_is_there, (library, *INSTEAD.get(library, ())))) > 1


def _is_there(name: str) -> bool:
    try:
        return bool(_version(name))
    except metadata.PackageNotFoundError:
        return False


@cache
def _version(library: str) -> str:
    return metadata.version(library)  # reads all that a distribution says of itself


def canonical(library: str) -> str:
    """A distribution's name as indexes spell it: torch_pruning is torch-pruning."""
    return re.sub(r"[-_.]+", "-", library).lower()


@cache
def extras_of(distribution: str) -> dict[str, str]:
    """What an installed distribution depends on, by canonical name, each with the extra that brings it; "" for what always comes.
    Nothing is known of one that is not installed, such as pare itself where it runs from its source.

    Its own extras are followed: what `tensorrt` brings through `onnx` is onnx's.
    """
    found: dict[str, str] = {}
    try:
        required = metadata.requires(distribution) or ()
    except metadata.PackageNotFoundError:
        return {}
    for line in required:
        name, marker = re.split(r"[\s;\[<>=!~(]", line, maxsplit=1)[0], line.partition("extra ==")[2]
        extra = marker.strip(" '\"")
        if extra != DEVELOPERS and canonical(name) != distribution:
            found.setdefault(canonical(name), extra)
    return found

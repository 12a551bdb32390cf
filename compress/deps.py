"""Optional libraries: asked for by name, refused with the command that installs them."""

from __future__ import annotations

import importlib
from importlib import metadata, util
from types import ModuleType

from compress.errors import MissingLibrary


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


def version(library: str) -> str:
    """The installed version of a distribution, or "" when it is absent."""
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return ""

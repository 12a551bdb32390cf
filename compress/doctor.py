"""What this machine can do, and the one command that installs what lacks. Imports no heavy library to find out."""

from __future__ import annotations

import os
import platform
import shutil
import sys

from compress import deps
from compress.cache import default_root
from compress.planning import machine_fact

LIBRARIES = {  # distribution → the command that installs it
    "torch": "pip install pare",
    "transformers": "pip install pare",
    "diffusers": "pip install pare",
    "openvino": "pip install pare",
    "nncf": "pip install pare",
    "torch-pruning": "pip install pare",
    "onnxruntime": "pip install 'pare[onnx]'",
    "bitsandbytes": "pip install 'pare[bitsandbytes]'",
    "lm-eval": "pip install 'pare[lm-eval]'",
    "gptqmodel": "pip install 'pare[gptq]'",
    "tensorrt_rtx_cu13": "pip install 'pare[tensorrt]'",
}


def diagnose() -> dict[str, dict[str, str]]:
    """Sections of facts, each a name and a line of text."""
    import psutil

    supported = sys.platform in ("linux", "darwin")
    machine = {
        "system": f"{platform.platform()}{'' if supported else ' (not supported yet)'}",
        "python": platform.python_version(),
        "processor": machine_fact("isa"),
        "cores": f"{psutil.cpu_count(logical=False)} physical, {os.cpu_count()} logical",
        "memory": f"{psutil.virtual_memory().total / 1e9:.1f} GB, {psutil.virtual_memory().available / 1e9:.1f} GB free",
        "gpu": "NVIDIA driver found" if shutil.which("nvidia-smi") else "none found",
    }
    libraries = {name: deps.version(name) or f"not installed: {command}" for name, command in LIBRARIES.items()}
    root = default_root()
    above = next(p for p in (root, *root.parents) if p.exists())
    cache = {"folder": str(root), "free": f"{shutil.disk_usage(above).free / 1e9:.1f} GB"}
    return {"machine": machine, "libraries": libraries, "cache": cache}

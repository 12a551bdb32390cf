"""Nothing that a library would report is kept or sent: importing pare is enough."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CALL = """
import compress
import onnxruntime
from onnx import TensorProto, helper
ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "graph", ports[:1], ports[1:])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
model.ir_version = 10
onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
"""


def test_onnx_runtime_keeps_no_events(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / ".cache")}
    subprocess.run([sys.executable, "-c", CALL], check=True, env={**os.environ, **home})
    assert [str(f) for f in tmp_path.rglob("*") if "onnxruntime" in str(f) or "Microsoft" in str(f)] == []


def test_what_the_user_has_set_stays(tmp_path: Path) -> None:
    code = "import os, compress; print(os.environ['HF_HUB_DISABLE_TELEMETRY'])"
    env = {**os.environ, "HF_HUB_DISABLE_TELEMETRY": "0"}
    done = subprocess.run([sys.executable, "-c", code], check=True, env=env, capture_output=True, text=True)
    assert done.stdout == "0\n"

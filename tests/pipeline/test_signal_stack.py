"""A process that has used OpenVINO hears Ctrl-C still: its plugins leave signal stacks behind that are no more."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SETUP = """
import gc, signal
import numpy as np
import openvino
from openvino import opset13 as ops
from compress.engines.openvino.core import core, signals_recorded
from compress.engines.openvino.quantize import quantize_activations

def graph():
    given = ops.parameter([-1, 8], np.float32, name="x")
    weights = ops.constant(np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32))
    model = openvino.Model([ops.matmul(given, weights, False, True)], [given], "tiny")
    model.inputs[0].get_tensor().set_names({"input.x"})
    return model

def recorded():
    gc.collect()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        print("recorded")
"""
ENGINES = """
models = [core().compile_model(graph(), "CPU") for _ in range(3)]
while models:
    del models[0]
recorded()
"""
OTHERS = """
with signals_recorded():
    first, second = openvino.Core(), openvino.Core()
    for one in (first, second):
        one.get_property("CPU", "FULL_DEVICE_NAME")
    del one, first
    gc.collect()
    del second
recorded()
"""
NNCF = """
data = [{"x": np.full((2, 8), i, np.float32)} for i in range(4)]
made = [quantize_activations(graph(), data) for _ in range(2)]
recorded()
"""


@pytest.mark.parametrize("work", [ENGINES, OTHERS, NNCF], ids=["engines", "cores of others", "nncf"])
def test_an_interrupt_is_recorded_after(work: str) -> None:
    done = subprocess.run([sys.executable, "-c", SETUP + work], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "recorded\n"), done.stderr


def test_no_file_of_ours_opens_a_core_that_is_let_go() -> None:
    import compress

    places = Path(compress.__file__).parent.rglob("*.py")
    found = {p.name: p.read_text().count("openvino.Core()") for p in places if "openvino.Core()" in p.read_text()}
    # quantize.py reads a graph with one of its own, which opens no plugin.
    assert found == {"core.py": 1, "quantize.py": 1}

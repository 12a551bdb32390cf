"""OpenVINO: a graph compiled for the processor available here."""

from __future__ import annotations

from compress.engines import Engine, tolerances

MODEL, WEIGHTS = "openvino_model.xml", "openvino_model.bin"

ENGINE = Engine(
    format="openvino",
    title="OpenVINO",
    distribution="openvino",
    files=(MODEL, WEIGHTS),
    devices=frozenset({"cpu"}),
    precisions=tolerances("float32", "bfloat16", "int8", "int8_weights", "int4_weights"),
    weights=lambda folder: tuple(folder.glob(WEIGHTS)),
    keeps_type=True,
)

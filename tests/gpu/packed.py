"""Part i: recipes that pack weights with torchao in the ways that a GPU alone computes with, and what that costs."""

from __future__ import annotations

import copy
from typing import Any, TypeAlias

from tests.gpu.recipes import run_body
from tests.gpu.sections import Report, Section

Step: TypeAlias = dict[str, dict[str, Any]]

MODES = ("int4_weights", "float8", "int8_weights")
RECIPE: dict[str, Any] = {
    "schema": 1,
    "model": "zoo://docs-llama",
    "seed": 0,
    "data": {"evaluate": "zoo://docstrings/test"},
    "evaluate": {
        "baseline": {"dtype": "bfloat16"},
        "samples": 200,
        "stage_samples": 0,
        "timing_blocks": 12,
        "metrics": ["perplexity", "kl", "size", "throughput"],
    },
    "gates": {"perplexity": {"worse_by": "10%"}},
}


def torchao(tiny: bool, report: Report) -> None:
    """zoo://docs-llama packed each way, decoding from CUDA graphs, beside the same graphs in bfloat16 as a control."""
    for mode in ("int8_weights",) if tiny else MODES:  # the processor's alone
        pack: Step = {"quantize.torchao": {"mode": mode, "from": "source"}}
        plain: Step = {"accelerate.cuda_graph": {"from": "source", "id": "graphs"}}
        body = {**copy.deepcopy(RECIPE), "name": mode.replace("_", "-")}
        body["stages"] = [pack] if tiny else [plain, pack, {"accelerate.cuda_graph": {}}]
        body["evaluate"]["controls"] = [] if tiny else ["graphs"]
        run_body(f"torchao/{mode}", body, tiny, lambda row, values, mode=mode: report(f"{mode}: {row}", values))


PARTS = {"i": (Section("torchao", 150, torchao, needs=("torchao",)),)}

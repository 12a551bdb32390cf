"""Part i: recipes that pack weights with torchao in the ways that a GPU alone computes with, and what that costs."""

from __future__ import annotations

import copy
import time
from typing import Any

from tests.gpu import sections
from tests.gpu.recipes import TINY_EVALUATION, model, tell, texts
from tests.gpu.sections import Report, Section

MODES = ("int4_weights", "float8", "int8_weights")
RECIPE: dict[str, Any] = {
    "schema": 1,
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
    import yaml

    import compress

    out = sections.OUT / "gpu" / "torchao"
    with model("docs-llama", tiny) as artifact:
        for mode in ("int8_weights",) if tiny else MODES:
            body = copy.deepcopy(RECIPE)
            graph: list[dict[str, Any]] = [{"accelerate.cuda_graph": {"from": "source", "id": "graphs"}}]
            then: list[dict[str, Any]] = [] if tiny else [{"accelerate.cuda_graph": {}}]
            pack = {"quantize.torchao": {"mode": mode, "from": "source"}}
            body |= {"name": mode.replace("_", "-"), "model": str(artifact.path), "device": "auto" if tiny else "cuda"}
            body["stages"] = [*(() if tiny else graph), pack, *then]
            if tiny:
                body["data"]["evaluate"] = str(texts(out.parent / "texts.txt").absolute())
                body["evaluate"] |= TINY_EVALUATION
            else:
                body["evaluate"]["controls"] = ["graphs"]
            (out / mode).mkdir(parents=True, exist_ok=True)
            (out / mode / "recipe.yaml").write_text(yaml.safe_dump(body, sort_keys=False))
            began = time.monotonic()
            found = compress.run(out / mode / "recipe.yaml", out=out / mode)
            tell(found, time.monotonic() - began, lambda row, values, mode=mode: report(f"{mode}: {row}", values))


PARTS = {"i": (Section("torchao", 150, torchao, needs=("torchao",)),)}

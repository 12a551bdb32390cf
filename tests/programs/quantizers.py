"""`make quantizers`: every quantizer on the zoo's language model, by bits: what each costs beside plain rounding, and what runs it.

Perplexity is that of the held-out documents, as the difference from the float32 model with its 95% interval over documents, and again as
the difference from plain rounding of as many bits, document by document: an interval wholly below 0 is a ratio wholly below 1. All round
linear layers in groups of 32 and leave the table of embeddings, which is the head too, where not said otherwise. Calibration is on
128 validation documents. Decoding is timed interleaved with eager float32 where a kernel for narrow weights ran; elsewhere weights are
decompressed first, and no speed is claimed.

python -m tests.programs.quantizers [folder]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

import compress
from compress.catalogue import find_stage
from compress.machine import deps
from evaluation.comparison import Comparison
from evaluation.report import formatting, result

ROOT = Path(__file__).parents[2]
HEAD = ("bits", "method", "perplexity", "beside plain rounding", "KL divergence, nats", "size", "weights", "decoding")
TAUGHT = "distill.quantized, 400 steps"
DECOMPRESSED = "decompressed"
GROUP = 32
Steps = list[dict[str, dict[str, Any]]]


@dataclass(frozen=True)
class Method:
    """One row. kernel: what multiplies narrow weights on a processor; "" where they are decompressed first. beside: what it is compared with
    document by document, by title."""

    bits: int
    title: str
    steps: Steps
    kernel: str = ""
    beside: Mapping[str, dict[str, dict[str, Any]]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.bits}-{''.join(letter if letter.isalnum() else '-' for letter in self.title)}"


def rounding(bits: int) -> dict[str, dict[str, Any]]:
    return {"quantize.autoround": {"method": "rtn", "bits": bits, "group_size": GROUP, "symmetric": True}}


def tuned(bits: int) -> dict[str, dict[str, Any]]:
    how = {"method": "autoround", "bits": bits, "group_size": GROUP, "symmetric": True, "iters": 100, "samples": 128}
    return {"quantize.autoround": how}


def of(bits: int) -> list[Method]:
    """The rows of a width, plain rounding first."""
    gptq = {"bits": bits, "group_size": GROUP, "symmetric": True, "samples": 128}
    taught = {"bits": bits, "group_size": GROUP, "steps": 400}
    plain = {"rounding": rounding(bits)}
    return [
        Method(bits, "plain rounding", [rounding(bits)]),
        Method(bits, "GPTQ", [{"quantize.gptq": gptq}], "GPTQModel's 4-bit kernel" if bits == 4 else "", plain),
        Method(bits, "AutoRound", [tuned(bits)], "", plain),
        *(
            [Method(bits, TAUGHT, [{"distill.quantized": taught}], "", {**plain, "AutoRound": tuned(bits)})]
            * (bits < 4)
        ),
        *(replace(method, beside=plain) for method in OTHERS[bits]),
        *(replace(of_llama(bits, *which), beside=plain) for which in LLAMA[bits]),
    ]


def of_llama(bits: int, type_: str, importance: bool) -> Method:
    given = {"type": type_, "embeddings": "bf16", "importance": importance, **({"samples": 128} if importance else {})}
    title = f"llama.cpp's {type_.upper()}{' with importance' if importance else ''}"
    return Method(bits, title, [{"build.gguf": {"precision": "bfloat16"}}, {"quantize.llamacpp": given}], "llama.cpp")


def of_nncf(title: str, **params: Any) -> Method:
    steps: Steps = [{"build.openvino": {}}, {"quantize.nncf": params}]
    return Method(8 if params["mode"] == "int8_weights" else 4, title, steps, "OpenVINO")


FOUR = {"mode": "int4_weights", "group_size": GROUP, "symmetric": True}
OTHERS = {
    8: [
        Method(8, "torchao int8_weights", [{"quantize.torchao": {}}]),
        Method(8, "torchao int8_dynamic", [{"quantize.torchao": {"mode": "int8_dynamic"}}], "torch's int8 products"),
        Method(8, "bitsandbytes int8", [{"quantize.bitsandbytes": {"mode": "int8"}}], "torch's int8 products"),
        of_nncf("NNCF int8_weights, embeddings too", mode="int8_weights"),
    ],
    4: [
        Method(4, "AWQ", [{"quantize.autoround": {"method": "awq", "bits": 4, "group_size": GROUP, "samples": 128}}]),
        Method(4, "bitsandbytes nf4, groups of 64", [{"quantize.bitsandbytes": {"mode": "nf4"}}]),
        of_nncf("NNCF int4_weights, embeddings too", **FOUR),
        of_nncf(
            "NNCF with AWQ and scale estimation, embeddings too",
            **FOUR,
            corrections=["awq", "scale_estimation"],
            samples=128,
        ),
    ],
    3: [],
    2: [],
}
LLAMA = {
    8: [("q8_0", False)],
    4: [("q4_0", False), ("q4_k_m", False), ("q4_k_m", True)],
    3: [("q3_k_m", False), ("q3_k_m", True)],
    2: [("q2_k", False), ("q2_k", True)],
}


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs") / "quantizers"
    methods = [method for bits in (8, 4, 3, 2) for method in of(bits) if available(method)]
    rows = [row(method, measured(method, folder)) for method in methods]
    text = "\n".join(f"| {' | '.join(cells)} |" for cells in (HEAD, ("---",) * len(HEAD), *rows))
    head = __doc__.split("\n\npython")[0].replace("`make quantizers`: every", "# Every", 1)
    (ROOT / "reports/quantizers.md").write_text(f"{head}\n\n{text}\n")


def available(method: Method) -> bool:
    return all(
        deps.version(library) for step in method.steps for name in step for library in find_stage(name).libraries
    )


def recipe_of(method: Method) -> dict[str, Any]:
    metrics = ["perplexity", "kl", "size", *(["throughput"] if method.kernel else [])]
    evaluate: dict[str, Any] = {"baseline": {"dtype": "float32"}, "stage_samples": 0, "metrics": metrics}
    evaluate |= {"controls": [*method.beside]} if method.beside else {}
    others = [{stage: {**how, "from": "source", "id": i} for stage, how in s.items()} for i, s in method.beside.items()]
    first = [{stage: {**how, "from": "source"} for stage, how in method.steps[0].items()}]
    places = {"calibration": "validation", "train": "train", "evaluate": "test"}
    data = {role: f"zoo://docstrings/{part}" for role, part in places.items()}
    return {
        "schema": 1,
        "name": method.name,
        "model": "zoo://docs-llama",
        "seed": 0,
        "data": data,
        "stages": [*others, *first, *method.steps[1:]],
        "evaluate": evaluate,
        "gates": {"perplexity": {"worse_by": "5%"}},
    }


def measured(method: Method, folder: Path) -> Comparison:
    """Run it, or take what an earlier run left in its folder."""
    out = folder / method.name
    if (out / "result.json").is_file():
        return result.from_dict(json.loads((out / "result.json").read_text()))
    folder.mkdir(parents=True, exist_ok=True)
    recipe = folder / f"{method.name}.yaml"
    recipe.write_text(yaml.safe_dump(recipe_of(method), sort_keys=False))
    return compress.run(recipe, out=out)


def row(method: Method, found: Comparison) -> tuple[str, ...]:
    rows = {r.metric: r for r in found.rows}
    perplexity, kl = rows["perplexity"], rows["kl"]
    beside = {c.stage: next(r.over for r in c.rows if r.metric == "perplexity") for c in found.controls}
    contrasts = [f"{formatting.contrast_of(perplexity, over)} beside {name}" for name, over in beside.items()]
    facts = found.stages[-1].get("facts", {})
    return (
        str(method.bits),
        method.title,
        f"{formatting.contrast(perplexity)} of {formatting.score(perplexity.baseline, '')}",
        "; ".join(contrasts).removesuffix(" beside rounding") or "–",
        formatting.contrast(kl).replace(" nats", ""),
        formatting.size(1e6 * rows["size"].candidate.value),
        str(facts.get("model weights", "–")),
        f"{formatting.contrast(rows['throughput'])}, {method.kernel}" if method.kernel else DECOMPRESSED,
    )


if __name__ == "__main__":
    main()

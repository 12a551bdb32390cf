"""What a quantizing stage costs over its library called by hand: wall time from the start of a process to its end, and memory.

GPTQModel, auto-round and NNCF, each with the same settings on the same model (random weights, 62 M parameters) and the same tokens, which
the plain scripts below are handed and pare makes itself. Both sides start anew each time, in turns, on an empty cache. Memory is the sum over
a process and all that it starts of their proportional sets, looked at four times a second. What the contract check takes (each file
hashed, weights looked at, the model opened and called in another process) is a row of its own.

python -m tests.programs.bench_quantizers [rounds] [library …]
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
SHAPE = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8}
TEXTS = "zoo://docstrings/validation"
SAMPLES, LENGTH, BATCH = 32, 256, 8
# By library, the stage and its parameters.
STAGES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "GPTQModel": ("quantize.gptq", {"bits": 4, "group_size": 128, "samples": SAMPLES, "length": LENGTH}),
    "auto-round": (
        "quantize.autoround",
        {"bits": 4, "group_size": 128, "iters": 5, "samples": SAMPLES, "length": LENGTH, "batch": BATCH},
    ),
    "NNCF": ("quantize.nncf", {"mode": "int4_weights", "corrections": ("scale_estimation",), "samples": 4 * SAMPLES}),
}
# As the stages set them for their libraries: no network, and a processor with few cores.
SURROUNDINGS = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "GPTQMODEL_OFFLINE": "1",
    "GPTQMODEL_CPU_WORKERS": "2",
    "AR_DISABLE_DATASET_SUBPROCESS": "1",
    "AR_DISK_STREAM_MODEL": "1",
}
CHECKER = "compress.execution.reload"


def by_hand_gptqmodel(model: str, rows: list[list[int]], out: str) -> None:
    import torch
    from gptqmodel import GPTQModel
    from gptqmodel.quantization.config import QuantizeConfig

    kept = {"offload_to_disk": True, "offload_to_disk_path": f"{out}-offload"}
    config = QuantizeConfig(
        bits=4, group_size=128, desc_act=False, sym=True, damp_percent=0.05, pack_impl="original", device="cpu", **kept
    )
    opened = GPTQModel.load(model, config, dtype=torch.bfloat16)
    texts = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows]
    opened.quantize(texts, batch_size=1, calibration_sort=None, calibration_data_min_length=1)
    opened.save(out)


def by_hand_auto_round(model: str, rows: list[list[int]], out: str) -> None:
    import torch
    from auto_round import AutoRound, SignRoundConfig
    from transformers import AutoTokenizer

    batches = [torch.tensor(rows[at : at + BATCH]) for at in range(0, len(rows), BATCH)]
    made = AutoRound(
        model,
        AutoTokenizer.from_pretrained(model),
        scheme={"bits": 4, "group_size": 128, "sym": True, "data_type": "int", "act_bits": 16},
        alg_configs=SignRoundConfig(iters=5),
        dataset=[{"input_ids": batch, "attention_mask": torch.ones_like(batch)} for batch in batches],
        nsamples=len(rows),
        seqlen=LENGTH,
        batch_size=BATCH,
        amp=True,
        disable_model_free=True,
        device_map="cpu",
        enable_torch_compile=False,
        seed=0,
    )
    made.quantize_and_save(out, format="llm_compressor")


def by_hand_nncf(model: str, rows: list[list[int]], out: str) -> None:
    import nncf
    import numpy as np
    import openvino
    from nncf.quantization.advanced_parameters import AdvancedCompressionParameters, GroupSizeFallbackMode

    graph = openvino.Core().read_model(f"{model}/openvino_model.xml")

    def feed(row: list[int]) -> dict[str, Any]:
        length = len(row)
        known = {
            "input_ids": np.array([row]),
            "attention_mask": np.ones((1, length), np.int64),
            "position_ids": np.arange(length)[None],
            "cache_position": np.arange(length),
            "beam_idx": np.zeros(1, np.int32),
        }
        names = [next(n for n in port.get_names() if n.startswith("input.")) for port in graph.inputs]
        return {name: known[name.removeprefix("input.")] for name in names}

    fallback = AdvancedCompressionParameters(
        group_size_fallback_mode=GroupSizeFallbackMode.ADJUST, min_adjusted_group_size=8
    )
    made = nncf.compress_weights(
        graph,
        mode=nncf.CompressWeightsMode.INT4_ASYM,
        ratio=1.0,
        group_size=64,
        all_layers=True,
        scale_estimation=True,
        dataset=nncf.Dataset([feed(row) for row in rows]),
        subset_size=len(rows),
        advanced_parameters=fallback,
    )
    Path(out).mkdir()
    openvino.save_model(made, f"{out}/openvino_model.xml", compress_to_fp16=False)


BY_HAND: Mapping[str, Callable[[str, list[list[int]], str], None]] = {
    "GPTQModel": by_hand_gptqmodel,
    "auto-round": by_hand_auto_round,
    "NNCF": by_hand_nncf,
}


def by_pare(library: str, model: str, cache: str) -> dict[str, float]:
    """Run the stage. Returns the seconds that checks took, and those of the stage itself."""
    import compress
    from compress.execution import contract, execute
    from compress.files import hashing
    from compress.model import finite_checks

    taken: dict[str, float] = {}

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any, **more: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*given, **more)
            finally:
                taken[name] = taken.get(name, 0) + time.perf_counter() - began

        return run

    hashing.digest_file = contract.digest_file = timed("hashed", hashing.digest_file)
    execute.check = timed("checked", execute.check)
    finite_checks.refuse_nonfinite = timed("looked through first", finite_checks.refuse_nonfinite)
    execute._run_stage = timed("stage", execute._run_stage)
    stage, params = STAGES[library]
    compress.apply(stage, model, params, cache=cache, calibration=TEXTS)
    return taken


def measured(arguments: list[str], here: str) -> tuple[dict[str, float], dict[str, Any]]:
    """Seconds, and megabytes at the peak, of a process and all that it starts; those of the checker by themselves.

    Args:
        here: where it runs, for GPTQModel leaves logs there.
    """
    peaks = {"megabytes": 0, "checker": 0, "largest process": 0}
    began = time.perf_counter()
    command = [sys.executable, "-m", "tests.programs.bench_quantizers", *arguments]
    with tempfile.TemporaryFile() as answer, tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdout=answer, stderr=log, cwd=here, env={**os.environ, **SURROUNDINGS, "PYTHONPATH": str(ROOT)}
        )
        ended = threading.Event()
        watch = threading.Thread(target=_watch, args=(process.pid, ended, peaks))
        watch.start()
        code = process.wait()
        seconds = time.perf_counter() - began
        ended.set()
        watch.join()
        answer.seek(0)
        log.seek(0)
        if code:
            raise RuntimeError(log.read().decode(errors="replace")[-3000:])
        found = json.loads(answer.read().decode().strip().splitlines()[-1])
    return {"seconds": seconds, **{name: size / 1e6 for name, size in peaks.items()}}, found


def _watch(pid: int, ended: threading.Event, peaks: dict[str, int]) -> None:
    from tests.programs.big_llama import proportional

    process = psutil.Process(pid)
    while not ended.wait(0.25):
        sizes = {"megabytes": 0, "checker": 0, "largest process": 0}
        try:
            for one in (process, *process.children(recursive=True)):
                size = proportional(one.pid)
                kind = "checker" if CHECKER in one.cmdline() else "megabytes"
                sizes[kind] += size
                if kind == "megabytes":
                    sizes["largest process"] = max(sizes["largest process"], size)
        except psutil.NoSuchProcess:
            continue
        for name, size in sizes.items():
            peaks[name] = max(peaks[name], size)


def rows(rounds: int, libraries: tuple[str, ...], folder: Path) -> dict[str, Any]:
    from tests.programs.big_llama import make

    found = {}
    model = make(folder / "model", SHAPE)
    for library in libraries:
        given = _engine(model, folder) if library == "NNCF" else model
        tokens = folder / f"{library}.json"
        tokens.write_text(json.dumps(_rows(library, model)))
        sides: dict[str, list[dict[str, float]]] = {"by hand": [], "pare": []}
        for number in range(rounds):
            turns = ("by hand", "pare") if number % 2 == 0 else ("pare", "by hand")
            for side in turns:
                with tempfile.TemporaryDirectory(dir=folder) as own:
                    more = [str(tokens), f"{own}/made"] if side == "by hand" else [f"{own}/cache"]
                    took, parts = measured([side, library, str(given), *more], own)
                    sides[side].append({**took, **parts})
        found[library] = _compared(sides)
        sys.stderr.write(json.dumps({library: found[library]}) + "\n")  # each takes minutes
    return found


def _compared(sides: Mapping[str, list[dict[str, float]]]) -> dict[str, Any]:
    table: dict[str, Any] = {
        side: {name: round(statistics.median(one[name] for one in runs), 2) for name in runs[0]}
        for side, runs in sides.items()
    }
    hand, pare = table["by hand"], table["pare"]
    check = pare["checked"] + pare["hashed"] + pare["looked through first"]
    table["contract check seconds"] = round(check, 2)
    table["seconds without it, over by hand"] = round((pare["seconds"] - check) / hand["seconds"], 3)
    table["seconds with it, over by hand"] = round(pare["seconds"] / hand["seconds"], 3)
    table["megabytes without the checker, over by hand"] = round(pare["megabytes"] / hand["megabytes"], 3)
    table["megabytes of the process at work, over by hand"] = round(pare["largest process"] / hand["megabytes"], 3)
    return table


def _rows(library: str, model: Path) -> list[list[int]]:
    """The tokens that pare would calibrate on."""
    from compress.building.build import LONGEST_TEXT
    from compress.context import Context
    from compress.model.describing import describe
    from compress.opening.full_rows import full_rows
    from compress.opening.rows import calibration_rows
    from compress.sources.data import open_data

    context = Context(Path(), Path(), data={"calibration": open_data(TEXTS, Path(), None)})
    artifact = describe(model)
    if library == "auto-round":
        return full_rows(artifact, SAMPLES, LENGTH, context)
    samples = STAGES[library][1]["samples"]
    return calibration_rows(artifact, samples, LENGTH if library == "GPTQModel" else LONGEST_TEXT, context)


def _engine(model: Path, folder: Path) -> Path:
    import compress

    return compress.apply("build.openvino", model, cache=folder / "engines").path


def main() -> None:
    first, *rest = (*sys.argv[1:], "3")[: max(1, len(sys.argv) - 1)]
    if first == "by hand":
        library, model, tokens, out = rest
        BY_HAND[library](model, json.loads(Path(tokens).read_text()), out)
        sys.stdout.write("\n{}\n")
    elif first == "pare":
        sys.stdout.write("\n" + json.dumps(by_pare(*rest)) + "\n")
    else:
        with tempfile.TemporaryDirectory() as folder:
            found = rows(int(first), tuple(rest) or tuple(STAGES), Path(folder))
        sys.stdout.write(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""auto-round at work, in a process of its own: it replaces `from_pretrained` of transformers' Auto classes when it is imported.

python -m compress.quantizers.autoround   (its order comes on standard input; see `Job`)
"""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from compress.artifact import loaded_weights
from compress.context import Context
from compress.files.safetensors_headers import read_header
from compress.machine.devices import CPU
from compress.quantizers.own_process import Tell, in_own_process, peak_bytes, serve

Method = Literal["autoround", "awq", "rtn"]
Layout = Literal["compressed-tensors", "gptq", "awq"]
CALLED = {
    "compressed-tensors": "llm_compressor",
    "gptq": "auto_gptq",
    "awq": "auto_awq",
}  # layouts, as auto-round calls them
METADATA = {"format": "pt"}
NUMBERS = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True)
class Job:
    """What is to be rounded, and how.

    rows: calibration tokens, all of one length, in whole batches; none for plain rounding.
    ignore: layers that stay as wide as they are. own_bits: of layers that do not have `bits`.
    dtype: the number type that the model's weights are stored in.
    """

    model: str
    out: str
    method: Method
    layout: Layout
    bits: int
    group_size: int
    symmetric: bool
    iters: int
    batch: int
    rows: Sequence[Sequence[int]]
    ignore: Sequence[str]
    dtype: str
    seed: int
    device: str = CPU
    trust_remote_code: bool = False
    own_bits: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Rounded:
    """What came of it: the folder with config and weights, and the most memory the process held at a time, bytes."""

    folder: Path
    peak_bytes: int


def round_apart(layout: Layout, job: Callable[[], Job], context: Context) -> Rounded:
    """Quantize a language model's layers in a process of its own, which writes into the job's `out`.

    Args:
        job: made while the process imports auto-round.

    Raises:
        StageFailed: auto-round failed; the message holds its error.
    """
    scratch = context.scratch.absolute()
    # What it takes from the environment would change the result, and its working files belong into scratch.
    own = {"AR_WORK_SPACE": str(scratch / "work"), "AR_DISABLE_DATASET_SUBPROCESS": "1", "AR_LOG_LEVEL": "INFO"}
    own |= {"HF_DATASETS_CACHE": str(scratch / "datasets")}
    if layout == "compressed-tensors":  # block by block; the others' exports copy what has left the memory then
        own |= {"AR_DISK_STREAM_MODEL": "1"}
    module = "compress.quantizers.autoround"
    found = in_own_process("auto-round", module, lambda: asdict(job()), context, own, without=("AR_", "AUTO_ROUND"))
    return Rounded(Path(found["folder"]), found["peak_bytes"])


def prepare() -> None:
    from compress.engines.torch.runtime import without_hub_kernels

    with without_hub_kernels():
        importlib.import_module("auto_round")


def work(order: Mapping[str, Any], tell: Tell) -> Mapping[str, Any]:
    """Do one job, in this process."""
    job = Job(**order)
    shutil.rmtree(job.out, ignore_errors=True)
    from compress.engines.torch.runtime import without_hub_kernels

    with without_hub_kernels():
        import torch
        from auto_round import AutoRound
        from auto_round.compressors import orchestrator
        from transformers import AutoTokenizer
    orchestrator.tqdm = _bar(orchestrator.tqdm, tell)
    batches = [torch.tensor(job.rows[at : at + job.batch]) for at in range(0, len(job.rows), job.batch)]
    made = AutoRound(
        job.model,
        AutoTokenizer.from_pretrained(job.model, trust_remote_code=job.trust_remote_code),
        scheme={
            "bits": job.bits,
            "group_size": job.group_size,
            "sym": job.symmetric,
            "data_type": "int",
            "act_bits": 16,
        },
        alg_configs=_algorithm(job),
        layer_config=_layers(job),
        dataset=[{"input_ids": rows, "attention_mask": torch.ones_like(rows)} for rows in batches],
        nsamples=max(1, len(job.rows)),
        seqlen=max(map(len, job.rows), default=1),
        batch_size=job.batch,
        amp=job.dtype == "bfloat16",  # else in float32: it would round what it leaves wide to bfloat16
        disable_model_free=True,
        device_map=job.device,
        enable_torch_compile=False,
        seed=job.seed,
        trust_remote_code=job.trust_remote_code,
    )
    made.quantize_and_save(job.out, format=CALLED[job.layout])
    folder = next(Path(job.out).rglob("config.json")).parent
    for file in sorted(folder.glob("*.safetensors")):
        _store_as_before(file, Path(job.model), job.dtype)
    return {"folder": str(folder), "peak_bytes": peak_bytes()}


def _layers(job: Job) -> dict[str, dict[str, Any]]:
    """What differs by layer."""
    own = {name: {"bits": bits} for name, bits in job.own_bits.items() if bits != job.bits}
    return {**{name: {"bits": 16, "data_type": "fp"} for name in job.ignore}, **own}


def _algorithm(job: Job) -> Any:
    from auto_round import AWQConfig, RTNConfig, SignRoundConfig

    if job.method == "autoround":
        return SignRoundConfig(iters=job.iters)
    if job.method == "awq":
        return AWQConfig(awq_seqlen=0)  # of any length
    return RTNConfig(disable_opt_rtn=True)  # else it looks for better scales


def _bar(kind: Any, tell: Tell) -> Any:
    """A progress bar that also reports how far it is."""

    class Reporting(kind):  # type: ignore[misc]
        def update(self, n: float = 1) -> object:
            moved = super().update(n)
            tell("blocks", int(self.n), int(self.total or 0))
            return moved

    return Reporting


def _store_as_before(file: Path, before: Path, dtype: str) -> None:
    """Write a file of weights again where it holds tensors that were made wider for the work: those that the model had as it had them, and
    what is new (scales) in the model's number type."""
    import torch
    from safetensors.torch import load_file, save_file

    kinds = {n: t.dtype for one in loaded_weights(before) for n, t in read_header(one).tensors.items()}
    found = load_file(file)
    wide = {name: NUMBERS.get(kinds.get(name, ""), dtype) for name, t in found.items() if t.dtype == torch.float32}
    if all(kind == "float32" for kind in wide.values()):
        return
    save_file({n: t.to(getattr(torch, wide[n])) if n in wide else t for n, t in found.items()}, file, METADATA)


if __name__ == "__main__":
    os.umask(0o022)
    serve(work, prepare)

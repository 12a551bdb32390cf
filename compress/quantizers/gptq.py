"""GPTQModel at work. It changes transformers, safetensors and OpenVINO where it is imported, so that happens in no other process.

python -m compress.quantizers.gptq   (its order comes on standard input; see `Order`)
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from compress.artifact import read_json
from compress.quantizers.checkpoints import CONFIG, write_packing
from compress.quantizers.fused import parts_of, put_together
from compress.quantizers.own_process import Tell, peak_bytes, serve

OWN_CONFIG = "quantize_config.json"
# What stays of GPTQModel's notes on its work; the rest is of the machine, such as where layers waited on disk.
META = (
    "quantizer",
    "uri",
    "damp_percent",
    "damp_auto_increment",
    "act_group_aware",
    "true_sequential",
    "static_groups",
    "mse",
)


class Order(TypedDict):
    """folder: of the model; out: an empty one to save into; offload: where finished layers wait on disk; rows: tokens to calibrate
    on; dtype: what the model is opened in; config: of GPTQModel's QuantizeConfig; layers: the modules that it must quantize; left: those of the
    blocks that it must leave."""

    folder: str
    out: str
    offload: str
    rows: list[list[int]]
    dtype: str
    config: dict[str, Any]
    layers: list[str]
    left: list[str]
    seed: int


def prepare() -> None:
    sys.modules["openvino"] = None  # type: ignore[assignment]  # which it would import, to change it, and which leaves files in the home
    importlib.import_module("gptqmodel")


def work(order: Mapping[str, Any], tell: Tell) -> Mapping[str, Any]:
    """Quantize and save.

    Returns:
        by module the tokens that it was calibrated on (`tokens`), those that were rounded for want of them (`rounded`), what
        transformers runs it with (`kernels`), and this process's highest resident set until it was saved (`peak_bytes`).
    """
    import torch
    from gptqmodel import GPTQModel
    from gptqmodel.quantization.config import QuantizeConfig

    torch.manual_seed(order["seed"])
    offload = {"offload_to_disk": True, "offload_to_disk_path": order["offload"]}
    config = QuantizeConfig(device="cpu", dynamic=_leaving(order["left"]), **offload, **order["config"])
    model = GPTQModel.load(
        str(_padded(Path(order["folder"]))), config, dtype=getattr(torch, order["dtype"]), trust_remote_code=False
    )
    rows = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in order["rows"]]
    _listen(model, order["layers"], tell)
    log = model.quantize(rows, batch_size=1, calibration_sort=None, calibration_data_min_length=1)
    done = [entry for entries in log.values() for entry in entries]
    model.save(order["out"])
    put_together(Path(order["out"]), (*order["layers"], *order["left"]))
    peak = peak_bytes()
    _set_config(Path(order["out"]), Path(order["folder"]), order["layers"] if order["left"] else [])
    return {**_reported(done, order["layers"]), **_kernels(Path(order["out"])), "peak_bytes": peak}


def _padded(folder: Path) -> Path:
    """The model's folder, or one of links to its files where the config names no token to pad with: GPTQModel would choose that of the
    model's family, which its vocabulary need not have. Nothing is padded here."""
    config = read_json(folder / CONFIG)
    ends = {end for name in ("bos_token_id", "eos_token_id") for end in _listed(config.get(name))}
    if isinstance(pad := config.get("pad_token_id"), int) and 0 <= pad < config["vocab_size"] and pad not in ends:
        return folder
    linked = Path("model").absolute()
    linked.mkdir(exist_ok=True)
    for file in folder.iterdir():
        if file.is_file() and file.name != CONFIG and not (linked / file.name).exists():
            (linked / file.name).symlink_to(file.absolute())
    free = next(token for token in range(config["vocab_size"]) if token not in ends)
    (linked / CONFIG).write_text(json.dumps({**config, "pad_token_id": free}))
    return linked


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _leaving(layers: Sequence[str]) -> dict[str, dict[str, Any]] | None:
    """How GPTQModel, and vLLM after it, is asked to leave layers as they are."""
    return {f"-:^{re.escape(part)}$": {} for name in layers for part in parts_of(name)} or None


def _listen(model: Any, layers: Sequence[str], tell: Tell) -> None:
    """Have each block that is done reported."""
    blocks = len({_within(name).partition(".")[0] for name in layers})

    def report(*, layer_idx: int, submodule_finalized: bool) -> None:
        if not submodule_finalized:
            tell("blocks", layer_idx + 1, blocks)

    model.layer_callback = report


def _reported(done: Sequence[Mapping[str, Any]], layers: Sequence[str]) -> dict[str, Any]:
    """What GPTQModel's log says of each module, by its whole name.

    Raises:
        RuntimeError: it quantized others than it was to.
    """
    whole = {_within(part): name for name in layers for part in parts_of(name)}
    logged = {f"{entry['layer']}.{entry['module']}": entry for entry in done}
    if odd := sorted(logged.keys() ^ whole.keys()):
        left = [name for name in odd if name in whole]
        what = f"left {len(left)} layers as they are" if left else f"quantized {len(odd)} layers that it was to leave"
        raise RuntimeError(f"GPTQModel {what}, such as {odd[0]} (block and module)")
    tokens = {whole[name]: int(float(entry["samples"])) for name, entry in logged.items()}
    rounded = [whole[name] for name, entry in logged.items() if "fallback" in str(entry["loss"])]
    return {"tokens": tokens, "rounded": rounded}


def _within(name: str) -> str:
    """A module's name from its block's number on: 0.mlp.down_proj of model.layers.0.mlp.down_proj."""
    words = name.split(".")
    first = next(place for place, word in enumerate(words) if word.isdecimal())
    return ".".join(words[first:])


def _set_config(saved: Path, before: Path, only: Sequence[str]) -> None:
    """The model's own config as it was, and in it how its weights are packed; the latter by itself too, where auto-gptq looks.

    Args:
        only: the layers that transformers must look for, which takes all of the blocks to be packed otherwise.
    """
    how = dict(read_json(saved / CONFIG)["quantization_config"])
    how["meta"] = {name: value for name, value in how.get("meta", {}).items() if name in META}
    if only:
        how["modules_in_block_to_quantize"] = [list(only)]
    write_packing(saved, before, how)
    (saved / OWN_CONFIG).write_text(json.dumps(how, indent=2, sort_keys=True) + "\n")


def _kernels(folder: Path) -> dict[str, Any]:
    """What stock transformers runs the saved layers with, here: how many by the name of their class."""
    from transformers import AutoModelForCausalLM

    model, found = AutoModelForCausalLM.from_pretrained(str(folder), output_loading_info=True, trust_remote_code=False)
    if lacking := sorted(found["missing_keys"]):
        raise RuntimeError(
            f"transformers finds {len(lacking)} weights missing in what GPTQModel saved, such as {lacking[0]}"
        )
    kinds = Counter(type(module).__name__ for module in model.modules() if hasattr(module, "qweight"))
    return {"kernels": dict(kinds)}


if __name__ == "__main__":
    serve(work, prepare)

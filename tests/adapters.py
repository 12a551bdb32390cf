"""LoRA adapters by chance, written as each library writes them, for any model on disk; and the branch beside each layer that they
are, which is what a fused weight is compared with."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

RANK, ALPHA = 4, 6.0


@dataclass(frozen=True)
class Branch:
    """A pair beside one layer, and what its product is multiplied by."""

    down: Tensor
    up: Tensor
    scale: float


def shapes(file: Path) -> dict[str, tuple[int, ...]]:
    with safe_open(file, framework="pt") as stored:
        return {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118


def branches(
    weights: Mapping[str, tuple[int, ...]],
    *,
    transposed: bool = False,
    rank: int = RANK,
    scale: float = ALPHA / RANK,
    seed: int = 0,
) -> dict[str, Branch]:
    """A pair for each of these weights, by the module's name."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in weights.items():
        out, inner = (shape[1], shape[:1]) if transposed else (shape[0], shape[1:])
        down = torch.randn(rank, *inner, generator=generator) * 0.1
        up = torch.randn(out, rank, *(1 for _ in inner[1:]), generator=generator) * 0.1
        found[name.removesuffix(".weight")] = Branch(down, up, scale)
    return found


def write_peft(folder: Path, pairs: Mapping[str, Branch], **config: Any) -> Path:
    """As peft saves a LoRA of a language model."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, pair in pairs.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = pair.down
        tensors[f"base_model.model.{name}.lora_B.weight"] = pair.up
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    write_config(folder, **config)
    return folder


def write_config(folder: Path, **config: Any) -> None:
    """What peft says beside it: what `config` changes, and its defaults."""
    message = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "org/base",
        "r": RANK,
        "lora_alpha": ALPHA,
        "lora_dropout": 0.1,
        "target_modules": ["q_proj"],
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "peft_version": "0.21.2",
    }
    (folder / "adapter_config.json").write_text(json.dumps({**message, **config}))


def write_diffusers(folder: Path, parts: Mapping[str, Mapping[str, Branch]], *, alphas: bool = True) -> Path:
    """As diffusers saves a LoRA of a pipeline: alpha beside each pair, or else what peft's config says in the metadata."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, torch.Tensor] = {}
    message: dict[str, object] = {}
    for part, pairs in parts.items():
        for name, pair in pairs.items():
            tensors[f"{part}.{name}.lora_A.weight"] = pair.down
            tensors[f"{part}.{name}.lora_B.weight"] = pair.up
            if alphas:
                tensors[f"{part}.{name}.alpha"] = torch.tensor(pair.scale * pair.down.shape[0])
        message |= {f"{part}.r": RANK, f"{part}.lora_alpha": ALPHA, f"{part}.target_modules": sorted(pairs)}
    metadata = {"format": "pt"} if alphas else {"format": "pt", "lora_adapter_metadata": json.dumps(message)}
    save_file(tensors, folder / "pytorch_lora_weights.safetensors", metadata)
    return folder


def write_kohya(file: Path, parts: Mapping[str, Mapping[str, Branch]], dtype: torch.dtype = torch.float16) -> Path:
    """As kohya's trainers save one: `_` for each `.`, and an alpha beside each pair. `parts` are by what it calls them: lora_unet."""
    tensors = {}
    for part, pairs in parts.items():
        for name, pair in pairs.items():
            flat = f"{part}_{name.replace('.', '_')}"
            tensors[f"{flat}.lora_down.weight"] = pair.down.to(dtype)
            tensors[f"{flat}.lora_up.weight"] = pair.up.to(dtype)
            tensors[f"{flat}.alpha"] = torch.tensor(pair.scale * pair.down.shape[0], dtype=dtype)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file, {"ss_network_module": "networks.lora"})
    return file


def beside(model: nn.Module, pairs: Mapping[str, Branch], strength: float = 1.0) -> nn.Module:
    """The same model with a branch beside each layer: y + strength · scale · up(down(x)), computed as layers are called."""
    layers = dict(model.named_modules())
    for name, pair in pairs.items():
        layer = layers.get(name) or layers[name.partition(".")[2]]
        layer.register_forward_hook(_branch(pair, strength))
    return model


def _branch(pair: Branch, strength: float) -> Any:
    def add(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if isinstance(layer, nn.Conv2d):
            inner = nn.functional.conv2d(args[0], pair.down, None, layer.stride, layer.padding)
            return output + strength * pair.scale * nn.functional.conv2d(inner, pair.up)
        assert isinstance(layer, (nn.Linear, Conv1D))
        return output + strength * pair.scale * (args[0] @ pair.down.T @ pair.up.T)

    return add


def of_kinds(weights: Mapping[str, tuple[int, ...]], endings: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """The weights of modules that end so."""
    return {name: shape for name, shape in weights.items() if name.removesuffix(".weight").endswith(tuple(endings))}

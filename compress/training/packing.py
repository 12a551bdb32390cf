"""Language models that learn under their own rounding, and how they are packed then: compressed-tensors' pack-quantized layout."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils import parametrize

from compress.algorithms.grids import Grid, rounded, scales_of
from compress.machine.deps import need

WEIGHT = "weight"
FORMAT = "pack-quantized"


class Rounding(torch.nn.Module):
    """A linear layer's weight as its packed form will give it back.

    Scales start where rounding the weights errs least. Learned ones are factors to that, kept as logarithms, so that a step of the
    optimiser is a share of each, and weight decay draws them back there.

    Args:
        dtype: that the model is stored in, and so its scales.
    """

    def __init__(self, weight: torch.Tensor, grid: Grid, dtype: torch.dtype, learned: bool) -> None:
        super().__init__()
        self.grid, self.dtype = grid, dtype
        scale = scales_of(weight.detach().float(), grid)
        self.start: torch.Tensor
        self.register_buffer("start", scale)
        self.log_scale = torch.nn.Parameter(torch.zeros_like(scale)) if learned else None

    @property
    def scale(self) -> torch.Tensor:
        """[outputs, groups], as `dtype` holds it."""
        found = self.start if self.log_scale is None else self.start * self.log_scale.exp()
        return found + (found.to(self.dtype).float() - found).detach()

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return rounded(weight, self.scale, self.grid, self.dtype)


def round_layers(model: torch.nn.Module, names: Iterable[str], grid: Grid, dtype: torch.dtype, learned: bool) -> None:
    """From now on these linear layers of a model compute with their rounded weights, and gradients reach the unrounded ones."""
    for name in names:
        layer = model.get_submodule(name)
        how = Rounding(_weight(layer), grid, dtype, learned).to(_weight(layer).device)
        parametrize.register_parametrization(layer, WEIGHT, how)


def pack(model: torch.nn.Module, grid: Grid) -> Any:
    """Turn the layers of a model that were rounded into packed ones, which hold the very numbers that they computed with.

    Returns:
        compressed-tensors' record of how, which `tell_packing` writes.
    """
    made = need("compressed_tensors.quantization", "compressed-tensors")
    compressor = need("compressed_tensors.compressors", "compressed-tensors").ModelCompressor
    found = {name: _taken(layer) for name, layer in list(model.named_modules()) if parametrize.is_parametrized(layer)}
    ignored = [n for n, layer in model.named_modules() if isinstance(layer, torch.nn.Linear) and n not in found]
    args = {"strategy": "channel"} if grid.group_size == -1 else {"strategy": "group", "group_size": grid.group_size}
    weights = made.QuantizationArgs(num_bits=grid.bits, type="int", symmetric=True, **args)
    scheme = made.QuantizationScheme(targets=["Linear"], weights=weights)
    config = made.QuantizationConfig(config_groups={"group_0": scheme}, ignore=ignored, format=FORMAT)
    with torch.no_grad(), contextlib.redirect_stderr(io.StringIO()):  # bars of its own
        made.apply_quantization_config(model, config)
        for name, (weight, scale) in found.items():
            layer = model.get_submodule(name)
            layer.weight.copy_(weight)  # type: ignore[operator]
            layer.weight_scale.copy_(scale)  # type: ignore[operator]
        record = compressor.from_pretrained_model(model, quantization_format=FORMAT)
        record.compress_model(model)
    return record


def tell_packing(record: Any, folder: Path) -> None:
    """Write how a saved model is packed into its config.json, in one order of keys."""
    record.update_config(str(folder))
    file = folder / "config.json"
    config: dict[str, Any] = json.loads(file.read_text())
    ignored: list[str] = config["quantization_config"].get("ignore") or []
    config["quantization_config"]["ignore"] = sorted(ignored)
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _taken(layer: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """The unrounded weight, and the scale, of a rounded layer, which is a plain one from then on."""
    held: Any = layer.parametrizations
    how: Rounding = held[WEIGHT][0]
    with torch.no_grad():
        found = held[WEIGHT].original.detach().clone(), how.scale.detach().clone()
    parametrize.remove_parametrizations(layer, WEIGHT, leave_parametrized=False)
    return found


def _weight(layer: torch.nn.Module) -> torch.Tensor:
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    return weight

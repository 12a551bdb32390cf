"""The Inception network that FID was defined with: TensorFlow's of 2015-12-05, pooled to 2048 numbers.

It is not the one of torchvision: averages leave out the padding, and the last block takes a maximum where it should average.
Weights come from one local file; names are those that pytorch-fid and torch-fidelity share, or the former's own module's.
Source: Szegedy et al., "Rethinking the Inception Architecture" (2016); Heusel et al. (2017); torch-fidelity for the port.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import avg_pool2d, max_pool2d

from compress.errors import ModelError, UserError
from compress.files.hashing import digest_file
from compress.machine.devices import CPU
from evaluation.features.extractor import Extractor
from evaluation.features.resizing import Resize

SIZE = 299
CLASSES = 1008  # of TensorFlow's; torchvision's network of the same parameter names has 1000
FIX = "give pytorch-fid's or torch-fidelity's file of Inception weights, 2015-12-05"
# The layers that hold parameters, as pytorch-fid's module numbers them: block 1, layer 0 is Conv2d_3b_1x1.
BLOCKS = (
    ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3"),
    ("Conv2d_3b_1x1", "Conv2d_4a_3x3"),
    ("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"),
    ("Mixed_7a", "Mixed_7b", "Mixed_7c"),
)
Pool = Callable[[torch.Tensor], torch.Tensor]
Chain = tuple[str | tuple[str, ...], ...]  # layers one after another; where it forks, what runs side by side


class Conv(nn.Module):
    """Convolution without bias, batch norm, ReLU. Padded, it leaves height and width as they are."""

    def __init__(self, old: int, new: int, *kernel: int, stride: int = 1, padded: bool = True) -> None:
        super().__init__()
        edges = (kernel[0], kernel[-1])
        padding = (edges[0] // 2, edges[1] // 2) if padded else (0, 0)
        self.conv = nn.Conv2d(old, new, edges, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(new, eps=0.001)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.bn(self.conv(x)))


class Block(nn.Module):
    """Chains of layers over one input, and a pool with the layer `branch_pool` after it if there is one; all concatenated."""

    def __init__(self, layers: Mapping[str, Conv], chains: Sequence[Chain], pool: Pool) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.chains, self.pool = chains, pool

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = self.pool(x)
        last = self.get_submodule("branch_pool")(pooled) if hasattr(self, "branch_pool") else pooled
        return torch.cat([*(self._run(chain, x) for chain in self.chains), last], dim=1)

    def _run(self, chain: Chain, x: torch.Tensor) -> torch.Tensor:
        for step in chain:
            names = (step,) if isinstance(step, str) else step
            x = torch.cat([self.get_submodule(name)(x) for name in names], dim=1)
        return x


def _average(x: torch.Tensor) -> torch.Tensor:
    return avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def _maximum(x: torch.Tensor) -> torch.Tensor:
    return max_pool2d(x, 3, stride=1, padding=1)


def _halve(x: torch.Tensor) -> torch.Tensor:
    return max_pool2d(x, 3, stride=2)


def _numbered(name: str, *layers: Conv) -> tuple[dict[str, Conv], Chain]:
    """Layers one after another, called name_1, name_2 …"""
    found = {f"{name}_{i}": layer for i, layer in enumerate(layers, 1)}
    return found, tuple(found)


def _block_a(old: int, pooled: int) -> Block:
    fives, chain5 = _numbered("branch5x5", Conv(old, 48, 1), Conv(48, 64, 5))
    threes, chain3 = _numbered("branch3x3dbl", Conv(old, 64, 1), Conv(64, 96, 3), Conv(96, 96, 3))
    layers = {"branch1x1": Conv(old, 64, 1), **fives, **threes, "branch_pool": Conv(old, pooled, 1)}
    return Block(layers, (("branch1x1",), chain5, chain3), _average)


def _block_b(old: int) -> Block:
    last = Conv(96, 96, 3, stride=2, padded=False)
    threes, chain = _numbered("branch3x3dbl", Conv(old, 64, 1), Conv(64, 96, 3), last)
    return Block({"branch3x3": Conv(old, 384, 3, stride=2, padded=False), **threes}, (("branch3x3",), chain), _halve)


def _block_c(old: int, inner: int) -> Block:
    sevens, chain = _numbered("branch7x7", Conv(old, inner, 1), Conv(inner, inner, 1, 7), Conv(inner, 192, 7, 1))
    doubles, double = _numbered(
        "branch7x7dbl",
        Conv(old, inner, 1),
        Conv(inner, inner, 7, 1),
        Conv(inner, inner, 1, 7),
        Conv(inner, inner, 7, 1),
        Conv(inner, 192, 1, 7),
    )
    layers = {"branch1x1": Conv(old, 192, 1), **sevens, **doubles, "branch_pool": Conv(old, 192, 1)}
    return Block(layers, (("branch1x1",), chain, double), _average)


def _block_d(old: int) -> Block:
    threes, chain3 = _numbered("branch3x3", Conv(old, 192, 1), Conv(192, 320, 3, stride=2, padded=False))
    last = Conv(192, 192, 3, stride=2, padded=False)
    sevens, chain7 = _numbered("branch7x7x3", Conv(old, 192, 1), Conv(192, 192, 1, 7), Conv(192, 192, 7, 1), last)
    return Block({**threes, **sevens}, (chain3, chain7), _halve)


def _block_e(old: int, pool: Pool) -> Block:
    layers = {
        "branch1x1": Conv(old, 320, 1),
        "branch3x3_1": Conv(old, 384, 1),
        "branch3x3_2a": Conv(384, 384, 1, 3),
        "branch3x3_2b": Conv(384, 384, 3, 1),
        "branch3x3dbl_1": Conv(old, 448, 1),
        "branch3x3dbl_2": Conv(448, 384, 3),
        "branch3x3dbl_3a": Conv(384, 384, 1, 3),
        "branch3x3dbl_3b": Conv(384, 384, 3, 1),
        "branch_pool": Conv(old, 192, 1),
    }
    single: Chain = ("branch3x3_1", ("branch3x3_2a", "branch3x3_2b"))
    double: Chain = ("branch3x3dbl_1", "branch3x3dbl_2", ("branch3x3dbl_3a", "branch3x3dbl_3b"))
    return Block(layers, (("branch1x1",), single, double), pool)


class Inception(nn.Module):
    """float32 [n, 3, 299, 299] in 0..255 to [n, 2048], the mean over the last layer's 8 × 8 places."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, stride=2, padded=False)
        self.Conv2d_2a_3x3 = Conv(32, 32, 3, padded=False)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3)
        self.Conv2d_3b_1x1 = Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3, padded=False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _block_a(192, 32), _block_a(256, 64), _block_a(288, 64)
        self.Mixed_6a = _block_b(288)
        self.Mixed_6b, self.Mixed_6c = _block_c(768, 128), _block_c(768, 160)
        self.Mixed_6d, self.Mixed_6e = _block_c(768, 160), _block_c(768, 192)
        self.Mixed_7a = _block_d(768)
        self.Mixed_7b, self.Mixed_7c = _block_e(1280, _average), _block_e(2048, _maximum)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x = (pixels - 128) / 128  # TensorFlow's graph did this, and not 2x − 1
        for number, block in enumerate(BLOCKS):
            for name in block:
                x = self.get_submodule(name)(x)
            x = _halve(x) if number < 2 else x
        return x.mean(dim=(2, 3))


@cache
def open_inception(file: Path, resize: Resize = "pil") -> Extractor:
    """Open a file of weights: .safetensors, or .pth and .pt, which are read without running what else a pickle may hold.

    Raises:
        ModelError: it does not read, or holds the weights of another network.
    """
    with torch.device("meta"):
        model = Inception()
    model.load_state_dict(_checked(_read(file), model.state_dict(), file), assign=True)
    model.eval().requires_grad_(False)

    def hidden(pixels: torch.Tensor) -> Sequence[torch.Tensor]:
        raise UserError(
            "Inception's layers are no sequences of positions", place=str(file), fix="give a CLIP or DINOv2 folder"
        )

    return Extractor(file.stem, digest_file(file), resize, SIZE, "squash", model, hidden)


def _read(file: Path) -> dict[str, torch.Tensor]:
    try:
        if file.suffix == ".safetensors":
            found: Any = load_file(file)
        else:
            found = torch.load(file, map_location=CPU, weights_only=True)
        if not isinstance(found, dict) or not all(isinstance(t, torch.Tensor) for t in found.values()):
            raise ValueError("it holds more than tensors by name")
    except (OSError, ValueError, RuntimeError, EOFError, SafetensorError, pickle.UnpicklingError) as error:
        raise ModelError(f"does not read as weights: {_first_line(error)}", place=str(file), fix=FIX) from error
    return {_own_name(name): tensor for name, tensor in found.items()}


def _own_name(name: str) -> str:
    """`blocks.1.0.conv.weight`, as pytorch-fid's module calls it, to `Conv2d_3b_1x1.conv.weight`."""
    match = re.fullmatch(r"blocks\.(\d)\.(\d)\.(.+)", name)
    if not match or int(match[1]) >= len(BLOCKS) or int(match[2]) >= len(BLOCKS[int(match[1])]):
        return name
    return f"{BLOCKS[int(match[1])][int(match[2])]}.{match[3]}"


def _checked(
    given: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], file: Path
) -> dict[str, torch.Tensor]:
    """The weights this network has, as float32; the classifier's and the counters of batch norms are no part of it."""
    head = given.get("fc.weight")
    if head is not None and len(head) != CLASSES:
        raise ModelError(f"is a network of {len(head)} classes, not FID's of {CLASSES}", place=str(file), fix=FIX)
    needed = {name: tensor for name, tensor in wanted.items() if not name.endswith("num_batches_tracked")}
    bad = [name for name, tensor in needed.items() if name not in given or given[name].shape != tensor.shape]
    if bad:
        some = ", ".join(bad[:3]) + (" …" if len(bad) > 3 else "")
        message = f"lacks {len(bad)} of {len(needed)} weights, or has them in another shape: {some}"
        raise ModelError(message, place=str(file), fix=FIX)
    counters = {name: torch.zeros((), dtype=torch.long, device=CPU) for name in wanted if name not in needed}
    return {name: given[name].float() for name in needed} | counters


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]

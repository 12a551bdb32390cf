"""What `zoo://digits-editing` and `zoo://digits-inpainting` share in training: a UNet that sees images beside its noisy latents, on the
autoencoder and the text encoder of `zoo://digits-diffusion`, both as they are shipped.

v-prediction, scheduler and weights of the loss are those of `digits_diffusion`. The UNet starts with half of the channels of that model's, which
reaches a loss of 0.083 on edits in the 640 steps in which one that starts from nothing reaches 0.098. What is frozen is asked once: latents of
all images lie in a file beside the checkpoints, and the text encoder's answers to the few texts there are in memory.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    UNet2DConditionModel,
)
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from compress.params import Training
from compress.training.checkpoints import Spent
from compress.zoo import MODELS
from compress.zoo.training import digits_vae
from compress.zoo.training.captions import LENGTH, new_tokenizer
from compress.zoo.training.digits_diffusion import rewrite, scheduler, velocity_loss
from compress.zoo.training.loop import CHECKPOINTS, spent, train

DONOR = MODELS / "digits-diffusion"
BATCH = 64
LATENT = 4  # channels
MORE = 2**0.5  # so that a sum over half as many channels varies as much
SHARED = ("text_encoder/model.safetensors", "vae/diffusion_pytorch_model.safetensors")

Pipeline = type[StableDiffusionInpaintPipeline] | type[StableDiffusionInstructPix2PixPipeline]


def new_unet(channels: int) -> UNet2DConditionModel:
    """digits-diffusion's UNet at half its width, which takes as many channels, and starts with half of its weights."""
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=channels,
        out_channels=LATENT,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=128,
        attention_head_dim=4,  # diffusers' name for the number of heads
        norm_num_groups=16,
    )
    wide = UNet2DConditionModel.from_pretrained(DONOR / "unet", torch_dtype=torch.float32).state_dict()
    unet.load_state_dict({name: _narrowed(name, wide[name], own) for name, own in unet.state_dict().items()})
    return unet


def _narrowed(name: str, wide: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """A weight of digits-diffusion with the first half of each four channels, which leaves the groups of norms together and takes half of each
    head and each side of a gate. What reads half of its channels gives them more weight; what stands beside the noisy latents has no weight yet."""
    if name == "conv_in.weight":
        return torch.cat([_half(wide, 0), torch.zeros_like(own[:, LATENT:])], dim=1)
    if name == "time_embedding.linear_1.weight":  # a sine embedding of half the width has every second frequency
        return _half(wide, 0)[:, ::2] * MORE
    for dimension in range(own.ndim):
        if own.shape[dimension] != wide.shape[dimension]:
            wide = _half(wide, dimension) * (MORE if dimension == 1 else 1)
    return wide


def _half(wide: torch.Tensor, dimension: int) -> torch.Tensor:
    channels = torch.arange(wide.shape[dimension])
    return wide.index_select(dimension, channels[channels % 4 < 2])


@dataclass(frozen=True)
class Texts:
    """What the frozen text encoder says of each different text, [m, 16, 128], and of none, [16, 128]; which of them each item has, [n]."""

    hidden: torch.Tensor
    blank: torch.Tensor
    which: torch.Tensor

    def of(self, draw: torch.Tensor, dropped: torch.Tensor) -> torch.Tensor:
        """Of the items drawn, [b, 16, 128], without their text where that is dropped, bool [b]."""
        return torch.where(dropped[:, None, None], self.blank, self.hidden[self.which[draw]])


def read(texts: Sequence[str]) -> Texts:
    """The text encoder's answers to the texts of all items."""
    encoder = CLIPTextModel.from_pretrained(DONOR / "text_encoder", dtype=torch.float32).eval()
    tokenizer, different = new_tokenizer(), sorted({"", *texts})
    hidden = []
    for start in range(0, len(different), 256):
        some = different[start : start + 256]
        tokens = tokenizer(some, padding="max_length", max_length=LENGTH, return_tensors="pt").input_ids
        with torch.no_grad():
            hidden.append(encoder(tokens).last_hidden_state)
    found, number = torch.cat(hidden), {text: index for index, text in enumerate(different)}
    return Texts(found, found[number[""]], torch.tensor([number[text] for text in texts]))


def encoded(vae: AutoencoderKL, images: Iterable[NDArray[np.uint8]]) -> torch.Tensor:
    """Means of the latents of images, [n, 4, 8, 8], as the autoencoder gives them: not scaled."""
    codes, rest = [], iter(images)
    while some := list(islice(rest, 64)):
        pixels = torch.from_numpy(np.stack(some)).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            codes.append(vae.encode(pixels).latent_dist.mean.float())
        if len(codes) % 64 == 0:
            print(f"encoded {len(codes) * 64}", flush=True)
    return torch.cat(codes).contiguous()


def kept(name: str, count: int, encode: Callable[[], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Latents of `count` items by their names, encoded once."""
    file = CHECKPOINTS / f"{name}-latents.safetensors"
    stored = load_file(file) if file.is_file() else {}
    if stored and all(len(one) == count for one in stored.values()):
        return stored
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(encode(), file)
    return load_file(file)


def export(kind: Pipeline, unet: UNet2DConditionModel, folder: Path, facts: dict[str, object]) -> None:
    """Save the stock pipeline in bfloat16, what it shares as links to digits-diffusion, and what is known of its training beside it."""
    for name in SHARED:
        (folder / name).unlink(missing_ok=True)  # else what is shared would be written through the link
    pipeline = kind(
        vae=digits_vae.load(shipped=True),
        text_encoder=CLIPTextModel.from_pretrained(DONOR / "text_encoder", dtype=torch.float32),
        tokenizer=new_tokenizer(),
        unet=deepcopy(unet),
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(torch.bfloat16).save_pretrained(folder)
    # As for digits-diffusion: parts of one type whatever is asked for, none of which knows where it was loaded from.
    rewrite(folder / "text_encoder" / "config.json", dtype="float32")
    rewrite(folder / "vae" / "config.json")
    for name in SHARED:
        _share(folder / name, DONOR / name)
    (folder / "training.json").write_text(json.dumps(facts, indent=1) + "\n")


def _share(file: Path, other: Path) -> None:
    """Put a link to another file in a file's place; both hold the same."""
    if file.read_bytes() != other.read_bytes():
        raise RuntimeError(f"{file} is not {other}, of which it was made")
    file.unlink()
    file.symlink_to(os.path.relpath(other, file.parent))


@dataclass(frozen=True)
class Setup:
    """What is trained, and on what.

    batch: of a step's number: scaled latents of what is to be generated [b, 4, 8, 8], what stands beside them [b, c, 8, 8], hidden states of
        the text [b, 16, 128].
    """

    name: str
    data: str
    kind: Pipeline
    channels: int  # of the UNet: the latents', and those that stand beside them
    batch: Callable[[int], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


def arguments(words: str | None, name: str) -> argparse.Namespace:
    """What a training program is asked for, with `words` about it."""
    parser = argparse.ArgumentParser(description=words)
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--rate", type=float, default=2e-3, help="peak learning rate; less for trained weights")
    parser.add_argument("--scenes", type=int, default=24576)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--from-shipped", action="store_true")
    parser.add_argument("--out", type=Path, default=MODELS / name)
    found = parser.parse_args()
    torch.set_num_threads(found.threads)
    torch.manual_seed(0)
    return found


def learn(setup: Setup, asked: argparse.Namespace) -> None:
    """Train, export at each checkpoint, and export what came out."""
    unet, noise_levels = new_unet(setup.channels), scheduler()
    print(sum(p.numel() for p in unet.parameters()) / 1e6, "M parameters besides what is shipped", flush=True)
    before = _load_shipped(unet, setup.name) if asked.from_shipped else Spent()
    facts: dict[str, object] = {"data": setup.data, "scenes": asked.scenes, "batch": BATCH}

    def loss_at(step: int) -> torch.Tensor:
        clean, beside, hidden = setup.batch(step)
        return velocity_loss(unet, noise_levels, clean, hidden, beside)

    curve = train(
        setup.name,
        unet,
        loss_at,
        Training(steps=asked.steps, learning_rate=asked.rate, warmup=200, ema=0.998, checkpoint_seconds=120),
        asked.minutes,
        every=lambda step: export(setup.kind, unet, asked.out, {**facts, "steps": step}),
        before=before,
    )
    thinned = curve[:: max(1, len(curve) // 100)]
    export(setup.kind, unet, asked.out, {**facts, **spent(setup.name), "loss": thinned})


def _load_shipped(unet: UNet2DConditionModel, name: str) -> Spent:
    """Put the shipped weights into a UNet; returns what they cost."""
    unet.load_state_dict(
        UNet2DConditionModel.from_pretrained(MODELS / name / "unet", torch_dtype=torch.float32).state_dict()
    )
    facts = json.loads((MODELS / name / "training.json").read_text())
    return Spent(facts["steps"], facts["seconds"], tuple((step, loss) for step, loss in facts["loss"]))

"""Train `zoo://digits-teal`: a LoRA that gives `zoo://digits-diffusion` an ink it never saw.

    python -m compress.zoo.training.digits_teal --minutes 10

The autoencoder was trained on six inks, and what it encodes of another becomes the nearest of them; but it draws teal of latents half way between
those of a green and of a blue digit. Those are what the LoRA learns. The frozen text encoder spells "teal" and drowns the digit in that, so
its layers have updates, too. A quarter of the scenes keep the inks that they had.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from compress.adapters.keeping import DOWN, UP, Pair, write
from compress.params import Training
from compress.zoo import ADAPTERS, MODELS, scenes
from compress.zoo.new_ink import BETWEEN, TEAL, teal_scene, with_ink
from compress.zoo.scenes import Scene, render
from compress.zoo.training.captions import LENGTH, new_tokenizer
from compress.zoo.training.digits_diffusion import DROPPED, scheduler, velocity_loss
from compress.zoo.training.given_images import encoded, kept
from compress.zoo.training.loop import spent, train

NAME = "digits-teal"
BATCH = 64
RANK = 4
AS_BEFORE = 0.25  # share of scenes in the inks that they had
UNET = ["to_q", "to_k", "to_v", "to_out.0"]
TEXT = ["q_proj", "k_proj", "v_proj", "out_proj"]


def config(targets: list[str]) -> LoraConfig:
    return LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets, init_lora_weights="gaussian")


class Batches:
    """Teal scenes as the mean of the latents that they have in green and in blue, and scenes as they are, encoded once."""

    def __init__(self, pipeline: StableDiffusionPipeline, count: int) -> None:
        teal, plain = ([make("train", index) for index in range(count)] for make in (teal_scene, scenes.scene))

        def encode() -> dict[str, torch.Tensor]:
            both = [encoded(pipeline.vae, (render(_inked(one, ink)) for one in teal)) for ink in BETWEEN]
            found = {"teal": (both[0] + both[1]) / 2, "plain": encoded(pipeline.vae, map(render, plain))}
            return {name: codes * pipeline.vae.config.scaling_factor for name, codes in found.items()}

        found = kept(NAME, count, encode)
        self.codes = torch.stack([found["plain"], found["teal"]])
        texts = [[one.caption for one in some] for some in (plain, teal)]
        tokens = [
            new_tokenizer()(t, padding="max_length", max_length=LENGTH, return_tensors="pt").input_ids for t in texts
        ]
        self.tokens = torch.stack(tokens)
        self.blank = new_tokenizer()("", padding="max_length", max_length=LENGTH, return_tensors="pt").input_ids

    def __call__(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Scaled latents [b, 4, 8, 8] and tokens [b, 16]."""
        draw = torch.from_numpy(np.random.default_rng([23, step]).integers(self.codes.shape[1], size=BATCH))
        which = (torch.rand(BATCH) >= AS_BEFORE).long()
        words = self.tokens[which, draw].clone()
        words[torch.rand(BATCH) < DROPPED] = self.blank
        return self.codes[which, draw], words


def _inked(one: Scene, ink: str) -> Scene:
    """A teal scene in another ink."""
    return with_ink(one, next(n for n, digit in enumerate(one.digits) if digit.ink == TEAL), ink)


def export(pipeline: StableDiffusionPipeline, folder: Path, facts: dict[str, object]) -> None:
    """Save the LoRA as diffusers does, in bfloat16 and without a place on this machine, and what is known of its training beside it."""
    parts = {"unet": pipeline.unet, "text_encoder": pipeline.text_encoder}
    pairs: dict[str, dict[str, Pair]] = {}
    for name, part in parts.items():
        tensors = {key: value.bfloat16() for key, value in get_peft_model_state_dict(part).items()}
        layers = (key.removesuffix(UP) for key in tensors if key.endswith(UP))
        pairs[name] = {layer: Pair(tensors[layer + DOWN], tensors[layer + UP], RANK) for layer in layers}
    write(pairs, folder)
    (folder / "training.json").write_text(json.dumps(facts, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--rate", type=float, default=4e-3)
    parser.add_argument("--scenes", type=int, default=3072)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ADAPTERS / NAME)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    pipeline = StableDiffusionPipeline.from_pretrained(MODELS / "digits-diffusion", torch_dtype=torch.float32)
    batches = Batches(pipeline, asked.scenes)
    for part in (pipeline.unet, pipeline.text_encoder):
        part.requires_grad_(False)
    pipeline.unet.add_adapter(config(UNET))
    pipeline.text_encoder.add_adapter(config(TEXT))
    trained = torch.nn.ModuleList([pipeline.unet, pipeline.text_encoder])
    print(sum(p.numel() for p in trained.parameters() if p.requires_grad), "parameters", flush=True)
    noise_levels = scheduler()

    def loss_at(step: int) -> torch.Tensor:
        clean, words = batches(step)
        return velocity_loss(pipeline.unet, noise_levels, clean, pipeline.text_encoder(words).last_hidden_state)

    how = Training(steps=asked.steps, learning_rate=asked.rate, warmup=50, ema=0.99, checkpoint_seconds=120)
    facts: dict[str, object] = {
        "base": "zoo://digits-diffusion",
        "data": "zoo://digits-teal/train",
        "scenes": asked.scenes,
        "batch": BATCH,
    }
    curve = train(
        NAME,
        trained,
        loss_at,
        how,
        asked.minutes,
        every=lambda step: export(pipeline, asked.out, {**facts, "steps": step}),
    )
    export(pipeline, asked.out, {**facts, **spent(NAME), "loss": curve[:: max(1, len(curve) // 100)]})


if __name__ == "__main__":
    main()

"""Train `zoo://digits-diffusion`: a Stable Diffusion pipeline in small, on the latents of the trained autoencoder.

    python -m compress.zoo.training.digits_diffusion --minutes 60

It goes on from the last checkpoint, else with `--from-shipped` from the shipped weights, else from nothing.
v-prediction on a cosine schedule (Salimans and Ho, "Progressive Distillation", 2022), a tenth of the captions dropped for
classifier-free guidance (Ho and Salimans, 2022), the text encoder trained together with the denoiser.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from compress.params import Training
from compress.training.checkpoints import Spent
from compress.zoo import MODELS, scenes
from compress.zoo.training import digits_vae
from compress.zoo.training.captions import LENGTH, new_tokenizer
from compress.zoo.training.loop import CHECKPOINTS, spent, train

BATCH = 64
LATENTS = CHECKPOINTS / "latents.safetensors"
DROPPED = 0.1
FOLDER = MODELS / "digits-diffusion"


class Denoiser(torch.nn.Module):
    """The two parts that train together."""

    def __init__(self, tokens: int, end: int) -> None:
        super().__init__()
        self.text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=tokens,
                hidden_size=128,
                intermediate_size=512,
                num_hidden_layers=3,
                num_attention_heads=4,
                max_position_embeddings=LENGTH,
                projection_dim=128,
                bos_token_id=end - 1,
                eos_token_id=end,
                pad_token_id=end,
            )
        )
        self.unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(64, 128),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=128,
            attention_head_dim=4,  # diffusers' name for the number of heads
            norm_num_groups=16,
        )


def scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
        steps_offset=1,  # unused by trailing steps; the pipeline warns of any other value
    )


def latents(vae: AutoencoderKL, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scaled latents [n, 4, 8, 8] and token numbers [n, 16] of the first training scenes, encoded once."""
    if LATENTS.is_file():
        stored = load_file(LATENTS)
        if len(stored["latents"]) >= count:
            return stored["latents"], stored["tokens"]
    tokenizer = new_tokenizer()
    codes, captions = [], []
    for start in range(0, count, 64):
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            codes.append(vae.encode(digits_vae.images("train", start, 64)).latent_dist.mean.float())
        captions += [scenes.scene("train", start + i).caption for i in range(64)]
        if start % 4096 == 0:
            print(f"encoded {start}/{count}", flush=True)
    tokens = tokenizer(captions, padding="max_length", max_length=LENGTH, return_tensors="pt").input_ids
    packed = {"latents": (torch.cat(codes) * vae.config.scaling_factor).contiguous(), "tokens": tokens.contiguous()}
    LATENTS.parent.mkdir(parents=True, exist_ok=True)
    save_file(packed, LATENTS)
    return packed["latents"], packed["tokens"]


def export(model: Denoiser, vae: AutoencoderKL, folder: Path, facts: dict[str, object]) -> None:
    """Save the stock pipeline in bfloat16, and what is known of its training beside it."""
    from copy import deepcopy

    pipeline = StableDiffusionPipeline(
        vae=deepcopy(vae),
        text_encoder=deepcopy(model.text),
        tokenizer=new_tokenizer(),
        unet=deepcopy(model.unet),
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(torch.bfloat16).save_pretrained(folder)
    # Unless asked a type, diffusers opens its parts in float32 but transformers in the type its config names, and a pipeline
    # of two types cannot generate: so the config names float32. The weights stay bfloat16, and a type asked for wins.
    rewrite(folder / "text_encoder" / "config.json", dtype="float32")
    rewrite(folder / "vae" / "config.json")
    (folder / "training.json").write_text(json.dumps(facts, indent=1) + "\n")


def velocity_loss(
    unet: UNet2DConditionModel,
    noise_levels: DDIMScheduler,
    clean: torch.Tensor,
    hidden: torch.Tensor,
    beside: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean squared error of the velocity at times and noise drawn by chance.

    Args:
        clean: scaled latents [b, 4, 8, 8]. hidden: of their texts [b, 16, 128].
        beside: what the UNet sees beside the noisy latents, [b, c, 8, 8].
    """
    noise, times = torch.randn_like(clean), torch.randint(0, 1000, (len(clean),))
    noisy = noise_levels.add_noise(clean, noise, times)
    target = noise_levels.get_velocity(clean, noise, times)
    seen = noisy if beside is None else torch.cat([noisy, beside], dim=1)
    guess = unet(seen, times, encoder_hidden_states=hidden).sample.float()
    alphas = noise_levels.alphas_cumprod
    ratio = (alphas / (1 - alphas))[times]  # min-SNR-5 weights for v-prediction (Hang et al., 2023)
    weight = torch.minimum(ratio, torch.tensor(5.0)) / (ratio + 1)
    weight = 0.25 + weight
    return ((guess - target).square().mean(dim=(1, 2, 3)) * weight).mean()


def rewrite(path: Path, **more: str) -> None:
    """Save a config again with `more`, and without the place on this machine that its part was loaded from."""
    config = {**json.loads(path.read_text()), **more}
    config.pop("_name_or_path", None)
    path.write_text(json.dumps(config, indent=2) + "\n")


def load_shipped(model: Denoiser) -> Spent:
    """Put the shipped weights into `model`; returns what they cost."""
    text = CLIPTextModel.from_pretrained(FOLDER / "text_encoder", dtype=torch.float32)
    unet = UNet2DConditionModel.from_pretrained(FOLDER / "unet", torch_dtype=torch.float32)
    model.text.load_state_dict(text.state_dict())
    model.unet.load_state_dict(unet.state_dict())
    facts = json.loads((FOLDER / "training.json").read_text())
    return Spent(facts["steps"], facts["seconds"], tuple((step, loss) for step, loss in facts["loss"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--scenes", type=int, default=24576)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--from-shipped", action="store_true")
    parser.add_argument("--out", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    vae = digits_vae.load(shipped=arguments.from_shipped and not digits_vae.FOLDER.is_dir())
    codes, tokens = latents(vae, arguments.scenes)
    blank = new_tokenizer()("", padding="max_length", max_length=LENGTH, return_tensors="pt").input_ids
    model = Denoiser(int(tokens.max()) + 1, int(tokens.max()))
    print(sum(p.numel() for p in model.parameters()) / 1e6, "M parameters besides the autoencoder", flush=True)
    before = load_shipped(model) if arguments.from_shipped else Spent()
    noise_levels = scheduler()

    def loss_at(step: int) -> torch.Tensor:
        draw = torch.from_numpy(np.random.default_rng([7, step]).integers(len(codes), size=BATCH))
        clean, words = codes[draw], tokens[draw].clone()
        words[torch.rand(BATCH) < DROPPED] = blank
        return velocity_loss(model.unet, noise_levels, clean, model.text(words).last_hidden_state)

    how = Training(steps=arguments.steps, learning_rate=1e-3, warmup=200, ema=0.998)
    facts: dict[str, object] = {"data": "zoo://digits/train", "scenes": len(codes), "batch": BATCH}
    curve = train(
        "digits-diffusion",
        model,
        loss_at,
        how,
        arguments.minutes,
        every=lambda step: export(model, vae, arguments.out, {**facts, "steps": step}),
        before=before,
    )
    thinned = curve[:: max(1, len(curve) // 100)]
    facts |= {**spent("digits-diffusion"), "loss": thinned}
    export(model, vae, arguments.out, facts)


if __name__ == "__main__":
    main()

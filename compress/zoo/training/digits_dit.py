"""Train `zoo://digits-dit`: FLUX in small, on the latents and the text encoder of `zoo://digits-diffusion`.

    python -m compress.zoo.training.digits_dit --minutes 60

It goes on from the last checkpoint, else with `--from-shipped` from the shipped weights, else from nothing.
Rectified flow: the denoiser learns the velocity noise − image at (1 − t) image + t noise (Liu et al., 2022), with half of
the times uniform and half logit-normal (Esser et al., 2024). A tenth of the captions is dropped for classifier-free guidance.
The autoencoder and the CLIP text encoder, whose end-of-text state is the pooled prompt, are the shipped ones and stay as they
are. A small T5 encoder says the prompt word by word: it first learns which words belong to which place, and is then trained
together with the denoiser. Without that, 4,700 steps taught which digits to generate, but not where.
"""

from __future__ import annotations

import argparse
import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from transformers import CLIPTextModel, T5Config, T5EncoderModel, T5Tokenizer

from compress.artifact import write_manifest
from compress.model.describing import describe
from compress.params import Training
from compress.training.checkpoints import Spent
from compress.zoo import MODELS, scenes
from compress.zoo.training import digits_vae
from compress.zoo.training.captions import LENGTH, WORDS, new_tokenizer
from compress.zoo.training.digits_diffusion import FOLDER as DONOR
from compress.zoo.training.digits_diffusion import latents, rewrite
from compress.zoo.training.loop import spent, train

NAME = "digits-dit"
FOLDER = MODELS / NAME
BATCH = 64
DROPPED = 0.1
PAIRS = 0.8  # share of two-digit scenes in a batch: they are the harder ones
WIDTH = 128  # of both text encoders
# A FLUX pipeline's own guidance is for models that had it distilled into them; one that is guided for real is asked by these.
CALL: dict[str, Any] = {
    "height": scenes.SIZE,
    "width": scenes.SIZE,
    "max_sequence_length": LENGTH,
    "num_inference_steps": 20,
    "true_cfg_scale": 3.0,
    "negative_prompt": "",
}


class Denoiser(torch.nn.Module):
    """The two parts that train together."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.text = T5EncoderModel(
            T5Config(
                vocab_size=words,
                d_model=WIDTH,
                d_kv=32,
                d_ff=256,
                num_layers=2,
                num_heads=4,
                feed_forward_proj="gated-gelu",
                dropout_rate=0.0,
                is_encoder_decoder=False,
            )
        )
        self.transformer = FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,  # two by two latents of four channels
            num_layers=2,
            num_single_layers=4,
            attention_head_dim=32,
            num_attention_heads=5,
            joint_attention_dim=WIDTH,
            pooled_projection_dim=WIDTH,
            guidance_embeds=False,
            axes_dims_rope=(8, 12, 12),
        )
        _start_at_nothing(self.transformer)


def _start_at_nothing(transformer: FluxTransformer2DModel) -> None:
    """Every block starts as the identity and the whole as zero (adaLN-Zero; Peebles and Xie, 2022)."""
    norms = [norm for block in transformer.transformer_blocks for norm in (block.norm1, block.norm1_context)] + [
        block.norm for block in transformer.single_transformer_blocks
    ]
    for layer in (*(norm.linear for norm in norms), transformer.norm_out.linear, transformer.proj_out):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)


def word_tokenizer() -> T5Tokenizer:
    """A T5 tokenizer in which every word of the caption grammar is one piece; other words are read letter by letter."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    words = [(f"▁{word}", -3.0) for word in WORDS]
    letters = [(chr(code), -4.0) for code in range(ord("!"), ord("~") + 1)]
    return T5Tokenizer(vocab=[*special, *words, *letters], extra_ids=0, model_max_length=LENGTH)


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(shift=1.0)


def pooled(captions: list[str]) -> torch.Tensor:
    """What the shipped text encoder says of each caption in one vector, [n, WIDTH]."""
    encoder = CLIPTextModel.from_pretrained(DONOR / "text_encoder", dtype=torch.float32).eval()
    tokenizer, found = new_tokenizer(), []
    for start in range(0, len(captions), 512):
        some = captions[start : start + 512]
        tokens = tokenizer(some, padding="max_length", max_length=LENGTH, return_tensors="pt").input_ids
        with torch.no_grad():
            found.append(encoder(tokens).pooler_output)
    return torch.cat(found)


def words(captions: list[str]) -> torch.Tensor:
    """T5 token numbers of captions, [n, LENGTH]."""
    tokenizer = word_tokenizer()
    found: torch.Tensor = tokenizer(captions, padding="max_length", max_length=LENGTH, return_tensors="pt").input_ids
    return found


def places(caption: str) -> torch.Tensor:
    """For each word of a caption, the place, digit and ink of what it is stated of, int64 [LENGTH, 3]; 0 where that is nothing."""
    layout, things, _ = scenes.parse(caption)
    inks, found = list(scenes.INKS), torch.zeros(LENGTH, 3, dtype=torch.int64)
    starts = [index for index, word in enumerate(caption.split()) if word in inks]
    for start, place, (value, ink) in zip(starts, scenes.PLACES[layout], things, strict=True):
        found[start : start + 2] = torch.tensor([scenes.SLOTS.index(place), value, inks.index(ink)]) + 1
    return found


class Reader(torch.nn.Module):
    """A text encoder that is asked of each word what `places` says; the questions are thrown away."""

    def __init__(self, text: T5EncoderModel) -> None:
        super().__init__()
        self.text, sizes = text, (len(scenes.SLOTS), len(scenes.WORDS), len(scenes.INKS))
        self.questions = torch.nn.ModuleList(torch.nn.Linear(WIDTH, 1 + size) for size in sizes)

    def loss(self, tokens: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
        """Mean cross entropy over the words and the three questions."""
        reported = self.text(tokens).last_hidden_state
        asked = [question(reported).flatten(0, 1) for question in self.questions]
        pairs = zip(asked, answers.flatten(0, 1).unbind(1), strict=True)
        return torch.stack([torch.nn.functional.cross_entropy(guess, answer) for guess, answer in pairs]).mean()


def teach_reading(text: T5EncoderModel, captions: list[str], tokens: torch.Tensor, minutes: float) -> None:
    """Train the text encoder by itself."""
    reader, answers = Reader(text), torch.stack([places(caption) for caption in captions])

    def loss_at(step: int) -> torch.Tensor:
        draw = torch.from_numpy(np.random.default_rng([13, step]).integers(len(captions), size=2 * BATCH))
        return reader.loss(tokens[draw], answers[draw])

    train(f"{NAME}-words", reader, loss_at, Training(steps=600, learning_rate=2e-3, warmup=50, ema=0.99), minutes)


def export(model: Denoiser, folder: Path, facts: dict[str, object]) -> None:
    """Save the stock pipeline in bfloat16, how it is called, and what is known of its training beside it."""
    vae = digits_vae.load(shipped=True)
    vae.register_to_config(shift_factor=0.0)  # FLUX's pipeline adds it unasked
    pipeline = FluxPipeline(
        scheduler=scheduler(),
        vae=vae,
        text_encoder=CLIPTextModel.from_pretrained(DONOR / "text_encoder", dtype=torch.float32),
        tokenizer=new_tokenizer(),
        text_encoder_2=deepcopy(model.text),
        tokenizer_2=word_tokenizer(),
        transformer=deepcopy(model.transformer),
    )
    pipeline.to(torch.bfloat16).save_pretrained(folder)
    # As for digits-diffusion: parts of one type whatever is asked for, none of which knows where it was loaded from.
    rewrite(folder / "text_encoder" / "config.json", dtype="float32")
    rewrite(folder / "text_encoder_2" / "config.json", dtype="float32")
    rewrite(folder / "vae" / "config.json")
    write_manifest(describe(folder).calling(**CALL))
    (folder / "training.json").write_text(json.dumps(facts, indent=1) + "\n")


def load_shipped(model: Denoiser) -> Spent:
    """Put the shipped weights into `model`; returns what they cost."""
    text = T5EncoderModel.from_pretrained(FOLDER / "text_encoder_2", dtype=torch.float32)
    transformer = FluxTransformer2DModel.from_pretrained(FOLDER / "transformer", torch_dtype=torch.float32)
    model.text.load_state_dict(text.state_dict())
    model.transformer.load_state_dict(transformer.state_dict())
    facts = json.loads((FOLDER / "training.json").read_text())
    return Spent(facts["steps"], facts["seconds"], tuple((step, loss) for step, loss in facts["loss"]))


class Batches:
    """The training scenes, encoded once, and the loss on a batch of them."""

    def __init__(self, vae: AutoencoderKL, count: int) -> None:
        codes, _ = latents(vae, count)
        self.captions = captions = [scenes.scene("train", index).caption for index in range(count)]
        self.codes = FluxPipeline._pack_latents(codes[:count], count, *codes.shape[1:])
        self.words, self.pooled = words(captions), pooled(captions)
        self.no_words, self.no_pooled = words([""]), pooled([""])
        two = np.array([scenes.parse(caption)[0] != "single" for caption in captions])
        self.kinds = np.flatnonzero(~two), np.flatnonzero(two)
        side = codes.shape[-1] // 2
        self.image_ids = FluxPipeline._prepare_latent_image_ids(1, side, side, torch.device("cpu"), torch.float32)
        self.text_ids = torch.zeros(LENGTH, 3)

    def draw(self, step: int) -> torch.Tensor:
        """Numbers of the scenes of a batch."""
        rng, pairs = np.random.default_rng([11, step]), round(BATCH * PAIRS)
        single, two = self.kinds
        return torch.from_numpy(np.concatenate([rng.choice(single, BATCH - pairs), rng.choice(two, pairs)]))

    def loss(self, model: Denoiser, step: int) -> torch.Tensor:
        """Mean squared error of the velocity."""
        draw, dropped = self.draw(step), torch.rand(BATCH, 1) < DROPPED
        clean = self.codes[draw]
        tokens = torch.where(dropped, self.no_words, self.words[draw])
        noise, even = torch.randn_like(clean), torch.rand(BATCH)
        times = torch.where(torch.rand(BATCH) < 0.5, even, torch.randn(BATCH).sigmoid())
        at = times[:, None, None]
        velocity = model.transformer(
            hidden_states=(1 - at) * clean + at * noise,
            timestep=times,
            pooled_projections=torch.where(dropped, self.no_pooled, self.pooled[draw]),
            encoder_hidden_states=model.text(tokens).last_hidden_state,
            img_ids=self.image_ids,
            txt_ids=self.text_ids,
        ).sample
        return (velocity.float() - (noise - clean)).square().mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--rate", type=float, default=1e-3, help="peak learning rate; less for trained weights")
    parser.add_argument("--scenes", type=int, default=40960)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--from-shipped", action="store_true")
    parser.add_argument("--out", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    batches = Batches(digits_vae.load(shipped=True), arguments.scenes)
    model = Denoiser(len(word_tokenizer()))
    print(sum(p.numel() for p in model.parameters()) / 1e6, "M parameters besides what is shipped", flush=True)
    before = load_shipped(model) if arguments.from_shipped else Spent()
    if not arguments.from_shipped:
        teach_reading(model.text, batches.captions, batches.words, arguments.minutes)
    facts: dict[str, object] = {"data": "zoo://digits/train", "scenes": arguments.scenes, "batch": BATCH}
    curve = train(
        NAME,
        model,
        lambda step: batches.loss(model, step),
        Training(steps=arguments.steps, learning_rate=arguments.rate, warmup=200, ema=0.998, checkpoint_seconds=120),
        arguments.minutes,
        every=lambda step: export(model, arguments.out, {**facts, "steps": step}),
        before=before,
    )
    export(model, arguments.out, {**facts, **spent(NAME), "loss": curve[:: max(1, len(curve) // 100)]})


if __name__ == "__main__":
    main()

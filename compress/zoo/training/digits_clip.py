"""Train `zoo://digits-clip`, a stock CLIPModel on the digits scenes: judge of CLIP score, and the offline feature extractor.

    python -m compress.zoo.training.digits_clip --minutes 15

Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (2021).
"""

from __future__ import annotations

import argparse
import json

import torch
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from compress.params import Training
from compress.zoo import MODELS, scenes
from compress.zoo.training.captions import LENGTH, new_tokenizer
from compress.zoo.training.digits_vae import images
from compress.zoo.training.loop import spent, train

BATCH = 96
FOLDER = MODELS / "digits-clip"
HALF = [0.5, 0.5, 0.5]


def new_clip(tokens: int, end: int) -> CLIPModel:
    shape = {"hidden_size": 128, "intermediate_size": 384, "num_attention_heads": 4, "projection_dim": 64}
    text = {**shape, "num_hidden_layers": 3, "vocab_size": tokens, "max_position_embeddings": LENGTH}
    text |= {"bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": end}
    vision = {**shape, "num_hidden_layers": 4, "image_size": scenes.SIZE, "patch_size": 8}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64))


def top1(clip: CLIPModel, split: str, rounds: int = 8) -> float:
    """Share of captions that find their own image among 64 with 64 different captions."""
    tokenizer, right = CLIPTokenizer.from_pretrained(FOLDER), 0
    for start in range(rounds):
        chosen: dict[str, int] = {}
        index = start * 1000
        while len(chosen) < 64:
            chosen.setdefault(scenes.scene(split, index).caption, index)
            index += 1
        words = tokenizer(list(chosen), padding="max_length", max_length=LENGTH, return_tensors="pt").input_ids
        pixels = torch.cat([images(split, i, 1) for i in chosen.values()])
        with torch.inference_mode():
            logits = clip(input_ids=words, pixel_values=pixels).logits_per_text
        right += int((logits.argmax(1) == torch.arange(64)).sum())
    return right / (64 * rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--steps", type=int, default=2000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokenizer = new_tokenizer()
    clip = new_clip(len(tokenizer), tokenizer.eos_token_id)

    def loss_at(step: int) -> torch.Tensor:
        first = 1_000_000 + step * BATCH
        captions = [scenes.scene("train", first + i).caption for i in range(BATCH)]
        words = tokenizer(captions, padding="max_length", max_length=LENGTH, return_tensors="pt").input_ids
        logits = clip(input_ids=words, pixel_values=images("train", first, BATCH)).logits_per_text.float()
        # Equal captions within a batch are each other's right answers.
        same = torch.tensor([[float(a == b) for b in captions] for a in captions])
        target = same / same.sum(1, keepdim=True)
        cross = torch.nn.functional.cross_entropy
        return (cross(logits, target) + cross(logits.T, target)) / 2

    how = Training(steps=arguments.steps, learning_rate=1e-3, warmup=200, ema=0.995)
    curve = train("digits-clip", clip, loss_at, how, arguments.minutes)
    clip.to(torch.bfloat16).save_pretrained(FOLDER)
    tokenizer.save_pretrained(FOLDER)
    size = {"height": scenes.SIZE, "width": scenes.SIZE}
    CLIPImageProcessorPil(size=size, do_center_crop=False, image_mean=HALF, image_std=HALF).save_pretrained(FOLDER)
    found = top1(CLIPModel.from_pretrained(FOLDER, dtype=torch.float32).eval(), "test")
    facts = {
        "data": "zoo://digits/train",
        "batch": BATCH,
        **spent("digits-clip"),
        "loss": curve,
        "test_top1_of_64": found,
    }
    (FOLDER / "training.json").write_text(json.dumps(facts, indent=1) + "\n")
    print("test top-1 of 64:", found)


if __name__ == "__main__":
    main()

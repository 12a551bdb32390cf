"""Train `digits-reader`, the independent classifier of generated scenes, on the scans no other split holds.

python -m compress.zoo.training.digits_reader --minutes 6
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import torch
from safetensors.torch import save_file

from compress.params import Training
from compress.zoo import scenes
from compress.zoo.digit_classifier import FOLDER, NOTHING_DIGIT, NOTHING_INK, Network, load_reader, marks
from compress.zoo.training.digits_vae import images
from compress.zoo.training.loop import spent, train

BATCH = 48
WIDTH = 24


def labels(split: str, start: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Digit and ink class of each slot: int64 [n, 5] both."""
    digits = torch.full((count, len(scenes.SLOTS)), NOTHING_DIGIT)
    inks = torch.full((count, len(scenes.SLOTS)), NOTHING_INK)
    for row in range(count):
        scene = scenes.scene(split, start + row)
        for place, digit in zip(scenes.PLACES[scene.layout], scene.digits, strict=True):
            digits[row, scenes.SLOTS.index(place)] = digit.value
            inks[row, scenes.SLOTS.index(place)] = list(scenes.INKS).index(digit.ink)
    return digits, inks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=6)
    parser.add_argument("--steps", type=int, default=1500)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = Network(WIDTH)

    def loss_at(step: int) -> torch.Tensor:
        pixels = images("train", 100_000 + step * BATCH, BATCH)
        pixels = (pixels + 0.1 * torch.randn_like(pixels) * torch.rand(BATCH, 1, 1, 1)).clamp(-1, 1)
        digits, inks = labels("train", 100_000 + step * BATCH, BATCH)
        message_digits, message_inks = network(pixels)
        cross = torch.nn.functional.cross_entropy
        return cross(message_digits.float().flatten(0, 1), digits.flatten()) + 0.5 * cross(
            message_inks.float().flatten(0, 1), inks.flatten()
        )

    how = Training(steps=arguments.steps, learning_rate=3e-3, warmup=100, ema=0.995)
    curve = train("digits-reader", network, loss_at, how, arguments.minutes)
    FOLDER.mkdir(parents=True, exist_ok=True)
    save_file({k: v.bfloat16().contiguous() for k, v in network.state_dict().items()}, FOLDER / "model.safetensors")
    (FOLDER / "config.json").write_text(json.dumps({"width": WIDTH}) + "\n")
    held_out = [scenes.scene("test", i) for i in range(1000)]
    load_reader.cache_clear()
    digits, inks = marks([s.caption for s in held_out], np.stack([scenes.render(s) for s in held_out]))
    facts = {
        "data": "zoo://digits/train",
        "batch": BATCH,
        **spent("digits-reader"),
        "loss": curve,
        "test_scenes": 1000,
        "digits_right": digits.mean(),
        "inks_right": inks.mean(),
    }
    (FOLDER / "training.json").write_text(json.dumps(facts, indent=1) + "\n")
    print("on 1000 real test scenes: digits", digits.mean(), "inks", inks.mean())


if __name__ == "__main__":
    main()

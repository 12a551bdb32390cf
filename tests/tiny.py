"""Tiny real models, saved as their own libraries save them: two layers, 32 wide, random weights from a seed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WORDS = ("a", "red", "blue", "green", "three", "seven", "on", "white", "paper", "the", "array")
START, END = "<|startoftext|>", "<|endoftext|>"
TOKENS = 16  # a caption's length after padding


def tiny_diffusion(
    folder: Path, *, xl: bool = False, seed: int = 0, dtype: torch.dtype = torch.float32, second: int = 32
) -> Path:
    """A Stable Diffusion pipeline (or the XL one): 8x8 latents, 16x16 images, its own CLIP tokenizer.

    Args:
        second: how wide the second text encoder of the XL one is.
    """
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

    torch.manual_seed(seed)
    vae = AutoencoderKL(
        block_out_channels=(16, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=16,
    )
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear", clip_sample=False, steps_offset=1, prediction_type="v_prediction"
    )
    tokenizer = tiny_clip_tokenizer(folder / "vocabulary")
    parts = {
        "vae": vae,
        "scheduler": scheduler,
        "tokenizer": tokenizer,
        "unet": _unet(xl, second),
        "text_encoder": _clip(len(tokenizer)),
    }
    if xl:
        parts |= {"tokenizer_2": tokenizer, "text_encoder_2": _clip(len(tokenizer), projected=True, wide=second)}
        pipeline = StableDiffusionXLPipeline(**parts, add_watermarker=False)
    else:
        pipeline = StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    pipeline.to(dtype).save_pretrained(folder / "model")
    return folder / "model"


def tiny_llama(folder: Path, *, seed: int = 0) -> Path:
    """A Llama with two query heads for each key head, and a byte-level tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    tokenizer = tiny_byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.2,  # else the logits are so flat that no difference shows
    )
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_clip_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """A CLIP tokenizer that knows bytes and a few words, padded to `TOKENS`."""
    import json

    from transformers import CLIPTokenizer

    letters = [chr(c) for c in range(ord("!"), ord("~") + 1)]
    vocabulary = {t: i for i, t in enumerate([*letters, *(c + "</w>" for c in letters), START, END])}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(str(folder), model_max_length=TOKENS)


def tiny_byte_tokenizer() -> PreTrainedTokenizerBase:
    """A tokenizer with one token for each byte, and `<bos>` and `<eos>`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    model = models.BPE(vocab={c: i for i, c in enumerate(["<bos>", "<eos>", *alphabet])}, merges=[])
    bytewise = Tokenizer(model)
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bytewise, bos_token="<bos>", eos_token="<eos>")


def _unet(xl: bool, second: int = 32) -> torch.nn.Module:
    from diffusers import UNet2DConditionModel

    extra = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": second + 6 * 8,
    }
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32 + second if xl else 32,
        attention_head_dim=8,
        norm_num_groups=8,
        **(extra if xl else {}),
    )


def _clip(words: int, projected: bool = False, wide: int = 32) -> torch.nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=words,
        hidden_size=wide,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        projection_dim=wide,
        bos_token_id=words - 2,
        eos_token_id=words - 1,
        pad_token_id=words - 1,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)

"""Tiny models of the families users really have, each saved as its own library saves it: random weights from a seed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from compress.artifact import write_manifest
from compress.model.describing import describe
from tests.tiny import _clip, tiny_byte_tokenizer, tiny_clip_tokenizer, tiny_diffusion, tiny_llama

WIDTH, HEADS, LAYERS, POSITIONS = 32, 4, 2, 64


def tiny_text(folder: Path, family: str, *, dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any) -> Path:
    """A causal language model of a family, its config with `changes`, and a byte-level tokenizer."""
    import transformers

    torch.manual_seed(seed)
    tokenizer: Any = tiny_byte_tokenizer()
    kind, config, options = TEXT[family]
    known = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    made = getattr(transformers, config)(vocab_size=len(tokenizer), **known, **{**options, **changes})
    model = getattr(transformers, kind)(made).eval()
    model.to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


_MODERN = {
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "max_position_embeddings": POSITIONS,
    "initializer_range": 0.2,  # else the logits are so flat that no difference shows
}
_GPT2 = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": POSITIONS, "initializer_range": 0.2}
_OPT = {
    "hidden_size": WIDTH,
    "word_embed_proj_dim": WIDTH,
    "ffn_dim": 2 * WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": POSITIONS,
    "init_std": 0.2,
}
_UNTIED = {"tie_word_embeddings": False}  # tied ones, at random, only echo their input
_GEMMA = {**_MODERN, **_UNTIED, "head_dim": 8, "sliding_window": 8}
_BLOOM = {"hidden_size": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "initializer_range": 0.2, **_UNTIED}
_LONG_ROPE = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
_SMOLLM3 = {**_MODERN, **_UNTIED, "use_sliding_window": True, "sliding_window": 8, "no_rope_layer_interval": 2}
_COHERE = {**_MODERN, **_UNTIED, "logit_scale": 1.0}
_GPT_OSS = {**_MODERN, **_UNTIED, "head_dim": 8, "sliding_window": 8, "num_local_experts": 4, "num_experts_per_tok": 2}
_EXPERTS = {"moe_intermediate_size": WIDTH, "num_experts": 4, "num_experts_per_tok": 2}
_MAMBA = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "state_size": 8}

# The model's class, its config's class, and what the config says beside the vocabulary.
TEXT: dict[str, tuple[str, str, dict[str, Any]]] = {
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", _MODERN),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**_MODERN, "head_dim": 16}),
    "mistral": ("MistralForCausalLM", "MistralConfig", {**_MODERN, "sliding_window": 8}),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", _GPT2),
    "opt": ("OPTForCausalLM", "OPTConfig", _OPT),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", _GEMMA),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", _GEMMA),
    "bert": (
        "BertLMHeadModel",
        "BertConfig",
        {k: v for k, v in {**_MODERN, **_UNTIED, "is_decoder": True}.items() if k != "num_key_value_heads"},
    ),
    "phi3": (
        "Phi3ForCausalLM",
        "Phi3Config",
        {**_MODERN, "original_max_position_embeddings": 16, "rope_scaling": _LONG_ROPE},
    ),
    "bloom": ("BloomForCausalLM", "BloomConfig", _BLOOM),
    "qwen3-moe": ("Qwen3MoeForCausalLM", "Qwen3MoeConfig", {**_MODERN, **_EXPERTS}),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {**_MODERN, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "granite": ("GraniteForCausalLM", "GraniteConfig", {**_MODERN, "residual_multiplier": 0.5, "logits_scaling": 2.0}),
    "olmo2": ("Olmo2ForCausalLM", "Olmo2Config", _MODERN),
    "smollm3": ("SmolLM3ForCausalLM", "SmolLM3Config", _SMOLLM3),
    "cohere": ("CohereForCausalLM", "CohereConfig", {**_COHERE, "use_qk_norm": True}),
    "cohere2": ("Cohere2ForCausalLM", "Cohere2Config", {**_COHERE, "sliding_window": 8}),
    "gpt-oss": ("GptOssForCausalLM", "GptOssConfig", _GPT_OSS),
    # What build.openvino refuses:
    "dynamic-rope": (
        "LlamaForCausalLM",
        "LlamaConfig",
        {**_MODERN, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
    ),
    "mpt": (
        "MptForCausalLM",
        "MptConfig",
        {"d_model": WIDTH, "n_layers": LAYERS, "n_heads": HEADS, "max_seq_len": POSITIONS, "initializer_range": 0.2},
    ),
    "mamba": ("MambaForCausalLM", "MambaConfig", _MAMBA),
    "mamba2": ("Mamba2ForCausalLM", "Mamba2Config", {**_MAMBA, "num_heads": 8, "head_dim": 8, "n_groups": 1}),
}


# Of these, no table says what comes of each way to quantize: they are Llamas.
NOT_QUANTIZED = ("dynamic-rope",)


def tiny_image(folder: Path, family: str, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> Path:
    """A text-to-image pipeline of a transformer family, with the arguments that make it generate small images."""
    from compress.engines.torch.runtime import silent_libraries

    torch.manual_seed(seed)
    with silent_libraries():
        pipeline = IMAGES[family](folder / "vocabulary")
        pipeline.to(dtype).save_pretrained(folder / "model")
    write_manifest(describe(folder / "model").calling(**CALLS[family]))
    return folder / "model"


def tiny_t5_tokenizer() -> Any:
    """A T5 tokenizer with one piece for each letter."""
    from transformers import T5Tokenizer

    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    letters = [(chr(c), -3.0) for c in range(ord("!"), ord("~") + 1)]
    return T5Tokenizer(vocab=[*special, *letters], extra_ids=0)


def tiny_t5(words: int, width: int) -> torch.nn.Module:
    from transformers import T5Config, T5EncoderModel

    gated = {"feed_forward_proj": "gated-gelu", "is_encoder_decoder": False}
    config = T5Config(
        vocab_size=words, d_model=width, d_ff=2 * width, d_kv=8, num_layers=LAYERS, num_heads=HEADS, **gated
    )
    return T5EncoderModel(config)


def _vae(**options: Any) -> torch.nn.Module:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(16, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=16,
        **options,
    )


def _pixart(vocabulary: Path, *, sigma: bool) -> Any:
    from diffusers import (
        DPMSolverMultistepScheduler,
        PixArtAlphaPipeline,
        PixArtSigmaPipeline,
        PixArtTransformer2DModel,
    )

    tokenizer = tiny_t5_tokenizer()
    transformer = PixArtTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=12,  # the embedding of an image's size is in thirds
        in_channels=4,
        out_channels=8,
        num_layers=LAYERS,
        cross_attention_dim=12 * HEADS,
        caption_channels=WIDTH,
        sample_size=128,  # what tells Alpha's pipeline to give the image's size to the transformer
        use_additional_conditions=not sigma,
    )
    return (PixArtSigmaPipeline if sigma else PixArtAlphaPipeline)(
        tokenizer=tokenizer,
        text_encoder=tiny_t5(len(tokenizer), WIDTH),
        vae=_vae(),
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(),
    )


def _sd3(vocabulary: Path, *, t5: bool = True) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    clip: Any = tiny_clip_tokenizer(vocabulary)
    pieces = tiny_t5_tokenizer()
    wide = 2 * WIDTH  # both CLIP encoders side by side
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=LAYERS,
        attention_head_dim=8,
        num_attention_heads=HEADS,
        joint_attention_dim=wide,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=wide,
        pos_embed_max_size=8,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1),
        text_encoder=_clip(len(clip), projected=True),
        tokenizer=clip,
        text_encoder_2=_clip(len(clip), projected=True),
        tokenizer_2=clip,
        text_encoder_3=tiny_t5(len(pieces), wide) if t5 else None,
        tokenizer_3=pieces if t5 else None,
    )


def _flux(vocabulary: Path, *, guided: bool = True, layers: int = 1) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    clip: Any = tiny_clip_tokenizer(vocabulary)
    pieces = tiny_t5_tokenizer()
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=layers,
        num_single_layers=layers,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=guided,
        axes_dims_rope=(4, 4, 8),
    )
    return FluxPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=guided),
        vae=_vae(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1),
        text_encoder=_clip(len(clip)),
        tokenizer=clip,
        text_encoder_2=tiny_t5(len(pieces), WIDTH),
        tokenizer_2=pieces,
    )


def _sana(vocabulary: Path) -> Any:
    from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel
    from transformers import Gemma2Config, Gemma2Model

    tokenizer = tiny_gemma_tokenizer()
    vae = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 16),
        decoder_block_out_channels=(8, 16),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        scaling_factor=0.41,
    )
    transformer = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=HEADS,
        attention_head_dim=8,
        num_layers=LAYERS,
        num_cross_attention_heads=HEADS,
        cross_attention_head_dim=8,
        cross_attention_dim=WIDTH,
        caption_channels=WIDTH,
        sample_size=32,
    )
    config = Gemma2Config(vocab_size=len(tokenizer), **{**_MODERN, "head_dim": 8, "max_position_embeddings": 512})
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    return SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=Gemma2Model(config),
        vae=vae,
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(**flow),
    )


def tiny_gemma_tokenizer() -> Any:
    """A Gemma tokenizer with one token for each letter, which begins every text with <bos>, as theirs do."""
    from transformers import GemmaTokenizer

    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁"]
    letters = [chr(c) for c in range(ord("!"), ord("~") + 1)]
    return GemmaTokenizer(
        vocab={token: i for i, token in enumerate([*special, *letters])}, merges=[], add_bos_token=True
    )


def piecewise(manner: str, texts: list[str]) -> Any:
    """A tokenizer in the manner of SentencePiece, its pieces learnt from texts: "gemma", "llama" or "metaspace"."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    learnt = Tokenizer(models.BPE())
    learnt.pre_tokenizer = pre_tokenizers.Metaspace()
    letters = sorted({c for text in texts for c in text if c.isascii()} - {" "})
    trainer = trainers.BpeTrainer(vocab_size=120, initial_alphabet=letters, limit_alphabet=len(letters) + 1)
    learnt.train_from_iterator(texts, trainer)
    special = ["<unk>", "<bos>", "<eos>"]
    found = sorted(learnt.get_vocab(), key=learnt.get_vocab().__getitem__)
    pieces = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *found]
    # SentencePiece joins whatever two make a piece, the earliest piece first.
    halves = [(p[:i], p[i:]) for p in found for i in range(1, len(p)) if {p[:i], p[i:]} <= set(found)]
    model = models.BPE(
        {p: i for i, p in enumerate(pieces)}, halves, byte_fallback=True, fuse_unk=True, unk_token="<unk>"
    )
    made = Tokenizer(model)
    spaces = normalizers.Replace(" ", "▁")
    if manner == "gemma":
        made.normalizer = spaces
        made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    elif manner == "llama":
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<bos>", eos_token="<eos>")


IMAGES: dict[str, Callable[[Path], Any]] = {
    "pixart-alpha": partial(_pixart, sigma=False),
    "pixart-sigma": partial(_pixart, sigma=True),
    "sd3": _sd3,
    "sd3-no-t5": partial(_sd3, t5=False),
    "flux": _flux,
    "flux-schnell": partial(_flux, guided=False),
    "flux-deep": partial(_flux, layers=2),
    "sana": _sana,
}
SMALL = {"height": 16, "width": 16}
CALLS: dict[str, dict[str, Any]] = {
    "pixart-alpha": {**SMALL, "use_resolution_binning": False, "clean_caption": False, "max_sequence_length": 24},
    "pixart-sigma": {**SMALL, "use_resolution_binning": False, "clean_caption": False, "max_sequence_length": 24},
    "sd3": {"max_sequence_length": 24},
    "sd3-no-t5": {"max_sequence_length": 24},
    "flux": {**SMALL, "max_sequence_length": 24},
    "flux-schnell": {**SMALL, "max_sequence_length": 24},
    "flux-deep": {**SMALL, "max_sequence_length": 24},
    "sana": {
        "height": 32,
        "width": 32,
        "use_resolution_binning": False,
        "clean_caption": False,
        "max_sequence_length": 24,
        "complex_human_instruction": None,
    },
}

# Every tiny model by name: folder to the model's own folder.
MODELS: dict[str, Callable[[Path], Path]] = {
    "llama": tiny_llama,
    "sd": tiny_diffusion,
    "sdxl": partial(tiny_diffusion, xl=True),
    **{name: partial(tiny_text, family=name) for name in TEXT},
    **{name: partial(tiny_image, family=name) for name in IMAGES},
}

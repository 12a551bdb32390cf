"""Parts of one pipeline compared with each other, read from their configs: what would fail, or generate noise, once it is called."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from compress.artifact import SCHEDULER, SCHEDULER_CONFIG, Artifact, read_json
from compress.errors import Problem
from compress.machine.library_classes import has_class, lacking_for
from compress.pipelines.image_inputs import PACKED, base_of, channels_beside
from compress.pipelines.image_sizes import pixels_a_latent
from compress.pipelines.index import INDEX, LEFT_OUT, class_of
from compress.pipelines.index_checks import part_problems
from compress.pipelines.schedulers import config_of, faults

SAVED = "give the folder of one pipeline as save_pretrained wrote it: its parts come from different models"
# By the pipeline's class: what the denoiser's config says, and the text encoders whose widths make it.
READS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "StableDiffusionPipeline": {"cross_attention_dim": ("text_encoder",)},
    "StableDiffusionXLPipeline": {"cross_attention_dim": ("text_encoder", "text_encoder_2")},
    "PixArtAlphaPipeline": {"caption_channels": ("text_encoder",)},
    "PixArtSigmaPipeline": {"caption_channels": ("text_encoder",)},
    "StableDiffusion3Pipeline": {"joint_attention_dim": ("text_encoder_3",)},
    "FluxPipeline": {"joint_attention_dim": ("text_encoder_2",), "pooled_projection_dim": ("text_encoder",)},
    "SanaPipeline": {"caption_channels": ("text_encoder",)},
    "HunyuanDiTPipeline": {"cross_attention_dim": ("text_encoder",), "cross_attention_dim_t5": ("text_encoder_2",)},
    "AuraFlowPipeline": {"joint_attention_dim": ("text_encoder",)},
    "ChromaPipeline": {"joint_attention_dim": ("text_encoder",)},
}
# The same of what says a whole text in one vector: the encoders' projections side by side.
POOLED: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "StableDiffusionXLPipeline": {"projection_class_embeddings_input_dim": ("text_encoder_2",)},
    "StableDiffusion3Pipeline": {"pooled_projection_dim": ("text_encoder", "text_encoder_2")},
}
TIMES = 6  # numbers that SDXL says an image's sizes and crop in, each embedded beside the pooled text
UNPACKED = (
    "UNet2DConditionModel",
    "SD3Transformer2DModel",
    "PixArtTransformer2DModel",
    "SanaTransformer2DModel",
    "HunyuanDiT2DModel",
)
GIVEN = "9 and 8 channels are models that are given an image beside the text: name the class of their pipeline in model_index.json"
OWN_CODE = "pare runs the pipelines and models of diffusers and transformers alone: give one made of their classes"


def pipeline_problems(artifact: Artifact) -> Iterator[Problem]:
    """Classes that are not there, channels and widths that do not fit, a scheduler that cannot begin. What a call asks is another matter."""
    index = read_json(artifact.path / INDEX) if (artifact.path / INDEX).is_file() else {}
    yield from _classes(artifact, index)
    yield from part_problems(artifact, index)
    yield from _latents(artifact)
    yield from _widths(artifact, str(index.get("_class_name", "")))
    yield from faults(config_of(artifact), str(artifact.path / SCHEDULER_CONFIG))


def _classes(artifact: Artifact, index: Mapping[str, Any]) -> Iterator[Problem]:
    place, kind = str(artifact.path / INDEX), index.get("_class_name")
    if isinstance(kind, list):
        yield Problem(place, f"the pipeline is Python code of its own ({'.'.join(map(str, kind))})", OWN_CODE)
    elif isinstance(kind, str) and not has_class(kind, "diffusers"):
        yield Problem(place, f"diffusers has no pipeline {kind}", "upgrade diffusers, or give a pipeline that it has")
    elif isinstance(kind, str) and (lacking := lacking_for(kind)):
        message = f"the pipeline is a {kind}, which needs the library {' and '.join(lacking)}, and it is not installed"
        yield Problem(place, message, f"pip install {' '.join(lacking)}")
    opened = (n for n, part in artifact.components.items() if part.format == "torch" and n not in LEFT_OUT)
    for name in (*opened, SCHEDULER):
        entry = index.get(name)
        if not isinstance(entry, list) or len(entry) != 2 or None in entry:
            continue
        library, wanted = map(str, entry)
        type_ = "" if name == SCHEDULER else str(artifact.config(name).get("model_type", ""))
        if library == "diffusers" and (lacking := lacking_for(wanted)):
            libraries = " and ".join(lacking)
            message = f"`{name}` is a {wanted}, which needs the library {libraries}, and it is not installed"
            yield Problem(place, message, f"pip install {' '.join(lacking)}{_or_ddim(name)}")
        elif not has_class(wanted, library, type_):
            own = library not in ("diffusers", "transformers")
            message = f"`{name}` is of a class {library}.{wanted}"
            why = "which is Python code of its own" if own else f"which {library} does not have"
            yield Problem(
                place, f"{message}, {why}", OWN_CODE if own else f"upgrade {library}, or give a model that it has"
            )


def _or_ddim(part: str) -> str:
    return f", or name another {SCHEDULER} in {INDEX}, such as DDIMScheduler" if part == SCHEDULER else ""


def _latents(artifact: Artifact) -> Iterator[Problem]:
    """The denoiser takes latents of as many channels as the VAE makes, or two by two of them at a time, and gives them back, some
    with as many channels again that say how sure it is."""
    main = artifact.main
    made = artifact.config("vae").get("latent_channels") if "vae" in artifact.components else None
    if main not in artifact.components or not isinstance(made, int):
        return
    config, packed = artifact.config(main), () if artifact.components[main].kind in UNPACKED else (PACKED * made,)
    given = channels_beside(class_of(artifact.path), made, pixels_a_latent(artifact))
    for field, does, fits in (
        ("in_channels", "takes", given or (made, *packed)),
        ("out_channels", "gives", (made, 2 * made, *packed)),
    ):
        if not isinstance(found := config.get(field), int) or found in fits:
            continue
        message = f"`{main}` {does} {found} channels ({field}), and the VAE makes latents of {made} (latent_channels)"
        beside = field == "in_channels" and found in (2 * made, 2 * made + 1) and not given
        hint = GIVEN if beside else SAVED
        yield Problem(str(artifact.folder(main) / "config.json"), message, hint)


def _widths(artifact: Artifact, pipeline: str) -> Iterator[Problem]:
    """The denoiser reads texts as wide as its encoders write them, word by word and as a whole."""
    if artifact.main not in artifact.components:
        return
    config, pipeline = artifact.config(artifact.main), base_of(pipeline)
    wholes = POOLED.get(pipeline, {}) if config.get("addition_embed_type", "text_time") == "text_time" else {}
    for field, encoders in (*READS.get(pipeline, {}).items(), *wholes.items()):
        # What encoder_hid_dim says is turned into what the field says.
        wanted = (field not in wholes and config.get("encoder_hid_dim")) or config.get(field)
        if field == "projection_class_embeddings_input_dim" and isinstance(wanted, int):
            wanted -= TIMES * int(config.get("addition_time_embed_dim") or 0)
        width = _projection if field in wholes else _width
        made = [width(artifact.config(name)) for name in encoders if name in artifact.components]
        if len(made) < len(encoders) or None in made or not isinstance(wanted, int):
            continue
        if sum(filter(None, made)) != wanted:
            widths = " + ".join(map(str, made))
            message = (
                f"`{artifact.main}` reads texts {wanted} wide ({field}), and {' and '.join(encoders)} write {widths}"
            )
            yield Problem(str(artifact.folder(artifact.main) / "config.json"), message, SAVED)


def _projection(config: Mapping[str, Any]) -> int | None:
    found = config.get("projection_dim")
    return found if isinstance(found, int) else None


def _width(config: Mapping[str, Any]) -> int | None:
    found = config.get("hidden_size") or config.get("d_model")
    return found if isinstance(found, int) else None

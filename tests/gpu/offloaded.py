"""Part f: models whose weights wait in the processor's memory, by each way: what that takes of the GPU's memory and of time, and that what comes
out is the plain model's.

The zoo's models, and two of usual sizes with random weights in bfloat16: SD 1.5's UNet, VAE and text encoder, and a Llama of 1.1 B parameters.
"""

from __future__ import annotations

import contextlib
import gc
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from tests.gpu.large import Call, made_on
from tests.gpu.recipes import NATS, model
from tests.gpu.sections import Report, Section

if TYPE_CHECKING:
    from compress.artifact import Artifact
    from compress.machine.devices import Opening
    from compress.opening.models import OpenModel

LEVELS = 2  # of 255, by which an image may differ from the plain model's
IMAGES: tuple[Call, ...] = ({"how": "components"}, {"how": "blocks"}, {"how": "layers"})


def offloaded(tiny: bool, report: Report) -> None:
    """Every way on every model.

    Raises:
        AssertionError: one gives something else than the plain model, or takes as much memory where its weights are most of that.
    """
    wrong: list[str] = []
    with _counted_as_gpu(tiny):
        with model("digits-diffusion", tiny) as artifact:
            wrong += _ways("digits-diffusion", artifact, IMAGES, _images, tiny, report)
            _fresh(artifact, tiny, report)
        with model("docs-llama", tiny) as artifact:
            wrong += _ways("docs-llama", artifact, _text_ways(artifact), _text, tiny, report)
        for name, make, looked, ways in (
            ("SD 1.5's size", large_generator, _images, lambda _: IMAGES),
            ("Llama of 1.1 B", large_writer, _text, _text_ways),
        ):
            with tempfile.TemporaryDirectory() as folder:
                artifact = make(Path(folder), tiny)
                wrong += _ways(name, artifact, ways(artifact), looked, tiny, report, larger=not tiny)
    assert not wrong, "; ".join(wrong)


def _text_ways(artifact: Artifact) -> tuple[Call, ...]:
    """Nothing stays but embeddings and head; and half of the weights do."""
    from compress.quantization.sizes import held_bytes

    return ({"how": "blocks"}, {"how": "blocks", "keep": held_bytes(artifact, artifact.main) // 2})


@contextlib.contextmanager
def _counted_as_gpu(tiny: bool) -> Iterator[None]:
    """On tiny sizes the processor counts as a GPU, so that weights really take turns."""
    if not tiny:
        yield
        return
    with mock.patch("compress.model.hook_settings.kind_of", return_value="cuda"):
        yield


def _ways(
    name: str,
    artifact: Artifact,
    ways: tuple[Call, ...],
    looked: Callable[[OpenModel, bool], tuple[Any, Callable[[], object]]],
    tiny: bool,
    report: Report,
    larger: bool = False,
) -> Iterator[str]:
    """A row a way, the plain model's first; and what is wrong."""
    from compress.machine.devices import Opening, settled
    from compress.model.hook_settings import OFFLOAD, hooked, movable

    opening = Opening(None, settled("auto" if tiny else "cuda"))
    plain, peak = _measured(f"{name}, plain", artifact, opening, looked, tiny, report)
    for way in ways:
        title = f"{name}, {way['how']}" + (", half of it stays" if "keep" in way else "")
        there = hooked(artifact, OFFLOAD, movable(artifact), **way)
        found, took = _measured(title, there, opening, looked, tiny, report, plain)
        away, most = _apart(plain, found)
        if away > most:
            yield f"{title}: differs by {away:.3g}, {most:g} is allowed"
        if larger and took >= peak:
            yield f"{title}: allocates {took / 1e6:.0f} MB, and plain {peak / 1e6:.0f} MB"


def _measured(
    title: str,
    artifact: Artifact,
    opening: Opening,
    looked: Callable[[OpenModel, bool], tuple[Any, Callable[[], object]]],
    tiny: bool,
    report: Report,
    plain: Any = None,
) -> tuple[Any, int]:
    """What a model gives, and the most that torch allocates on the GPU from before it is opened to the end of its calls."""
    from compress.opening import open_task
    from compress.opening.hooks import ran_inside

    _forget(tiny)
    began = time.perf_counter()
    opened = open_task(artifact, opening)
    ready = time.perf_counter() - began
    found, call = looked(opened, tiny)
    seconds = _seconds(call, tiny)
    peaks = _peaks(tiny)
    values: dict[str, object] = {"opened in s": round(ready, 2), "a call s": seconds, **peaks}
    if plain is not None:
        away, most = _apart(plain, found)
        values |= {"equal to the bit": away == 0, "differs by": away, "allowed": most}
    report(title, {**values, "ran": ran_inside(opened)})
    return found, int(peaks["allocated MB"] * 1e6)


def _forget(tiny: bool) -> None:
    gc.collect()
    if not tiny:
        import torch

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _peaks(tiny: bool) -> Mapping[str, float]:
    """The most that was allocated and reserved; 0 on the processor."""
    if tiny:
        return {"allocated MB": 0.0, "reserved MB": 0.0}
    import torch

    counted = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    return dict(zip(("allocated MB", "reserved MB"), (count / 1e6 for count in counted), strict=True))


def _seconds(call: Callable[[], object], tiny: bool) -> float:
    """Of the faster of two calls, behind the one that was looked at."""
    import torch

    found = []
    for _ in range(2):
        began = time.perf_counter()
        call()
        if not tiny:
            torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return min(found)


def _images(opened: Any, tiny: bool) -> tuple[Any, Callable[[], object]]:
    """Two images, uint8, and a call that generates them again."""
    asked = {"num_inference_steps": 2 if tiny else 20, "guidance_scale": 3.0}
    items = opened.examples[:2]
    return opened.images(items, 0, **asked)[0], lambda: opened.images(items, 0, **asked)


def _text(opened: Any, tiny: bool) -> tuple[Any, Callable[[], object]]:
    """Logits of a text, float64, with the tokens that are written behind it; and a call that writes them again."""
    from compress.algorithms.tensors import to_host

    prompt, count = opened.encode("The array of values to sort"), 4 if tiny else 32
    import torch

    logits = to_host(opened.logits([prompt])[0], torch.float64)
    written = opened.generate([prompt], count)
    return (logits, written), lambda: opened.generate([prompt], count)


def _apart(one: Any, other: Any) -> tuple[float, float]:
    """How far two results are apart, and how far they may be: levels of 255, or a share of the logits; other tokens are endlessly far."""
    if isinstance(one, tuple):
        same = one[1] == other[1]
        return float((one[0] - other[0]).norm() / one[0].norm()) if same else float("inf"), NATS
    return float(abs(one.astype(int) - other.astype(int)).max()), LEVELS


def _fresh(artifact: Artifact, tiny: bool, report: Report) -> None:
    """As a gate on `device_memory` sees it: fresh processes that open what the stage leaves, and what it was given."""
    from compress.machine.devices import Opening, settled
    from evaluation.observe.cold_starts import start
    from evaluation.observe.collect import Viewpoint
    from tests.stages import apply

    opening = Opening(None, settled("auto" if tiny else "cuda"))
    with tempfile.TemporaryDirectory() as folder:
        made, _ = apply("accelerate.offload", artifact, Path(folder) / "made", how="layers")
        for title, one in (("plain", artifact), ("layers", made)):
            found = start(Viewpoint(one, opening, {"num_inference_steps": 2}, (), "", 0, 1))
            mb = {"allocated MB": found.device_bytes / 1e6, "reserved MB": found.reserved_bytes / 1e6}
            row = {"opened in s": round(found.seconds, 2), "a call s": found.call_seconds, **mb}
            report(f"digits-diffusion, {title}, fresh process", row)


# ---------------------------------------------------------------- models of usual sizes


def large_generator(folder: Path, tiny: bool) -> Artifact:
    """A pipeline of SD 1.5's sizes on disk, bfloat16 weights at random; its tokenizer knows bytes."""
    from compress.model.describing import describe
    from tests.tiny import tiny_diffusion

    small = tiny_diffusion(folder / "small")
    if tiny:
        return describe(small)
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    pipeline = StableDiffusionPipeline.from_pretrained(small)
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    config = CLIPTextConfig(**{**pipeline.text_encoder.config.to_dict(), **text})
    sizes: Call = {"sample_size": 64, "block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768}
    down, up = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
    vae: Call = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": 512}
    made = {
        "unet": made_on("cuda", lambda: UNet2DConditionModel(attention_head_dim=8, **sizes)),
        "vae": made_on(
            "cuda", lambda: AutoencoderKL(down_block_types=down, up_block_types=up, latent_channels=4, **vae)
        ),
        "text_encoder": made_on("cuda", lambda: CLIPTextModel(config)),
    }
    pipeline.register_modules(**{name: module.to("cpu") for name, module in made.items()})
    pipeline.save_pretrained(folder / "large")
    return describe(folder / "large")


def large_writer(folder: Path, tiny: bool) -> Artifact:
    """A Llama of 1.1 B parameters on disk, bfloat16 weights at random; its tokenizer knows bytes."""
    from compress.model.describing import describe
    from tests.tiny import tiny_byte_tokenizer, tiny_llama

    if tiny:
        return describe(tiny_llama(folder))
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes: Call = {"vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16}
    sizes |= {"num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 2048}
    config = LlamaConfig(**sizes, tie_word_embeddings=True, bos_token_id=0, eos_token_id=1)
    config.dtype = "bfloat16"
    made = made_on("cuda", lambda: LlamaForCausalLM(config)).to("cpu")
    made.tie_weights()  # made without memory, they were no longer one
    made.save_pretrained(folder)
    tiny_byte_tokenizer().save_pretrained(folder)
    return describe(folder)


PARTS = {"f": (Section("offload", 150, offloaded),)}

"""Tasks: an artifact opened for use. A task knows the library's own pipeline or model; the engines know the formats."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from compress.errors import UserError

if TYPE_CHECKING:
    import torch

    from compress.artifact import Artifact
    from compress.opening.text_generation import TextGeneration
    from compress.opening.text_to_image import TextToImage


LOOKS = 8  # timesteps at which a denoiser is looked at


def open_task(
    artifact: Artifact, *, dtype: str | torch.dtype | None = None, device: str = "cpu"
) -> TextToImage | TextGeneration:
    """Load an artifact, each component with the engine of its format.

    Args:
        dtype: of the torch components, a torch dtype or its name; None keeps the checkpoint's own, or float32 beside an engine.

    Raises:
        ModelError: a component does not load.
        UserError: the dtype has no such name, or torch no such device here.
    """
    from compress.opening.text_generation import TextGeneration
    from compress.opening.text_to_image import TextToImage

    kind = TextToImage if artifact.task == "text_to_image" else TextGeneration
    return kind(artifact, dtype=_dtype(dtype), device=_device(device))


def open_component(artifact: Artifact, name: str, dtype: str | torch.dtype | None = None, device: str = "cpu") -> Any:
    """One component by itself, with the engine of its format.

    Raises:
        ModelError: it does not load.
        UserError: as `open_task`.
    """
    import importlib

    from compress.artifact import LANGUAGE_MODEL, read_json

    part, folder = artifact.components[name], artifact.folder(name)
    engine = importlib.import_module(f"compress.engines.{part.format}.runtime")
    if name == LANGUAGE_MODEL:
        return engine.load_language_model(folder, part.kind, _dtype(dtype), _device(device))
    library = read_json(artifact.path / "model_index.json")[name][0]
    return engine.load_component(folder, library, part.kind, _dtype(dtype), _device(device))


def few_steps(artifact: Artifact) -> dict[str, int]:
    """Arguments that make a pipeline run just far enough for its components to be looked at, at timesteps spread evenly."""
    return {"num_inference_steps": LOOKS} if artifact.task == "text_to_image" else {}


def _dtype(named: Any) -> torch.dtype | None:
    import torch

    found = getattr(torch, named, None) if isinstance(named, str) else named
    if named is not None and not isinstance(found, torch.dtype):
        raise UserError(f"{named} is no dtype", fix="give float32, bfloat16 or float16")
    return found


def _device(named: str) -> str:
    import torch

    try:
        torch.empty(0, device=named)
    except (RuntimeError, AssertionError) as error:  # a torch without CUDA asserts that it has it
        said = str(error).partition("\n")[0]
        raise UserError(
            f"torch {torch.__version__} has no device `{named}` here: {said}",
            fix="give cpu, or install a torch that has it",
        ) from error
    return named

"""Adapters that are kept beside a model, loaded into the opened one as diffusers loads a LoRA."""

from __future__ import annotations

import warnings

from compress.adapters.keeping import EXTRA, LIBRARY, UP
from compress.artifact import LORA_FILE, KeptAdapter
from compress.engines.torch.runtime import silent_libraries
from compress.errors import ModelError
from compress.files.safetensors_headers import read_header
from compress.machine.deps import need
from compress.opening.models import OpenModel

FAILS = (
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    RuntimeError,
    OSError,
)  # of diffusers or peft on what does not fit


def load_kept(opened: OpenModel) -> None:
    """Load all adapters of an opened pipeline's artifact, each at its scale.

    Raises:
        MissingLibrary: peft is not installed.
        ModelError: one does not load, or not all of its updates have a place.
    """
    need(LIBRARY, EXTRA)
    artifact, pipeline = opened.artifact, opened.stock
    for name, one in artifact.adapters.items():
        place = str(artifact.path / one.path)
        try:
            with silent_libraries(diffusers=True), warnings.catch_warnings():
                warnings.filterwarnings(
                    "ignore", message=".*get_apply_tensor_subclass"
                )  # of merging, which nobody does
                pipeline.load_lora_weights(place, weight_name=LORA_FILE, adapter_name=name)
        except FAILS as error:
            first = f"{type(error).__name__}: {error}".partition("\n")[0][:300]
            fix = "give the adapter that belongs to this model, or run the recipe again"
            raise ModelError(f"diffusers does not load this adapter: {first}", place=place, fix=fix) from error
        _be_whole(opened, name, one)
    pipeline.set_adapters(list(artifact.adapters), [one.scale for one in artifact.adapters.values()])


def _be_whole(opened: OpenModel, name: str, one: KeptAdapter) -> None:
    """Raises a ModelError where a component has not as many updates as the adapter: diffusers leaves out what it does not know with a warning."""
    stored = read_header(opened.artifact.path / one.path / LORA_FILE).tensors
    for component in one.components:
        there = sum(name in (getattr(layer, "lora_B", None) or ()) for layer in opened.component(component).modules())
        asked = sum(key.startswith(f"{component}.") and key.endswith(UP) for key in stored)
        if there != asked:
            message = f"{asked - there} of its {asked} updates of `{component}` have no place in this model"
            place = str(opened.artifact.path / one.path)
            raise ModelError(message, place=place, fix="give the model that the adapter was cut for")

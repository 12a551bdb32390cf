"""Text to image: a stock diffusers pipeline, with engine modules where the torch components were."""

from __future__ import annotations

import hashlib
import importlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from compress.artifact import Artifact, read_json
from compress.data import Item
from compress.engines.torch.runtime import find_class, stored_dtype
from compress.errors import ModelError, StageFailed

# Parts that judge or mark pictures rather than paint them: they would change what is measured.
LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder")


@dataclass(frozen=True)
class Call:
    """What a component was called with while a pipeline ran."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class TextToImage:
    """A pipeline ready to paint. `pipeline` is the library's own class and can be called by itself."""

    def __init__(self, artifact: Artifact, *, dtype: torch.dtype | None = None, device: str = "cpu") -> None:
        self.artifact = artifact
        self.device = device
        self.dtype = dtype or _natural_dtype(artifact)
        self.pipeline = self._assemble()
        self.pipeline.set_progress_bar_config(disable=True)

    def paint(self, prompts: Sequence[str], noise_ids: Sequence[str], seed: int, **call: Any) -> NDArray[np.uint8]:
        """Paint one picture for each prompt, as one batch.

        Args:
            noise_ids: one for each prompt; a picture's initial noise depends on (seed, noise id) and on nothing else.
            call: arguments of the pipeline, over those the artifact is meant to be called with.

        Returns:
            uint8 [prompts, height, width, 3].

        Raises:
            StageFailed: a value is not finite.
        """
        pictures = self._run(prompts, noise_ids, seed, "np", call)
        if not np.isfinite(pictures).all():
            raise StageFailed(
                f"a picture for {prompts[0]!r} or those beside it holds values that are no numbers",
                place=noise_ids[0],
                fix="the model is broken: look at the last stage, or use a higher precision",
            )
        return np.round(np.clip(pictures, 0, 1) * 255).astype(np.uint8)

    def paint_with_latents(
        self, prompts: Sequence[str], noise_ids: Sequence[str], seed: int, **call: Any
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None]:
        """As `paint`, with what the autoencoder was given to decode: float32 [prompts, channels, height, width], or None for a
        pipeline that decodes nothing."""
        if getattr(self.pipeline, "vae", None) is None:
            return self.paint(prompts, noise_ids, seed, **call), None
        heard: list[Call] = []
        with self.watch("vae", heard.append):
            painted = self.paint(prompts, noise_ids, seed, **call)
        decoded = [one.args[0] if one.args else one.kwargs["z"] for one in heard]
        return painted, torch.cat(decoded).float().cpu().numpy() if decoded else None

    @contextmanager
    def watch(self, component: str, heard: Callable[[Call], None]) -> Iterator[None]:
        """Tell `heard` of every call to a component, with its real inputs, while the context lasts."""
        module = getattr(self.pipeline, component)
        name = function_of(component)
        real = getattr(module, name)

        def listening(*args: Any, **kwargs: Any) -> Any:
            heard(Call(args, kwargs))
            return real(*args, **kwargs)

        setattr(module, name, listening)
        try:
            yield
        finally:
            delattr(module, name)  # uncovers the class's own method

    def component(self, name: str) -> Any:
        """The module that stands for a component."""
        return getattr(self.pipeline, name)

    def record(
        self, component: str, items: Sequence[Item], seed: int, batch: int = 4, **call: Any
    ) -> Iterator[dict[str, Any]]:
        """Every call to a component while the items' captions are painted, its arguments by name.

        A call holds a batch as the pipeline makes it: with guidance, two rows a picture.
        """
        module = self.component(component)
        function = getattr(type(module), function_of(component))
        names = [n for n in inspect.signature(function).parameters if n != "self"]
        kind = "np" if component == "vae" else "latent"  # what nobody looks at need not be decoded
        for start in range(0, len(items), batch):
            heard: list[Call] = []
            some = items[start : start + batch]
            with self.watch(component, heard.append):
                self._run([i.text for i in some], [i.id for i in some], seed, kind, call)
            for one in heard:
                with torch.inference_mode(False):
                    arguments = {**dict(zip(names, one.args, strict=False)), **one.kwargs}
                    owned = {n: _own(v) for n, v in arguments.items()}
                yield owned  # out of that context, which would change the caller's gradient mode

    def _run(
        self, prompts: Sequence[str], noise_ids: Sequence[str], seed: int, output: str, call: dict[str, Any]
    ) -> Any:
        generators = [noise_source(seed, name) for name in noise_ids]
        arguments = {**self.artifact.settings.call, **call}
        with torch.inference_mode():
            return self.pipeline(list(prompts), generator=generators, output_type=output, **arguments).images

    def _assemble(self) -> Any:
        """Build the pipeline part by part: `from_pretrained` would refuse modules that are not of the classes it knows."""
        path = self.artifact.path
        index = read_json(path / "model_index.json")
        kind = find_class("diffusers", str(index["_class_name"]), path / "model_index.json")
        accepted = inspect.signature(kind.__init__).parameters
        parts: dict[str, Any] = {}
        for name, entry in index.items():
            if name.startswith("_") or name not in accepted:
                continue
            parts[name] = self._part(name, *entry) if isinstance(entry, list) else entry
        if "requires_safety_checker" in accepted:
            parts["requires_safety_checker"] = False
        if "add_watermarker" in accepted:
            parts["add_watermarker"] = False
        return kind(**parts)

    def _part(self, name: str, library: str | None, kind: str | None) -> Any:
        if library is None or kind is None or name in LEFT_OUT:
            return None
        folder = self.artifact.path / name
        if name not in self.artifact.components:  # a scheduler or a tokenizer
            try:
                return find_class(library, kind, folder).from_pretrained(str(folder))
            except (OSError, ValueError) as error:
                raise ModelError(
                    f"{kind} does not load: {error}", place=str(folder), fix="save the pipeline again"
                ) from error
        component = self.artifact.components[name]
        engine = importlib.import_module(f"compress.engines.{component.format}.runtime")
        return engine.load_component(self.artifact.folder(name), library, component.kind, self.dtype, self.device)


def noise_source(seed: int, noise_id: str) -> torch.Generator:
    """A generator seeded by both, so that a picture's noise is independent of batch size and position."""
    digest = hashlib.sha256(f"{seed}:{noise_id}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def function_of(component: str) -> str:
    """The method a text-to-image pipeline calls a component by."""
    return "decode" if component == "vae" else "forward"


def _natural_dtype(artifact: Artifact) -> torch.dtype:
    """The checkpoint's own dtype, read off the main component's weights; float32 where an engine takes part."""
    if any(c.format != "torch" for c in artifact.components.values()) or not artifact.main:
        return torch.float32
    return stored_dtype(artifact.folder(artifact.main))


def _own(value: Any) -> Any:
    """A copy that gradients may flow through: what is heard while painting are inference tensors."""
    if torch.is_tensor(value):
        return value.detach().clone()
    if isinstance(value, dict):
        return {k: _own(v) for k, v in value.items()}
    return value

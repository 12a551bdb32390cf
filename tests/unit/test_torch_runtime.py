"""The torch engine's loading and saving, where the stages' own tests do not come by."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from compress.engines.torch.runtime import (
    load_component,
    load_language_model,
    save_component,
    silent_libraries,
    stored_dtype,
)
from compress.errors import ModelError
from compress.machine.deps import installed
from compress.machine.devices import AS_STORED
from tests.tiny import tiny_diffusion, tiny_llama


class Saved(torch.nn.Linear):
    """A component that its library can save."""

    hf_quantizer: object = None

    def save_pretrained(self, folder: str) -> None:
        save_file(self.state_dict(), f"{folder}/model.safetensors")
        (Path(folder) / "config.json").write_text(json.dumps({"dtype": "float64"}))


class Packed(Saved):
    """As a library gives it that has packed its weights."""

    hf_quantizer = object()


@pytest.mark.parametrize(("kind", "dtype"), [(Saved, torch.bfloat16), (Packed, torch.float64)])
def test_weights_are_saved_in_the_number_type_they_had_and_packed_ones_as_they_are(
    tmp_path: Path, kind: type[Saved], dtype: torch.dtype
) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    for folder in (before, after):
        folder.mkdir()
    Saved(2, 2).to(torch.bfloat16).save_pretrained(str(before))
    (before / "config.json").write_text('{"dtype": "bfloat16"}')
    save_component(kind(2, 2).double(), before, after)
    assert load_file(after / "model.safetensors")["weight"].dtype == dtype
    assert json.loads((after / "config.json").read_text()) == {"dtype": "bfloat16"}


def test_what_the_library_says_of_every_cast_is_kept_from_users(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before, after = tiny_diffusion(tmp_path) / "unet", tmp_path / "after"
    after.mkdir()
    module = load_component(before, "diffusers", "UNet2DConditionModel", AS_STORED)
    capfd.readouterr()
    save_component(module, before, after)
    assert "should be kept in float32" not in capfd.readouterr().err


@pytest.mark.parametrize("lack", ["one", "all", "layer"])
def test_weights_that_are_not_there_are_named_and_never_made_up(lack: str, tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    if lack == "one":
        del tensors["model.layers.1.mlp.down_proj.weight"]
    elif lack == "all":
        tensors = {f"base.{name}": value for name, value in tensors.items()}
    else:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="weights are not in its files: `") as caught:
        load_language_model(folder, "LlamaForCausalLM", AS_STORED)
    assert caught.value.problems[0].place == str(folder)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_part_of_a_pipeline_without_some_weights_is_refused_too(part: str, tmp_path: Path) -> None:
    folder = tiny_diffusion(tmp_path)
    (file,) = (folder / part).glob("*.safetensors")
    tensors = load_file(file)
    del tensors[sorted(tensors)[-1]]
    save_file(tensors, file, metadata={"format": "pt"})
    library = "transformers" if part == "text_encoder" else "diffusers"
    kind = json.loads((folder / "model_index.json").read_text())[part][1]
    with pytest.raises(ModelError, match=r"1 of \w+'s weights are not in its files|does not load"):
        load_component(folder / part, library, kind, AS_STORED)


def test_a_language_model_is_loaded_as_its_library_is_reported_further(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path)
    for reported in ("eager", "sdpa"):
        model = load_language_model(folder, "LlamaForCausalLM", AS_STORED, attn_implementation=reported)
        assert model.config._attn_implementation == reported  # type: ignore[union-attr]


KERNELS = """
def get_kernel(*name, **options):
    raise SystemExit("fetched native code from the hub")
"""


def test_the_package_that_fetches_it_is_out_of_reach_meanwhile_and_back_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kernels.py").write_text(KERNELS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "kernels", raising=False)
    with silent_libraries(), pytest.raises(ImportError):
        importlib.import_module("kernels")
    before = importlib.import_module("kernels")
    with silent_libraries(), pytest.raises(ImportError):
        importlib.import_module("kernels")
    assert importlib.import_module("kernels") is before


@pytest.mark.skipif(not installed("bitsandbytes"), reason="no other library looks for native code there")
@pytest.mark.parametrize("mine", [True, False], ids=["imported already", "on disk alone"])
def test_loading_a_pipeline_fetches_no_native_code(tmp_path: Path, mine: bool) -> None:
    """bitsandbytes looks for some on processors with bfloat16 products, and diffusers imports it."""
    (tmp_path / "kernels.py").write_text(KERNELS)
    code = f"""
import sys
{"import kernels" if mine else ""}
from pathlib import Path
from compress.engines.torch.runtime import find_class
find_class("diffusers", "StableDiffusionPipeline", Path())
assert "bitsandbytes" in sys.modules
assert ("kernels" in sys.modules) == {mine}
import kernels
kernels.get_kernel
"""
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    assert "kernels" not in done.stderr


def test_other_variants_beside_the_weights_that_are_loaded_say_nothing_of_their_number_type(tmp_path: Path) -> None:
    for name, dtype in (("model", torch.float16), ("model.fp32", torch.float32), ("model.bf16", torch.bfloat16)):
        save_file({"w": torch.zeros(2, dtype=dtype)}, tmp_path / f"{name}.safetensors")
    assert stored_dtype(tmp_path) == torch.float16
    (tmp_path / "model.safetensors").unlink()
    assert stored_dtype(tmp_path) == torch.float32  # which no library loads by itself: the widest

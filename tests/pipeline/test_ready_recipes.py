"""Recipes for people's own models: each is planned on a tiny instance of the very class that it is for, and run on it with `make slow`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import compress
from compress.machine.deps import version
from compress.planning.plan import Plan
from compress.publishing.model_cards import CARD
from compress.publishing.modelfiles import MODELFILE
from compress.recipe.reading import read_recipes
from compress.recipe.values import Recipe
from tests.families import MODELS, tiny_text
from tests.tiny import tiny_byte_tokenizer

RECIPES = Path(__file__).parents[2] / "recipes"
Change = Mapping[str, Any]


def tiny(folder: Path, kind: str, **changes: Any) -> Path:
    """A language model of a class that `tests.families` has none of, or not like the one that a recipe is for."""
    import transformers

    torch.manual_seed(0)
    tokenizer: Any = tiny_byte_tokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    known = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
    config = getattr(transformers, f"{kind}Config")(**known, **sizes, **changes, max_position_embeddings=64)
    getattr(transformers, f"{kind}ForCausalLM")(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


@dataclass(frozen=True)
class Ready:
    """A recipe, a tiny model of the class that it is for, that class, and what makes its numbers those of a tiny model."""

    model: Callable[[Path], Path]
    kind: str
    stages: tuple[str, ...]
    changes: Change = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    calibrated: bool = False


LITTLE = {"samples": 4, "length": 32}
READY = {
    "text/models/llama31": Ready(
        partial(tiny, kind="Llama", num_key_value_heads=4, rope_scaling=ROPE),
        "LlamaForCausalLM",
        ("quantize.autoround", "export.hub"),
        {f"stages.0.{key}": value for key, value in {**LITTLE, "group_size": 32, "iters": 2, "batch": 2}.items()},
        ("auto-round", "compressed-tensors"),
        calibrated=True,
    ),
    "text/models/qwen3": Ready(
        MODELS["qwen3"],
        "Qwen3ForCausalLM",
        ("quantize.gptq", "export.hub"),
        {f"stages.0.{key}": value for key, value in {**LITTLE, "group_size": 32}.items()},
        ("gptqmodel",),
        calibrated=True,
    ),
    "text/models/gemma3": Ready(
        partial(tiny_text, family="gemma3", tie_word_embeddings=True, query_pre_attn_scalar=8),
        "Gemma3ForCausalLM",
        ("build.gguf", "export.ollama"),
        needs=("gguf",),
    ),
    "text/models/mixtral": Ready(
        partial(tiny, kind="Mixtral", num_key_value_heads=2, num_local_experts=4),
        "MixtralForCausalLM",
        ("build.openvino", "quantize.nncf"),
        {"stages.1.group_size": 16},
    ),
    "image/sdxl-parts": Ready(
        MODELS["sdxl"],
        "StableDiffusionXLPipeline",
        ("quantize.torchao", "quantize.torchao"),
        needs=("torchao",),
    ),
    "image/sdxl-engines": Ready(
        MODELS["sdxl"],
        "StableDiffusionXLPipeline",
        ("build.openvino", "quantize.nncf", "quantize.nncf", "quantize.nncf"),
        {"stages.1.samples": 2, "stages.3.samples": 2},
        calibrated=True,
    ),
    "image/flux1-parts": Ready(MODELS["flux"], "FluxPipeline", ("quantize.torchao",), needs=("torchao",)),
}


def ready(name: str, folder: Path) -> tuple[Path, Recipe]:
    """A tiny model, and the recipe for it with data of the zoo."""
    of, text = READY[name], name.startswith("text/")
    model = of.model(folder / "model")
    zoo = "docstrings" if text else "digits"
    changes = {"model": str(model), "data.evaluate": f"zoo://{zoo}/test", "evaluate.samples": 4}
    changes |= {"data.calibration": f"zoo://{zoo}/validation"} if of.calibrated else {}
    changes |= {"evaluate.stage_samples": 0, "evaluate.timing_blocks": 5, "evaluate.starts": 1}
    if not text:
        changes |= {"evaluate.features": "zoo://digits-clip", "evaluate.baseline.steps": 2, "evaluate.batch": 2}
    return model, read_recipes(RECIPES / f"{name}.yaml")[0].with_({**changes, **of.changes})


def kind_of(model: Path) -> str:
    index = model / "model_index.json"
    if index.is_file():
        return str(json.loads(index.read_text())["_class_name"])
    return str(json.loads((model / "config.json").read_text())["architectures"][0])


def test_every_recipe_for_ones_own_model_is_tried_here_or_beside() -> None:
    models = {
        str(file.relative_to(RECIPES).with_suffix("")) for file in RECIPES.rglob("*.yaml") if ": ./" in file.read_text()
    }
    assert {name for name in models if not name.startswith("image/few-steps/")} == set(READY)


@pytest.mark.parametrize("name", READY)
def test_it_is_planned_on_the_very_class_it_is_for(name: str, tmp_path: Path) -> None:
    model, recipe = ready(name, tmp_path)
    found = compress.plan(recipe, cache=tmp_path / "cache")
    assert isinstance(found, Plan)
    assert kind_of(model) == READY[name].kind
    assert tuple(node.stage.name for node in found.nodes) == READY[name].stages


@pytest.mark.slow
@pytest.mark.parametrize("name", READY)
def test_it_runs_and_leaves_what_it_says(name: str, tmp_path: Path) -> None:
    if lacking := [library for library in READY[name].needs if not version(library)]:
        pytest.skip(f"{', '.join(lacking)} is not installed")
    _, recipe = ready(name, tmp_path)
    out = tmp_path / "saved"
    changes = {f"gates.{metric}": None for metric in recipe.gates}
    result = compress.run(recipe.with_(changes), cache=tmp_path / "cache", out=tmp_path / "out", save=out)
    measured = {row.metric: row for row in result.rows}
    assert measured["size"].candidate.value < measured["size"].baseline.value
    assert all(np.isfinite(row.contrast.value) for row in result.rows if row.metric != "recall")
    made = [stage["stage"] for stage in result.stages]
    assert tuple(made) == READY[name].stages
    assert (out / CARD).is_file() == ("export.hub" in made)
    assert (out / MODELFILE).is_file() == ("export.ollama" in made)
    if made[0] in ("quantize.torchao", "quantize.autoround", "quantize.gptq"):
        opened_by_stock_libraries(out, tmp_path / "alone.npy")


OPENED = """
import sys
class Without:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("compress", "evaluation"):
            raise ImportError(name)
sys.meta_path.insert(0, Without())
import numpy, torch
folder, out = sys.argv[1:]
from pathlib import Path
if (Path(folder) / "model_index.json").is_file():
    from diffusers import DiffusionPipeline
    pipeline = DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    small = {"height": 16, "width": 16}
    found = pipeline("a red one", num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="np", **small).images
else:
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        found = model(torch.tensor([[5, 6, 7, 8]])).logits.float().numpy()
numpy.save(out, found)
"""


def opened_by_stock_libraries(folder: Path, out: Path) -> None:
    """That plain diffusers or transformers opens a folder in a process without pare, and gets something out of it."""
    command = [sys.executable, "-c", OPENED, str(folder), str(out)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    found = np.load(out)
    assert np.isfinite(found).all()
    assert found.std() > 0


# ---------------------------------------------------------------- chains of the zoo's model

SHORT = {"stages.1.steps": 2, "stages.1.batch": 2, "data.evaluate": "zoo://docstrings/test", "evaluate.samples": 4}


def chain(name: str, **changes: Any) -> Recipe:
    little = {**SHORT, "evaluate.stage_samples": 0, "evaluate.timing_blocks": 5, "gates": None}
    return read_recipes(RECIPES / f"text/{name}.yaml")[0].with_({**little, **changes})


CHAINS = {
    "short-gptq": (("prune.depth", "distill.logits", "quantize.gptq"), {"stages.2.samples": 4, "stages.2.length": 64}),
    "ollama": (("prune.depth", "distill.logits", "build.gguf", "export.ollama"), {}),
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_is_planned(name: str, tmp_path: Path) -> None:
    stages, changes = CHAINS[name]
    found = compress.plan(chain(name, **changes), cache=tmp_path / "cache")
    assert isinstance(found, Plan)
    assert tuple(node.stage.name for node in found.nodes) == stages


@pytest.mark.slow
@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_runs(name: str, tmp_path: Path) -> None:
    stages, changes = CHAINS[name]
    library = "gptqmodel" if "quantize.gptq" in stages else "gguf"
    if not version(library):
        pytest.skip(f"{library} is not installed")
    made = chain(name, **changes, **{"evaluate.metrics": ["size"]})
    result = compress.run(made, cache=tmp_path / "cache", out=tmp_path / "out", save=tmp_path / "saved")
    assert tuple(stage["stage"] for stage in result.stages) == stages
    (row,) = result.rows
    assert row.candidate.value < row.baseline.value
    assert (tmp_path / "saved" / MODELFILE).is_file() == (name == "ollama")


# ---------------------------------------------------------------- the zoo's models that are given images

GIVEN_IMAGES = {"image/editing": {"input"}, "image/inpainting": {"input", "mask"}}


def given_images(name: str) -> Recipe:
    """A quickstart with little training and few items."""
    little = {
        "stages.1.steps": 4,
        "stages.1.prompts": 8,
        "evaluate.samples": 8,
        "evaluate.stage_samples": 0,
        "gates": None,
    }
    found = read_recipes(RECIPES / f"{name}.yaml")[0]
    return found.with_({**little, "evaluate.metrics": [one for one in found.evaluate.metrics if one not in LONG]})


LONG = {"latency", "cold_start", "peak_memory", "energy"}  # what times or starts processes


@pytest.mark.parametrize("name", GIVEN_IMAGES)
def test_a_quickstart_of_given_images_is_planned_and_gates_quality_and_speed(name: str, tmp_path: Path) -> None:
    found = compress.plan(RECIPES / f"{name}.yaml", cache=tmp_path / "cache")
    assert isinstance(found, Plan)
    assert {node.stage.name for node in found.nodes} >= {"prune.depth", "distill.features", "build.openvino"}
    gates = found.recipe.gates
    assert gates.keys() >= {"digits_read", "inks_right", "kid", "latency"}
    assert gates["latency"].speedup == 8


@pytest.mark.slow
@pytest.mark.parametrize("name", GIVEN_IMAGES)
def test_a_quickstart_of_given_images_runs(name: str, tmp_path: Path) -> None:
    result = compress.run(given_images(name), cache=tmp_path / "cache", out=tmp_path / "out")
    assert all(np.isfinite(row.candidate.value) for row in result.rows if row.candidate)
    page = (tmp_path / "out" / "report.html").read_text()
    for shown in (*GIVEN_IMAGES[name], "original", "compressed"):
        assert f'alt="{shown}: ' in page

"""A LoRA adapter, read from JSON and headers: where it lies, how each of its updates is scaled, and what of it could not be kept.

peft writes `adapter_config.json` and `adapter_model.safetensors`; diffusers writes `pytorch_lora_weights.safetensors`, with what peft's
config would say in the file's metadata; other trainers write one file with an `alpha` beside each pair.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

from compress.artifact import LORA_FILE, STEMS, read_json
from compress.errors import ModelError
from compress.files.hashing import digest_json, remembered_digest
from compress.files.safetensors_headers import Header, read_header
from compress.files.user_paths import expanded
from compress.sources.models import COMMIT, HUB, fetch_hub

CONFIG = "adapter_config.json"
FILES = ("adapter_model.safetensors", LORA_FILE)
PEFT = "base_model.model."  # what peft puts in front of each name; its files say no alpha themselves
PICKLED = ("*.bin", "*.pt", "*.ckpt")
TOKENIZER = ("tokenizer.json", "added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model", "spiece.model")
TEMPLATE, TOKENIZER_CONFIG = "chat_template.jinja", "tokenizer_config.json"
METADATA = "lora_adapter_metadata"  # where diffusers keeps peft's config
# How the libraries themselves put an adapter into its model.
MERGE_TEXT = (
    "merge it with peft and give MERGED, the tokenizer beside it: PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(MODEL), "
    "ADAPTER).merge_and_unload().save_pretrained(MERGED)"
)
MERGE_IMAGES = (
    "merge it with diffusers (and peft) and give MERGED: p = DiffusionPipeline.from_pretrained(MODEL); p.load_lora_weights(ADAPTER); "
    "p.fuse_lora(); p.unload_lora_weights(); p.save_pretrained(MERGED)"
)

# What peft's config may say without changing what a fused weight is, and what would be lost in one, by what it is.
_SILENT = """
alpha_pattern auto_mapping base_model_name_or_path bias corda_config ensure_weight_tying eva_config exclude_modules fan_in_fan_out
inference_mode init_lora_weights layers_pattern layers_to_transform loftq_config lora_alpha lora_dropout lora_ga_config megatron_core
modules_to_save peft_type peft_version qalora_group_size r rank_pattern revision runtime_config target_modules task_type use_dora use_rslora
"""
SILENT = frozenset(_SILENT.split())
PLAIN_START = (True, False, None, "gaussian", "eva", "orthogonal")  # of `init_lora_weights`: the model stayed as it was
LOST = {
    "alora_invocation_tokens": "updates that count only after certain tokens (aLoRA)",
    "arrow_config": "a choice among several adapters (Arrow)",
    "layer_replication": "layers that are there several times",
    "lora_bias": "biases beside its updates",
    "megatron_config": "layers of Megatron",
    "target_parameters": "updates of parameters that are no layer's weight",
    "trainable_token_indices": "embeddings of single tokens",
    "use_qalora": "updates of pooled inputs (QALoRA)",
}


@dataclass(frozen=True)
class Adapter:
    """An adapter on this disk.

    name: as the recipe has it. file: its tensors. folder: where its config and tokenizer lie; None where it is one file.
    config: of peft; {} where it has none. strength: what the recipe multiplies its update by. digest: of all that counts of it.
    kept: what it is called where it stays beside the model; "" of one that is fused into it.
    """

    name: str
    file: Path
    folder: Path | None
    header: Header
    config: Mapping[str, Any]
    strength: float
    digest: str
    kept: str = ""

    @property
    def base(self) -> str:
        """What it says of the model that it was trained on; "" where it says nothing."""
        return str(self.config.get("base_model_name_or_path") or "")

    def options(self, component: str) -> Mapping[str, Any]:
        """What peft's config says of the updates of one component: its own, or what diffusers wrote down of it."""
        if self.config:
            return self.config
        message = _parsed(self.header.metadata.get(METADATA, ""))
        own = {k.removeprefix(f"{component}."): v for k, v in message.items() if k.startswith(f"{component}.")}
        return own or {k: v for k, v in message.items() if "." not in k}  # of a file that holds one component's alone


def find_adapter(path: str, strength: float, start: Path, memory: Path | None) -> Adapter:
    """The adapter at a path, or on the hub (it is fetched, for it is small); relative paths begin at `start`.

    Args:
        strength: what its update is multiplied by, beside its own scale.
        memory: where digests of files are remembered.

    Raises:
        ModelError: there is none, or it does not read.
    """
    place = _place(path, start)
    file = place if _is_file(place) else _weights(place)
    if file == place and file.name == FILES[0] and (file.parent / CONFIG).is_file():
        place = file.parent  # peft's own file, its config beside it
    folder = None if file == place else place
    header = read_header(file)
    if (
        folder is None
        and file.stem.startswith(tuple(STEMS.values()))
        and not any("lora" in one for one in header.tensors)
    ):
        raise _whole_model(file.parent)
    config = read_json(place / CONFIG) if folder and (place / CONFIG).is_file() else {}
    if not config and any(name.startswith(PEFT) for name in header.tensors):
        message = f"peft's {CONFIG} is not beside it, and that says how strongly it acts (lora_alpha)"
        raise ModelError(message, place=str(place), fix=f"fetch {CONFIG} too, and give the folder of both")
    counted = [file, *(place / n for n in (CONFIG, *TOKENIZER, TEMPLATE, TOKENIZER_CONFIG) if folder)]
    digest = digest_json({f.name: remembered_digest(f, memory) for f in counted if f.is_file()})
    return Adapter(path, file, folder, header, config, strength, digest)


def _place(path: str, start: Path) -> Path:
    if path.startswith("zoo://"):
        from compress.zoo import zoo_adapter

        return zoo_adapter(path.removeprefix("zoo://"))
    if not path.startswith("hf://"):
        return start / expanded(path)
    match = HUB.fullmatch(path)
    if not match or not COMMIT.fullmatch(match["revision"] or ""):
        fix = "write hf://org/name@<40-hex commit>; `pare check --pin` finds it"
        raise ModelError(f"adapter {path} is not pinned, so a run could not be repeated", fix=fix)
    return fetch_hub(match["repo"], match["revision"], weights=True)


def _is_file(place: Path) -> bool:
    try:
        if not place.exists():
            raise ModelError("no such adapter", place=str(place), fix="give its folder, or its .safetensors file")
        return place.is_file()
    except (OSError, ValueError) as error:  # a name too long, a null byte
        message = f"cannot be looked at: {error}"
        raise ModelError(message, place=str(place)[:200], fix="check the path, and who may read it") from error


def _weights(folder: Path) -> Path:
    """The one file of an adapter's folder that holds its tensors."""
    named = [folder / name for name in FILES if (folder / name).is_file()]
    if not named and any((folder / name).is_file() for name in ("model_index.json", "config.json")):
        raise _whole_model(folder)
    found = named or sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return found[0]
    if found:
        message = f"holds several adapters: {', '.join(f.name for f in found[:4])}"
        raise ModelError(message, place=str(folder), fix=f"name one of the files: {found[0].name}")
    if pickled := sorted(f.name for kind in PICKLED for f in folder.glob(kind)):
        message = (
            f"has a pickled adapter alone ({pickled[0]}), which can run code when it is read: pare reads safetensors"
        )
        fix = f"safetensors.torch.save_file(torch.load({pickled[0]!r}, weights_only=True), {FILES[0]!r})"
        raise ModelError(message, place=str(folder), fix=fix)
    message = f"is no adapter: it has neither {' nor '.join(FILES)}"
    raise ModelError(message, place=str(folder), fix="give a folder that peft or diffusers saved a LoRA in")


def _whole_model(folder: Path) -> ModelError:
    fix = f"give it as model: {folder}; adapter: is for the LoRA that is fused into a model"
    return ModelError("is a whole model, and no adapter", place=str(folder), fix=fix)


def config_problems(options: Mapping[str, Any]) -> Iterator[str]:
    """What an adapter's config says that would be lost where its updates are added to weights."""
    kind = str(options.get("peft_type") or "LORA").upper()
    if kind != "LORA":
        yield f"is of peft's type {kind}, and pare fuses LORA"
        return
    for name, what in LOST.items():
        if options.get(name):
            yield f"has {what}: {name} in its config"
    if (start := options.get("init_lora_weights", True)) not in PLAIN_START:
        yield f"began from a model that {start} had changed (init_lora_weights), and is to be added to that one"
    for name in sorted(name for name, value in options.items() if value and name not in SILENT | LOST.keys()):
        yield f"has an option that this pare does not know: {name} in its config"


def scale(options: Mapping[str, Any], module: str, rank: int) -> float:
    """What the product of a pair is multiplied by, as peft does: alpha ÷ rank, or alpha ÷ √rank where it says use_rslora."""
    alpha = float(_patterned(options.get("alpha_pattern"), module, options.get("lora_alpha") or rank))
    return alpha / sqrt(rank) if options.get("use_rslora") else alpha / rank


def expected_rank(options: Mapping[str, Any], module: str) -> int:
    """The rank that a config gives a module; 0 where it says nothing."""
    return int(_patterned(options.get("rank_pattern"), module, options.get("r") or 0))


def _patterned(patterns: object, module: str, otherwise: float) -> float:
    """What the first pattern that a module's name ends in says, as peft reads patterns."""
    known = patterns if isinstance(patterns, Mapping) else {}
    found = (value for key, value in known.items() if re.match(rf"(.*\.)?({key})$", module))
    return float(next(found, otherwise))


def _parsed(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text) if text else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}

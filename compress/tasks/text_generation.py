"""Text generation: a causal language model of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from compress.artifact import LANGUAGE_MODEL, Artifact, Component, read_json
from compress.errors import Problem
from compress.machine.devices import CPU
from compress.params import Params
from compress.tasks import Size, Task, Usage, literal

if TYPE_CHECKING:
    from compress.recipe.values import EvalSpec

# Encoders that continue a text only where their config says `is_decoder`.
ENCODERS = (
    "bert",
    "bert-generation",
    "camembert",
    "megatron-bert",
    "rembert",
    "roberta",
    "roberta-prelayernorm",
    "roc_bert",
    "big_bird",
    "data2vec-text",
    "electra",
    "ernie",
    "roformer",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
)
BOTH_WAYS = ("XLNetLMHeadModel", "XLMWithLMHeadModel", "FlaubertWithLMHeadModel")  # read on both sides of a token


class Writing(Params):
    """How much is read and written."""

    prompt_tokens: int = Field(32, ge=1, description="tokens of each timed text prompt")
    new_tokens: int = Field(64, ge=2, description="tokens written per timed text prompt, exactly")
    continuations: int = Field(
        32,
        ge=0,
        description="documents whose start of `prompt_tokens` both sides continue greedily by `new_tokens` or fewer",
    )


def recognise(path: Path) -> Artifact | Problem | None:
    """A folder with the config of a model that continues text."""
    if not (path / "config.json").is_file() or (path / "model_index.json").is_file():
        return None
    config = read_json(path / "config.json")
    named = config.get("architectures")
    kind = str(named[0]) if isinstance(named, list) and named else ""
    encoder = kind in BOTH_WAYS or (config.get("model_type") in ENCODERS and not config.get("is_decoder"))
    if not encoder and kind.endswith(("ForCausalLM", "LMHeadModel")):
        return Artifact(path, "text_generation", {LANGUAGE_MODEL: Component("torch", "", kind)})
    if not kind and (part := config.get("_class_name")):
        message = f"this is {part} alone, one part of a pipeline of diffusers"
        return Problem(str(path), message, "give the folder of the whole pipeline, with its model_index.json")
    what = kind or "of an unnamed class"
    why = f"{what}, which reads a text whole and does not continue it" if encoder else what
    message = f"pare continues text with causal language models, and this is {why}"
    return Problem(str(path), message, "give a causal language model or a diffusers pipeline folder")


def evidence(spec: EvalSpec) -> Mapping[str, tuple[int, ...]]:
    own = spec.of(Writing)
    continued = {"continuations": (own.continuations, own.prompt_tokens, own.new_tokens)} if own.continuations else {}
    return {"documents": (), **continued}


def sizes(spec: EvalSpec) -> Mapping[str, Size]:
    own = spec.of(Writing)
    return {"new_tokens": Size("tokens", own.prompt_tokens + own.new_tokens)}


def usage(usage: Usage) -> tuple[str, ...]:
    """transformers' own pipeline writes; it complains at length of an engine's model, which is called without it."""
    text, arguments = literal(usage.text or "Once upon a time"), usage.arguments(max_new_tokens=40)
    asked = f'[{{"role": "user", "content": {text}}}]'
    if usage.stock:
        beside = f", device={literal(usage.device)}" if usage.device != CPU else ""
        return (
            "from transformers import pipeline",
            f'write = pipeline("text-generation", model={usage.opened}{beside})',
            f'print(write({asked}{arguments})[0]["generated_text"][-1]["content"])'
            if usage.chat
            else f'print(write({text}{arguments})[0]["generated_text"])',
        )
    trusted = ", trust_remote_code=True" if usage.trusted else ""
    read = (
        f"words.apply_chat_template({asked}, add_generation_prompt=True, return_dict=True"
        if usage.chat
        else f"words({text}"
    )
    words = f'**{read}, return_tensors="pt").to(model.device)'
    return (
        "import compress; from transformers import AutoTokenizer",
        f"model, words = compress.load({usage.opened}), AutoTokenizer.from_pretrained({literal(usage.folder)}{trusted})",
        f"print(words.decode(model.generate({words}{arguments})[0], skip_special_tokens=True))",
    )


TASK = Task(
    name="text_generation",
    title="text generation",
    data="texts",
    yields=frozenset({"documents", "continuations", "completions", "token_timings", "language_model"}),
    settings=Writing,
    evidence=evidence,
    recognise=recognise,
    sizes=sizes,
    usage=usage,
)

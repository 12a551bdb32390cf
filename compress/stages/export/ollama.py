"""Lay a Modelfile beside a GGUF file, so that `ollama create NAME -f Modelfile` in the folder makes a model of it.

Use it after `build.gguf`. The tokenizer's Jinja chat template becomes Ollama's Go template: the turns that it writes are found by what it
makes of a few conversations, whatever the family, and compared with transformers on others, to the byte. A template that does more than
write turns is refused when planning; tools are not translated. A base model without one gets `{{ .Prompt }}`. Stop texts are the tokens
that end an answer. A system message is the user's to give: the Modelfile has none. The model's licence comes along where its folder has
one. Nothing is sent anywhere. Source: the documentation of Ollama's Modelfile and of its templates.

    - build.gguf: {precision: int8_weights}
    - export.ollama: {}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from compress.artifact import LANGUAGE_MODEL, Artifact, derive, write_manifest
from compress.catalogue import stage
from compress.context import Context
from compress.engines.gguf import MODEL
from compress.errors import ModelError
from compress.machine.deps import need
from compress.params import Params
from compress.publishing.chat_templates import TRIALS, Chat, Turns, Untranslatable, read_chat, turns_of
from compress.publishing.licences import licence_files
from compress.publishing.modelfiles import MODELFILE, QUOTES, RAW, Modelfile, can_stop, go_template
from compress.tokenizers.tokens import read_object, read_tokens
from compress.tokenizers.vocabulary import positions


class ExportOllama(Params):
    template: Literal["auto", "raw"] = Field(
        "auto", description="auto: the tokenizer's chat template; raw: texts go to the model as they are"
    )
    context: int | None = Field(
        None, ge=1, description="num_ctx, the tokens that Ollama makes room for; none: all that the model was made for"
    )


def refuse(artifact: Artifact, params: ExportOllama) -> str:
    most = positions(artifact.config(LANGUAGE_MODEL))
    if params.context and most and params.context > most:
        return f"context: {params.context} is more than the {most} tokens that the model was made for"
    try:
        if (chat := _chat(artifact.path, params)) is not None:
            go_template(turns_of(chat), chat.special.get("bos_token", ""))
    except Untranslatable as error:
        why = error.problems[0].message
        return f"the tokenizer's chat template {why}: say template: raw, and let whoever calls it write the turns"
    return ""


@stage(
    version=1,
    params=ExportOllama,
    needs=("language_model",),
    formats={"gguf": "gguf"},
    effects=("files",),
    files=(MODELFILE,),
    reproducible="bytes",
    libraries=("gguf", "transformers"),
    extra="gguf",
    refuse=refuse,
)
def run(artifact: Artifact, params: ExportOllama, context: Context) -> None:
    made = derive(artifact, context.out, without=(MODELFILE,), link=context.link)
    licence = next((f.read_text(encoding="utf-8", errors="replace") for f in licence_files(artifact.path)), "")
    if QUOTES in licence:
        context.note("the licence's text cannot stand in a Modelfile; its file lies beside it")
        licence = ""
    length = params.context or positions(artifact.config(LANGUAGE_MODEL))
    template, ends, notes = _spelt(artifact, params, _begun(made.folder(LANGUAGE_MODEL) / MODEL), context)
    stop = tuple(filter(can_stop, ends))
    notes += [f"{end!r} ends an answer, and cannot stand in a Modelfile" for end in ends if end not in stop]
    text = Modelfile(MODEL, template, stop, length, licence).text()
    (context.out / MODELFILE).write_text(text, encoding="utf-8")
    write_manifest(made)
    room = _cache_bytes(artifact.config(LANGUAGE_MODEL), length)
    how = f"num_ctx {length}, whose cache takes {room / 1e6:.1f} MB in float16"
    context.note(f"{MODELFILE}: {how if length else 'no num_ctx, for the config says no length'}")
    for message in notes:
        context.note(message)


def _chat(folder: Path, params: ExportOllama) -> Chat | None:
    return read_chat(folder) if params.template == "auto" else None


def _spelt(
    artifact: Artifact, params: ExportOllama, begun: bool, context: Context
) -> tuple[str, tuple[str, ...], list[str]]:
    """The template, the texts that stop an answer, and what a reader must know.

    Args:
        begun: whether llama.cpp puts the tokenizer's bos_token before each text.
    """
    from compress.opening.rows import open_tokenizer

    ends = tuple(_ends(artifact))
    if (chat := _chat(artifact.path, params)) is None:
        return RAW, ends, ["template: raw"]
    turns = turns_of(chat)
    if not chat.tells_the_day:
        _be_alike(open_tokenizer(artifact, context.opening), artifact.path, turns, chat)
    bos = chat.special.get("bos_token", "") if turns.bos and not begun else ""
    known = sorted(read_tokens(artifact.path).added, key=len, reverse=True)
    closing = (token for token in known if turns.assistant[1].lstrip().startswith(token))
    stop = tuple(dict.fromkeys((*ends, *(token for token in closing if token.strip()))))
    return go_template(turns, bos), stop, list(_reported(turns, chat, begun))


def _reported(turns: Turns, chat: Chat, begun: bool) -> Iterator[str]:
    yield "template: as transformers' to the byte, on conversations with and without a system message"
    if turns.system is None:
        yield "the chat template takes no system message: one given to Ollama is left out"
    if turns.trims:
        yield "the chat template takes blanks off the ends of texts; Ollama gives them as they are"
    if chat.tells_the_day:
        yield "the chat template tells the day; Ollama's tells what it does where it knows none"
    if begun and not turns.bos:
        yield "llama.cpp puts the tokenizer's bos_token first, which the chat template does not"


def _be_alike(tokenizer: Any, folder: Path, turns: Turns, chat: Chat) -> None:
    """Compare the turns with transformers' own tokenizer.

    Raises:
        ModelError: it makes something else of a conversation.
    """
    bos = chat.special.get("bos_token", "") if turns.bos else ""
    for messages in TRIALS:
        if turns.system is None and messages[0]["role"] == "system":
            continue
        wanted = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        if wanted != bos + turns.render(messages):
            message = f"transformers makes something else of a conversation than its files say: {wanted[:80]!r}"
            raise ModelError(message, place=str(folder), fix="template: raw, or save the tokenizer anew")


def _ends(artifact: Artifact) -> Iterator[str]:
    """The tokens that end what the model writes, as text, each once."""
    tokens = read_tokens(artifact.path)
    names = {number: token for token, number in tokens.numbers.items()}
    end = read_object(artifact.folder(LANGUAGE_MODEL) / "generation_config.json").get("eos_token_id")
    end = artifact.config(LANGUAGE_MODEL).get("eos_token_id") if end is None else end
    numbers = end if isinstance(end, list) else [end]
    found = [names[number] for number in numbers if number in names]
    yield from dict.fromkeys(filter(None, (*found, tokens.special.get("eos_token", ""))))


def _begun(file: Path) -> bool:
    """Whether llama.cpp begins each text of this file's model with its bos_token."""
    field = need("gguf", "gguf").GGUFReader(file).fields.get("tokenizer.ggml.add_bos_token")
    return bool(field and field.contents())


def _cache_bytes(config: Mapping[str, Any], tokens: int) -> int:
    """What keys and values of as many tokens take in float16."""
    layers, heads = (int(config.get(a) or config.get(b) or 0) for a, b in (("num_hidden_layers", "n_layer"), _HEADS))
    width = int(config.get("hidden_size") or config.get("n_embd") or 0)
    size = config.get("head_dim") or width // max(1, heads)
    return 2 * 2 * layers * int(config.get("num_key_value_heads") or heads) * int(size) * tokens


_HEADS = ("num_attention_heads", "n_head")

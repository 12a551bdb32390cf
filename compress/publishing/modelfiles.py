"""What Ollama reads beside a GGUF file: a Modelfile, with a conversation's turns as a Go template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compress.publishing.chat_templates import ASSISTANT, USER, Turns, Untranslatable, parts_of

MODELFILE = "Modelfile"
RAW = "{{ .Prompt }}"
QUOTES = '"""'


def go_template(turns: Turns, bos: str = "") -> str:
    """Turns as Ollama's template of `.System` and `.Messages`; where the last message is the assistant's, it is left open to go on.

    Args:
        bos: what stands before all, where llama.cpp does not put it there by itself.

    Raises:
        Untranslatable: a fixed text of the turns cannot stand in a Go template, or in a Modelfile.
    """
    # A brace at a text's end would make three of the two that an action begins with.
    if any("{{" in text or "}}" in text or QUOTES in text or text.endswith("{") for text in (bos, *parts_of(turns))):
        raise Untranslatable("writes braces or quotes that a Modelfile would read as its own", fix="leave it out")
    head = turns.opening
    if turns.system and not turns.folded:
        without = f"{{{{ else }}}}{head}" if head else ""
        head = f"{{{{ if .System }}}}{_around_system(turns, '.System')}{without}{{{{ end }}}}"
    if turns.folded == "first":
        head += "{{ $system := .System }}"
    (asks, asked), (answers, answered) = turns.user, turns.assistant
    return "".join(
        (
            bos + head,
            "{{ range $i, $_ := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}",
            f'{{{{ if eq .Role "{USER}" }}}}{asks}{_inside(turns)}{{{{ .Content }}}}{asked}',
            f'{{{{ else if eq .Role "{ASSISTANT}" }}}}{answers}{{{{ .Content }}}}',
            f"{{{{ if not $last }}}}{answered}{{{{ end }}}}{{{{ end }}}}" if answered else "{{ end }}",
            f'{{{{ if and $last (ne .Role "{ASSISTANT}") }}}}{turns.answer}{{{{ end }}}}' if turns.answer else "",
            "{{ end }}",
        )
    )


def _around_system(turns: Turns, name: str) -> str:
    before, after = turns.system or ("", "")
    return f"{before}{{{{ {name} }}}}{after}"


def _inside(turns: Turns) -> str:
    """The system message inside a turn of the user."""
    if turns.folded == "first":
        return f'{{{{ if $system }}}}{_around_system(turns, "$system")}{{{{ $system = "" }}}}{{{{ end }}}}'
    if turns.folded == "last":
        return f"{{{{ if and $last $.System }}}}{_around_system(turns, '$.System')}{{{{ end }}}}"
    return ""


def can_stop(text: str) -> bool:
    """Whether a text can stand between the quotes of a PARAMETER: nothing in them can be escaped."""
    return bool(text) and not {'"', "\n", "\r"} & set(text)


@dataclass(frozen=True)
class Modelfile:
    """model: a GGUF file beside it. stop: texts that end an answer, each of which `can_stop`. context: tokens that a conversation may have."""

    model: str
    template: str
    stop: Sequence[str]
    context: int
    licence: str = ""

    def text(self) -> str:
        """As `ollama create` reads it."""
        lines = [f"FROM ./{self.model}", f"TEMPLATE {QUOTES}{self.template}{QUOTES}"]
        lines += [f"PARAMETER num_ctx {self.context}"] if self.context else []
        lines += [f'PARAMETER stop "{text}"' for text in self.stop]
        lines += [f"LICENSE {QUOTES}{self.licence}{QUOTES}"] if self.licence else []
        return "\n".join(lines) + "\n"

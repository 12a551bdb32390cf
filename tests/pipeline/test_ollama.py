"""A Modelfile beside a GGUF file: what Ollama is reported is what the tokenizer, the config and the file say."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader
from transformers import AutoTokenizer, PreTrainedTokenizerBase

import compress
from compress.artifact import Artifact
from compress.catalogue import find_stage
from compress.engines.gguf import MODEL
from compress.errors import ModelError, RecipeError
from compress.files.hashing import digest_files
from compress.machine.devices import Opening
from compress.model.describing import describe
from compress.publishing.chat_templates import message
from compress.publishing.modelfiles import MODELFILE
from tests.go_templates import as_ollama
from tests.stages import apply
from tests.tiny import tiny_llama
from tests.unit.test_chats import TEMPLATES

LICENCE = 'Do what "you" like.\n'


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without a chat template."""
    return tiny_llama(tmp_path_factory.mktemp("base"))


def talking(base: Path, folder: Path, name: str) -> Path:
    """The same with one, and with a licence."""
    shutil.copytree(base, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATES[name])
    (folder / "LICENSE").write_text(LICENCE)
    return folder


@pytest.fixture(scope="module")
def built(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("built")
    return apply("build.gguf", describe(talking(base, folder / "talking", "llama 2")), folder / "out")[0]


def template_of(made: Artifact) -> str:
    found = re.search(r'^TEMPLATE """(.*?)"""$', (made.path / MODELFILE).read_text(), re.DOTALL | re.MULTILINE)
    assert found
    return found[1]


def test_a_modelfile_says_what_the_model_and_its_tokenizer_are(built: Artifact, tmp_path: Path) -> None:
    made, notes = apply("export.ollama", built, tmp_path / "out")
    text = (made.path / MODELFILE).read_text()
    assert text.startswith(f"FROM ./{MODEL}\nTEMPLATE ")
    assert "\nPARAMETER num_ctx 64\n" in text
    assert re.findall(r"^PARAMETER stop (.*)$", text, re.MULTILINE) == ['"<eos>"']
    assert text.endswith(f'LICENSE """{LICENCE}"""\n')
    assert "\nSYSTEM" not in text
    messages = message("Hi", "Hello!", "Bye", system="Be brief.")
    tokenizer = AutoTokenizer.from_pretrained(str(made.path))
    wanted = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert as_ollama(template_of(made), messages) == wanted  # with <bos>, which llama.cpp does not put there itself
    reported = [note.message for note in notes]
    # Keys and values of 2 layers, 2 heads of 8, in 2 bytes, for 64 tokens.
    assert reported[0] == "Modelfile: num_ctx 64, whose cache takes 0.0 MB in float16"
    assert any("blanks off the ends" in line for line in reported)


def test_nothing_else_of_the_folder_changes_and_the_file_tells_the_template(built: Artifact, tmp_path: Path) -> None:
    made, _ = apply("export.ollama", built, tmp_path / "out", context=32)
    before, after = digest_files(built.path), digest_files(made.path)
    assert after.keys() - before.keys() == {MODELFILE}
    assert {name for name in before if before[name] != after[name]} == {"pare.json"}  # its lineage
    assert "num_ctx 32" in (made.path / MODELFILE).read_text()
    field = GGUFReader(made.path / MODEL).fields["tokenizer.chat_template"]
    assert field.contents() == TEMPLATES["llama 2"]


def test_a_bos_that_llama_cpp_writes_is_not_in_the_template(
    built: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compress.stages.export.ollama._begun", lambda file: True)
    made, _ = apply("export.ollama", built, tmp_path / "out")
    assert as_ollama(template_of(made), message("Hi")) == "[INST] Hi [/INST]"
    raw, _ = apply("export.ollama", built, tmp_path / "raw", template="raw")
    assert template_of(raw) == "{{ .Prompt }}"


def test_a_model_that_does_not_chat_gets_the_raw_template(base: Path, tmp_path: Path) -> None:
    gguf, _ = apply("build.gguf", describe(base), tmp_path / "gguf", precision="int4_weights")
    made, _ = apply("export.ollama", gguf, tmp_path / "out")
    assert template_of(made) == "{{ .Prompt }}"
    assert "LICENSE" not in (made.path / MODELFILE).read_text()


def test_a_licence_in_another_encoding_and_a_folder_of_them_are_read(built: Artifact, tmp_path: Path) -> None:
    for name, licence in (("none", None), ("latin", "Für alle.".encode("latin-1"))):
        folder = tmp_path / name
        shutil.copytree(built.path, folder)
        (folder / "LICENSE").unlink()
        (folder / "LICENSES").mkdir()
        if licence:
            (folder / "LICENSE.txt").write_bytes(licence)
        made, _ = apply("export.ollama", describe(folder), tmp_path / f"{name}-out")
        assert ("F\ufffdr alle." in (made.path / MODELFILE).read_text()) == bool(licence)


def test_the_tokenizers_own_code_runs_where_it_is_trusted_alone(
    built: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trusted: list[bool] = []
    real = AutoTokenizer.from_pretrained

    def opened(folder: str, *, trust_remote_code: bool) -> Any:
        trusted.append(trust_remote_code)
        return real(folder)

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", opened)
    for trust in (False, True):
        opening = Opening(trust_remote_code=trust)
        apply("export.ollama", built, tmp_path / f"out-{trust}", opening=opening)
    assert trusted == [False, True]


def test_a_tokenizer_that_does_otherwise_than_its_files_say_is_reported(
    built: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PreTrainedTokenizerBase, "apply_chat_template", lambda self, *given, **more: "something else")
    with pytest.raises(ModelError, match="transformers makes something else of a conversation"):
        apply("export.ollama", built, tmp_path / "out")


def checked(model: Path, folder: Path, steps: str) -> None:
    (folder / "recipe.yaml").write_text(f"schema: 1\nname: x\nmodel: {model}\nstages:\n{steps}")
    compress.check(folder / "recipe.yaml", cache=folder / "cache")


def test_what_cannot_be_translated_is_reported_when_planning(base: Path, tmp_path: Path) -> None:
    model = talking(base, tmp_path / "talking", "zephyr")
    checked(model, tmp_path, "  - build.gguf: {}\n  - export.ollama: {}\n")
    (model / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content | upper }}{% endfor %}")
    with pytest.raises(RecipeError, match=r"does not write each text once.*say template: raw"):
        checked(model, tmp_path, "  - build.gguf: {}\n  - export.ollama: {}\n")
    checked(model, tmp_path, "  - build.gguf: {}\n  - export.ollama: {template: raw}\n")
    with pytest.raises(RecipeError, match=r"context: 65 is more than the 64 tokens"):
        checked(model, tmp_path, "  - build.gguf: {}\n  - export.ollama: {template: raw, context: 65}\n")
    with pytest.raises(RecipeError, match=r"export.ollama takes gguf, but `model` is torch"):
        checked(base, tmp_path, "  - export.ollama: {}\n")


def test_it_lays_a_file_beside_the_model_and_makes_none() -> None:
    assert not find_stage("export.ollama").makes

import re
from pathlib import Path

import diffusers
import pytest

from compress.machine import library_classes

HOME = Path(diffusers.__file__).parent
# Defined by the installed library, each in one file alone.
NAMED = [("schedulers", "Scheduler"), ("pipelines", "Pipeline")]


@pytest.mark.parametrize(("folder", "ending"), NAMED)
def test_the_source_of_a_class_is_the_file_that_defines_it(folder: str, ending: str) -> None:
    texts = {file: file.read_text() for file in sorted((HOME / folder).glob("**/*.py"))}
    defined = {kind: text for text in texts.values() for kind in re.findall(rf"^class (\w+{ending})\(", text, re.M)}
    assert len(defined) > 20
    wrong = [kind for kind, text in defined.items() if library_classes.source_of(kind, folder) != text]
    assert not wrong


def test_the_likeliest_file_is_read_first(monkeypatch: pytest.MonkeyPatch) -> None:
    read, text = [], library_classes._text
    monkeypatch.setattr(library_classes, "_text", lambda file: read.append(file.name) or text(file))
    assert library_classes.source_of.__wrapped__("StableDiffusionPipeline", "pipelines")
    assert library_classes.source_of.__wrapped__("DPMSolverMultistepScheduler", "schedulers")
    assert len(read) < 10


def test_a_class_that_is_nowhere_has_no_source() -> None:
    assert library_classes.source_of("NoSuchPipeline", "pipelines") == ""
    assert library_classes.source_of("StableDiffusionPipeline", "nowhere") == ""

"""The field's words alone: what was once called otherwise here stays so only where something kept on disk, or a library, spells it."""

from __future__ import annotations

import re

from tests.rooms import ROOT

# To inpaint is the field's own word.
OLD = re.compile(
    r"\b\w*((?<!in)paint|picture|forese|spoilt)|held against|\b(told|said|heard|idle|lessons?|at hand)\b", re.IGNORECASE
)
WHERE = (
    "compress/**/*.py",
    "evaluation/**/*.py",
    "docs/*.md",
    "recipes/**/*.yaml",
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
)
MOST = 20
REASONS = {
    "compress/distillation/few_steps.py": "`latents: pictures` stands in the keys of students that are cached",
    "compress/training/trajectories.py": "the same setting",
    "compress/stages/distill/decoder.py": "`pictures` of distill.decoder stands in keys",
    "compress/planning/show.py": "a field of `pare plan --json`",
    "evaluation/verdict/quantities.py": "a unit that gates may be given in",
    "evaluation/observe/collect.py": "what keys and folders of evidence call it",
    "evaluation/observe/contention.py": "the kernel's name of a time",
    "evaluation/comparison/__init__.py": "how results of before spell it",
}


def test_words_of_the_old_dialect_are_few_and_each_has_a_reason() -> None:
    found = [
        (file.relative_to(ROOT).as_posix(), number, line.strip())
        for pattern in WHERE
        for file in sorted(ROOT.glob(pattern))
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if OLD.search(line)
    ]
    assert [one for one in found if one[0] not in REASONS] == []
    assert {name for name, _, _ in found} == set(REASONS)
    assert len(found) <= MOST

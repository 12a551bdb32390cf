"""The tables of families and stages are what plans say today: a few families always, all of them with `make slow`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.programs.family_table import (
    BEGIN,
    END,
    LONG,
    SHORT,
    TITLES,
    VARIANTS,
    WORKS,
    Family,
    family,
    long_tables,
    marked,
    measured,
    merged,
    short_columns,
    short_table,
)

CHEAP = ("llama", "sd", "mamba", "StableDiffusionInpaintPipeline")


def between(page: Path) -> str:
    return page.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].strip()


def cells(title: str) -> dict[str, str]:
    """By stage, what the page says of a family: "" or why not."""
    for section in between(LONG).split("## ")[1:]:
        lines = section.splitlines()
        rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("|")]
        reasons = dict(line.split(". ", 1) for line in lines if line[:1].isdigit())
        for at, heading in enumerate(rows[0]):
            if title in heading.split(", "):
                message = {row[0].strip("`"): row[at] for row in rows[2:]}
                return {stage: "" if cell == WORKS else reasons[cell.strip("()")] for stage, cell in message.items()}
    raise AssertionError(f"{title} is in no table")


@pytest.mark.parametrize("name", CHEAP)
def test_the_page_says_of_a_family_what_plans_say(name: str, tmp_path: Path) -> None:
    found = family(name, tmp_path)
    assert found.refusals == cells(found.title), "run `make families` and review the diff"


@pytest.mark.slow
def test_both_tables_are_up_to_date_on_every_family() -> None:
    families = measured()
    assert long_tables(families) == between(LONG)
    assert short_table(families) == between(SHORT)


def test_readme_has_a_row_for_every_family_and_a_column_for_every_engine() -> None:
    head, _, *rows = between(SHORT).splitlines()
    assert [cell.strip() for cell in head.strip("|").split("|")] == ["family", *short_columns()]
    titled = [title for row in rows for title in row.strip("| ").split(" | ")[0].split(", ")]
    known = [title for name, title in TITLES.items() if name not in VARIANTS]
    assert sorted(titled) == sorted(known)


def test_families_that_differ_in_nothing_share_a_column() -> None:
    one, two, other = Family("A", "t", {"s": ""}), Family("B", "t", {"s": ""}), Family("C", "t", {"s": "no"})
    assert merged([one, other, two]) == [Family("A, B", "t", {"s": ""}), other]


def test_a_share_of_a_verb_is_counted() -> None:
    prune, *_ = short_columns().values()
    assert len(prune) > 1
    row = short_table([Family("A", "t", {name: "" if n else "no" for n, name in enumerate(prune)})]).splitlines()[-1]
    assert row.startswith(f"| A | {len(prune) - 1} of {len(prune)} | – |")


def test_a_page_without_marks_is_not_written_over() -> None:
    assert marked(f"a\n{BEGIN}\nold\n{END}\nb", "new") == f"a\n{BEGIN}\n\nnew\n\n{END}\nb"
    with pytest.raises(AssertionError):
        marked("a page", "new")

"""Rows that are no conversation yet, or none that can be read: how many there are, and the line that writes them anew."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from compress.errors import DataError
from compress.sources.data import open_data


def test_all_rows_that_cannot_be_read_are_counted(tmp_path: Path) -> None:
    good = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes"}]
    called = [*good, {"role": "tool", "content": "7"}]
    file = tmp_path / "chats.jsonl"
    rows = [{"messages": called if number % 4 == 1 else good} for number in range(20)]
    file.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError) as caught:
        open_data(str(file), tmp_path)
    (problem,) = caught.value.problems
    assert problem.place == f"{file}:2"
    assert problem.message.endswith("; 4 more of the 20 rows cannot be read either")


@pytest.mark.parametrize(
    ("row", "asked"),
    [
        ({"prompt": "Hello?", "completion": "Yes."}, "Hello?"),
        ({"instruction": "Add.", "input": "1 and 2", "output": "Yes."}, "Add.\n1 and 2"),
        ({"instruction": "Add.", "input": "", "output": "Yes."}, "Add."),
        ({"question": "Hello?", "answer": "Yes.", "source": "a book, which is the longest of all texts"}, "Hello?"),
    ],
)
def test_pairs_are_written_anew_as_conversations_by_the_line_that_is_given(
    row: dict[str, str], asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "below" / "pairs.jsonl"
    file.parent.mkdir()
    file.write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError) as caught:
        open_data(str(file), tmp_path)
    line, _, _ = caught.value.problems[0].fix.partition(", if `")
    subprocess.run(line.replace("python -c", f"{sys.executable} -c"), shell=True, check=True, cwd=tmp_path)
    read = open_data(str(tmp_path / "pairs-messages.jsonl"), tmp_path).first(1)[0]
    assert [(one.role, one.content) for one in read.messages] == [("user", asked), ("assistant", "Yes.")]

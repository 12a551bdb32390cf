"""Text files are read whatever wrote them, or refused with the line, the byte and what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.data.texts import MARKED, PACKED, TABLES, read_rows, read_text
from compress.errors import DataError
from compress.sources.data import open_data

ODD = "one\u2028two\u0085three\u000bfour\u001cfive"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_marks_and_line_ends_change_nothing(encoding: str, end: str, tmp_path: Path) -> None:
    text = end.join(["Grüße.", "", "Zwei.", ""])
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    found = open_data("a.txt", tmp_path)
    assert [item.text for item in found.first(9)] == ["Grüße.", "Zwei."]
    (tmp_path / "b.txt").write_text("Grüße.\n\nZwei.\n")
    assert found.digest == open_data("b.txt", tmp_path).digest


@pytest.mark.parametrize("escaped", [True, False])
def test_only_a_line_feed_ends_a_line_of_json(escaped: bool, tmp_path: Path) -> None:
    rows = [{"text": ODD}, {"text": "second"}]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=escaped) for row in rows))
    assert [item.text for item in open_data("a.jsonl", tmp_path).first(9)] == [ODD, "second"]


@given(st.lists(st.text(max_size=20), min_size=1, max_size=5), st.booleans())
def test_whatever_texts_are_written_come_back(texts: list[str], escaped: bool) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        lines = [json.dumps({"text": text}, ensure_ascii=True if escaped else not text.isprintable()) for text in texts]
        (Path(folder) / "a.jsonl").write_text("\r\n".join(lines), newline="", encoding="utf-8", errors="surrogatepass")
        assert [row["text"] for _, row in read_rows(Path(folder) / "a.jsonl")] == texts


def test_another_encoding_is_refused_with_line_and_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_bytes("one\ntwo\ndrei Grüße".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8: byte 0xfc at offset 15") as caught:
        read_text(tmp_path / "a.txt")
    (problem,) = caught.value.problems
    assert problem.place.endswith("a.txt:3")
    assert "iconv -f LATIN1 -t UTF-8 a.txt > a-utf8.txt" in problem.fix


def test_an_array_of_objects_is_rows_too(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{"text": "one", "id": "x"}, {"text": "two"}], indent=1))
    assert [(i.id, i.text) for i in open_data("a.json", tmp_path).first(9)] == [("x", "one"), ("1", "two")]
    (tmp_path / "b.json").write_text('{"text": "one"}')
    with pytest.raises(DataError, match="no array of objects"):
        open_data("b.json", tmp_path)


@pytest.mark.parametrize("suffix", [*TABLES, *PACKED, *MARKED, ".PDF", ".Csv"])
def test_other_formats_are_no_prose(suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"a{suffix}").write_text("text\none\n")
    with pytest.raises(DataError) as caught:
        open_data(f"a{suffix}", tmp_path)
    (problem,) = caught.value.problems
    assert suffix.lower() in problem.message
    assert any(word in problem.fix for word in ("a.jsonl", "a-plain.txt", "unpack", "soffice"))


@pytest.mark.parametrize(
    ("start", "message"),
    [(b"%PDF-1.7\n", ".pdf"), (b"{\\rtf1 text}", ".rtf"), (b"\x1f\x8b\x08", ".gz"), (b"PK\x03\x04", ".zip")],
)
def test_other_formats_are_reported_by_their_start_whatever_they_are_called(
    start: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_bytes(start + b"plain words")
    with pytest.raises(DataError, match=rf"\{message}"):
        open_data("a.txt", tmp_path)


@pytest.mark.parametrize("name", ["a.JSONL", "a.ndjson", "a.NDJSON", "a.json", "a.Json"])
def test_lines_of_json_are_rows_under_each_of_their_names(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text('\n{"text": "one [1]"}\n\n{"text": "two"}\n')
    assert [item.text for item in open_data(name, tmp_path).first(9)] == ["one [1]", "two"]
    (tmp_path / name).write_text('{"text": "one"}\n{"text": "two"')
    with pytest.raises(DataError, match="no JSON") as caught:
        open_data(name, tmp_path)
    assert caught.value.problems[0].place.endswith(f"{name}:2")


def test_a_broken_array_is_reported_as_one(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"text": "one"}\n{"text": "two"}]')
    with pytest.raises(DataError, match="no JSON: Expecting ',' delimiter: line 2") as caught:
        open_data("a.json", tmp_path)
    assert caught.value.problems[0].fix.startswith("mend it there")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
@pytest.mark.parametrize("raw", [b"\xff\xfehello", b"\xff\xfeh\0\0\xd8a\0", b"\xff\xfe\0\0hello"])
def test_broken_utf_16_and_32_are_not_taken_for_latin(name: str, raw: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(DataError, match=r"starts as UTF-(16|32) does, and is none: .* at byte \d") as caught:
        open_data(name, tmp_path)
    assert "Latin" not in caught.value.problems[0].fix


@pytest.mark.parametrize(("row", "message"), [
    ('{"text": "broken \\ud800"}', r"'text' holds half a character, \\ud800"),
    ('{"text": "a", "id": "\\udc00x"}', r"'id' holds half a character, \\udc00"),
])  # fmt: skip
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_half_a_character_is_reported_with_its_line(name: str, row: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text('{"text": "whole \\ud83d\\ude00"}\n' + row)
    with pytest.raises(DataError, match=message) as caught:
        open_data(name, tmp_path)
    assert caught.value.problems[0].place.endswith(f"{name}:2")


def test_binary_is_no_prose(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\x7fELF\0\0\0")
    with pytest.raises(DataError, match="null bytes"):
        open_data("a.txt", tmp_path)


@pytest.mark.parametrize(("row", "message"), [
    ({"file_name": "0.png", "text": ["a", "b"]}, "needs one text, and has a list"),
    ({"file_name": "0.png", "text": None}, "needs one text, and has none"),
    ({"file_name": "0.png"}, "needs one text, and has none"),
    ({"file_name": 3, "text": "a"}, "needs file_name"),
    ({"file_name": "nowhere.png", "text": "a"}, "needs file_name"),
    ({"file_name": "metadata.jsonl", "text": "a"}, "metadata.jsonl is no image"),
])  # fmt: skip
def test_a_row_of_metadata_that_is_none_is_reported_with_its_line(
    row: dict[str, object], message: str, tmp_path: Path
) -> None:
    (tmp_path / "0.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    lines = ["", json.dumps({"file_name": "0.png", "text": "good"}), json.dumps(row)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError) as caught:
        open_data(".", tmp_path)
    (problem,) = caught.value.problems
    assert message in problem.message
    assert problem.place.endswith("metadata.jsonl:3")

"""One careful reader for every text file a user hands over: UTF-8, with or without a mark at its start, lines ending in LF or CRLF."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from compress.errors import DataError

# Formats that hold texts and are no prose, with what makes lines of JSON of them.
PANDAS = "python -c \"import pandas; pandas.{reader}('{name}').to_json('{stem}.jsonl', orient='records', lines=True)\""
TABLES = {
    ".csv": "read_csv",
    ".parquet": "read_parquet",
    ".feather": "read_feather",
    ".arrow": "read_feather",
    ".xlsx": "read_excel",
}
PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip", ".tar", ".7z")


def read_text(path: Path) -> str:
    """A file's text, its lines ending in LF.

    Raises:
        DataError: it is a table, an archive or binary, or no UTF-8; the error tells line and byte.
    """
    _refuse_format(path)
    raw = path.read_bytes()
    if b"\0" in raw[:4096] and not raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError("is no text: it holds null bytes", place=str(path), fix="give a text file, or JSON lines")
    try:
        found = raw.decode("utf-16") if raw.startswith((b"\xff\xfe", b"\xfe\xff")) else raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        said = f"is not UTF-8: byte {raw[error.start]:#04x} at offset {error.start}"
        fix = f"iconv -f LATIN1 -t UTF-8 {path.name} > {path.stem}-utf8{path.suffix}, if it is Latin-1"
        raise DataError(said, place=f"{path}:{line}", fix=fix) from error
    return found.replace("\r\n", "\n").replace("\r", "\n")


def read_rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """The JSON objects of a file, one a line, or of one array; each with its line (of an array: its number, from 1).

    Raises:
        DataError: a line is none, or there is none at all.
    """
    text = read_text(path)
    if path.suffix == ".json":
        rows = list(enumerate(_array(text, path), 1))
    else:  # only LF ends a line: other separators of Unicode may stand inside a string
        rows = [(n, _parsed(line, f"{path}:{n}")) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    for number, row in rows:
        if not isinstance(row, dict):
            raise DataError("is no JSON object", place=f"{path}:{number}", fix="one JSON object a line")
    if not rows:
        raise DataError("holds no rows", place=str(path), fix="one JSON object a line")
    return rows


def _array(text: str, path: Path) -> list[Any]:
    found = _parsed(text, str(path))
    if not isinstance(found, list):
        raise DataError(
            "holds no array of objects", place=str(path), fix='[{"text": "…"}, …], or one object a line in a .jsonl'
        )
    return found


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"is no JSON: {error}", place=place, fix="one JSON object a line") from error


def _refuse_format(path: Path) -> None:
    suffix = path.suffix.lower()
    if suffix in TABLES:
        line = PANDAS.format(reader=TABLES[suffix], name=path.name, stem=path.stem)
        raise DataError(
            f"is a table ({suffix}), and no text",
            place=str(path),
            fix=f"make JSON lines of it, with a column `text`: {line}",
        )
    if suffix in PACKED:
        raise DataError(f"is packed ({suffix})", place=str(path), fix="unpack it, and give what is inside")

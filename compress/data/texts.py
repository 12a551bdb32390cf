"""One careful reader for every text file a user hands over: UTF-8, with or without a mark at its start, lines ending in LF or CRLF."""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compress.errors import DataError
from compress.files.lfs_pointers import refuse_pointer

LINES = "one JSON object a line"
PROSE = (".txt", ".text", ".md", ".jsonl", ".ndjson", ".json")  # what a folder of texts holds
ROWS = (".jsonl", ".ndjson", ".json")  # one JSON object a line; the last may also be one array of them
# Formats that hold texts and are no prose, with what makes lines of JSON of them.
PANDAS = "python -c \"import pandas; pandas.{reader}('{name}').to_json('{stem}.jsonl', orient='records', lines=True)\""
TABLES = {
    ".csv": "read_csv",
    ".tsv": "read_table",
    ".tab": "read_table",
    ".parquet": "read_parquet",
    ".feather": "read_feather",
    ".arrow": "read_feather",
    ".xls": "read_excel",
    ".xlsx": "read_excel",
    ".ods": "read_excel",
}
# Captions beside their images, `0.txt` of `0.png`, into one file.
SIDECARS = (
    "python -c \"import json, pathlib; [print(json.dumps({'file_name': p.name, 'text': p.with_suffix('.txt').read_text().strip()})) "
    "for p in sorted(pathlib.Path('.').iterdir()) if p.suffix != '.txt' and p.with_suffix('.txt').is_file()]\" > metadata.jsonl"
)
# A prompt a line into rows of JSON.
PROMPTS = "python -c \"import json, sys; [print(json.dumps({{'text': l.strip()}})) for l in open('{name}') if l.strip()]\" > {stem}.jsonl"
# Keys of what is asked and what answers it, as rows to be learnt from have them; an instruction may have an input behind it.
PAIRS = (
    ("instruction", "output"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
    ("input", "output"),
)
PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip", ".tar", ".tgz", ".7z", ".rar")
# Formats whose text stands between marks, with what takes it out.
PANDOC = "pandoc '{name}' -t plain --wrap=none -o '{stem}-plain.txt'"
MARKED = {
    ".pdf": "pdftotext '{name}' '{stem}-plain.txt'",
    **dict.fromkeys((".html", ".htm", ".xhtml", ".docx", ".odt", ".epub", ".rtf", ".ipynb"), PANDOC),
    **dict.fromkeys((".doc", ".ppt", ".pptx"), "soffice --headless --convert-to txt:Text '{name}'"),
    **dict.fromkeys((".yaml", ".yml", ".toml", ".xml", ".svg"), 'make lines of {{"text": "…"}} of it, in {stem}.jsonl'),
}
# Formats that are known from how a file starts, whatever it is called.
STARTS = {b"%PDF": ".pdf", b"{\\rtf": ".rtf", b"\x1f\x8b": ".gz", b"PK\x03\x04": ".zip"}
WIDE = {
    codecs.BOM_UTF32_LE: "utf-32",  # which starts as UTF-16 does
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def captioning(folder: Path) -> str:
    """How to make the metadata.jsonl that a folder of images lacks, of what lies there."""
    table = next(
        (name for name in ("metadata.csv", "metadata.tsv", "metadata.parquet") if (folder / name).is_file()), ""
    )
    if table:
        suffix = Path(table).suffix
        line = PANDAS.format(reader=TABLES[suffix], name=table, stem="metadata")
        return f"in that folder, with the columns file_name and text: {line}"
    beside = any(f.suffix != ".txt" and f.with_suffix(".txt").is_file() for f in folder.iterdir())
    return f"in that folder: {SIDECARS}" if beside else 'one {"file_name": …, "text": …} a line'


def read_text(path: Path) -> str:
    """A file's text, its lines ending in LF.

    Raises:
        DataError: it is a table, an archive or binary, or no UTF-8; the error tells line and byte.
    """
    _refuse_format(path, path.suffix.lower())
    refuse_pointer(path, DataError)
    raw = path.read_bytes()
    _refuse_format(path, next((suffix for start, suffix in STARTS.items() if raw.startswith(start)), ""))
    wide = next((encoding for start, encoding in WIDE.items() if raw.startswith(start)), "")
    if b"\0" in raw[:4096] and not wide:
        raise DataError("is no text: it holds null bytes", place=str(path), fix="give a text file, or JSON lines")
    try:
        found = raw.decode(wide or "utf-8-sig")
    except UnicodeDecodeError as error:
        raise _undecoded(path, raw, wide, error) from error
    return found.replace("\r\n", "\n").replace("\r", "\n")


def _undecoded(path: Path, raw: bytes, wide: str, error: UnicodeDecodeError) -> DataError:
    if wide:
        message = f"starts as {wide.upper()} does, and is none: {error.reason} at byte {error.start}"
        return DataError(message, place=str(path), fix="save it as UTF-8, from what wrote it")
    line = raw[: error.start].count(b"\n") + 1
    message = f"is not UTF-8: byte {raw[error.start]:#04x} at offset {error.start}"
    fix = f"iconv -f LATIN1 -t UTF-8 {_from_here(path)} > {path.stem}-utf8{path.suffix}, if it is Latin-1"
    return DataError(message, place=f"{path}:{line}", fix=fix)


def read_rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """The JSON objects of a file, one a line, or of one array; each with its line (of an array: its number, from 1).

    Raises:
        DataError: a line is none, or there is none at all.
    """
    text = read_text(path)
    if path.suffix.lower() == ".json" and not _is_lines(text):
        rows = list(enumerate(_array(text, path), 1))
    else:  # only LF ends a line: other separators of Unicode may stand inside a string
        rows = [(n, _parsed(line, f"{path}:{n}", LINES)) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    for number, row in rows:
        if not isinstance(row, dict):
            message = "is a string, and no JSON object" if isinstance(row, str) else "is no JSON object"
            fix = 'write {"text": "…"} in place of each string' if isinstance(row, str) else LINES
            raise DataError(message, place=f"{path}:{number}", fix=fix)
        for name, value in row.items():
            refuse_halves(repr(name), value, f"{path}:{number}")
    if not rows:
        raise DataError("holds no rows", place=str(path), fix=LINES)
    return rows


def rekeyed(path: Path, row: Mapping[str, object]) -> str:
    """The line that writes rows anew with their text under `text`, or their conversation under `messages`, where a row has one under
    another key; else how a row looks."""
    chat = next((k for k, v in row.items() if k.isidentifier() and _is_chat(v)), "")
    key = chat or max(
        (k for k, v in row.items() if isinstance(v, str) and k.isidentifier()),
        key=lambda k: len(str(row[k])),
        default="",
    )
    if not key or "text" in row:
        return '{"text": "…"} in every row'
    known, what = ("messages", "conversation") if chat else ("text", "text")
    each = "json.load(open(F))" if path.suffix.lower() == ".json" else "map(json.loads, filter(str.strip, open(F)))"
    written, whether = f"{{'{known}': row['{key}']}}", f"if the {what} is `{key}`"
    if pair := next((two for two in PAIRS if all(isinstance(row.get(one), str) for one in two)), None):
        asked, answer = pair
        more = " + (row.get('input') and chr(10) + row['input'] or '')" if asked == "instruction" else ""
        turns = (
            f"{{'role': 'user', 'content': row['{asked}']{more}}}, {{'role': 'assistant', 'content': row['{answer}']}}"
        )
        known, written, whether = "messages", f"{{'messages': [{turns}]}}", f"if `{answer}` answers `{asked}`"
    line = f"import json; F = '{_from_here(path)}'; [print(json.dumps({written})) for row in {each}]"
    return f'python -c "{line}" > {path.stem}-{known}.jsonl, {whether}'


def _from_here(path: Path) -> str:
    """A path as it is named from where the user is: relative below that, else whole."""
    whole, here = Path(os.path.abspath(path)), Path.cwd()
    return str(whole.relative_to(here) if here in whole.parents else whole)


def _is_chat(value: object) -> bool:
    """Whether a value looks like the messages of a conversation."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(v, Mapping) and {"role", "from"} & {*v} for v in value)
    )


def _is_lines(text: str) -> bool:
    """Whether a text starts with an object, behind which something else stands, as in lines of them."""
    if not text.lstrip().startswith("{"):
        return False
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return error.msg == "Extra data"
    except (ValueError, RecursionError):  # of a number or a depth without end: known from whoever reads it
        pass
    return False


def refuse_halves(what: str, value: object, place: str) -> None:
    """Raises a DataError where a string holds half a character: JSON can spell one, and no tokenizer reads it."""
    try:
        value.encode() if isinstance(value, str) else b""
    except UnicodeEncodeError as error:
        message = (
            f"{what} holds half a character, \\u{ord(error.object[error.start]):04x}, the other half of which is gone"
        )
        raise DataError(message, place=place, fix="write the whole character, or leave it out") from error


def _array(text: str, path: Path) -> list[Any]:
    found = _parsed(text, str(path), "mend it there, or write one JSON object a line")
    if not isinstance(found, list):
        raise DataError(
            "holds no array of objects", place=str(path), fix='[{"text": "…"}, …], or one object a line in a .jsonl'
        )
    return found


def _parsed(text: str, place: str, fix: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"is no JSON: {error}", place=place, fix=fix) from error


def _refuse_format(path: Path, suffix: str) -> None:
    """Raises a DataError where a suffix, or that of the format a file starts as, says that it is no prose."""
    if suffix in TABLES:
        line = PANDAS.format(reader=TABLES[suffix], name=_from_here(path), stem=path.stem)
        raise DataError(
            f"is a table ({suffix}), and no text",
            place=str(path),
            fix=f"make JSON lines of it, with a column `text`: {line}",
        )
    if suffix in PACKED:
        raise DataError(f"is packed ({suffix})", place=str(path), fix="unpack it, and give what is inside")
    if suffix in MARKED:
        fix = MARKED[suffix].format(name=_from_here(path), stem=path.stem)
        raise DataError(f"is marked up ({suffix}), and no plain text", place=str(path), fix=fix)

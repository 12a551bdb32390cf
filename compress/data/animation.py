"""Whether an image's file holds several frames, read from its blocks' headers: nothing is decoded, and no library is opened.

Source: the specifications of GIF89a, PNG (its animation chunk, acTL), WebP's container, and TIFF 6.0.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

PNG, WEBP, GIF = b"\x89PNG\r\n\x1a\n", b"WEBP", b"GIF8"
TIFF = {b"II*\0": "<", b"MM\0*": ">"}
ANIMATED = 0x02  # the flag of an extended WebP


def has_several_frames(path: Path) -> bool:
    """Whether a file says that it holds more than one frame; what does not read to that point is for whoever decodes it to tell."""
    with path.open("rb") as stream:
        start = stream.read(30)
        try:
            if start.startswith(GIF):
                return _in_gif(stream)
            if start.startswith(PNG):
                return _in_png(stream)
            if start[:4] in TIFF:
                return _in_tiff(stream, TIFF[start[:4]])
            return start[8:12] == WEBP and bool(ANIMATED & start[20]) and start[12:16] == b"VP8X" and _in_webp(stream)
        except (struct.error, IndexError):  # cut short
            return False


def _in_png(stream: BinaryIO) -> bool:
    stream.seek(len(PNG))
    while True:
        length, kind = struct.unpack(">I4s", stream.read(8))
        if kind in (b"IDAT", b"IEND"):
            return False
        if kind == b"acTL":
            return bool(struct.unpack(">I", stream.read(4))[0] > 1)
        stream.seek(length + 4, 1)


def _in_webp(stream: BinaryIO) -> bool:
    """Whether there are two chunks with a frame each: one may be all that an animation has."""
    stream.seek(12)
    frames = 0
    while frames < 2 and len(head := stream.read(8)) == 8:
        kind, size = struct.unpack("<4sI", head)
        frames += kind == b"ANMF"
        stream.seek(size + size % 2, 1)
    return frames > 1


def _in_tiff(stream: BinaryIO, order: str) -> bool:
    """Whether another directory follows the first."""
    stream.seek(4)
    stream.seek(struct.unpack(f"{order}I", stream.read(4))[0])
    entries = struct.unpack(f"{order}H", stream.read(2))[0]
    stream.seek(12 * entries, 1)
    return bool(struct.unpack(f"{order}I", stream.read(4))[0])


def _in_gif(stream: BinaryIO) -> bool:
    """Whether there is a second image."""
    stream.seek(10)
    stream.seek(2 + _table(stream.read(1)), 1)
    images = 0
    while (kind := stream.read(1)) in (b"\x21", b"\x2c"):
        if kind == b"\x2c":
            images += 1
            stream.seek(8, 1)
            stream.seek(_table(stream.read(1)), 1)
        if images > 1:
            return True
        stream.seek(1, 1)  # what an extension is of, or how an image is packed
        while size := stream.read(1):
            if size == b"\0":
                break
            stream.seek(size[0], 1)
    return False


def _table(packed: bytes) -> int:
    """The bytes of a table of colours, as the field before it says."""
    flags = struct.unpack("B", packed)[0]
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0

"""What is in a MATLAB 5 to 7.2 file, seen before SciPy reads it: its reader, compiled, ends the process at some damaged files.

The format: https://www.mathworks.com/help/pdf_doc/matlab/matfile_format.pdf
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

_HDF5 = b"\x89HDF\r\n\x1a\n"
_MATRIX, _COMPRESSED = 14, 15
_INT8, _INT32, _UINT32 = 1, 5, 6
_BYTES = {1: 1, 2: 1, 3: 2, 4: 2, 5: 4, 6: 4, 7: 4, 9: 8, 12: 8, 13: 8}  # of a number of each data type
_TEXTS = (1, 2, 3, 4, 16, 17, 18)  # data types that characters come in
_CHAR, _NUMERIC, _OPAQUE = 4, range(6, 16), 17  # array classes
_COMPLEX = 0x800
_MOST = 1 << 30  # bytes that a compressed variable may unpack to


def variables(path: Path) -> dict[str, bool]:
    """The variables of a file by name, and whether each is an array of numbers or text; those that are have been found whole.

    Raises:
        ValueError: the file is damaged.
        NotImplementedError: it is of MATLAB 7.3, which is HDF5.
    """
    content = path.read_bytes()
    mark = content[126:128]
    order = "<" if mark == b"IM" else ">"
    version = struct.unpack_from(order + "H", content, 124)[0] if len(mark) == 2 else 0
    if content[:8] == _HDF5 or (mark in (b"IM", b"MI") and version == 0x200):
        raise NotImplementedError("a file of MATLAB 7.3")
    if mark not in (b"IM", b"MI") or 0 in content[:4]:
        raise ValueError("it is no file of MATLAB 5 to 7.3")
    if version != 0x100:
        raise ValueError("it is of an unknown version of MATLAB")
    return dict(_variables(memoryview(content), order))


def _variables(content: memoryview, order: str) -> Iterator[tuple[str, bool]]:
    place = 128
    while place < len(content):
        kind, size = _numbers(content[place : place + 8], order + "II")
        body = content[place + 8 : place + 8 + size]
        if len(body) != size:
            raise ValueError("it is cut off")
        place += 8 + size
        if kind == _COMPRESSED:
            engine = zlib.decompressobj()
            try:
                plain = memoryview(engine.decompress(body, _MOST))
            except zlib.error as error:
                raise ValueError(f"a compressed variable is damaged, {error}") from None
            if not engine.eof:
                raise ValueError("a compressed variable is cut off or too large")
            kind, size = _numbers(plain[:8], order + "II")
            body = plain[8 : 8 + size]
            if len(body) != size or len(plain) != 8 + size:
                raise ValueError("a compressed variable is not of the size it states")
        if kind != _MATRIX:
            raise ValueError(f"an element is of type {kind}")
        yield _variable(body, order)


def _variable(body: memoryview, order: str) -> tuple[str, bool]:
    """Name of a matrix element, and whether it is an array of numbers or text. Raises ValueError where its parts do not fit."""
    parts = _elements(body, order)
    kind, flags = _next(parts)
    if kind != _UINT32 or len(flags) != 8:
        raise ValueError("a variable lacks its flags")
    word = _numbers(flags, order + "II")[0]
    array = word & 0xFF
    if array == _OPAQUE:
        return "", False
    kind, sizes = _next(parts)
    if kind != _INT32 or not 8 <= len(sizes) <= 128 or len(sizes) % 4:
        raise ValueError("a variable lacks its dimensions")
    dimensions = struct.unpack(f"{order}{len(sizes) // 4}i", sizes)
    if min(dimensions) < 0:
        raise ValueError("a dimension is negative")
    kind, name = _next(parts)
    if kind != _INT8 or not all(0 < letter < 128 for letter in name):
        raise ValueError("a variable lacks its name")
    if array != _CHAR and array not in _NUMERIC:
        return bytes(name).decode(), False
    count = math.prod(dimensions)
    for _ in range(2 if word & _COMPLEX and array != _CHAR else 1):
        kind, values = _next(parts)
        fits = kind in _TEXTS and len(values) <= 4 * count if array == _CHAR else len(values) == count * _BYTES.get(kind, -1)
        if not fits:
            raise ValueError(f"'{bytes(name).decode()}' is not of the size it states")
    return bytes(name).decode(), True


def _elements(body: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """Data type and bytes of each element in a matrix; those of up to four bytes may stand in their own tag."""
    place = 0
    while place < len(body):
        kind, size = _numbers(body[place : place + 8], order + "II")
        if kind >> 16:
            kind, size = kind & 0xFFFF, kind >> 16
            if size > 4:
                raise ValueError("an element is larger than its tag")
            yield kind, body[place + 4 : place + 4 + size]
            place += 8
            continue
        values = body[place + 8 : place + 8 + size]
        if len(values) != size:
            raise ValueError("an element is cut off")
        yield kind, values
        place += 8 + size + -size % 8


def _next(parts: Iterator[tuple[int, memoryview]]) -> tuple[int, memoryview]:
    for part in parts:
        return part
    raise ValueError("a variable is cut off")


def _numbers(content: memoryview, form: str) -> tuple[int, ...]:
    if len(content) != struct.calcsize(form):
        raise ValueError("it is cut off")
    return struct.unpack(form, content)

# SPDX-License-Identifier: Apache-2.0
"""Tables and vectors of a flatbuffer, every offset and length checked before it is used.

Source: https://flatbuffers.dev/internals/ (tables, vtables, vectors; little endian throughout).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from fl_tiny.errors import ModelError

U8, I8, U16 = struct.Struct("<B"), struct.Struct("<b"), struct.Struct("<H")
I32, U32, U64 = struct.Struct("<i"), struct.Struct("<I"), struct.Struct("<Q")
MAX_TABLES = 200_000  # guess; the largest model seen (VWW MobileNet) has 400. Bounds a file that points back at itself


@dataclass(slots=True)
class Buffer:
    """A file's bytes and what may still be read of them: vectors may overlap, so work is counted, not places."""

    data: bytes
    tables_left: int = MAX_TABLES
    bytes_left: int = 0

    def number(self, form: struct.Struct, at: int) -> int:
        """The number at byte ``at``. Raises: ModelError when it does not lie within the file."""
        if not 0 <= at <= len(self.data) - form.size:
            raise damaged(f"offset {at} points outside its {len(self.data)} bytes")
        value: int = form.unpack_from(self.data, at)[0]
        return value

    def follow(self, at: int) -> int:
        """Where the offset stored at ``at`` points to. Raises: ModelError when outside the file or not aligned."""
        target = at + self.number(U32, at)
        if target == at or target > len(self.data) - 4 or target % 4:
            raise damaged(f"the offset at {at} points to {target}, which cannot hold a table or a vector")
        return target

    def table(self, at: int) -> Table:
        """The table at ``at``. Raises: ModelError when its field list or a field does not lie within the file."""
        self.tables_left -= 1
        if self.tables_left < 0:
            raise damaged(f"it has more than {MAX_TABLES} tables")
        vtable = at - self.number(I32, at)
        vtable_size, size = self.number(U16, vtable), self.number(U16, vtable + 2)
        if vtable_size < 4 or vtable_size % 2 or vtable + vtable_size > len(self.data):
            raise damaged(f"the field list at {vtable} is {vtable_size} bytes long")
        if size < 4 or at + size > len(self.data):
            raise damaged(f"the table at {at} is {size} bytes long")
        fields = struct.unpack_from(f"<{vtable_size // 2 - 2}H", self.data, vtable + 4)
        if any(field and not 4 <= field < size for field in fields):
            raise damaged(f"the table at {at} has a field outside itself")
        return Table(self, at, size, fields)

    def spend(self, size: int) -> None:
        self.bytes_left -= size
        if self.bytes_left < 0:
            raise damaged("its vectors overlap")


@dataclass(frozen=True, slots=True)
class Vector:
    """Where ``count`` items of ``item_size`` bytes lie in the file."""

    at: int
    count: int
    item_size: int

    @property
    def size(self) -> int:
        return self.count * self.item_size


@dataclass(frozen=True, slots=True)
class Table:
    """One table: fields by slot number, in the order of the schema."""

    buffer: Buffer
    at: int
    size: int
    fields: tuple[int, ...]  # byte offset of each field from ``at``; 0 = absent

    def place(self, slot: int) -> int | None:
        """Where the field lies in the file, or None when it is absent and has its default."""
        offset = self.fields[slot] if slot < len(self.fields) else 0
        return self.at + offset if offset else None

    def number(self, slot: int, form: struct.Struct, default: int = 0) -> int:
        at = self.place(slot)
        if at is None:
            return default
        if at + form.size > self.at + self.size:
            raise damaged(f"the table at {self.at} ends within field {slot}")
        return self.buffer.number(form, at)

    def table(self, slot: int) -> Table | None:
        at = self.place(slot)
        return None if at is None else self.buffer.table(self.buffer.follow(at))

    def vector(self, slot: int, item_size: int) -> Vector | None:
        """The vector in ``slot``, wholly within the file; its items are not read."""
        at = self.place(slot)
        if at is None:
            return None
        start = self.buffer.follow(at)
        vector = Vector(start + 4, self.buffer.number(U32, start), item_size)
        if vector.at + vector.size > len(self.buffer.data):
            raise damaged(f"the vector at {start} counts {vector.count} items, more than the file holds")
        return vector

    def numbers(self, slot: int, code: str) -> tuple[int, ...]:
        """The vector of numbers in ``slot``; ``code`` is struct's letter for one. Empty when absent."""
        vector = self.vector(slot, struct.calcsize(code))
        if vector is None:
            return ()
        self.buffer.spend(vector.size)
        return struct.unpack_from(f"<{vector.count}{code}", self.buffer.data, vector.at)

    def tables(self, slot: int) -> list[Table]:
        vector = self.vector(slot, 4)
        if vector is None:
            return []
        if vector.count > self.buffer.tables_left:
            raise damaged(f"it has more than {MAX_TABLES} tables")
        places = range(vector.at, vector.at + vector.size, 4)
        return [self.buffer.table(self.buffer.follow(place)) for place in places]

    def text(self, slot: int) -> str:
        """The string in ``slot``, what is not UTF-8 replaced. Empty when absent."""
        vector = self.vector(slot, 1)
        if vector is None:
            return ""
        self.buffer.spend(vector.size)
        return self.buffer.data[vector.at : vector.at + vector.size].decode("utf-8", "replace")


def root(data: bytes, identifier: bytes) -> Table:
    """The root table of a file that carries ``identifier``. Raises: ModelError."""
    if data[4:8] != identifier:
        raise ModelError(f"it is no .tflite file: {identifier.decode()} is not at byte 4", hint="is the path right?")
    buffer = Buffer(data, bytes_left=4 * len(data))
    return buffer.table(buffer.follow(0))


def damaged(why: str) -> ModelError:
    """The error for bytes that are not the structure they claim to be."""
    return ModelError(f"the .tflite file is damaged: {why}", hint="copy it again and compare its checksum")

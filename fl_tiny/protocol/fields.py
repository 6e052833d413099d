# SPDX-License-Identifier: Apache-2.0
"""A dataclass as a map of integer keys: a field says its key and what may stand under it."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Hashable, Mapping
from dataclasses import fields
from typing import Any, NamedTuple, TypeVar, cast, get_type_hints

from fl_tiny.errors import MalformedMessage

M = TypeVar("M")
Read = Callable[[Any, str], Any]

# What Python calls printable and nobody sees, and braille without a dot.
# Source: DerivedCoreProperties.txt, Default_Ignorable_Code_Point.
_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)


class Key(NamedTuple):
    """Where a field stands in its map, and how its value is read."""

    number: int
    read: Read


def uint(low: int, high: int) -> Read:
    """An integer in [low, high]; a bool is not an integer."""

    def read(value: Any, where: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise MalformedMessage(f"{where} is not an integer from {low} to {high}")
        return value

    return read


def blob(low: int, high: int | None = None) -> Read:
    """A byte string of ``low`` to ``high`` bytes, of exactly ``low`` when ``high`` is not given."""
    most = low if high is None else high

    def read(value: Any, where: str) -> bytes:
        if not isinstance(value, bytes) or not low <= len(value) <= most:
            raise MalformedMessage(f"{where} is not a byte string of {low} to {most} B")
        return value

    return read


def text(low: int, high: int) -> Read:
    """A text of ``low`` to ``high`` bytes of UTF-8."""

    def read(value: Any, where: str) -> str:
        if not isinstance(value, str) or not low <= len(value.encode()) <= high:
            raise MalformedMessage(f"{where} is not a text of {low} to {high} B")
        return value

    return read


def cut_text(value: str, size: int) -> str:
    """The beginning of a text that fits ``size`` bytes of UTF-8, with no character cut in two."""
    return value.encode()[:size].decode("utf-8", "ignore")


def shown_text(low: int, high: int) -> Read:
    """A text of ``low`` to ``high`` bytes of UTF-8 that shows all that it is (``is_shown``)."""
    bounded = text(low, high)

    def read(value: Any, where: str) -> str:
        found: str = bounded(value, where)
        if not is_shown(found):
            raise MalformedMessage(f"{where} holds what cannot be seen, or begins or ends with a blank")
        return found

    return read


def sentence(low: int, high: int) -> Read:
    """A text of ``low`` to ``high`` bytes of UTF-8 that says why; what cannot be seen in it comes escaped."""
    bounded = text(low, high)
    return lambda value, where: shown(bounded(value, where))


def is_shown(text: str) -> bool:
    """Does a text show all that it is: no control, no direction, nothing without a width, no blank at its ends?"""
    return shown(text) == text == text.strip()


def shown(text: str) -> str:
    """``text`` with what cannot be seen, or changes how the rest is seen, as escapes of Python."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        c if c.isprintable() and not _UNSEEN.match(c) else c.encode("unicode_escape", "replace").decode() for c in text
    )


def choice(*words: str) -> Read:
    """One of these texts."""

    def read(value: Any, where: str) -> str:
        if not isinstance(value, str) or value not in words:
            raise MalformedMessage(f"{where} is none of {', '.join(words)}")
        return value

    return read


def number(low: float = -math.inf, high: float = math.inf) -> Read:
    """A finite float in [low, high]."""

    def read(value: Any, where: str) -> float:
        if not isinstance(value, float) or not math.isfinite(value) or not low <= value <= high:
            raise MalformedMessage(f"{where} is not a number from {low:g} to {high:g}")
        return value

    return read


def many(item: Read, low: int, high: int) -> Read:
    """An array of ``low`` to ``high`` items, as a tuple."""

    def read(value: Any, where: str) -> tuple[Any, ...]:
        if not isinstance(value, list) or not low <= len(value) <= high:
            raise MalformedMessage(f"{where} is not an array of {low} to {high} items")
        return tuple(item(v, f"{where}[{i}]") for i, v in enumerate(value))

    return read


def part(cls: type) -> Read:
    """A map inside a message: another dataclass of such fields, without a kind of its own."""
    return lambda value, where: from_map(cls, value, where)


class Field(NamedTuple):
    """A field of a dataclass, as its annotation says."""

    name: str
    key: Key
    optional: bool


@functools.cache
def fields_of(cls: Any) -> tuple[Field, ...]:
    """The table of a dataclass whose fields are ``Annotated[..., Key(...)]``."""
    hints = get_type_hints(cls, include_extras=True)
    return tuple(
        Field(f.name, hints[f.name].__metadata__[0], type(None) in getattr(hints[f.name].__origin__, "__args__", ()))
        for f in fields(cls)
    )


def to_map(message: Any) -> dict[int, Any]:
    """The fields of ``message`` under their keys; one that is None is left out."""
    body: dict[int, Any] = {}
    for field in fields_of(cast(Hashable, type(message))):
        value = getattr(message, field.name)
        if value is not None:
            body[field.key.number] = to_map(value) if hasattr(value, "__dataclass_fields__") else _plain(value)
    return body


def from_map(cls: type[M], body: Any, where: str) -> M:
    """``body`` as a ``cls``. Raises: MalformedMessage, naming the key that is absent, unknown, or breaks its rule."""
    if not isinstance(body, Mapping):
        raise MalformedMessage(f"{where} is not a map")
    table = fields_of(cast(Hashable, cls))
    known = {field.key.number for field in table}
    for key in body:
        if key not in known and not (isinstance(key, int) and key < 0):
            raise MalformedMessage(f"{where}: unknown key {key}")
    values: dict[str, Any] = {}
    for field in table:
        if field.key.number in body:
            values[field.name] = field.key.read(body[field.key.number], f"{where}.{field.name}")
        elif not field.optional:
            raise MalformedMessage(f"{where}.{field.name} is absent")
    return cls(**values)


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, tuple) else value

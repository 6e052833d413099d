# SPDX-License-Identifier: Apache-2.0
"""Every exception raised on purpose: what is wrong, what to do about it, and the exit code it ends a command with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

LINE = 390  # characters of a fault; a command's line begins with "fl-tiny: " besides
NAMES, NAME, ROOM = 12, 48, 160  # names in a list, characters of each, and of all


def named(names: Sequence[str], most: int = NAMES) -> str:
    """``names`` as a list for a message: the first few, each cut short, and how many more there are."""
    shown: list[str] = []
    for name in names[:most]:
        shown.append(name if len(name) <= NAME else f"{name[: NAME - 1]}…")
        if sum(map(len, shown)) > ROOM:
            break
    return ", ".join(shown) + (f" and {len(names) - len(shown)} more" if len(shown) < len(names) else "")


class FlTinyError(Exception):
    """A fault with an owner. ``what`` names value, place and rule; ``hint`` says what the reader can do.

    ``code`` is our problem code (protocol/codepoints.py), for a fault that is told to a peer; 0 if none.
    """

    EXIT: ClassVar[int] = 70
    LINE: ClassVar[int] = LINE

    def __init__(self, what: str, hint: str = "", code: int = 0) -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint
        self.code = code

    def __str__(self) -> str:
        """One line: what a name brings along that cannot be printed is escaped, too long a text loses its middle."""
        hint = f" ({self.hint})" if self.hint else ""
        what, room = self.what, max(80, self.LINE - len(hint))
        if len(what) > room:
            what = f"{what[: room // 2]}…{what[len(what) - room + room // 2 + 1 :]}"
        text = (what + hint).replace("\n", " ")
        return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class ConfigError(FlTinyError):
    """The operator's: a setting, or a command that does not fit the state of DIR. Nothing was started."""

    EXIT = 78  # EX_CONFIG, sysexits.h
    LINE = 1 << 16  # all faults of a file of settings


class ModelError(FlTinyError):
    """The file's: a .tflite that is damaged or cannot be trained. The old model stays."""

    EXIT = 65  # EX_DATAERR


class DataError(FlTinyError):
    """The file's: samples, labels, a database or a backup that are damaged, missing or do not fit."""

    EXIT = 65


class EnvironmentFault(FlTinyError):
    """The machine's or the network's: no answer, no space, no library. Retried with back-off by a daemon."""

    EXIT = 69  # EX_UNAVAILABLE


class RemoteError(FlTinyError):
    """The peer's: it refused, or sent what the protocol does not allow."""

    EXIT = 69


class MalformedMessage(RemoteError):
    """A peer's bytes that are not a message of the protocol (problem code 2)."""

    def __init__(self, what: str) -> None:
        super().__init__(what, code=2)


class Conflict(RemoteError):
    """A peer's wish that contradicts what is stored (problem code 9): nothing of it has been written."""

    def __init__(self, what: str) -> None:
        super().__init__(what, code=9)


class OutOfTurn(AssertionError):
    """Ours: a driver sent an event that its state machine has no row for. The machine is unchanged."""

# SPDX-License-Identifier: Apache-2.0
"""Every exception raised on purpose: what is wrong, what to do about it, and the exit code it ends a command with."""

from __future__ import annotations

from typing import ClassVar


class FlTinyError(Exception):
    """A fault with an owner. ``what`` names value, place and rule; ``hint`` says what the reader can do."""

    EXIT: ClassVar[int] = 70

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.what} ({self.hint})" if self.hint else self.what


class ConfigError(FlTinyError):
    """The operator's: a setting, or a command that does not fit the state of DIR. Nothing was started."""

    EXIT = 78  # EX_CONFIG, sysexits.h


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
    """The peer's: it refused, or sent what the protocol does not allow. ``code`` is our problem code, 0 if none."""

    EXIT = 69

    def __init__(self, what: str, hint: str = "", code: int = 0) -> None:
        super().__init__(what, hint)
        self.code = code


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

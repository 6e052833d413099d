# SPDX-License-Identifier: Apache-2.0
"""What cannot be used of a source of samples, file by file or row by row: one message of all, or passed over."""

from __future__ import annotations

import os
from pathlib import Path

from fl_tiny.errors import DataError, named

MAX_KINDS = 32  # of faults that are told apart
ROOM = 240  # characters of a message for them
SHOWN = 3  # files of each


class Faults:
    """The faults of one source."""

    def __init__(self, where: Path = Path(), *, skip: bool = False, unit: str = "files") -> None:
        """where: the source.   skip: samples are used without what has faults.   unit: what has them."""
        self.where, self.skip, self.unit = where, skip, unit
        self.total = 0  # units of the source, good and bad
        self._names: set[str] = set()
        self._kinds: dict[str, list[str]] = {}
        self._counts: dict[str, int] = {}
        self._first: DataError | None = None

    def __len__(self) -> int:
        return len(self._names)

    @property
    def end_it(self) -> bool:
        """True when there are faults that nobody wants passed over."""
        return bool(self._names) and not self.skip

    def add(self, what: Path | str, fault: DataError) -> None:
        """Note that ``what``, a file or a row, cannot be used; more faults of it count no more."""
        name = os.path.relpath(what, self.where) if isinstance(what, Path) else what
        if name in self._names:
            return
        self._names.add(name)
        self._first = self._first or fault
        kind = fault.what.replace(f"{what}: ", "").replace(f"{what} ", "")
        if kind not in self._kinds and len(self._kinds) >= MAX_KINDS:
            kind = "other faults"
        self._counts[kind] = self._counts.get(kind, 0) + 1
        if self._counts[kind] <= SHOWN:
            self._kinds.setdefault(kind, []).append(name)

    def check(self, good: int) -> None:
        """Raises: DataError with all faults unless they are passed over and some ``good`` samples are left."""
        if self._first is None or (self.skip and good):
            return
        if len(self) == 1:
            raise self._first
        raise DataError(
            f"{self.where}: {self.summary()}",
            hint="none is left" if self.skip else "--skip-bad goes on without them",
        )

    def summary(self) -> str:
        """How many of how many cannot be used, and why, the most frequent fault first; empty without faults."""
        if not self._names:
            return ""
        text, told = f"{len(self)} of {self.total} {self.unit} cannot be used", 0
        for kind in sorted(self._counts, key=lambda kind: -self._counts[kind]):
            count, names = self._counts[kind], self._kinds[kind]
            part = f"{kind[:100]} ({named([*names, *[''] * (count - len(names))], SHOWN)})"
            if told and len(text) + len(part) > ROOM:
                break
            text, told = f"{text}{'; ' if told else ': '}{part}", told + count
        return text if told == len(self) else f"{text}; and {len(self) - told} others"

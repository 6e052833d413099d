# SPDX-License-Identifier: Apache-2.0
"""What became of the spool's files that still lie there, remembered beside the store: none is tried or learnt twice."""

from __future__ import annotations

import json
import os
from pathlib import Path

from fl_tiny.errors import EnvironmentFault

NAME = "source.json"  # below a device's DIR
MOST = 1000
LIMIT = 2 << 20  # bytes
DIED = "the service ended while it looked at this file"


class Ends:
    """By the name ``once`` of each file: why it is no sample, or None when it is learnt.

    The file is written in place and not synced: it outlives the process and costs the card nothing a sample. A power
    cut may lose it, and then the file is tried once more.
    """

    def __init__(self, directory: Path) -> None:
        """Raises: EnvironmentFault."""
        self._path = directory / NAME
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self._handle = os.open(self._path, flags, 0o600)
            found = json.loads(os.pread(self._handle, LIMIT, 0) or b"{}")
            self._ends: dict[str, str | None] = {str(k): v and str(v) for k, v in dict(found).items()}
        except OSError as fault:
            raise EnvironmentFault(f"{self._path}: {fault.strerror}", hint="is there space?") from fault
        except (ValueError, TypeError, RecursionError):
            self._ends = {}  # torn by a power cut

    def __contains__(self, once: str) -> bool:
        return once in self._ends

    def __getitem__(self, once: str) -> str | None:
        return self._ends[once]

    def begin(self, once: str) -> None:
        """A file is going to be tried: should nothing more be noted, it was deadly. Raises: EnvironmentFault."""
        self.note(once, DIED)

    def note(self, once: str, end: str | None) -> None:
        """What became of a file. Raises: EnvironmentFault."""
        self._ends[once] = end and end[:1000]
        while len(self._ends) > MOST:
            del self._ends[next(iter(self._ends))]
        self._write()

    def forget(self, once: str) -> None:
        """A file is gone, or to be tried again. Raises: EnvironmentFault."""
        if self._ends.pop(once, self) is not self:
            self._write()

    def close(self) -> None:
        """Close the file."""
        os.close(self._handle)

    def _write(self) -> None:
        data = json.dumps(self._ends).encode()
        try:
            os.pwrite(self._handle, data, 0)
            os.ftruncate(self._handle, len(data))
        except OSError as fault:
            raise EnvironmentFault(f"{self._path}: {fault.strerror}", hint="is there space?") from fault

# SPDX-License-Identifier: Apache-2.0
"""The learner as the service sees it: started when there is work, bounded in time, ended when there is none."""

from __future__ import annotations

import select
import subprocess
import sys
import time
from pathlib import Path

from fl_tiny.device.pipes import Header, receive, send
from fl_tiny.errors import DataError, EnvironmentFault

ANSWER_S = 120.0  # guess: the largest file on the slowest board; the first answer includes loading the runtime
IDLE_S = 30.0  # then its memory is given back: 60 to 100 MiB (docs/sources.md)


class Inference:
    """One child at most. Its methods block; the caller runs one at a time."""

    def __init__(self, directory: Path, answer_s: float = ANSWER_S) -> None:
        self._directory, self._answer_s = directory, answer_s
        self._child: subprocess.Popen[bytes] | None = None
        self._used = 0.0

    def ask(self, header: Header, body: bytes = b"") -> tuple[Header, bytes]:
        """The child's answer. Raises: DataError when it dies of what it was given; EnvironmentFault for what passes."""
        if self._child is not None and self._child.poll() is not None:
            self.end()  # it died while it had nothing to do, of nothing that was given
        if self._child is None:
            self._start()
        try:
            return self._asked(header, body)
        except (EOFError, OSError) as gone:  # it had answered before: so it died of this
            raise DataError(f"the inference process died of it ({_ending(self.end())})") from gone

    def _asked(self, header: Header, body: bytes) -> tuple[Header, bytes]:
        """Raises: EOFError, OSError when the child is gone."""
        child = self._child
        assert child is not None
        assert child.stdin is not None
        assert child.stdout is not None
        self._used = time.monotonic()
        send(child.stdin, header, body)
        if not select.select([child.stdout], [], [], self._answer_s)[0]:
            self.end()
            raise DataError(f"no answer to it in {self._answer_s:.0f} s")
        answer, data = receive(child.stdout)
        self._used = time.monotonic()
        if "fault" in answer:
            raise (EnvironmentFault if answer["again"] else DataError)(answer["fault"])
        return answer, data

    def rest(self) -> None:
        """End a child that has had nothing to do for a while."""
        if self._child is not None and time.monotonic() - self._used > IDLE_S:
            self.end()

    def end(self) -> int:
        """End the child, now. Returns its exit code, 0 for none."""
        child, self._child = self._child, None
        if child is None:
            return 0
        try:
            code = child.wait(0.5)  # one that died says of what
        except subprocess.TimeoutExpired:
            child.kill()
            code = child.wait()
        for end in (child.stdin, child.stdout):
            if end is not None:
                try:
                    end.close()
                except OSError:
                    continue
        return code

    def _start(self) -> None:
        """Start a child that has its device open. Raises: EnvironmentFault."""
        command = [sys.executable, "-m", "fl_tiny.device.sources.learner", str(self._directory)]
        try:
            self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        except OSError as fault:
            raise EnvironmentFault(f"no inference process: {fault.strerror}") from fault
        try:
            self._asked({"op": "hello"}, b"")
        except (EOFError, OSError, DataError) as fault:
            why = str(fault) or _ending(self.end())
            raise EnvironmentFault(f"the inference process does not start: {why}", "its log says why") from fault


def _ending(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit {code}"

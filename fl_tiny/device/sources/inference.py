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
        child = self._child or self._start()
        self._used = time.monotonic()
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            send(child.stdin, header, body)
            if not select.select([child.stdout], [], [], self._answer_s)[0]:
                self.end()
                raise DataError(f"no answer to it in {self._answer_s:.0f} s")
            answer, data = receive(child.stdout)
        except (EOFError, OSError) as gone:
            code = self.end()
            if code < 0:
                raise DataError(f"the inference process died of it (signal {-code})") from gone
            raise EnvironmentFault(f"the inference process ended ({code})", hint="its log says why") from gone
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

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "fl_tiny.device.sources.learner", str(self._directory)]
        try:
            self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        except OSError as fault:
            raise EnvironmentFault(f"no inference process: {fault.strerror}") from fault
        return self._child

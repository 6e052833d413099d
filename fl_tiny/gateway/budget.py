# SPDX-License-Identifier: Apache-2.0
"""What one member may cost a gateway beyond its requests: costly requests, checks that fail, and log lines."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections import Counter

from fl_tiny.errors import RemoteError
from fl_tiny.net.coap import Buckets

log = logging.getLogger(__name__)

COSTLY_PER_S, COSTLY = (
    50.0,
    200,
)  # requests that verify a signature, write, or allot memory (a fleet alone: 40 a second)
FAILED_PER_S, FAILED = 0.1, 5  # bodies that were put together, unpacked and checked in vain
LINES, LINES_S = 10, 60.0  # of one kind that one member may cause in so long
MEMBER: contextvars.ContextVar[str] = contextvars.ContextVar("member", default="")  # whose request is handled


class TooMuch(RemoteError):
    """A member asks for more than its share of the gateway; there is more in ``wait_s``."""

    def __init__(self, wait_s: float) -> None:
        super().__init__("more than a member's share of this gateway")
        self.wait_s = wait_s


class Shares:
    """Each member's share of what is costly; ``now`` is ``time.monotonic()``."""

    def __init__(self) -> None:
        self._costly = Buckets(COSTLY_PER_S, COSTLY)
        self._failed = Buckets(FAILED_PER_S, FAILED)

    def costly(self, member: str, now: float) -> None:
        """A costly request begins. Raises: TooMuch."""
        _take(self._costly, member, now)

    def check(self, member: str, now: float) -> None:
        """A body is going to be checked; ``passed`` must follow when it is good. Raises: TooMuch."""
        _take(self._failed, member, now)

    def passed(self, member: str, now: float) -> None:
        """The body that was checked is good: it costs nothing of the share."""
        self._failed.take(member, now, cost=-1.0)


class Quiet(logging.Filter):
    """Lets a member cause LINES log lines of each kind a minute; the rest it counts, in one line a minute a member."""

    def __init__(self) -> None:
        super().__init__()
        self._lines = Buckets(LINES / LINES_S, LINES)
        self._left_out: Counter[str] = Counter()
        self._loop = asyncio.get_running_loop()

    def filter(self, record: logging.LogRecord) -> bool:
        """Is the line written?"""
        member = MEMBER.get()
        if not member or not self._lines.take((member, record.msg), time.monotonic()):
            return True
        if not self._left_out:
            self._loop.call_later(LINES_S, self._tell, context=contextvars.Context())
        self._left_out[member] += 1
        return False

    def _tell(self) -> None:
        left_out, self._left_out = self._left_out, Counter()
        for member, lines in left_out.items():
            log.warning("log lines left out member=%s lines=%d seconds=%.0f", member[:8], lines, LINES_S)


def _take(buckets: Buckets, member: str, now: float) -> None:
    wait_s = buckets.take(member, now)
    if wait_s:
        raise TooMuch(wait_s)

# SPDX-License-Identifier: Apache-2.0
"""How long a busy gateway is waited for: as long as its 5.03 says, not all at once, and not for ever."""

from __future__ import annotations

import random

from fl_tiny.errors import EnvironmentFault
from fl_tiny.net.messages import Response

BUSY_S = 120.0  # how long 5.03 is borne, when nothing else is said
MAX_AGE_S = 60  # of an answer that does not say it, RFC 7252 section 5.10.5
LEAST_WAIT_S = 0.5
SPREAD = 1.5  # a wait is between Max-Age and so many times that


class Patience:
    """With one peer, for one request or one body; ``now`` is a clock that only goes forward."""

    def __init__(self) -> None:
        self._since: float | None = None

    def wait_s(self, answer: Response, now: float) -> float:
        """The seconds to wait until the same is asked again; 0.0 for an answer that does not ask for patience.

        Raises: EnvironmentFault, when nothing but 5.03 came for BUSY_S.
        """
        if answer.code != "5.03":
            self._since = None
            return 0.0
        self._since = now if self._since is None else self._since
        if now >= self._since + BUSY_S:
            raise EnvironmentFault(f"the gateway has been busy for {BUSY_S:.0f} s (5.03)", "what does its log say?")
        wait_s = MAX_AGE_S if answer.max_age is None else answer.max_age
        return min(max(wait_s, LEAST_WAIT_S) * random.uniform(1.0, SPREAD), BUSY_S)  # noqa: S311 - not all at once

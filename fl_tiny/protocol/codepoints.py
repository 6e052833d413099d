# SPDX-License-Identifier: Apache-2.0
"""Numbers that stand for something in a message: answers, states, encodings, problem codes."""

from __future__ import annotations

from enum import IntEnum, IntFlag


class Said(IntEnum):
    """A device's answer to an offer. CDDL: ``answer`` key 2."""

    JOIN = 0
    NO_BUDGET = 1
    TOO_FEW_SAMPLES = 2
    NO_BETTER = 3
    LATE = 4
    NOT_ALLOWED = 5


class Lack(IntFlag):
    """What a board lacks for training. CDDL: ``heartbeat`` key 3."""

    MEMORY = 1
    TEMPERATURE = 2
    BATTERY = 4
    LOAD = 8

    def names(self) -> list[str]:
        """For people, in a fixed order."""
        return [flag.name.lower() for flag in Lack if flag in self and flag.name]


class Status(IntEnum):
    """What became of an update. CDDL: ``status``."""

    ACCEPTED = 0
    DUPLICATE = 1
    LATE = 2
    SUPERSEDED = 3
    REJECTED = 4


class Encoding(IntEnum):
    """How a change travels (protocol/codes.py). CDDL: ``enc``."""

    INT8 = 0
    INT4 = 1
    TOPK = 2


DEFLATED = 3  # a delta's encoding: int4, deflated
COARSE = 4  # a delta's encoding: the same, and what a code of each tensor counts
BY_LINK = 3  # an offer's encoding: the device takes int8 on a good link, int4 on a bad one


class Code(IntEnum):
    """Our problem codes (RFC 9290 body, key 65001); docs/protocol.md lists what each means."""

    NONE = 0
    VERSION = 1
    SCHEMA = 2
    SHAPE = 3
    NOT_FINITE = 4
    SIGNATURE = 6
    LATE = 7
    STALE_BASE = 8
    CONFLICT = 9
    REVOKED = 10
    QUARANTINED = 11
    QUOTA = 12
    PRIVACY = 14
    PHASE = 15
    DOWNGRADE = 17
    PAIRING = 18
    RESTORED = 19
    SUMS = 20
    CANARY = 21

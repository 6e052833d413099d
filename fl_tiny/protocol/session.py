# SPDX-License-Identifier: Apache-2.0
"""A device's state machine for a round: events in, actions out.

Pure: no clock, no socket. ``state`` says what the driver is to do: in TRAINING a child trains, in SENDING what the
journal holds is uploaded. ``OutOfTurn`` means that our own driver erred.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from fl_tiny.errors import OutOfTurn
from fl_tiny.protocol.consent import Reply
from fl_tiny.protocol.wire import Code, Said, Status

KEEP_ON = frozenset({Code.LATE, Code.STALE_BASE, Code.PHASE})  # refusals after which the change is kept for later


class State(str, Enum):
    """Where the device stands in a round."""

    IDLE = "idle"
    JOINING = "joining"
    TRAINING = "training"
    SENDING = "sending"


# ---- events -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OfferSeen:
    """The gateway offers a round, and this device would answer so (protocol/consent.py)."""

    reply: Reply


@dataclass(frozen=True, slots=True)
class JoinTaken:
    """The gateway took our answer."""


@dataclass(frozen=True, slots=True)
class Trained:
    """The training child has given an update, and it is in the journal."""


@dataclass(frozen=True, slots=True)
class TrainingFailed:
    """The training child ended without one. code: the problem code of what it would not do, 0 for none."""

    code: int = 0


@dataclass(frozen=True, slots=True)
class Receipted:
    """The gateway's receipt."""

    status: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The gateway refused our answer or update with this problem code."""

    code: int


Event = OfferSeen | JoinTaken | Trained | TrainingFailed | Receipted | Refused

# ---- actions ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SendAnswer:
    """Tell the gateway whether we take part. code: the problem code that goes with it, 0 for none."""

    said: Said
    code: int = 0


@dataclass(frozen=True, slots=True)
class Settle:
    """The round is over for us; delivered: the codes count, and only the residual goes on. Not: the whole change
    does, or nothing when ``drop``."""

    delivered: bool
    drop: bool = False


Action = SendAnswer | Settle


def _offered(event: OfferSeen) -> tuple[State, list[Action]]:
    reply = event.reply
    state = State.JOINING if reply.said is Said.JOIN else State.IDLE
    return state, [SendAnswer(reply.said, reply.code)]


def _failed(event: TrainingFailed) -> tuple[State, list[Action]]:
    said = Said.NOT_ALLOWED if event.code == Code.PRIVACY else Said.NO_BUDGET
    return State.IDLE, [SendAnswer(said, event.code)]


def _receipted(event: Receipted) -> tuple[State, list[Action]]:
    counted = event.status in (Status.ACCEPTED, Status.DUPLICATE)
    return State.IDLE, [Settle(delivered=counted, drop=event.status == Status.REJECTED)]


def _refused(event: Refused) -> tuple[State, list[Action]]:
    return State.IDLE, [Settle(delivered=False, drop=event.code not in KEEP_ON)]


Row = Callable[..., "tuple[State, list[Action]]"]

NEXT: Mapping[tuple[State, type], Row] = {
    (State.IDLE, OfferSeen): _offered,
    (State.JOINING, JoinTaken): lambda _: (State.TRAINING, []),
    (State.JOINING, Refused): lambda _: (State.IDLE, []),
    (State.TRAINING, Trained): lambda _: (State.SENDING, []),
    (State.TRAINING, TrainingFailed): _failed,
    (State.SENDING, Receipted): _receipted,
    (State.SENDING, Refused): _refused,
}


class Session:
    """A device's side of one round after the other. ``state`` may be SENDING at the start: the journal says so."""

    def __init__(self, state: State = State.IDLE) -> None:
        self.state = state

    def handle(self, event: Event) -> list[Action]:
        """What the caller must now do, in order. Raises: OutOfTurn, with the state unchanged."""
        row = NEXT.get((self.state, type(event)))
        if row is None:
            raise OutOfTurn(self.state, event)
        self.state, actions = row(event)
        return actions

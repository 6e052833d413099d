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
from fl_tiny.protocol.wire import Code, Offer, Said, Status

MIN_SAMPLES = 10  # a device with fewer declines: its update would be noise, and show its samples
MIN_CLASSES = 2
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
    """The gateway offers a round; what this device could bring. held: how many of the samples are held out.

    classes: how many it has samples of; None in a fleet that learns labels or values.
    able: can the board spare what training takes?
    """

    offer: Offer
    samples: int
    held: int
    classes: int | None
    able: bool = True


@dataclass(frozen=True, slots=True)
class JoinTaken:
    """The gateway took our answer."""


@dataclass(frozen=True, slots=True)
class Trained:
    """The training child has given an update, and it is in the journal."""


@dataclass(frozen=True, slots=True)
class TrainingFailed:
    """The training child ended without one."""


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
    """Tell the gateway whether we take part."""

    said: Said


@dataclass(frozen=True, slots=True)
class Settle:
    """The round is over for us; delivered: the codes count, and only the residual goes on. Not: the whole change
    does, or nothing when ``drop``."""

    delivered: bool
    drop: bool = False


Action = SendAnswer | Settle


def lacking(samples: int, held: int, classes: int | None) -> str | None:
    """Why a device with these samples trains for no round, in words; None when it does. Arguments: as ``OfferSeen``."""
    if samples < MIN_SAMPLES:
        return f"{samples} samples are stored, training takes {MIN_SAMPLES} or more"
    if classes is not None and classes < MIN_CLASSES:
        return f"samples of {classes} class are stored, training takes {MIN_CLASSES} or more classes"
    return "every sample is held out" if held >= samples else None


def _offered(event: OfferSeen) -> tuple[State, list[Action]]:
    if not event.able:
        return State.IDLE, [SendAnswer(Said.NO_BUDGET)]
    gram = event.offer.gram
    if gram is not None:
        enough = event.samples - event.held >= gram.min_samples  # sums of a single class are of use
    else:
        enough = lacking(event.samples, event.held, event.classes) is None
    if not enough:
        return State.IDLE, [SendAnswer(Said.TOO_FEW_SAMPLES)]
    return State.JOINING, [SendAnswer(Said.JOIN)]


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
    (State.TRAINING, TrainingFailed): lambda _: (State.IDLE, [SendAnswer(Said.NO_BUDGET)]),
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

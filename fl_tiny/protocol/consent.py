# SPDX-License-Identifier: Apache-2.0
"""What a device lets leave it: an offer, the owner's floors and what left before in, an answer with its reason out.

The gateway's plan can ask for more samples than the floors do, never for fewer (docs/protocol.md, "Floors").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fl_tiny.protocol.wire import U16, Code, Offer, Said

MIN_SAMPLES = 10  # an update of fewer is noise, and shows its samples
MIN_CLASSES = 2
MIN_CLASS = 8  # samples of a class in sums; the moments of a class with one sample are that sample
MOST_SUMMED = U16  # samples in one device's sums (learn/gram.py)
MOST_BODIES = 256  # that leave from one base head


@dataclass(frozen=True, slots=True)
class Floors:
    """What a board's owner allows; no gateway changes it.

    rounds: take part in rounds.   sums: give exact sums in the clear.   metrics: tell how well heads do here.
    min_samples: fewest samples of an update or of sums.   min_class: fewest samples of a class in sums.
    """

    rounds: bool = True
    sums: bool = True
    metrics: bool = True
    min_samples: int = MIN_SAMPLES
    min_class: int = MIN_CLASS


@dataclass(frozen=True, slots=True)
class Stock:
    """What a device has. held: held-out ones among the samples.   able: the board can spare what training takes.

    classes: how many classes there are samples of; None in a fleet that learns labels or values.
    summed: samples a class that sums would be of: not held out, none younger than those of earlier sums.
    """

    samples: int
    held: int
    classes: int | None
    summed: Mapping[int, int]
    able: bool = True


@dataclass(frozen=True, slots=True)
class Past:
    """What has left before. same: a body for this very round.   bodies: how many from this base head.

    summed: how many samples the sums for this model were of; None: no sums have left.
    """

    same: bool = False
    bodies: int = 0
    summed: int | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """What to answer. code: the problem code that goes with it, 0 for none.   why: for the board's owner."""

    said: Said
    code: int = 0
    why: str = ""


def reply(offer: Offer, floors: Floors, stock: Stock, past: Past) -> Reply:
    """The answer to an offer that starts from the head held."""
    refusal = _not_allowed(offer, floors, stock, past)
    if refusal:
        return Reply(Said.NOT_ALLOWED, Code.PRIVACY, refusal)
    if not stock.able:
        return Reply(Said.NO_BUDGET)
    if offer.gram is None:
        why = lacking(stock.samples, stock.held, stock.classes, floors)
    else:  # sums of a single class are of use
        why = "" if stock.samples - stock.held >= offer.gram.min_samples else "too few samples for an exact start"
    return Reply(Said.TOO_FEW_SAMPLES, why=why) if why else Reply(Said.JOIN)


def lacking(samples: int, held: int, classes: int | None, floors: Floors) -> str:
    """Why a device with these samples trains for no round, in words; empty when it does. Arguments: as ``Stock``."""
    if samples < floors.min_samples:
        return f"{samples} samples are stored, training takes {floors.min_samples} or more"
    if classes is not None and classes < MIN_CLASSES:
        return f"samples of {classes} class are stored, training takes {MIN_CLASSES} or more classes"
    return "every sample is held out" if held >= samples else ""


def summable(summed: Mapping[int, int], floors: Floors) -> tuple[set[int], int]:
    """Which classes go into sums, and of how many samples the sums then are.

    All samples of a class, or none: a class with few of them would show each.
    """
    classes = {label for label, count in summed.items() if count >= floors.min_class}
    return classes, min(sum(summed[label] for label in classes), MOST_SUMMED)


def sums_refusal(offer: Offer, count: int, floors: Floors) -> str:
    """Why sums of ``count`` samples would show single ones; empty when they would not.

    Sums of width p say p + 1 numbers of each pair: 84 samples at p = 96 were found again bit for bit in seconds.
    """
    assert offer.gram is not None
    least = max(2 * (offer.gram.width + 1), floors.min_samples)
    if count < least:
        return f"sums of {count} samples would show them; {least} are the fewest"
    if offer.max_samples < count:
        return f"the plan takes {offer.max_samples} of {count} samples, and a choice of samples would show single ones"
    return ""


def _not_allowed(offer: Offer, floors: Floors, stock: Stock, past: Past) -> str:
    if not floors.rounds:
        return "this board takes part in no rounds"
    if past.same:
        return "a body for this round has left this board before"
    if past.bodies >= MOST_BODIES:
        return f"{past.bodies} bodies have left this board from one head"
    return "" if offer.gram is None else _no_sums(offer, floors, stock, past)


def _no_sums(offer: Offer, floors: Floors, stock: Stock, past: Past) -> str:
    if not floors.sums:
        return "this board gives no sums"
    count = summable(stock.summed, floors)[1]
    if past.summed not in (None, count):
        return f"sums of {past.summed} samples have left this board; others of the same model would show what differs"
    return sums_refusal(offer, count, floors)

# SPDX-License-Identifier: Apache-2.0
"""What an operator should be told of a fleet's learning: a head that does worse, a device that stands out."""

from __future__ import annotations

import math
from statistics import median
from typing import NamedTuple

from fl_tiny.gateway.store import Store
from fl_tiny.protocol.wire import Status

LEAST_JUDGED = 20  # held-out samples; of fewer nobody can tell
LOOKED_BACK, COMPARED, LEAST_ROUNDS = 20, 5, 3  # heads; of a device's rounds among them the last, and at least so many
STANDS_OUT = 3.0  # robust standard deviations; honest devices stayed below 2.3 (protocol/aggregate.py)
CERTAIN = 2.33  # standard errors: one in a hundred by chance
LEAST_FALL = 0.02  # of accuracy


class Notice(NamedTuple):
    """about: what stays the same while the sentence's numbers change."""

    about: str
    text: str


def notices(store: Store) -> list[Notice]:
    """Sentences for the operator, each with a way out."""
    names = {device.did: device.name for device in store.devices()}
    out = [
        Notice(
            did.hex(),
            f"{names.get(did) or did.hex()} stands out by {score:.1f} times the spread of others: are its labels right?"
            " fl-tiny gateway revoke takes it out",
        )
        for did, score in outliers(store).items()
        if score > STANDS_OUT
    ]
    fall = _fall(store)
    return [*([fall] if fall else []), *out]


def outliers(store: Store) -> dict[bytes, float]:
    """How far each device stands out: the median of its last five rounds of training, else by its sums."""
    lately: dict[bytes, list[float]] = {}
    query = (
        "SELECT ledger.did, outlier FROM ledger JOIN round USING(rid) WHERE kind='train' AND outlier IS NOT NULL"
        " AND consumed_by>(SELECT max(number) FROM version)-? ORDER BY consumed_by DESC"
    )
    for did, score in store.rows(query, LOOKED_BACK):
        lately.setdefault(did, []).append(score)
    trained = {did: median(scores[:COMPARED]) for did, scores in lately.items() if len(scores) >= LEAST_ROUNDS}
    return dict(store.rows("SELECT did, outlier FROM gram WHERE outlier IS NOT NULL")) | trained


def _fall(store: Store) -> Notice | None:
    """A notice when the head that the last round began with does worse than the one before, on the same devices."""
    judged = "SELECT rid, base FROM round WHERE state='published' AND kind IN ('train', 'exact') ORDER BY number DESC"
    last = store.rows(f"{judged} LIMIT 2")
    if len(last) < 2:
        return None
    both = (
        "SELECT sum(a.held), sum(a.held*a.accuracy), sum(b.held), sum(b.held*b.accuracy) FROM ledger a"
        " JOIN ledger b USING(did) WHERE a.rid=? AND b.rid=? AND a.status=?3 AND b.status=?3"
    ).replace("a.rid=? AND b.rid=?", "a.rid=?1 AND b.rid=?2")
    (n, right, n_before, right_before) = store.rows(both, last[0][0], last[1][0], Status.ACCEPTED.value)[0]
    if min(n or 0, n_before or 0) < LEAST_JUDGED:
        return None
    now, before = right / n, right_before / n_before
    share = (right + right_before) / (n + n_before)
    chance = CERTAIN * math.sqrt(share * (1 - share) * (1 / n + 1 / n_before))
    if before - now <= max(chance, LEAST_FALL):
        return None
    return Notice(
        f"head {last[0][1]}",
        f"head {last[0][1]} is right of {now:.2f} of {n} held-out samples, head {last[1][1]} was of {before:.2f}"
        f" on the same devices: fl-tiny gateway devices shows who stands out",
    )

# SPDX-License-Identifier: Apache-2.0
"""Group commit: updates and answers that arrive together share one transaction, and so one wait for the disk."""

from __future__ import annotations

import asyncio
import contextvars
import copy
from dataclasses import dataclass, field

from fl_tiny.errors import Conflict, EnvironmentFault, FlTinyError, RemoteError
from fl_tiny.gateway.service import Gateway
from fl_tiny.gateway.tables import Entry
from fl_tiny.protocol.rounds import Action, Answered, Submitting, raise_refusal
from fl_tiny.protocol.wire import Code, Status

GATHER_S = 0.02  # how long the first of a batch waits for others; one FULL commit takes a quarter of it on an SSD


@dataclass(slots=True)
class _Waiting:
    """An update and who waits for its COMMIT."""

    rid: bytes
    entry: Entry
    done: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Commits:
    """What waits for the next transaction of a gateway's ledger. Nothing is in memory before it is on the disk."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._updates: dict[bytes, _Waiting] = {}  # by device
        self._answers: list[tuple[Answered, asyncio.Future[None]]] = []
        self._timer: asyncio.TimerHandle | None = None

    async def receive(self, rid: bytes, entry: Entry) -> Status:
        """Put an update into the ledger and the sum; it is on the disk when this returns.

        Raises: RemoteError when it is refused; EnvironmentFault when nothing could be written.
        """
        waiting, status = self._updates.get(entry.did), Status.DUPLICATE
        if waiting is None:
            waiting, status = _Waiting(rid, entry), Status.ACCEPTED
            self._updates[entry.did] = waiting
            self._soon()
        elif waiting.entry.signed != entry.signed:
            raise RemoteError("this device has delivered other bytes in this round", code=Code.CONFLICT)
        await asyncio.shield(waiting.done)
        return status

    async def answer(self, event: Answered) -> None:
        """Keep a device's answer; on the disk when this returns.

        Raises: RemoteError when it does not fit the round; EnvironmentFault when nothing could be written.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._answers.append((event, done))
        self._soon()
        await done

    def flush(self) -> None:
        """Write what waits: first the updates, then the answers, since an answer may close the round."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        updates, self._updates = list(self._updates.values()), {}
        answers, self._answers = self._answers, []
        try:
            self._flush_updates(updates)
            self._flush_answers(answers)
        except Exception as fault:  # ours: the handlers that wait raise it, and the daemon ends
            for done in (*(one.done for one in updates), *(done for _, done in answers)):
                if not done.done():
                    done.set_exception(fault)

    def _soon(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(GATHER_S, self.flush, context=contextvars.Context())

    def _flush_updates(self, waiting: list[_Waiting]) -> None:
        gateway, fitting = self._gateway, []
        for one in waiting:
            try:  # the round may have closed, or lost the device, since the update was looked at
                raise_refusal(gateway.handle(Submitting(one.entry.did, one.rid)))
                fitting.append(one)
            except RemoteError as fault:
                one.done.set_exception(fault)
        rid = gateway.rounds.rid
        if not fitting or rid is None or fitting[0].rid != rid:  # the last look was at the deadline
            for one in fitting:
                one.done.set_exception(RemoteError("this round is not open", code=Code.LATE))
            return
        try:
            refused = gateway.store.receive(rid, [one.entry for one in fitting])
        except (EnvironmentFault, Conflict) as fault:
            _fail([one.done for one in fitting], fault)
            return
        gateway.received(rid, [one.entry for one in fitting if one.entry.did not in refused])
        for one in fitting:
            code = refused.get(one.entry.did)
            if code is None:
                one.done.set_result(None)
            else:
                one.done.set_exception(RemoteError("this update cannot be counted", code=code))

    def _flush_answers(self, waiting: list[tuple[Answered, asyncio.Future[None]]]) -> None:
        gateway, taken = self._gateway, []
        rows: list[tuple[bytes, bytes, int]] = []
        actions: list[Action] = []
        for event, done in waiting:
            found = gateway.machine(event)
            try:
                raise_refusal(found)
            except RemoteError as fault:
                done.set_exception(fault)
                continue
            actions += found
            rows.append((event.rid, event.did, event.said))
            taken.append(done)
        if not taken:
            return
        try:
            gateway.store.answer(rows)
        except (EnvironmentFault, Conflict) as fault:
            gateway.rebuild()  # the machine has taken what the disk has not
            _fail(taken, fault)
            return
        gateway.carry_out(actions)
        for done in taken:
            done.set_result(None)


def _fail(waiting: list[asyncio.Future[None]], fault: FlTinyError) -> None:
    for done in waiting:
        done.set_exception(copy.copy(fault))

# SPDX-License-Identifier: Apache-2.0
"""The gateway's public key as a device holds it, and the way from it to a later one by signed hand-overs."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from fl_tiny.device.link import Link
from fl_tiny.device.store import DeviceStore
from fl_tiny.errors import RemoteError
from fl_tiny.protocol import handover
from fl_tiny.protocol.wire import MOST_KEYS, Code

log = logging.getLogger(__name__)

T = TypeVar("T")


async def with_key(store: DeviceStore, link: Link, ask: Callable[[bytes], Awaitable[T]]) -> T:
    """What ``ask`` gives, which checks a signature of the gateway by the key that it is called with.

    When that fails by the key held, it is asked again with the key that the gateway's hand-overs lead to; that one is
    kept, on the disk, once it has checked. Keys have numbers, and a later one never gives way to an earlier.
    Raises: RemoteError when there is no such key, without a problem code: nothing that it signed is to blame.
    """
    pk, serial = store.get("gateway_pk"), store.get("gateway_serial") or 0
    try:
        return await ask(pk)
    except RemoteError as fault:
        if fault.code != Code.SIGNATURE:
            raise
    number = serial
    while number < MOST_KEYS and (message := await link.handover(number + 1)) is not None:
        number += 1
        pk = handover.checked(message, number, pk)
    if number == serial:
        why = f"the gateway signs by another key than number {serial} of its keys, which this device holds"
        store.put(trouble=why)
        raise RemoteError(why, hint="is it restored from a backup before `gateway rekey`? Else enrol again")
    found = await ask(pk)
    store.put(gateway_pk=pk, gateway_serial=number)
    log.info("gateway has a new key serial=%d", number)
    return found

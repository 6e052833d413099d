# SPDX-License-Identifier: Apache-2.0
"""A device out of the fleet's head as if it had never been in it: the sums of the others, solved again."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

from fl_tiny import statedir
from fl_tiny.errors import DataError, EnvironmentFault
from fl_tiny.gateway.gather import ExactStart, make_version
from fl_tiny.gateway.keys import seed_of
from fl_tiny.gateway.models import model_data
from fl_tiny.gateway.setup import find_device
from fl_tiny.gateway.store import Store
from fl_tiny.gateway.tables import Device, Version
from fl_tiny.protocol import signed

PATIENCE_S = 30.0  # a running gateway acts within two seconds, and solves a head for each device that stays
POLL_S = 0.1


def forget(directory: Path, which: str) -> tuple[Device, int]:
    """Revoke a device and publish the head without it; by the gateway that runs in DIR, or here when none does.

    Returns the device and the head's number. Raises: DataError when the device is in no exact start.
    """
    store = Store.open(directory / statedir.DATABASE)
    device = find_device(store, which)
    number = store.forgotten(device.did)
    if number is not None:
        return device, number
    if not store.has_sums(device.did):
        raise DataError(
            f"{device.did.hex()} is in no exact start; what rounds of training learned from it cannot be taken out",
            hint="fl-tiny gateway revoke DIR DEVICE keeps it out from now on",
        )
    end = time.monotonic() + PATIENCE_S
    store.put(**{f"forget:{device.did.hex()}": 1})
    while time.monotonic() < end:
        if not statedir.is_running(directory):
            with statedir.locked(directory):
                data = model_data(store, directory)
                seed = seed_of(directory, store)
                return device, carry_out(store, ExactStart.of(store, data), seed, device.did).number
        number = store.forgotten(device.did)
        if number is not None:
            return device, number
        time.sleep(POLL_S)
    raise EnvironmentFault(f"the gateway has not acted within {PATIENCE_S:.0f} s", hint="it does so at its next start")


def carry_out(store: Store, start: ExactStart, seed: bytes, did: bytes) -> Version:
    """Publish the head of the other devices' sums, in the transaction that drops this one's. Only DIR's owner may."""
    others = {other: body for other, body in store.sums() if other != did}
    total, _ = start.total(list(others.values()))
    digest = hashlib.sha256(signed.payload_of(store.get("manifest"))).digest()
    number = store.head().number + 1
    version = make_version(number, start.made(total), digest, seed, since=number, epoch=store.epoch)
    scores = start.outliers(list(others.values()))
    store.forget(did, os.urandom(8), version, dict(zip(others, scores, strict=True)))
    return version

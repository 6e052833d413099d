# SPDX-License-Identifier: Apache-2.0
"""The delta that a signed head promises, made of two heads of the ledger when a device asks for it."""

from __future__ import annotations

from fl_tiny.gateway.store import Store
from fl_tiny.gateway.tables import Version
from fl_tiny.protocol import signed, wire
from fl_tiny.protocol.delta import difference


class Promised:
    """Keeps the last delta from request to request."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._of: bytes = b""
        self._delta: bytes | None = None

    def delta(self, head: Version, manifest: wire.Manifest) -> bytes | None:
        """What leads to ``head`` from the one before, when its signed form promises it."""
        if self._of != head.signed:
            promises = wire.decode(wire.Head, signed.payload_of(head.signed)).delta
            base = self._store.version(head.number - 1) if promises else None
            found = difference(base.body, head.body, manifest.shapes) if base else None
            self._of, self._delta = head.signed, found[1] if found else None
        return self._delta

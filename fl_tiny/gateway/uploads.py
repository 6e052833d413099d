# SPDX-License-Identifier: Apache-2.0
"""Codes on their way in: one upload a device, put together from chunks that may repeat and come in any order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from fl_tiny.errors import RemoteError
from fl_tiny.protocol.wire import UNIT, Code, Held, name_of


class Uploads:
    """Chunks by device, in memory: what a restart loses, the bitmap asks for again.

    size: the most that an upload may have.   takes: may it have so many? None: exactly ``size``.
    """

    def __init__(self, size: int, takes: Callable[[int], bool] | None = None) -> None:
        self._size, self._takes = size, takes or (lambda whole: whole == size)
        self._by_device: dict[bytes, _Upload] = {}

    def put(self, did: bytes, sid: str, unit: int, body: bytes) -> None:
        """Take a chunk that starts at unit ``unit``. Another sid starts the device's upload anew.

        Raises: RemoteError: QUOTA beyond the size, SHAPE when a chunk is not whole units, CONFLICT when other bytes
        came for the same place.
        """
        at = unit * UNIT
        if not body or at + len(body) > self._size:
            raise RemoteError(f"a chunk of {len(body)} B at {at} of {self._size} B", code=Code.QUOTA)
        if len(body) % UNIT and not self._takes(at + len(body)):
            raise RemoteError(f"a chunk of {len(body)} B is not whole units of {UNIT} B", code=Code.SHAPE)
        upload = self._by_device.get(did)
        if upload is None or upload.sid != sid:
            upload = self._by_device[did] = _Upload(sid, self._size)
        upload.put(unit, body)

    def held(self, did: bytes, sid: str, raw_sid: bytes, size: int | None = None) -> Held:
        """What has come of the upload ``sid``. size: of the upload, None when its update has not said."""
        upload = self._by_device.get(did)
        bitmap = bytes(upload.bitmap) if upload is not None and upload.sid == sid else b""
        whole = self._size if size is None else size
        return Held(raw_sid, whole, bitmap[: -(-whole // UNIT // 8)])

    def whole(self, did: bytes, digest: bytes, size: int) -> bytes | None:
        """The codes of ``size`` bytes, when all of them have come and have this SHA-256.

        Raises: RemoteError when they have another.
        """
        upload = self._by_device.get(did)
        if upload is None or upload.sid != name_of(digest) or not upload.is_complete(size):
            return None
        codes = bytes(upload.body[:size])
        if hashlib.sha256(codes).digest() != digest:
            self.drop(did)
            raise RemoteError("the codes have another digest than the update says", code=Code.CONFLICT)
        return codes

    def drop(self, did: bytes) -> None:
        """Forget a device's upload."""
        self._by_device.pop(did, None)

    def clear(self) -> None:
        """Forget all uploads: the round is closed."""
        self._by_device.clear()


class _Upload:
    def __init__(self, sid: str, size: int) -> None:
        self.sid = sid
        self.body = bytearray(size)
        self.bitmap = bytearray(-(-size // UNIT // 8))

    def put(self, unit: int, body: bytes) -> None:
        at = unit * UNIT
        units = range(unit, unit + -(-len(body) // UNIT))
        for u in units:
            piece = body[(u - unit) * UNIT : (u - unit + 1) * UNIT]
            if self.bitmap[u // 8] >> u % 8 & 1 and self.body[u * UNIT : u * UNIT + len(piece)] != piece:
                raise RemoteError("other bytes came for the same chunk", code=Code.CONFLICT)
        self.body[at : at + len(body)] = body
        for u in units:
            self.bitmap[u // 8] |= 1 << u % 8

    def is_complete(self, size: int) -> bool:
        return all(self.bitmap[u // 8] >> u % 8 & 1 for u in range(-(-size // UNIT)))

# SPDX-License-Identifier: Apache-2.0
"""A stream of bytes that one key can read: sealed with its public half, opened with its private half, in little memory.

A fresh key in libsodium's sealed box (X25519), and the stream under it in pieces of 64 KiB by secretstream
(XChaCha20-Poly1305), whose last piece is marked: nothing can be changed, left out, moved or cut off unseen. Who sealed
it is not shown: anybody who has the public half can. Source: libsodium's documentation, "Sealed boxes", "Encrypted
streams and file encryption".
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
from pathlib import Path
from typing import IO

from nacl import bindings
from nacl.exceptions import CryptoError

from fl_tiny import statedir
from fl_tiny.errors import ConfigError, DataError, EnvironmentFault
from fl_tiny.files import read_bounded, read_private, sync_directory, write_atomic

MAGIC = b"fl-tiny sealed backup 1\n"
SECRET_FILE, PUBLIC_FILE = "backup.key", "backup.pub"
PIECE = 1 << 16
KEY_BYTES, CHECK_BYTES, KEY_LIMIT = 32, 4, 1024
_PUBLIC, _SECRET = "fl-tiny-backup-", "fl-tiny-backup-secret-"
_STREAM_KEY = bindings.crypto_secretstream_xchacha20poly1305_KEYBYTES
_HEADER = bindings.crypto_secretstream_xchacha20poly1305_HEADERBYTES
_MORE = bindings.crypto_secretstream_xchacha20poly1305_ABYTES
_MESSAGE = bindings.crypto_secretstream_xchacha20poly1305_TAG_MESSAGE
_FINAL = bindings.crypto_secretstream_xchacha20poly1305_TAG_FINAL
_SEALED_KEY = _STREAM_KEY + bindings.crypto_box_SEALBYTES


def make_keys(keys: Path) -> str:
    """Make a folder with a key pair for backups; the public half as text.

    Raises: ConfigError when there is one already, or when the folder lies in a gateway's directory.
    """
    above = [keys.absolute(), *keys.absolute().parents]
    gateway = next((each for each in above if (each / statedir.DATABASE).exists()), None)
    if gateway is not None:
        raise ConfigError(f"{gateway} is a gateway or a device", hint="make this key on another machine")
    if (keys / SECRET_FILE).exists():
        raise ConfigError(f"{keys / SECRET_FILE} exists already", hint="a key is never overwritten")
    public, secret = bindings.crypto_box_keypair()
    try:
        keys.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as cause:
        raise EnvironmentFault(f"cannot make {keys}: {cause.strerror}") from cause
    write_atomic(keys / SECRET_FILE, f"{_text(_SECRET, secret)}\n".encode(), 0o600)
    write_atomic(keys / PUBLIC_FILE, f"{_text(_PUBLIC, public)}\n".encode(), 0o644)
    sync_directory(keys)
    return _text(_PUBLIC, public)


def public_key(given: str) -> bytes:
    """The public half that ``given`` is, or that the file of this name holds. Raises: ConfigError, DataError."""
    text = given
    if not given.startswith(_PUBLIC):
        text = read_bounded(Path(given), KEY_LIMIT, DataError).decode("ascii", "replace").strip()
    if text.startswith(_SECRET):
        raise ConfigError("this is the private half of a key", hint=f"give {PUBLIC_FILE}, and take {SECRET_FILE} away")
    return _key_in(text, _PUBLIC, "public half of a key for backups")


def secret_key(path: Path) -> bytes:
    """The private half in a file that its owner alone may read. Raises: ConfigError, DataError, EnvironmentFault."""
    text = read_private(path)[:KEY_LIMIT].decode("ascii", "replace").strip()
    return _key_in(text, _SECRET, f"private half of a key for backups ({SECRET_FILE})")


class Writer:
    """Seals what is written for the public half ``pk`` into ``out``; nothing can read it before ``close``."""

    def __init__(self, out: IO[bytes], pk: bytes) -> None:
        key = bindings.crypto_secretstream_xchacha20poly1305_keygen()
        self._out, self._rest = out, bytearray()
        self._state = bindings.crypto_secretstream_xchacha20poly1305_state()
        header = bindings.crypto_secretstream_xchacha20poly1305_init_push(self._state, key)
        out.write(MAGIC + bindings.crypto_box_seal(key, pk) + header)

    def write(self, data: bytes) -> int:
        """Add bytes."""
        self._rest += data
        while len(self._rest) > PIECE:  # one stays for the mark of the last
            self._push(bytes(self._rest[:PIECE]), _MESSAGE)
            del self._rest[:PIECE]
        return len(data)

    def close(self) -> None:
        """Write the last piece; ``out`` stays open."""
        self._push(bytes(self._rest), _FINAL)

    def _push(self, piece: bytes, tag: int) -> None:
        self._out.write(bindings.crypto_secretstream_xchacha20poly1305_push(self._state, piece, MAGIC, tag))


class Reader(io.RawIOBase):
    """Opens what ``Writer`` sealed, for the private half ``secret``. Bytes that it gives are those that were written.

    Raises: DataError, when it comes to what is damaged, and at once for another key.
    """

    def __init__(self, file: IO[bytes], secret: bytes, name: Path) -> None:
        self._file, self._name = file, name
        self._at, self._rest, self._is_over = 0, b"", False
        file.seek(len(MAGIC))
        sealed = file.read(_SEALED_KEY)
        public = bindings.crypto_scalarmult_base(secret)
        try:
            self._key = bindings.crypto_box_seal_open(sealed, public, secret)
        except (CryptoError, ValueError) as cause:
            what = f"{name}: this key does not open it, or it is damaged"
            raise DataError(what, hint="is it the right key?") from cause
        self._begin()

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is, by reading anew."""
        return True

    def tell(self) -> int:
        """How many bytes were given."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place, from the start alone."""
        assert whence == os.SEEK_SET
        if offset < self._at:
            self._file.seek(len(MAGIC) + _SEALED_KEY)
            self._begin()
        while self._at < offset and self.read(min(PIECE, offset - self._at)):
            pass
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # as io calls it
        """Fill ``buffer`` with what comes next; 0 at the end."""
        while not self._rest and not self._is_over:
            self._pull()
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        self._at += count
        return count

    def _begin(self) -> None:
        self._state = bindings.crypto_secretstream_xchacha20poly1305_state()
        self._at, self._rest, self._is_over = 0, b"", False
        header = self._file.read(_HEADER)
        if len(header) != _HEADER:
            raise self._damaged("is cut short")
        bindings.crypto_secretstream_xchacha20poly1305_init_pull(self._state, header, self._key)

    def _pull(self) -> None:
        piece = self._file.read(PIECE + _MORE)
        if len(piece) < _MORE:
            raise self._damaged("is cut short")
        try:
            self._rest, tag = bindings.crypto_secretstream_xchacha20poly1305_pull(self._state, piece, MAGIC)
        except (CryptoError, RuntimeError) as cause:
            raise self._damaged("is damaged") from cause
        self._is_over = tag == _FINAL
        if self._is_over and self._file.read(1):
            raise self._damaged("goes on after its end")

    def _damaged(self, how: str) -> DataError:
        return DataError(f"{self._name} {how}", hint="take another backup; this one was damaged or cut short")


def _text(prefix: str, key: bytes) -> str:
    """A key as one word; its last bytes tell a slip of the pen."""
    check = hashlib.sha256(prefix.encode() + key).digest()[:CHECK_BYTES]
    return prefix + base64.urlsafe_b64encode(key + check).decode()


def _key_in(text: str, prefix: str, what: str) -> bytes:
    try:
        key = base64.urlsafe_b64decode(text.removeprefix(prefix))[:KEY_BYTES]
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES or text != _text(prefix, key):
        raise ConfigError(f"this is no {what}", hint="fl-tiny fleet backup-key KEYS makes a pair")
    return key

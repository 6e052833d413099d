# SPDX-License-Identifier: Apache-2.0
"""model/current.tflite: made of a slot's file and a patch; and where it lies, on the disk or in memory.

The database holds the patch, so the file may be lost with the power: it is made again, byte for byte. No numpy: the
idle agent does this.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

from fl_tiny import statedir
from fl_tiny.device.layout import CURRENT
from fl_tiny.errors import ConfigError, DataError
from fl_tiny.files import sync_directory, write_atomic

_RUN = struct.Struct("<II")  # offset, length; the bytes follow
_GRAIN = 32  # bytes that are compared at once; a run is whole grains
_LIMIT = 1 << 24  # bytes of runs


def difference(base: bytes, other: bytes, near: bytes = b"") -> bytes:
    """What makes ``other`` of ``base``, which is as long: runs of bytes, deflated.

    near: bytes that the runs resemble, the head that training began with; deflate looks back 32 KiB into them.
    """
    assert len(base) == len(other)
    found: list[bytes] = []
    start = None
    for at in range(0, len(base) + _GRAIN, _GRAIN):
        differs = base[at : at + _GRAIN] != other[at : at + _GRAIN]
        if differs and start is None:
            start = at
        elif not differs and start is not None:
            run = other[start:at]
            found += (_RUN.pack(start, len(run)), run)
            start = None
    packer = zlib.compressobj(zdict=near) if near else zlib.compressobj()
    return packer.compress(b"".join(found)) + packer.flush()


def applied(base: bytes, patch: bytes, near: bytes = b"") -> bytes:
    """``base`` with a difference applied, made with the same ``near`` or without.

    Raises: DataError when it is none of a file as long.
    """
    try:
        runs = zlib.decompressobj(zdict=near).decompress(patch, _LIMIT)
        out, at = bytearray(base), 0
        while at < len(runs):
            start, size = _RUN.unpack_from(runs, at)
            at += _RUN.size
            if start + size > len(out) or at + size > len(runs):
                raise DataError("a patch of the model is damaged")
            out[start : start + size] = runs[at : at + size]
            at += size
    except (zlib.error, struct.error) as cause:
        raise DataError(f"a patch of the model is damaged: {cause}") from cause
    return bytes(out)


def path_of(directory: Path) -> Path:
    """Where the file lies: below DIR, or where the link there points."""
    path = directory / statedir.MODEL / CURRENT
    return path.readlink() if path.is_symlink() else path


def put(directory: Path, data: bytes) -> None:
    """Replace the file as a whole. Raises: EnvironmentFault."""
    write_atomic(path_of(directory), data)


def settle_place(directory: Path, memory: Path | None) -> None:
    """Let the file lie in ``memory``, a directory on a tmpfs, with a link below DIR; None: below DIR itself.

    What is there goes along, so a program that loads it meanwhile finds one or the other. Raises: ConfigError.
    """
    link = directory / statedir.MODEL / CURRENT
    here, wanted = path_of(directory), memory / CURRENT if memory else link
    if here == wanted and wanted.parent.is_dir():
        return
    try:
        if memory is not None:
            memory.mkdir(mode=0o750, parents=True, exist_ok=True)
        data = here.read_bytes() if here.exists() else b""
        if memory is None:
            write_atomic(link, data)
            return
        if here != wanted:
            write_atomic(wanted, data)
            draft = link.with_name(f".{CURRENT}.link")
            draft.unlink(missing_ok=True)
            draft.symlink_to(wanted)
            draft.replace(link)
            sync_directory(link.parent)
    except OSError as refused:
        hint = "make it, for the user that runs the device, or take model_dir out of fl-tiny.toml"
        raise ConfigError(f"model_dir: {memory or link}: {refused.strerror or refused}", hint) from refused


def memory_of(model_dir: str | None) -> Path | None:
    """Where model/current.tflite lies when not below DIR: as set, else in the runtime directory that systemd made."""
    made = model_dir or os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    return Path(made) if made else None

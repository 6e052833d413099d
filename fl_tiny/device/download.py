# SPDX-License-Identifier: Apache-2.0
"""A file from an http or https address: bounded, and gone on with where an earlier try ended."""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from fl_tiny.errors import ConfigError, DataError, EnvironmentFault
from fl_tiny.files import write_atomic

TIMEOUT_S = 60.0
PIECE = 1 << 16
MARK_LIMIT = 256  # bytes of an ETag that is kept


def download(url: str, path: Path, limit: int, say: Callable[[int, int], None]) -> None:
    """Make ``path`` the file at ``url``, at most ``limit`` bytes; ``say`` is told bytes done and in all (0: unknown).

    What came stays at ``path``.part until it is whole; it is used again when the server says that the file is the same.
    Raises: ConfigError for another kind of address, DataError when it is longer, EnvironmentFault otherwise.
    """
    if not url.lower().startswith(("http://", "https://")):
        raise ConfigError(f"{url} is no http or https address")
    part, mark = path.with_name(path.name + ".part"), path.with_name(path.name + ".etag")
    have = part.stat().st_size if part.exists() and mark.exists() else 0
    headers = {"Range": f"bytes={have}-", "If-Range": mark.read_text()} if have else {}
    try:
        request = urllib.request.Request(url, headers=headers)  # noqa: S310 - its scheme is checked above
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
            _take(answer, part, mark, have, limit, say)
    except urllib.error.HTTPError as cause:
        if cause.code != 416:  # the part is all there is
            raise EnvironmentFault(f"{url}: {cause.code} {cause.reason}") from cause
    except (OSError, http.client.HTTPException, ValueError) as cause:
        reason = getattr(cause, "reason", None) or cause
        raise EnvironmentFault(f"{url}: {reason}", hint="what has come is kept; try again") from cause
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)
    mark.unlink(missing_ok=True)


def _take(
    answer: http.client.HTTPResponse, part: Path, mark: Path, have: int, limit: int, say: Callable[[int, int], None]
) -> None:
    done = have if answer.status == 206 else 0
    total = done + int(answer.headers.get("Content-Length") or 0)
    if total > limit:
        raise DataError(f"{total} bytes, at most {limit} are taken", hint="is this a bundle?")
    tag = answer.headers.get("ETag", "")
    if done == 0:
        part.unlink(missing_ok=True)
        mark.unlink(missing_ok=True)
        if tag.startswith('"') and len(tag) <= MARK_LIMIT:  # a weak tag does not promise the same bytes
            write_atomic(mark, tag.encode())
    with part.open("ab") as file:
        while piece := answer.read(PIECE):
            done += len(piece)
            if done > limit:
                raise DataError(f"more than {limit} bytes", hint="is this a bundle?")
            file.write(piece)
            say(done, total)
    if done < total:
        raise OSError("the connection ended early")

# SPDX-License-Identifier: Apache-2.0
"""Write docs/vectors/messages.json: each message of tests/protocol/samples.py as fields and as bytes.

The bytes are a golden of our own encoder, for other implementations; that they are right is shown by the CDDL, by
cbor2 and by hand-made vectors in tests/protocol.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from protocol.samples import MESSAGES  # noqa: E402

from fl_tiny.protocol import wire  # noqa: E402


def vectors() -> dict[str, Any]:
    """Name -> kind, fields (bytes as hexadecimal) and encoding."""
    return {
        name: {
            "kind": type(message).__name__.lower(),
            "fields": _plain(asdict(message)),  # type: ignore[call-overload]
            "cbor": wire.encode(message).hex(),
        }
        for name, message in MESSAGES.items()
    }


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value


if __name__ == "__main__":
    (ROOT / "docs/vectors/messages.json").write_text(json.dumps(vectors(), indent=1) + "\n")

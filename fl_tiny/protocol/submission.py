# SPDX-License-Identifier: Apache-2.0
"""An update in one piece, for CoAP peers that send ordinary Block1 bodies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from fl_tiny.protocol import cbor
from fl_tiny.protocol.fields import Key, blob
from fl_tiny.protocol.wire import MAX_CODES


@dataclass(frozen=True, slots=True)
class Submission:
    """A signed update and its codes."""

    KIND: ClassVar[int] = 13
    LIMIT: ClassVar[int] = MAX_CODES + 8192  # bytes of the encoding
    signed: Annotated[bytes, Key(1, blob(1, cbor.CONTROL_LIMIT))]
    codes: Annotated[bytes, Key(2, blob(1, MAX_CODES))]

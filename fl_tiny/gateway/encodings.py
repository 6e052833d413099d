# SPDX-License-Identifier: Apache-2.0
"""How a round's updates are to travel: what the operator wants, and what of it a device can send."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from fl_tiny.gateway.gather import named_at_most
from fl_tiny.protocol.wire import BY_LINK, Encoding

KNOWN = frozenset(Encoding)  # of a device that has not registered since the gateway began


@dataclass(frozen=True, slots=True)
class Encodings:
    """wanted: auto, int8, int4 or topk (docs/config.md).   share: of the parameters, that a top-k update names."""

    wanted: str = "auto"
    share: float = 0.05

    @property
    def topk_share(self) -> float:
        """The share that a round takes, 0 when it takes no top-k."""
        return self.share if self.wanted == "topk" else 0.0

    def offered(self, able: Collection[int], parameters: int) -> tuple[int | None, int | None]:
        """Keys ``encoding`` and ``kept`` of an offer to a device that can send ``able``; int8 where it cannot."""
        if self.wanted == "topk" and Encoding.TOPK in able:
            return Encoding.TOPK.value, named_at_most(parameters, self.share)
        if self.wanted in ("auto", "int4") and Encoding.INT4 in able:
            return (BY_LINK if self.wanted == "auto" else Encoding.INT4.value), None
        return None, None

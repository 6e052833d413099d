# SPDX-License-Identifier: Apache-2.0
"""CoAP over DTLS for gateway and device: the names that the rest of fl-tiny uses of ``net``."""

from __future__ import annotations

from fl_tiny.net.buckets import Buckets
from fl_tiny.net.bulk import Bodies
from fl_tiny.net.client import Client, Greeting
from fl_tiny.net.dtls import PskLookup
from fl_tiny.net.endpoint import Counters
from fl_tiny.net.messages import Handler, Request, Response, SessionHandle
from fl_tiny.net.patience import SPREAD
from fl_tiny.net.server import Server
from fl_tiny.net.sessions import Limits

__all__ = [
    "SPREAD", "Bodies", "Buckets", "Client", "Counters", "Greeting", "Handler", "Limits", "PskLookup", "Request",
    "Response", "Server", "SessionHandle",
]  # fmt: skip

# SPDX-License-Identifier: Apache-2.0
"""What strangers do at a server's port, as at most one log line a minute."""

from __future__ import annotations

from dataclasses import asdict, replace

from fl_tiny.net.endpoint import Counters

EVERY_S = 60.0
USUAL = 60  # of each kind, in that time: one a second
HINT = "a peer has no cipher suite of ours; constrained_peers = true serves PSK-AES128-CCM8"


class Noise:
    """The counters of a server as they were a minute ago."""

    def __init__(self, counters: Counters) -> None:
        self._counters, self._before = counters, replace(counters)

    def line(self) -> str:
        """What is worth a line since the last call; empty when nothing is."""
        before, now = asdict(self._before), asdict(self._counters)
        self._before = replace(self._counters)
        more = {key: now[key] - before[key] for key in now}
        lone = more["cookies"] - more["handshakes_ok"]
        if not more["no_cipher"] and max(lone, more["dropped"], more["handshakes_failed"]) <= USUAL:
            return ""
        kinds = ("datagrams_in", "dropped", "cookies", "handshakes_ok", "handshakes_failed", "no_cipher")
        facts = " ".join(f"{kind}={more[kind]}" for kind in kinds)
        return f"noise seconds={EVERY_S:.0f} {facts}" + (f": {HINT}" if more["no_cipher"] else "")

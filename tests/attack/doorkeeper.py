# SPDX-License-Identifier: Apache-2.0
"""``fl-tiny`` that says on SIGUSR1 what its table of sessions holds; with ``old`` or ``lavish`` as it was before.

old: a cookie holds for as often as it comes, and handshakes count per prefix alone.   lavish: no member has a budget.
"""

from __future__ import annotations

import json
import signal
import sys
from typing import Any

from fl_tiny.cli.main import entry
from fl_tiny.gateway.budget import Quiet, Shares
from fl_tiny.net import door, server
from fl_tiny.net.buckets import Buckets
from fl_tiny.net.budget import Budget, Verdict
from fl_tiny.net.door import Cookies, prefix_of
from fl_tiny.net.sessions import Table

TABLES: list[Table] = []


def main() -> None:
    right = Table.__init__

    def kept(table: Table, *args: Any, **named: Any) -> None:
        right(table, *args, **named)
        TABLES.append(table)

    def tell(_number: int, _frame: object) -> None:
        for table in TABLES:
            facts = {"sessions": len(table), "handshakes": table.handshakes, "ssl": len(table._context.sessions)}
            print(json.dumps({"event": "table", **facts}), flush=True)

    Table.__init__ = kept  # type: ignore[method-assign]
    signal.signal(signal.SIGUSR1, tell)
    for name, change in (("old", old_door), ("lavish", no_budgets)):
        if sys.argv[1] == name:
            del sys.argv[1]
            change()
    entry()


def old_door() -> None:
    prefixes = Buckets(50.0, 50.0)
    Cookies.spent = lambda cookies, hello: False  # type: ignore[method-assign]
    door.Shares.admits = lambda shares, host, now: not prefixes.take(prefix_of(host), now)  # type: ignore[method-assign]
    Table._has_room = lambda table, host: len(table._candidates) < table.limits.handshakes  # type: ignore[method-assign]


def no_budgets() -> None:
    Budget.judge = lambda budget, identity, now: Verdict.SERVE  # type: ignore[method-assign]
    Shares.costly = Shares.check = lambda shares, member, now: None  # type: ignore[method-assign]
    Quiet.filter = lambda quiet, record: True  # type: ignore[method-assign]
    server.HANDLERS_EACH = server.HANDLERS


if __name__ == "__main__":
    main()

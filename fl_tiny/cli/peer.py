# SPDX-License-Identifier: Apache-2.0
"""``fl-tiny gateway peer``: read-only peers on other CoAP stacks, which `gateway pair --peer` adds."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fl_tiny.cli.common import command, group, show, table


def add_commands(parent: Any) -> None:
    """Declare the commands of this group."""
    sub = group(parent, "peer", "list and revoke read-only peers")
    command(sub, "list", list_, "fl-tiny gateway peer list gw").add_argument("dir", type=Path)
    p = command(sub, "revoke", revoke, "fl-tiny gateway peer revoke gw dashboard")
    p.add_argument("dir", type=Path)
    p.add_argument("name", help="as `peer list` names it")


def list_(args: argparse.Namespace) -> None:
    """List the read-only peers; their keys are shown once, when they are made."""
    from fl_tiny import statedir
    from fl_tiny.gateway.store import Store
    from fl_tiny.protocol.identity import Identity, Kind

    if args.dir.exists():
        statedir.act_as_owner(args.dir)
    names = [name.decode("utf-8", "replace") for name in Store.open(args.dir / statedir.DATABASE, reading=True).peers()]
    rows = [{"name": name, "identity": Identity(Kind.PEER, name.encode()).text} for name in names]
    show(args, rows, table(rows, ("name", "identity")))


def revoke(args: argparse.Namespace) -> None:
    """Take a peer's key away; a running gateway ends its session within a second."""
    from fl_tiny import statedir
    from fl_tiny.gateway import setup

    if args.dir.exists():
        statedir.act_as_owner(args.dir)
    setup.revoke_peer(args.dir, args.name)
    show(args, {"name": args.name, "state": "revoked"}, f"{args.name} is revoked")

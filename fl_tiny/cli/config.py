# SPDX-License-Identifier: Apache-2.0
"""``fl-tiny config``: check a file of settings without using it."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from fl_tiny.cli.common import command, group, show


def add(parent: Any) -> None:
    """Declare the commands of this group."""
    sub = group(parent, "config", "check a file of settings")
    p = command(sub, "check", check, "fl-tiny config check fl-tiny.toml --role device")
    p.add_argument("file", type=Path)
    p.add_argument("--role", choices=("device", "gateway"), help="whose settings (default: whichever they suit)")


def check(args: argparse.Namespace) -> None:
    """Say whether a file of settings can be used, or every fault in it."""
    from fl_tiny import config
    from fl_tiny.errors import ConfigError

    kinds = {"device": config.DeviceSettings, "gateway": config.GatewaySettings}
    faults = []
    for role in [args.role] if args.role else kinds:
        try:
            config.load_whole(args.file, kinds[role])
        except ConfigError as fault:
            faults.append((_known(args.file, kinds[role]), fault))
        else:
            show(args, {"ok": True, "role": role}, f"{args.file}: right for a {role}")
            return
    raise max(faults, key=lambda fault: fault[0])[1]  # of the role that it was likely meant for


def _known(file: Path, settings: Any) -> int:
    """How many of a file's keys a role has."""
    from fl_tiny import config
    from fl_tiny.errors import ConfigError

    try:
        return len(set(config.read_table(file)) & {field.name for field in fields(settings)})
    except ConfigError:  # no TOML: no role's
        return 0

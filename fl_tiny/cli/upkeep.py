# SPDX-License-Identifier: Apache-2.0
"""``fl-tiny gateway``: a gateway's heads, its key and its backups."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import Any

from fl_tiny.cli.common import as_owner, command, gateway_store, group, progress, show, table

LEAST_HELD = 20  # samples: a share of fewer says nothing


def add_commands(sub: Any) -> None:
    """Declare the commands in the group of the gateway."""
    command(sub, "heads", heads, "fl-tiny gateway heads gw").add_argument("dir", type=Path)
    head = group(sub, "head", "publish an earlier head again")
    p = command(head, "rollback", rollback, "fl-tiny gateway head rollback gw 12")
    p.add_argument("dir", type=Path)
    p.add_argument("number", type=int, help="of a head that fl-tiny gateway heads lists")
    p = command(sub, "export", export, "fl-tiny gateway export gw --out fleet.tflite")
    p.add_argument("dir", type=Path)
    p.add_argument("--out", type=Path, required=True, metavar="FILE.tflite")
    p.add_argument("--head", "--round", type=int, metavar="N", help="an earlier head (default: the last)")
    command(sub, "rekey", rekey, "fl-tiny gateway rekey gw").add_argument("dir", type=Path)
    p = command(sub, "backup", backup, "fl-tiny gateway backup gw --out gw.backup --to-key backup.pub")
    p.add_argument("dir", type=Path)
    p.add_argument("--out", type=Path, required=True, metavar="F", help="it will hold every key of the fleet: guard it")
    p.add_argument("--to-key", metavar="KEY", help="seal it for this key, or the one in this file: fleet backup-key")
    p = command(sub, "restore", restore, "fl-tiny gateway restore gw2 --from gw.backup --key backup.key")
    p.add_argument("dir", type=Path, help="a directory that is not there yet, or empty")
    p.add_argument("--from", dest="source", type=Path, required=True, metavar="F", help="what `gateway backup` wrote")
    p.add_argument("--key", type=Path, metavar="FILE", help="the private half of the key that F is sealed for")
    p.add_argument("--epoch", type=int, metavar="N", help="for a second restore from one file: above the first's epoch")


def heads(args: argparse.Namespace) -> None:
    """List the heads that were published, oldest first."""
    from fl_tiny.gateway import heads as published

    rows = published.listed(gateway_store(args.dir, reading=True))
    names = ("number", "kind", "of", "updates", "accuracy", "held", "model", "digest")
    lines = [{**row, "digest": row["digest"][:12], "accuracy": _figure(row)} for row in rows]
    show(args, rows, table(lines, names))


def _figure(row: dict[str, Any]) -> str | None:
    """An accuracy as text, where there were samples enough to tell."""
    if row["accuracy"] is None:
        return None
    return f"{row['accuracy']:.3f}" if row["held"] >= LEAST_HELD else "too few"


def rollback(args: argparse.Namespace) -> None:
    """Publish an earlier head again, as a new version: boards and rounds go on from it."""
    from fl_tiny.gateway import heads as published

    as_owner(args.dir)
    version = published.roll_back(args.dir, args.number)
    found = {"head": version.number, "of": args.number, "digest": version.digest.hex()}
    show(args, found, f"head {args.number} is published again as head {version.number}")


def rekey(args: argparse.Namespace) -> None:
    """Give the gateway a new key; devices take it by a hand-over that the old key signs. The gateway must not run."""
    from fl_tiny.gateway import keys
    from fl_tiny.protocol import signed

    as_owner(args.dir)
    before, after = keys.rekey(args.dir)
    hashed = signed.digest(after.pk).hex()
    text = (
        f"{args.dir} signs by key number {after.serial} from now on, {hashed}\n"
        "take a backup now: devices that have met this key do not go back to what an older one holds"
    )
    show(args, {"serial": after.serial, "sha256": hashed, "before": signed.digest(before.pk).hex()}, text)


def export(args: argparse.Namespace) -> None:
    """Write the model with the fleet's last head, or an earlier one, as a .tflite."""
    from fl_tiny.gateway import heads as published

    version = published.export(args.dir, args.out, args.head)
    digest = hashlib.sha256(args.out.read_bytes()).hexdigest()
    progress(f"{args.out}: round {version.number}")
    show(args, {"out": str(args.out), "round": version.number, "sha256": digest}, f"{digest}  {args.out}")


def backup(args: argparse.Namespace) -> None:
    """Write DIR's ledger, keys, model and settings into one file, also while the gateway runs."""
    from fl_tiny.gateway import backup as backups
    from fl_tiny.gateway import sealed

    to = sealed.public_key(args.to_key) if args.to_key else None
    found = backups.write(args.dir, args.out, to)
    result = {"out": str(args.out), "bytes": args.out.stat().st_size, "head": found.head, "epoch": found.epoch}
    guard = "it is sealed" if to else "it holds every key of the fleet, so guard it"
    text = f"{args.out}: head {found.head}, {found.devices} devices; {guard}"
    show(args, {**result, "devices": found.devices, "sealed": to is not None}, text)


def restore(args: argparse.Namespace) -> None:
    """Make DIR the gateway that a backup holds; its devices go on from the backup's head."""
    from fl_tiny.gateway import backup as backups
    from fl_tiny.gateway import sealed

    secret = sealed.secret_key(args.key) if args.key else None
    found = backups.restore(args.dir, args.source, args.epoch, secret)
    text = (
        f"{args.dir} goes on from head {found.head} with {found.devices} devices, in epoch {found.epoch}\n"
        "devices enrolled since the backup must enrol again, those revoked since must be revoked again; the old"
        " gateway must not run any more"
    )
    result = {"dir": str(args.dir), "head": found.head, "epoch": found.epoch, "devices": found.devices}
    show(args, result, text)

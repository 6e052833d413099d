# SPDX-License-Identifier: Apache-2.0
"""``fl-tiny fleet``: set up many boards at once."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fl_tiny.cli.common import command, group, positive, progress, share, show, table
from fl_tiny.cli.gateway import model_options, wanted_of

CODE_S = 3600.0  # a code made for a board lives so long
CANARY_LIMIT = 1 << 20  # protocol/wire.py; help needs no cbor2


def add(parent: Any) -> None:
    """Declare the commands of this group."""
    sub = group(parent, "fleet", "set up many boards at once, sign the models they run, make keys")
    p = command(sub, "init", init, "fl-tiny fleet init keys")
    p.add_argument("keys", type=Path, help="a folder to be made, on a machine that is not the gateway")
    p = command(sub, "backup-key", backup_key, "fl-tiny fleet backup-key backup-keys")
    p.add_argument("keys", type=Path, help="a folder to be made, on a machine that is not the gateway")
    p = command(sub, "sign", sign, "fl-tiny fleet sign keys --model v2.tflite --counter 2 --out v2.manifest")
    p.add_argument("keys", type=Path, help="the folder of fl-tiny fleet init")
    model_options(p)
    p.add_argument("--counter", type=positive, required=True, metavar="N", help="higher than any before it")
    p.add_argument("--canary", type=Path, metavar="D.npz", help="samples and labels that each device tries it on")
    p.add_argument("--least", type=share, default=0.5, help="the share it must be right of them (default: 0.5)")
    p.add_argument("--next-keys", type=Path, metavar="KEYS2", help="whose key signs from the next model on")
    p.add_argument("--out", type=Path, required=True, metavar="M")
    example = "fl-tiny fleet install pi@kitchen pi@hall --gateway-dir gw --packages packages"
    p = command(sub, "install", install, example)
    p.add_argument("host", nargs="*", help="what ssh takes: user@host, ssh://user@host:port, a name of ssh_config")
    p.add_argument("-i", "--hosts", type=Path, metavar="HOSTS.txt", help="more of them, one a line")
    codes = p.add_mutually_exclusive_group(required=True)
    codes.add_argument(
        "--gateway-dir", type=Path, metavar="DIR", help="make a code a board from this gateway's directory"
    )
    codes.add_argument(
        "--codes", type=Path, metavar="DIR2", help="take codes that `gateway pair --out DIR2` has written"
    )
    p.add_argument(
        "--packages", type=Path, metavar="DIR3", help="copy packages from there (default: the board's repository)"
    )
    p.add_argument("--gateway", metavar="HOST:PORT", help="where boards find the gateway (default: the code's address)")
    p.add_argument(
        "--dir", default=None, metavar="DIR", help="the device's directory on a board (default: the package's)"
    )
    p.add_argument("--parallel", type=positive, default=8, metavar="N", help="boards at a time (default: 8)")
    p.add_argument("--dry-run", action="store_true", help="look only, and say what would be done")
    p.add_argument(
        "--ssh-option", action="append", default=[], metavar="OPT", help="handed to ssh as -o OPT; repeatable"
    )


def init(args: argparse.Namespace) -> None:
    """Make the model-signing key of a fleet, in a folder that stays off the gateway."""
    from fl_tiny.gateway import manifests
    from fl_tiny.protocol import signed

    hashed = signed.digest(manifests.make_keys(args.keys)).hex()
    text = f"{args.keys} signs models; keep it off the gateway, and keep a copy\nmodel key {hashed}"
    show(args, {"keys": str(args.keys), "model_key": hashed}, text)


def backup_key(args: argparse.Namespace) -> None:
    """Make a key that backups of a gateway can be sealed for, in a folder that stays off the gateway."""
    from fl_tiny.gateway import sealed

    public = sealed.make_keys(args.keys)
    text = (
        f"{args.keys / sealed.SECRET_FILE} opens backups; keep it off the gateway, and keep a copy\n"
        f"on the gateway: fl-tiny gateway backup DIR --out F --to-key {public}"
    )
    show(args, {"keys": str(args.keys), "public_key": public}, text)


def sign(args: argparse.Namespace) -> None:
    """Sign a model for a fleet: what is trained of it, what its outputs mean, how inputs are made."""
    from fl_tiny.files import check_writable, read_bounded, write_atomic
    from fl_tiny.gateway import manifests
    from fl_tiny.protocol import signed

    check_writable(args.out)
    seed = manifests.read_key(args.keys)
    made = manifests.settle(args.model, args.labels, wanted_of(args), counter=args.counter)
    canary = None
    if args.canary is not None:
        _try_canary(args, made)
        canary = (read_bounded(args.canary, CANARY_LIMIT), args.least)
    successor = signed.public_key(manifests.read_key(args.next_keys)) if args.next_keys else None
    write_atomic(args.out, manifests.sign(seed, made, canary, successor))
    hashed = signed.digest(signed.public_key(seed)).hex()
    found = {"out": str(args.out), "model": made.manifest.name, "counter": args.counter, "model_key": hashed}
    show(args, found, f"{args.out}: {made.manifest.name}, counter {args.counter}, signed by {hashed}")


def _try_canary(args: argparse.Namespace, made: Any) -> None:
    """Raises: DataError when the model does not pass its own canary here."""
    from fl_tiny.device.dataset import open_dataset
    from fl_tiny.device.evaluation import accuracy, expected_of
    from fl_tiny.device.isolated import isolated_backbone
    from fl_tiny.errors import DataError
    from fl_tiny.learn.tflite import read_model

    model = read_model(made.data)
    data = open_dataset(args.canary, model.input, expected=expected_of(model))
    with isolated_backbone(made.data) as backbone:
        found = accuracy(model, backbone, data)[0]
    if found < args.least:
        raise DataError(f"{args.model} is right of {found:.3f} of the canary", hint=f"--least says {args.least:g}")


def install(args: argparse.Namespace) -> int:
    """Install, enrol and start fl-tiny on boards over ssh; what is done already is left out."""
    import asyncio

    from fl_tiny.errors import EnvironmentFault
    from fl_tiny.lab.rollout import DIRECTORY, Options, Row, roll_out

    ssh = tuple(word for option in args.ssh_option for word in ("-o", option))
    where = args.dir or DIRECTORY
    options = Options(args.packages, args.gateway, where, args.parallel, args.dry_run, ssh)

    def told(row: Row) -> None:
        progress(f"{row.host}: {row.fault or ', '.join(row.did) or 'nothing to do'}")

    rows = asyncio.run(roll_out(_hosts(args), options, _codes(args), told))
    found: list[dict[str, Any]] = [
        {"host": r.host, "os": r.os, "did": r.did, "id": r.id, "fault": r.fault or None, "seconds": r.seconds}
        for r in rows
    ]
    lines = [{**row, "did": " ".join(row["did"]), "id": row["id"][:8]} for row in found]
    show(args, found, table(lines, ("host", "os", "did", "id", "seconds", "fault")))
    return EnvironmentFault.EXIT if any(row.fault for row in rows) else 0


def _hosts(args: argparse.Namespace) -> list[str]:
    """The hosts of the command line and of the file, each once. Raises: ConfigError."""
    from fl_tiny.errors import ConfigError, DataError
    from fl_tiny.files import read_bounded

    hosts = list(args.host)
    if args.hosts is not None:
        lines = read_bounded(args.hosts, 1 << 20, DataError).decode("utf-8", "replace").split("\n")
        hosts += [line.partition("#")[0].strip() for line in lines]
    hosts = list(dict.fromkeys(host for host in hosts if host))
    if not hosts:
        raise ConfigError("no host is named", hint="user@host, or -i hosts.txt")
    if wrong := next((host for host in hosts if host.startswith("-") or " " in host), None):
        raise ConfigError(f"{wrong!r} is no host")
    return hosts


def _codes(args: argparse.Namespace) -> Callable[[], str]:
    """A source of codes that nobody has used."""
    if args.gateway_dir is not None:
        from fl_tiny import statedir
        from fl_tiny.gateway import setup

        statedir.act_as_owner(args.gateway_dir) if args.gateway_dir.exists() else None
        return lambda: setup.new_codes(args.gateway_dir, 1, CODE_S)[0]
    cards = _cards(args.codes)
    return lambda: next(cards)


def _cards(folder: Path) -> Iterator[str]:
    """The codes of cards, each card erased when its code is given away. Raises: DataError when there are no more."""
    from fl_tiny.device.codefile import read_code
    from fl_tiny.errors import DataError

    for card in sorted(folder.glob("*/fl-tiny.toml")):
        code = read_code(card)
        card.unlink()
        yield code
    raise DataError(f"{folder} has no more codes", hint="fl-tiny gateway pair DIR --count N --out DIR2")

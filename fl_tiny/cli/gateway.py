# SPDX-License-Identifier: Apache-2.0
"""``fl-tiny gateway``: make, run, pair and look at an aggregator."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fl_tiny.cli import bundle, doctor, peer, upkeep
from fl_tiny.cli.common import (
    as_owner,
    command,
    duration,
    events,
    gateway_store,
    group,
    if_needed_option,
    must_run,
    running_option,
    share,
    show,
    table,
)

DEVICE_COLUMNS = [
    "id", "name", "state", "last_round", "samples", "weight", "counted", "last_seen_s", "outlier", "model", "trouble",
    "lacks",
]  # fmt: skip
ENOUGH_HELD = 20  # held-out samples of all devices; as learn/judge.py, which needs numpy
TASKS = ("classification", "multi-label", "regression")  # learn/loss.py; help needs no numpy


def add(parent: Any) -> None:
    """Declare the commands of this group."""
    sub = group(parent, "gateway", "run the aggregator of a fleet")
    p = command(sub, "init", init, "fl-tiny gateway init gw --model model.tflite --labels labels.txt")
    p.add_argument("dir", type=Path)
    model_options(p)
    p.add_argument("--manifest", type=Path, metavar="M", help="as fl-tiny fleet sign wrote it: no model key lies here")
    if_needed_option(p, "is a gateway")
    p = command(sub, "run", run, "fl-tiny gateway run gw --web 127.0.0.1:8080 --clients 10 --interval 600")
    p.add_argument("dir", type=Path)
    p.add_argument("--bind", metavar="HOST:PORT", help="where to listen (default: [::]:5684, both IPv6 and IPv4)")
    p.add_argument("--web", metavar="HOST:PORT", help="serve the operator's page there (read-only)")
    p.add_argument("--rounds", type=int, metavar="N", help="exit 0 once DIR holds N published rounds in all")
    p.add_argument("--clients", type=int, metavar="N", help="updates wanted a round (default: all devices online)")
    p.add_argument("--quorum", type=float, metavar="SHARE", help="share of them that may close a round (default: 0.6)")
    p.add_argument("--deadline", type=float, metavar="S", help="seconds until a round closes anyway (default: 600)")
    p.add_argument("--interval", type=float, metavar="S", help="seconds between rounds, 0: at once (default: 3600)")
    p.add_argument(
        "--start", choices=("exact", "model"), help="first head: solved at once, or trained (default: model)"
    )
    p.add_argument("--strategy", metavar="NAME", help="fedavg, fedprox, fedavgm, fedadam, fedyogi, or a package's own")
    p.add_argument(
        "--encoding", choices=("auto", "int8", "int4", "topk"), help="of updates; auto: int4 on bad links (default)"
    )
    p = command(sub, "pair", pair, "fl-tiny gateway pair gw --count 50 --expires 7d --out cards")
    p.add_argument("dir", type=Path)
    p.add_argument("--count", type=int, default=1, metavar="N", help="how many codes (default: 1)")
    p.add_argument("--expires", type=duration, metavar="TIME", help="such as 30m, 12h, 7d (default: 10m)")
    p.add_argument("--out", type=Path, metavar="DIR2", help="write one fl-tiny.toml a card below DIR2")
    p.add_argument("--peer", metavar="NAME", help="instead: add a read-only peer for a foreign CoAP stack")
    for name, run_it, example in (
        ("devices", devices, "fl-tiny gateway devices gw --json"),
        ("rounds", rounds, "fl-tiny gateway rounds gw"),
    ):
        command(sub, name, run_it, example).add_argument("dir", type=Path)
    p = command(sub, "status", status, "fl-tiny gateway status gw --json")
    p.add_argument("dir", type=Path)
    running_option(p)
    doctor.add(sub, "gateway", "gw")
    for name, run_it in (("revoke", revoke), ("release", release), ("forget", forget)):
        p = command(sub, name, run_it, f"fl-tiny gateway {name} gw kitchen")
        p.add_argument("dir", type=Path)
        p.add_argument("device", help="an id, a unique prefix of one, or a name")
    p = command(sub, "publish", publish, "fl-tiny gateway publish gw v2.manifest --model v2.tflite --share 0.2")
    p.add_argument("dir", type=Path)
    p.add_argument("manifest", type=Path, help="what fl-tiny fleet sign wrote")
    p.add_argument("--model", type=Path, required=True, help="the .tflite that it was signed for")
    p.add_argument("--share", type=share, default=1.0, help="of the devices, above 0 (default: 1, all of them)")
    bundle.add_commands(sub)
    peer.add_commands(sub)
    upkeep.add_commands(sub)


def model_options(p: argparse.ArgumentParser) -> None:
    """Declare what is said of a model before it is signed."""
    p.add_argument("--model", type=Path, required=True, help="the int8 .tflite the fleet trains")
    p.add_argument(
        "--layers", type=int, metavar="K", help="train the last K layers (default: 2 dense ones, or 1 if only 1)"
    )
    p.add_argument(
        "--task", choices=TASKS, help="what the outputs are taught (default: classification where it can be)"
    )
    p.add_argument(
        "--bias-only", action="store_true", help="train the layers' biases alone: a tenth of the bytes or less"
    )
    p.add_argument("--labels", type=Path, metavar="L.txt", help="names of the classes, one a line")
    p.add_argument("--preprocess", type=Path, metavar="P.toml", help="how files become inputs (default: DIR's table)")


def wanted_of(args: argparse.Namespace) -> Any:
    """What these options say."""
    from fl_tiny.gateway.manifests import Wanted
    from fl_tiny.learn.loss import Task

    return Wanted(args.layers, Task(args.task) if args.task else None, args.bias_only, args.preprocess)


def init(args: argparse.Namespace) -> None:
    """Make DIR the gateway of a fleet that trains this model."""
    from fl_tiny.errors import ConfigError
    from fl_tiny.gateway import setup

    said = (args.layers, args.task, args.bias_only or None, args.labels, args.preprocess)
    if args.manifest is not None and said != (None,) * len(said):
        raise ConfigError("--manifest says it all of the model", hint="give such options to fl-tiny fleet sign")
    made = (setup.initialised(args.dir) if args.if_needed else None) or setup.initialise(
        args.dir, args.model, args.labels, wanted_of(args), args.manifest
    )
    text = (
        f"{args.dir} is a gateway for {made.model}, training its last {made.layers} layers\n"
        f"model key {made.model_key}\nnext: fl-tiny gateway run {args.dir}, and fl-tiny gateway pair {args.dir}"
    )
    show(args, {"model": made.model, "layers": made.layers, "model_key": made.model_key}, text)


def run(args: argparse.Namespace) -> None:
    """Run the rounds of DIR's fleet."""
    from fl_tiny.gateway import server

    as_owner(args.dir)
    options = server.RunOptions(
        args.bind,
        args.web,
        args.rounds,
        args.clients,
        args.quorum,
        args.deadline,
        args.interval,
        args.start,
        args.strategy,
        args.encoding,
    )
    server.run(args.dir, options, events(args))


def pair(args: argparse.Namespace) -> None:
    """Make single-use pairing codes for new devices, or a read-only peer."""
    from fl_tiny import config, statedir
    from fl_tiny.errors import ConfigError
    from fl_tiny.gateway import setup

    as_owner(args.dir)
    if args.peer is not None:
        identity, key = setup.new_peer(args.dir, args.peer)
        show(args, {"identity": identity, "key": key}, f"identity {identity}\nkey      {key}")
        return
    if not 1 <= args.count <= 10_000:
        raise ConfigError(f"--count {args.count} is not from 1 to 10000")
    settings = config.load(args.dir / statedir.SETTINGS, config.GatewaySettings)
    seconds = args.expires if args.expires is not None else settings.code_minutes * 60
    codes = setup.new_codes(args.dir, args.count, seconds)
    if args.out is not None:
        setup.write_cards(args.out, codes)
    made = [{"code": code, "expires_s": round(seconds)} for code in codes]
    text = "\n".join(codes)
    if args.count == 1 and not args.json and args.out is None:
        print(_qr(codes[0]), end="")  # not by ``show``: it turns colours round
        text = f"{codes[0]}\non the device: fl-tiny device enroll DIR --code {codes[0]}"
    show(args, made[0] if args.count == 1 else made, text)


def devices(args: argparse.Namespace) -> None:
    """List the devices of the fleet."""
    from fl_tiny.gateway import setup

    rows = setup.device_rows(gateway_store(args.dir, reading=True))
    show(
        args,
        rows,
        table([{**row, "lacks": ", ".join(row["lacks"])} for row in rows], DEVICE_COLUMNS),
    )


def rounds(args: argparse.Namespace) -> None:
    """List the rounds, oldest first."""
    rows = gateway_store(args.dir, reading=True).rounds()
    names = ("number", "kind", "state", "invited", "received", "samples", "loss", "accuracy", "held", "seconds")
    shown = [row | ({"accuracy": "too few to tell"} if 0 < row["held"] < ENOUGH_HELD else {}) for row in rows]
    show(args, rows, table(shown, names))


def status(args: argparse.Namespace) -> None:
    """Say where the gateway listens and what it is doing."""
    from fl_tiny import statedir
    from fl_tiny.gateway import setup

    store = gateway_store(args.dir, reading=True)
    running = statedir.is_running(args.dir)
    must_run(args, running)
    found = setup.summary(store, running)
    show(args, found, "\n".join(f"{key:8} {value}" for key, value in found.items()))


def revoke(args: argparse.Namespace) -> None:
    """Take a device out of the fleet, at once and for good."""
    from fl_tiny.gateway import setup

    store = gateway_store(args.dir)
    device = setup.find_device(store, args.device)
    store.revoke(device.did)
    show(args, {"id": device.did.hex(), "state": "revoked"}, f"{device.did.hex()} is revoked")


def release(args: argparse.Namespace) -> None:
    """Take a device out of quarantine, once there is one of it."""
    from fl_tiny.errors import ConfigError
    from fl_tiny.gateway import identity, setup

    store = gateway_store(args.dir)
    device = setup.find_device(store, args.device)
    if device.state != "quarantined":
        raise ConfigError(f"{device.did.hex()} is {device.state}, not in quarantine")
    identity.release(store, device.did)
    show(args, {"id": device.did.hex(), "state": "active"}, f"{device.did.hex()} is active")


def forget(args: argparse.Namespace) -> None:
    """Take a device out of the fleet and of its head, as if it had never been there; after an exact start only."""
    from fl_tiny.gateway.forget import forget as forget_device

    as_owner(args.dir)
    device, number = forget_device(args.dir, args.device)
    found = {"id": device.did.hex(), "state": "revoked", "round": number}
    show(args, found, f"{device.did.hex()} is revoked, and head {number} is made without it")


def publish(args: argparse.Namespace) -> None:
    """Roll a signed model out to a share of the fleet's devices, or to all; each tries it and keeps what works."""
    from fl_tiny.gateway import manifests, models

    store = gateway_store(args.dir)
    made = models.publish(args.dir, store, args.model, manifests.read_manifest(args.manifest), args.share)
    found = {"model": made.name, "counter": made.counter, "share": args.share}
    show(args, found, f"{made.name}, counter {made.counter}, is for {args.share:.0%} of the devices")


def _qr(code: str) -> str:
    """The code as a QR for a terminal, empty without the library of the extra [gateway]."""
    try:
        import segno
    except ImportError:
        return ""
    import io

    picture = io.StringIO()
    segno.make(code, error="l").terminal(picture, compact=True)
    return picture.getvalue()

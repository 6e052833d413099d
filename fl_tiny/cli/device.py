# SPDX-License-Identifier: Apache-2.0
"""``fl-tiny device``: enrol a board, run it, look at it."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import Any

from fl_tiny.cli import doctor, update
from fl_tiny.cli.common import (
    command,
    events,
    group,
    if_needed_option,
    must_run,
    running_option,
    runtime_option,
    show,
)

CANDIDATES = ("previous", "global", "personal")  # for a board's model


def add(parent: Any) -> None:
    """Declare the commands of this group."""
    sub = group(parent, "device", "enrol and run this board")
    p = command(sub, "enroll", enroll, "fl-tiny device enroll dev --code FL1:…")
    p.add_argument("dir", type=Path)
    code = p.add_mutually_exclusive_group()
    code.add_argument("--code", metavar="CODE|-|@FILE", help="the pairing code; -: from stdin; @FILE")
    code.add_argument("--code-file", type=Path, metavar="F", help="the code in F, which is erased there afterwards")
    p.add_argument("--model-key", metavar="HASH", help="accept models signed by this key alone (fl-tiny fleet init)")
    p.add_argument("--gateway", metavar="HOST:PORT", help="where the gateway is (default: the address in the code)")
    p.add_argument("--name", help="what the operator sees for this board, such as kitchen")
    if_needed_option(p, "is enrolled")
    p = command(sub, "provision", provision, "fl-tiny device provision /boot/fl-tiny.toml /var/lib/fl-tiny/device")
    p.add_argument("file", type=Path, help="the settings on a card; one that is missing leaves the last good ones")
    p.add_argument("dir", type=Path)
    p.add_argument(
        "--root", type=Path, default=Path("/"), metavar="DIR2", help="whose /run gets the files (default: /)"
    )
    p = command(sub, "run", run, "fl-tiny device run dev")
    p.add_argument("dir", type=Path)
    until = p.add_mutually_exclusive_group()
    until.add_argument("--once", action="store_true", help="take part in what is open, then exit (for a timer)")
    until.add_argument("--rounds", type=int, metavar="N", help="exit 0 once DIR has N counted rounds")
    p.add_argument("--background", action="store_true", help="train in what other programs leave of CPU and disk")
    runtime_option(p)
    update.root_option(p)
    doctor.add(sub, "device", "dev")
    command(sub, "rekey", rekey, "fl-tiny device rekey dev").add_argument("dir", type=Path)
    p = command(sub, "status", status, "fl-tiny device status dev --json")
    p.add_argument("dir", type=Path)
    running_option(p)
    p = command(sub, "privacy", privacy, "fl-tiny device privacy dev")
    p.add_argument("dir", type=Path)
    update.add(sub)


def enroll(args: argparse.Namespace) -> None:
    """Enrol this board with a gateway by a single-use code."""
    import asyncio

    from fl_tiny import statedir
    from fl_tiny.device.codefile import erase_code
    from fl_tiny.device.enrol import enrol, enrolled

    if args.dir.exists():
        statedir.act_as_owner(args.dir)
    done = enrolled(args.dir) if args.if_needed else None  # before the code is read: it may be gone by now
    if done is None:
        name = args.name or _board_name(args.dir)
        done = asyncio.run(enrol(args.dir, _code(args), args.gateway, name, args.model_key))
    for file in (args.code_file, args.dir / statedir.SETTINGS):
        if file is not None and file.exists():
            erase_code(file)
    text = f"enrolled as {done.id} with {done.gateway}, model {done.model}\nnext: fl-tiny device run {args.dir}"
    show(args, {"id": done.id, "gateway": done.gateway, "model": done.model}, text)


def provision(args: argparse.Namespace) -> None:
    """Bring about the settings on a card: network, name, SSH, and the device's own; at every boot, as root."""
    from fl_tiny.device.provision import provision as bring_about

    done = bring_about(args.file, args.dir, args.root)
    if done.faults:
        used = " (the last good settings are used)" if done.file == "wrong" else ""
        worst = max(done.faults, key=lambda fault: fault.EXIT)
        raise type(worst)("; ".join(map(str, done.faults)) + used)
    text = f"{args.file}: {done.file}; did: {', '.join(done.did) or 'nothing'}"
    show(args, {"file": done.file, "did": done.did}, text)


def run(args: argparse.Namespace) -> None:
    """Take part in the fleet's rounds; SIGTERM ends it at once, losing nothing."""
    # asyncio wants ssl for TLS streams only and goes without it: 1.1 MiB of a device's idle memory (measured).
    sys.modules.setdefault("ssl", None)  # type: ignore[arg-type]
    import asyncio

    from fl_tiny import statedir
    from fl_tiny.device.agent import Agent
    from fl_tiny.device.codefile import erase_code
    from fl_tiny.device.machine import Machine
    from fl_tiny.device.store import DeviceStore

    if args.dir.exists():
        statedir.act_as_owner(args.dir)
    DeviceStore.open(args.dir / statedir.DATABASE).close()  # its refusal comes before the lock's
    if (args.dir / statedir.SETTINGS).exists():
        erase_code(args.dir / statedir.SETTINGS)  # an enrolled device has no more use for one
    if args.runtime:
        from fl_tiny.device.runtimes import chosen

        chosen(args.runtime)  # rounds train on stored features; what is named is for what stores and predicts
    statedir.check_modes(args.dir)
    with statedir.locked(args.dir):
        agent = Agent(args.dir, events(args), background=args.background, machine=Machine(args.root))
        asyncio.run(until_stopped(agent.run(once=args.once, rounds=args.rounds), "looking for its gateway"))


async def until_stopped(work: Any, doing: str) -> None:
    """Run until done; SIGTERM returns, SIGINT raises KeyboardInterrupt."""
    import asyncio

    from fl_tiny import notify

    task = asyncio.ensure_future(work)
    caught: list[int] = []

    def stop(number: int) -> None:
        caught.append(number)
        task.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    try:
        async with notify.serving(doing):
            await task
    except asyncio.CancelledError:
        if signal.SIGINT in caught:
            raise KeyboardInterrupt from None


def rekey(args: argparse.Namespace) -> None:
    """Give this board a new key and a new PSK; its id stays. The daemon must not run."""
    import asyncio

    from fl_tiny import config, statedir
    from fl_tiny.device.find import DEFAULT_PORT
    from fl_tiny.device.newkey import make_new_key
    from fl_tiny.device.store import DeviceStore

    if args.dir.exists():
        statedir.act_as_owner(args.dir)
    store = DeviceStore.open(args.dir / statedir.DATABASE)
    settings = config.load(args.dir / statedir.SETTINGS, config.DeviceSettings)
    address = config.address(settings.gateway or store.get("gateway"), DEFAULT_PORT)
    with statedir.locked(args.dir):
        gen = asyncio.run(make_new_key(args.dir, store, settings, address))
    did = store.get("did").hex()
    show(args, {"id": did, "generation": gen}, f"{did} has key number {gen + 1}")


def status(args: argparse.Namespace) -> None:
    """Say what this board holds and how its model does on its own held-out samples."""
    from fl_tiny import statedir
    from fl_tiny.device import slots
    from fl_tiny.device.store import DeviceStore
    from fl_tiny.protocol import signed

    if args.dir.exists():
        statedir.act_as_owner(args.dir)
    store = DeviceStore.open(args.dir / statedir.DATABASE, reading=True)
    kept = store.kept()
    running = statedir.is_running(args.dir)
    must_run(args, running)
    refused = slots.refusal(store)
    found = {
        "id": store.get("did").hex(),
        "state": "running" if running else "stopped",
        "gateway": store.get("gateway"),
        "model": {
            "name": slots.manifest_of(store.get("manifest")).name,
            "counter": slots.manifest_of(store.get("manifest")).counter,
            "confirmed": store.get("tries") is None,
            "refused": f"{refused.counter}: {refused.why} (code {refused.code})" if refused else None,
        },
        "model_key": {
            "sha256": signed.digest(store.get("model_pk")).hex(),
            "from": "pinned" if store.get("model_pinned") else "the gateway's word at enrolment",
        },
        "gateway_key": {
            "sha256": signed.digest(store.get("gateway_pk")).hex(),
            "serial": store.get("gateway_serial") or 0,
        },
        "trouble": store.get("trouble") or None,
        "rounds": store.rounds,
        "samples": store.sample_count()[0],
        "held_out": store.sample_count()[1],
        "declines": _declines(store, args.dir),
        "kept": kept.kind,
        "accuracy": {
            "previous": kept.previous,
            "global": kept.fleet,
            "personal": kept.personal,
            "samples": kept.judged,
            "groups": kept.groups,
            "on": "this board's held-out samples, which none of the three was trained on",
        },
        "chosen_on": kept.chosen_on,
    }
    show(args, found, _status_text(found))


def privacy(args: argparse.Namespace) -> None:
    """Say what has left this board for rounds, and what it would not send."""
    from fl_tiny import config, statedir
    from fl_tiny.device.store import DeviceStore

    if args.dir.exists():
        statedir.act_as_owner(args.dir)
    store = DeviceStore.open(args.dir / statedir.DATABASE, reading=True)
    allows = config.load(args.dir / statedir.SETTINGS, config.DeviceSettings).privacy or config.Privacy()
    sent, refused, summed = store.left.bodies(), store.left.refusals(), store.left.summed()
    found = {
        "allows": {name: getattr(allows, name) for name in ("least", "sums", "min_samples", "min_class", "metrics")},
        "sent": [dict(zip(("number", "kind", "bytes", "samples"), row, strict=True)) for row in sent],
        "refused": [{"number": number, "why": why} for number, why in refused],
        "summed": summed[1] if summed else None,
    }
    text = [
        f"rounds     {'taken part in' if allows.least == 'clear' else 'none'}, of {allows.min_samples} samples or more",
        f"sums       {'given' if allows.sums == 'clear' else 'never'}, of classes with {allows.min_class} or more",
        f"accuracy   {'told' if allows.metrics else 'kept to this board'}",
    ]
    text += [f"round {number}: sent {size} B, {kind} of {samples} samples" for number, kind, size, samples in sent]
    text += [f"round {number}: refused, {why}" for number, why in refused]
    show(args, found, "\n".join(text if sent or refused else [*text, "nothing has left this board"]))


def _declines(store: Any, directory: Path) -> str | None:
    """Why this board takes part in no round; None when its samples suffice."""
    from fl_tiny import config, statedir
    from fl_tiny.device import slots
    from fl_tiny.protocol.consent import lacking

    samples, held = store.sample_count()
    classes = None if slots.manifest_of(store.get("manifest")).task else len(store.counts())
    allows = config.load(directory / statedir.SETTINGS, config.DeviceSettings).privacy or config.Privacy()
    return lacking(samples, held, classes, allows.floors) or None


def _status_text(found: dict[str, Any]) -> str:
    """The status in plain words, a fact a line."""
    model, key, accuracy = found["model"], found["model_key"], found["accuracy"]
    lines = {
        "id": found["id"],
        "state": found["state"],
        "gateway": found["gateway"],
        "model": f"{model['name']}, counter {model['counter']}, {'' if model['confirmed'] else 'not '}confirmed",
        "refused": model["refused"],
        "model key": f"{key['sha256']} ({key['from']})",
        "trouble": found["trouble"],
        "rounds": f"{found['rounds']} counted",
        "declines": found["declines"],
        "samples": f"{found['samples']}, of which {found['held_out']} are held out",
        "kept": f"{found['kept']}{_reason(found)}",
        "accuracy": _accuracy_text(accuracy),
    }
    return "\n".join(f"{name:10}{text}" for name, text in lines.items() if text is not None)


def _accuracy_text(accuracy: dict[str, Any]) -> str:
    shares = {name: accuracy[name] for name in CANDIDATES}
    if accuracy["samples"] is None:
        return "not measured yet"
    on = f"on {accuracy['samples']} held-out samples in {accuracy['groups']} groups"
    if None in shares.values():
        return f"too few to tell {on}"
    return ", ".join(f"{name} {share:.2f}" for name, share in shares.items()) + f", {on}"


def _reason(found: dict[str, Any]) -> str:
    """Why another candidate with a higher figure was not kept; empty where there is none."""
    accuracy, kept = found["accuracy"], found["kept"]
    shares = {name: accuracy[name] for name in CANDIDATES}
    if kept not in shares or None in shares.values() or shares[kept] >= max(shares.values()):
        return ""
    if found["chosen_on"] != accuracy["samples"]:
        return (
            f" (by loss and accuracy on all {found['chosen_on']} samples in parts, where a head of the fleet must lead"
            " clearly, since it was trained on most of them)"
        )
    return " (no other has both less loss and no less accuracy)"


def _board_name(directory: Path) -> str | None:
    """What the settings call this board."""
    from fl_tiny import config, statedir

    board = config.load(directory / statedir.SETTINGS, config.DeviceSettings).board
    return board.name if board is not None else None


def _code(args: argparse.Namespace) -> str:
    """The code itself: as given, from stdin for ``-``, from a file, or from DIR's settings. Raises: ConfigError."""
    from fl_tiny import config, statedir
    from fl_tiny.device.codefile import read_code
    from fl_tiny.errors import ConfigError

    if args.code_file is not None:
        return read_code(args.code_file)
    if args.code is None:
        found = config.load(args.dir / statedir.SETTINGS, config.DeviceSettings).pairing_code
        if found is None:
            raise ConfigError("no pairing code is given", hint="--code, --code-file, or pairing_code in the settings")
        return found
    if args.code == "-":
        return sys.stdin.read(1024)
    text: str = args.code
    return read_code(Path(text[1:])) if text.startswith("@") else text

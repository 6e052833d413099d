# SPDX-License-Identifier: Apache-2.0
"""``fl-tiny samples``: what a board learns from, kept as features."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fl_tiny.cli.common import command, events, group, runtime_option, show, steady
from fl_tiny.cli.sources import add_sources, opened, warn


def add(parent: Any) -> None:
    """Declare the commands of this group."""
    sub = group(parent, "samples", "add, count and forget what this board learns from")
    p = command(sub, "add", add_samples, "fl-tiny samples add dev --data D.npz")
    p.add_argument("dir", type=Path)
    add_sources(p)
    runtime_option(p)
    command(sub, "stats", stats, "fl-tiny samples stats dev --json").add_argument("dir", type=Path)
    command(sub, "serve", serve, "fl-tiny samples serve dev").add_argument("dir", type=Path)
    p = command(sub, "forget", forget, "fl-tiny samples forget dev --label 3")
    p.add_argument("dir", type=Path)
    which = p.add_mutually_exclusive_group(required=True)
    which.add_argument("--label", type=int, metavar="L", help="forget the samples of this class")
    which.add_argument("--all", action="store_true", help="forget every sample")


def add_samples(args: argparse.Namespace) -> None:
    """Turn labelled inputs into features and store those; the inputs themselves are not kept."""
    import numpy as np

    from fl_tiny.device.evaluation import expected_of, real_values
    from fl_tiny.device.sources.files import Wanted

    device = _device(args.dir, args.runtime)
    data = opened(args, Wanted(device.model, expected_of(device.model), device.labels, device.preprocess))
    features, own = [], []
    for batch in steady(data.batches(), "features", data.samples):
        features.append(device.features(batch))
        if data.labels is None:  # an autoencoder's samples are their own targets
            own.append(real_values(device.model.input, batch).reshape(len(batch), -1))
    warn(data)
    labels = np.concatenate(own) if data.labels is None else data.labels
    found = device.take_features(np.concatenate(features), labels, runtime=device.runtime, stretches=data.stretches)
    total = _store(args.dir, reading=True).sample_count()[0]
    text = f"added {found.added}, {found.known} known, {total} stored"
    if found.relabelled:
        text += f"; {found.relabelled} of the known had another label: the new one counts"
    show(args, {**found._asdict(), "samples": total, "skipped": len(data.faults)}, text)


def stats(args: argparse.Namespace) -> None:
    """Count the stored samples."""
    device = _device(args.dir, reading=True)
    store = _store(args.dir, reading=True)
    samples, held_out = store.sample_count()
    found = {
        "samples": samples,
        "held_out": held_out,
        "classes": {str(label): n for label, n in store.counts().items()},
        "bytes": store.sample_bytes(),
        "feature_shape": list(device.spec.feature_shape),
        "runtime": store.get("runtime"),
    }
    names = device.labels or {label: str(label) for label in store.counts()}
    classes = ", ".join(f"{names[label]} {n}" for label, n in store.counts().items())
    text = {**found, "classes": classes, "feature_shape": "x".join(map(str, device.spec.feature_shape))}
    show(args, found, "\n".join(f"{key:14}{'none' if value is None else value}" for key, value in text.items()))


def serve(args: argparse.Namespace) -> None:
    """Take samples as they come, from where [source] of the settings says; until SIGTERM."""
    import sys

    # as in `device run`: asyncio goes without it
    sys.modules.setdefault("ssl", None)  # type: ignore[arg-type]
    import asyncio

    from fl_tiny import config, statedir
    from fl_tiny.cli.device import until_stopped
    from fl_tiny.device.sources.service import Service
    from fl_tiny.device.store import DeviceStore

    if args.dir.exists():
        statedir.act_as_owner(args.dir)
    DeviceStore.open(args.dir / statedir.DATABASE).close()
    source = config.load(args.dir / statedir.SETTINGS, config.DeviceSettings).source
    if source is None:
        show(args, {"event": "idle"}, f"{args.dir}: the settings name no [source]: nothing to do")
        return
    with statedir.locked(args.dir, statedir.SOURCE_LOCK):
        asyncio.run(until_stopped(Service(args.dir, source, events(args)).run(), "taking samples"))


def forget(args: argparse.Namespace) -> None:
    """Remove samples, and what training on them left to send; what published heads learned stays."""
    store = _store(args.dir)
    gone = store.forget(None if args.all else args.label)
    left = store.sample_count()[0]
    show(args, {"forgotten": gone, "samples": left}, f"forgot {gone} samples, {left} stored")


def _device(directory: Path, runtime: str | None = None, *, reading: bool = False) -> Any:
    from fl_tiny import statedir
    from fl_tiny.device.api import Device

    if directory.exists():
        statedir.act_as_owner(directory)
    return Device.open(directory, runtime=runtime, reading=reading)


def _store(directory: Path, *, reading: bool = False) -> Any:
    from fl_tiny import statedir
    from fl_tiny.device.store import DeviceStore

    return DeviceStore.open(directory / statedir.DATABASE, reading=reading)

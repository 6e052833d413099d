# SPDX-License-Identifier: Apache-2.0
"""``fl-tiny simulate``: a gateway on this machine under many devices."""

from __future__ import annotations

import argparse
from typing import Any

from fl_tiny.cli.common import command, positive, progress, show, until_signal


def add(parent: Any) -> None:
    """Declare the command."""
    p = command(parent, "simulate", simulate, "fl-tiny simulate --devices 1000 --head 1280x10 --encoding int4")
    p.add_argument("--devices", type=positive, default=20, metavar="N", help="how many (default: 20)")
    p.add_argument("--head", type=_head, default=(64, 10), metavar="INxOUT", help="size of the head (default: 64x10)")
    p.add_argument("--encoding", choices=("auto", "int8", "int4", "topk"), default="int8", help="default: int8")
    p.add_argument("--rounds", type=positive, default=1, metavar="R", help="default: 1")
    p.add_argument("--seed", type=positive, default=1, metavar="S", help="of the changes drawn (default: 1)")
    p.add_argument(
        "--handshakes-per-s", type=positive, default=50, metavar="H", help="the gateway's setting (default: 50)"
    )


def simulate(args: argparse.Namespace) -> None:
    """Run a gateway under many devices that speak the real protocol, and say what it took."""
    from fl_tiny.lab.load import Options, run

    options = Options(args.devices, args.head, args.encoding, args.rounds, args.seed, args.handshakes_per_s)
    load = until_signal(run(options, progress))
    rows = load.as_json()
    show(args, rows, "\n".join(f"{name:13} {value}" for name, value in rows.items()))


def _head(text: str) -> tuple[int, int]:
    """``1280x10``, for argparse."""
    inputs, _, outputs = text.partition("x")
    if not (inputs.isdecimal() and outputs.isdecimal() and 1 <= int(inputs) <= 65_535 and 1 <= int(outputs) <= 65_535):
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 64x10")
    if (int(inputs) + 1) * int(outputs) > 262_144:
        raise argparse.ArgumentTypeError(f"{text!r} has more than 262144 parameters")
    return int(inputs), int(outputs)

# SPDX-License-Identifier: Apache-2.0
"""``fl-tiny image``: images for boards, on a workstation."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from fl_tiny.cli.common import command, group, progress, show, table


def add(parent: Any) -> None:
    """Declare the commands of this group."""
    sub = group(parent, "image", "images for boards: what there is, what is done, make one")
    p = command(sub, "boards", boards, "fl-tiny image boards")
    _recipes(p)
    p = command(sub, "plan", plan_, "fl-tiny image plan qemu-arm64", json_flag=False)
    _board(p)
    p = command(sub, "build", build, "fl-tiny image build qemu-arm64 --out images")
    _board(p)
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="where it goes")
    _made(p)
    p = command(sub, "bundle", bundle, "fl-tiny image bundle qemu-arm64")
    _board(p)
    p.add_argument(
        "--keys", type=Path, metavar="KEYS", help="the fleet's, of scripts/update-keys (default: update-keys)"
    )
    p.add_argument("--out", type=Path, metavar="DIR", help="where it goes (default: dist/images)")
    _made(p)
    p = command(sub, "provision", provision, "fl-tiny image provision board.img --config fl-tiny.toml")
    p.add_argument("image", type=Path, metavar="IMG", help="an image that is not compressed; it is changed")
    p.add_argument("--config", type=Path, metavar="F", help="settings for the board, as on a card")
    p.add_argument(
        "--batch", type=Path, metavar="DIR2", help="instead: an image for each code of gateway pair --out DIR2"
    )
    p.add_argument("--out", type=Path, metavar="DIR3", help="where those images go (default: beside IMG)")
    p = command(sub, "verify", verify, "fl-tiny image verify board.img")
    p.add_argument("image", type=Path, metavar="IMG", help="an image that is not compressed")
    p.add_argument("--board", metavar="BOARD", help="the board that it must be for (default: the one it says)")
    p.add_argument("--record", type=Path, metavar="F", help="keep what was found, with the image's digest and sizes")
    _recipes(p)


def _made(p: argparse.ArgumentParser) -> None:
    """What making anything for a board takes."""
    p.add_argument("--packages", type=Path, metavar="DIR2", help="fl-tiny's own packages (default: dist/deb)")
    p.add_argument(
        "--release", type=dotted, metavar="N.N", help="by which boards tell older bundles (default: version.time)"
    )
    p.add_argument("--work", type=Path, metavar="DIR3", help="what is kept for the next build (default: build/image)")
    locks = p.add_mutually_exclusive_group()
    what = (
        "keep versions and digests of Debian's packages in image/lock; without it a build says what differs from them"
    )
    locks.add_argument("--update-lock", action="store_true", help=what)
    what = "take the packages of a lock and no others (default: the one in image/lock)"
    locks.add_argument("--locked", type=Path, nargs="?", const=Path(), metavar="F", help=what)


def _recipes(parser: argparse.ArgumentParser) -> None:
    what = "the folder image of a checkout (default: the one beside this program)"
    parser.add_argument("--recipes", type=Path, metavar="DIR", help=what)


def _board(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("board", metavar="BOARD", help="a name that `image boards` lists")
    parser.add_argument(
        "--kernel", type=Path, metavar="DEB", help="a kernel's package, for boards that Debian has none for"
    )
    parser.add_argument(
        "--ca", type=Path, metavar="PEM", help="the fleet's CA: only bundles that it vouches for are taken"
    )
    _recipes(parser)


def dotted(text: str) -> str:
    """Numbers with dots between them, for argparse."""
    if not all(part.isdecimal() and len(part) <= 12 for part in text.split(".")):
        raise argparse.ArgumentTypeError(f"{text!r} is no release such as 2026.11.3")
    return text


def boards(args: argparse.Namespace) -> None:
    """List the boards that images can be made for, and what was shown of each."""
    from fl_tiny.image.boards import find_recipes, load_board, names

    recipes = find_recipes(args.recipes)
    found = [load_board(recipes, name) for name in names(recipes)]
    rows = [
        {
            "name": b.name,
            "title": b.title,
            "suite": b.suite,
            "boot": b.boot.chain,
            "claim": b.claim,
            "log": b.log or None,
        }
        for b in found
    ]
    show(args, rows, table(rows, ["name", "suite", "boot", "claim", "title"]))


def plan_(args: argparse.Namespace) -> None:
    """Print what would be done to make an image, step by step; nothing is looked at but the board's file."""
    from fl_tiny.image.plan import describe

    print(describe(_steps(args, brought="KERNEL.deb")), end="")


def build(args: argparse.Namespace) -> None:
    """Make an image and what goes with it; what an earlier build made of the same inputs is taken again."""
    from fl_tiny.image.build import build

    made = {kind: str(path) for kind, path in build(*_settled(args), args.out).items()}
    show(args, made, "\n".join(f"{kind}  {path}" for kind, path in made.items()))


def bundle(args: argparse.Namespace) -> None:
    """Make a bundle of a release, signed by the fleet's keys: what `device update` and `gateway bundle add` take."""
    from fl_tiny.image import bundle

    top = _top(args)
    keys, out = args.keys or top / "update-keys", args.out or top / "dist/images"
    args.ca = args.ca or keys / bundle.CA
    made = bundle.bundle(*_settled(args), keys, out)
    show(args, {"bundle": str(made)}, str(made))


def _settled(args: argparse.Namespace) -> tuple[Any, Any]:
    """The plan of a release, and where things are for it."""
    from fl_tiny import __version__
    from fl_tiny.image.boards import find_recipes
    from fl_tiny.image.build import Places

    recipes, top = find_recipes(args.recipes), _top(args)
    packages, work = args.packages or top / "dist/deb", args.work or top / "build/image"
    epoch = _epoch(top)
    kept = recipes / "lock" / f"{args.board}.toml"
    lock = args.locked if args.locked not in (None, Path()) else kept
    places = Places(recipes, packages, work.resolve(), epoch, progress, lock, args.update_lock, args.locked is not None)
    return _steps(args, args.release or f"{__version__}.{epoch}"), places


def _top(args: argparse.Namespace) -> Path:
    """The checkout whose recipes are used."""
    from fl_tiny.image.boards import find_recipes

    return find_recipes(args.recipes).resolve().parent


def provision(args: argparse.Namespace) -> None:
    """Put settings onto an image's FAT partition, or make an image for each of many codes; nothing is mounted."""
    from fl_tiny.errors import ConfigError
    from fl_tiny.image import provision

    if args.batch is None:
        if args.config is None:
            raise ConfigError("nothing to put into the image", hint="--config FILE, or --batch DIR2")
        provision.provision(args.image, args.config)
        made = [args.image]
    else:
        made = provision.batch(args.image, args.config, args.batch, args.out or args.image.parent, progress)
    show(args, [str(path) for path in made], "\n".join(map(str, made)))


def verify(args: argparse.Namespace) -> int:
    """Hold an image against its board: partitions, boot files, firmware, its slot, kernel options, device trees."""
    from fl_tiny.image import evidence, tools
    from fl_tiny.image.boards import find_recipes, load_base, load_board, names
    from fl_tiny.image.verify import board_of, verify

    recipes = find_recipes(args.recipes)
    if args.board:
        board = load_board(recipes, args.board)
    else:
        board = board_of(args.image, (load_board(recipes, name) for name in names(recipes)))
    found = verify(args.image, board, load_base(recipes))
    if args.record is not None:
        today = tools.run("date", "-u", "+%Y-%m-%d").strip()
        evidence.write(evidence.record(args.image, board.name, found, today), args.record)
    rows: list[dict[str, Any]] = [
        {"check": f.check, "state": "fail" if f.missing else "ok", "looked_at": f.looked_at, "missing": list(f.missing)}
        for f in found
    ]
    lines = [f"{row['state']:5}{row['check']}: {'; '.join(row['missing']) or row['looked_at']}" for row in rows]
    show(args, rows, "\n".join(lines))
    return 1 if any(f.missing for f in found) else 0


def _steps(args: argparse.Namespace, release: str = "RELEASE", brought: str = "") -> Any:
    """The plan of the board that was named. brought: what stands for a kernel of yours in a plan that is only read."""
    from fl_tiny import __version__
    from fl_tiny.errors import ConfigError
    from fl_tiny.image.boards import find_recipes, load_base, load_board
    from fl_tiny.image.plan import Release, options, plan

    recipes = find_recipes(args.recipes)
    board, base = load_board(recipes, args.board), load_base(recipes)
    if board.kernel.brought and not (args.kernel or brought):
        needed = ", ".join(f"CONFIG_{name}" for name in options(board, base))
        raise ConfigError(f"{board.name} needs a kernel of yours, with {needed}", hint="--kernel DEB")
    if args.kernel and not board.kernel.brought:
        raise ConfigError(f"{board.name} has its kernel from Debian", hint="leave --kernel out")
    kernel = str(args.kernel or (brought if board.kernel.brought else ""))
    release_ = Release(__version__, release, kernel=kernel, ca=str(args.ca or ""))
    return plan(board, base, release_)


def _epoch(top: Path) -> int:
    """The time that everything in the image has. Raises: ConfigError."""
    from fl_tiny.errors import ConfigError, EnvironmentFault
    from fl_tiny.image.tools import run

    given = os.environ.get("SOURCE_DATE_EPOCH", "")
    try:
        return int(given or run("git", "-C", top, "log", "-1", "--format=%ct"))
    except (ValueError, EnvironmentFault) as cause:
        raise ConfigError(f"no time for the image's files: {cause}", hint="set SOURCE_DATE_EPOCH") from cause

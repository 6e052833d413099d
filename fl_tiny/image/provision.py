# SPDX-License-Identifier: Apache-2.0
"""Settings of a board put into its image, without mounting it: one image, or one for each pairing code."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from fl_tiny import statedir
from fl_tiny.config import SIZE_LIMIT, DeviceSettings, load_whole
from fl_tiny.errors import ConfigError, DataError
from fl_tiny.files import read_bounded
from fl_tiny.image import disk, tools


def provision(image: Path, settings: Path) -> None:
    """Put a checked settings file onto the image's FAT. Raises: ConfigError with every fault, DataError."""
    _write(image, _text(settings))


def batch(image: Path, settings: Path | None, cards: Path, out: Path, say: Callable[[str], None]) -> list[Path]:
    """An image below ``out`` for each card of ``gateway pair --out``; a card is erased when its image holds the code.

    Raises: ConfigError; DataError when there is no card. What is there already is left as it is.
    """
    text = _text(settings) if settings is not None else ""
    if settings is not None and load_whole(settings, DeviceSettings).pairing_code is not None:
        raise ConfigError(f"{settings}: pairing_code: each image gets its own", hint=f"the codes come from {cards}")
    found = sorted(cards.glob(f"*/{statedir.SETTINGS}"))
    if not found:
        raise DataError(f"{cards} holds no codes", hint="fl-tiny gateway pair DIR --count N --out DIR2")
    disk.read_table(image)
    out.mkdir(parents=True, exist_ok=True)
    made = []
    for card in found:
        code = load_whole(card, DeviceSettings).pairing_code
        if code is None:
            raise DataError(f"{card} holds no code")
        target = out / f"{image.stem}-{card.parent.name}.img"
        draft = target.with_suffix(".part")
        tools.run("cp", "--sparse=always", "--reflink=auto", image, draft)
        draft.chmod(0o600)  # who reads it may enrol in the board's place
        _write(draft, f'pairing_code = "{code}"\n{text}')
        draft.replace(target)
        card.unlink()
        say(f"{target}: the code of {card.parent.name}")
        made.append(target)
    return made


def _text(settings: Path) -> str:
    load_whole(settings, DeviceSettings)
    text = read_bounded(settings, SIZE_LIMIT, DataError).decode()
    return text if text.endswith("\n") else text + "\n"


def _write(image: Path, text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, statedir.SETTINGS)
        file.touch(mode=0o600)
        file.write_text(text)
        disk.write_fat(image, statedir.SETTINGS, file)

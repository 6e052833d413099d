# SPDX-License-Identifier: Apache-2.0
"""The provisioning file of all images and layers: nothing is set in it; filled in, it is what a board reads."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest

from fl_tiny.cli.main import main
from fl_tiny.protocol import pairing
from tests.image.linters import ROOT, tomllib

TEMPLATE = (ROOT / "image/templates/fl-tiny.toml").read_text()
KEY = base64.b64encode(b"\x00\x00\x00\x0bssh-ed25519\x00\x00\x00\x20" + bytes(32)).decode()
FILLED = {
    "FL1:...": pairing.to_text(pairing.PairingCode(bytes(8), bytes(16))),
    'model_key = "..."': f'model_key = "{"ab" * 32}"',
    "AAAA...": KEY,
}


def filled() -> str:
    """The file with every line in use."""
    text = re.sub(r"^#(?=[\[a-z])", "", TEMPLATE, flags=re.MULTILINE)
    for placeholder, value in FILLED.items():
        assert placeholder in text
        text = text.replace(placeholder, value)
    return text


def test_nothing_is_set_in_it() -> None:
    assert tomllib.loads(TEMPLATE) == {}


def test_every_line_of_it_can_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "fl-tiny.toml"
    file.write_text(filled())
    assert main(["config", "check", "--role", "device", str(file)]) == 0, capsys.readouterr().err
    assert set(tomllib.loads(filled())) == {"gateway", "pairing_code", "model_key", "board", "network", "ssh", "source"}


def test_a_key_that_no_board_knows_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "fl-tiny.toml"
    file.write_text(filled().replace("ssid =", "wifi ="))
    assert main(["config", "check", "--role", "device", str(file)]) != 0
    assert "wifi" in capsys.readouterr().err

# SPDX-License-Identifier: Apache-2.0
"""What fuzzing starts from: the protocol's vectors, the models of tests/models, and corpus/TARGET/, which holds what
once broke something and what no vector shows.
"""

from __future__ import annotations

import json
from pathlib import Path

from fuzz.targets import BOUND, CLASSES, archive

from fl_tiny.device.sources import messages

ROOT = Path(__file__).parents[2]
CORPUS = Path(__file__).with_name("corpus")
MOST_BYTES = 16_384  # of a seed: small ones are tried more often
HELLO = bytes.fromhex("40010001b16d")  # a confirmable GET /m
COAP = (
    HELLO,
    bytes.fromhex("480100020001020304050607b2" + "2e77" + "046b6e6f77"),
    bytes.fromhex("40010003" + "60" + "51" + "6d"),  # GET /m with Observe 0
    bytes.fromhex("40030004b17501" + "d10e" + "08" + "ff" + "00" * 16),  # PUT with Block1
    bytes.fromhex("40010005b16d" + "c1" + "26"),  # GET with Block2
    bytes.fromhex("60450001c12aff8000"),
    bytes.fromhex("70000001"),
    bytes.fromhex("40000001"),
)
DTLS = (
    b"\x00\x00",
    b"\x01\x00" * 8,
    b"\x01\x00" * 6 + b"\x04\x01x" + b"\x01\x00" * 3,
    b"\x02\x04abcd" + b"\x01\x00" * 6,
)

REQUESTS = (
    messages.Sample("int8", bytes(4), 3),
    messages.File("png", b"\x89PNG", "cat"),
    messages.Correct(bytes(8), 1),
    messages.Label("cat"),
    messages.Last(),
)
CARD = b"""gateway = "hub"
pairing_code = "FL1:x"
[board]
name = "a"
[network]
ssid = "home"
password = '12345678'
dns = ["fd00::1"]
[source]
kind = "spool"
"""

WAV = b"RIFF\x3c\0\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0\x40\x1f\0\0\x80\x3e\0\0\x02\0\x10\0data\x18\0\0\0" + bytes(
    range(24)
)

FILES = {
    "sound": (WAV, b"RF64" + WAV[4:], WAV.replace(b"\x01\0\x01\0", b"\x03\0\x01\0"), b"fLaC" + bytes(60)),
    "table": (b"x,y,label\n1,2,0\n3,4,0\n", "x;y;label\n1,5;2;0\n".encode("utf-16"), b"sep=;\n# a\nx;y;label;\n"),
}


def seeds(name: str) -> list[bytes]:
    """The inputs that a target starts from, always the same ones in the same order."""
    kept = sorted((CORPUS / name).glob("*")) if (CORPUS / name).is_dir() else []
    return [*_derived(name), *(path.read_bytes() for path in kept)] or [b""]


def _derived(name: str) -> list[bytes]:
    vectors = json.loads((ROOT / "docs/vectors/messages.json").read_text())
    encoded = {key: bytes.fromhex(value["cbor"]) for key, value in vectors.items()}
    kinds = [cls.__name__.lower() for cls in CLASSES]
    found: list[bytes]
    match name:
        case "cbor":
            found = list(encoded.values())
        case "wire":
            found = [bytes([kinds.index(vectors[key]["kind"])]) + data for key, data in encoded.items()]
        case "manifest":
            found = [data for key, data in encoded.items() if vectors[key]["kind"] == "manifest"]
        case "submission":
            found = [
                bytes([1]) + BOUND,
                *(bytes([op]) + bytes(650) for op in (2, 77, 197)),
                *(bytes([0, m]) + b"d\n" for m in range(7)),
            ]
            found += [bytes([op]) + encoded[key] for op, key in ((3, "rekey"), (4, "enrol-full"))]
            found += [bytes([0, 1]) + path + b"\n" + data for path, key in _POSTED for data in (encoded[key],)]
        case "request":
            found = [messages.framed(each)[messages.LENGTH.size :] for each in REQUESTS]
        case "card":
            found = [CARD, b"a = " + b"[" * 8000]
        case "tflite":
            files = sorted((ROOT / "tests/models").rglob("*.tflite"))
            found = [path.read_bytes() for path in files if path.stat().st_size <= MOST_BYTES]
        case "npz":
            found = [archive(b"x"), archive(b"xy"), b"\x00PK\x05\x06" + bytes(18)]
        case "codes":
            found = [bytes(n) for n in (0, 1, 650, 1300)] + [bytes(range(256)) * 3]
        case "coap":
            found = list(COAP)
        case "dtls":
            found = list(DTLS)
        case _:
            found = list(FILES.get(name, ()))
    return found


_POSTED = ((b"d", "register-boot"), (b"d", "heartbeat"), (b"o", "answer"))

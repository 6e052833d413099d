# SPDX-License-Identifier: Apache-2.0
"""One message of each kind, the smallest and the fullest: what the vectors and the tests are made of."""

from __future__ import annotations

from fl_tiny.protocol import handover, rekey, submission, wire
from fl_tiny.protocol.preprocess import Audio, Images, Series
from fl_tiny.protocol.release import Bundle, BundleRefusal

DID, RID, SID, H, PK = b"d" * 16, b"r" * 8, b"s" * 8, b"h" * 32, b"p" * 32

MESSAGES = {
    "enrol-least": wire.Enrol(PK),
    "enrol-full": wire.Enrol(PK, "kitchen"),
    "enrolled": wire.Enrolled(DID, b"k" * 32, PK, b"m" * 32),
    "enrolled-later": wire.Enrolled(DID, b"k" * 32, PK, b"m" * 32, 255),
    "handover": handover.Handover(1, PK, b"s" * 64),
    "register": wire.Register(DID, (1,)),
    "register-boot": wire.Register(DID, (1,), 4_294_967_295, b"b" * 8),
    "register-encodings": wire.Register(DID, (1,), encodings=(0, 1, 2)),
    "register-board": wire.Register(DID, (1,), 4, b"b" * 8, (0, 1, 2), "fl-tiny-rpi-4", "2026.11.24"),
    "registered": wire.Registered(1, 60_000),
    "registered-full": wire.Registered(1, 60_000, 2),
    "heartbeat": wire.Heartbeat(0, 4_294_967_295),
    "heartbeat_lacks": wire.Heartbeat(3, 40, 9),
    "heartbeat-model": wire.Heartbeat(3, 60, None, 1, wire.Refusal(2, 21, "it says the same of every input")),
    "heartbeat-bundle": wire.Heartbeat(3, 60, None, 1, None, BundleRefusal(SID, 21, "it did not come up")),
    "next-bundle": wire.Next(60_000, 7, bundle=Bundle(H, 1_073_741_824, "2026.11.24")),
    "next-model": wire.Next(60_000, 7, None, None, 2),
    "next-least": wire.Next(0, 0),
    "next-full": wire.Next(86_400_000, 7, RID, 2),
    "own-peer": wire.Own("peer", 3),
    "own-device": wire.Own("active", 3, DID),
    "own-quarantined": wire.Own("quarantined", 3, DID, "two copies of it are in use"),
    "submission": submission.Submission(b"signed", b"codes"),
    "rekey": rekey.Rekey(DID, 1, PK, b"s" * 64),
    "rekeyed": rekey.Rekeyed(4_294_967_295, b"k" * 32),
    "manifest-least": wire.Manifest("m", 1, 1, H, 1, 1, ((1, 1),)),
    "manifest-full": wire.Manifest("watch", 1, 1, H, 21_056, 2, ((32, 192), (32,), (7, 32), (7,)), ("a", "b"), None, 1),
    "manifest-biases": wire.Manifest("watch", 1, 1, H, 21_056, 2, ((32,), (7,)), None, None, None, 1),
    "manifest-canary": wire.Manifest(
        "watch", 2, 2, H, 21_056, 1, ((7, 32), (7,)), None, None, None, None, wire.Canary(H, 1_048_576, 0.5), PK
    ),
    "manifest-images": wire.Manifest(
        "eye", 1, 1, H, 9, 1, ((10, 64), (10,)), None, Images("image", "crop", "rgb", (-1.0, 1.0))
    ),
    "manifest-audio": wire.Manifest(
        "ear", 1, 1, H, 9, 1, ((12, 64), (12,)), None, Audio(features="mfcc", fft=512, high_hz=8000.0)
    ),
    "manifest-series": wire.Manifest(
        "arm",
        1,
        1,
        H,
        9,
        1,
        ((4, 16), (4,)),
        None,
        Series("series", ("x", "y", "z"), "label", "session", 128, 64, (0.0,), (9.81,)),
    ),
    "head-least": wire.Head(H, 0, H, 12_820, (0.0078125,)),
    "head-full": wire.Head(H, 12, H, 12_820, (0.1, 1e-6), (-1.5, 2.25, 0.0, 6.0), 4_294_967_295, 4_294_967_295),
    "head-delta": wire.Head(H, 13, H, 12_820, (0.1,), delta=wire.Delta(1, 6_420, H)),
    "offer-least": wire.Offer(RID, 1, H, 600_000, (0.01, 0.5), wire.Train(4, 16), 2000),
    "offer-trained": wire.Offer(RID, 1, H, 600_000, (0.01, 0.5), wire.Train(4, 16, 0.02, 0.1, 0.05, 1, 5, 1), 2000),
    "offer": wire.Offer(RID, 1, H, 600_000, (0.01, 0.5), wire.Train(4, 16, 0.02), 2000),
    "offer-gram": wire.Offer(RID, 1, H, 1, (0.01,), wire.Train(1, 1, 0.5), 1, wire.GramConfig(0, 96, 10, 10)),
    "offer-full": wire.Offer(
        RID, 1, H, 1, (0.01,), wire.Train(1, 1, 0.5), 1, wire.GramConfig(1, 350, 10, 65_535, b"e" * 32, 15)
    ),
    "offer-topk": wire.Offer(RID, 1, H, 600_000, (0.01, 0.5), wire.Train(4, 16, 0.02), 2000, encoding=2, kept=640),
    "answer": wire.Answer(RID, 0),
    "answer_not_allowed": wire.Answer(RID, 5, 14),
    "update-least": wire.Update(RID, DID, H, 1, H, 1),
    "update-full": wire.Update(RID, DID, H, 65_535, H, 262_144, wire.Metrics(50, 0.25, 1.0), (-3.0, 3.5)),
    "update-int4": wire.Update(RID, DID, H, 40, H, 6_405, encoding=1),
    "receipt": wire.Receipt(RID, 0, H, 200),
    "held": wire.Held(SID, 12_810, b"\xff\x0f"),
}

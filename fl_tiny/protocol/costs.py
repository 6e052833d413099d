# SPDX-License-Identifier: Apache-2.0
"""What training a head costs a board, about: bytes a round on the wire, memory beside the interpreter."""

from __future__ import annotations

import math

from fl_tiny.learn.head import HeadSpec
from fl_tiny.protocol.wire import CHUNK

# Measured with a 1280x10 head (docs/facts.md): 14,727 B up for 12,810 codes, 14,578 B down for a body of 12,820 B.
CHUNK_OVERHEAD = 110  # B of DTLS and CoAP, the answer included, for each chunk of 1,024 B
ROUND_OVERHEAD = 400  # B each way of heartbeats, offer, answer, signed update and receipt
SAMPLES = 2000  # that memory is told for
STATE = 40  # B a parameter: value, start, gradient, two moments, and what a step makes in passing


def round_bytes(spec: HeadSpec) -> tuple[int, int]:
    """(up, down) UDP payload of a round for one device: its codes, then the next head."""
    body = sum(math.prod(shape) * (1 if len(shape) == 2 else 2) for shape in spec.tensors)
    return _framed(spec.parameters), _framed(body)


def training_bytes(spec: HeadSpec) -> int:
    """Memory that training takes beside Python with numpy (40 MiB), for 2,000 samples of features."""
    every = sum(layer.weights.size for layer in spec.layers)  # with biases alone the weights are held too
    return SAMPLES * spec.feature_size + STATE * max(every, spec.parameters)


def _framed(size: int) -> int:
    return size + CHUNK_OVERHEAD * -(-size // CHUNK) + ROUND_OVERHEAD

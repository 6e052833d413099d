# SPDX-License-Identifier: Apache-2.0
"""int8 codes and real numbers by TFLite's rules.

Source: https://ai.google.dev/edge/litert/conversion/tensorflow/quantization/quantization_spec
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

HEAD_ROOM = (
    1.1  # measured (docs/facts.md, trap 7): 10 % beyond the range seen costs nothing, too little costs everything
)
MIN_RANGE = 1e-6  # real units; an output that never left zero still needs a scale


@dataclass(frozen=True, slots=True)
class Affine:
    """real = (code - zero_point) * scale."""

    scale: float
    zero_point: int

    def to_real(self, codes: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Codes of any shape as float32 of that shape."""
        real = codes.astype(np.float32)
        real -= np.float32(self.zero_point)
        real *= np.float32(self.scale)
        return real

    def to_codes(self, real: NDArray[np.floating[Any]], dtype: DTypeLike) -> NDArray[np.integer[Any]]:
        """Finite real numbers of any shape as codes of ``dtype``, rounded half to even and clipped to its range."""
        limits = np.iinfo(np.dtype(dtype))
        codes = np.rint(real.astype(np.float64) / self.scale) + self.zero_point
        return np.clip(codes, limits.min, limits.max).astype(dtype)  # type: ignore[no-any-return]


def affine_over(low: float, high: float) -> Affine:
    """The int8 codes that cover [low, high], zero and head room included."""
    low, high = min(low, 0.0) * HEAD_ROOM, max(high, 0.0) * HEAD_ROOM
    scale = np.float32(max(high - low, MIN_RANGE) / 255)
    return Affine(float(scale), int(np.clip(np.rint(-128 - low / scale), -128, 127)))

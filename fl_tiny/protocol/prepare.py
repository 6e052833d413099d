# SPDX-License-Identifier: Apache-2.0
"""Preprocessing settled for one model: what a table leaves out is taken from the input, what does not fit is named."""

from __future__ import annotations

from dataclasses import replace
from math import prod

from fl_tiny.learn.inputs import as_text, input_range, usual
from fl_tiny.learn.tflite import Model
from fl_tiny.protocol.preprocess import Audio, Images, Preprocess, Series

CHANNELS = {"rgb": 3, "bgr": 3, "grey": 1}


def settled(table: Preprocess, model: Model) -> tuple[Preprocess, list[str]]:
    """``table`` with every gap filled that the input of ``model`` can fill, and all faults; without faults it runs."""
    if isinstance(table, Images):
        return _images(table, model)
    return _audio(table, model) if isinstance(table, Audio) else _series(table, model)


def clip_samples(table: Audio) -> int:
    """Samples of one clip."""
    return round(table.clip_ms * table.rate / 1000)


def frame_samples(table: Audio) -> tuple[int, int]:
    """Samples of one frame, and from one frame to the next."""
    return round(table.frame_ms * table.rate / 1000), round(table.hop_ms * table.rate / 1000)


def feature_shape(table: Audio) -> tuple[int, ...]:
    """(samples,) of a clip, or (frames, bins) of its features."""
    size = clip_samples(table)
    if table.features == "none":
        return (size,)
    frame, hop = frame_samples(table)
    assert table.fft is not None
    bins = {"spectrogram": table.fft // 2 + 1, "mel": table.mels, "mfcc": table.mfcc}[table.features]
    return max(0, 1 + (size - frame) // hop), bins


def _images(table: Images, model: Model) -> tuple[Preprocess, list[str]]:
    shape = model.input.shape
    channels = shape[3] if len(shape) == 4 else 1
    if len(shape) not in (3, 4) or channels not in (1, 3):
        return table, [f"kind: the model takes {list(shape)}; a picture is [1, height, width, 1 or 3]"]
    faults = []
    table = replace(table, colour=table.colour or {1: "grey", 3: "rgb"}[channels])
    if CHANNELS[str(table.colour)] != channels:
        faults.append(f"colour: {table.colour} has not the {channels} channels that the model takes")
    if (table.mean is None) != (table.std is None):
        faults.append("mean and std: one without the other")
    for name, values in (("mean", table.mean), ("std", table.std)):
        if values is not None and len(values) != channels:
            faults.append(f"{name}: {len(values)} numbers, the model takes {channels} channels")
    if table.range is not None and table.mean is not None:
        faults.append("range: mean and std are given as well")
    if table.range is not None and table.range[0] == table.range[1]:
        faults.append("range: both ends are the same")
    if table.range is None and table.mean is None and table.std is None:
        held = input_range(model)
        table = replace(table, range=usual(held))
        if table.range is None:
            holds = "any number" if held is None else as_text(held)
            faults.append(f"range is needed: the model's input holds {holds}, which does not say what pixels become")
    return table, faults


def _audio(table: Audio, model: Model) -> tuple[Preprocess, list[str]]:
    faults: list[str] = []
    frame, hop = frame_samples(table)
    table = replace(
        table, fft=table.fft or 1 << max(4, (frame - 1).bit_length()), high_hz=table.high_hz or table.rate / 2
    )
    assert table.fft is not None
    assert table.high_hz is not None
    if table.features != "none":
        if table.fft < frame:
            faults.append(f"fft: {table.fft} is less than the {frame} samples of a frame")
        if frame > clip_samples(table):
            faults.append("frame_ms: longer than a clip")
        if hop < 1:
            faults.append("hop_ms: less than one sample")
    if table.features in ("mel", "mfcc") and not table.low_hz < table.high_hz <= table.rate / 2:
        faults.append(
            f"low_hz and high_hz: {table.low_hz:g} to {table.high_hz:g} is not within 0 to {table.rate / 2:g}"
        )
    if table.features == "mfcc" and table.mfcc > table.mels:
        faults.append(f"mfcc: {table.mfcc} coefficients of {table.mels} mels")
    if not faults:
        made, taken = feature_shape(table), model.input.shape[1:]
        if _essence(made) != _essence(taken):
            what = "samples" if len(made) == 1 else "frames and bins"
            faults.append(f"a clip gives {list(made)} {what}, the model takes {list(taken)}{_remedy(table, taken)}")
    return table, faults


def _series(table: Series, model: Model) -> tuple[Preprocess, list[str]]:
    taken = _essence(model.input.shape[1:])
    size = prod(taken)
    faults = []
    window = table.window or (taken[0] if len(taken) > 1 else 1)
    if size % window or (len(taken) > 1 and taken[0] != window):
        faults.append(f"window: {window} rows do not make the {list(model.input.shape[1:])} that the model takes")
    columns = max(1, size // window)
    if table.columns is not None and len(table.columns) != columns:
        faults.append(f"columns: {len(table.columns)}, the model takes {columns}")
    for name, values in (("mean", table.mean), ("std", table.std)):
        if values is not None and len(values) not in (1, columns):
            faults.append(f"{name}: {len(values)} numbers, the model takes {columns} columns")
    return replace(table, window=window, hop=table.hop or window), faults


def _essence(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(side for side in shape if side != 1)


def _remedy(table: Audio, taken: tuple[int, ...]) -> str:
    """The clip that would give as many samples or frames as the model takes."""
    sides = _essence(taken)
    if not sides:
        return ""
    ms = 1000 * sides[0] / table.rate if table.features == "none" else (sides[0] - 1) * table.hop_ms + table.frame_ms
    return f"; clip_ms = {ms:g} gives {sides[0]}"

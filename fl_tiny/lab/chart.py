# SPDX-License-Identifier: Apache-2.0
"""Figures of a report as inline SVG and HTML: lines, bars and a table of counts, coloured by the page's style."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from numpy.typing import NDArray

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 14, 46
GRID = 4  # spaces between grid lines
LABEL_GAP = 15  # the least distance between two labels at line ends


@dataclass(frozen=True, slots=True)
class Series:
    """One line or kind of bar. style: of the page, such as ``personal``.   values: None leaves a gap."""

    name: str
    style: str
    values: Sequence[float | None]


def legend(series: Sequence[Series]) -> str:
    """What each colour means."""
    return (
        '<p class="legend">'
        + "".join(f'<span><i class="{escape(s.style)}"></i>{escape(s.name)}</span>' for s in series)
        + "</p>"
    )


def lines(series: Sequence[Series], ticks: Sequence[str], axis: str) -> str:
    """Values over evenly spaced places; each line says its last value."""
    low, high = _span(series)
    body = [_grid(low, high)]
    body += [_text(_across(i, len(ticks)), HEIGHT - BOTTOM + 18, tick) for i, tick in enumerate(ticks)]
    body.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, axis, "axis"))
    for each in series:
        points = [(_across(i, len(ticks)), _y(v, low, high)) for i, v in enumerate(each.values) if v is not None]
        body.append(
            f'<polyline class="{escape(each.style)}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>'
        )
        body += [f'<circle class="{escape(each.style)}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>' for x, y in points]
    body += _ends(series, low, high)
    return _svg(body, f"{', '.join(s.name for s in series)} by {axis}")


def bars(series: Sequence[Series], ticks: Sequence[str]) -> str:
    """Groups of bars, one group a tick; the scale does not begin at zero, and says so by its labels."""
    low, high = _span(series)
    room = (WIDTH - LEFT - RIGHT) / len(ticks)
    width = min(room * 0.8 / len(series), 26.0)
    body = [_grid(low, high)]
    for i, tick in enumerate(ticks):
        middle = LEFT + room * (i + 0.5)
        first, _, second = tick.partition(" ")
        body.append(_text(middle, HEIGHT - BOTTOM + 17, first))
        body.append(_text(middle, HEIGHT - BOTTOM + 33, second))
        for k, each in enumerate(series):
            value = each.values[i]
            if value is None:
                continue
            x, y = middle + (k - len(series) / 2) * width, _y(value, low, high)
            tall = HEIGHT - BOTTOM - y
            body.append(
                f'<rect class="{escape(each.style)}" x="{x:.1f}" y="{y:.1f}" width="{width - 1.5:.1f}"'
                f' height="{tall:.1f}" rx="1.5"><title>{escape(tick)}, {escape(each.name)}: {value:.3f}</title></rect>'
            )
    return _svg(body, f"{', '.join(s.name for s in series)} of each device")


def counts(matrix: NDArray[Any], names: Sequence[str], caption: str) -> str:
    """A table of counts, rows true and columns found, as shares of their row; wrong ones in another colour."""
    head = "".join(f"<th scope='col'>{escape(name)}</th>" for name in names)
    rows = []
    for i, name in enumerate(names):
        total = max(1, int(matrix[i].sum()))
        cells = []
        for j in range(len(names)):
            share = float(matrix[i][j]) / total
            kind = "right" if i == j else "wrong"
            shown = f"{100 * share:.0f}" if matrix[i][j] else ""
            cells.append(f'<td class="{kind}" style="--share:{share:.3f}">{shown}</td>')
        rows.append(f"<tr><th scope='row'>{escape(name)}</th>{''.join(cells)}</tr>")
    return (
        f'<table class="counts"><caption>{escape(caption)}</caption>'
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )


def _span(series: Sequence[Series]) -> tuple[float, float]:
    """Tenths around all values, as a share; 1 is the top."""
    values = [v for s in series for v in s.values if v is not None] or [0.0, 1.0]
    low = max(0, int(10 * min(values) - 0.25)) / 10
    return low, 1.0 if max(values) > 0.9 or max(values) - low < 0.1 else (int(10 * max(values)) + 1) / 10


def _grid(low: float, high: float) -> str:
    steps = round((high - low) * 10)
    steps = steps if steps > 2 else steps * 2
    at = [low + (high - low) * i / steps for i in range(steps + 1)]
    return "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{_y(v, low, high):.1f}" y2="{_y(v, low, high):.1f}"/>'
        + _text(LEFT - 8, _y(v, low, high) + 5, f"{100 * v:.0f}", "left")
        for v in at
    )


def _ends(series: Sequence[Series], low: float, high: float) -> list[str]:
    """The last value of each line, pushed apart where they would overlap."""
    last = sorted(
        ((_y(v, low, high), s.style, v) for s in series if (v := s.values[-1]) is not None), key=lambda end: end[0]
    )
    body, free = [], float(TOP)
    for y, style, value in last:
        at = max(y + 5, free)
        free = at + LABEL_GAP
        body.append(f'<text class="end {escape(style)}" x="{WIDTH - RIGHT - 40}" y="{at:.1f}">{100 * value:.1f}</text>')
    return body


def _across(i: int, n: int) -> float:
    left, right = LEFT + 24, WIDTH - RIGHT - 56
    return left + (right - left) * (i / (n - 1) if n > 1 else 0.5)


def _y(value: float, low: float, high: float) -> float:
    return TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)


def _text(x: float, y: float, text: str, style: str = "middle") -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _svg(body: Sequence[str], label: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{"".join(body)}</svg>'

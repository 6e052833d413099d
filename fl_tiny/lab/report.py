# SPDX-License-Identifier: Apache-2.0
"""A demo's figures as one self-contained page, and the same as JSON."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

from fl_tiny import __version__
from fl_tiny.files import write_atomic
from fl_tiny.lab import chart
from fl_tiny.lab.chart import Series
from fl_tiny.lab.measure import Result, confusion, device_rows, summary

STYLE = """
:root{color-scheme:light dark;--ink:#1b2330;--soft:#5d6878;--paper:#f6f7f9;--card:#fff;--line:#dfe3e9;
--before:#a9b2bf;--alone:#e0a03a;--global:#3f8fc5;--personal:#1c9a6c;--bad:#cf4b3f}
@media(prefers-color-scheme:dark){:root{--ink:#e8ebf0;--soft:#9aa5b5;--paper:#12161c;--card:#1a2029;--line:#303947;
--before:#6b7686;--alone:#e3ab50;--global:#5aa9dd;--personal:#35bd8b;--bad:#e5695d}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
@media(max-width:600px){.rows th,.rows td{padding:5px 4px}.rows{font-size:.82rem}}
main{max-width:1120px;margin:0 auto;padding:24px 16px 48px}
h1{font-size:1.6rem;line-height:1.25;margin:0 0 4px;letter-spacing:-.01em}
h2{font-size:1.02rem;margin:0 0 2px}
p{margin:0 0 12px}.lead,.note{color:var(--soft)}.note{font-size:.86rem;margin:6px 0 0}
.tiles,.cards{display:grid;gap:14px;margin:14px 0}
.tiles{grid-template-columns:repeat(auto-fit,minmax(165px,1fr))}
.cards{grid-template-columns:repeat(auto-fit,minmax(min(100%,460px),1fr))}
.tile,.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:14px 16px;min-width:0}
.rows:not(.facts) td:first-child,.facts td:last-child{white-space:nowrap}
.tile b{display:block;white-space:nowrap;font-size:1.4rem;
line-height:1.15;font-variant-numeric:tabular-nums}
.tile span{color:var(--soft);font-size:.86rem}.tile b.global{color:var(--global)}.tile b.personal{color:var(--personal)}
svg{display:block;width:100%;height:auto}
svg text{fill:var(--soft);font:14px system-ui,sans-serif;font-variant-numeric:tabular-nums}
.middle,.axis{text-anchor:middle}.left{text-anchor:end}
svg .end{font-weight:600;text-anchor:start}.grid{stroke:var(--line);stroke-width:1}
polyline{fill:none;stroke-width:2.5;stroke-linejoin:round}
polyline.before{stroke:var(--before)}polyline.alone{stroke:var(--alone)}
polyline.global{stroke:var(--global)}polyline.personal{stroke:var(--personal)}
rect.before,circle.before,text.end.before{fill:var(--before)}rect.alone,circle.alone,text.end.alone{fill:var(--alone)}
rect.global,circle.global,text.end.global{fill:var(--global)}
rect.personal,circle.personal,text.end.personal{fill:var(--personal)}
.legend{display:flex;flex-wrap:wrap;gap:4px 16px;font-size:.88rem;color:var(--soft);margin:4px 0 6px}
.legend i{display:inline-block;width:11px;height:11px;border-radius:3px;margin-right:6px}
i.before{background:var(--before)}i.alone{background:var(--alone)}
i.global{background:var(--global)}i.personal{background:var(--personal)}
.last{margin-bottom:22px}.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
table.rows{width:100%}.rows th,.rows td{text-align:right;padding:5px 8px;border-bottom:1px solid var(--line)}
.rows th:first-child,.rows td:first-child,.rows td:last-child,.rows th:last-child{text-align:left}
.rows tr:last-child td{font-weight:600;border-bottom:0}th{color:var(--soft);font-weight:500}
.counts{margin:8px 0;table-layout:fixed;width:100%;max-width:440px}.counts caption{text-align:left;font-weight:600}
.counts th{font-size:.74rem;padding:3px 4px}.counts tbody th{text-align:right}
.counts td{text-align:center;height:31px;border:1px solid var(--card);border-radius:4px}
.counts .right{background:color-mix(in srgb,var(--personal) calc(var(--share)*80%),transparent)}
.counts .wrong{background:color-mix(in srgb,var(--bad) calc(var(--share)*160%),transparent)}
.pair{display:flex;flex-wrap:wrap;align-items:center;gap:2px 12px}
.pair b{white-space:nowrap}
.pair b{font-size:1.7rem}.pair i{font-style:normal;color:var(--soft)}
@media print{:root{--paper:#fff}body{font-size:12px}main{max-width:none;padding:0}.card,.tile{break-inside:avoid}
.counts td,.legend i,svg{-webkit-print-color-adjust:exact;print-color-adjust:exact}}
"""


def write(result: Result, page: Path, figures: Path) -> None:
    """Write both."""
    found = {
        **summary(result),
        "labels_per_class": result.labels,
        "by_device": device_rows(result),
        "by_round": result.rounds,
        "by_labels": labels_rows(result),
        "confusion": {"before": _confusion(result, "first").tolist(), "after": _confusion(result, "last").tolist()},
        "classes": result.classes,
        "runtime": result.runtime,
        "version": __version__,
    }
    write_atomic(figures, (json.dumps(found, indent=1) + "\n").encode(), 0o644)
    write_atomic(page, html(result).encode(), 0o644)


def labels_rows(result: Result) -> list[dict[str, Any]]:
    """Mean accuracies by labels a class, fewest first: the simulated ones, and the fleet's own."""
    found = summary(result)
    own = {"labels": result.labels, **{key: found[key] for key in ("alone", "global", "personal", "cold_start")}}
    rows = [{**row, "simulated": True} for row in result.sweep] + [{**own, "simulated": False}]
    return sorted(rows, key=lambda row: row["labels"] or 1_000_000)


def html(result: Result) -> str:
    """The page."""
    found = summary(result)
    cards = [_by_device(result), _by_round(result, found), _by_labels(result), _cost(result, found)]
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>fl-tiny demo</title><style>{STYLE}</style></head><body><main>
<h1>{found["devices"]} devices learned together for {found["rounds"]} rounds</h1>
<p class="lead">{escape(_lead(result))}</p>
<div class="tiles">{_tiles(result, found)}</div>
<div class="cards">{"".join(f'<section class="card">{card}</section>' for card in cards)}</div>
<div class="cards"><section class="card">{_confusions(result)}</section>
<section class="card">{_cold(result)}{_table(result)}</section></div>
<p class="note">fl-tiny {escape(__version__)}, measured by {escape(result.runtime)} on the int8 files the demo wrote.
Data: smartwatch exercises of seglearn (BSD 3-Clause), arXiv:1802.01489.</p>
</main></body></html>
"""


def _lead(result: Result) -> str:
    labels = "all their labelled windows" if result.labels is None else f"{result.labels} labelled windows a class"
    windows = sum(len(device.true) for device in result.devices)
    return (
        f"Smartwatch exercises, {len(result.classes)} classes; each device is one arm of a wearer whom the model has"
        f" never seen, with {labels}. Accuracy in percent, on {windows:,} later windows that nobody learned from."
    )


def _tiles(result: Result, found: dict[str, Any]) -> str:
    tiles = (
        ("", _percent(found["before"]), "model as shipped"),
        ("global", _percent(found["global"]), "the fleet's head"),
        ("personal", _percent(found["personal"]), "each device's own model"),
        ("", _signed(found["gain"]), "points over learning alone"),
        ("global", f"{_percent(result.cold[0])} → {_percent(result.cold[1])}", "a device without labels"),
        ("", f"{found['bytes_per_round'] / 1000:.1f} kB", "a device and round"),
    )
    return "".join(
        f'<div class="tile"><b class="{style}">{escape(value)}</b><span>{escape(what)}</span></div>'
        for style, value, what in tiles
    )


def _by_device(result: Result) -> str:
    devices = result.devices
    series = (
        Series("before", "before", [d.before for d in devices]),
        Series("alone", "alone", [d.alone for d in devices]),
        Series("global", "global", [d.fleet for d in devices]),
        Series("personal", "personal", [d.personal for d in devices]),
    )
    picture = chart.bars(series, [d.name.replace("-", " ") for d in devices])
    note = "Alone: fl-tiny model personalise on that device's labels. Personal: the file the device kept."
    return (
        f'<h2>Every device</h2>{chart.legend(series)}{picture}<p class="note">{note} The scale does not begin at 0.</p>'
    )


def _by_round(result: Result, found: dict[str, Any]) -> str:
    rows = [row for row in result.rounds if row["state"] == "published"]
    series = (Series("fleet's head, on samples the devices hold out", "global", [row["accuracy"] for row in rows]),)
    picture = chart.lines(series, [str(row["number"] - 1) for row in rows], "rounds behind it")
    seconds = [row["seconds"] for row in rows]
    note = (
        f"What devices report of the head they begin a round with, on {rows[-1]['held']} samples in the last."
        f" A round took {min(seconds):.1f} to"
        f" {max(seconds):.1f} s with all {found['devices']} devices on this one machine."
    )
    return f'<h2>Round by round</h2>{chart.legend(series)}{picture}<p class="note">{note}</p>'


def _by_labels(result: Result) -> str:
    rows = labels_rows(result)
    names = (("learning alone", "alone"), ("global", "global"), ("personal", "personal"))
    series = [Series(name, key, [row[key] for row in rows]) for name, key in names]
    ticks = ["all" if row["labels"] is None else str(row["labels"]) for row in rows]
    gains = ", ".join(
        f"{_signed(row['personal'] - row['alone'])} at {tick}" for row, tick in zip(rows, ticks, strict=True)
    )
    real = "all" if result.labels is None else str(result.labels)
    note = (
        f"Gain of personal over alone, in points: {gains}. The fleet itself ran with {real}; the others are simulated."
    )
    picture = chart.lines(series, ticks, "labels a class and device")
    return f'<h2>How much the fleet gives</h2>{chart.legend(series)}{picture}<p class="note">{escape(note)}</p>'


def _cost(result: Result, found: dict[str, Any]) -> str:
    rows = [row for row in result.rounds if row["state"] == "published"]
    facts = (
        ("on the wire, a device and round", f"{found['bytes_per_round']:,} B"),
        ("a round, on the average", f"{sum(row['seconds'] for row in rows) / len(rows):.1f} s"),
        ("raw inputs that stayed on the devices", f"{found['raw_bytes_kept']:,} B"),
        ("raw inputs that left them", "0 B"),
        ("least change of a device, kept model against shipped", f"{_signed(found['worst'])} points"),
        ("the whole demo", f"{found['seconds']:.0f} s"),
    )
    body = "".join(f"<tr><td>{escape(what)}</td><td>{escape(value)}</td></tr>" for what, value in facts)
    note = "UDP payload both ways, handshakes and heartbeats included, over DTLS on loopback."
    return f'<h2>What it costs</h2><table class="rows facts">{body}</table><p class="note">{note}</p>'


def _confusions(result: Result) -> str:
    before = chart.counts(_confusion(result, "first"), result.classes, "Model as shipped")
    after = chart.counts(_confusion(result, "last"), result.classes, "Each device's own model")
    note = "Rows: the exercise done; columns: the exercise found; percent of the row, all devices together."
    return f'<h2>What is taken for what</h2>{before}{after}<p class="note">{note}</p>'


def _cold(result: Result) -> str:
    before, after = (_percent(value) for value in result.cold)
    return (
        f"<h2>A device without labels</h2><p class='pair'><b>{before}</b><i>as shipped</i><b>→ {after}</b>"
        f"<i>with the fleet's head</i></p><p class='note last'>{escape(result.cold_name)} joined when the rounds were"
        " over and trained nothing itself.</p>"
    )


def _table(result: Result) -> str:
    names = ("device", "labels", "before", "alone", "global", "personal", "gain", "kept")
    head = "".join(f"<th>{name}</th>" for name in names)
    rows = []
    for row in device_rows(result):
        cells = [escape(str(row["device"])), str(row["labels"])]
        cells += [_percent(row[name]) for name in names[2:6]]
        cells += [_signed(row["gain"]), escape(str(row["kept"]))]
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f'<h2>All figures</h2><div class="scroll"><table class="rows"><tr>{head}</tr>{"".join(rows)}</table></div>'


def _confusion(result: Result, which: str) -> Any:
    found = [getattr(device, which) for device in result.devices]
    return confusion([device.true for device in result.devices], found, len(result.classes))


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _signed(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "\N{MINUS SIGN}")

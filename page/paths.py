"""Paths: their data as checked numbers, and their curves as short straight pieces.

svglib reads the curves, in a path that is written here from numbers only.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from lxml import etree
from reportlab.graphics import shapes
from svglib.svglib import SvgRenderer

from page.limits import MAX_COORDINATE, Budget
from page.style import DrawingError

CURVE_STEPS = 4_000  # straight pieces of all curves together, about
FEWEST_STEPS, MOST_STEPS = 8, 32  # of one curve

_NUMBER = r"(?>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)"
_NUMBERS = re.compile(_NUMBER, re.ASCII)
_ARC = re.compile(
    rf"({_NUMBER})~({_NUMBER})~({_NUMBER})~([01])~([01])~({_NUMBER})~({_NUMBER})".replace(
        "~", r"[\s,]*+"
    )
)
_COMMANDS = re.compile(r"([MmZzLlHhVvCcSsQqTtAa])")
_ARGUMENTS = {"m": 2, "l": 2, "h": 1, "v": 1, "c": 6, "s": 4, "q": 4, "t": 2, "a": 7, "z": 0}
_MOVE, _LINE, _CURVE, _CLOSE = range(4)  # reportlab's operators


class PathData(NamedTuple):
    """A path as svglib reads it, beginning with M, and the number of its lines."""

    d: str
    lines: int


NOTHING = PathData("", 0)


def points_of(text: str, budget: Budget) -> np.ndarray:
    """Return the points of a polyline or a polygon, float64 (n, 2); raises ``DrawingError``."""
    words = text.replace(",", " ").split()
    budget.add_numbers(len(words))
    if not all(map(_NUMBERS.fullmatch, words)):  # as in "10-20"
        words = _NUMBERS.findall(text)
        budget.add_numbers(len(words))
        if _NUMBERS.sub("", text).strip(", \t\r\n"):
            raise DrawingError("The drawing has points that are not pairs of numbers.")
    if len(words) % 2:
        raise DrawingError("The drawing has points that are not pairs of numbers.")
    points = np.array(words, dtype=np.float64).reshape(-1, 2)
    _check_range(points)
    return points


def path_of(text: str, budget: Budget) -> PathData:
    """Return a path's data, cleaned; raises ``DrawingError``."""
    head, *steps = _COMMANDS.split(text)
    if not steps and head.strip() in ("", "none"):
        return NOTHING
    commands, arguments = steps[::2], steps[1::2]
    budget.add_numbers(len(commands))  # before any of them is read
    budget.add_lines(sum(command in "Mm" for command in commands))
    if head.strip() or commands[0] not in "Mm":
        raise DrawingError("The drawing has a path that doesn't begin with a place to move to.")
    cleaned = _Cleaned()
    for command, written in zip(commands, arguments, strict=True):
        numbers = _numbers_of(command, written)
        budget.add_numbers(len(numbers))
        cleaned.add(command, numbers)
    _check_range(np.array(cleaned.numbers, dtype=np.float64))
    budget.add_lines(cleaned.resumed)
    d = " ".join(cleaned.words).replace("+", "")
    return PathData(d, cleaned.moves + cleaned.resumed)


class _Cleaned:
    """The commands of a path, written so that svglib draws what a browser draws."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self.numbers: list[str] = []
        self.moves = 0  # lines that begin with a move
        self.resumed = 0  # lines that begin where the line before was closed

    def add(self, command: str, numbers: list[str]) -> None:
        """Add one command and its numbers; the first command is a move."""
        self.numbers += numbers
        if command in "Mm":
            self.moves += 1
        elif command in "Zz":
            if not self._is_closed():
                self.words.append(command)
            return
        elif self._is_closed():
            # Without this, svglib resumes at the end of the closed line and not at its beginning.
            self.words.append("m 0 0")
            self.resumed += 1
        if self.words or command == "M":
            self.words += [command, *numbers]
            return
        self.words += ["M", *numbers[:2]]
        if numbers[2:]:
            self.words += ["l", *numbers[2:]]

    def _is_closed(self) -> bool:
        return self.words[-1] in ("Z", "z")


def _numbers_of(command: str, text: str) -> list[str]:
    """Return the numbers of a path's command; the flags of an arc need no blank between them."""
    takes = _ARGUMENTS[command.lower()]
    if command in "Aa":
        numbers = [number for arc in _ARC.findall(text) for number in arc]
        rest = _ARC.sub("", text)
    else:
        numbers = _NUMBERS.findall(text)
        rest = _NUMBERS.sub("", text)
    is_whole = len(numbers) > 0 and len(numbers) % takes == 0 if takes else not numbers
    if not is_whole or rest.strip(", \t\r\n"):
        raise DrawingError("The drawing has a path that can't be followed.")
    return numbers


def ellipse(cx: float, cy: float, rx: float, ry: float) -> PathData:
    """Return an ellipse as a path."""
    if rx <= 0 or ry <= 0:
        return NOTHING
    left, right = cx - rx, cx + rx
    arc = f"A {rx} {ry} 0 1 0"
    return PathData(f"M {left} {cy} {arc} {right} {cy} {arc} {left} {cy} Z", 1)


def rectangle(x: float, y: float, width: float, height: float, rx: float, ry: float) -> PathData:
    """Return a rectangle as a path; where one of the corners' radii is 0, it takes the other's."""
    if width <= 0 or height <= 0:
        return NOTHING
    rx, ry = min(abs(rx or ry), width / 2), min(abs(ry or rx), height / 2)
    if not rx or not ry:
        return PathData(f"M {x} {y} h {width} v {height} h {-width} Z", 1)
    across, down = width - 2 * rx, height - 2 * ry
    corner = f"a {rx} {ry} 0 0 1"
    d = (
        f"M {x + rx} {y} "
        f"h {across} {corner} {rx} {ry} "
        f"v {down} {corner} {-rx} {ry} "
        f"h {-across} {corner} {-rx} {-ry} "
        f"v {-down} {corner} {rx} {-ry} Z"
    )
    return PathData(d, 1)


def _check_range(values: np.ndarray) -> None:
    if not (np.abs(values) <= MAX_COORDINATE).all():
        raise DrawingError(
            f"The drawing has points or a path with a coordinate larger than {MAX_COORDINATE:.0f}."
        )


def lines_of(paths: list[str]) -> list[np.ndarray]:
    """Return the lines of paths in their order, float64 (n, 2) each; svglib reads them as one."""
    tree = etree.Element("svg", width="100", height="100")
    etree.SubElement(tree, "path", d=" ".join(paths), fill="none", stroke="#000000")
    return _straightened(next(_paths_in(SvgRenderer("drawing.svg").render(tree))))


def _paths_in(node: shapes.Shape) -> Iterator[shapes.Path]:
    if isinstance(node, shapes.Path):
        yield node
    for child in getattr(node, "contents", ()):
        yield from _paths_in(child)


def _straightened(path: shapes.Path) -> list[np.ndarray]:
    """Return the lines of a reportlab path, with curves as short straight pieces."""
    points = np.array(path.points, dtype=np.float64).reshape(-1, 2)
    operators = np.array(path.operators)
    moves, closes, curves = (np.flatnonzero(operators == one) for one in (_MOVE, _CLOSE, _CURVE))
    straight = np.flatnonzero(operators <= _LINE)
    steps = int(np.clip(CURVE_STEPS // max(len(curves), 1), FEWEST_STEPS, MOST_STEPS))

    # How many points each operator takes from the path, and gives to the lines.
    taken = np.array([1, 1, 3, 0])[operators]
    given = np.array([1, 1, steps, 1])[operators]
    source = np.cumsum(taken) - taken
    target = np.cumsum(given) - given

    out = np.empty((int(given.sum()), 2))
    out[target[straight]] = points[source[straight]]
    begun_by = moves[np.searchsorted(moves, closes) - 1]
    out[target[closes]] = points[source[begun_by]]
    if len(curves):
        places = target[curves][:, None] + np.arange(steps)
        out[places.ravel()] = _curve_points(points, source[curves], steps)
    return np.split(out, target[moves[1:]])


def _curve_points(points: np.ndarray, source: np.ndarray, steps: int) -> np.ndarray:
    """Return ``steps`` points on each cubic curve, without its first, float64 (n, 2).

    ``source`` is where in ``points`` each curve's first control point is.
    """
    a, b, c, d = (points[source + k][:, None] for k in (-1, 0, 1, 2))
    t = np.linspace(0, 1, steps + 1)[1:, None]
    pieces = (1 - t) ** 3 * a + 3 * (1 - t) ** 2 * t * b + 3 * (1 - t) * t**2 * c + t**3 * d
    return pieces.reshape(-1, 2)

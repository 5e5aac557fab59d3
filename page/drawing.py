"""The 64 pixels of a drawing, made the way the data set's own digits were made.

Source: the Optical Recognition of Handwritten Digits data set. NIST's preprocessing removed the
slant, fitted each digit into a box and evened its stroke width in a 32x32 bitmap. The ink in each
4x4 block was then counted, 0 to 16.
"""

import cv2
import numpy as np
from reportlab.graphics import renderPM, shapes
from reportlab.lib import colors

from page.ink import SPECK, Line, in_sixteenths, inside_of
from page.svg import DrawingError, read_svg

__all__ = ["DrawingError", "features", "from_lines"]

SIDE = 32  # pixels of the bitmap, as are BOX and PEN
BOX = np.array([22.0, 32.0])  # what a digit fills, ink included
PEN = 4.25  # width of its strokes
WIDEN = 1.0  # most times that x is scaled more than y, so that a 1 stays thin
HEIGHTEN = 1.6  # most times that y is scaled more than x
MAX_SLANT = 0.8  # x per y
EDGE = 0.08  # of the height, at the top and at the bottom, where the left edge is measured
DOT = 1.2  # times the pen's width: a drawing of at most this size is a dot and stays one
NEAR = 0.005  # of the drawing's size: lines with ends as near as this are one stroke
STEPS = 100  # along the drawing's longer side, at which the slant is measured
MAX_STEPS = 20_000  # along all lines
MAX_CORNERS = 300  # that reportlab draws; the time that it takes grows with their square
FINE = 4  # pixels per bitmap pixel where filled shapes are measured


def features(img_str: str) -> np.ndarray:
    """Return the pixels of a drawing, uint8 (64,), 0 to 16, row by row; raises ``DrawingError``.

    ``img_str`` is the base64 of an SVG, with or without its data-URL prefix.
    """
    x = from_lines(read_svg(img_str))
    if not x.any():  # all shapes are without area
        raise DrawingError("The drawing is empty: draw a digit first.")
    return x


def from_lines(lines: list[Line]) -> np.ndarray:
    """Return the pixels of lines of ink, uint8 (64,), 0 to 16, row by row."""
    lines = _without_specks(lines)
    pen = _pen_of_filled(lines) if any(line.filled for line in lines) else 0.0
    lines = _upright(lines)
    lines, pen = _boxed(lines, pen)
    blocks = _bitmap(lines, pen).reshape(8, 4, 8, 4)
    return blocks.sum(axis=(1, 3)).astype(np.uint8).ravel()


def _without_specks(lines: list[Line]) -> list[Line]:
    """Return the lines without slips of the hand.

    A slip is a small line that doesn't continue another one.
    """
    size = np.ptp(np.vstack([line.points for line in lines]), axis=0).max()
    if not any(_is_speck(line, size) for line in lines):
        return lines
    joined = _joined(lines, NEAR * size)
    return [line for line in joined if not _is_speck(line, size)] or joined


def _is_speck(line: Line, size: float) -> bool:
    return not line.filled and bool(np.ptp(line.points, axis=0).max() < SPECK * size)


def _joined(lines: list[Line], near: float) -> list[Line]:
    """Return the lines, joined where one begins or ends where another does."""
    ends = np.array([end for line in lines for end in (line.points[0], line.points[-1])])
    for i, line in enumerate(lines):
        if line.filled:
            ends[2 * i : 2 * i + 2] = np.inf  # like the ends of a line that has been taken
    joined = [line for line in lines if line.filled]
    for i, line in enumerate(lines):
        if not np.isfinite(ends[2 * i, 0]):
            continue
        ends[2 * i : 2 * i + 2] = np.inf
        pieces = [line.points]
        for _ in range(2):  # continued at its end, then at its beginning
            _continue(pieces, lines, ends, near)
            pieces = [piece[::-1] for piece in reversed(pieces)]
        joined.append(Line(np.vstack(pieces), line.width))
    return joined


def _continue(pieces: list[np.ndarray], lines: list[Line], ends: np.ndarray, near: float) -> None:
    """Append and take the lines that begin or end where the last piece ends, one by one."""
    while True:
        away = np.abs(ends - pieces[-1][-1]).max(axis=1)
        best = int(away.argmin())
        if not away[best] <= near:
            return
        points = lines[best // 2].points
        ends[best // 2 * 2 : best // 2 * 2 + 2] = np.inf
        points = points[::-1] if best % 2 else points
        pieces.append(points[1:] if len(points) > 1 and away[best] == 0 else points)


def _upright(lines: list[Line]) -> list[Line]:
    """Return the lines sheared so that they don't lean."""
    step = _step(lines)
    x, y = np.vstack([_evenly(line.points, step) for line in lines]).T
    if np.ptp(y) <= 0:
        return lines
    shear = np.array([[1.0, 0.0], [-_slant(x, y), 1.0]])
    return [Line(line.points @ shear, line.width, line.filled) for line in lines]


def _step(lines: list[Line]) -> float:
    """Return the distance of the points at which lines are measured."""
    points = np.vstack([line.points for line in lines])
    step = np.ptp(points, axis=0).max() / STEPS
    if len(points) * STEPS <= MAX_STEPS / 2:  # then there can't be too many steps
        return step
    lengths = [float(np.hypot(*np.diff(line.points, axis=0).T).sum()) for line in lines]
    return max(step, sum(lengths) / MAX_STEPS)


def _slant(x: np.ndarray, y: np.ndarray) -> float:
    """Return how much points lean, in x per y.

    This is the mean of two measures: the slope of x over y along all lines, and the slope of the
    left edge between top and bottom, which is what NIST removed. The first alone turns a 7 into a
    3; the second alone follows loose ends.
    """
    dx = x - x.mean()
    dy = y - y.mean()
    ink = (dx * dy).sum() / (dy * dy).sum()
    height = np.ptp(y)
    down = (y - y.min()) / height
    edge = (x[down >= 1 - EDGE].min() - x[down <= EDGE].min()) / height
    return np.clip((ink + edge) / 2, -MAX_SLANT, MAX_SLANT)


def _evenly(points: np.ndarray, step: float) -> np.ndarray:
    """Return points at every ``step`` along a line, float64 (n, 2), at least its first."""
    way = np.r_[0, np.cumsum(np.hypot(*np.diff(points, axis=0).T))]
    at = np.arange(0, way[-1] + step / 2, step) if step > 0 else way[:1]
    return np.column_stack([np.interp(at, way, points[:, 0]), np.interp(at, way, points[:, 1])])


def _boxed(lines: list[Line], pen: float) -> tuple[list[Line], float]:
    """Return the lines fitted into the box, and the scaled ``pen`` of filled shapes.

    The box is in the middle of the bitmap. A stroke is fitted by its middle line, so that it fills
    the box together with the pen's width. So is a filled shape: its outline is moved inwards by
    half the width that it was drawn with.
    """
    points = np.vstack([line.points for line in lines])
    low, high = points.min(axis=0), points.max(axis=0)
    size = high - low
    widest = max(pen, *(line.width for line in lines))
    if size.max() <= DOT * widest:
        scale = np.full(2, PEN / max(widest, 1e-9))
    else:
        scale = (BOX - PEN) / np.maximum(size - pen, 1e-3 * size.max())
        scale = np.array([min(scale[0], WIDEN * scale[1]), min(scale[1], HEIGHTEN * scale[0])])
    middle = (low + high) / 2
    placed = [Line((line.points - middle) * scale + SIDE / 2, PEN, line.filled) for line in lines]
    return placed, pen * float(np.sqrt(scale.prod()))


def _bitmap(lines: list[Line], pen: float) -> np.ndarray:
    """Return the lines as ink, bool (32, 32), with filled shapes as thick as a pen's stroke."""
    if not pen:
        return _painted(lines, SIDE) >= 128
    depth = _depth(_painted(lines, FINE * SIDE) >= 128)
    ink = depth > FINE * (pen - PEN) / 2
    return cv2.resize(ink.astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_AREA) >= 0.5


def _painted(lines: list[Line], side: int) -> np.ndarray:
    """Return the bitmap's lines in white on black, uint8 (side, side), with smooth edges."""
    strokes = [_simple(line.points) for line in lines if not line.filled]
    outlines = [_simple(line.points) for line in lines if line.filled]
    if sum(map(len, strokes + outlines)) > MAX_CORNERS:
        return _painted_at_once(strokes, outlines, side)
    canvas = renderPM.PMCanvas(side, side, bg=0, backend="_renderPM")
    canvas.ctm = (side / SIDE, 0, 0, -side / SIDE, 0, side)  # y goes up there
    canvas.strokeWidth = PEN
    canvas.lineCap = canvas.lineJoin = 1  # round
    canvas.setStrokeColor(colors.white)
    canvas.setFillColor(colors.white)
    for points in strokes:
        canvas.pathBegin()
        _trace(canvas, points)
        canvas.pathStroke()
    if outlines:
        canvas.pathBegin()
        for points in outlines:
            _trace(canvas, points)
            canvas.pathClose()
        canvas.pathFill(shapes.FILL_NON_ZERO)
    return np.asarray(canvas.toPIL().convert("L"))


def _painted_at_once(
    strokes: list[np.ndarray], outlines: list[np.ndarray], side: int
) -> np.ndarray:
    """Return what ``_painted`` does, in a time that grows only linearly with the points."""
    scale = 2 * FINE
    ink = np.zeros((scale * SIDE, scale * SIDE), bool)
    if outlines:
        ink |= inside_of([points * scale for points in outlines], ink.shape, evenodd=False)
    if strokes:
        thin = np.ones(ink.shape, np.uint8)
        for points in strokes:
            cv2.polylines(thin, [in_sixteenths(points * scale)], False, 0, 1, cv2.LINE_8, 4)
        away = cv2.distanceTransform(thin, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        ink |= away <= PEN * scale / 2
    return cv2.resize(ink.astype(np.uint8) * 255, (side, side), interpolation=cv2.INTER_AREA)


def _simple(points: np.ndarray) -> np.ndarray:
    """Return a line without the points that change nothing visible, float32 (n, 2)."""
    return cv2.approxPolyDP(points.astype(np.float32), 0.05, closed=False).reshape(-1, 2)


def _trace(canvas: renderPM.PMCanvas, points: np.ndarray) -> None:
    first, *rest = points.tolist()
    canvas.moveTo(*first)
    for x, y in rest or [(first[0] + 0.01, first[1])]:  # a line without length is not drawn
        canvas.lineTo(x, y)


def _pen_of_filled(lines: list[Line]) -> float:
    """Return the width of the pen that filled shapes look like, in the drawing's units."""
    points = np.vstack([line.points for line in lines if line.filled])
    low, size = points.min(axis=0), np.ptp(points, axis=0).max()
    scale = (SIDE - 2) / max(size, 1e-9)
    moved = [Line((line.points - low) * scale + 1, PEN, True) for line in lines if line.filled]
    depth = _depth(_painted(moved, FINE * SIDE) >= 128)
    ridge = (depth >= cv2.dilate(depth, np.ones((3, 3)))) & (depth > 0)
    return 2 * float(np.median(depth[ridge])) / FINE / scale if ridge.any() else 0.0


def _depth(ink: np.ndarray) -> np.ndarray:
    """Return each pixel's distance to the edge of the ink, float32; outside, it is negative."""
    inside = cv2.distanceTransform(ink.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    outside = cv2.distanceTransform((~ink).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.where(ink, inside - 0.5, 0.5 - outside)

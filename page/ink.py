"""The ink of a drawing: what a person sees as the digit, of all that is painted.

Ink is what contrasts with the paper. The paper is white, or the last shape that lies behind all the
rest. Strokes of ink stay strokes. Where areas are filled, cut out or painted over, the whole is
painted once and its outlines are read off. So the same picture gives the same lines however it was
composed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import cv2
import numpy as np

from page.style import Colour, DrawingError

BLACK, WHITE = (0, 0, 0, 1), (1, 1, 1, 1)
FAINT = 0.08  # contrast, 0 to 1, below which nothing is seen
SHARE = 0.25  # of the drawing's strongest contrast: what has less is ruled paper
COVERS = 0.5  # opacity from which paint hides what lies behind it
NEARLY = 0.03  # of a size: what a page may fall short
SOLID = 0.97  # of its hull's area: a shape without bays
DAB = 2.0  # times the widest stroke: a filled dot of at most this size is a tap of the pen
SIDE = 512  # pixels of the picture that outlines are read off
MARGIN = 2  # pixels around the ink in it
PAGES = 20  # shapes from the front and from the back that may be the page
MAX_PAINTED = 200  # areas that are painted
WORK = 4_000_000  # pixels painted for one drawing, above which the picture is made smaller
SMOOTH = 1.0  # pixels: the steps of a slanted edge, which outlines leave out
THIN = 4  # pixels: thinner ink is thickened before its outlines are read
PINHOLE = 8  # square pixels: gaps of this size between an area and its edge come from rounding
SPECK = 0.05  # of the drawing's size: smaller bits beside larger ones are slips of the hand


@dataclass(frozen=True)
class Line:
    """One line of ink: a stroke of a pen of some ``width``, or the outline of a filled area.

    ``points``: float64 (n, 2), with y down.
    """

    points: np.ndarray
    width: float
    filled: bool = False


@dataclass(frozen=True)
class Shape:
    """One element as it is painted: its lines are filled, then stroked, inside all ``clips``.

    ``lines``: float64 (n, 2) each.
    """

    lines: list[np.ndarray]
    fill: Colour | None
    stroke: Colour | None
    width: float = 0.0
    evenodd: bool = False
    clips: tuple[tuple["Shape", ...], ...] = field(default=())

    @cached_property
    def box(self) -> np.ndarray:
        """The lowest and the highest x and y of the lines themselves, float64 (4,)."""
        points = self.lines[0] if len(self.lines) == 1 else np.vstack(self.lines)
        return np.concatenate([points.min(axis=0), points.max(axis=0)])

    @cached_property
    def is_solid(self) -> bool:
        """Whether it is one line around an area without bays."""
        if len(self.lines) != 1 or len(self.lines[0]) < 3:
            return False
        near = (self.lines[0] - self.box[:2]).astype(np.float32)
        hull = cv2.contourArea(cv2.convexHull(near))
        return hull > 0 and cv2.contourArea(near) >= SOLID * hull


def ink_of(shapes: Sequence[Shape], view: np.ndarray | None, paper: Colour) -> list[Line]:
    """Return the lines of ink.

    ``view`` is the page's box (4,) if the drawing names one, ``paper`` its colour.
    """
    shapes = [_with_area(shape) for shape in shapes if shape.lines]
    if paper == WHITE and all(map(_is_black_stroke, shapes)):
        return _strokes(shapes)  # the page's own drawings
    if not shapes:
        return []
    shapes, paper = _without_page(shapes, view, paper)
    paints = [paint for shape in shapes for paint in (shape.fill, shape.stroke)]
    limit = _limit([_contrast(paint, paper) for paint in paints])
    shapes = [_unclipped(shape) for shape in _dabs(shapes, paper, limit)]
    kept = _visible(shapes, paper, limit)
    if all(_is_ink_stroke(shape, paper, limit) for shape in kept):
        return _strokes(kept)
    return _outlines(kept, paper, limit)


def _is_black_stroke(shape: Shape) -> bool:
    return shape.stroke == BLACK and not shape.fill and not shape.clips


def _is_ink_stroke(shape: Shape, paper: Colour, limit: float) -> bool:
    is_stroke = not shape.fill and not shape.clips
    return is_stroke and _contrast(shape.stroke, paper) >= limit


def _with_area(shape: Shape) -> Shape:
    """Return the shape without a fill if it has no area to fill."""
    return replace(shape, fill=None) if shape.fill and max(map(len, shape.lines)) < 3 else shape


def _strokes(shapes: Sequence[Shape]) -> list[Line]:
    return [Line(points, shape.width) for shape in shapes for points in shape.lines]


def _contrast(paint: Colour | None, paper: Colour) -> float:
    if paint is None:
        return 0.0
    return paint[3] * max(abs(one - other) for one, other in zip(paint[:3], paper[:3], strict=True))


def _limit(contrasts: list[float]) -> float:
    return max(FAINT, SHARE * max(contrasts, default=0.0))


def _visible(shapes: list[Shape], paper: Colour, limit: float) -> list[Shape]:
    """Return the shapes without what adds no ink and hides none."""
    boxes = np.array([_grown(shape) for shape in shapes])
    is_ink = np.zeros(len(shapes), bool)
    kept: list[Shape] = []
    for i, shape in enumerate(shapes):
        paints = []
        for paint in (shape.fill, shape.stroke):
            shows = _contrast(paint, paper) >= limit
            is_ink[i] |= shows
            covers = paint is not None and paint[3] >= COVERS
            stays = shows or (covers and _meet(boxes[i], boxes[:i][is_ink[:i]]).any())
            paints.append(paint if stays else None)
        fill, stroke = paints
        if fill or stroke:
            kept.append(replace(shape, fill=fill, stroke=stroke))
    return kept if is_ink.any() else []


def _grown(shape: Shape) -> np.ndarray:
    return shape.box + np.array([-1, -1, 1, 1]) * (shape.width / 2 if shape.stroke else 0)


def _meet(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return which boxes share a point with ``one``."""
    return (one[:2] <= others[..., 2:]).all(axis=-1) & (others[..., :2] <= one[2:]).all(axis=-1)


def _holds(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """Return which outer boxes hold which inner ones, all but a little; either may be many."""
    spare = NEARLY * (outer[..., 2:] - outer[..., :2]).max(axis=-1, keepdims=True)
    low = outer[..., :2] - spare <= inner[..., :2]
    high = inner[..., 2:] <= outer[..., 2:] + spare
    return low.all(axis=-1) & high.all(axis=-1)


def _without_page(
    shapes: list[Shape], view: np.ndarray | None, paper: Colour
) -> tuple[list[Shape], Colour]:
    """Return the shapes on the page, and the page's colour.

    The page is the last shape that holds all the rest. Without such a shape it is the paper.
    """
    boxes = np.array([shape.box for shape in shapes])
    seen = boxes if view is None else np.array([_seen(box, view) for box in boxes])
    squares = np.array([_is_square(shape) for shape in shapes])
    fills = _table([shape.fill for shape in shapes])
    strokes = _table([shape.stroke for shape in shapes])
    wholes = squares & _holds(boxes, view) if view is not None else np.zeros(len(shapes), bool)
    # A frame around the whole view may be the page. Any other ring may be a digit.
    may_be = np.flatnonzero((fills[:, 3] >= COVERS) | (wholes & (strokes[:, 3] > 0)))
    for i in _most_likely(may_be):
        colour = _over(shapes[i].fill, paper)
        shows = np.maximum(_contrasts(fills, colour), _contrasts(strokes, colour)) >= FAINT
        is_behind = np.arange(len(shapes)) < i
        rest = np.where(is_behind, ~(squares & _holds(boxes, boxes[i])), shows)
        rest[i] = False
        if not _holds(boxes[i], seen[rest]).all():
            continue
        on_it = [shapes[k] for k in np.flatnonzero(rest & ~is_behind)]
        if wholes[i] or (on_it and _is_panel(shapes[i], on_it)):
            return shapes[i + 1 :], colour
    return shapes, paper


def _most_likely(may_be: np.ndarray) -> list[int]:
    """Return the places of shapes that may be the page: the last ones first, then the first ones.

    Of many shapes, those in the middle are left out.
    """
    last = may_be[-PAGES:][::-1]
    first = may_be[:-PAGES][:PAGES][::-1]
    return [*last, *first]


def _table(paints: Sequence[Colour | None]) -> np.ndarray:
    return np.array([paint or (0.0, 0.0, 0.0, 0.0) for paint in paints])


def _contrasts(paints: np.ndarray, paper: Colour) -> np.ndarray:
    return paints[:, 3] * np.abs(paints[:, :3] - paper[:3]).max(axis=1)


def _seen(box: np.ndarray, view: np.ndarray) -> np.ndarray:
    """Return what of a box is on the page."""
    low, high = np.maximum(box[:2], view[:2]), np.minimum(box[2:], view[2:])
    return np.concatenate([low, high]) if (low <= high).all() else box


def _over(paint: Colour | None, behind: Colour) -> Colour:
    if paint is None:
        return behind
    alpha = paint[3]
    pairs = zip(paint[:3], behind[:3], strict=True)
    r, g, b = (alpha * one + (1 - alpha) * other for one, other in pairs)
    return r, g, b, 1.0


def _is_panel(shape: Shape, on_it: list[Shape]) -> bool:
    """Return whether a shape is what a drawing lies on.

    Where all that lies on it is filled and without bays, these shapes are holes in it.
    """
    holes = all(one.fill and not one.stroke and one.is_solid for one in on_it)
    return shape.is_solid and not holes


def _is_square(shape: Shape) -> bool:
    if len(shape.lines) != 1 or len(shape.lines[0]) < 4:
        return False
    x0, y0, x1, y1 = shape.box
    points = shape.lines[0] - [x0, y0]
    return bool(cv2.contourArea(points.astype(np.float32)) >= SOLID * (x1 - x0) * (y1 - y0) > 0)


def _dabs(shapes: list[Shape], paper: Colour, limit: float) -> list[Shape]:
    """Return the shapes with each small filled dot beside strokes as a tap of the same pen."""
    widths = [shape.width for shape in shapes if _contrast(shape.stroke, paper) >= limit]
    pen = max(widths, default=0.0)
    if not pen:
        return shapes
    return [_dab(shape) if _is_dab(shape, pen, paper, limit) else shape for shape in shapes]


def _is_dab(shape: Shape, pen: float, paper: Colour, limit: float) -> bool:
    if len(shape.lines) != 1 or shape.clips or _contrast(shape.fill, paper) < limit:
        return False
    x0, y0, x1, y1 = shape.box
    return max(x1 - x0, y1 - y0) <= DAB * pen and shape.is_solid


def _dab(shape: Shape) -> Shape:
    x0, y0, x1, y1 = shape.box
    middle = np.array([[(x0 + x1) / 2, (y0 + y1) / 2]])
    border = shape.width if shape.stroke else 0
    return Shape([middle], None, shape.fill, max(x1 - x0, y1 - y0) + border)


def _unclipped(shape: Shape) -> Shape:
    """Return the shape without those of its clips that hold all of it."""
    if not shape.clips:
        return shape
    return replace(shape, clips=tuple(clip for clip in shape.clips if not _leaves(clip, shape)))


def _leaves(clip: tuple[Shape, ...], shape: Shape) -> bool:
    """Return whether a clip is one square that holds all of a shape."""
    if len(clip) != 1 or clip[0].clips or not _is_square(clip[0]):
        return False
    return bool(_holds(clip[0].box, shape.box))


def _outlines(shapes: list[Shape], paper: Colour, limit: float) -> list[Line]:
    """Return the outlines of all that is ink once everything is painted; holes turn the other way.

    Raises ``DrawingError`` for too many areas.
    """
    shapes = _together(shapes)
    if sum(map(_areas, shapes)) > MAX_PAINTED:
        raise DrawingError(
            f"The drawing has more than {MAX_PAINTED} areas that are filled or painted over."
        )
    picture = _picture_of(shapes, paper, limit)
    for shape in shapes:
        picture.paint(shape, paper)
    ink = picture.canvas >= max(limit, SHARE * float(picture.canvas.max()))
    return [Line(picture.placed(outline), 0.0, filled=True) for outline in _contours(ink)]


def _areas(shape: Shape) -> float:
    """Return how many areas a shape costs; a stroke costs less than a fill."""
    return bool(shape.fill) + len(shape.clips) + 0.3 * bool(shape.stroke)


def _picture_of(shapes: list[Shape], paper: Colour, limit: float) -> "_Picture":
    """Return an empty picture around all ink, smaller where painting would take too much work."""
    boxes = np.array([_grown(shape) for shape in shapes if _shows_ink(shape, paper, limit)])
    corner = boxes[:, :2].min(axis=0)
    size = max(float((boxes[:, 2:].max(axis=0) - corner).max()), 1e-9)
    side = SIDE
    while side > SIDE // 8 and _work(shapes, side / size, side) > WORK:
        side //= 2
    return _Picture(corner, (side - 2 * MARGIN) / size, side)


def _contours(ink: np.ndarray) -> list[np.ndarray]:
    """Return the outlines of areas and of the holes in them, in pixels, int32 (n, 1, 2) each."""
    found, family = cv2.findContours(_tidied(ink), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    kept = []
    for i, contour in enumerate(found):
        is_hole = family[0][i][3] >= 0
        if not is_hole or cv2.contourArea(contour) > PINHOLE:
            kept.append(cv2.approxPolyDP(contour, SMOOTH, closed=True))
    return kept


def _together(shapes: list[Shape]) -> list[Shape]:
    """Return the shapes with neighbours of the same look made one, where their outlines add up."""
    together: list[Shape] = []
    last: Shape | None = None  # what more outlines may be added to
    for shape in shapes:
        is_opaque = shape.fill is not None and shape.fill[3] >= 1
        if shape.stroke or shape.clips or not is_opaque or not shape.is_solid:
            together.append(shape)
            last = None
            continue
        outline = _turned(shape.lines[0])
        if last and last.fill == shape.fill:
            last.lines.append(outline)
        else:
            last = Shape([outline], shape.fill, None)
            together.append(last)
    return together


def _shows_ink(shape: Shape, paper: Colour, limit: float) -> bool:
    return max(_contrast(shape.fill, paper), _contrast(shape.stroke, paper)) >= limit


def _tidied(ink: np.ndarray) -> np.ndarray:
    """Return ink as uint8, without specks, and not so thin that its outlines hold nothing."""
    tidy = _without_specks(ink)
    if not tidy.any():
        return tidy
    depth = cv2.distanceTransform(tidy, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    ridge = (depth >= cv2.dilate(depth, np.ones((3, 3)))) & (depth > 0)
    if 2 * float(np.median(depth[ridge].astype(np.float32))) >= THIN:
        return tidy
    return cv2.dilate(tidy, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5)))


def _without_specks(ink: np.ndarray) -> np.ndarray:
    pixels = ink.astype(np.uint8)
    found, labels, stats, _ = cv2.connectedComponentsWithStats(pixels, connectivity=8)
    ys, xs = np.nonzero(ink)
    if found <= 2 or not len(xs):
        return pixels
    sizes = stats[:, [cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT]].max(axis=1)
    is_large = sizes >= SPECK * max(np.ptp(xs), np.ptp(ys))
    is_large[0] = False  # the paper
    return is_large[labels].astype(np.uint8) if is_large.any() else pixels


def _work(shapes: list[Shape], scale: float, side: int) -> float:
    """Return about how many pixels it takes to paint shapes."""
    clips = (part for shape in shapes for clip in shape.clips for part in clip)
    return sum(_pixels(shape, scale, side) for shape in [*shapes, *clips])


def _pixels(shape: Shape, scale: float, side: int) -> float:
    x0, y0, x1, y1 = np.clip(_grown(shape) * scale, -1e6, 1e6)
    pixels = 500 + 4 * min(x1 - x0 + 2, side) * min(y1 - y0 + 2, side)
    pen = min(max(shape.width * scale, 1), 2 * side) if shape.stroke else 1
    for points in shape.lines:
        steps = np.abs(np.diff(points, axis=0)).sum(axis=1) * scale
        length = float(np.minimum(steps, 2 * side).sum() + len(steps) * pen)
        pixels += length * (4 + pen / 4)
    return float(pixels)


class _Picture:
    """The contrast with the paper of each pixel of a picture, float32 (side, side), 0 to 1."""

    def __init__(self, corner: np.ndarray, scale: float, side: int):
        self.corner = corner
        self.scale = scale
        self.side = side
        self.canvas = np.zeros((side, side), np.float32)

    def placed(self, outline: np.ndarray) -> np.ndarray:
        """Return an outline in pixels, int32 (n, 1, 2), as points of the drawing, float64 (n, 2)."""
        return (outline[:, 0] + 0.5 - MARGIN) / self.scale + self.corner

    def paint(self, shape: Shape, paper: Colour) -> None:
        """Paint a shape over what is there."""
        lines = self._in_pixels(shape)
        spare = 2 + (shape.width * self.scale / 2 if shape.stroke else 0)
        points = np.vstack(lines)
        low = np.clip(points.min(axis=0) - spare, 0, self.side).astype(int)
        high = np.clip(points.max(axis=0) + spare + 1, 0, self.side).astype(int)
        if (high <= low).any():
            return
        lines = [line - low for line in lines]
        size = int(high[1] - low[1]), int(high[0] - low[0])
        here = self.canvas[low[1] : high[1], low[0] : high[0]]
        clip = self._clip(shape, low, size)
        if shape.fill:
            contrast = _opaque_contrast(shape.fill, paper)
            mask = _filled(lines, size, shape.evenodd, with_edge=contrast >= FAINT)
            _blend(here, mask if clip is None else mask & clip, shape.fill[3], contrast)
        if shape.stroke:
            contrast = _opaque_contrast(shape.stroke, paper)
            width = int(np.clip(round(shape.width * self.scale), 1, 4 * self.side))
            mask = _stroked(lines, size, width)
            _blend(here, mask if clip is None else mask & clip, shape.stroke[3], contrast)

    def _in_pixels(self, shape: Shape) -> list[np.ndarray]:
        return [
            np.clip((points - self.corner) * self.scale + MARGIN, -1e6, 1e6)
            for points in shape.lines
        ]

    def _clip(self, shape: Shape, low: np.ndarray, size: tuple[int, int]) -> np.ndarray | None:
        """Return which pixels of a window all clips of a shape leave, or None without clips.

        ``low`` is the window's first x and y, ``size`` its height and width.
        """
        if not shape.clips:
            return None
        left = np.ones(size, bool)
        for clip in shape.clips:
            any_of = np.zeros(size, bool)
            for part in clip:
                lines = [line - low for line in self._in_pixels(part)]
                any_of |= inside_of(lines, size, part.evenodd)
            left &= any_of
        return left


def _opaque_contrast(paint: Colour, paper: Colour) -> float:
    return _contrast((*paint[:3], 1.0), paper)


def _blend(here: np.ndarray, mask: np.ndarray, alpha: float, contrast: float) -> None:
    here[mask] += alpha * (np.float32(contrast) - here[mask])


def _filled(
    lines: list[np.ndarray], size: tuple[int, int], evenodd: bool, with_edge: bool
) -> np.ndarray:
    """Return the pixels of a fill: with its edge where it is ink, without where it is paper."""
    inside = inside_of(lines, size, evenodd)
    edge = np.zeros(size, np.uint8)
    for line in lines:
        cv2.polylines(edge, [in_sixteenths(_turned(line))], True, 1, 1, cv2.LINE_8, 4)
    return inside | (edge > 0) if with_edge else inside & (edge == 0)


def _stroked(lines: list[np.ndarray], size: tuple[int, int], width: int) -> np.ndarray:
    """Return the pixels of strokes that are ``width`` pixels wide."""
    mask = np.zeros(size, np.uint8)
    for line in lines:
        cv2.polylines(mask, [in_sixteenths(line)], False, 1, width, cv2.LINE_8, 4)
    return mask > 0


def _turned(line: np.ndarray) -> np.ndarray:
    """Return a line in the one direction; the pixels of a line depend on its direction."""
    return line if _area(line) >= 0 else line[::-1]


def _area(points: np.ndarray) -> float:
    x, y = (points - points[0]).T
    return float((x * np.roll(y, -1) - y * np.roll(x, -1)).sum())


def in_sixteenths(points: np.ndarray) -> np.ndarray:
    """Return points as OpenCV takes them with a shift of 4: in sixteenths of a pixel.

    A pixel's middle has whole numbers there.
    """
    return np.round((points - 0.5) * 16).astype(np.int32)


def inside_of(lines: list[np.ndarray], size: tuple[int, int], evenodd: bool) -> np.ndarray:
    """Return which pixels' middles lie inside closed lines, bool (height, width).

    Each edge adds one turn, up or down, to all pixels to its right in the rows that it crosses.
    """
    height, width = size
    start = np.vstack(lines)
    end = np.vstack([np.roll(line, -1, axis=0) for line in lines])
    first = np.clip(np.ceil(start[:, 1] - 0.5), 0, height).astype(int)
    last = np.clip(np.ceil(end[:, 1] - 0.5), 0, height).astype(int)
    rows = np.abs(last - first)

    # One entry for each row that each edge crosses.
    edge = np.repeat(np.arange(len(rows)), rows)
    nth = np.arange(len(edge)) - np.repeat(np.cumsum(rows) - rows, rows)
    row = nth + np.minimum(first, last)[edge]
    slope = (end[:, 0] - start[:, 0]) / np.where(rows > 0, end[:, 1] - start[:, 1], 1)
    x = start[edge, 0] + (row + 0.5 - start[edge, 1]) * slope[edge]
    column = np.clip(np.ceil(x - 0.5), 0, width).astype(int)

    place = row * (width + 1) + column
    turns = np.bincount(place, np.sign(last - first)[edge], height * (width + 1))
    turns = turns.reshape(height, width + 1)[:, :width].cumsum(axis=1).round().astype(int)
    return turns % 2 == 1 if evenodd else turns != 0

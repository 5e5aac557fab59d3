"""The ink of a drawing: of all that is painted, what a person sees as the digit, as lines of ink.

Ink is what contrasts with the paper. The paper is white, or the last shape that lies behind all the rest. Strokes of
ink stay strokes; where areas are filled, cut out or painted over, the whole is painted once and its outlines are read
off, so that the same picture gives the same lines however it was put together.
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
DAB = 2.0  # times the widest stroke: a filled dot beside strokes that is not larger is a tap of the pen
SIDE = 512  # pixels of the picture that outlines are read off
PAGES = 20  # shapes from the front and from the back that may be the page
MAX_PAINTED = 200  # areas that are painted
WORK = 4_000_000  # pixels painted for one drawing, above which the picture is made smaller
SMOOTH = 1.0  # pixels: the steps of a slanted edge, which outlines are read off without
THIN = 4  # pixels: what is thinner is thickened before outlines are read
PINHOLE = 8  # square pixels: what is left between an area and its edge by rounding
SPECK = 0.05  # of the drawing's size: smaller bits beside larger ones are slips of the hand


@dataclass(frozen=True)
class Line:
    """One line of ink: ``points`` float64 (n, 2), y down; drawn with a pen of some ``width``, or a filled outline."""

    points: np.ndarray
    width: float
    filled: bool = False


@dataclass(frozen=True)
class Shape:
    """One element as it is painted: lines, float64 (n, 2) each, that are filled, then stroked, inside of ``clips``."""

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
    """Return the lines of ink; ``view`` is the page's box (4,) if the drawing names one, ``paper`` its colour."""
    shapes = [_with_area(shape) for shape in shapes if shape.lines]
    if paper == WHITE and all(
        shape.stroke == BLACK and not shape.fill and not shape.clips for shape in shapes
    ):
        return _strokes(shapes)  # the page's own drawings
    if not shapes:
        return []
    shapes, paper = _without_page(shapes, view, paper)
    limit = _limit(
        [_contrast(paint, paper) for shape in shapes for paint in (shape.fill, shape.stroke)]
    )
    shapes = [_unclipped(shape) for shape in _dabs(shapes, paper, limit)]
    kept = _visible(shapes, paper, limit)
    if any(shape.fill or shape.clips or _contrast(shape.stroke, paper) < limit for shape in kept):
        return _outlines(kept, paper, limit)
    return _strokes(kept)


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
            hides = (
                not shows
                and paint
                and paint[3] >= COVERS
                and _meet(boxes[i], boxes[:i][is_ink[:i]]).any()
            )
            paints.append(paint if shows or hides else None)
        if paints[0] or paints[1]:
            kept.append(replace(shape, fill=paints[0], stroke=paints[1]))
    return kept if is_ink.any() else []


def _grown(shape: Shape) -> np.ndarray:
    return shape.box + np.array([-1, -1, 1, 1]) * (shape.width / 2 if shape.stroke else 0)


def _meet(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return which boxes share a point with ``one``."""
    return (one[:2] <= others[..., 2:]).all(axis=-1) & (others[..., :2] <= one[2:]).all(axis=-1)


def _holds(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """Return which boxes hold which, all but a little; either may be many."""
    spare = NEARLY * (outer[..., 2:] - outer[..., :2]).max(axis=-1, keepdims=True)
    low, high = outer[..., :2] - spare <= inner[..., :2], inner[..., 2:] <= outer[..., 2:] + spare
    return low.all(axis=-1) & high.all(axis=-1)


def _without_page(
    shapes: list[Shape], view: np.ndarray | None, paper: Colour
) -> tuple[list[Shape], Colour]:
    """Return the shapes on the page, and its colour: the page is the last shape that holds all the rest, if any."""
    boxes = np.array([shape.box for shape in shapes])
    seen = boxes if view is None else np.array([_seen(box, view) for box in boxes])
    square = np.array([_is_square(shape) for shape in shapes])
    fills, strokes = (
        _table([getattr(shape, kind) for shape in shapes]) for kind in ("fill", "stroke")
    )
    whole = square & _holds(boxes, view) if view is not None else np.zeros(len(shapes), bool)
    may_be = np.flatnonzero(
        (fills[:, 3] >= COVERS) | (whole & (strokes[:, 3] > 0))
    )  # a frame; a ring may be a digit
    for i in [*may_be[: -PAGES - 1 : -1], *may_be[:-PAGES][:PAGES][::-1]]:
        colour = _over(shapes[i].fill, paper)
        shown = np.maximum(_contrasts(fills, colour), _contrasts(strokes, colour)) >= FAINT
        rest = np.where(np.arange(len(shapes)) < i, ~(square & _holds(boxes, boxes[i])), shown)
        rest[i] = False
        if not _holds(boxes[i], seen[rest]).all():
            continue
        on_it = [shapes[k] for k in np.flatnonzero(rest) if k > i]
        if whole[i] or (on_it and _is_panel(shapes[i], on_it)):
            return shapes[i + 1 :], colour
    return shapes, paper


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
    r, g, b = (
        paint[3] * one + (1 - paint[3]) * other
        for one, other in zip(paint[:3], behind[:3], strict=True)
    )
    return r, g, b, 1.0


def _is_panel(shape: Shape, on_it: list[Shape]) -> bool:
    """Return whether a shape is what a drawing lies on; filled shapes without bays alone are holes in it."""
    return shape.is_solid and not all(one.fill and not one.stroke and one.is_solid for one in on_it)


def _is_square(shape: Shape) -> bool:
    if len(shape.lines) != 1 or len(shape.lines[0]) < 4:
        return False
    x0, y0, x1, y1 = shape.box
    points = shape.lines[0] - [x0, y0]
    return bool(cv2.contourArea(points.astype(np.float32)) >= SOLID * (x1 - x0) * (y1 - y0) > 0)


def _dabs(shapes: list[Shape], paper: Colour, limit: float) -> list[Shape]:
    """Return the shapes with small filled dots beside strokes as what they are, taps of the same pen."""
    pen = max(
        (shape.width for shape in shapes if _contrast(shape.stroke, paper) >= limit), default=0.0
    )
    return [_dab(shape) if pen and _is_dab(shape, pen, paper, limit) else shape for shape in shapes]


def _is_dab(shape: Shape, pen: float, paper: Colour, limit: float) -> bool:
    if len(shape.lines) != 1 or shape.clips or _contrast(shape.fill, paper) < limit:
        return False
    x0, y0, x1, y1 = shape.box
    return max(x1 - x0, y1 - y0) <= DAB * pen and shape.is_solid


def _dab(shape: Shape) -> Shape:
    x0, y0, x1, y1 = shape.box
    middle = np.array([[(x0 + x1) / 2, (y0 + y1) / 2]])
    return Shape(
        [middle], None, shape.fill, max(x1 - x0, y1 - y0) + (shape.width if shape.stroke else 0)
    )


def _unclipped(shape: Shape) -> Shape:
    """Return the shape without those of its clips that hold all of it."""
    if not shape.clips:
        return shape
    clips = tuple(
        clip for clip in shape.clips if not (len(clip) == 1 and _clip_holds(clip[0], shape))
    )
    return replace(shape, clips=clips)


def _clip_holds(clip: Shape, shape: Shape) -> bool:
    return not clip.clips and _is_square(clip) and bool(_holds(clip.box, shape.box))


def _outlines(shapes: list[Shape], paper: Colour, limit: float) -> list[Line]:
    """Return the outlines of all that is ink once everything is painted, holes turned the other way round."""
    shapes = _together(shapes)
    if (
        sum(bool(shape.fill) + len(shape.clips) + 0.3 * bool(shape.stroke) for shape in shapes)
        > MAX_PAINTED
    ):
        raise DrawingError(
            f"The drawing has more than {MAX_PAINTED} areas that are filled or painted over."
        )
    boxes = np.array([_grown(shape) for shape in shapes if _shows_ink(shape, paper, limit)])
    corner = boxes[:, :2].min(axis=0)
    size = max(float((boxes[:, 2:].max(axis=0) - corner).max()), 1e-9)
    side = SIDE
    while side > SIDE // 8 and _work(shapes, side / size, side) > WORK:
        side //= 2
    picture = _Picture(corner, (side - 4) / size, side)
    for shape in shapes:
        picture.paint(shape, paper)
    ink = picture.canvas >= max(limit, SHARE * float(picture.canvas.max()))
    contours, family = cv2.findContours(_tidied(ink), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    kept = [
        one
        for i, one in enumerate(contours)
        if family[0][i][3] < 0 or cv2.contourArea(one) > PINHOLE
    ]
    if SMOOTH:
        kept = [cv2.approxPolyDP(one, SMOOTH, closed=True) for one in kept]
    return [Line((one[:, 0] - 1.5) / picture.scale + corner, 0.0, filled=True) for one in kept]


def _together(shapes: list[Shape]) -> list[Shape]:
    """Return the shapes with those in one that follow each other, look the same, and whose outlines only add up."""
    together: list[Shape] = []
    for shape in shapes:
        if shape.stroke or shape.clips or not shape.is_solid or not shape.fill or shape.fill[3] < 1:
            together.append(shape)
            continue
        turned = shape.lines[0] if _area(shape.lines[0]) >= 0 else shape.lines[0][::-1]
        last = together[-1] if together else None
        if last and last.width < 0 and last.fill == shape.fill:
            last.lines.append(turned)
        else:
            together.append(Shape([turned], shape.fill, None, width=-1.0))
    return together


def _shows_ink(shape: Shape, paper: Colour, limit: float) -> bool:
    return max(_contrast(shape.fill, paper), _contrast(shape.stroke, paper)) >= limit


def _tidied(ink: np.ndarray) -> np.ndarray:
    """Return ink as uint8, without specks, and not so thin that its outlines hold nothing."""
    found, labels, stats, _ = cv2.connectedComponentsWithStats(ink.astype(np.uint8), connectivity=8)
    sizes = stats[:, [cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT]].max(axis=1)
    ys, xs = np.nonzero(ink)
    if not len(xs):
        return ink.astype(np.uint8)
    large = sizes >= SPECK * max(np.ptp(xs), np.ptp(ys))
    large[0] = False
    tidy = large[labels].astype(np.uint8) if found > 2 and large.any() else ink.astype(np.uint8)
    depth = cv2.distanceTransform(tidy, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    ridge = (depth >= cv2.dilate(depth, np.ones((3, 3)))) & (depth > 0)
    if 2 * float(np.median(depth[ridge].astype(np.float32))) >= THIN:
        return tidy
    return cv2.dilate(tidy, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5)))


def _work(shapes: list[Shape], scale: float, side: int) -> float:
    """Return about how many pixels it takes to paint shapes."""
    pixels = 0.0
    clips = (part for shape in shapes for clip in shape.clips for part in clip)
    for shape in [*shapes, *clips]:
        x0, y0, x1, y1 = np.clip((_grown(shape)) * scale, -1e6, 1e6)
        pixels += 500 + 4 * min(x1 - x0 + 2, side) * min(y1 - y0 + 2, side)
        for points in shape.lines:
            steps = np.abs(np.diff(points, axis=0)).sum(axis=1) * scale
            pen = min(max(shape.width * scale, 1), 2 * side) if shape.stroke else 1
            pixels += float(np.minimum(steps, 2 * side).sum() + len(steps) * pen) * (4 + pen / 4)
    return pixels


class _Picture:
    """The contrast with the paper of each pixel of a picture, float32 (side, side), 0 to 1."""

    def __init__(self, corner: np.ndarray, scale: float, side: int):
        self.corner, self.scale, self.side = corner, scale, side
        self.canvas = np.zeros((side, side), np.float32)

    def paint(self, shape: Shape, paper: Colour) -> None:
        """Paint a shape over what is there."""
        lines = [
            np.clip((points - self.corner) * self.scale + 2, -1e6, 1e6) for points in shape.lines
        ]
        spare = 2 + (shape.width * self.scale / 2 if shape.stroke else 0)
        points = np.vstack(lines)
        low = np.clip(points.min(axis=0) - spare, 0, self.side).astype(int)
        high = np.clip(points.max(axis=0) + spare + 1, 0, self.side).astype(int)
        if (high <= low).any():
            return
        window = (slice(low[1], high[1]), slice(low[0], high[0]))
        clip = self._clip(shape, window)
        lines = [line - low for line in lines]
        for paint, is_fill in ((shape.fill, True), (shape.stroke, False)):
            if paint is None:
                continue
            contrast = _contrast((*paint[:3], 1.0), paper)
            mask = (
                self._filled(lines, shape, high - low, contrast)
                if is_fill
                else self._stroked(lines, shape, high - low)
            )
            if clip is not None:
                mask &= clip
            here = self.canvas[window]
            here[mask] += paint[3] * (np.float32(contrast) - here[mask])

    def _filled(
        self, lines: list[np.ndarray], shape: Shape, size: np.ndarray, contrast: float
    ) -> np.ndarray:
        """Return the pixels a fill takes: with its edge where it is ink, without where it is paper."""
        inside = inside_of(lines, (int(size[1]), int(size[0])), shape.evenodd)
        edge = np.zeros(inside.shape, np.uint8)
        for line in lines:
            turned = (
                line if _area(line) >= 0 else line[::-1]
            )  # a line's pixels depend on its direction
            cv2.polylines(edge, [_fixed(turned)], True, 1, 1, cv2.LINE_8, 4)
        return inside | (edge > 0) if contrast >= FAINT else inside & (edge == 0)

    def _stroked(self, lines: list[np.ndarray], shape: Shape, size: np.ndarray) -> np.ndarray:
        mask = np.zeros((int(size[1]), int(size[0])), np.uint8)
        width = int(np.clip(round(shape.width * self.scale), 1, 4 * self.side))
        for line in lines:
            cv2.polylines(mask, [_fixed(line)], False, 1, width, cv2.LINE_8, 4)
        return mask > 0

    def _clip(self, shape: Shape, window: tuple[slice, slice]) -> np.ndarray | None:
        """Return which pixels of a window all of a shape's clips leave, or None where it has none."""
        if not shape.clips:
            return None
        low = np.array([window[1].start, window[0].start])
        size = (window[0].stop - low[1], window[1].stop - low[0])
        left = np.ones(size, bool)
        for clip in shape.clips:
            any_of = np.zeros(size, bool)
            for part in clip:
                lines = [
                    np.clip((points - self.corner) * self.scale + 2, -1e6, 1e6) - low
                    for points in part.lines
                ]
                any_of |= inside_of(lines, size, part.evenodd)
            left &= any_of
        return left


def _area(points: np.ndarray) -> float:
    x, y = (points - points[0]).T
    return float((x * np.roll(y, -1) - y * np.roll(x, -1)).sum())


def _fixed(points: np.ndarray) -> np.ndarray:
    """Return points as OpenCV takes them with a shift of 4: in sixteenths of a pixel, whose middle is at its corner."""
    return np.round((points - 0.5) * 16).astype(np.int32)


def inside_of(lines: list[np.ndarray], size: tuple[int, int], evenodd: bool) -> np.ndarray:
    """Return which pixels' middles lie inside closed lines, bool (height, width), by counting turns around them."""
    height, width = size
    start = np.vstack(lines)
    end = np.vstack([np.roll(line, -1, axis=0) for line in lines])
    first, last = (
        np.clip(np.ceil(points[:, 1] - 0.5), 0, height).astype(int) for points in (start, end)
    )
    rows = np.abs(last - first)
    edge = np.repeat(np.arange(len(rows)), rows)
    row = (
        np.arange(len(edge))
        - np.repeat(np.cumsum(rows) - rows, rows)
        + np.minimum(first, last)[edge]
    )
    slope = (end[:, 0] - start[:, 0]) / np.where(rows > 0, end[:, 1] - start[:, 1], 1)
    x = start[edge, 0] + (row + 0.5 - start[edge, 1]) * slope[edge]
    column = np.clip(np.ceil(x - 0.5), 0, width).astype(int)
    turns = np.bincount(
        row * (width + 1) + column, np.sign(last - first)[edge], height * (width + 1)
    )
    turns = turns.reshape(height, width + 1)[:, :width].cumsum(axis=1).round().astype(int)
    return turns % 2 == 1 if evenodd else turns != 0

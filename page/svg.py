"""The reader of a person's drawing: an SVG from outside becomes checked lines of ink.

Nothing else of the SVG is kept or handed on. Each element, attribute and style that a drawing needs
is checked and becomes a number; anything else is refused or skipped.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from lxml import etree

from page.decode import SVG, decoded, href_of, name_of, parsed
from page.ink import Line, Shape, ink_of
from page.limits import MAX_COORDINATE, MAX_DEPTH, MAX_ELEMENTS, MAX_LINES, Budget
from page.paths import NOTHING, PathData, ellipse, lines_of, path_of, points_of, rectangle
from page.style import (
    INITIAL,
    Colour,
    DrawingError,
    Sheet,
    Style,
    colour,
    fallback,
    length,
    moved,
    opacity,
    reference,
    transform,
)

__all__ = ["DrawingError", "Line", "read_svg"]

# What a value must not hold: an address outside the drawing, or a script.
_LOADS = re.compile(r"url\s*\(\s*[\"']?\s*[^\s\"'#]|@import|expression\s*\(|javascript:", re.I)
_TEXTS = {"title", "desc", "metadata", "style"}
_DEFINED = {"defs", "symbol", "clipPath", "mask", "marker", "pattern", "filter"}
_DEFINED |= {"linearGradient", "radialGradient", "view", "cursor", "font", "font-face"}
_SKIPPED = _TEXTS | _DEFINED  # not painted where they are
_MARKERS = ("marker-start", "marker-mid", "marker-end")
_SHAPES = {"path", "polyline", "polygon", "line", "rect", "circle", "ellipse"}
_GROUPS = {"g", "svg", "a", "switch", "use"}
_OPAQUE_BLACK: Colour = (0.0, 0.0, 0.0, 1.0)


def read_svg(img_str: str) -> list[Line]:
    """Return the lines of an SVG's ink, given in base64 or as a data URL; raises ``DrawingError``.

    What doesn't contrast with the paper is left out. A drawing without ink is an error.
    """
    root = parsed(decoded(img_str))
    reader = _Reader(root)
    lines = ink_of(reader.read(), reader.view, reader.paper)
    if lines:
        return lines
    if reader.has_definitions:
        raise DrawingError("The drawing is empty: it holds definitions that nothing shows.")
    raise DrawingError("The drawing is empty: draw a digit first.")


@dataclass(frozen=True)
class _Around:
    """What an element takes from the groups around it.

    ``matrix`` (3, 3) takes its points to the page, None leaves them where they are. ``shown`` is
    how opaque all its groups are together, 0 to 1.
    """

    style: Style
    matrix: np.ndarray | None
    clips: tuple[tuple[Shape, ...], ...] = ()
    shown: float = 1.0
    depth: int = 0


@dataclass(frozen=True)
class _Unread:
    """A path whose lines are still to be read, and the shape that they belong to."""

    path: PathData
    shape: Shape
    matrix: np.ndarray | None


class _Reader:
    """Walks through a foreign tree, counts against the limits and collects what is painted."""

    def __init__(self, root: etree._Element):
        self.root = root
        self.view: np.ndarray | None = None
        self.paper: Colour = (1.0, 1.0, 1.0, 1.0)
        self.has_definitions = False
        self._budget = Budget()
        self._shapes: list[Shape] = []
        self._unread: list[_Unread] = []
        self._outline_of: str | None = None  # "clip-path" or "mask" while its shapes are read
        self._by_alpha = False  # whether the mask's opacity counts, and not its lightness
        self._ids: dict[str, etree._Element] | None = None
        sheets = root.iter(f"{{{SVG}}}style", "style")
        self._sheet = Sheet(root, ["".join(style.itertext()) for style in sheets])

    def read(self) -> list[Shape]:
        """Return all shapes in the order in which they are painted, in the page's coordinates."""
        style = self._style(self.root, INITIAL)
        paper = colour(style["background-color"], style["color"])
        if paper and paper[3] >= 0.5:
            self.paper = (*paper[:3], 1.0)
        matrix = self._page(style)
        if style["display"].lower() != "none" and opacity(style["opacity"]) > 0:
            self._children(self.root, _Around(style, matrix))
        self._read_paths()
        for shape in self._shapes:
            for line in shape.lines:
                if not np.abs(line).max() < 1e9:  # nor is NaN
                    raise DrawingError("The drawing has coordinates that are too large.")
        return self._shapes

    # The page

    def _page(self, style: Style) -> np.ndarray | None:
        """Set the page's box, and the size that 100 % stands for.

        Returns the root's matrix, None where it changes no shape.
        """
        box = self._view_box(self.root)
        width, height = (self._page_size(name) for name in ("width", "height"))
        has_size = bool(width and height)
        if box:
            self.size = np.array(box[2:])
            self.view = np.array([box[0], box[1], box[0] + box[2], box[1] + box[3]])
        else:
            self.size = np.array([width or 300.0, height or 150.0])
            self.view = np.array([0.0, 0.0, width, height]) if has_size else None
        matrix = transform(style)
        if box and has_size and _preserves(self.root).startswith("none"):
            stretch = np.diag([1.0, (height / box[3]) / (width / box[2]), 1.0])
            matrix = _after(matrix, stretch)
        if matrix is not None and self.view is not None:
            corners = _placed(self.view.reshape(2, 2), matrix)
            self.view = np.concatenate([corners.min(axis=0), corners.max(axis=0)])
        return matrix

    def _page_size(self, name: str) -> float:
        text = self.root.get(name, "").strip()
        return length("size", text, 0.0) if text and text != "auto" else 0.0

    def _view_box(self, element: etree._Element) -> list[float] | None:
        """Return an element's viewBox, if it has one with an area."""
        words = element.get("viewBox", "").replace(",", " ").split()
        if not words:
            return None
        box = [self._length("viewBox", word, 0.0) for word in words]
        if len(box) != 4:
            raise DrawingError("The drawing has a viewBox that is not four numbers.")
        return box if min(box[2:]) > 0 else None

    def _fitted(self, inner: etree._Element, outer: etree._Element) -> np.ndarray:
        """Return the matrix from a nested svg's or a symbol's viewBox to its box.

        ``outer`` gives the box: the element itself, or the <use> that shows it.
        """
        sizes = [
            self._length(key, outer.get(key) or inner.get(key) or "100%", whole)
            for key, whole in zip(("width", "height"), self.size, strict=True)
        ]
        place = self._place(inner) if inner is outer else np.zeros(2)
        box = self._view_box(inner)
        if box is None:
            return moved(*place)
        words = _preserves(inner).split()
        align = words[0] if words else "xMidYMid"
        scale = np.array(sizes) / box[2:]
        if align != "none":
            scale[:] = scale.max() if words[1:] == ["slice"] else scale.min()
            shares = [{"Min": 0.0, "Max": 1.0}.get(align[at : at + 3], 0.5) for at in (1, 5)]
            place = place + (np.array(sizes) - scale * box[2:]) * shares
        return moved(*place) @ np.diag([*scale, 1.0]) @ moved(-box[0], -box[1])

    def _place(self, element: etree._Element) -> np.ndarray:
        """Return an element's x and y."""
        axes = zip("xy", self.size, strict=True)
        return np.array([self._length(key, element.get(key, "0"), whole) for key, whole in axes])

    # The tree

    def _children(self, parent: etree._Element, around: _Around) -> None:
        if around.depth > MAX_DEPTH:
            raise DrawingError(f"The drawing's groups are nested deeper than {MAX_DEPTH}.")
        for child in parent:
            self._budget.add_element()
            name = name_of(child)
            if name and name not in _SKIPPED:
                self._child(name, child, around)
                if name_of(parent) == "switch" and _is_chosen(child):
                    return
            self.has_definitions |= name == "defs" and len(child) > 0

    def _child(self, name: str, child: etree._Element, around: _Around) -> None:
        if name_of(child.getparent()) == "switch" and not _is_chosen(child):
            return
        style = self._style(child, around.style)
        is_hidden = style["display"].lower() == "none"
        is_shape = name in _SHAPES
        if not is_shape and name not in _GROUPS:
            if is_hidden:
                return
            raise DrawingError(f"The drawing holds <{name[:40]}>, which a drawing doesn't need.")
        shown = around.shown * opacity(style["opacity"])
        if is_hidden or (not is_shape and not shown):
            return
        matrix = _after(around.matrix, transform(style))
        clips = self._clips(style, matrix, around)
        here = _Around(style, matrix, clips, shown, around.depth)
        if is_shape:
            self._shape(name, child, here)
        elif name == "use":
            self._use(child, here)
        else:
            if name == "svg":
                matrix = _after(matrix, self._fitted(child, child))
            self._children(child, replace(here, matrix=matrix, depth=around.depth + 1))

    def _use(self, use: etree._Element, around: _Around) -> None:
        target = self._find(href_of(use)[1:])
        if target is None:
            return
        x, y = self._place(use)
        matrix = _after(around.matrix, moved(x, y) if x or y else None)
        self._budget.elements += 1
        if self._budget.elements > MAX_ELEMENTS or around.depth >= MAX_DEPTH:
            raise DrawingError(
                f"The drawing has more than {MAX_ELEMENTS} elements, or <use> in circles."
            )
        inner = replace(around, matrix=matrix, depth=around.depth + 1)
        name = name_of(target)
        if name not in ("symbol", "svg"):
            self._child(name, target, inner)
            return
        style = self._style(target, around.style)
        if style["display"].lower() != "none":
            matrix = _after(_after(matrix, transform(style)), self._fitted(target, use))
            shown = around.shown * opacity(style["opacity"])
            self._children(target, replace(inner, style=style, matrix=matrix, shown=shown))

    def _find(self, name: str | None) -> etree._Element | None:
        if self._ids is None:
            self._ids = {}
            for element in self.root.iter():
                self._ids.setdefault(element.get("id", ""), element)
        return self._ids.get(name) if name else None

    # Clips and masks

    def _clips(
        self, style: Style, matrix: np.ndarray | None, around: _Around
    ) -> tuple[tuple[Shape, ...], ...]:
        """Return what cuts an element: the clips around it, and its own clip and mask."""
        clips = around.clips
        for kind, tag in (("clip-path", "clipPath"), ("mask", "mask")):
            value = style[kind].strip()
            target = self._find(reference(value))
            if value.lower() == "none" or (target is None and reference(value)):
                continue
            if target is None or name_of(target) != tag or self._outline_of:
                raise DrawingError(f"The drawing has a {kind} that can't be followed.")
            clips = (*clips, self._clip(kind, target, matrix, around.depth))
        return clips

    def _clip(
        self, kind: str, target: etree._Element, matrix: np.ndarray | None, depth: int
    ) -> tuple[Shape, ...]:
        """Return the shapes of a <clipPath> or a <mask>."""
        units = "clipPathUnits" if kind == "clip-path" else "maskContentUnits"
        if target.get(units, "userSpaceOnUse") != "userSpaceOnUse":
            raise DrawingError(f"The drawing has a {kind} that can't be followed.")
        outer = self._shapes
        self._shapes = []
        self._outline_of = kind
        self._by_alpha = "alpha" in target.get("mask-type", "") + target.get("style", "")
        style = self._style(target, INITIAL)
        inner = _Around(style, _after(matrix, transform(style)), depth=depth + 1)
        self._children(target, inner)
        clip = tuple(self._shapes)
        self._shapes = outer
        self._outline_of = None
        return clip

    # Shapes

    def _shape(self, name: str, element: etree._Element, around: _Around) -> None:
        style, matrix = around.style, around.matrix
        if style["visibility"].lower() in ("hidden", "collapse"):
            return
        fill, stroke = (self._paint(kind, style, around.shown) for kind in ("fill", "stroke"))
        width = abs(self._length("stroke-width", style["stroke-width"], self._diagonal()))
        if not width:
            stroke = None
        if self._outline_of:
            fill, stroke = self._as_outline(fill, stroke)
        if name == "line":
            fill = None
        if fill is None and stroke is None:
            return
        if any(style[marker].lower() != "none" for marker in _MARKERS):
            raise DrawingError(
                "The drawing has markers on its lines, which a drawing doesn't need."
            )
        if matrix is not None:
            width *= float(np.sqrt(abs(np.linalg.det(matrix[:2, :2]))))
        rule = "clip-rule" if self._outline_of == "clip-path" else "fill-rule"
        is_evenodd = style[rule].lower() == "evenodd"
        shape = Shape([], fill, stroke, width, is_evenodd, around.clips)
        self._add_lines(name, element, shape, matrix)
        self._shapes.append(shape)

    def _as_outline(
        self, fill: Colour | None, stroke: Colour | None
    ) -> tuple[Colour | None, Colour | None]:
        """Return the paints of a clip's or a mask's shape, which say what it leaves."""
        if self._outline_of == "clip-path":
            return _OPAQUE_BLACK, None
        is_dim = fill and (fill[3] < 0.5 or (not self._by_alpha and max(fill[:3]) < 0.5))
        if stroke or is_dim:
            raise DrawingError("The drawing has a mask that can't be followed.")
        return fill, stroke

    def _add_lines(
        self, name: str, element: etree._Element, shape: Shape, matrix: np.ndarray | None
    ) -> None:
        """Give a shape its lines, or note its path, which is read with all the others."""
        if name in ("polyline", "polygon", "line"):
            points = self._points(name, element)
            if len(points):
                self._budget.add_lines(1)
                shape.lines.append(_placed(points, matrix))
            return
        path = self._path(name, element)
        if path.lines:
            self._unread.append(_Unread(path, shape, matrix))

    def _points(self, name: str, element: etree._Element) -> np.ndarray:
        """Return the points of a polyline, a polygon or a line, float64 (n, 2)."""
        if name == "line":
            keys = zip(("x1", "y1", "x2", "y2"), (*self.size, *self.size), strict=True)
            ends = [self._length(key, element.get(key, "0"), whole) for key, whole in keys]
            return np.array(ends).reshape(2, 2)
        points = points_of(element.get("points", ""), self._budget)
        return np.vstack([points, points[:1]]) if name == "polygon" else points

    def _path(self, name: str, element: etree._Element) -> PathData:
        """Return a path, circle, ellipse or rectangle as a path, which is empty without a size."""
        if name == "path":
            return path_of(element.get("d", ""), self._budget)
        wholes = self._wholes()

        def size(key: str) -> float:
            text = element.get(key, "0")
            return 0.0 if text.strip() == "auto" else self._length(key, text, wholes[key])

        self._budget.add_lines(1)
        if name == "rect":
            return rectangle(*map(size, ("x", "y", "width", "height", "rx", "ry")))
        rx, ry = map(size, ("r", "r") if name == "circle" else ("rx", "ry"))
        if name == "ellipse":
            rx, ry = rx or ry, ry or rx
        if rx <= 0 or ry <= 0:
            return NOTHING
        return ellipse(size("cx"), size("cy"), rx, ry)

    def _wholes(self) -> Mapping[str, float]:
        """Return what 100 % of each attribute stands for."""
        across, down = (float(size) for size in self.size)
        return {
            **dict.fromkeys(("x", "cx", "rx", "width"), across),
            **dict.fromkeys(("y", "cy", "ry", "height"), down),
            "r": self._diagonal(),
        }

    def _diagonal(self) -> float:
        """Return what 100 % of a length stands for that runs neither across nor down."""
        return float(np.hypot(*self.size)) / 2**0.5

    def _read_paths(self) -> None:
        """Give all shapes that are paths their lines."""
        if not self._unread:
            return
        found = iter(lines_of([one.path.d for one in self._unread]))
        for one in self._unread:
            for _ in range(one.path.lines):
                one.shape.lines.append(_placed(next(found), one.matrix))

    # Attributes

    def _style(self, element: etree._Element, parent: Style) -> Style:
        """Return an element's style; raises ``DrawingError`` where it loads or runs something."""
        name = name_of(element)
        for key, value in element.attrib.items():
            key = key.rpartition("}")[2].lower() if key[0] == "{" else key.lower()
            if key.startswith("on") or _is_foreign(name, key, value) or _loads(value):
                raise DrawingError(
                    f"The drawing's {key[:40]} refers to something outside it or runs a script."
                )
        style = self._sheet.style_of(element, parent)
        for key in ("fill", "stroke", "clip-path", "mask"):
            if "(" in style[key] and _LOADS.search(style[key]):
                raise DrawingError("The drawing's style sheet refers to something outside it.")
        return style

    def _paint(self, kind: str, style: Style, shown: float) -> Colour | None:
        """Return the colour of an element's fill or stroke, as opaque as it and its groups are."""
        value = style[kind]
        target = self._find(reference(value))
        tag = name_of(target) if target is not None else ""
        if tag == "pattern":
            raise DrawingError(
                "The drawing is painted with a pattern, which a drawing doesn't need."
            )
        if target is not None and tag in ("linearGradient", "radialGradient"):
            found = self._mean_colour(target)
        else:
            found = colour(fallback(value), style["color"])
        if found is None:
            return None
        alpha = found[3] * shown * opacity(style[f"{kind}-opacity"])
        return (*found[:3], alpha) if alpha > 0 else None

    def _mean_colour(self, gradient: etree._Element) -> Colour | None:
        """Return the mean colour of a gradient's stops, which may be another gradient's."""
        for _ in range(5):
            stops = [child for child in gradient[:MAX_LINES] if name_of(child) == "stop"]
            href = href_of(gradient)
            other = self._find(href[1:]) if href[:1] == "#" else None
            if stops or other is None:
                break
            gradient = other
        self._budget.elements += len(stops)
        if not stops:
            return None
        r, g, b, a = np.mean([self._stop_colour(stop) for stop in stops[:MAX_ELEMENTS]], axis=0)
        return float(r), float(g), float(b), float(a)

    def _stop_colour(self, stop: etree._Element) -> Colour:
        style = self._style(stop, INITIAL)
        paint = colour(style["stop-color"], style["color"]) or (0.0, 0.0, 0.0, 0.0)
        return (*paint[:3], paint[3] * opacity(style["stop-opacity"]))

    def _length(self, name: str, text: str, whole: float) -> float:
        self._budget.add_numbers(1)
        value = length(name, text, whole)
        if not abs(value) <= MAX_COORDINATE:
            raise DrawingError(f"The drawing's {name} is larger than {MAX_COORDINATE:.0f}.")
        return value


def _is_foreign(name: str, key: str, value: str) -> bool:
    """Return whether an attribute of the element ``name`` may name something outside the drawing.

    A link may, as nobody follows it. <use> may name an element of the drawing.
    """
    if key == "src":
        return True
    is_inside = name == "a" or (name == "use" and value.strip()[:1] == "#")
    return key == "href" and not is_inside


def _loads(value: str) -> bool:
    may_load = ":" in value or "(" in value or "@" in value  # this is faster than the search
    return may_load and _LOADS.search(value) is not None


def _is_chosen(child: etree._Element) -> bool:
    """Return whether a <switch> may take a child: one for English, that needs no extension."""
    language = child.get("systemLanguage", "en").strip()
    return not child.get("requiredExtensions") and language.startswith("en")


def _preserves(element: etree._Element) -> str:
    return element.get("preserveAspectRatio", "").strip()


def _after(matrix: np.ndarray | None, inner: np.ndarray | None) -> np.ndarray | None:
    """Return the matrix that applies ``inner`` first; None stands for no change."""
    if matrix is None:
        return inner
    return matrix if inner is None else matrix @ inner


def _placed(points: np.ndarray, matrix: np.ndarray | None) -> np.ndarray:
    return points if matrix is None else points @ matrix[:2, :2].T + matrix[:2, 2]

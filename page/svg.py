"""Reads a person's drawing: an SVG from outside becomes checked lines of ink, and nothing else of it is kept.

What comes in is never handed on. The text is parsed without entities, DTDs or network; each element, attribute and
style that a drawing needs is checked and becomes a number. svglib reads the curves, in a path made of these numbers.
"""

import base64
import binascii
import re
from collections.abc import Iterator
from urllib.parse import unquote

import numpy as np
from lxml import etree
from reportlab.graphics import shapes
from svglib.svglib import SvgRenderer

from page.ink import Line, Shape, ink_of
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

MAX_SVG_BYTES = 256_000
MAX_ELEMENTS = 500
MAX_NUMBERS = 20_000
MAX_COORDINATE = 100_000.0
MAX_DEPTH = 20
MAX_LINES = 500
CURVE_STEPS = (
    4_000  # straight pieces of all curves together, about; at least 8, at most 32 for each
)
SVG = "http://www.w3.org/2000/svg"

_NUMBER = r"(?>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)"
_NUMBERS = re.compile(_NUMBER, re.ASCII)
_ARC = re.compile(
    rf"({_NUMBER})~({_NUMBER})~({_NUMBER})~([01])~([01])~({_NUMBER})~({_NUMBER})".replace(
        "~", r"[\s,]*+"
    )
)
_COMMANDS = re.compile(r"([MmZzLlHhVvCcSsQqTtAa])")
_ARGUMENTS = {"m": 2, "l": 2, "h": 1, "v": 1, "c": 6, "s": 4, "q": 4, "t": 2, "a": 7, "z": 0}
_DOCTYPE = re.compile(
    r"<!DOCTYPE\s+svg(?:\s+PUBLIC\s+[\"']-//W3C//DTD SVG [^\"']{1,40}[\"']\s+[\"'][^\"']{1,80}[\"'])?\s*(?:\[\s*\])?\s*>",
    re.I,
)
_PREFIX = re.compile(r"\s*(?:data:)?image/svg[+ ]xml((?:;[\w=-]{1,30}){0,3}),", re.I | re.ASCII)
_LOADS = re.compile(r"url\s*\(\s*[\"']?\s*[^\s\"'#]|@import|expression\s*\(|javascript:", re.I)
_IGNORED = {
    *(
        "title",
        "desc",
        "defs",
        "metadata",
        "style",
        "symbol",
        "clipPath",
        "mask",
        "marker",
        "filter",
        "pattern",
    ),
    *("linearGradient", "radialGradient", "view", "cursor", "font", "font-face"),
}
_MARKERS = ("marker-start", "marker-mid", "marker-end")
_BROKEN = re.compile(r"[\r\n\t_-]")
_UNBROKEN = str.maketrans("-_", "+/", "\r\n\t")
_SHAPES = {"path", "polyline", "polygon", "line", "rect", "circle", "ellipse"}


def read_svg(img_str: str) -> list[Line]:
    """Return the lines of an SVG's ink: in base64 or a data URL; raises ``DrawingError``.

    What doesn't contrast with the paper is left out; a drawing without ink is an error.
    """
    root = _parsed(_decoded(img_str))
    reader = _Reader(root)
    lines = ink_of(reader.read(), reader.view, reader.paper)
    if not lines:
        raise DrawingError(
            "The drawing is empty: it holds definitions that nothing shows."
            if reader.definitions
            else "The drawing is empty: draw a digit first."
        )
    return lines


def _decoded(img_str: str) -> str:
    """Return the SVG's text; a form that was not encoded turns "+" into a blank, which is undone here."""
    prefix = _PREFIX.match(img_str[:200])
    text = img_str[prefix.end() if prefix else 0 :]
    if len(text) > MAX_SVG_BYTES * 3:
        raise DrawingError(f"The drawing is larger than {MAX_SVG_BYTES} bytes.")
    if "%" in text:
        text = unquote(text)
    is_text = text.lstrip()[:1] == "<" or (prefix and "base64" not in prefix[1].lower())
    data = text.encode("utf-8", "replace") if is_text else _unpacked(text)
    if len(data) > MAX_SVG_BYTES:
        raise DrawingError(f"The drawing is larger than {MAX_SVG_BYTES} bytes.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DrawingError("The drawing is not an SVG in UTF-8.") from None


def _unpacked(text: str) -> bytes:
    """Return the bytes of base64, also of its URL-safe kind, also broken into lines."""
    joined = text.translate(_UNBROKEN).lstrip() if _BROKEN.search(text) else text.lstrip()
    whole = joined.rstrip()
    data = _from_base64(whole.replace(" ", "+"))
    if joined != whole and not data.rstrip().endswith(
        b">"
    ):  # the last blank was a "+", which a last ">" may end in
        return _from_base64(whole.replace(" ", "+") + "+")
    return data


def _from_base64(text: str) -> bytes:
    text = text.rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        if len(text) % 4 == 1:
            return b""
        raise DrawingError("The drawing is not base64.") from None


def _parsed(text: str) -> etree._Element:
    at = _after_comments(text, 0)
    doctype = _DOCTYPE.match(text, at)  # names what an SVG is and loads nothing
    text = text[doctype.end() if doctype else at :]
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise DrawingError(
            "The drawing declares a document type or entities, which a drawing doesn't need."
        )
    parser = etree.XMLParser(
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        dtd_validation=False,
        huge_tree=False,
        remove_comments=True,
        remove_pis=True,
    )
    try:
        root = etree.fromstring(text.encode(), parser)
    except (etree.XMLSyntaxError, ValueError):
        raise DrawingError("The drawing is not an SVG.") from None
    if root is None or _name(root) != "svg":
        raise DrawingError("The drawing is not an SVG.")
    return root


def _after_comments(text: str, at: int) -> int:
    """Return where blanks, comments, the XML declaration and processing instructions end."""
    while True:
        at += len(text[at : at + 100]) - len(text[at : at + 100].lstrip())
        opening, closing = ("<!--", "-->") if text.startswith("<!--", at) else ("<?", "?>")
        end = text.find(closing, at) if text.startswith(opening, at) else -1
        if end < 0:
            return at if not text[at : at + 1].isspace() else len(text) - len(text[at:].lstrip())
        at = end + len(closing)


def _name(element: etree._Element) -> str:
    """Return the name of an SVG element, or "" for what other programs keep there for themselves."""
    if not isinstance(element.tag, str):
        return ""
    space, _, name = element.tag.rpartition("}")
    return name if space in ("", "{" + SVG) else ""


class _Reader:
    """Walks through a foreign tree, counting elements and numbers, and collects what is painted."""

    def __init__(self, root: etree._Element):
        self.root = root
        self.elements = 0
        self.numbers = 0
        self.lines = 0
        self.definitions = False
        self.view: np.ndarray | None = None
        self.paper: Colour = (1.0, 1.0, 1.0, 1.0)
        self._shapes: list[Shape] = []
        self._curves: list[
            tuple[str, int, Shape, np.ndarray | None]
        ] = []  # a path, its lines, whose, and where
        self._outline_of: str | None = None  # "clip" or "mask" while its shapes are read
        self._ids: dict[str, etree._Element] | None = None
        self.sheet = Sheet(
            root, ["".join(style.itertext()) for style in root.iter(f"{{{SVG}}}style", "style")]
        )

    def read(self) -> list[Shape]:
        """Return all shapes in the order in which they are painted, in one system of coordinates."""
        style = self._style(self.root, INITIAL)
        paper = colour(style["background-color"], style["color"])
        if paper and paper[3] >= 0.5:
            self.paper = (*paper[:3], 1.0)
        matrix = self._view(style)
        if style["display"].lower() != "none" and opacity(style["opacity"]) > 0:
            self._children(self.root, style, matrix, (), 1.0, 0)
        self._read_curves()
        for shape in self._shapes:
            for line in shape.lines:
                if not np.abs(line).max() < 1e9:  # nor is NaN
                    raise DrawingError("The drawing has coordinates that are too large.")
        return self._shapes

    def _view(self, style: Style) -> np.ndarray | None:
        """Note the page's box, which sets what 100 % is; return the root's matrix, None where it changes no shape."""
        box = self._box(self.root)
        given = [self.root.get(name, "").strip() for name in ("width", "height")]
        own = [length("size", text, 0.0) if text and text != "auto" else 0.0 for text in given]
        self.size = np.array(box[2:] if box else [own[0] or 300.0, own[1] or 150.0])
        if box or all(own):
            self.view = np.array(
                [box[0], box[1], box[0] + box[2], box[1] + box[3]] if box else [0.0, 0.0, *own]
            )
        matrix = transform(style)
        if box and all(own) and self.root.get("preserveAspectRatio", "").strip().startswith("none"):
            stretch = np.diag([1.0, (own[1] / box[3]) / (own[0] / box[2]), 1.0])
            matrix = stretch if matrix is None else matrix @ stretch
        if matrix is not None and self.view is not None:
            corners = _placed(self.view.reshape(2, 2), matrix)
            self.view = np.concatenate([corners.min(axis=0), corners.max(axis=0)])
        return matrix

    def _box(self, element: etree._Element) -> list[float] | None:
        """Return an element's viewBox, if it has one with an area."""
        words = element.get("viewBox", "").replace(",", " ").split()
        if not words:
            return None
        box = [self._length("viewBox", word, 0.0) for word in words]
        if len(box) != 4:
            raise DrawingError("The drawing has a viewBox that is not four numbers.")
        return box if min(box[2:]) > 0 else None

    def _children(
        self, parent: etree._Element, style: Style, matrix, clips, shown: float, depth: int
    ) -> None:
        if depth > MAX_DEPTH:
            raise DrawingError(f"The drawing's groups are nested deeper than {MAX_DEPTH}.")
        for child in parent:
            self.elements += 1
            if self.elements > MAX_ELEMENTS:
                raise DrawingError(f"The drawing has more than {MAX_ELEMENTS} elements.")
            name = _name(child)
            if name and name not in _IGNORED:
                self._child(name, child, style, matrix, clips, shown, depth)
                if _name(parent) == "switch" and _chosen(child):
                    return
            self.definitions |= name == "defs" and len(child) > 0

    def _child(
        self,
        name: str,
        child: etree._Element,
        parent: Style,
        matrix,
        clips,
        shown: float,
        depth: int,
    ) -> None:
        """Read one element; ``matrix`` takes its points to the page, ``shown`` is how opaque its groups are."""
        if _name(child.getparent()) == "switch" and not _chosen(child):
            return
        style = self._style(child, parent)
        if name not in _SHAPES and name not in ("g", "svg", "a", "switch", "use"):
            if style["display"].lower() == "none":
                return
            raise DrawingError(f"The drawing holds <{name[:40]}>, which a drawing doesn't need.")
        shown *= opacity(style["opacity"])
        if style["display"].lower() == "none" or (name not in _SHAPES and not shown):
            return
        matrix = _after(matrix, transform(style))
        clips = self._clips(style, matrix, clips, depth)
        if name in _SHAPES:
            self._shape(name, child, style, matrix, clips, shown)
        elif name == "use":
            self._use(child, style, matrix, clips, shown, depth)
        else:
            inner = _after(matrix, self._fitted(child, child)) if name == "svg" else matrix
            self._children(child, style, inner, clips, shown, depth + 1)

    def _style(self, element: etree._Element, parent: Style) -> Style:
        name = _name(element)
        for key, value in element.attrib.items():
            key = key.rpartition("}")[2].lower() if key[0] == "{" else key.lower()
            foreign = key == "src" or (
                key == "href" and not (name == "a" or (name == "use" and value.strip()[:1] == "#"))
            )
            if (
                foreign
                or key.startswith("on")
                or ((":" in value or "(" in value or "@" in value) and _LOADS.search(value))
            ):
                raise DrawingError(
                    f"The drawing's {key[:40]} refers to something outside it or runs a script."
                )
        style = self.sheet.style_of(element, parent)
        if any(
            "(" in style[key] and _LOADS.search(style[key])
            for key in ("fill", "stroke", "clip-path", "mask")
        ):
            raise DrawingError("The drawing's style sheet refers to something outside it.")
        return style

    def _find(self, name: str | None) -> etree._Element | None:
        if self._ids is None:
            self._ids = {}
            for element in self.root.iter():
                self._ids.setdefault(element.get("id", ""), element)
        return self._ids.get(name) if name else None

    def _use(
        self, use: etree._Element, style: Style, matrix, clips, shown: float, depth: int
    ) -> None:
        href = next(
            (value for key, value in use.attrib.items() if key.rpartition("}")[2] == "href"), ""
        )
        target = self._find(href.strip()[1:])
        if target is None:
            return
        x, y = (
            self._length(key, use.get(key, "0"), whole)
            for key, whole in zip("xy", self.size, strict=True)
        )
        matrix = _after(matrix, moved(x, y) if x or y else None)
        self.elements += 1
        if self.elements > MAX_ELEMENTS or depth >= MAX_DEPTH:
            raise DrawingError(
                f"The drawing has more than {MAX_ELEMENTS} elements, or <use> in circles."
            )
        name = _name(target)
        if name not in ("symbol", "svg"):
            self._child(name, target, style, matrix, clips, shown, depth + 1)
            return
        style = self._style(target, style)
        if style["display"].lower() != "none":
            matrix = _after(_after(matrix, transform(style)), self._fitted(target, use))
            self._children(
                target, style, matrix, clips, shown * opacity(style["opacity"]), depth + 1
            )

    def _fitted(self, inner: etree._Element, outer: etree._Element) -> np.ndarray | None:
        """Return what takes a nested svg's or a symbol's viewBox into the box that ``outer`` gives it."""
        sizes = [
            self._length(key, outer.get(key) or inner.get(key) or "100%", whole)
            for key, whole in zip(("width", "height"), self.size, strict=True)
        ]
        place = np.zeros(2)
        if inner is outer:
            place[:] = [
                self._length(key, inner.get(key, "0"), whole)
                for key, whole in zip("xy", self.size, strict=True)
            ]
        box = self._box(inner)
        if box is None:
            return moved(*place)
        words = inner.get("preserveAspectRatio", "").split()
        align = words[0] if words else "xMidYMid"
        scale = np.array(sizes) / box[2:]
        if align != "none":
            scale[:] = scale.max() if words[1:] == ["slice"] else scale.min()
        spare = np.array(sizes) - scale * box[2:]
        shares = [{"Min": 0.0, "Max": 1.0}.get(align[at : at + 3], 0.5) for at in (1, 5)]
        x, y = place + (spare * shares if align != "none" else 0)
        return moved(x, y) @ np.diag([*scale, 1.0]) @ moved(-box[0], -box[1])

    def _clips(self, style: Style, matrix, clips, depth: int):
        for kind, tag in (("clip-path", "clipPath"), ("mask", "mask")):
            value = style[kind].strip()
            target = self._find(reference(value))
            if value.lower() == "none" or (target is None and reference(value)):
                continue
            if target is None or _name(target) != tag or self._outline_of:
                raise DrawingError(f"The drawing has a {kind} that can't be followed.")
            units = target.get(
                "clipPathUnits" if tag == "clipPath" else "maskContentUnits", "userSpaceOnUse"
            )
            if units != "userSpaceOnUse":
                raise DrawingError(f"The drawing has a {kind} that can't be followed.")
            outer, self._shapes, self._outline_of = self._shapes, [], kind
            own = self._style(target, INITIAL)
            self._light = "alpha" in target.get("mask-type", "") + target.get("style", "")
            self._children(target, own, _after(matrix, transform(own)), (), 1.0, depth + 1)
            clip, self._shapes, self._outline_of = tuple(self._shapes), outer, None
            clips = (*clips, clip)
        return clips

    def _shape(
        self, name: str, element: etree._Element, style: Style, matrix, clips, shown: float
    ) -> None:
        if style["visibility"].lower() in ("hidden", "collapse"):
            return
        fill, stroke = (self._paint(key, style, shown) for key in ("fill", "stroke"))
        width = abs(
            self._length(
                "stroke-width", style["stroke-width"], float(np.hypot(*self.size)) / 2**0.5
            )
        )
        stroke = stroke if width else None
        rule = "clip-rule" if self._outline_of == "clip-path" else "fill-rule"
        if self._outline_of == "clip-path":
            fill, stroke = (0.0, 0.0, 0.0, 1.0), None
        elif self._outline_of and (
            stroke or (fill and (fill[3] < 0.5 or (not self._light and max(fill[:3]) < 0.5)))
        ):
            raise DrawingError("The drawing has a mask that can't be followed.")
        if name == "line":
            fill = None
        if fill is None and stroke is None:
            return
        if {style[name].lower() for name in _MARKERS} != {"none"}:
            raise DrawingError(
                "The drawing has markers on its lines, which a drawing doesn't need."
            )
        if matrix is not None:
            width *= float(np.sqrt(abs(np.linalg.det(matrix[:2, :2]))))
        shape = Shape([], fill, stroke, width, style[rule].lower() == "evenodd", clips)
        if name in ("polyline", "polygon", "line"):
            points = self._points(name, element)
            if len(points):
                self._lines(1)
                shape.lines.append(points if matrix is None else _placed(points, matrix))
        else:
            d, lines = (
                self._path(element.get("d", "")) if name == "path" else self._round(name, element)
            )
            if lines:
                self._curves.append((d, lines, shape, matrix))
        self._shapes.append(shape)

    def _paint(self, kind: str, style: Style, shown: float) -> Colour | None:
        """Return the colour an element is filled or stroked with, as opaque as it and its groups are."""
        value = style[kind]
        target = self._find(reference(value))
        if target is not None and _name(target) in ("linearGradient", "radialGradient"):
            found = self._middle(target)
        elif target is not None and _name(target) == "pattern":
            raise DrawingError(
                "The drawing is painted with a pattern, which a drawing doesn't need."
            )
        else:
            found = colour(fallback(value), style["color"])
        if found is None:
            return None
        alpha = found[3] * shown * opacity(style[f"{kind}-opacity"])
        return (*found[:3], alpha) if alpha > 0 else None

    def _middle(self, gradient: etree._Element) -> Colour | None:
        """Return the mean colour of a gradient's stops, which may be another's."""
        for _ in range(5):
            stops = [child for child in gradient[:MAX_LINES] if _name(child) == "stop"]
            href = next(
                (
                    value
                    for key, value in gradient.attrib.items()
                    if key.rpartition("}")[2] == "href"
                ),
                "",
            )
            other = self._find(href.strip()[1:]) if href.strip()[:1] == "#" else None
            if stops or other is None:
                break
            gradient = other
        self.elements += len(stops)
        found = []
        for stop in stops[:MAX_ELEMENTS]:
            style = self._style(stop, INITIAL)
            paint = colour(style["stop-color"], style["color"]) or (0.0, 0.0, 0.0, 0.0)
            found.append((*paint[:3], paint[3] * opacity(style["stop-opacity"])))
        if not found:
            return None
        r, g, b, a = np.mean(found, axis=0)
        return float(r), float(g), float(b), float(a)

    def _length(self, name: str, text: str, whole: float) -> float:
        self._count(1)
        value = length(name, text, whole)
        if not abs(value) <= MAX_COORDINATE:
            raise DrawingError(f"The drawing's {name} is larger than {MAX_COORDINATE:.0f}.")
        return value

    def _count(self, numbers: int) -> None:
        self.numbers += numbers
        if self.numbers > MAX_NUMBERS:
            raise DrawingError(f"The drawing has more than {MAX_NUMBERS // 2} points.")

    def _lines(self, lines: int) -> None:
        self.lines += lines
        if self.lines > MAX_LINES:
            raise DrawingError(f"The drawing has more than {MAX_LINES} strokes.")

    def _points(self, name: str, element: etree._Element) -> np.ndarray:
        """Return the points of a polyline, a polygon or a line, float64 (n, 2)."""
        if name == "line":
            ends = zip(("x1", "y1", "x2", "y2"), (*self.size, *self.size), strict=True)
            return np.array(
                [self._length(key, element.get(key, "0"), whole) for key, whole in ends]
            ).reshape(2, 2)
        text = element.get("points", "")
        words = text.replace(",", " ").split()
        self._count(len(words))
        if not all(map(_NUMBERS.fullmatch, words)):  # as in "10-20"
            words = _NUMBERS.findall(text)
            self._count(len(words))
            if _NUMBERS.sub("", text).strip(", \t\r\n"):
                raise DrawingError("The drawing has points that are not pairs of numbers.")
        if len(words) % 2:
            raise DrawingError("The drawing has points that are not pairs of numbers.")
        points = np.array(words, dtype=np.float64).reshape(-1, 2)
        _within(points)
        return np.vstack([points, points[:1]]) if name == "polygon" else points

    def _round(self, name: str, element: etree._Element) -> tuple[str, int]:
        """Return a circle, an ellipse or a rectangle as a path and its number of lines, which is 0 without a size."""
        across, down = (float(size) for size in self.size)
        wholes = {"cx": across, "cy": down, "rx": across, "ry": down, "x": across, "y": down}
        wholes |= {"width": across, "height": down, "r": float(np.hypot(across, down)) / 2**0.5}

        def size(key: str) -> float:
            text = element.get(key, "0")
            return 0.0 if text.strip() == "auto" else self._length(key, text, wholes[key])

        self._lines(1)
        if name == "rect":
            return _rectangle(
                size("x"), size("y"), size("width"), size("height"), size("rx"), size("ry")
            )
        rx, ry = (size("r"), size("r")) if name == "circle" else (size("rx"), size("ry"))
        if name == "ellipse":
            rx, ry = rx or ry, ry or rx
        if rx <= 0 or ry <= 0:
            return "", 0
        cx, cy = size("cx"), size("cy")
        return (
            f"M {cx - rx} {cy} A {rx} {ry} 0 1 0 {cx + rx} {cy} A {rx} {ry} 0 1 0 {cx - rx} {cy} Z",
            1,
        )

    def _path(self, text: str) -> tuple[str, int]:
        """Return a path as svglib reads it, beginning with M, and its number of lines."""
        head, *steps = _COMMANDS.split(text)
        if not steps and head.strip() in ("", "none"):
            return "", 0
        self._count(len(steps) // 2)  # before any of them is looked at
        self._lines(sum(step in "Mm" for step in steps[::2]))
        if head.strip() or steps[0] not in "Mm":
            raise DrawingError("The drawing has a path that doesn't begin with a place to move to.")
        clean: list[str] = []
        values: list[str] = []
        lines = 0
        goes_on = 0
        for command, arguments in zip(steps[::2], steps[1::2], strict=True):
            numbers = _arguments(command, arguments)
            self._count(len(numbers))
            values += numbers
            if command in "Mm":
                lines += 1
            elif clean[-1] in ("Z", "z") and command not in "Zz":
                goes_on += 1
                clean.append(
                    "m 0 0"
                )  # svglib goes on at the end otherwise, not where the line began
            if not clean and command == "m":
                clean += ["M", *numbers[:2], *(["l", *numbers[2:]] if numbers[2:] else [])]
            elif command not in "Zz" or clean[-1] not in ("Z", "z"):
                clean += [command, *numbers]
        _within(np.array(values, dtype=np.float64))
        self._lines(goes_on)
        return " ".join(clean).replace("+", ""), lines + goes_on

    def _read_curves(self) -> None:
        """Give all shapes that are paths their lines: svglib reads them, as one path."""
        if not self._curves:
            return
        tree = etree.Element("svg", width="100", height="100")
        etree.SubElement(
            tree, "path", d=" ".join(d for d, *_ in self._curves), fill="none", stroke="#000000"
        )
        path = next(_paths(SvgRenderer("drawing.svg").render(tree)))
        found = iter(_path_lines(path))
        for _, lines, shape, matrix in self._curves:
            own = [next(found) for _ in range(lines)]
            shape.lines.extend(
                own if matrix is None else [_placed(points, matrix) for points in own]
            )


def _arguments(command: str, text: str) -> list[str]:
    """Return the numbers of a path's command; the flags of an arc need no blank between them."""
    takes = _ARGUMENTS[command.lower()]
    if takes == 7:
        arcs = _ARC.findall(text)
        numbers = [number for arc in arcs for number in arc]
        rest = _ARC.sub("", text)
    else:
        numbers = _NUMBERS.findall(text)
        rest = _NUMBERS.sub("", text)
    whole = bool(numbers) and len(numbers) % takes == 0 if takes else not numbers
    if not whole or rest.strip(", \t\r\n"):
        raise DrawingError("The drawing has a path that can't be followed.")
    return numbers


def _rectangle(
    x: float, y: float, width: float, height: float, rx: float, ry: float
) -> tuple[str, int]:
    if width <= 0 or height <= 0:
        return "", 0
    rx, ry = min(abs(rx or ry), width / 2), min(abs(ry or rx), height / 2)
    if not rx or not ry:
        return f"M {x} {y} h {width} v {height} h {-width} Z", 1
    corner = f"a {rx} {ry} 0 0 1"
    return (
        f"M {x + rx} {y} h {width - 2 * rx} {corner} {rx} {ry} v {height - 2 * ry} {corner} {-rx} {ry} "
        f"h {2 * rx - width} {corner} {-rx} {-ry} v {2 * ry - height} {corner} {rx} {-ry} Z"
    ), 1


def _chosen(child: etree._Element) -> bool:
    """Return whether a <switch> may take a child: it asks for no extension and speaks English, if any language."""
    return not child.get("requiredExtensions") and child.get(
        "systemLanguage", "en"
    ).strip().startswith("en")


def _after(matrix: np.ndarray | None, inner: np.ndarray | None) -> np.ndarray | None:
    return inner if matrix is None else matrix if inner is None else matrix @ inner


def _placed(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return points @ matrix[:2, :2].T + matrix[:2, 2]


def _within(values: np.ndarray) -> None:
    if not (np.abs(values) <= MAX_COORDINATE).all():
        raise DrawingError(
            f"The drawing has points or a path with a coordinate larger than {MAX_COORDINATE:.0f}."
        )


def _paths(node: shapes.Shape) -> Iterator[shapes.Path]:
    if isinstance(node, shapes.Path):
        yield node
    for child in getattr(node, "contents", ()):
        yield from _paths(child)


def _path_lines(path: shapes.Path) -> list[np.ndarray]:
    """Return the lines of a reportlab path, float64 (n, 2) each, curves as short straight pieces."""
    points = np.array(path.points, dtype=np.float64).reshape(-1, 2)
    operators = np.array(path.operators)  # 0 move, 1 line, 2 cubic curve, 3 close
    curves = np.flatnonzero(operators == 2)
    steps = int(np.clip(CURVE_STEPS // max(len(curves), 1), 8, 32))
    taken, given = np.array([1, 1, 3, 0])[operators], np.array([1, 1, steps, 1])[operators]
    source, target = np.cumsum(taken) - taken, np.cumsum(given) - given
    moves = np.flatnonzero(operators == 0)
    out = np.empty((int(given.sum()), 2))
    straight = np.flatnonzero(operators <= 1)
    out[target[straight]] = points[source[straight]]
    closes = np.flatnonzero(operators == 3)
    out[target[closes]] = points[source[moves[np.searchsorted(moves, closes) - 1]]]
    if len(curves):
        a, b, c, d = (points[source[curves] + k][:, None] for k in (-1, 0, 1, 2))
        t = np.linspace(0, 1, steps + 1)[1:, None]
        piece = (1 - t) ** 3 * a + 3 * (1 - t) ** 2 * t * b + 3 * (1 - t) * t**2 * c + t**3 * d
        out[(target[curves][:, None] + np.arange(steps)).ravel()] = piece.reshape(-1, 2)
    return np.split(out, target[moves[1:]])

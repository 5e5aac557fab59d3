"""Reads a person's drawing: a base64 SVG from outside becomes checked lines of ink, and nothing else of it is kept.

What comes in is never handed on. The text is parsed without entities, DTDs or network, each element and attribute
that a drawing needs is checked and copied into a new tree, and only that tree is read by svglib.
"""

import base64
import binascii
import re
from dataclasses import dataclass

import numpy as np
from lxml import etree
from reportlab.graphics import shapes
from svglib.svglib import SvgRenderer

MAX_SVG_BYTES = 256_000
MAX_ELEMENTS = 500
MAX_NUMBERS = 20_000
MAX_COORDINATE = 100_000.0
MAX_DEPTH = 20
MAX_LINES = 500
CURVE_STEPS = np.linspace(0, 1, 9)[1:, None]

_NUMBER = r"[+-]?(?:\d{1,12}(?:\.\d{0,12})?|\.\d{1,12})(?:[eE][+-]?\d{1,2})?"
_IS_NUMBER = re.compile(rf"\s*({_NUMBER})(?:px)?\s*", re.ASCII)
_NUMBERS = re.compile(_NUMBER, re.ASCII)
_COMMANDS = re.compile(r"([MmZzLlHhVvCcSsQqTtAa])")
_CALL = re.compile(r"(matrix|translate|scale|rotate)\s*\(([^()]{1,200})\)", re.ASCII)
_DOCTYPE = re.compile(r"<!DOCTYPE\s+svg(?:\s+PUBLIC\s+\"-//W3C//DTD SVG [^\"]{1,40}\"\s+\"[^\"]{1,80}\")?\s*>", re.I)
_DECLARATION = re.compile(r"<\?xml[^>]{0,200}\?>")
_PREFIX = re.compile(r"\s*(?:data:)?image/svg[+ ]xml(?:;[\w=-]{1,30}){0,3},", re.I | re.ASCII)
_LOADS = re.compile(r"url\s*\(|@import|expression|javascript:", re.I)
_PAPER = {"none", "transparent", "white", "#fff", "#ffffff", "rgb(255,255,255)", "rgba(0,0,0,0)"}
_STYLE = {"fill", "stroke", "stroke-width"}
_IGNORED = {"title", "desc", "defs", "metadata"}
_NUMERIC = {
    "line": ("x1", "y1", "x2", "y2"),
    "circle": ("cx", "cy", "r"),
    "ellipse": ("cx", "cy", "rx", "ry"),
    "rect": ("x", "y", "width", "height"),
}
_TAKES = {"matrix": (6,), "translate": (1, 2), "scale": (1, 2), "rotate": (1, 3)}
_ARGUMENTS = {"m": 2, "l": 2, "h": 1, "v": 1, "c": 6, "s": 4, "q": 4, "t": 2, "a": 7, "z": 0}


class DrawingError(ValueError):
    """A drawing that can't be read, in a sentence for the person who sent it."""


@dataclass(frozen=True)
class Line:
    """One line of ink: ``points`` float64 (n, 2), y down; drawn with a pen of some ``width``, or a filled outline."""

    points: np.ndarray
    width: float
    filled: bool = False


def read_svg(img_str: str) -> list[Line]:
    """Return the lines of a base64 SVG, with or without its data-URL prefix; raises ``DrawingError``.

    Shapes in white or without colour are paper and left out; a drawing without ink is an error.
    """
    root = _parsed(_decoded(img_str))
    copy = _Copy(root)
    if copy.plain is not None:
        lines = copy.plain
    else:  # svglib is given only numbers that passed the checks, in a tree of our own
        drawing = SvgRenderer("drawing.svg").render(copy.tree)
        lines = [line for line in _lines(drawing, np.eye(3)) if len(line.points)]
    if not lines:
        raise DrawingError("The drawing is empty: draw a digit first.")
    if not all(np.isfinite(line.points).all() and np.abs(line.points).max() < 1e9 for line in lines):
        raise DrawingError("The drawing has coordinates that are too large.")
    return lines


def _decoded(img_str: str) -> str:
    """Return the SVG's text; a form that was not encoded turns "+" into a blank, which is undone here."""
    prefix = _PREFIX.match(img_str[:200])
    text = img_str[prefix.end() if prefix else 0 :].strip().replace(" ", "+")
    if len(text) > MAX_SVG_BYTES * 4 // 3:
        raise DrawingError(f"The drawing is larger than {MAX_SVG_BYTES} bytes.")
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise DrawingError("The drawing is not base64.") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DrawingError("The drawing is not an SVG in UTF-8.") from None


def _parsed(text: str) -> etree._Element:
    text = text.lstrip()
    declaration = _DECLARATION.match(text)
    text = text[declaration.end() if declaration else 0 :].lstrip()
    doctype = _DOCTYPE.match(text)  # names what an SVG is and loads nothing
    text = text[doctype.end() if doctype else 0 :]
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise DrawingError("The drawing declares a document type or entities, which a drawing doesn't need.")
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


def _name(element: etree._Element) -> str:
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


class _Copy:
    """Copies what a drawing needs out of a foreign tree, counting elements and numbers as it goes.

    ``tree``: the copy. ``plain``: its lines where all it holds is polylines as a pen draws them, which is what the page
    sends, else None: those are read without svglib in half the time.
    """

    def __init__(self, root: etree._Element):
        self.plain: list[Line] | None = []
        self.elements = 0
        self.numbers = 0
        self.lines = 0
        self.tree = etree.Element("svg", width="100", height="100")
        self._children(root, self.tree, {"fill": "black", "stroke": "none", "stroke-width": "1"}, 0)

    def _children(self, source: etree._Element, target: etree._Element, style: dict, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise DrawingError(f"The drawing's groups are nested deeper than {MAX_DEPTH}.")
        own = self._own_style(source, style)
        for child in source:
            self.elements += 1
            if self.elements > MAX_ELEMENTS:
                raise DrawingError(f"The drawing has more than {MAX_ELEMENTS} elements.")
            self._child(child, target, own, depth)

    def _child(self, child: etree._Element, target: etree._Element, inherited: dict, depth: int) -> None:
        name = _name(child)
        if name in _IGNORED:
            if len(child):
                raise DrawingError(f"The drawing holds definitions inside <{name}>, which a drawing doesn't need.")
            return
        if name in ("g", "svg"):
            group = etree.SubElement(target, "g")
            self._transform(child, group)
            self.plain = None if child.get("transform") else self.plain
            self._children(child, group, inherited, depth + 1)
            return
        style = self._own_style(child, inherited)
        if style["fill"] in _PAPER and style["stroke"] in _PAPER:
            return
        attributes = self._geometry(name, child)
        if not attributes:
            return
        attributes["fill"] = "none" if style["fill"] in _PAPER else "#000000"
        attributes["stroke"] = "none" if style["stroke"] in _PAPER else "#000000"
        attributes["stroke-width"] = str(abs(self._number("stroke-width", style["stroke-width"])))
        shape = etree.SubElement(target, "path" if "d" in attributes else name, attributes)
        self._transform(child, shape)
        if name != "polyline" or attributes["fill"] != "none" or child.get("transform"):
            self.plain = None
        elif self.plain is not None:
            points = np.array(attributes["d"][1:].split(), dtype=np.float64).reshape(-1, 2)
            self.plain.append(Line(points, float(attributes["stroke-width"])))

    def _own_style(self, element: etree._Element, inherited: dict) -> dict:
        style = dict(inherited)
        for key, value in element.attrib.items():
            name = key.rpartition("}")[2].lower()
            if name in ("href", "src") or name.startswith("on") or _LOADS.search(value):
                raise DrawingError(f"The drawing's {name} refers to something outside it or runs a script.")
            if name in _STYLE:
                style[name] = value.strip().lower()
        for declaration in element.get("style", "").split(";"):
            name, _, value = declaration.partition(":")
            if name.strip().lower() in _STYLE:
                style[name.strip().lower()] = value.strip().lower()
        for name in ("fill", "stroke"):
            style[name] = style[name].replace(" ", "")
        return style

    def _transform(self, source: etree._Element, target: etree._Element) -> None:
        value = source.get("transform", "").strip()
        if not value:
            return
        calls = _CALL.findall(value[:1_000])
        numbers = [arguments.replace(",", " ").split() for _, arguments in calls]
        if _CALL.sub("", value).strip(", \t\r\n") or any(
            len(given) not in _TAKES[name] for (name, _), given in zip(calls, numbers, strict=True)
        ):
            raise DrawingError("The drawing has a transform that can't be followed.")
        values = [[self._number("transform", number) for number in given] for given in numbers]
        target.set(
            "transform",
            " ".join(f"{name}({' '.join(map(repr, given))})" for (name, _), given in zip(calls, values, strict=True)),
        )

    def _geometry(self, name: str, child: etree._Element) -> dict | None:
        if name == "path":
            return self._path(child.get("d", ""))
        if name in ("polyline", "polygon"):
            return self._points(child.get("points", ""), closed=name == "polygon")
        if name in _NUMERIC:
            return {key: str(self._number(key, child.get(key, "0"))) for key in _NUMERIC[name]}
        raise DrawingError(f"The drawing holds <{name[:40]}>, which a drawing doesn't need.")

    def _number(self, name: str, text: str) -> float:
        self._count(1)
        match = _IS_NUMBER.fullmatch(text)
        if not match:
            raise DrawingError(f"The drawing's {name} is not a number.")
        value = float(match[1])
        if abs(value) > MAX_COORDINATE:
            raise DrawingError(f"The drawing's {name} is larger than {MAX_COORDINATE:.0f}.")
        return value

    def _count(self, numbers: int) -> None:
        self.numbers += numbers
        if self.numbers > MAX_NUMBERS:
            raise DrawingError(f"The drawing has more than {MAX_NUMBERS // 2} points.")

    def _points(self, text: str, closed: bool) -> dict | None:
        if len(text) > MAX_NUMBERS * 24:
            raise DrawingError(f"The drawing has more than {MAX_NUMBERS // 2} points.")
        words = text.replace(",", " ").split()
        self._count(len(words))
        if len(words) % 2 or not all(map(_NUMBERS.fullmatch, words)):
            raise DrawingError("The drawing has points that are not pairs of numbers.")
        _within(np.array(words, dtype=np.float64))
        if not words:
            return None
        self._lines(1)
        # As a path, which svglib reads twice as fast as a polyline.
        return {"d": f"M{' '.join(words).replace('+', '')}{'Z' if closed else ''}"}

    def _path(self, text: str) -> dict | None:
        head, *steps = _COMMANDS.split(text[:MAX_SVG_BYTES])
        if not steps and head.strip() in ("", "none"):
            return None
        self._count(len(steps) // 2)  # before any of them is looked at
        self._lines(sum(step in "Mm" for step in steps[::2]))
        if head.strip() or steps[0] not in "Mm":
            raise DrawingError("The drawing has a path that doesn't begin with a place to move to.")
        clean, values = [], []
        for command, arguments in zip(steps[::2], steps[1::2], strict=True):
            numbers = _NUMBERS.findall(arguments)
            self._count(len(numbers))
            takes = _ARGUMENTS[command.lower()]
            whole = bool(numbers) and len(numbers) % takes == 0 if takes else not numbers
            if not whole or _NUMBERS.sub("", arguments).strip(", \t\r\n"):
                raise DrawingError("The drawing has a path that can't be followed.")
            values += numbers
            clean += [command, *numbers]
        _within(np.array(values, dtype=np.float64))
        return {"d": " ".join(clean).replace("+", "")}

    def _lines(self, lines: int) -> None:
        self.lines += lines
        if self.lines > MAX_LINES:
            raise DrawingError(f"The drawing has more than {MAX_LINES} strokes.")


def _within(values: np.ndarray) -> None:
    if not (np.abs(values) <= MAX_COORDINATE).all():
        raise DrawingError(f"The drawing has a coordinate larger than {MAX_COORDINATE:.0f}.")


def _lines(node: shapes.Shape, matrix: np.ndarray) -> list[Line]:
    """Return the lines of a reportlab shape and what is in it; ``matrix`` (3, 3) takes its points to the page."""
    if isinstance(node, shapes.Group | shapes.Drawing):
        a, b, c, d, e, f = node.transform
        inner = matrix @ np.array([[a, c, e], [b, d, f], [0, 0, 1]])
        return [line for child in node.contents for line in _lines(child, inner)]
    scale = float(np.sqrt(abs(np.linalg.det(matrix[:2, :2]))))
    found = []
    for points in _outlines(node):
        placed = points @ matrix[:2, :2].T + matrix[:2, 2]
        placed = placed * [1.0, -1.0]  # reportlab's y goes up
        if getattr(node, "fillColor", None) is not None and len(points) > 2:
            found.append(Line(placed, 0.0, filled=True))
        if getattr(node, "strokeColor", None) is not None:
            found.append(Line(placed, scale * float(node.strokeWidth)))
    return found


def _outlines(node: shapes.Shape) -> list[np.ndarray]:
    """Return the lines of one reportlab shape, each float64 (n, 2), curves as short straight pieces."""
    if isinstance(node, shapes.Path):
        return _path_outlines(node)
    if isinstance(node, shapes.PolyLine | shapes.Polygon):
        points = np.array(node.points, dtype=np.float64).reshape(-1, 2)
        return [np.vstack([points, points[:1]]) if isinstance(node, shapes.Polygon) else points]
    if isinstance(node, shapes.Line):
        return [np.array([[node.x1, node.y1], [node.x2, node.y2]], dtype=np.float64)]
    if isinstance(node, shapes.Rect):
        corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]], dtype=np.float64)
        return [corners * [node.width, node.height] + [node.x, node.y]]
    radii = (node.r, node.r) if isinstance(node, shapes.Circle) else (node.rx, node.ry)
    turn = np.linspace(0, 2 * np.pi, 33)
    return [np.column_stack([np.cos(turn), np.sin(turn)]) * radii + [node.cx, node.cy]]


def _path_outlines(path: shapes.Path) -> list[np.ndarray]:
    outlines: list[list[np.ndarray]] = []
    points = np.array(path.points, dtype=np.float64).reshape(-1, 2)
    at = 0
    for operator in path.operators:
        if operator == 0:  # move
            outlines.append([points[at : at + 1]])
            at += 1
        elif operator == 1:  # line
            outlines[-1].append(points[at : at + 1])
            at += 1
        elif operator == 2:  # cubic curve
            a, (b, c, d), t = outlines[-1][-1][-1], points[at : at + 3], CURVE_STEPS
            outlines[-1].append((1 - t) ** 3 * a + 3 * (1 - t) ** 2 * t * b + 3 * (1 - t) * t**2 * c + t**3 * d)
            at += 3
        else:  # close
            outlines[-1].append(outlines[-1][0][:1])
    return [np.vstack(parts) for parts in outlines]

"""The style of a drawing's elements: their CSS rules, and colours, lengths, transforms as numbers.

Nothing is loaded. A rule that names something outside the drawing is an error or is never read.
"""

import math
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import cssselect2
import numpy as np
import tinycss2
import tinycss2.ast
from lxml import etree
from tinycss2.color5 import parse_color

MAX_CSS = 10_000
MAX_SELECTORS = 64
MAX_STYLED = 2_000
MAX_MATCHES = 10_000  # selectors times elements
MAX_STYLE = 2_000
MAX_STEPS = 4  # of a selector, from element to element

# What children inherit, and what applies to one element only.
INHERITED = {
    "fill": "black",
    "stroke": "none",
    "stroke-width": "1",
    "fill-opacity": "1",
    "stroke-opacity": "1",
    "fill-rule": "nonzero",
    "clip-rule": "nonzero",
    "color": "black",
    "visibility": "visible",
    "marker-start": "none",
    "marker-mid": "none",
    "marker-end": "none",
}
OWN = {
    "display": "inline",
    "opacity": "1",
    "transform": "none",
    "transform-origin": "0 0",
    "clip-path": "none",
    "mask": "none",
    "stop-color": "black",
    "stop-opacity": "1",
    "background-color": "transparent",
}
INITIAL = INHERITED | OWN

Colour = tuple[float, float, float, float]  # red, green, blue and opacity, 0 to 1
Style = dict[str, str]

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_LENGTH = re.compile(rf"\s*({_NUMBER})\s*(px|pt|pc|mm|cm|in|em|rem|ex|%|)\s*", re.ASCII | re.I)
_UNITS = {
    "": 1.0,
    "px": 1.0,
    "pt": 96 / 72,
    "pc": 16.0,
    "mm": 96 / 25.4,
    "cm": 96 / 2.54,
    "in": 96.0,
    "em": 16.0,
    "rem": 16.0,
    "ex": 8.0,
}
_CALL = re.compile(
    r"(matrix|(?:translate|scale|skew)[XY]?|rotate)\s*\(([^()]{1,200})\)", re.ASCII | re.I
)
_ARGUMENT = re.compile(rf"({_NUMBER})(px|deg|rad|grad|turn|)", re.ASCII | re.I)
_DEGREES = {"deg": 1.0, "rad": 180 / math.pi, "grad": 0.9, "turn": 360.0, "": 1.0, "px": 1.0}
_TAKES = {
    "matrix": (6,),
    "translate": (1, 2),
    "translatex": (1,),
    "translatey": (1,),
    "scale": (1, 2),
    "scalex": (1,),
    "scaley": (1,),
    "rotate": (1, 3),
    "skewx": (1,),
    "skewy": (1,),
}
_AT_ZERO = {"0 0", "0px 0px", "0", "0px", "0% 0%", "left top", "top left"}
_FONTS = re.compile(r"@font-face\s*\{[^{}]*\}", re.I)
_SELECTOR = re.compile(r"(?:[\w\s.#*>-]|:root)+")
_ONLY_AT_TIMES = re.compile(
    r":(?:hover|focus[\w-]*|active|visited|target|:?before|:?after|:selection)\b", re.I
)
_MEDIA = re.compile(
    r"(?:only\s+)?(?:all|screen)?\s*(?:(?:and\s+)?\(prefers-color-scheme:\s*light\))?", re.I
)
_UNSEEN = {"font-face", "keyframes", "-webkit-keyframes", "charset", "namespace", "page"}
_VARIABLE = re.compile(r"var\(\s*--[\w-]+\s*(?:,(.*))?\)", re.S)
_IMPORTANT = re.compile(r"\s*!\s*important\s*$", re.I)
_PAINTS = {"fill", "stroke", "stop-color", "color", "background-color"}
_SHORTHANDS = {
    "marker": ("marker-start", "marker-mid", "marker-end"),
    "background": ("background-color",),
}
_KEYWORDS = {"inherit", "initial", "unset", "revert"}
_REFERENCE = re.compile(r"""url\(\s*["']?#([^"')]+)["']?\s*\)\s*(.*)""", re.S)


class DrawingError(ValueError):
    """A drawing that can't be read, in a sentence for the person who sent it."""


class Sheet:
    """All style sheets of a drawing; raises ``DrawingError`` for what can't be followed."""

    def __init__(self, root: etree._Element, texts: list[str]):
        self._matcher = cssselect2.Matcher()
        self._wrapped: dict[etree._Element, cssselect2.ElementWrapper] = {}
        self._selectors = 0
        self._matches = 0
        if not texts:
            return
        text = _FONTS.sub("", "\n".join(texts))
        if len(text) > MAX_CSS:
            raise DrawingError(
                f"The drawing's style sheets are longer than {MAX_CSS:,} characters."
            )
        self._add(tinycss2.parse_stylesheet(text, skip_comments=True, skip_whitespace=True))
        if not self._selectors:
            return
        for element in cssselect2.ElementWrapper.from_xml_root(root).iter_subtree():
            self._wrapped[element.etree_element] = element
            if len(self._wrapped) > MAX_STYLED:
                raise DrawingError(
                    f"The drawing has a style sheet for more than {MAX_STYLED:,} elements."
                )

    def style_of(self, element: etree._Element, parent: Style) -> Style:
        """Return all properties of an element whose parent, or whose <use>, has the style ``parent``."""
        style = parent | OWN
        for name, value in self._declared(element).items():
            word = value.lower()
            if word not in _KEYWORDS:
                style[name] = value
            elif word == "inherit" or (word in ("unset", "revert") and name in INHERITED):
                style[name] = parent[name]
            else:
                style[name] = INITIAL[name]
        return style

    def _declared(self, element: etree._Element) -> Style:
        """Return what is declared for an element itself.

        Its own style is stronger than rules, rules are stronger than attributes.
        """
        attributes = element.attrib.items()
        plain = {name: value.strip() for name, value in attributes if _is_valid(name, value)}
        own = element.get("style", "")
        if len(own) > MAX_STYLE:
            raise DrawingError(f"The drawing has a style of more than {MAX_STYLE:,} characters.")
        if not own and not self._wrapped:
            return plain
        important: Style = {}
        for name, value, is_important in [*self._rules(element), *_declarations(own)]:
            (important if is_important else plain)[name] = value
        return plain | important

    def _rules(self, element: etree._Element) -> list[tuple[str, str, bool]]:
        wrapped = self._wrapped.get(element)
        if wrapped is None:
            return []
        self._matches += self._selectors
        if self._matches > MAX_MATCHES:
            raise DrawingError("The drawing has too many style rules for too many elements.")
        return [one for *_, declarations in self._matcher.match(wrapped) for one in declarations]

    def _add(self, rules: list[tinycss2.ast.Node]) -> None:
        for rule in rules:
            if isinstance(rule, tinycss2.ast.AtRule):
                self._add_at_rule(rule)
            elif isinstance(rule, tinycss2.ast.QualifiedRule):
                self._add_rule(rule)
            else:
                raise DrawingError("The drawing has a style sheet that can't be read.")

    def _add_at_rule(self, rule: tinycss2.ast.AtRule) -> None:
        name = rule.lower_at_keyword
        if name == "media":
            if _MEDIA.fullmatch(tinycss2.serialize(rule.prelude).strip()):
                content = rule.content or []
                self._add(
                    tinycss2.parse_rule_list(content, skip_comments=True, skip_whitespace=True)
                )
        elif name not in _UNSEEN:
            raise DrawingError(
                f"The drawing's style sheet has @{name[:40]}, which a drawing doesn't need."
            )

    def _add_rule(self, rule: tinycss2.ast.QualifiedRule) -> None:
        declarations = _declarations(tinycss2.serialize(rule.content))
        if not declarations:
            return
        for selector in tinycss2.serialize(rule.prelude).split(","):
            if _ONLY_AT_TIMES.search(selector):
                continue
            self._selectors += 1
            if self._selectors > MAX_SELECTORS:
                raise DrawingError(
                    f"The drawing's style sheets have more than {MAX_SELECTORS} selectors."
                )
            for compiled in _compiled(selector):
                self._matcher.add_selector(compiled, declarations)


def _compiled(selector: str) -> Iterable[Any]:
    """Return a simple selector as cssselect2 matches it; raises ``DrawingError`` for others."""
    is_simple = _SELECTOR.fullmatch(selector) is not None
    if is_simple and len(re.split(r"[\s>]+", selector.strip())) <= MAX_STEPS:
        try:
            return cssselect2.compile_selector_list(selector)
        except cssselect2.SelectorError:
            pass
    raise DrawingError("The drawing's style sheet has a selector that can't be followed.")


def _declarations(text: str) -> list[tuple[str, str, bool]]:
    """Return (property, value, whether important) of each declaration that is known and valid."""
    if not text:
        return []
    return [
        (longhand, value, is_important)
        for name, value, is_important in _split(text)
        for longhand in _SHORTHANDS.get(name, (name,))
        if _is_valid(longhand, value)
    ]


def _split(text: str) -> list[tuple[str, str, bool]]:
    """Return (property, value, whether important) of each declaration in a text."""
    if re.search(r"""["'\\]|/\*""", text):  # then a semicolon may not end a declaration
        parsed = tinycss2.parse_blocks_contents(text, skip_comments=True, skip_whitespace=True)
        return [
            (one.lower_name, tinycss2.serialize(one.value).strip(), one.important)
            for one in parsed
            if isinstance(one, tinycss2.ast.Declaration)
        ]
    found = []
    for declaration in text.split(";"):
        name, _, value = declaration.partition(":")
        value, marks = _IMPORTANT.subn("", value[:1_000])
        found.append((name.strip().lower(), value.strip(), bool(marks)))
    return found


def _is_valid(name: str, value: str) -> bool:
    """Return whether a browser would take this value; it ignores, for instance, a wrong colour."""
    if name not in INITIAL or not value.strip():
        return False
    if value.strip().lower() in _KEYWORDS:
        return True
    return name not in _PAINTS or _paint(value.strip()) is not False


def reference(value: str) -> str | None:
    """Return the id that a value such as ``url(#id)`` names, if it does."""
    match = _REFERENCE.fullmatch(value) if "(" in value else None
    return match[1] if match else None


def fallback(value: str) -> str:
    """Return the paint that takes the place of a reference to nothing: ``url(#id) black``."""
    match = _REFERENCE.fullmatch(value) if "(" in value else None
    return match[2].strip() or "none" if match else value


def colour(value: str, current: str) -> Colour | None:
    """Return the colour of a valid paint without reference, None where it paints nothing.

    ``current`` is the element's own colour.
    """
    found = _paint(value)
    if found == "currentcolor":
        found = _paint(current)
    return found if isinstance(found, tuple) else None


@lru_cache(maxsize=1_000)
def _paint(value: str) -> Colour | str | bool | None:
    """Return a colour, "currentcolor" or "url", None for no paint, or False for no valid paint."""
    value = value[:200].strip()
    if value.lower() in ("none", "context-fill", "context-stroke"):
        return None
    if _REFERENCE.fullmatch(value):
        return "url"
    if "url(" in value.lower():
        raise DrawingError("The drawing's style sheet refers to something outside it.")
    variable = _VARIABLE.fullmatch(value)
    if variable:
        if variable[1] is None:
            raise DrawingError("The drawing has a colour that is a CSS variable.")
        return _paint(variable[1])
    plain = re.sub(r"\s+(?:icc-color|device-color)\(.*", "", value)
    found = parse_color(plain, color_schemes=("light",))
    if found is None or found == "currentcolor":
        return found or False
    try:
        parts = found.to("srgb")
    except NotImplementedError:
        raise DrawingError(
            "The drawing has a colour in a colour space that can't be followed."
        ) from None
    red, green, blue, alpha = (min(max(float(part or 0), 0.0), 1.0) for part in parts)
    return red, green, blue, alpha


def opacity(value: str) -> float:
    """Return an opacity, 0 to 1."""
    if value == "1":
        return 1.0
    match = _LENGTH.fullmatch(value)
    if not match or match[2] not in ("", "%"):
        raise DrawingError("The drawing has an opacity that is not a number.")
    return min(max(float(match[1]) / (100 if match[2] else 1), 0.0), 1.0)


def length(name: str, text: str, whole: float) -> float:
    """Return a length in the drawing's units; ``whole`` is what 100 % stands for."""
    match = _LENGTH.fullmatch(text)
    if not match:
        raise DrawingError(f"The drawing's {name} is not a number.")
    unit = match[2].lower()
    return float(match[1]) * (whole / 100 if unit == "%" else _UNITS[unit])


def transform(style: Style) -> np.ndarray | None:
    """Return the matrix (3, 3) of an element's transform, None where it has none."""
    value = style["transform"].strip()
    if value.lower() in ("", "none"):
        return None
    value = value[:1_000]
    if _CALL.sub("", value).strip(", \t\r\n"):
        raise DrawingError("The drawing has a transform that can't be followed.")
    matrix = np.eye(3)
    for name, arguments in _CALL.findall(value):
        matrix = matrix @ _called(name.lower(), arguments)
    x, y = _origin(style["transform-origin"])
    return moved(x, y) @ matrix @ moved(-x, -y) if x or y else matrix


def _origin(value: str) -> tuple[float, float]:
    """Return the point that stays in its place."""
    if value in _AT_ZERO:
        return 0.0, 0.0
    words = value.replace(",", " ").split()[:2]
    matches = [_LENGTH.fullmatch(word) for word in words]
    numbers = [float(match[1]) for match in matches if match and match[2] in ("", "px")]
    if len(numbers) != 2:
        raise DrawingError("The drawing has a transform-origin that can't be followed.")
    return numbers[0], numbers[1]


def _called(name: str, arguments: str) -> np.ndarray:
    """Return the matrix (3, 3) of one function of a transform."""
    given = _numbers(arguments)
    if len(given) not in _TAKES[name]:
        raise DrawingError("The drawing has a transform that can't be followed.")
    first, last = given[0], given[-1]
    second = last if len(given) > 1 else 0.0
    match name:
        case "matrix":
            a, b, c, d, e, f = given
            return np.array([[a, c, e], [b, d, f], [0, 0, 1]])
        case "translate" | "translatex":
            return moved(first, second)
        case "translatey":
            return moved(0.0, first)
        case "scale":
            return np.diag([first, last, 1.0])
        case "scalex":
            return np.diag([first, 1.0, 1.0])
        case "scaley":
            return np.diag([1.0, first, 1.0])
        case "rotate":
            turn = _rotated(math.radians(first))
            if len(given) == 1:
                return turn
            x, y = given[1:]
            return moved(x, y) @ turn @ moved(-x, -y)
        case _:
            shear = np.eye(3)
            shear[(0, 1) if name == "skewx" else (1, 0)] = math.tan(math.radians(first))
            return shear


def _numbers(arguments: str) -> list[float]:
    """Return a transform's numbers, angles in degrees."""
    matches = [_ARGUMENT.fullmatch(word) for word in arguments.replace(",", " ").split()]
    if not all(matches):  # as in "translate(10-20)"
        matches = list(_ARGUMENT.finditer(arguments))
        if _ARGUMENT.sub("", arguments).strip(", \t\r\n"):
            raise DrawingError("The drawing's transform is not a number.")
    return [float(match[1]) * _DEGREES[match[2].lower()] for match in matches if match]


def _rotated(angle: float) -> np.ndarray:
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])


def moved(x: float, y: float) -> np.ndarray:
    """Return the matrix (3, 3) that moves by x and y."""
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])

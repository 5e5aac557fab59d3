"""The look of a drawing's elements: which CSS rules hold for them, and colours, lengths and transforms as numbers.

Nothing is loaded: a rule that names something outside the drawing is an error, or is never looked at.
"""

import math
import re
from functools import lru_cache

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

# What children inherit, and what holds for one element only.
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
_FONTS = re.compile(r"@font-face\s*\{[^{}]*\}", re.I)
_SELECTOR = re.compile(r"(?:[\w\s.#*>-]|:root)+")
_NOW_AND_THEN = re.compile(
    r":(?:hover|focus[\w-]*|active|visited|target|:?before|:?after|:selection)\b", re.I
)
_MEDIA = re.compile(
    r"(?:only\s+)?(?:all|screen)?\s*(?:(?:and\s+)?\(prefers-color-scheme:\s*light\))?", re.I
)
_UNSEEN = {"font-face", "keyframes", "-webkit-keyframes", "charset", "namespace", "page"}
_VARIABLE = re.compile(r"var\(\s*--[\w-]+\s*(?:,(.*))?\)", re.S)
_IMPORTANT = re.compile(r"\s*!\s*important\s*$", re.I)
_PAINTS = {"fill", "stroke", "stop-color", "color", "background-color"}
_KEYWORDS = {"inherit", "initial", "unset", "revert"}
_REFERENCE = re.compile(r"""url\(\s*["']?#([^"')]+)["']?\s*\)\s*(.*)""", re.S)


class DrawingError(ValueError):
    """A drawing that can't be read, in a sentence for the person who sent it."""


class Sheet:
    """All style sheets of a drawing, and who they hold for."""

    def __init__(self, root: etree._Element, texts: list[str]):
        self._matcher = cssselect2.Matcher()
        self._wrapped: dict[etree._Element, cssselect2.ElementWrapper] = {}
        self._selectors = self._matches = 0
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
        """Return what is declared for an element itself; the weaker first: attributes, rules, its own style."""
        plain = {
            name: value.strip() for name, value in element.attrib.items() if _holds(name, value)
        }
        important: Style = {}
        own = element.get("style", "")
        if len(own) > MAX_STYLE:
            raise DrawingError(f"The drawing has a style of more than {MAX_STYLE:,} characters.")
        for found in (self._rules(element), _declarations(own)) if own or self._wrapped else ():
            for name, value, strong in found:
                (important if strong else plain)[name] = value
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
                self._add(
                    tinycss2.parse_rule_list(
                        rule.content or [], skip_comments=True, skip_whitespace=True
                    )
                )
        elif name not in _UNSEEN:
            raise DrawingError(
                f"The drawing's style sheet has @{name[:40]}, which a drawing doesn't need."
            )

    def _add_rule(self, rule: tinycss2.ast.QualifiedRule) -> None:
        text = tinycss2.serialize(rule.prelude)
        declarations = _declarations(tinycss2.serialize(rule.content))
        if not declarations:
            return
        for selector in text.split(","):
            if _NOW_AND_THEN.search(selector):
                continue
            self._selectors += 1
            if self._selectors > MAX_SELECTORS:
                raise DrawingError(
                    f"The drawing's style sheets have more than {MAX_SELECTORS} selectors."
                )
            if not _SELECTOR.fullmatch(selector) or len(re.split(r"[\s>]+", selector.strip())) > 4:
                raise DrawingError(
                    "The drawing's style sheet has a selector that can't be followed."
                )
            try:
                compiled = cssselect2.compile_selector_list(selector)
            except cssselect2.SelectorError:
                raise DrawingError(
                    "The drawing's style sheet has a selector that can't be followed."
                ) from None
            for one in compiled:
                self._matcher.add_selector(one, declarations)


def _declarations(text: str) -> list[tuple[str, str, bool]]:
    """Return (property, value, whether important) of declarations, those that are known and valid."""
    if not text:
        return []
    found = []
    for name, value, strong in _split(text):
        for one in ("marker-start", "marker-mid", "marker-end") if name == "marker" else (name,):
            known = "background-color" if one == "background" else one
            if _holds(known, value):
                found.append((known, value, strong))
    return found


def _split(text: str) -> list[tuple[str, str, bool]]:
    if re.search(r"""["'\\]|/\*""", text):  # where a semicolon may not end a declaration
        parsed = tinycss2.parse_blocks_contents(text, skip_comments=True, skip_whitespace=True)
        return [
            (one.lower_name, tinycss2.serialize(one.value).strip(), one.important)
            for one in parsed
            if isinstance(one, tinycss2.ast.Declaration)
        ]
    found = []
    for declaration in text.split(";"):
        name, _, value = declaration.partition(":")
        value, strong = _IMPORTANT.subn("", value[:1_000])
        found.append((name.strip().lower(), value.strip(), bool(strong)))
    return found


def _holds(name: str, value: str) -> bool:
    """Return whether a viewer would take this value: a colour that is none is as if it weren't there."""
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
    """Return the colour that a valid paint without reference stands for; ``current``: the element's own colour."""
    found = _paint(value)
    if found == "currentcolor":
        found = _paint(current)
    return found if isinstance(found, tuple) else None


@lru_cache(maxsize=1_000)
def _paint(value: str) -> Colour | str | bool | None:
    """Return a colour, "currentcolor", "url", None where nothing is painted, or False where it is no paint."""
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
    found = parse_color(
        re.sub(r"\s+(?:icc-color|device-color)\(.*", "", value), color_schemes=("light",)
    )
    if found is None or found == "currentcolor":
        return found or False
    try:
        red, green, blue, alpha = found.to("srgb")
    except NotImplementedError:
        raise DrawingError(
            "The drawing has a colour in a colour space that can't be followed."
        ) from None
    r, g, b, a = (min(max(float(part or 0), 0.0), 1.0) for part in (red, green, blue, alpha))
    return r, g, b, a


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
    if style["transform-origin"] in ("0 0", "0px 0px", "0", "0px", "0% 0%", "left top", "top left"):
        return matrix
    origin = [
        _LENGTH.fullmatch(word) for word in style["transform-origin"].replace(",", " ").split()[:2]
    ]
    if len(origin) != 2 or not all(match and match[2] in ("", "px") for match in origin):
        raise DrawingError("The drawing has a transform-origin that can't be followed.")
    x, y = (float(match[1]) for match in origin if match)
    return moved(x, y) @ matrix @ moved(-x, -y)


def _called(name: str, arguments: str) -> np.ndarray:
    matches = [_ARGUMENT.fullmatch(word) for word in arguments.replace(",", " ").split()]
    if not all(matches):  # as in "translate(10-20)"
        matches = list(_ARGUMENT.finditer(arguments))
        if _ARGUMENT.sub("", arguments).strip(", \t\r\n"):
            raise DrawingError("The drawing's transform is not a number.")
    given = [float(match[1]) * _DEGREES[match[2].lower()] for match in matches if match]
    if len(given) not in _TAKES[name]:
        raise DrawingError("The drawing has a transform that can't be followed.")
    if name == "matrix":
        a, b, c, d, e, f = given
        return np.array([[a, c, e], [b, d, f], [0, 0, 1]])
    if name.startswith("translate"):
        x, y = {"translatey": (0.0, given[0])}.get(
            name, (given[0], given[1] if len(given) > 1 else 0.0)
        )
        return moved(x, y)
    if name.startswith("scale"):
        x, y = {"scalex": (given[0], 1.0), "scaley": (1.0, given[0])}.get(
            name, (given[0], given[-1])
        )
        return np.diag([x, y, 1.0])
    angle = math.radians(given[0])
    if name == "rotate":
        turn = np.array(
            [
                [math.cos(angle), -math.sin(angle), 0],
                [math.sin(angle), math.cos(angle), 0],
                [0, 0, 1],
            ]
        )
        return turn if len(given) == 1 else moved(*given[1:]) @ turn @ moved(-given[1], -given[2])
    shear = np.eye(3)
    shear[(0, 1) if name == "skewx" else (1, 0)] = math.tan(angle)
    return shear


def moved(x: float, y: float) -> np.ndarray:
    """Return the matrix (3, 3) that moves by x and y."""
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])

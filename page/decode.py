"""The text of a drawing as it was sent, decoded and parsed without entities, DTDs or network."""

import base64
import binascii
import re
from urllib.parse import unquote

from lxml import etree

from page.limits import MAX_SVG_BYTES
from page.style import DrawingError

SVG = "http://www.w3.org/2000/svg"

_QUOTE = r"[\"']"
_DOCTYPE = re.compile(
    rf"<!DOCTYPE\s+svg"
    rf"(?:\s+PUBLIC\s+{_QUOTE}-//W3C//DTD SVG [^\"']{{1,40}}{_QUOTE}"
    rf"\s+{_QUOTE}[^\"']{{1,80}}{_QUOTE})?"
    rf"\s*(?:\[\s*\])?\s*>",
    re.I,
)
_PREFIX = re.compile(r"\s*(?:data:)?image/svg[+ ]xml((?:;[\w=-]{1,30}){0,3}),", re.I | re.ASCII)
_BROKEN = re.compile(r"[\r\n\t_-]")
_UNBROKEN = str.maketrans("-_", "+/", "\r\n\t")


def decoded(img_str: str) -> str:
    """Return the SVG's text from base64, a data URL or plain text; raises ``DrawingError``.

    In a form that was not encoded, each "+" arrives as a blank. This is undone here.
    """
    prefix = _PREFIX.match(img_str[:200])
    text = img_str[prefix.end() if prefix else 0 :]
    if len(text) > MAX_SVG_BYTES * 3:
        raise DrawingError(f"The drawing is larger than {MAX_SVG_BYTES} bytes.")
    if "%" in text:
        text = unquote(text)
    is_plain_url = prefix and "base64" not in prefix[1].lower()
    is_text = text.lstrip()[:1] == "<" or is_plain_url
    data = text.encode("utf-8", "replace") if is_text else _unpacked(text)
    if len(data) > MAX_SVG_BYTES:
        raise DrawingError(f"The drawing is larger than {MAX_SVG_BYTES} bytes.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DrawingError("The drawing is not an SVG in UTF-8.") from None


def _unpacked(text: str) -> bytes:
    """Return the bytes of base64, also of its URL-safe kind and of base64 broken into lines."""
    joined = text.translate(_UNBROKEN).lstrip() if _BROKEN.search(text) else text.lstrip()
    whole = joined.rstrip()
    data = _from_base64(whole.replace(" ", "+"))
    # A drawing ends in ">". One that doesn't has lost a last "+", which arrived as a blank.
    if joined != whole and not data.rstrip().endswith(b">"):
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


def parsed(text: str) -> etree._Element:
    """Return the root of an SVG's tree; raises ``DrawingError``."""
    start = _after_comments(text, 0)
    doctype = _DOCTYPE.match(text, start)  # this names what an SVG is, and loads nothing
    text = text[doctype.end() if doctype else start :]
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
    if root is None or name_of(root) != "svg":
        raise DrawingError("The drawing is not an SVG.")
    return root


def _after_comments(text: str, at: int) -> int:
    """Return where blanks, comments, the XML declaration and processing instructions end."""
    while True:
        near = text[at : at + 100]
        at += len(near) - len(near.lstrip())
        opening, closing = ("<!--", "-->") if text.startswith("<!--", at) else ("<?", "?>")
        end = text.find(closing, at) if text.startswith(opening, at) else -1
        if end >= 0:
            at = end + len(closing)
        elif text[at : at + 1].isspace():
            return len(text) - len(text[at:].lstrip())
        else:
            return at


def name_of(element: etree._Element) -> str:
    """Return the name of an SVG element, or "" for an element of another program's."""
    if not isinstance(element.tag, str):
        return ""
    space, _, name = element.tag.rpartition("}")
    return name if space in ("", "{" + SVG) else ""


def href_of(element: etree._Element) -> str:
    """Return what an element's ``href`` names, with or without XLink's namespace, or ""."""
    for key, value in element.attrib.items():
        if key.rpartition("}")[2] == "href":
            return value.strip()
    return ""

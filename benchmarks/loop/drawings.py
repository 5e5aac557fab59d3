"""How well a model reads drawings it has never seen: a pen-stroke set of its own, made from fonts and pen movements.

Each "hand" is one font's outlines, the same font's skeletons as pen strokes, a Hershey stroke font, or one way of
moving a pen written down below. Every drawing is slanted, stretched, bent, jittered, drawn at another size, place and
pen width, sent as the SVG that a page would send, and read by drawing.py. No drawing of a real person is in it.
"""

import base64
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import files
from pathlib import Path

import click
import numpy as np
from HersheyFonts import HersheyFonts
from matplotlib import get_data_path
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath
from scipy.ndimage import convolve, gaussian_filter1d
from skimage.draw import polygon2mask
from skimage.morphology import skeletonize
from sklearn.datasets import load_digits
from tqdm import tqdm

from benchmarks.loop import results
from learners.learner import Learner, new_learner
from loop.messages import DIGITS
from page.drawing import features
from settings import settings

FONT_PACKAGES = (
    "font-intuitive",
    "font-source-sans-pro",
    "font-roboto",
    "font-fredoka-one",
    "font-manrope",
    "font-caladea",
)
MATPLOTLIB_FONTS = ("DejaVuSans", "DejaVuSerif", "DejaVuSansMono", "STIXGeneral", "cmr10", "cmtt10")
HERSHEY_FONTS = ("futural", "rowmans", "scripts", "cursive")
KINDS = {  # the last word of a hand's name, and what the figures call it
    "movement": "pen movements",
    "outline": "font outlines",
    "skeleton": "font skeletons",
    "strokes": "Hershey strokes",
}
PENS = 20  # people who write digits as MOVEMENTS describes
AROUND = (
    (1, 0),
    (-1, 0),
    (0, 1),
    (0, -1),
    (1, 1),
    (1, -1),
    (-1, 1),
    (-1, -1),
)  # straight steps first

# Pen movements, as (x, y) points in a box 100 high, y down; strokes are parted by "/", a curve runs through the points.
# "!" before a point makes a corner there.
MOVEMENTS = {
    0: [
        "55,2 25,15 12,50 25,88 50,98 76,85 86,50 76,14 55,2",
        "70,8 40,4 15,35 14,70 40,98 72,88 84,50 74,15 56,5 48,12",
        "48,3 70,12 84,50 70,90 48,97 24,88 14,50 26,12 48,3",
        "62,10 30,8 8,55 22,94 60,90 88,48 80,12 60,6",
    ],
    1: [
        "50,2 50,98",
        "!28,26 !52,2 52,98",
        "62,0 40,100",
        "!30,22 !54,3 !52,97 / !28,97 !78,97",
        "!40,14 !50,2 48,60 47,99",
    ],
    2: [
        "16,24 32,5 60,4 74,22 66,46 38,74 !14,96 !84,96",
        "14,22 30,3 62,4 76,26 60,58 30,90 !18,94 28,82 44,86 66,98 86,90",
        "20,16 48,2 72,14 70,36 46,66 !16,95 50,93 84,97",
        "!18,10 !74,8 !16,94 !82,94",
        "12,30 26,6 58,2 78,20 68,50 30,84 16,96 20,80 36,80 60,96 84,92",
    ],
    3: [
        "16,12 46,2 72,18 62,40 !38,48 68,56 80,76 58,97 14,88",
        "!16,6 !76,5 !42,42 72,54 80,78 56,98 14,90",
        "20,14 50,2 74,20 60,42 40,46 44,50 70,56 82,78 56,98 16,86",
        "14,18 40,2 68,12 66,34 !36,47 74,58 72,90 40,98 12,84",
    ],
    4: [
        "!56,2 !12,66 !88,64 / !64,36 !62,98",
        "!26,4 20,44 !24,56 !84,52 / !74,4 !68,99",
        "!64,98 !64,2 !10,68 !90,68",
        "!22,6 !16,54 !80,52 / !72,28 !70,97",
        "!60,4 !18,60 !86,58 / !60,4 !56,98",
    ],
    5: [
        "!78,4 !28,4 !24,44 56,38 82,64 66,92 16,92",
        "!26,6 !24,44 54,38 80,62 66,92 18,94 / !26,6 !80,4",
        "76,6 32,8 26,40 44,40 72,52 76,80 48,98 14,86",
        "!30,4 !26,46 60,42 74,70 52,97 16,90 / !30,5 !76,8",
    ],
    6: [
        "66,4 34,28 16,66 28,94 60,96 76,74 62,54 34,56 20,72",
        "58,2 26,40 18,74 38,98 70,88 72,62 46,54 22,70",
        "74,6 42,10 18,48 18,82 46,98 76,82 72,58 46,52 22,66",
        "50,2 28,46 24,80 46,98 66,80 54,60 28,76",
    ],
    7: [
        "!14,6 !82,6 56,50 42,98",
        "!14,8 !80,6 !38,98 / !28,50 !72,48",
        "!16,20 !18,4 !82,6 !44,98",
        "14,10 46,8 !82,4 60,40 50,97",
        "!12,8 !84,8 58,46 48,99 / !34,52 !76,50",
    ],
    8: [
        "74,16 46,2 22,20 40,44 70,60 78,82 50,98 22,82 34,58 64,40 74,16",
        "50,48 22,30 34,4 66,6 74,28 50,48 22,72 34,97 68,95 78,70 50,48",
        "50,2 26,14 30,38 52,46 72,32 70,12 50,2 / 50,46 24,60 20,84 50,99 78,86 76,60 50,46",
        "80,8 50,2 24,18 46,46 72,66 66,96 32,96 22,74 50,48 72,26 72,10",
    ],
    9: [
        "74,18 48,3 22,22 26,46 52,50 74,22 !74,16 72,60 68,98",
        "76,16 46,2 20,26 36,50 66,40 76,14 78,50 66,86 34,98 14,86",
        "70,10 40,4 24,26 40,46 68,34 !72,8 !64,99",
        "78,20 56,2 26,12 24,42 54,50 76,28 !78,18 58,98",
        "70,26 48,4 24,22 34,44 62,40 72,18 76,60 60,94 30,96",
    ],
}


@dataclass(frozen=True)
class Shape:
    """One digit as one hand writes it: lines, each (n, 2) with y down; filled outlines or strokes of a pen."""

    digit: int
    lines: tuple[np.ndarray, ...]
    filled: bool


def stroke_set(
    n: int = 4_000, seed: int = 0, read: Callable[[str], np.ndarray] = features
) -> tuple[np.ndarray, ...]:
    """Return X uint8 (n, 64), y int64 (n,), hand int64 (n,): drawings, their digits and who "wrote" them.

    Hands take turns, so that every hand and digit is there about equally often. ``read`` takes a base64 SVG to the
    64 numbers.
    """
    rng = np.random.default_rng(seed)
    hands = list(all_hands().values())
    X, y, hand = np.empty((n, 64), np.uint8), np.empty(n, np.int64), np.empty(n, np.int64)
    for i in tqdm(range(n), desc="drawings", unit="", leave=False):
        hand[i] = i % len(hands)
        digit = int(rng.integers(10))
        shape = rng.choice(np.array([s for s in hands[hand[i]] if s.digit == digit], dtype=object))
        X[i], y[i] = read(drawn(shape, rng)), digit
    return X, y, hand


def split_by_hand(hand: np.ndarray, share: float = 0.5, seed: int = 0) -> np.ndarray:
    """Return a mask of the drawings of a random ``share`` of the hands, so that no hand is on both sides.

    A font's outlines and its skeletons are one hand here.
    """
    people = list(dict.fromkeys(name.partition(" ")[0] for name in all_hands()))
    chosen = set(np.random.default_rng(seed).permutation(people)[: round(share * len(people))])
    return np.isin(
        hand, [i for i, name in enumerate(all_hands()) if name.partition(" ")[0] in chosen]
    )


@lru_cache(maxsize=1)
def all_hands() -> dict[str, list[Shape]]:
    """Return every hand's shapes by its name: a font and "outline" or "skeleton", or a pen movement's number."""
    hands = {}
    for name, path in _font_files():
        outlines = [_outline(path, digit) for digit in range(10)]
        hands[f"{name} outline"] = outlines
        hands[f"{name} skeleton"] = [_skeleton(shape) for shape in outlines]
    for name in HERSHEY_FONTS:
        hands[f"hershey-{name} strokes"] = [_hershey(name, digit) for digit in range(10)]
    return hands | pens()


def pens() -> dict[str, list[Shape]]:
    """Return the hands that are pen movements: each has a way of its own for each digit."""
    hands = {}
    for k in range(PENS):
        rng = np.random.default_rng(k)
        hands[f"pen-{k} movement"] = [
            _movement(d, str(rng.choice(ways))) for d, ways in MOVEMENTS.items()
        ]
    return hands


def _font_files() -> Iterator[tuple[str, Path]]:
    for package in FONT_PACKAGES:
        fonts = [
            file
            for file in files(package) or []
            if file.suffix in (".ttf", ".otf") and "Italic" not in file.name
        ]
        regular = sorted(fonts, key=lambda file: ("Regular" not in file.name, file.name))[0]
        yield package, Path(str(regular.locate()))
    for name in MATPLOTLIB_FONTS:
        yield name, Path(get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"


def _outline(path: Path, digit: int) -> Shape:
    text = TextPath((0, 0), str(digit), size=100, prop=FontProperties(fname=str(path)))
    return Shape(
        digit, tuple(np.asarray(line) * [1, -1] for line in text.to_polygons()), filled=True
    )


def _skeleton(shape: Shape) -> Shape:
    """Return the centre lines of an outline as pen strokes, traced through its skeleton."""
    corner = np.vstack(shape.lines).min(0)
    scale = 200 / np.ptp(np.vstack(shape.lines), axis=0).max()
    inside = np.zeros((220, 220), bool)
    for line in shape.lines:
        inside ^= polygon2mask(inside.shape, (line - corner)[:, ::-1] * scale + 8)
    strokes = [
        gaussian_filter1d(stroke, 4, axis=0, mode="nearest")
        for stroke in _traced(skeletonize(inside))
    ]
    kept = [stroke for stroke in strokes if len(stroke) > 14] or strokes
    return Shape(shape.digit, tuple(kept), filled=False)


def _traced(skeleton: np.ndarray) -> list[np.ndarray]:
    """Return the lines of a one-pixel skeleton, each float64 (n, 2) as x, y, from end or crossing to the next."""
    neighbours = convolve(skeleton.astype(int), np.ones((3, 3), int), mode="constant") - 1
    left = {(int(x), int(y)) for y, x in zip(*np.nonzero(skeleton), strict=True)}
    starts = sorted(
        left, key=lambda p: abs(neighbours[p[1], p[0]] - 1)
    )  # ends first, then the rest
    strokes: list[np.ndarray] = []
    for start in starts:
        if start not in left:
            continue
        stroke: list[tuple[int, int]] = []
        at: tuple[int, int] | None = start
        while at is not None:
            left.discard(at)
            stroke.append(at)
            at = next(
                (p for p in ((at[0] + dx, at[1] + dy) for dx, dy in AROUND) if p in left), None
            )
        strokes.append(np.array(stroke, dtype=np.float64))
    return strokes


def _hershey(name: str, digit: int) -> Shape:
    font = HersheyFonts()
    font.load_default_font(name)
    font.normalize_rendering(100)
    strokes = tuple(
        np.array(stroke, dtype=np.float64) * [1, -1] for stroke in font.strokes_for_text(str(digit))
    )
    return Shape(digit, strokes, filled=False)


def _movement(digit: int, text: str) -> Shape:
    return Shape(digit, tuple(_through(stroke.split()) for stroke in text.split("/")), filled=False)


def _through(words: list[str]) -> np.ndarray:
    """Return a smooth line through points (Catmull-Rom), straight on both sides of a corner marked with "!"."""
    points = np.array([word.lstrip("!").split(",") for word in words], dtype=np.float64)
    corner = np.array([word.startswith("!") for word in words])
    tangent = np.gradient(points, axis=0) if len(points) > 1 else points * 0
    tangent[corner] = 0
    t = np.linspace(0, 1, 12)[:, None]
    pieces = [
        (2 * t**3 - 3 * t**2 + 1) * a
        + (t**3 - 2 * t**2 + t) * u
        + (3 * t**2 - 2 * t**3) * b
        + (t**3 - t**2) * v
        for a, b, u, v in zip(points[:-1], points[1:], tangent[:-1], tangent[1:], strict=True)
    ]
    return np.vstack(pieces)


def drawn(shape: Shape, rng: np.random.Generator) -> str:
    """Return one drawing of a shape as a person might make it: the base64 of an SVG."""
    canvas = int(rng.integers(100, 501))
    lines = _bent(shape, rng)
    everything = np.vstack(lines)
    height = canvas * rng.uniform(0.25, 0.9)
    scale = height / max(np.ptp(everything[:, 1]), 1e-9)
    room = np.maximum(canvas - np.ptp(everything, axis=0) * scale, 0)
    place = room * rng.random(2) - everything.min(0) * scale
    lines = [line * scale + place for line in lines]
    if shape.filled:
        d = "".join("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in line) + "Z" for line in lines)
        ink = f'<path d="{d}" fill="#000"/>'
    else:
        pen = min(
            float(np.exp(rng.uniform(0, np.log(40)))), height / 4
        )  # no one draws with a pen wider than that
        ink = "".join(_stroke(line, canvas, pen, rng) for line in lines)
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {canvas} {canvas}">{ink}</svg>'
    return base64.b64encode(svg.encode()).decode()


def _bent(shape: Shape, rng: np.random.Generator) -> list[np.ndarray]:
    """Return a shape's lines slanted, turned, stretched and gently bent."""
    angle, slant = rng.normal(0, 0.09), np.clip(rng.normal(0.12, 0.22), -0.4, 0.7)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.array([[1, -slant], [0, 1]]) @ np.diag([np.exp(rng.normal(0, 0.2)), 1])
    centre = np.vstack(shape.lines).mean(0)
    size = max(np.ptp(np.vstack(shape.lines), axis=0).max(), 1e-9)
    waves, phases, strength = (
        rng.uniform(0.5, 1.5, (2, 2)),
        rng.uniform(0, 2 * np.pi, 2),
        rng.normal(0, 0.045, 2),
    )
    lines = []
    for line in shape.lines:
        unit = (line - centre) / size
        bend = np.column_stack(
            [strength[k] * np.sin(2 * np.pi * unit @ waves[k] + phases[k]) for k in (0, 1)]
        )
        moved = 0 if shape.filled or len(shape.lines) == 1 else rng.normal(0, 0.02, 2)
        lines.append((unit + bend + moved) @ matrix.T)
    return lines


def _stroke(line: np.ndarray, canvas: int, pen: float, rng: np.random.Generator) -> str:
    """Return a pen stroke sampled now and then, by a hand that trembles a little."""
    step = np.r_[0, np.cumsum(np.hypot(*np.diff(line, axis=0).T))]
    n = max(2, round(step[-1] / canvas * rng.uniform(12, 60)))
    at = np.linspace(0, step[-1], n)
    tremble = rng.normal(0, canvas * 0.004, (n, 2))
    points = (
        np.column_stack([np.interp(at, step, line[:, 0]), np.interp(at, step, line[:, 1])])
        + tremble
    )
    return (
        f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}" fill="none" stroke="#000" '
        f'stroke-width="{pen:.1f}" stroke-linecap="round" stroke-linejoin="round"/>'
    )


def accuracy_before_and_after(n: int, taught: int, batch: int, seed: int) -> dict[str, float]:
    """Return shares right at first sight: of a model trained on the data set only, while taught, and after.

    The drawings of one half of the hands are taught, ``taught`` of them; those of the other half are never learned.
    """
    X, y, hand = stroke_set(n, seed)
    mine = split_by_hand(hand, seed=seed)
    kinds = np.array([name.partition(" ")[2] for name in all_hands()])[hand]
    learner = new_learner(settings().learner, DIGITS.classes, DIGITS.n_features)
    digits, labels = load_digits(return_X_y=True)
    for start in range(0, len(digits), batch):
        learner.learn(digits[start : start + batch], labels[start : start + batch])
    found = {"before teaching, all": right(learner, X, y)}
    found |= {
        f"before teaching, {KINDS[kind]}": right(learner, X[kinds == kind], y[kinds == kind])
        for kind in KINDS
        if kind in kinds
    }
    untaught = right(learner, X[~mine], y[~mine])
    at_first_sight: list[bool] = []
    for start in range(0, taught, batch):
        some = np.flatnonzero(mine)[start : start + batch]
        at_first_sight += (learner.predict(X[some].astype(float)) == y[some]).tolist()
        learner.learn(X[some].astype(float), y[some])
    found |= {
        f"the last 500 of {len(at_first_sight):,} taught, before each was taught": float(
            np.mean(at_first_sight[-500:])
        ),
        "hands that were never taught, before teaching": untaught,
        "hands that were never taught, after teaching": right(learner, X[~mine], y[~mine]),
    }
    return found


def right(learner: Learner, X: np.ndarray, y: np.ndarray) -> float:
    """Return the share that the learner predicts right."""
    return float(np.mean(learner.predict(X.astype(float)) == y))


@click.command(help=__doc__)
@click.option("--count", default=6_000, show_default=True, help="Drawings to make.")
@click.option("--taught", default=2_000, show_default=True, help="How many of them to teach.")
@click.option("--batch", default=10, show_default=True, help="Samples per mini-batch.")
@click.option("--seed", default=0, show_default=True)
def main(count: int, taught: int, batch: int, seed: int) -> None:
    """Print how many drawings are read right before and after teaching, and keep the figures."""
    options = shlex.join(sys.argv[1:])
    found = accuracy_before_and_after(count, taught, batch, seed)
    rows = [[name, round(share, 3)] for name, share in found.items()]
    for name, share in rows:
        click.echo(f"{name}: {share:.3f}")
    command = f"python -m benchmarks.loop.drawings {options}" if options else "make bench-drawings"
    results.save({"drawings": {"command": command, "count": count, "rows": rows}})


if __name__ == "__main__":
    main()

"""How often each learner is right before it learns: prequential accuracy on the digits, and on pen strokes after them.

    make accuracy

Each learner goes once through the 1,797 digits from a cold start, each sample predicted and then learned alone, in
shuffles that are the same for all. Then it reads pen strokes that it has never seen and was not taught. Writes
accuracy.json and the plots beside it in docs/.
"""

import json
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.kernel_approximation import RBFSampler
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import log_loss
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MinMaxScaler, PolynomialFeatures
from tqdm import tqdm

from benchmarks.drawings import stroke_set
from digit_learner import distorted
from learner import EstimatorLearner, Learner, new_learner

matplotlib.use("Agg")

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent / "docs"
CLASSES = np.arange(10)
X, Y = load_digits(return_X_y=True)


class Rehearsing(EstimatorLearner):
    """Any estimator, with 20 samples replayed per new one, half of them distorted as the default learner does."""

    def __init__(self, estimator: Pipeline) -> None:
        super().__init__(estimator, CLASSES)
        self.seen: list[tuple[np.ndarray, int]] = []

    def learn(self, X: np.ndarray, y: np.ndarray) -> None:
        """Learn a batch and its replayed samples."""
        self.seen += zip(X, y, strict=True)
        draw = np.random.default_rng((1, len(self.seen)))
        picked = [self.seen[i] for i in draw.integers(0, len(self.seen), 20 * len(y))]
        old, labels = np.array([x for x, _ in picked]), np.array([label for _, label in picked])
        old[::2] = distorted(old[::2].astype(np.float32), draw)
        super().learn(np.vstack([old, X]), np.concatenate([labels, y]))


def products(average: bool) -> Pipeline:
    """Return a linear model on degree-2 products of the pixels, 0..1."""
    scale = MinMaxScaler().fit([[0] * 64, [16] * 64])
    pairs = PolynomialFeatures(2, interaction_only=True, include_bias=False).fit(np.zeros((1, 64)))
    model = SGDClassifier(loss="log_loss", alpha=1e-6, average=average, shuffle=False)
    return make_pipeline(scale, pairs, model.set_params(learning_rate="constant", eta0=0.02))


def waves() -> Pipeline:
    """Return a linear model on 2,000 random Fourier features of the pixels."""
    sampler = RBFSampler(gamma=0.0008, n_components=2000, random_state=0).fit(np.zeros((1, 64)))
    model = SGDClassifier(loss="log_loss", alpha=1e-6, learning_rate="constant", eta0=2.0, shuffle=False)
    return make_pipeline(sampler, model)


@dataclass(frozen=True)
class Contender:
    """A learner of the table; the slow ones go through fewer shuffles, and only some are asked for probabilities."""

    title: str
    make: Callable[[], Learner]
    few: bool = True
    batch: int = 1
    probabilities: bool = False


def named(name: str) -> Callable[[], Learner]:
    """Return what makes the learner of this LEARNER setting."""
    return lambda: new_learner(name, CLASSES, X.shape[1])


CONTENDERS = {
    "default": Contender("**the default**", named("default"), few=False, probabilities=True),
    "default_10": Contender("the default, in batches of 10", named("default"), few=False, batch=10),
    "sgd": Contender("the original's SGD", named("sgd"), few=False, probabilities=True),
    "river_logistic": Contender("River: logistic", named("examples.river_digits:logistic")),
    "river_softmax": Contender("River: softmax", named("examples.river_digits:softmax")),
    "river_tree": Contender("River: Hoeffding tree", named("examples.river_digits:tree")),
    "river_knn": Contender("River: 5 nearest neighbours", named("examples.river_digits:neighbours")),
    "products": Contender("degree-2 products, averaged", lambda: EstimatorLearner(products(True), CLASSES)),
    "products_copies": Contender("degree-2 products, rehearsing copies", lambda: Rehearsing(products(False))),
    "fourier_copies": Contender("2,000 Fourier features, rehearsing copies", lambda: Rehearsing(waves())),
}


@dataclass
class Result:
    """What one learner did: one entry per shuffle, each over the digits in the order they came."""

    accuracy: list[float] = field(default_factory=list)
    strokes: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)
    labels: list[np.ndarray] = field(default_factory=list)
    predicted: list[np.ndarray] = field(default_factory=list)
    shares: list[np.ndarray] = field(default_factory=list)
    stroke_shares: list[np.ndarray] = field(default_factory=list)

    def summary(self) -> dict[str, float | int]:
        """Return the figures as they go into accuracy.json."""
        figures: dict[str, float | int] = {
            "mean": _mean(self.accuracy),
            "sd": _deviation(self.accuracy),
            "shuffles": len(self.accuracy),
            "samples_per_s": round(float(np.mean(self.rate))),
            "strokes_mean": _mean(self.strokes),
            "strokes_sd": _deviation(self.strokes),
        }
        if self.shares:
            shares, labels = np.vstack(self.shares), np.concatenate(self.labels)
            figures["log_loss"] = round(float(log_loss(labels, shares, labels=CLASSES)), 4)
            figures["calibration_error"] = round(calibration_error(shares, labels), 4)
        return figures


def _mean(values: list[float]) -> float:
    return round(float(np.mean(values)), 4)


def _deviation(values: list[float]) -> float:
    return round(float(np.std(values, ddof=1)), 4) if len(values) > 1 else 0.0


def run(contender: Contender, shuffle: int, strokes: tuple[np.ndarray, np.ndarray], result: Result) -> None:
    """Go once through the digits from a cold start, then read the strokes; what came of it goes into the result."""
    learner, order = contender.make(), np.random.default_rng(shuffle).permutation(len(X))
    predicted, shares, seconds = np.full(len(X), -1), np.full((len(X), len(CLASSES)), 0.1), 0.0
    for start in range(0, len(X), contender.batch):
        here, rows = slice(start, start + contender.batch), order[start : start + contender.batch]
        if start and contender.probabilities:
            shares[here] = served(learner).predict_proba(X[rows])
        began = time.perf_counter()
        guess = learner.predict(X[rows])
        learner.learn(X[rows], Y[rows])
        seconds += time.perf_counter() - began
        if guess is not None:
            predicted[here] = guess
    result.accuracy.append(float((predicted == Y[order]).mean()))
    result.strokes.append(float((served(learner).predict(strokes[0]) == strokes[1]).mean()))
    result.rate.append(len(X) / seconds)
    result.labels.append(Y[order])
    result.predicted.append(predicted)
    if contender.probabilities:
        result.shares.append(np.clip(shares, 1e-6, 1))  # sure and wrong would be an endless log loss
        result.shares[-1] /= result.shares[-1].sum(axis=1, keepdims=True)
        result.stroke_shares.append(served(learner).predict_proba(strokes[0]))


def served(learner: Learner) -> Any:
    """Return the estimator that a reader of the store would have."""
    return pickle.loads(learner.model_bytes())  # noqa: S301 - made a line before


def calibration_error(shares: np.ndarray, labels: np.ndarray, bins: int = 10) -> float:
    """Return the expected calibration error: how far the stated probability is from the share that is right."""
    sure, right = shares.max(axis=1), shares.argmax(axis=1) == labels
    place = np.minimum((sure * bins).astype(int), bins - 1)
    return float(sum(abs(sure[place == k].sum() - right[place == k].sum()) for k in range(bins)) / len(labels))


def draw_curves(results: dict[str, Result], path: Path) -> None:
    """Plot the share of the last 100 samples that was right, mean of the shuffles, over samples seen."""
    figure, axes = plt.subplots(figsize=(8, 4.5))
    for name, result in results.items():
        right = np.mean([p == y for p, y in zip(result.predicted, result.labels, strict=True)], axis=0)
        recent = np.convolve(right, np.ones(100) / 100, mode="valid")
        axes.plot(np.arange(100, len(right) + 1), recent, label=CONTENDERS[name].title.strip("*"))
    axes.set(xlabel="samples seen", ylabel="right of the last 100", ylim=(0.6, 1), title="One pass from a cold start")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, bbox_inches="tight", dpi=120)
    plt.close(figure)


def draw_confusion(result: Result, path: Path) -> None:
    """Plot what the default learner took each digit for, in thousandths of that digit."""
    labels, predicted = np.concatenate(result.labels), np.concatenate(result.predicted)
    counts = np.array([[((labels == a) & (predicted == b)).sum() for b in CLASSES] for a in CLASSES])
    shares = 1000 * counts / np.bincount(labels)[:, None]
    figure, axes = plt.subplots(figsize=(5, 5))
    axes.imshow(shares - np.diag(np.diag(shares)), cmap="Reds")
    for a in CLASSES:
        for b in CLASSES:
            axes.text(b, a, f"{shares[a, b]:.0f}", ha="center", va="center", fontsize=8)
    axes.set(xlabel="predicted", ylabel="actual", xticks=CLASSES, yticks=CLASSES, title="Of 1,000 of each digit")
    figure.savefig(path, bbox_inches="tight", dpi=120)
    plt.close(figure)


def draw_calibration(result: Result, strokes: tuple[np.ndarray, np.ndarray], path: Path) -> None:
    """Plot how often the default learner is right over how sure it says it is."""
    figure, axes = plt.subplots(figsize=(5, 5))
    sets = {
        "digits, while learning": (np.vstack(result.shares), np.concatenate(result.labels)),
        "pen strokes, never taught": (np.vstack(result.stroke_shares), np.tile(strokes[1], len(result.stroke_shares))),
    }
    for title, (shares, labels) in sets.items():
        sure, right = shares.max(axis=1), shares.argmax(axis=1) == labels
        place = np.minimum((sure * 10).astype(int), 9)
        bins = [k for k in range(10) if (place == k).sum() >= 20]
        axes.plot([sure[place == k].mean() for k in bins], [right[place == k].mean() for k in bins], "o-", label=title)
    axes.plot([0, 1], [0, 1], ":", color="grey")
    axes.set(xlabel="stated probability", ylabel="share that is right", title="Calibration of the default")
    axes.legend()
    figure.savefig(path, bbox_inches="tight", dpi=120)
    plt.close(figure)


def table(figures: dict[str, dict]) -> str:
    """Return the results as a markdown table."""
    lines = [
        "| learner | digits, prequential | pen strokes, never taught | samples/s | log loss | calibration | shuffles |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in figures.items():
        lines.append(
            f"| {CONTENDERS[name].title} | {row['mean']:.4f} ± {row['sd']:.4f} | {row['strokes_mean']:.3f} ± "
            f"{row['strokes_sd']:.3f} | {row['samples_per_s']:,} | {row.get('log_loss', '')} | "
            f"{row.get('calibration_error', '')} | {row['shuffles']} |"
        )
    return "\n".join(lines)


@click.command()
@click.option("--shuffles", default=20, show_default=True, help="Shuffles of the digits for the fast learners.")
@click.option("--few", default=3, show_default=True, help="Shuffles for the slow ones.")
@click.option("--only", multiple=True, type=click.Choice(list(CONTENDERS)), help="Leave out the others; no file.")
def main(shuffles: int, few: int, only: tuple[str, ...]) -> None:
    """Measure every learner; print the table, write accuracy.json and the plots."""
    X_strokes, y_strokes, _ = stroke_set(n=2000)
    strokes = X_strokes.astype(np.float64), y_strokes
    chosen = {name: contender for name, contender in CONTENDERS.items() if name in only or not only}
    turns = [(name, turn) for name, one in chosen.items() for turn in range(few if one.few else shuffles)]
    results = {name: Result() for name in chosen}
    for name, turn in (progress := tqdm(turns, unit="pass")):
        progress.set_description(name)
        run(chosen[name], turn, strokes, results[name])
    figures = {name: result.summary() for name, result in results.items()}
    print(table(figures))
    if not only:
        (HERE / "accuracy.json").write_text(json.dumps(figures, indent=2) + "\n")
        DOCS.mkdir(exist_ok=True)
        draw_curves(results, DOCS / "accuracy_curves.png")
        draw_confusion(results["default"], DOCS / "accuracy_confusion.png")
        draw_calibration(results["default"], strokes, DOCS / "accuracy_calibration.png")


if __name__ == "__main__":
    main()

"""How often each learner is right before it learns: prequential accuracy on the digits, and on pen strokes after them.

    make accuracy

Each learner goes once through the 1,797 digits from a cold start, each sample predicted and then learned alone, in
shuffles that are the same for all. Then it reads pen strokes that it has never seen and was not taught. Samples/s
are those of one core (processor time of predicting and learning). Figures go into accuracy.json, learner by learner;
the plots in docs/ are drawn from there.
"""

import json
import pickle
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import click
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.kernel_approximation import RBFSampler
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import confusion_matrix, log_loss
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MinMaxScaler, PolynomialFeatures
from tqdm import tqdm

from benchmarks.loop import report
from benchmarks.loop.drawings import stroke_set
from learners.digit_learner import distorted
from learners.learner import EstimatorLearner, Learner, new_learner
from settings import HERE

matplotlib.use("Agg")

FIGURES = HERE / "benchmarks" / "results" / "accuracy.json"
DOCS = HERE / "docs"
CURVE = 100  # samples per point of the curves
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
    model = SGDClassifier(
        loss="log_loss", alpha=1e-6, learning_rate="constant", eta0=2.0, shuffle=False
    )
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
    "default": Contender(
        report.LEARNERS["default"], named("default"), few=False, probabilities=True
    ),
    "default_10": Contender(report.LEARNERS["default_10"], named("default"), batch=10),
    "sgd": Contender(report.LEARNERS["sgd"], named("sgd"), few=False, probabilities=True),
    "river_logistic": Contender(
        report.LEARNERS["river_logistic"], named("examples.river_digits:logistic")
    ),
    "river_softmax": Contender(
        report.LEARNERS["river_softmax"], named("examples.river_digits:softmax")
    ),
    "river_tree": Contender(report.LEARNERS["river_tree"], named("examples.river_digits:tree")),
    "river_knn": Contender(report.LEARNERS["river_knn"], named("examples.river_digits:neighbours")),
    "products": Contender(
        report.LEARNERS["products"], lambda: EstimatorLearner(products(True), CLASSES)
    ),
    "products_copies": Contender(
        report.LEARNERS["products_copies"], lambda: Rehearsing(products(False))
    ),
    "fourier_copies": Contender(report.LEARNERS["fourier_copies"], lambda: Rehearsing(waves())),
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
    stroke_labels: list[np.ndarray] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Return the figures as they go into accuracy.json."""
        figures: dict[str, Any] = {
            "mean": _mean(self.accuracy),
            "sd": _deviation(self.accuracy),
            "shuffles": len(self.accuracy),
            "samples_per_s": round(float(np.mean(self.rate))),
            "strokes_mean": _mean(self.strokes),
            "strokes_sd": _deviation(self.strokes),
        }
        right = np.mean([p == y for p, y in zip(self.predicted, self.labels, strict=True)], axis=0)
        figures["curve"] = [
            _mean(right[end - CURVE : end]) for end in range(CURVE, len(right) + 1, CURVE)
        ]
        if self.shares:
            shares, labels = np.vstack(self.shares), np.concatenate(self.labels)
            figures["log_loss"] = round(float(log_loss(labels, shares, labels=CLASSES)), 4)
            figures["calibration"] = calibration(shares, labels)
            figures["calibration_strokes"] = calibration(
                np.vstack(self.stroke_shares), np.concatenate(self.stroke_labels)
            )
            predicted = np.concatenate(self.predicted)
            figures["confusion"] = confusion_matrix(labels, predicted, labels=[*CLASSES, -1])[
                :10, :10
            ].tolist()
        return figures


def _mean(values: Sequence[float] | np.ndarray) -> float:
    return round(float(np.mean(values)), 4)


def _deviation(values: list[float]) -> float:
    return round(float(np.std(values, ddof=1)), 4) if len(values) > 1 else 0.0


def run(
    contender: Contender, shuffle: int, strokes: tuple[np.ndarray, np.ndarray], result: Result
) -> None:
    """Go once through the digits from a cold start, then read the strokes; what came of it goes into the result."""
    learner, order = contender.make(), np.random.default_rng(shuffle).permutation(len(X))
    predicted, shares, seconds = np.full(len(X), -1), np.full((len(X), len(CLASSES)), 0.1), 0.0
    for start in range(0, len(X), contender.batch):
        here, rows = slice(start, start + contender.batch), order[start : start + contender.batch]
        if start and contender.probabilities:
            shares[here] = served(learner).predict_proba(X[rows])
        began = time.process_time()
        guess = learner.predict(X[rows])
        learner.learn(X[rows], Y[rows])
        seconds += time.process_time() - began
        if guess is not None:
            predicted[here] = guess
    result.accuracy.append(float((predicted == Y[order]).mean()))
    result.strokes.append(float((served(learner).predict(strokes[0]) == strokes[1]).mean()))
    result.rate.append(len(X) / seconds)
    result.labels.append(Y[order])
    result.predicted.append(predicted)
    if contender.probabilities:
        result.shares.append(
            np.clip(shares, 1e-6, 1)
        )  # sure and wrong would be an endless log loss
        result.shares[-1] /= result.shares[-1].sum(axis=1, keepdims=True)
        result.stroke_shares.append(served(learner).predict_proba(strokes[0]))
        result.stroke_labels.append(strokes[1])


def served(learner: Learner) -> Any:
    """Return the estimator that a reader of the store would have."""
    return pickle.loads(learner.model_bytes())  # noqa: S301 - made a line before


def calibration(shares: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Return, in tenths of the stated probability, its mean, the share that is right, and how many there are.

    ``error`` is the expected calibration error, the mean distance of the first two.
    """
    sure, right = shares.max(axis=1), shares.argmax(axis=1) == labels
    place = np.minimum((sure * 10).astype(int), 9)
    bins = [k for k in range(10) if (place == k).any()]
    stated, found = (
        [_mean(sure[place == k]) for k in bins],
        [_mean(right[place == k]) for k in bins],
    )
    counts = [int((place == k).sum()) for k in bins]
    error = np.average(np.abs(np.subtract(stated, found)), weights=counts)
    return {"error": round(float(error), 4), "stated": stated, "right": found, "samples": counts}


def draw_curves(figures: dict[str, dict]) -> plt.Figure:
    """Plot the share of the last 100 samples that was right over samples seen."""
    figure, axes = plt.subplots(figsize=(8, 4.5))
    for name, row in figures.items():
        seen = CURVE * np.arange(1, len(row["curve"]) + 1)
        axes.plot(
            seen,
            row["curve"],
            label=CONTENDERS[name].title.strip("*"),
            linewidth=2.5 if name == "default" else 1,
        )
    axes.set(xlabel="samples seen", ylabel=f"right of the last {CURVE}", ylim=(0.5, 1))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="lower right")
    return figure


def draw_confusion(counts: list[list[int]]) -> plt.Figure:
    """Plot what each digit was taken for, in thousandths of that digit."""
    shares = 1000 * np.array(counts) / np.sum(counts, axis=1, keepdims=True)
    figure, axes = plt.subplots(figsize=(5, 5))
    axes.imshow(shares - np.diag(np.diag(shares)), cmap="Reds")
    for a in CLASSES:
        for b in CLASSES:
            axes.text(b, a, f"{shares[a, b]:.0f}", ha="center", va="center", fontsize=8)
    axes.set(
        xlabel="predicted",
        ylabel="actual",
        xticks=CLASSES,
        yticks=CLASSES,
        title="Of 1,000 of each digit",
    )
    return figure


def draw_calibration(row: dict) -> plt.Figure:
    """Plot how often a learner is right over how sure it says it is."""
    figure, axes = plt.subplots(figsize=(5, 5))
    for title, key in (
        ("digits, while learning", "calibration"),
        ("pen strokes, never taught", "calibration_strokes"),
    ):
        axes.plot(row[key]["stated"], row[key]["right"], "o-", label=title)
    axes.plot([0, 1], [0, 1], ":", color="grey")
    axes.set(xlabel="stated probability", ylabel="share that is right")
    axes.legend()
    return figure


@click.command()
@click.option(
    "--shuffles",
    default=20,
    show_default=True,
    help="Shuffles of the digits for the project's learners.",
)
@click.option("--few", default=3, show_default=True, help="Shuffles for the others.")
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(list(CONTENDERS)),
    help="Measure these, keep the others' rows.",
)
def main(shuffles: int, few: int, only: tuple[str, ...]) -> None:
    """Measure the learners, print the table, write accuracy.json and the plots."""
    X_strokes, y_strokes, _ = stroke_set(n=2000)
    figures = json.loads(FIGURES.read_text()) if only and FIGURES.exists() else {}
    chosen = {name: contender for name, contender in CONTENDERS.items() if name in only or not only}
    progress = tqdm(total=sum(few if one.few else shuffles for one in chosen.values()), unit="pass")
    for name, contender in chosen.items():
        progress.set_description(name)
        result = Result()
        for shuffle in range(few if contender.few else shuffles):
            run(contender, shuffle, (X_strokes.astype(np.float64), y_strokes), result)
            progress.update()
        figures[name] = result.summary()
        FIGURES.write_text(
            json.dumps({key: figures[key] for key in CONTENDERS if key in figures}) + "\n"
        )
    progress.close()
    figures = json.loads(FIGURES.read_text())
    print(report.accuracy(figures))
    DOCS.mkdir(exist_ok=True)
    plots = {"curves": draw_curves(figures)}
    if "default" in figures:
        plots["confusion"] = draw_confusion(figures["default"]["confusion"])
        plots["calibration"] = draw_calibration(figures["default"])
    for title, plot in plots.items():
        plot.savefig(DOCS / f"accuracy-{title}.png", bbox_inches="tight", dpi=110)


if __name__ == "__main__":
    main()

"""What serves predictions on 8x8 digits: a softmax regression on features that are fixed and made for pen strokes.

The features are the strokes' directions, counted place by place, and the ink itself, both of unit length; random
Fourier features of these (Rahimi and Recht, 2007) let a linear model draw curved borders. Only the regression's
weights are learned and stored, 20 KB: the rest is the same in every process.
"""

from functools import lru_cache

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin

SIDE = 8  # pixels
N_PIXELS = SIDE * SIDE
WHITE = 16.0  # the greatest pixel value
N_DIRECTIONS = 8
N_PLACES = 5  # along each axis; strokes are counted at 5 x 5 places that overlap
N_WAVES = 512
N_WEIGHTS = N_WAVES + 1  # and the intercept

_EDGE = SIDE + 2  # gradients reach one pixel beyond the picture
_INK = 0.7  # length of the ink's part beside the directions' 1
_GAMMA = 2.0  # of the radial basis function that the waves stand for
_ROWS = 128  # worked on at once, so that they stay in the processor's cache


class DigitClassifier(ClassifierMixin, BaseEstimator):
    """Reads 8x8 digits; ``weights_`` float32 (N_WEIGHTS, n_classes), the last row the intercept."""

    def __init__(self, classes: np.ndarray, weights: np.ndarray):
        self.classes = classes
        self.weights = weights

    def __setstate__(self, state: dict) -> None:
        """Take over what was pickled; raises ``ValueError`` where another version of this module pickled it."""
        super().__setstate__(state)
        shape = np.shape(state.get("weights", ()))
        if shape != (N_WEIGHTS, len(state.get("classes", ()))):
            raise ValueError(
                f"the default learner of another version of this project: its weights have the shape {shape}"
            )

    @property
    def classes_(self) -> np.ndarray:
        """Return the labels in the order of the probabilities."""
        return self.classes

    @property
    def n_features_in_(self) -> int:
        """Return the number of pixels, 64."""
        return N_PIXELS

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Return probabilities, float32 (n, n_classes), for pixels 0..16, (n, 64)."""
        return softmax(scores(features(X), self.weights))

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Return one label per row of X."""
        return self.classes[np.argmax(scores(features(X), self.weights), axis=1)]


def scores(F: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the linear scores, float32 (n, n_classes), of features (n, N_WAVES)."""
    return F @ weights[:-1] + weights[-1]


def softmax(z: np.ndarray) -> np.ndarray:
    """Return probabilities for scores, row by row."""
    shares = np.exp(z - z.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    return shares


def features(X: np.ndarray) -> np.ndarray:
    """Return the features, float32 (n, N_WAVES), of pixels 0..16, (n, 64)."""
    X = np.asarray(X, dtype=np.float32)
    if X.ndim != 2 or X.shape[1] != N_PIXELS:
        raise ValueError(
            f"A digit has {N_PIXELS} pixels, row by row; this is an array of shape {X.shape}."
        )
    waves, phases = _waves()
    F = np.empty((len(X), N_WAVES), dtype=np.float32)
    for start in range(0, len(X), _ROWS):
        rows = slice(start, start + _ROWS)
        np.matmul(_strokes(X[rows]), waves, out=F[rows])
    F += phases
    np.cos(F, out=F)
    F *= np.float32(np.sqrt(2 / N_WAVES))
    return F


def _strokes(X: np.ndarray) -> np.ndarray:
    """Return where strokes of which direction are, and the ink, float32 (n, 8 * 5 * 5 + 64)."""
    n = len(X)
    padded = np.zeros((n, SIDE + 4, SIDE + 4), dtype=np.float32)
    padded[:, 2:-2, 2:-2] = X.reshape(n, SIDE, SIDE) / np.float32(WHITE)
    right = padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]
    down = padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]
    slopes = np.empty((n, N_DIRECTIONS, _EDGE, _EDGE), dtype=np.float32)
    half = N_DIRECTIONS // 2
    for k, angle in enumerate(np.arange(half) * (np.pi / half)):
        slope = np.float32(np.cos(angle)) * right + np.float32(np.sin(angle)) * down
        np.maximum(slope, 0, out=slopes[:, k])
        np.maximum(-slope, 0, out=slopes[:, k + half])
    directions = np.sqrt(slopes.reshape(n * N_DIRECTIONS, _EDGE * _EDGE) @ _places()).reshape(n, -1)
    return np.hstack([_unit(directions), _unit(X) * np.float32(_INK)])


def _unit(X: np.ndarray) -> np.ndarray:
    return X / (np.sqrt(np.einsum("ij,ij->i", X, X))[:, None] + np.float32(1e-6))


@lru_cache(maxsize=1)
def _places() -> np.ndarray:
    """Return how much each pixel counts at each place, float32 (100, 25): a Gaussian 0.8 pixels wide."""
    middle = np.linspace(0.5, _EDGE - 1.5, N_PLACES)
    near = np.exp(-0.5 * ((np.arange(_EDGE)[:, None] - middle) / 0.8) ** 2)
    near /= near.sum(axis=0)
    return np.einsum("ia,jb->ijab", near, near).reshape(_EDGE * _EDGE, -1).astype(np.float32)


@lru_cache(maxsize=1)
def _waves() -> tuple[np.ndarray, np.ndarray]:
    """Return the random waves' directions (264, N_WAVES) and phases (N_WAVES,), the same in every process."""
    draw = np.random.RandomState(
        0
    )  # its stream is frozen: later numpy versions give the same numbers
    n = N_DIRECTIONS * N_PLACES**2 + N_PIXELS
    waves = draw.standard_normal((n, N_WAVES)) * np.sqrt(2 * _GAMMA)
    return waves.astype(np.float32), draw.uniform(0, 2 * np.pi, N_WAVES).astype(np.float32)

"""The default learner: softmax regression on stroke features that rehearses what it has seen, also distorted.

Each new sample is learned together with samples from memory, half of them shifted, turned, slanted and stretched as
another hand would have written them. How many depends on the size of the batch alone: a stream that comes faster comes
in larger batches, which rehearse less per sample, and the same batches give the same bits.
"""

import pickle

import numpy as np

from learners.digit_model import (
    N_PIXELS,
    N_WEIGHTS,
    SIDE,
    DigitClassifier,
    features,
    scores,
    softmax,
)
from learners.repeatable import dumps, one_thread

MEMORY = 4096  # different samples; the data set has 1,797, so there is room for 2,299 taught drawings beside it
REHEARSED = 20  # samples from memory per new one
REHEARSED_AT_MOST = 200  # per batch; also how many of a batch go into memory
STEPS = 10  # per batch, where it has so many samples
LARGEST_STEP = 64  # new samples per step
EARLY, EARLY_ROUNDS = 400, 4  # so many first samples are gone through so often
RATE = 0.03  # Adam's step size
MOMENTUM, SPREAD = 0.9, 0.999  # Adam's decay of the gradient's mean and mean square
AVERAGED = 0.99  # decay of the average of the weights, which serves

# How far a rehearsed sample may be distorted, each drawn evenly between minus and plus this.
SHIFT = 0.8  # pixels
TURN = 0.18  # radians
SLANT = 0.25  # pixels per pixel
STRETCH = 0.18  # logarithm of the factor, each axis for itself


class DigitLearner:
    """Learns 8x8 digits, pixels whole numbers 0..16; see the module for how."""

    def __init__(self, classes: np.ndarray):
        self.classes = classes
        shape = (N_WEIGHTS, len(classes))
        self.seen, self.steps, self.slot = (
            0,
            0,
            0,
        )  # samples learned, steps made, where memory is written next
        self.weights, self.mean, self.square = (np.zeros(shape, np.float32) for _ in range(3))
        self.averaged = np.zeros(shape, np.float32)
        # Pixels, and the label's place in classes plus 1, which for more than 255 classes takes two bytes.
        self.memory = np.zeros((MEMORY, N_PIXELS + 1), np.min_scalar_type(len(classes)))
        self._known: dict[bytes, int] = {}
        self._last: tuple[np.ndarray, np.ndarray] | None = None

    @classmethod
    def load(cls, model: bytes, state: bytes) -> "DigitLearner":
        """Return the learner whose bytes these are; raises ``ValueError`` where they don't belong together."""
        served = pickle.loads(model)  # noqa: S301  the caller has checked where the bytes come from
        learner = cls(served.classes_)
        learner.averaged = served.weights.copy()
        if len(state) != len(learner.state_bytes()):
            raise ValueError(
                f"The state has {len(state)} bytes, this learner's has {len(learner.state_bytes())}."
            )
        parts = np.split(
            np.frombuffer(state, np.uint8),
            np.cumsum([part.nbytes for part in learner._state()])[:-1],
        )
        learner.seen, learner.steps, learner.slot = parts[0].view(np.int64).tolist()
        for array, part in zip(learner._state()[1:], parts[1:], strict=True):
            array[:] = part.view(array.dtype).reshape(array.shape)
        learner._known = {row.tobytes(): i for i, row in enumerate(learner.memory) if row[-1]}
        return learner

    def predict(self, X: np.ndarray) -> np.ndarray | None:
        """Return one label per row of X; None before the first sample was learned."""
        if not self.seen:
            return None
        with one_thread():
            return self.classes[np.argmax(scores(self._features(X), self.averaged), axis=1)]

    def learn(self, X: np.ndarray, y: np.ndarray) -> None:
        """Learn one mini-batch, in stream order; an empty one changes nothing."""
        if len(y):
            with one_thread():
                self._learn(X, y)

    def _learn(self, X: np.ndarray, y: np.ndarray) -> None:
        n = len(y)
        labels = np.searchsorted(self.classes, y)
        self._remember(X, labels)
        rounds = EARLY_ROUNDS if self.seen < EARLY else 1
        n_steps = max(min(n, STEPS), -(-n // LARGEST_STEP))
        rehearsed, rehearsed_labels = self._rehearsed(
            rounds * min(REHEARSED * n, REHEARSED_AT_MOST)
        )
        new = np.array_split(np.arange(n), n_steps) * rounds
        old = np.array_split(np.arange(len(rehearsed)), n_steps * rounds)
        F = self._features(X)
        for i, j in zip(new, old, strict=True):
            self._step(
                np.vstack([F[i], rehearsed[j]]), np.concatenate([labels[i], rehearsed_labels[j]])
            )
        self.seen += n

    def model_bytes(self) -> bytes:
        """Return the pickled ``DigitClassifier``."""
        return dumps(DigitClassifier(self.classes, self.averaged))

    def state_bytes(self) -> bytes:
        """Return counters, weights, Adam's moments and the memory, always at the same places."""
        return b"".join(part.tobytes() for part in self._state())

    def _state(self) -> list[np.ndarray]:
        counters = np.array([self.seen, self.steps, self.slot], np.int64)
        return [counters, self.weights, self.mean, self.square, self.memory]

    def _features(self, X: np.ndarray) -> np.ndarray:
        """Return the features of X, from the last call where X is the same: a batch is predicted, then learned."""
        if self._last is None or not np.array_equal(self._last[0], X):
            self._last = X.copy(), features(X)
        return self._last[1]

    def _remember(self, X: np.ndarray, labels: np.ndarray) -> None:
        """Put samples that memory doesn't hold in place of its oldest, of a large batch some, evenly spaced."""
        some = np.unique(np.linspace(0, len(X) - 1, min(len(X), REHEARSED_AT_MOST)).astype(int))
        rows = np.column_stack([np.clip(np.rint(X[some]), 0, 255), labels[some] + 1]).astype(
            self.memory.dtype
        )
        for row in rows:
            key = row.tobytes()
            if key not in self._known:
                self._known.pop(self.memory[self.slot].tobytes(), None)
                self.memory[self.slot] = row
                self._known[key] = self.slot
                self.slot = (self.slot + 1) % MEMORY

    def _rehearsed(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Return features and labels of n samples drawn from memory, every other one distorted."""
        draw = np.random.default_rng(
            (0, self.seen)
        )  # what is drawn depends on the place in the stream alone
        rows = self.memory[draw.integers(0, len(self._known), n)]
        pixels = rows[:, :-1].astype(np.float32)
        pixels[::2] = distorted(pixels[::2], draw)
        return features(pixels), rows[:, -1].astype(np.int64) - 1

    def _step(self, F: np.ndarray, labels: np.ndarray) -> None:
        """Go one step of Adam (Kingma and Ba, 2015) down the log loss, and average the weights."""
        error = softmax(scores(F, self.weights))
        error[np.arange(len(labels)), labels] -= 1
        error /= np.float32(len(labels))
        gradient = np.vstack([F.T @ error, error.sum(axis=0)])
        self.steps += 1
        self.mean += np.float32(1 - MOMENTUM) * (gradient - self.mean)
        self.square += np.float32(1 - SPREAD) * (gradient * gradient - self.square)
        rate = RATE * np.sqrt(1 - SPREAD**self.steps) / (1 - MOMENTUM**self.steps)
        self.weights -= np.float32(rate) * self.mean / (np.sqrt(self.square) + np.float32(1e-7))
        keep = min(
            AVERAGED, self.steps / (self.steps + 10)
        )  # an average of few weights follows them closely
        self.averaged += np.float32(1 - keep) * (self.weights - self.averaged)


def distorted(pixels: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Return digits, float32 (n, 64), each shifted, turned, slanted and stretched about its middle by chance."""
    n = len(pixels)
    turn, slant = draw.uniform(-TURN, TURN, n), draw.uniform(-SLANT, SLANT, n)
    wide, high = np.exp(draw.uniform(-STRETCH, STRETCH, (2, n)))
    shift = draw.uniform(-SHIFT, SHIFT, (2, n, 1))
    cos, sin = np.cos(turn), np.sin(turn)
    y, x = (np.indices((SIDE, SIDE)) - (SIDE - 1) / 2).reshape(2, 1, N_PIXELS)
    # Where each pixel's value is looked up, in a picture with an empty border of one pixel.
    left = (
        (cos * wide)[:, None] * x
        + ((cos * slant - sin) * high)[:, None] * y
        + shift[0]
        + (SIDE + 1) / 2
    )
    top = (
        (sin * wide)[:, None] * x
        + ((sin * slant + cos) * high)[:, None] * y
        + shift[1]
        + (SIDE + 1) / 2
    )
    return _looked_up(pixels, left.clip(0, SIDE + 0.999), top.clip(0, SIDE + 0.999))


def _looked_up(pixels: np.ndarray, left: np.ndarray, top: np.ndarray) -> np.ndarray:
    """Return the pictures' values at places between pixels, bilinear."""
    n, side = len(pixels), SIDE + 2
    bordered = np.zeros((n, side, side), np.float32)
    bordered[:, 1:-1, 1:-1] = pixels.reshape(n, SIDE, SIDE)
    flat = bordered.ravel()
    column, row = left.astype(np.int64), top.astype(np.int64)
    right, down = (left - column).astype(np.float32), (top - row).astype(np.float32)
    at = row * side + column + np.arange(n)[:, None] * side * side
    upper = flat[at] * (1 - right) + flat[at + 1] * right
    lower = flat[at + side] * (1 - right) + flat[at + side + 1] * right
    return upper * (1 - down) + lower * down

"""v5, the project's own model: a day's forecast as a product of profiles and learned factors.

The wide part is a mixture of profiles times exp of last year's changes, growth and holiday. The
deep part chooses the mixture and corrects each hour. As both are one product in units of the
key's level, the untrained model is a fair forecast already.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from forecast.calendar_us import NAMES
from forecast.features import HORIZON, PROFILES, Examples, Features
from forecast.series import KEYS, InputError
from forecast.training import Arrays, Trainer, keras

layers, ops = keras.layers, keras.ops

UNITS = 48
RATE = 3e-3
EPOCHS = 10
BATCH = 1024
FIRST = 120  # the first day that is learned; earlier ones have too little history before them
LEAST = 8  # batches an epoch; a short history is learned at several horizons of each day
WIDTHS = (6, 4, 8, 4, 4)  # of the embeddings of key, region, station, network and holiday


@keras.saving.register_keras_serializable("forecast")
class Product(keras.layers.Layer):
    """Mixture of profiles times exp(weighted log changes + correction), plus offset."""

    def build(self, *_: object) -> None:
        """Create the wide part's weights: how far last year, growth and holidays are followed."""
        self.changes = self.add_weight(
            shape=(4,), initializer=keras.initializers.Constant(0.4), name="changes"
        )
        self.holiday = self.add_weight(
            shape=(24,), initializer=keras.initializers.Constant(0.8), name="holiday"
        )

    def call(self, profiles, changes, holiday, logits, correction, offset):
        """Return the day in levels, (n, 24)."""
        shares = ops.softmax(ops.reshape(logits, (-1, len(PROFILES), 24)), axis=1)
        mixture = ops.sum(profiles * shares, axis=1)
        wide = ops.sum(changes * self.changes, axis=1, keepdims=True) + holiday * self.holiday
        return ops.relu(mixture * ops.exp(wide + correction) + offset * 0.1)


@dataclass(frozen=True)
class Vocabulary:
    """The names that a model knows, in the order of its embeddings.

    Any other name has the number after the last one's.
    """

    keys: tuple[str, ...]
    regions: tuple[str, ...]
    stations: tuple[str, ...]
    networks: tuple[str, ...]

    @staticmethod
    def columns(features: Features) -> list[list[str]]:
        """Return key, region, station and network of each key of a series."""
        region, network, name = (features.series.keys[column].tolist() for column in KEYS)
        station = [f"{n}/{s}" for n, s in zip(network, name, strict=True)]
        key = [f"{r}/{s}" for r, s in zip(region, station, strict=True)]
        return [key, region, station, network]

    @classmethod
    def of(cls, features: Features) -> "Vocabulary":
        """Return the names of a series."""
        return cls(*(tuple(sorted(set(column))) for column in cls.columns(features)))

    def ids(self, features: Features) -> np.ndarray:
        """Return the four numbers of each key of a series, int32 (keys, 4)."""
        ids = []
        for names, column in zip(self.__dict__.values(), self.columns(features), strict=True):
            number = {name: i for i, name in enumerate(names)}
            ids.append([number.get(name, len(number)) for name in column])
        return np.array(ids, np.int32).T


def network(vocabulary: Vocabulary, units: int = UNITS) -> keras.Model:
    """Return an untrained model for these names, from the arrays of ``Rows`` to (n, 24)."""
    sizes = [len(names) + 1 for names in vocabulary.__dict__.values()] + [len(NAMES)]
    shapes = {"profiles": (len(PROFILES), 24), "changes": (4,), "holiday": (24,), "dense": (24,)}
    inputs = {name: keras.Input(shape, name=name) for name, shape in shapes.items()}
    inputs["ids"] = keras.Input((5,), dtype="int32", name="ids")
    small = keras.initializers.RandomNormal(stddev=0.05)
    parts = []
    for i, (size, width) in enumerate(zip(sizes, WIDTHS, strict=True)):
        embedding = layers.Embedding(size, width, embeddings_initializer=small.clone())
        parts.append(embedding(inputs["ids"][:, i]))
    x = layers.Concatenate()([*parts, inputs["dense"]])
    for depth in range(2):
        x = layers.Dense(units, activation="gelu", name=f"deep_{depth}")(x)
    # Zeros: before any training, the profiles have equal shares and nothing is corrected.
    deep = [
        layers.Dense(size, kernel_initializer="zeros", name=name)(x)
        for name, size in (("mixture", 24 * len(PROFILES)), ("correction", 24), ("offset", 24))
    ]
    wide = [inputs[name] for name in ("profiles", "changes", "holiday")]
    return keras.Model(inputs, Product()(*wide, *deep))


class V5:
    """One model with the names that it knows; ``seed`` draws the order of its training."""

    def __init__(self, vocabulary: Vocabulary, seed: int, trainer: Trainer) -> None:
        self.vocabulary = vocabulary
        self.seed = seed
        self.trainer = trainer

    @classmethod
    def untrained(cls, vocabulary: Vocabulary, seed: int = 0, units: int = UNITS) -> "V5":
        """Return a new model; the same seed gives the same one."""
        keras.utils.set_random_seed(seed)
        return cls(vocabulary, seed, Trainer(network(vocabulary, units)))

    @classmethod
    def stored(cls, vocabulary: Vocabulary, weights: list[np.ndarray], seed: int) -> "V5":
        """Return a model with these weights.

        The network is compiled once a process. Two models of one vocabulary therefore share the
        weights that were set last.
        """
        model = cls(vocabulary, seed, _compiled(vocabulary))
        model.set_weights(weights)
        return model

    def inputs(
        self, features: Features, key: np.ndarray, target: np.ndarray, horizon: np.ndarray
    ) -> Arrays:
        """Return what the network reads of these rows."""
        arrays = features.rows(key, target, horizon).inputs()
        arrays["ids"] = np.concatenate(
            [self.vocabulary.ids(features)[key], arrays["ids"][:, 4:]], axis=1
        )
        return arrays

    def learn(
        self,
        features: Features,
        examples: Examples,
        epochs: int = EPOCHS,
        batch: int = BATCH,
        rate: float = RATE,
    ) -> "V5":
        """Train on the examples, in place."""
        self.trainer.train(
            self.inputs(features, examples.key, examples.target, examples.horizon),
            examples.day,
            examples.weight,
            epochs,
            batch,
            rate,
            self.seed,
        )
        return self

    def forecast(self, features: Features, day: int, days: int = HORIZON) -> np.ndarray:
        """Return counts, float32 (keys, days, 24)."""
        key, target, horizon = features.ahead(day, days)
        shape = self.trainer.predict(self.inputs(features, key, target, horizon))
        level = np.nan_to_num(features.level_28[:, day - 1])
        return shape.reshape(-1, days, 24) * level[:, None, None]

    def error(self, inputs: Arrays, examples: Examples) -> float:
        """Return the training's loss on examples: the weighted mean absolute error in levels.

        inputs: those of the examples.
        """
        day = self.trainer.predict(inputs)
        seen = ~np.isnan(examples.day)
        actual = np.where(seen, examples.day, 0)
        error = np.abs(actual - day, where=seen, out=np.zeros_like(day)).mean(axis=1)
        return float((error * examples.weight).mean())

    def weights(self) -> list[np.ndarray]:
        """Return copies of the weights."""
        return [np.asarray(variable.value) for variable in self.trainer.model.trainable_variables]

    def set_weights(self, weights: list[np.ndarray]) -> None:
        """Set the weights, in the order of ``weights``."""
        for variable, value in zip(self.trainer.model.trainable_variables, weights, strict=True):
            variable.assign(value)


@lru_cache(maxsize=1)
def _compiled(vocabulary: Vocabulary) -> Trainer:
    """Return the trainer of this vocabulary, whose programs a process compiles once."""
    return Trainer(network(vocabulary))


def cold_start(features: Features, seed: int = 0) -> V5:
    """Return a model trained on the whole history; raises ``InputError`` where it is too short."""
    examples = lessons(features, seed)
    if not len(examples.key):
        raise InputError(
            f"The history has {features.days} days; a first training needs more than {FIRST}, "
            "and keys with counts on more than 28 of them. Bring a longer history."
        )
    return V5.untrained(Vocabulary.of(features), seed).learn(features, examples)


def lessons(features: Features, seed: int = 0) -> Examples:
    """Return a full training's examples: each key's days, in a short history several times."""
    return features.examples(FIRST, features.days, seed, copies=_copies(features))


def lesson_rows(features: Features) -> int:
    """Return the rows of a full training's epoch, with those of keys that are still too new."""
    return _copies(features) * len(features.key) * max(features.days - FIRST, 1)


def _copies(features: Features) -> int:
    """Return how often each key's day is learned in an epoch, each time at another horizon."""
    key_days = len(features.key) * max(features.days - FIRST, 1)
    return -(-LEAST * BATCH // key_days)  # rounded up

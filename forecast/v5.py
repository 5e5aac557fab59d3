"""v5, ours: a direct forecast of a key's day from smoothed profiles, in units of the key's level.

Wide: a mixture of profiles times exp of last year's changes, growth and holiday. Deep: which profiles to trust, and
what to correct hour by hour. Both are one product, so that it is a fair forecast before any training.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from forecast.calendar_us import NAMES
from forecast.features import HORIZON, PROFILES, Examples, Features
from forecast.series import KEYS, InputError
from forecast.training import Arrays, Trainer, keras

layers, ops = keras.layers, keras.ops

UNITS, RATE, EPOCHS, BATCH = 48, 3e-3, 10, 1024
FIRST = 120  # earlier days have too little history behind them
LEAST = 8  # batches an epoch: a short history is learned from more horizons of each day
WIDTHS = (6, 4, 8, 4, 4)  # of the embeddings of key, region, station, network and holiday


@keras.saving.register_keras_serializable("forecast")
class Product(keras.layers.Layer):
    """mixture of profiles x exp(weighted log changes + correction) + offset."""

    def build(self, *_: object) -> None:
        """Make the wide part's weights: how far last year, growth and holidays are believed."""
        self.changes = self.add_weight(
            shape=(4,), initializer=keras.initializers.Constant(0.4), name="changes"
        )
        self.holiday = self.add_weight(
            shape=(24,), initializer=keras.initializers.Constant(0.8), name="holiday"
        )

    def call(self, profiles, changes, holiday, logits, correction, offset):
        """Return the day in levels, (n, 24)."""
        mixture = ops.sum(
            profiles * ops.softmax(ops.reshape(logits, (-1, len(PROFILES), 24)), axis=1), axis=1
        )
        wide = ops.sum(changes * self.changes, axis=1, keepdims=True) + holiday * self.holiday
        return ops.relu(mixture * ops.exp(wide + correction) + offset * 0.1)


@dataclass(frozen=True)
class Vocabulary:
    """The names that a model knows, in the order of its embeddings; any other is the one after the last."""

    keys: tuple[str, ...]
    regions: tuple[str, ...]
    stations: tuple[str, ...]
    networks: tuple[str, ...]

    @staticmethod
    def columns(features: Features) -> list[list[str]]:
        """Return key, region, station and network of each key of a series."""
        region, network, station = (features.series.keys[name].tolist() for name in KEYS)
        station = [f"{n}/{s}" for n, s in zip(network, station, strict=True)]
        return [
            [f"{r}/{s}" for r, s in zip(region, station, strict=True)],
            region,
            station,
            network,
        ]

    @classmethod
    def of(cls, features: Features) -> "Vocabulary":
        """Return the names of a series."""
        return cls(*(tuple(sorted(set(column))) for column in cls.columns(features)))

    def ids(self, features: Features) -> np.ndarray:
        """Return the four numbers of each key of a series, int32 (keys, 4)."""
        places = [{name: i for i, name in enumerate(names)} for names in self.__dict__.values()]
        return np.array(
            [
                [place.get(name, len(place)) for name in column]
                for place, column in zip(places, self.columns(features), strict=True)
            ],
            np.int32,
        ).T


def network(vocabulary: Vocabulary, units: int = UNITS) -> keras.Model:
    """Return an untrained model for these names."""
    sizes = [len(names) + 1 for names in vocabulary.__dict__.values()] + [len(NAMES)]
    shapes = {"profiles": (len(PROFILES), 24), "changes": (4,), "holiday": (24,), "dense": (24,)}
    inputs = {name: keras.Input(shape, name=name) for name, shape in shapes.items()}
    inputs["ids"] = keras.Input((5,), dtype="int32", name="ids")
    small = keras.initializers.RandomNormal(stddev=0.05)
    parts = [
        layers.Embedding(size, width, embeddings_initializer=small.clone())(inputs["ids"][:, i])
        for i, (size, width) in enumerate(zip(sizes, WIDTHS, strict=True))
    ]
    x = layers.Concatenate()([*parts, inputs["dense"]])
    for depth in range(2):
        x = layers.Dense(units, activation="gelu", name=f"deep_{depth}")(x)
    logits, correction, offset = (
        layers.Dense(n, kernel_initializer="zeros", name=name)(x)
        for name, n in (("mixture", 24 * len(PROFILES)), ("correction", 24), ("offset", 24))
    )
    day = Product()(
        inputs["profiles"], inputs["changes"], inputs["holiday"], logits, correction, offset
    )
    return keras.Model(inputs, day)


class V5:
    """One model and the names it knows."""

    def __init__(self, vocabulary: Vocabulary, seed: int, trainer: Trainer) -> None:
        self.vocabulary, self.seed, self.trainer = vocabulary, seed, trainer

    @classmethod
    def untrained(cls, vocabulary: Vocabulary, seed: int = 0, units: int = UNITS) -> "V5":
        """Return a new model; the same seed gives the same one."""
        keras.utils.set_random_seed(seed)
        return cls(vocabulary, seed, Trainer(network(vocabulary, units)))

    @classmethod
    def stored(cls, vocabulary: Vocabulary, weights: list[np.ndarray], seed: int) -> "V5":
        """Return a model with these weights. It is compiled once a process: two of one vocabulary share the weights
        that were put in last."""
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
        shape = self.trainer.predict(self.inputs(features, key, target, horizon)).reshape(
            -1, days, 24
        )
        return shape * np.nan_to_num(features.level_28[:, day - 1])[:, None, None]

    def error(self, inputs: Arrays, examples: Examples) -> float:
        """Return the loss on examples, of which these are the inputs: the weighted mean absolute error in levels."""
        day, seen = self.trainer.predict(inputs), ~np.isnan(examples.day)
        error = np.abs(
            np.where(seen, examples.day, 0) - day, where=seen, out=np.zeros_like(day)
        ).mean(axis=1)
        return float((error * examples.weight).mean())

    def weights(self) -> list[np.ndarray]:
        """Return copies of the weights."""
        return [np.asarray(variable.value) for variable in self.trainer.model.trainable_variables]

    def set_weights(self, weights: list[np.ndarray]) -> None:
        """Put weights back."""
        for variable, value in zip(self.trainer.model.trainable_variables, weights, strict=True):
            variable.assign(value)


@lru_cache(maxsize=1)
def _compiled(vocabulary: Vocabulary) -> Trainer:
    return Trainer(network(vocabulary))


def cold_start(features: Features, seed: int = 0) -> V5:
    """Return a model trained on everything that the features have seen.

    Raises ``InputError`` where that is too little to learn from.
    """
    examples = lessons(features, seed)
    if not len(examples.key):
        raise InputError(
            f"The history has {features.days} days; a first training needs more than {FIRST}, and keys "
            "that count for more than 28 of them. Bring a longer history."
        )
    return V5.untrained(Vocabulary.of(features), seed).learn(features, examples)


def lessons(features: Features, seed: int = 0) -> Examples:
    """Return the examples of a full training: each key and day once, in a short history several times."""
    return features.examples(FIRST, features.days, seed, copies=_copies(features))


def lesson_rows(features: Features) -> int:
    """Return how many rows a full training's epoch has, before keys that are too new are left out."""
    return _copies(features) * len(features.key) * max(features.days - FIRST, 1)


def _copies(features: Features) -> int:
    return -(-LEAST * BATCH // (len(features.key) * max(features.days - FIRST, 1)))

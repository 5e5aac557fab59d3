"""The article's models v1 to v4: Wide and Deep networks over a key's last 672 hours.

The wide part knows the key and the hour ahead; the deep part reads the last four weeks. The
output is 2,160 hours. The versions differ in how they read the history and in what they forecast.
The loss is the mean squared error of every hour ahead, in units of the key's level.
"""

from dataclasses import dataclass

import numpy as np

from forecast.calendar_us import DAYPARTS
from forecast.features import HORIZON, Features
from forecast.training import Arrays, Trainer, keras, masked_l2

layers, ops = keras.layers, keras.ops

HISTORY = 28  # days
AHEAD = HORIZON * 24
VALIDATION = 0.1  # of the origins, the newest ones: held out for early stopping


@dataclass(frozen=True)
class Version:
    """The differences between the versions.

    polyak: share of the old weights in the average, 0 without averaging.
    patience: epochs without a lower held-out error before training stops, 0 without stopping.
    """

    reads: str  # "lstm_672", "lstm_168" or "folded"
    residual: bool = False
    activation: str = "relu"
    polyak: float = 0.0
    patience: int = 0


VERSIONS = {
    "v1": Version("lstm_672"),
    "v2": Version("lstm_168"),
    "v3": Version("folded"),
    "v4": Version("folded", residual=True, activation="prelu", polyak=0.99, patience=2),
}


def deep(history, reads: str, units: int):
    """Return the deep part, from the history (n, 672) to (n, units)."""
    series = ops.expand_dims(history, -1)
    if reads == "lstm_672":
        return layers.LSTM(units)(series)
    if reads == "lstm_168":
        return layers.LSTM(units)(series[:, -168:])
    # Taps a week apart: each of the 168 hours reads itself in all four weeks, in four channels.
    weeks = layers.Conv1D(4, 4, dilation_rate=168, padding="valid", name="fold")(series)
    return layers.LSTM(units)(weeks)


def network(version: Version, keys: int, groups: tuple[int, int, int], units: int) -> keras.Model:
    """Return an untrained model.

    Its inputs are those of ``WideDeep.inputs``, its output is (n, 2160). groups: the numbers of
    regions, stations and networks.
    """
    inputs = {
        "ids": keras.Input((4,), dtype="int32", name="ids"),
        "calendar": keras.Input((9,), name="calendar"),
        "history": keras.Input((HISTORY * 24,), name="history"),
        "stable": keras.Input((168,), name="stable"),
        "hour": keras.Input((AHEAD,), dtype="int32", name="hour"),
    }
    names = [
        layers.Embedding(size, 4)(inputs["ids"][:, i]) for i, size in enumerate((keys, *groups))
    ]
    x = layers.Concatenate()(
        [*names, inputs["calendar"], deep(inputs["history"], version.reads, units)]
    )
    x = layers.Dense(units)(x)
    x = layers.PReLU()(x) if version.activation == "prelu" else layers.Activation("relu")(x)
    weekly, daily = layers.Dense(168)(x), layers.Dense(HORIZON)(x)
    # Wide: it reads the hour of the week and the daypart of an hour ahead, and no history.
    daypart = np.tile(DAYPARTS, HORIZON)
    wide = layers.Dense(5)(layers.Concatenate()(names))
    out = (
        ops.take_along_axis(weekly, inputs["hour"], axis=1)
        + ops.repeat(daily, 24, axis=1)
        + ops.take(wide, daypart, axis=1)
    )
    if version.residual:
        out = out + ops.take_along_axis(inputs["stable"], inputs["hour"], axis=1)
    return keras.Model(inputs, out)


class WideDeep:
    """One version of the article's models."""

    def __init__(
        self, version: str, units: int = 32, epochs: int = 6, batch: int = 64, rate: float = 2e-3
    ) -> None:
        self.version = VERSIONS[version]
        self.units = units
        self.epochs = epochs
        self.batch = batch
        self.rate = rate

    def inputs(self, features: Features, key: np.ndarray, day: np.ndarray) -> Arrays:
        """Return the network's inputs for forecasts of these keys from these days on.

        ids (n, 4), calendar of the first day (n, 9), history (n, 672), stable (n, 168): the
        history's median week, hour (n, 2160): the hour of that week of each hour ahead.
        """
        n = len(key)
        level = np.maximum(np.nan_to_num(features.level_28[key, day - 1]), 0.1)[:, None]
        days = day[:, None] - np.arange(HISTORY, 0, -1)
        back = features.series.counts[key[:, None], days].reshape(n, -1)
        # The first of the 168 hours has the weekday of the first day ahead.
        weeks = (back / level).reshape(n, 4, 168)
        first_day = [
            np.eye(7)[features.weekday[day]],
            np.log(level) / 5,
            features.waves[day][:, :1],
        ]
        calendar = np.concatenate(first_day, axis=1)
        ids = [key, features.region[key], features.station[key], features.network[key]]
        return {
            "ids": np.stack(ids, 1).astype(np.int32),
            "calendar": calendar.astype(np.float32),
            "history": weeks.reshape(n, -1).astype(np.float32),
            "stable": np.median(weeks, axis=1).astype(np.float32),
            "hour": np.tile(np.arange(AHEAD, dtype=np.int32) % 168, (n, 1)),
        }

    def fit(self, features: Features, until: int, seed: int = 0, origins: int = 40) -> "WideDeep":
        """Learn every key from origins spread over the days before until."""
        keras.utils.set_random_seed(seed)
        first = np.unique(np.linspace(2 * HISTORY, until - HORIZON, origins).astype(int))
        key, day = _alive(features, first)
        inputs = self.inputs(features, key, day)
        target = _target(features, key, day)
        groups = (features.regions, features.stations, features.networks)
        model = network(self.version, len(features.key), groups, self.units)
        self.trainer = Trainer(model, masked_l2, self.version.polyak)
        held = np.zeros(len(day), bool)
        if self.version.patience:
            held = day > first[int(len(first) * (1 - VALIDATION)) - 1]
        stop = self._stopper({name: values[held] for name, values in inputs.items()}, target[held])
        self.trainer.train(
            {name: values[~held] for name, values in inputs.items()},
            target[~held],
            np.ones(int((~held).sum()), np.float32),
            self.epochs,
            self.batch,
            self.rate,
            seed,
            stop,
        )
        return self

    def _stopper(self, inputs: Arrays, target: np.ndarray):
        """Return the function that ends the training when the held-out error stays high.

        It waits as many epochs as the version's patience.
        """
        errors: list[float] = []

        def stop(epoch: int, loss: float) -> None:
            if not self.version.patience:
                return
            errors.append(float(np.nanmean((self.trainer.predict(inputs, 256) - target) ** 2)))
            if len(errors) - 1 - int(np.argmin(errors)) >= self.version.patience:
                raise StopIteration

        return stop

    def forecast(self, features: Features, day: int, days: int = HORIZON) -> np.ndarray:
        """Return counts, float32 (keys, days, 24)."""
        inputs = self.inputs(features, features.key, np.full(len(features.key), day))
        shape = self.trainer.predict(inputs, 256).reshape(-1, HORIZON, 24)
        level = np.nan_to_num(features.level_28[:, day - 1])[:, None, None]
        return shape[:, :days].clip(0) * level


def _alive(features: Features, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the pairs of key and first day ahead, by day, of the keys that have a level then."""
    day, key = (values.ravel() for values in np.meshgrid(first, features.key, indexing="ij"))
    alive = np.nan_to_num(features.level_28[key, day - 1]) > 0
    return key[alive], day[alive]


def _target(features: Features, key: np.ndarray, day: np.ndarray) -> np.ndarray:
    """Return the hours ahead in levels, float32 (n, 2160), NaN where not observed."""
    ahead = day[:, None] + np.arange(HORIZON)
    level = features.level_28[key, day - 1][:, None, None]
    seen = features.series.observed[key[:, None], ahead]
    in_levels = features.series.counts[key[:, None], ahead] / level
    return np.where(seen, in_levels, np.nan).reshape(len(key), -1).astype(np.float32)

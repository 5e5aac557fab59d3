"""The article's line: one Wide and Deep network over a key's last 672 hours, and the 2,160 hours after them.

Wide: what is known of the key and of the hour ahead. Deep: what the last four weeks say. v1 to v4 differ in how they
read the history and in what they forecast; each is a few lines over the same base. The loss is the mean squared error
of every hour ahead, in units of the key's level.
"""

from dataclasses import dataclass

import numpy as np

from forecast.calendar_us import DAYPARTS
from forecast.features import HORIZON, Features
from forecast.training import Arrays, Trainer, keras, masked_l2

layers, ops = keras.layers, keras.ops

HISTORY = 28  # days
AHEAD = HORIZON * 24
VALIDATION = 0.1  # of the origins, the newest: what early stopping looks at


@dataclass(frozen=True)
class Version:
    """What tells one version from another."""

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
    """Return what a version makes of the history, (n, 672) to (n, units)."""
    series = ops.expand_dims(history, -1)
    if reads == "lstm_672":
        return layers.LSTM(units)(series)
    if reads == "lstm_168":
        return layers.LSTM(units)(series[:, -168:])
    # Three weeks' gap between the taps: each of the 168 hours sees itself in all four weeks, in four channels.
    weeks = layers.Conv1D(4, 4, dilation_rate=168, padding="valid", name="fold")(series)
    return layers.LSTM(units)(weeks)


def network(version: Version, keys: int, groups: tuple[int, int, int], units: int) -> keras.Model:
    """Return an untrained model: ids (n, 4), first hour's calendar (n, 9) and history (n, 672) to (n, 2160)."""
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
    # Wide: an hour ahead is known by its hour of the week and by its daypart, whatever the history says.
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
    """One version of the article's line."""

    def __init__(
        self, version: str, units: int = 32, epochs: int = 6, batch: int = 64, rate: float = 2e-3
    ) -> None:
        self.version, self.units, self.epochs, self.batch, self.rate = (
            VERSIONS[version],
            units,
            epochs,
            batch,
            rate,
        )

    def inputs(self, features: Features, key: np.ndarray, day: np.ndarray) -> Arrays:
        """Return what the network reads for forecasts of these keys from these days on."""
        level = np.maximum(np.nan_to_num(features.level_28[key, day - 1]), 0.1)[:, None]
        back = features.series.counts[
            key[:, None], day[:, None] - np.arange(HISTORY, 0, -1)
        ].reshape(len(key), -1)
        weeks = (back / level).reshape(
            len(key), 4, 168
        )  # the first of the 168 has the weekday of the first day ahead
        calendar = np.concatenate(
            [np.eye(7)[features.weekday[day]], np.log(level) / 5, features.waves[day][:, :1]],
            axis=1,
        )
        return {
            "ids": np.stack(
                [key, *(g[key] for g in (features.region, features.station, features.network))], 1
            ).astype(np.int32),
            "calendar": calendar.astype(np.float32),
            "history": weeks.reshape(len(key), -1).astype(np.float32),
            "stable": np.median(weeks, axis=1).astype(np.float32),
            "hour": np.tile(np.arange(AHEAD, dtype=np.int32) % 168, (len(key), 1)),
        }

    def fit(self, features: Features, until: int, seed: int = 0, origins: int = 40) -> "WideDeep":
        """Learn from origins spread over the days before until, every key from each."""
        keras.utils.set_random_seed(seed)
        first = np.unique(np.linspace(2 * HISTORY, until - HORIZON, origins).astype(int))
        day, key = (v.ravel() for v in np.meshgrid(first, features.key, indexing="ij"))
        alive = np.nan_to_num(features.level_28[key, day - 1]) > 0
        day, key = day[alive], key[alive]
        ahead = day[:, None] + np.arange(HORIZON)
        level = features.level_28[key, day - 1][:, None, None]
        seen = features.series.observed[key[:, None], ahead]
        target = np.where(
            seen, features.series.counts[key[:, None], ahead] / level, np.nan
        ).reshape(len(key), -1)
        groups = (features.regions, features.stations, features.networks)
        self.trainer = Trainer(
            network(self.version, len(features.key), groups, self.units),
            masked_l2,
            self.version.polyak,
        )
        inputs, target = self.inputs(features, key, day), target.astype(np.float32)
        held = (
            day > first[int(len(first) * (1 - VALIDATION)) - 1]
            if self.version.patience
            else np.zeros(len(day), bool)
        )
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
        """Return what ends the training when the held-out error has not fallen for the version's patience."""
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
        shape = self.trainer.predict(
            self.inputs(features, features.key, np.full(len(features.key), day)), 256
        )
        level = np.nan_to_num(features.level_28[:, day - 1])[:, None, None]
        return shape.reshape(-1, HORIZON, 24)[:, :days].clip(0) * level

"""What the models see of a series: smoothed profiles, levels and calendar, each from the past of its origin only.

A row is (key, target day, horizon): horizon 1 is the day after the last known one, ``target - horizon``. Profiles
are in units of the key's level, so that a small station looks like a large one.
"""

from dataclasses import dataclass

import numpy as np

from forecast import calendar_us
from forecast.series import Series

HORIZON = 90
YEAR = 364  # 52 weeks, so that weekdays match
PROFILES = ("own_last", "own_middle", "own_4", "own_13", "station_4", "station_13", "station_year")
SETTLED = 28  # days after its first count until a key may move its station's index


@dataclass(frozen=True)
class Rows:
    """What a model reads of n rows.

    profiles: float32 (n, 7, 24) in levels, in the order of ``PROFILES``. changes: float32 (n, 4), the expected log
    change from the last four weeks to the target by station's and network's last year and by growth. holiday:
    float32 (n, 24), the log effect of the same holiday in earlier years. dense: float32 (n, 24). ids: int32 (n, 5):
    key, region, station, network, holiday. level: float32 (n,), counts an hour over the last four weeks.
    """

    profiles: np.ndarray
    changes: np.ndarray
    holiday: np.ndarray
    dense: np.ndarray
    ids: np.ndarray
    level: np.ndarray

    def inputs(self) -> dict[str, np.ndarray]:
        """Return the arrays by the names of the models' inputs."""
        return {
            "profiles": self.profiles,
            "changes": self.changes,
            "holiday": self.holiday,
            "dense": self.dense,
            "ids": self.ids,
        }


def trailing_sum(values: np.ndarray, step: int, n: int) -> np.ndarray:
    """Return, along axis 1, the sum of each entry and the n - 1 before it in steps; float32."""
    part, result, width, done = values.astype(np.float32), np.zeros(values.shape, np.float32), 1, 0
    while width <= n:  # by doubling: no long cumulative sum that would lose digits
        if n & width:
            shift = done * step
            result[:, shift:] += part[:, : max(part.shape[1] - shift, 0)]
            done += width
        grown = part.copy()
        grown[:, width * step :] += part[:, : -width * step]
        part, width = grown, width * 2
    return result


def ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """Return top / bottom as float32, NaN where bottom is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(bottom > 0, top / bottom, np.nan).astype(np.float32)


def pool(values: np.ndarray, group: np.ndarray, n: int) -> np.ndarray:
    """Return the sums over the keys of each group, (n, ...)."""
    order = np.argsort(group, kind="stable")
    return np.add.reduceat(values[order], np.searchsorted(group[order], np.arange(n)), axis=0)


def level(clean: np.ndarray, mask: np.ndarray, days: int) -> np.ndarray:
    """Return the mean hour of each key's last days, float32 (keys, days), NaN before anything was observed.

    Each hour of the day is averaged over the days that have it, so that a lost night does not raise the level.
    """
    by_hour = ratio(trailing_sum(clean, 1, days), trailing_sum(mask, 1, days))
    known = np.isfinite(by_hour)
    return ratio(np.where(known, by_hour, 0).sum(axis=2), known.sum(axis=2))


class Features:
    """The smoothed history of one series, from which the rows of any origin are gathered."""

    def __init__(self, series: Series) -> None:
        self.series, self.days = series, series.days
        span = self.days + HORIZON
        self.holiday_ids = calendar_us.holiday_ids(series.start, span)
        self.weekday = calendar_us.weekdays(series.start, span)
        phase = 2 * np.pi * calendar_us.day_of_year(series.start, span)
        self.waves = np.stack(
            [np.sin(phase), np.cos(phase), np.sin(2 * phase), np.cos(2 * phase)], 1
        )
        self.key = np.arange(len(series.keys))
        self.region, self.regions = series.codes("region")
        self.station, self.stations = series.codes("network", "station")
        self.network, self.networks = series.codes("network")
        positive = (series.counts > 0).any(axis=2)
        self.birth = np.where(positive.any(axis=1), positive.argmax(axis=1), self.days)
        born = np.arange(self.days) >= self.birth[:, None]
        seen = series.observed & born[:, :, None]
        mask = (seen & (self.holiday_ids[: self.days] == 0)[None, :, None]).astype(np.float32)
        clean = series.counts * mask
        self.level_28, self.level_7 = level(clean, mask, 28), level(clean, mask, 7)
        self._profiles(clean, mask)
        self._indices()
        self._holidays(seen)

    def _profiles(self, clean: np.ndarray, mask: np.ndarray) -> None:
        """Average the last weeks' same weekdays, each week in its own level: per key, and pooled over regions."""
        scale = np.maximum(np.nan_to_num(self.level_7), 1e-3)[:, :, None]
        shape = clean / scale
        own_4, own_13 = (
            ratio(trailing_sum(shape, 7, n), trailing_sum(mask, 7, n)) for n in (4, 13)
        )
        self.coverage = trailing_sum(mask.mean(axis=2), 7, 4) / 4
        top, bottom = (
            pool(values, self.station, self.stations) for values in (clean, mask * scale)
        )
        self.station_3, station_4, station_13 = (
            ratio(trailing_sum(top, 7, n), trailing_sum(bottom, 7, n)) for n in (3, 4, 13)
        )
        self.station_13 = np.nan_to_num(station_13)
        self.station_4 = np.where(np.isfinite(station_4), station_4, self.station_13)
        self.own_13 = np.where(np.isfinite(own_13), own_13, self.station_13[self.station])
        self.own_4 = np.where(np.isfinite(own_4), own_4, self.own_13)
        self.own_last = np.where(mask > 0, shape, self.own_4)
        self.own_middle = self._middle(shape, mask)

    def _middle(self, shape: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Return the median of the last four same weekdays, and where one of them was lost their mean."""
        low, high = shape.copy(), shape.copy()
        for week in (7, 14, 21):
            low[:, week:] = np.minimum(low[:, week:], shape[:, :-week])
            high[:, week:] = np.maximum(high[:, week:], shape[:, :-week])
        middle = (trailing_sum(shape, 7, 4) - low - high) / 2
        return np.where(trailing_sum(mask, 7, 4) == 4, middle, self.own_4)

    def _indices(self) -> None:
        """Chain the weekly levels of each station and network, so that a new region is no growth of its stations."""
        known = np.nan_to_num(self.level_7)
        settled = (
            (np.arange(self.days) >= self.birth[:, None] + SETTLED)[:, 1:]
            & (known[:, 1:] > 0)
            & (known[:, :-1] > 0)
        )
        self.index = []
        for group, n in ((self.station, self.stations), (self.network, self.networks)):
            now, before = (
                pool(values * settled, group, n) for values in (known[:, 1:], known[:, :-1])
            )
            step = np.where(before > 0, np.log(np.maximum(now, 1e-9) / np.maximum(before, 1e-9)), 0)
            log_index = np.concatenate([np.zeros((n, 1)), np.cumsum(step, axis=1)], axis=1)
            self.index.append([trailing_sum(log_index, 7, weeks) / weeks for weeks in (3, 4)])
        self.settled_from = (
            np.array([self.birth[self.station == s].min() for s in range(self.stations)]) + SETTLED
        )

    def _holidays(self, seen: np.ndarray) -> None:
        """Compare each past holiday with the usual profile before and after it, per station and hour."""
        days = np.flatnonzero(self.holiday_ids[: self.days])
        effect = {}
        for day in days[days >= 7]:
            sides = [self.station_3[:, day - 7]] + (
                [self.station_3[:, day + 21]] if day + 21 < self.days else []
            )
            usual = np.nan_to_num(np.mean(sides, axis=0))
            scale = np.nan_to_num(self.level_7[:, day - 1])[:, None] * seen[:, day]
            top, bottom = (
                pool(values, self.station, self.stations)
                for values in (self.series.counts[:, day] * seen[:, day], scale)
            )
            pad = 1 + 0.02 * (usual * bottom).mean(axis=1, keepdims=True)
            effect[day] = np.log((top + pad) / (usual * bottom + pad)).clip(-2, 2)
        means = [np.zeros((self.stations, 24), np.float32)]
        self.effect_of = np.zeros(len(self.holiday_ids), np.int64)
        for day in np.flatnonzero(self.holiday_ids):
            earlier = [
                effect[p]
                for p in effect
                if p < day - 2 * HORIZON and self.holiday_ids[p] == self.holiday_ids[day]
            ]
            if earlier:
                self.effect_of[day] = len(means)
                means.append(np.mean(earlier, axis=0).astype(np.float32))
        self.effects = np.stack(means)

    def rows(self, key: np.ndarray, target: np.ndarray, horizon: np.ndarray) -> Rows:
        """Gather rows; all three int64 (n,), horizon 1 to 90, target - horizon at least 0."""
        last = target - horizon
        same = target - 7 * (-(-horizon // 7))  # the last known day of the target's weekday
        same = np.maximum(same, 0)
        station, network = self.station[key], self.network[key]
        year = target - YEAR
        has_year = (last - YEAR - 27 >= self.settled_from[station]) & (year >= 0)
        lower = np.maximum(year, 0)
        profiles = np.stack(
            [
                self.own_last[key, same],
                self.own_middle[key, same],
                self.own_4[key, same],
                self.own_13[key, same],
                self.station_4[station, same],
                self.station_13[station, same],
                self.station_13[station, same],
            ],
            axis=1,
        )
        old = self.station_3[station, np.minimum(lower + 7, self.days - 1)]
        profiles[:, -1] = np.where(has_year[:, None] & np.isfinite(old), old, profiles[:, -1])
        changes = np.zeros((len(key), 4), np.float32)
        for column, (group, (three, four)) in enumerate(
            zip((station, network), self.index, strict=True)
        ):
            before = four[group, np.maximum(last - YEAR, 0)]
            changes[:, column] = three[group, np.minimum(lower + 10, self.days - 1)] - before
            changes[:, 2 + column] = (four[group, last] - before) * (horizon + 13.5) / YEAR
        changes = np.where(has_year[:, None], changes, 0).clip(-1, 1).astype(np.float32)
        now = np.nan_to_num(self.level_28[key, last])
        scale = np.maximum(now, 0.1)
        weeks = np.stack(
            [np.nan_to_num(self.level_7[key, np.maximum(last - 7 * w, 0)]) for w in range(4)], 1
        )
        dense = np.concatenate(
            [
                np.eye(7)[self.weekday[target]],
                self.waves[target],
                np.log1p(horizon)[:, None] / 4.5,
                horizon[:, None] / 90,
                np.log((weeks + 0.1) / (scale[:, None] + 0.1)).clip(-2, 2),
                changes,
                has_year[:, None],
                np.log(scale)[:, None] / 5,
                self.coverage[key, same][:, None],
            ],
            axis=1,
        ).astype(np.float32)
        ids = np.stack(
            [key, self.region[key], station, network, self.holiday_ids[target]], axis=1
        ).astype(np.int32)
        return Rows(
            profiles.astype(np.float32),
            changes,
            self.effects[self.effect_of[target], station],
            dense,
            ids,
            now.astype(np.float32),
        )

    def ahead(self, day: int, days: int = HORIZON) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return key, target and horizon of a forecast of these days from day on, in the order (key, day)."""
        key, step = np.meshgrid(self.key, np.arange(days), indexing="ij")
        return key.ravel(), day + step.ravel(), 1 + step.ravel()

    def origin(self, day: int, days: int = HORIZON) -> Rows:
        """Return the rows of a forecast of these days from day on, in the order (key, day)."""
        return self.rows(*self.ahead(day, days))

    def examples(self, first: int, until: int, seed: int = 0, copies: int = 1) -> "Examples":
        """Return training examples: each key and day of first..until, each copy at a random horizon of its own."""
        key, target = (
            np.tile(values.ravel(), copies)
            for values in np.meshgrid(self.key, np.arange(first, until), indexing="ij")
        )
        return self._examples(key, target, np.random.default_rng(seed))

    def sample(self, first: int, until: int, n: int, seed: int) -> "Examples":
        """Return at most n training examples at random keys, days of first..until and horizons."""
        rng = np.random.default_rng(seed)
        return self._examples(rng.choice(self.key, n), rng.integers(first, until, n), rng)

    def _examples(
        self, key: np.ndarray, target: np.ndarray, rng: np.random.Generator
    ) -> "Examples":
        horizon = rng.integers(1, HORIZON + 1, len(key))
        last = target - horizon
        known = last >= np.maximum(self.birth[key] + 7, 28)
        known[known] &= np.nan_to_num(self.level_28[key[known], last[known]]) > 0
        key, target, horizon = key[known], target[known], horizon[known]
        level = self.level_28[key, target - horizon]
        day = np.where(
            self.series.observed[key, target],
            self.series.counts[key, target] / level[:, None],
            np.nan,
        )
        weight = np.sqrt(level)  # between every key alike (MAPE) and every impression alike (WAPE)
        weight = weight / max(float(weight.mean()), 1e-9) if len(weight) else weight
        number = target + self.series.start.toordinal()
        return Examples(
            key, target, horizon, number, day.astype(np.float32), weight.astype(np.float32)
        )


@dataclass(frozen=True)
class Examples:
    """What a model learns from: n rows, each one's day in levels, float32 (n, 24) with NaN where nothing was
    observed, and its weight, float32 (n,). day_number is the target's, counted from the calendar's beginning."""

    key: np.ndarray
    target: np.ndarray
    horizon: np.ndarray
    day_number: np.ndarray
    day: np.ndarray
    weight: np.ndarray

    def take(self, rows: np.ndarray) -> "Examples":
        """Return these rows."""
        return Examples(*(values[rows] for values in self.__dict__.values()))

    def joined(self, other: "Examples") -> "Examples":
        """Return these rows and then the other's."""
        return Examples(
            *(
                np.concatenate(pair)
                for pair in zip(self.__dict__.values(), other.__dict__.values(), strict=True)
            )
        )

"""Model inputs of a series: smoothed profiles, levels and calendar, without a look ahead.

A row is (key, target day, horizon). Its origin, the last known day, is ``target - horizon``, so
horizon 1 is the day after the origin. No value of a row depends on counts after its origin.
Profiles are in units of the key's level, so that a small station looks like a large one.
"""

from dataclasses import dataclass

import numpy as np

from forecast import calendar_us
from forecast.series import Series

HORIZON = 90
YEAR = 364  # 52 weeks, so that weekdays match
PROFILES = ("own_last", "own_middle", "own_4", "own_13", "station_4", "station_13", "station_year")
SETTLED = 28  # days after its first count before a key may change its station's index


@dataclass(frozen=True)
class Rows:
    """The inputs of n rows.

    profiles: float32 (n, 7, 24) in levels, in the order of ``PROFILES``.
    changes: float32 (n, 4), log changes from the last four weeks to the target: last year's of
    the station and of the network, then the year's growth of the station and of the network.
    holiday: float32 (n, 24), the log effect of the same holiday in earlier years.
    dense: float32 (n, 24), see ``Features.rows``.
    ids: int32 (n, 5): key, region, station, network, holiday.
    level: float32 (n,), counts an hour over the last four weeks.
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
    """Return the sum of each entry and the n - 1 before it, ``step`` apart, along axis 1; float32.

    Sums of 1, 2, 4, ... entries are doubled and combined by the bits of n. A difference of two
    cumulative sums would be shorter, but float32 would lose digits over a long series.
    """
    result = np.zeros(values.shape, np.float32)
    part = values.astype(np.float32)  # sums of `width` entries
    width = 1
    done = 0  # entries that the result already holds
    while width <= n:
        if n & width:
            shift = done * step
            result[:, shift:] += part[:, : max(part.shape[1] - shift, 0)]
            done += width
        doubled = part.copy()
        doubled[:, width * step :] += part[:, : -width * step]
        part = doubled
        width *= 2
    return result


def ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """Return top / bottom as float32, NaN where bottom is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(bottom > 0, top / bottom, np.nan).astype(np.float32)


def filled(values: np.ndarray, fallback: np.ndarray) -> np.ndarray:
    """Return the values, and the fallback where a value is not finite."""
    return np.where(np.isfinite(values), values, fallback)


def pool(values: np.ndarray, group: np.ndarray, n: int) -> np.ndarray:
    """Return the sums over the keys of each group, (n, ...); every group has a key."""
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(n))
    return np.add.reduceat(values[order], starts, axis=0)


def level(clean: np.ndarray, mask: np.ndarray, days: int) -> np.ndarray:
    """Return the mean hour of each key's last days, float32 (keys, days).

    It is NaN before anything was observed. Each hour of the day is averaged over the days that
    have it, so that a night without data does not raise the level.
    """
    by_hour = ratio(trailing_sum(clean, 1, days), trailing_sum(mask, 1, days))
    known = np.isfinite(by_hour)
    return ratio(np.where(known, by_hour, 0).sum(axis=2), known.sum(axis=2))


def weekday_mean(top: np.ndarray, bottom: np.ndarray, weeks: int) -> np.ndarray:
    """Return top / bottom, each summed over the last same weekdays; NaN where bottom is 0."""
    return ratio(trailing_sum(top, 7, weeks), trailing_sum(bottom, 7, weeks))


def last_same_weekday(target: np.ndarray, horizon: np.ndarray) -> np.ndarray:
    """Return the last day up to each origin that has the target's weekday; it may be negative."""
    weeks = -(-horizon // 7)  # rounded up
    return target - 7 * weeks


class Features:
    """The smoothed history of one series, from which the rows of any origin are gathered.

    Profiles, levels and indices of a day hold only what was known at the end of that day.
    """

    def __init__(self, series: Series) -> None:
        self.series = series
        self.days = series.days
        self.key = np.arange(len(series.keys))
        self.region, self.regions = series.codes("region")
        self.station, self.stations = series.codes("network", "station")
        self.network, self.networks = series.codes("network")
        self._calendar()
        seen = self._seen()
        ordinary = self.holiday_ids[: self.days] == 0
        mask = (seen & ordinary[None, :, None]).astype(np.float32)
        clean = series.counts * mask
        self.level_28 = level(clean, mask, 28)
        self.level_7 = level(clean, mask, 7)
        self._profiles(clean, mask)
        self._indices()
        self._holidays(seen)

    def _calendar(self) -> None:
        """Set holiday, weekday and phase of each day, up to the last that can be forecast."""
        start = self.series.start
        span = self.days + HORIZON
        self.holiday_ids = calendar_us.holiday_ids(start, span)
        self.weekday = calendar_us.weekdays(start, span)
        phase = 2 * np.pi * calendar_us.day_of_year(start, span)
        self.waves = np.stack(
            [np.sin(phase), np.cos(phase), np.sin(2 * phase), np.cos(2 * phase)], 1
        )

    def _seen(self) -> np.ndarray:
        """Return the observed hours since each key's first count, bool (keys, days, 24)."""
        positive = (self.series.counts > 0).any(axis=2)
        self.birth = np.where(positive.any(axis=1), positive.argmax(axis=1), self.days)
        born = np.arange(self.days) >= self.birth[:, None]
        return self.series.observed & born[:, :, None]

    def _profiles(self, clean: np.ndarray, mask: np.ndarray) -> None:
        """Average the last same weekdays, each week in its own level, by key and by station.

        Where a profile lacks an hour, the next longer one fills it: own last day, own 4 weeks,
        own 13 weeks, the station's 13 weeks, zero.
        """
        scale = np.maximum(np.nan_to_num(self.level_7), 1e-3)[:, :, None]
        shape = clean / scale
        top = pool(clean, self.station, self.stations)
        bottom = pool(mask * scale, self.station, self.stations)
        self.station_3 = weekday_mean(top, bottom, 3)
        self.station_13 = np.nan_to_num(weekday_mean(top, bottom, 13))
        self.station_4 = filled(weekday_mean(top, bottom, 4), self.station_13)
        self.own_13 = filled(weekday_mean(shape, mask, 13), self.station_13[self.station])
        self.own_4 = filled(weekday_mean(shape, mask, 4), self.own_13)
        self.own_last = np.where(mask > 0, shape, self.own_4)
        self.own_middle = self._middle(shape, mask)
        self.coverage = trailing_sum(mask.mean(axis=2), 7, 4) / 4

    def _middle(self, shape: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Return the median of the last four same weekdays, or their mean where one is missing.

        The median of four values is half of their sum without minimum and maximum.
        """
        low = shape.copy()
        high = shape.copy()
        for week in (7, 14, 21):
            low[:, week:] = np.minimum(low[:, week:], shape[:, :-week])
            high[:, week:] = np.maximum(high[:, week:], shape[:, :-week])
        middle = (trailing_sum(shape, 7, 4) - low - high) / 2
        all_four = trailing_sum(mask, 7, 4) == 4
        return np.where(all_four, middle, self.own_4)

    def _indices(self) -> None:
        """Set the log index of each station and network, and when each station's may be used.

        A step compares two neighbouring days over settled keys that count on both, so that a new
        region is no growth of its stations.
        """
        known = np.nan_to_num(self.level_7)
        settled = np.arange(self.days) >= self.birth[:, None] + SETTLED
        comparable = settled[:, 1:] & (known[:, 1:] > 0) & (known[:, :-1] > 0)
        self.index = [
            _index(known, comparable, self.station, self.stations),
            _index(known, comparable, self.network, self.networks),
        ]
        first = [self.birth[self.station == station].min() for station in range(self.stations)]
        self.settled_from = np.array(first) + SETTLED

    def _holidays(self, seen: np.ndarray) -> None:
        """Set each holiday's mean effect in earlier years, by station and hour.

        ``effects[effect_of[day]]`` is (stations, 24). An effect is used two horizons later at
        the earliest: at any origin that can forecast the day, it was known.
        """
        past = np.flatnonzero(self.holiday_ids[: self.days])
        effect = {day: self._holiday_effect(day, seen) for day in past[past >= 7]}
        means = [np.zeros((self.stations, 24), np.float32)]
        self.effect_of = np.zeros(len(self.holiday_ids), np.int64)
        for day in np.flatnonzero(self.holiday_ids):
            earlier = [
                effect[other]
                for other in effect
                if other < day - 2 * HORIZON and self.holiday_ids[other] == self.holiday_ids[day]
            ]
            if earlier:
                self.effect_of[day] = len(means)
                means.append(np.mean(earlier, axis=0).astype(np.float32))
        self.effects = np.stack(means)

    def _holiday_effect(self, day: int, seen: np.ndarray) -> np.ndarray:
        """Return the log of a holiday's counts against the usual ones, (stations, 24).

        Usual is the mean of the same weekdays in the three weeks before and in those after it.
        The pad keeps an hour with few counts near an effect of 0.
        """
        sides = [self.station_3[:, day - 7]]
        if day + 21 < self.days:
            sides.append(self.station_3[:, day + 21])
        usual = np.nan_to_num(np.mean(sides, axis=0))
        scale = np.nan_to_num(self.level_7[:, day - 1])[:, None] * seen[:, day]
        top = pool(self.series.counts[:, day] * seen[:, day], self.station, self.stations)
        expected = usual * pool(scale, self.station, self.stations)
        pad = 1 + 0.02 * expected.mean(axis=1, keepdims=True)
        return np.log((top + pad) / (expected + pad)).clip(-2, 2)

    def rows(self, key: np.ndarray, target: np.ndarray, horizon: np.ndarray) -> Rows:
        """Gather rows; all three int64 (n,), horizon 1 to 90, target - horizon at least 0.

        ``dense`` holds, in this order: weekday (7), waves of the year (4), horizon (2), the last
        four weekly levels (4), changes (4), whether last year is known, level, coverage.
        """
        last = target - horizon
        same = np.maximum(last_same_weekday(target, horizon), 0)
        has_year = self._has_year(key, target, last)
        now = np.nan_to_num(self.level_28[key, last])
        changes = self._changes(key, target, horizon, has_year)
        scale = np.maximum(now, 0.1)
        dense = [
            np.eye(7)[self.weekday[target]],
            self.waves[target],
            np.log1p(horizon)[:, None] / 4.5,
            horizon[:, None] / 90,
            self._weekly_levels(key, last, scale),
            changes,
            has_year[:, None],
            np.log(scale)[:, None] / 5,
            self.coverage[key, same][:, None],
        ]
        station = self.station[key]
        ids = [key, self.region[key], station, self.network[key], self.holiday_ids[target]]
        return Rows(
            profiles=self._profiles_of(key, target, same, has_year),
            changes=changes,
            holiday=self.effects[self.effect_of[target], station],
            dense=np.concatenate(dense, axis=1).astype(np.float32),
            ids=np.stack(ids, axis=1).astype(np.int32),
            level=now.astype(np.float32),
        )

    def _has_year(self, key: np.ndarray, target: np.ndarray, last: np.ndarray) -> np.ndarray:
        """Return whether the station had settled four weeks before last year's origin, (n,)."""
        first_needed = last - YEAR - 27
        settled = first_needed >= self.settled_from[self.station[key]]
        return settled & (target >= YEAR)

    def _profiles_of(
        self, key: np.ndarray, target: np.ndarray, same: np.ndarray, has_year: np.ndarray
    ) -> np.ndarray:
        """Return the profiles of rows, float32 (n, 7, 24), in the order of ``PROFILES``.

        Last year's is the mean of the week before the target's, that week and the week after;
        where it is unknown, the station's 13 weeks replace it.
        """
        station = self.station[key]
        long = self.station_13[station, same]
        week_after = np.minimum(np.maximum(target - YEAR, 0) + 7, self.days - 1)
        year = self.station_3[station, week_after]
        known = has_year[:, None] & np.isfinite(year)
        profiles = [
            self.own_last[key, same],
            self.own_middle[key, same],
            self.own_4[key, same],
            self.own_13[key, same],
            self.station_4[station, same],
            long,
            np.where(known, year, long),
        ]
        return np.stack(profiles, axis=1).astype(np.float32)

    def _changes(
        self, key: np.ndarray, target: np.ndarray, horizon: np.ndarray, has_year: np.ndarray
    ) -> np.ndarray:
        """Return the expected log changes of rows, float32 (n, 4), zero without a last year.

        Last year's change goes from the four weeks before last year's origin to the three weeks
        around last year's target. Growth is the year's, scaled to the days from the middle of
        the last four weeks to the target.
        """
        last = target - horizon
        around = np.minimum(np.maximum(target - YEAR, 0) + 10, self.days - 1)
        a_year_ago = np.maximum(last - YEAR, 0)
        changes = np.zeros((len(key), 4), np.float32)
        for column, group in enumerate((self.station[key], self.network[key])):
            three_weeks, four_weeks = self.index[column]
            before = four_weeks[group, a_year_ago]
            growth = four_weeks[group, last] - before
            changes[:, column] = three_weeks[group, around] - before
            changes[:, 2 + column] = growth * (horizon + 13.5) / YEAR
        return np.where(has_year[:, None], changes, 0).clip(-1, 1).astype(np.float32)

    def _weekly_levels(self, key: np.ndarray, last: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """Return the log of each of the last four weeks' level against the scale, (n, 4)."""
        weeks = [
            np.nan_to_num(self.level_7[key, np.maximum(last - 7 * back, 0)]) for back in range(4)
        ]
        return np.log((np.stack(weeks, 1) + 0.1) / (scale[:, None] + 0.1)).clip(-2, 2)

    def ahead(self, day: int, days: int = HORIZON) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return key, target and horizon of a forecast of these days from day on.

        Each is int64 (keys * days,), in the order (key, day).
        """
        key, step = np.meshgrid(self.key, np.arange(days), indexing="ij")
        return key.ravel(), day + step.ravel(), 1 + step.ravel()

    def origin(self, day: int, days: int = HORIZON) -> Rows:
        """Return the rows of a forecast of these days from day on, in the order (key, day)."""
        return self.rows(*self.ahead(day, days))

    def examples(self, first: int, until: int, seed: int = 0, copies: int = 1) -> "Examples":
        """Return training examples of each key and each day from first to before until.

        Every copy of a key's day has its own random horizon.
        """
        key, target = np.meshgrid(self.key, np.arange(first, until), indexing="ij")
        rng = np.random.default_rng(seed)
        return self._examples(np.tile(key.ravel(), copies), np.tile(target.ravel(), copies), rng)

    def sample(self, first: int, until: int, n: int, seed: int) -> "Examples":
        """Return at most n training examples at random keys, horizons and days of first..until."""
        rng = np.random.default_rng(seed)
        key = rng.choice(self.key, n)
        target = rng.integers(first, until, n)
        return self._examples(key, target, rng)

    def _examples(
        self, key: np.ndarray, target: np.ndarray, rng: np.random.Generator
    ) -> "Examples":
        """Return the examples of these key-days, without those that have no level at the origin.

        The weight is the root of the level: between every key alike (MAPE) and every impression
        alike (WAPE).
        """
        horizon = rng.integers(1, HORIZON + 1, len(key))
        last = target - horizon
        known = last >= np.maximum(self.birth[key] + 7, 28)
        known[known] &= np.nan_to_num(self.level_28[key[known], last[known]]) > 0
        key, target, horizon = key[known], target[known], horizon[known]
        level = self.level_28[key, target - horizon]
        in_levels = self.series.counts[key, target] / level[:, None]
        day = np.where(self.series.observed[key, target], in_levels, np.nan)
        weight = np.sqrt(level)
        if len(weight):
            weight = weight / max(float(weight.mean()), 1e-9)
        return Examples(
            key=key,
            target=target,
            horizon=horizon,
            day_number=target + self.series.start.toordinal(),
            day=day.astype(np.float32),
            weight=weight.astype(np.float32),
        )


def _index(
    known: np.ndarray, comparable: np.ndarray, group: np.ndarray, n: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the log index of n groups, averaged over the last 3 and 4 same weekdays.

    known: levels (keys, days); comparable: bool (keys, days - 1), the steps that count. Both
    results are float32 (n, days).
    """
    now = pool(known[:, 1:] * comparable, group, n)
    before = pool(known[:, :-1] * comparable, group, n)
    change = np.log(np.maximum(now, 1e-9) / np.maximum(before, 1e-9))
    step = np.where(before > 0, change, 0)
    log_index = np.concatenate([np.zeros((n, 1)), np.cumsum(step, axis=1)], axis=1)
    return trailing_sum(log_index, 7, 3) / 3, trailing_sum(log_index, 7, 4) / 4


@dataclass(frozen=True)
class Examples:
    """Training examples: n rows with the counts and the weight of each.

    key, target, horizon: int64 (n,), see ``Features.rows``.
    day_number: int64 (n,), the target's proleptic Gregorian ordinal, as of ``date.toordinal``.
    day: float32 (n, 24), counts in levels, NaN where nothing was observed.
    weight: float32 (n,), about 1 on average.
    """

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
        pairs = zip(self.__dict__.values(), other.__dict__.values(), strict=True)
        return Examples(*(np.concatenate(pair) for pair in pairs))

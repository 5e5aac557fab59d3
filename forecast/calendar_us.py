"""Holidays, weekdays and dayparts of the United States."""

from datetime import date, timedelta

import numpy as np

NAMES = (
    "none",
    "new_years_day",
    "mlk_day",
    "super_bowl",
    "presidents_day",
    "easter",
    "memorial_day",
    "july_4th",
    "labor_day",
    "columbus_day",
    "veterans_day",
    "thanksgiving_eve",
    "thanksgiving",
    "black_friday",
    "sunday_after_thanksgiving",
    "christmas_eve",
    "christmas",
    "new_years_eve",
)
DAYPARTS = np.repeat([0, 1, 2, 3, 4], [6, 4, 6, 7, 1])
"""Daypart of each hour, int (24,): night 0-5, morning 6-9, day 10-15, prime 16-22, late 23."""


def nth_weekday(year: int, month: int, weekday: int, n: int) -> date:
    """Return the n-th weekday of a month: n from 1, or -1 for the last; Monday is 0."""
    if n < 0:
        following = date(year + month // 12, month % 12 + 1, 1)
        last = following - timedelta(days=1)
        return last - timedelta(days=(last.weekday() - weekday) % 7)
    first = date(year, month, 1)
    return first + timedelta(days=(weekday - first.weekday()) % 7 + 7 * (n - 1))


def easter(year: int) -> date:
    """Return Easter Sunday by the anonymous Gregorian algorithm."""
    a = year % 19
    b, c = divmod(year, 100)
    d, e = divmod(b, 4)
    h = (19 * a + b - d - (b - (b + 8) // 25 + 1) // 3 + 15) % 30
    i, k = divmod(c, 4)
    m = (32 + 2 * e + 2 * i - h - k) % 7
    n = (a + 11 * h + 22 * m) // 451
    month, day = divmod(h + m - 7 * n + 114, 31)
    return date(year, month, day + 1)


def holidays(year: int) -> dict[date, int]:
    """Return the special days of one year as date to index in ``NAMES``."""
    thanksgiving = nth_weekday(year, 11, 3, 4)
    days = [
        date(year, 1, 1),
        nth_weekday(year, 1, 0, 3),
        nth_weekday(year, 2, 6, 2),
        nth_weekday(year, 2, 0, 3),
        easter(year),
        nth_weekday(year, 5, 0, -1),
        date(year, 7, 4),
        nth_weekday(year, 9, 0, 1),
        nth_weekday(year, 10, 0, 2),
        date(year, 11, 11),
        thanksgiving - timedelta(days=1),
        thanksgiving,
        thanksgiving + timedelta(days=1),
        thanksgiving + timedelta(days=3),
        date(year, 12, 24),
        date(year, 12, 25),
        date(year, 12, 31),
    ]
    return {day: index for index, day in enumerate(days, 1)}


def holiday_ids(start: date, days: int) -> np.ndarray:
    """Return the index in ``NAMES`` of each day from start on, int64 (days,); 0 is no holiday."""
    known: dict[date, int] = {}
    for year in range(start.year, (start + timedelta(days=days)).year + 1):
        known |= holidays(year)
    return np.array([known.get(start + timedelta(days=i), 0) for i in range(days)], dtype=np.int64)


def weekdays(start: date, days: int) -> np.ndarray:
    """Return the weekday of each day from start on, int64 (days,), Monday is 0."""
    return (start.weekday() + np.arange(days)) % 7


def day_of_year(start: date, days: int) -> np.ndarray:
    """Return the phase in the year of each day from start on, float64 (days,) in 0..1."""
    ordinals = np.array([(start + timedelta(days=i)).timetuple().tm_yday for i in range(days)])
    return (ordinals - 1) / 365.25

"""Detection of a day that was cut short, whose missing rows must not be learned as zeros.

Each region is compared with its own last weeks, over the hours that were observed in both.
"""

from datetime import timedelta

import numpy as np

from forecast.series import Series

WEEKS = 4
LEAST = 3  # earlier days that a comparison needs; a younger region is accepted
TAIL = 5  # counts that the missing hours usually hold; fewer can be missing by chance
SHARE = 0.6  # of the lowest same weekday's sum; holidays and clock changes never go below it


def lack(series: Series) -> str:
    """Return a clause about what the series' last day lacks, or "" where it looks complete."""
    day = series.end - timedelta(days=1)
    if not series.observed[:, -1].any():
        return ""
    if not series.counts[:, -1].any():
        return f"it holds no row of {day} that can be counted"
    every = np.arange(len(series.keys))
    whole = _of_group(series, every)
    if whole:
        return f"all regions together have {whole}"
    found = {}
    for region, members in series.keys.groupby("region").indices.items():
        if clause := _of_group(series, members):
            found[region] = clause
    if not found:
        return ""
    region, clause = next(iter(found.items()))
    others = f" ({len(found)} such regions)" if len(found) > 1 else ""
    return f"region {region!r} has {clause}{others}"


def _of_group(series: Series, members: np.ndarray) -> str:
    """Return what the last day of these keys, rows of the series, lacks, or "".

    Hours that were not observed today are left out of every day. A day that did not observe all
    other hours is not compared.
    """
    days = slice(-1 - 7 * WEEKS, None)
    seen = series.observed[members, -1]
    counts = series.counts[members, days]
    observed = series.observed[members, days]
    known = (observed | ~seen[:, None]).all(axis=(0, 2))
    hours = (counts * seen[:, None]).sum(axis=0, dtype=np.float64)  # (days, 24)
    today = hours[-1]
    past = hours[:-1][known[:-1]]
    if len(past) >= LEAST and (after := _missing_tail(today, past)) is not None:
        return f"nothing from {after}:00 on" if after else "no rows at all"
    weekday = hours[-8::-7].sum(axis=1)[known[-8::-7]]
    usual = weekday.min() if len(weekday) >= LEAST else 0
    if today.sum() < SHARE * usual:
        return (
            f"{today.sum():,.0f} counts, and at least {usual:,.0f} "
            f"on the last {len(weekday)} such weekdays"
        )
    return ""


def _missing_tail(today: np.ndarray, past: np.ndarray) -> int | None:
    """Return the first hour of an empty evening that only today has, or None."""
    counted = np.flatnonzero(today)
    after = int(counted[-1]) + 1 if len(counted) else 0
    usual = past[:, after:].sum(axis=1)
    if after < 24 and (usual > 0).all() and np.median(usual) >= TAIL:
        return after
    return None

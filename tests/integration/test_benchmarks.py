"""The benchmarks' clock on a real topic."""

import pytest

from benchmarks.loop.measure import NothingCameError, fill, pace


def test_a_topic_that_is_full_at_once_has_no_rate(kafka):
    config = kafka.named().settings
    fill(config, 5_000)
    found = pace(config, config.input_topic, total=5_000, seconds=5)
    assert found.rate is None
    assert not found.steady


def test_a_topic_that_stays_empty_is_named(kafka):
    config = kafka.named().settings
    with pytest.raises(NothingCameError, match=config.input_topic):
        pace(config, config.input_topic, total=10, seconds=1, patience=1)

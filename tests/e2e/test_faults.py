"""Whatever dies, each message is learned once and predicted once.

``make test`` strikes with the kinds that matter most, ``make test-all`` with every kind, and
``make faults`` with fifty faults over more messages.
"""

import random

import pytest

from benchmarks.loop.faults import drawn
from harness.faults import FAULTS, strike, trial

SEED = random.SystemRandom().randrange(1 << 31)
MOST_IMPORTANT = [
    "kill_worker",
    "kill_taskmanager",
    "kill_redis",
    "submit_a_second_job",
    "clear_the_model",
    "roll_redis_back_under_the_job",
    "lose_the_answer_to_a_commit",
]


@pytest.mark.long
@pytest.mark.timeout(1800)  # 23 faults, 7 minutes on a machine that does little else
def test_after_every_kind_of_fault_each_message_was_learned_once_and_the_page_never_went_back(
    parts,
):
    print(f"seed {SEED}")
    names = drawn(random.Random(SEED), len(FAULTS))  # noqa: S311 - draws faults
    with trial(parts, SEED) as running:
        for name in names:
            print(f"{name}: {strike(running, name):.1f} s")
        messages, lost, twice = running.prove()
    assert messages > 1000
    assert (lost, twice) == (0, 0)
    assert running.proof.compared > 100, "models were compared bit for bit"


def test_the_default_learner_and_its_memory_come_back_bit_for_bit(parts):
    """The kinds of fault that matter most; the page never goes back, either."""
    print(f"seed {SEED}")
    names = random.Random(SEED).sample(MOST_IMPORTANT, len(MOST_IMPORTANT))  # noqa: S311 - an order
    with trial(parts, SEED, rate=50, learner="default") as running:
        for name in names:
            print(f"{name}: {strike(running, name):.1f} s")
        messages, lost, twice = running.prove()
    assert messages > 100
    assert (lost, twice) == (0, 0)
    assert running.proof.compared > 10, "models were compared bit for bit"

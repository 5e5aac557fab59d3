"""The proof of exactly once after faults: every commit in Redis and every message in Kafka.

Commits are read from Redis's append-only file.
"""

import base64
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from kafka import KafkaConsumer, TopicPartition

from harness.redis_history import Version, files, versions
from learners.learner import Learner, load_learner, new_learner
from loop.messages import Parsed, load_format
from loop.model_store import Meta
from loop.seen import Seen
from settings import Settings

Place = tuple[str, int, int]  # topic id, partition, offset


def read_committed(settings: Settings, topic: str) -> dict[tuple[int, int], bytes | None]:
    """Return every committed record that the topic holds, {(partition, offset): value}."""
    consumer = KafkaConsumer(
        **settings.kafka_client(), isolation_level="read_committed", enable_auto_commit=False
    )
    places = [TopicPartition(topic, p) for p in sorted(consumer.partitions_for_topic(topic) or ())]
    consumer.assign(places)
    consumer.seek_to_beginning()
    ends = consumer.end_offsets(places)
    found: dict[tuple[int, int], bytes | None] = {}
    while any(consumer.position(place) < ends[place] for place in places):
        for place, records in consumer.poll(timeout_ms=500).items():
            found |= {(place.partition, record.offset): record.value for record in records}
    consumer.close()
    return found


@dataclass
class Proof:
    """Collects messages and commits; raises ``AssertionError`` naming a broken promise.

    ``messages``: {place: payload} of the input topic.
    ``commits``: {commit_id: what Redis held}, in order. ``parents``: {commit_id: the commit before
    it}, "" where a model begins. ``learned``: {commit_id: places}.
    ``predictions``: the possible (version, label) of each place. ``versions``: only the versions.
    ``unordered``: places learned in a batch of several partitions. The order inside such a batch is
    not recorded, so the predictions are unknown.
    ``given_up``: places that a person skipped with ``admin.py model accept``. ``unpredicted``:
    places that were deleted from the topic before their prediction was committed. ``again``: places
    that may have two predictions, because a submission started without a checkpoint.
    ``compared``: number of commits that equal, bit for bit, the model trained here.
    ``at_hand``: the last commit_id, with the learner trained here and the samples it has seen.
    """

    settings: Settings
    redis_folder: Path
    messages: dict[Place, bytes | None] = field(default_factory=dict)
    commits: dict[str, Version] = field(default_factory=dict)
    parents: dict[str, str] = field(default_factory=dict)
    learned: dict[str, list[Place]] = field(default_factory=dict)
    predictions: dict[Place, set[tuple[int | None, int | None]]] = field(default_factory=dict)
    versions: dict[Place, set[int | None]] = field(default_factory=dict)
    unordered: set[Place] = field(default_factory=set)
    given_up: set[Place] = field(default_factory=set)
    unpredicted: set[Place] = field(default_factory=set)
    again: set[Place] = field(default_factory=set)
    compared: int = 0
    at_hand: tuple[str, Learner, Seen] | None = None

    # -- learning ----------------------------------------------------------------------------

    def keep(self, topic_id: str) -> None:
        """Record the input topic and check the new commits, before a fault deletes from either."""
        # Read before the topic, so that the topic holds every message of these commits.
        commands = [path.read_bytes() for path in files(self.redis_folder)]
        found = read_committed(self.settings, self.settings.input_topic)
        before = Version(None, b"", b"")
        self.messages |= {(topic_id, *place): value for place, value in found.items()}
        for version in versions(commands, self.settings.model_key):
            if version.meta and version.meta.commit_id not in self.commits:
                self._check_commit(before, version, version.meta)
                # The bytes are needed only to check the next commit.
                self.commits[version.meta.commit_id] = Version(version.meta, b"", b"")
            before = version

    def _check_commit(self, before: Version, after: Version, meta: Meta) -> None:
        """Compare a commit with the messages it has learned and with a model trained on them."""
        if meta.cleared_at:
            return
        old = before.meta or Meta()
        is_new = not before.meta or bool(old.cleared_at)
        name = f"commit {meta.model_id} version {meta.version}"
        self.parents[meta.commit_id] = "" if is_new else old.commit_id
        self._check_version(name, old, meta)
        counts = meta.samples - old.samples, meta.rejected - old.rejected
        if is_new:
            old = Meta(progress=dict(meta.starts))
            counts = meta.samples, meta.rejected
        elif counts == (0, 0) and after.model == before.model:
            return  # a person accepted another place in the stream
        places = self._places_between(name, old, meta)
        payloads = [self.messages[place] for place in places]
        parsed = load_format(self.settings.message_format).parse(payloads)
        found = len(parsed.y), len(parsed.reasons)
        assert counts == found, f"{name} counts {counts}, the topic has {found}"
        self.learned[meta.commit_id] = places
        for place in places:
            self.versions.setdefault(place, set()).add(old.version if old.samples else None)
        partitions = {partition for _, partition, _ in places}
        if len(partitions) == 1:
            self._compare_model(name, None if is_new else before, after, meta, parsed, places)
        else:
            self.unordered |= set(places)

    def _check_version(self, name: str, old: Meta, meta: Meta) -> None:
        if meta.model_id == old.model_id:
            assert meta.version == old.version + 1, f"{name} follows version {old.version}"
            return
        model_ids = [version.meta.model_id for version in self.commits.values() if version.meta]
        newest = max(model_ids, default="")
        assert meta.model_id > newest, f"{name} is not newer than {newest}"

    @staticmethod
    def _places_between(name: str, old: Meta, meta: Meta) -> list[Place]:
        """Return the places that a commit has learned, partition by partition."""
        places = []
        for partition, end in meta.progress.items():
            begin = old.progress.get(partition, 0)
            assert end >= begin, f"{name} went back in partition {partition}"
            places += [(meta.topic_id, partition, offset) for offset in range(begin, end)]
        return places

    def _compare_model(
        self,
        name: str,
        before: Version | None,
        after: Version,
        meta: Meta,
        parsed: Parsed,
        places: list[Place],
    ) -> None:
        """Train on the same batch and compare model and state byte by byte."""
        learner, seen = self._learner_after(before)
        old = before.meta if before else None
        guesses = learner.predict(parsed.X) if len(parsed.y) else None
        version = old.version if old and guesses is not None else None
        labels = [None] * len(parsed.y) if guesses is None else guesses.tolist()
        samples = [place for place, good in zip(places, parsed.good, strict=True) if good]
        for place, label in zip(samples, labels, strict=True):
            self.predictions.setdefault(place, set()).add((version, label))
        if guesses is not None:
            new = int((~seen.knows(parsed.X)).sum())
            counted = meta.scores.new_predicted - (old.scores.new_predicted if old else 0)
            assert counted == new, f"{name} counts {counted} new samples, the topic has {new}"
        if len(parsed.y):
            learner.learn(parsed.X, parsed.y)
            seen.add(parsed.X)
        other = "is not the one trained on the same batches"
        assert learner.model_bytes() == after.model, f"{name}: its model {other}"
        state = seen.dumps() + learner.state_bytes()
        assert state == after.state, f"{name}: its state {other}"
        self.compared += 1
        self.at_hand = meta.commit_id, learner, seen

    def _learner_after(self, before: Version | None) -> tuple[Learner, Seen]:
        """Return the learner and the samples it has seen as they were after a commit."""
        form = load_format(self.settings.message_format)
        names = self.settings.learner, form.classes, form.n_features
        old = before.meta if before else None
        if before is None or old is None or old.samples == 0:
            return new_learner(*names), Seen()
        if self.at_hand and self.at_hand[0] == old.commit_id:
            return self.at_hand[1:]
        seen, learner_state = Seen.split(before.state)
        return load_learner(*names, before.model, learner_state), seen

    def lineage(self, commit_id: str) -> list[str]:
        """Return this commit and its ancestors, newest first, back to the start of its model."""
        found = [commit_id]
        while self.parents[found[-1]]:
            found.append(self.parents[found[-1]])
        return found

    def lost_and_twice(self) -> tuple[int, int]:
        """Return how many messages are in no model's lineage, and how many are in one twice."""
        newest = {self.lineage(commit)[-1]: commit for commit in self.parents}  # of each model
        twice, once = 0, set(self.given_up)
        for commit in newest.values():
            counts: Counter[Place] = Counter()
            for ancestor in self.lineage(commit):
                counts.update(self.learned.get(ancestor, ()))
            twice += sum(count - 1 for count in counts.values())
            once |= set(counts)
        return len(set(self.messages) - once), twice

    # -- outputs -----------------------------------------------------------------------------

    def check_once(self) -> list[dict[str, Any]]:
        """Check that each message has one output; return the predictions."""
        predicted = self._read(self.settings.predict_topic)
        rejected = self._read(self.settings.reject_topic)
        seen = Counter(message["ts"].encode() for message in predicted)
        seen += Counter(base64.b64decode(message["payload"]) for message in rejected)
        names = {place: name(payload) for place, payload in self.messages.items()}
        missing = {place for place, text in names.items() if not seen[text]}
        missing -= self.given_up | self.unpredicted
        assert not missing, f"{len(missing)} messages have no output: {sorted(missing)[:5]}"
        double = {place for place, text in names.items() if seen[text] > 1} - self.again
        assert not double, f"{len(double)} messages have two outputs: {sorted(double)[:5]}"
        return predicted

    def check_outputs(self) -> None:
        """Check that each message has one output, predicted by the model that then learned it."""
        places = {name(payload): place for place, payload in self.messages.items()}
        for message in self.check_once():
            place = places[message["ts"].encode()]
            if message.get("replayed") or place in self.given_up:
                continue
            version, label = message["model_version"], message["predict_y"]
            versions = self.versions[place]
            assert version in versions, f"{message} is not by a version of {versions}"
            if place not in self.unordered:
                predictions = self.predictions[place]
                assert (version, label) in predictions, f"{message} is not one of {predictions}"

    def _read(self, topic: str) -> list[dict[str, Any]]:
        records = read_committed(self.settings, topic)
        return [orjson.loads(value or b"") for value in records.values()]


def name(payload: bytes | None) -> bytes:
    """Return the name of a numbered message: a sample's ``ts``, or a bad message's whole text."""
    if payload and payload.startswith(b"{"):
        return orjson.loads(payload)["ts"].encode()
    return payload or b""

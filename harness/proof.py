"""What must hold after any faults: checked by commit in Redis's append-only file, and by message in Kafka."""

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
    """Collects what a run leaves behind; raises ``AssertionError`` naming what is not as promised.

    ``given_up``: places that a person gave up with ``admin.py model accept``. ``unpredicted``: places deleted from the
    topic before their prediction was committed. ``again``: places whose prediction may stand twice, as a submission
    started without a checkpoint. ``predictions``: by which version each place may have been predicted, and as what;
    ``versions``: by which version alone; ``unordered``: places learned in a batch of several partitions, whose order is
    not recorded, so that what was predicted can't be known here. ``compared``: commits whose model
    is bit for bit the one trained here.
    """

    settings: Settings
    redis_folder: Path
    messages: dict[Place, bytes | None] = field(default_factory=dict)
    commits: dict[str, Version] = field(default_factory=dict)  # by commit_id, in their order
    parents: dict[str, str] = field(
        default_factory=dict
    )  # commit_id -> commit_id, "" where a model begins
    learned: dict[str, list[Place]] = field(default_factory=dict)  # by commit_id
    predictions: dict[Place, set[tuple[int | None, int | None]]] = field(default_factory=dict)
    versions: dict[Place, set[int | None]] = field(default_factory=dict)
    unordered: set[Place] = field(default_factory=set)
    given_up: set[Place] = field(default_factory=set)
    unpredicted: set[Place] = field(default_factory=set)
    again: set[Place] = field(default_factory=set)
    compared: int = 0
    at_hand: tuple[str, Learner, Seen] | None = None  # what a task holds after this commit_id

    # -- the learning -----------------------------------------------------------------------------------------------

    def keep(self, topic_id: str) -> None:
        """Remember the input topic and check the commits as they are, before something deletes from either."""
        commands = [
            path.read_bytes() for path in files(self.redis_folder)
        ]  # before the topic, which holds all of it
        found = read_committed(self.settings, self.settings.input_topic)
        before = Version(None, b"", b"")
        self.messages |= {(topic_id, *place): value for place, value in found.items()}
        for version in versions(commands, self.settings.model_key):
            if version.meta and version.meta.commit_id not in self.commits:
                self._check_commit(before, version, version.meta)
                # Only what was learned and the newest bytes are needed later.
                self.commits[version.meta.commit_id] = Version(version.meta, b"", b"")
            before = version

    def _check_commit(self, before: Version, after: Version, meta: Meta) -> None:
        """Compare a commit with the messages it has learned and with the model trained on them here."""
        if meta.cleared_at:
            return
        old = before.meta or Meta()
        anew = not before.meta or bool(old.cleared_at)
        name = f"commit {meta.model_id} version {meta.version}"
        self.parents[meta.commit_id] = "" if anew else old.commit_id
        if meta.model_id == old.model_id:
            assert meta.version == old.version + 1, f"{name} follows version {old.version}"
        else:
            newest = max((v.meta.model_id for v in self.commits.values() if v.meta), default="")
            assert meta.model_id > newest, f"{name} is not newer than {newest}"
        if anew:
            old = Meta(progress=dict(meta.starts))
        elif (
            meta.samples == old.samples
            and meta.rejected == old.rejected
            and after.model == before.model
        ):
            return  # a person accepted another place in the stream
        places = []
        for partition, end in meta.progress.items():
            begin = old.progress.get(partition, 0)
            assert end >= begin, f"{name} went back in partition {partition}"
            places += [(meta.topic_id, partition, offset) for offset in range(begin, end)]
        parsed = load_format(self.settings.message_format).parse(
            [self.messages[place] for place in places]
        )
        counts = meta.samples - old.samples, meta.rejected - old.rejected
        assert counts == (len(parsed.y), len(parsed.reasons)), (
            f"{name} counts {counts}, the topic has {len(places)}"
        )
        self.learned[meta.commit_id] = places
        for place in places:
            self.versions.setdefault(place, set()).add(old.version if old.samples else None)
        if (
            len({partition for _, partition, _ in places}) == 1
        ):  # else the order inside the batch is not known
            self._compare_model(name, None if anew else before, after, meta, parsed, places)
        else:
            self.unordered |= set(places)

    def _compare_model(
        self,
        name: str,
        before: Version | None,
        after: Version,
        meta: Meta,
        parsed: Parsed,
        places: list[Place],
    ) -> None:
        form = load_format(self.settings.message_format)
        names = self.settings.learner, form.classes, form.n_features
        old = before.meta if before else None
        if before is None or old is None or old.samples == 0:
            learner, seen = new_learner(*names), Seen()
        elif self.at_hand and self.at_hand[0] == old.commit_id:
            _, learner, seen = self.at_hand
        else:
            seen, learner_state = Seen.split(before.state)
            learner = load_learner(*names, before.model, learner_state)
        guesses = learner.predict(parsed.X) if len(parsed.y) else None
        version = old.version if old and guesses is not None else None
        answers = [None] * len(parsed.y) if guesses is None else guesses.tolist()
        for place, answer in zip(
            [p for p, good in zip(places, parsed.good, strict=True) if good], answers, strict=True
        ):
            self.predictions.setdefault(place, set()).add((version, answer))
        if guesses is not None:
            new = int((~seen.knows(parsed.X)).sum())
            counted = meta.scores.new_predicted - (old.scores.new_predicted if old else 0)
            assert counted == new, f"{name} counts {counted} new samples, the topic has {new}"
        if len(parsed.y):
            learner.learn(parsed.X, parsed.y)
            seen.add(parsed.X)
        assert learner.model_bytes() == after.model, (
            f"{name}: its model is not the one trained on the same batches"
        )
        assert seen.dumps() + learner.state_bytes() == after.state, (
            f"{name}: its state is not the one trained on the same batches"
        )
        self.compared += 1
        self.at_hand = meta.commit_id, learner, seen

    def lineage(self, commit_id: str) -> list[str]:
        """Return the commits that led to this one, newest first, back to where its model began."""
        found = [commit_id]
        while self.parents[found[-1]]:
            found.append(self.parents[found[-1]])
        return found

    def lost_and_twice(self) -> tuple[int, int]:
        """Return how many messages no model learned or rejected that stands, and how many one model learned twice."""
        newest = {
            self.lineage(commit)[-1]: commit for commit in self.parents
        }  # per model, the commit that stood last
        twice, once = 0, set(self.given_up)
        for commit in newest.values():
            counts = Counter(
                place for link in self.lineage(commit) for place in self.learned.get(link, ())
            )
            twice += sum(n - 1 for n in counts.values())
            once |= set(counts)
        return len(set(self.messages) - once), twice

    # -- the outputs ------------------------------------------------------------------------------------------------

    def check_once(self) -> list[dict[str, Any]]:
        """Each message has one output; return the predictions."""
        predicted = [
            orjson.loads(value or b"") for value in self._read(self.settings.predict_topic)
        ]
        rejected = [orjson.loads(value or b"") for value in self._read(self.settings.reject_topic)]
        seen = Counter(message["ts"].encode() for message in predicted)
        seen += Counter(base64.b64decode(message["payload"]) for message in rejected)
        names = {place: name(payload) for place, payload in self.messages.items()}
        missing = (
            {p for p, text in names.items() if not seen[text]} - self.given_up - self.unpredicted
        )
        assert not missing, f"{len(missing)} messages have no output: {sorted(missing)[:5]}"
        double = {p for p, text in names.items() if seen[text] > 1} - self.again
        assert not double, f"{len(double)} messages have two outputs: {sorted(double)[:5]}"
        return predicted

    def check_outputs(self) -> None:
        """Each message has one output, with the prediction of the model that it was about to teach."""
        places = {name(payload): place for place, payload in self.messages.items()}
        for message in self.check_once():
            place = places[message["ts"].encode()]
            if message.get("replayed") or place in self.given_up:
                continue
            version, answer = message["model_version"], message["predict_y"]
            assert version in self.versions[place], f"{message} is not of {self.versions[place]}"
            if place not in self.unordered:
                assert (version, answer) in self.predictions[place], (
                    f"{message} is not of {self.predictions[place]}"
                )

    def _read(self, topic: str) -> list[bytes | None]:
        return list(read_committed(self.settings, topic).values())


def name(payload: bytes | None) -> bytes:
    """Return the number of a numbered message: a sample's ``ts``, a bad message's whole text."""
    return (
        orjson.loads(payload)["ts"].encode() if payload and payload[:1] == b"{" else payload or b""
    )

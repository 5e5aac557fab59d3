"""Faults against a running job, on real processes, while numbered messages arrive.

``Trial`` runs the job. Each function in ``FAULTS`` injects one fault and then does what a person or
``make run`` would do. ``Trial.prove`` checks what was promised (harness/proof.py).
"""

import contextlib
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest
import redis
import requests
from kafka import KafkaAdminClient, TopicPartition
from kafka.admin import NewPartitions

from harness.page import Page, drawing
from harness.proof import Proof
from harness.redis_history import files
from harness.redis_proxy import RedisProxy
from harness.stack import FLINK, Stack, until
from local import brokers
from loop.model_store import ModelStore, Stored, StoreError
from loop.topic_log import TopicLog
from settings import HERE

LONG = 240  # seconds; on a busy machine a recovery of seconds may take minutes


class Trial:
    """The job, a producer and the page, with their own topics and model on a running stack.

    The job reaches Redis through a proxy. ``rate``: messages per second.
    """

    def __init__(
        self, parts: Stack, rng: random.Random, rate: float = 200, learner: str = "sgd"
    ) -> None:
        self.parts = parts.start("kafka", "redis", *FLINK)
        self.rng, self.rate = rng, rate
        self.stack = parts.named(learner=learner)
        self.settings = self.stack.settings
        self.proxy = RedisProxy(self.settings.redis_port)
        self.store, self.log = ModelStore(self.settings), TopicLog(self.settings)
        self.redis_folder = self.settings.run_dir / "redis"
        self.proof = Proof(self.settings, self.redis_folder)
        self.jobs: list[str] = []
        self.sent_from = 1
        self.producer: subprocess.Popen | None = None
        self.page: Page | None = None
        self.page_problems: list[str] = []
        self._watching = threading.Event()
        self.keep_the_whole_history()

    def keep_the_whole_history(self) -> None:
        """Keep Redis from rewriting its append-only file, in which the proof reads every commit."""
        self.stack.redis_admin().config_set("auto-aof-rewrite-percentage", 0)

    # -- producer, job and page --------------------------------------------------------------

    def start(self, page: bool = True) -> "Trial":
        """Start the producer, the job and the page; return when the job learns."""
        self.produce()
        self.submit()
        if page:
            self.page = Page(self.stack)
            self._watching.set()
            threading.Thread(target=self._watch_page, args=(self.page,), daemon=True).start()
        self.recovered()
        return self

    def close(self) -> None:
        """End what this trial started; the stack keeps running."""
        self._watching.clear()
        self.stop_producing()
        if self.page and self.page.process:
            self.page.process.kill()
            self.page.process.communicate()
        with contextlib.suppress(OSError):  # the JobManager may be down
            self.cancel()
        self.proxy.close()
        self.log.close()

    def produce(self) -> None:
        """Start the producer; each one has its own million of numbers."""
        numbers = [str(self.sent_from), str(self.rate)]
        argv = [sys.executable, "-m", "harness.numbered_producer", *numbers]
        self.sent_from += 1_000_000
        self.producer = subprocess.Popen(argv, cwd=HERE, env=self.stack.env)

    def stop_producing(self) -> None:
        """SIGKILL the producer."""
        if self.producer:
            self.producer.kill()
            self.producer.wait()

    def submit(self, restore: Path | str | None = None) -> str:
        """Submit the job from a savepoint or checkpoint, or from the consumer group's offsets.

        Without a restore point, some predictions may appear twice; ``proof.again`` records which.
        """
        again = self.unfinished()
        job = self.stack.submit_job(restore=restore, REDIS_PORT=str(self.proxy.port))
        self.jobs.append(job)
        if restore is None:
            # The submission may have set the group back to before transactions that were open.
            self.proof.again |= again | self.unfinished()
        return job

    def unfinished(self) -> set[tuple[str, int, int]]:
        """Return the places that the model has learned but the consumer group has not committed."""
        stored = self.stored()
        if stored is None:
            return set()
        committed = self.log.committed()
        places = set()
        for partition, end in (stored.meta.progress or stored.meta.starts).items():
            for offset in range(committed.get(partition, 0), end):
                places.add((stored.meta.topic_id, partition, offset))
        return places

    def cancel(self, *jobs: str) -> None:
        """Cancel these jobs, or all of this trial, unless they have ended."""
        for job in jobs or self.jobs:
            with contextlib.suppress(OSError):  # a restarted JobManager doesn't know it
                if self.stack.job_state(job) not in ("CANCELED", "FAILED", "FINISHED"):
                    self.stack.cancel_job(job)

    def newest_checkpoint(self) -> Path:
        """Return the newest completed checkpoint of any of the jobs."""
        folder = self.settings.run_dir / "checkpoints"

        def completed() -> list[Path]:
            return [path for job in self.jobs for path in (folder / job).glob("chk-*/_metadata")]

        # After an accept there is none until the job has completed its first.
        found = until(completed, 60, "a checkpoint is completed")
        return max(found, key=lambda path: path.stat().st_mtime).parent

    def workers(self) -> list[psutil.Process]:
        """Return the running Python workers of this stack's present and earlier TaskManagers."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                ours = process.environ().get("RUN_DIR") == str(self.settings.run_dir)
                if ours and "pyflink.fn_execution" in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def stored(self) -> Stored | None:
        """Return what Redis holds, None if it can't be read now."""
        with contextlib.suppress(redis.RedisError, StoreError):
            return self.store.read()
        return None

    def recovered(self, seconds: float = LONG) -> float:
        """Wait until the job has learned all present messages and one more per partition.

        Returns how many seconds that took.
        """
        begin = time.monotonic()
        ends = until(self.log.bounds, seconds, "Kafka answers")
        lag: dict[int, int] = {}

        def learned() -> bool:
            stored = self.stored()
            progress = stored.meta.progress if stored and not stored.cleared else {}
            lag.update({p: end + 1 - progress.get(p, 0) for p, (_, end) in ends.items()})
            return all(messages <= 0 for messages in lag.values())

        try:
            until(learned, seconds, "the job learns again")
        except AssertionError as error:
            raise AssertionError(f"{error}; lag {lag}; {self._state_of(self.jobs[-1])}") from None
        return time.monotonic() - begin

    def stopped_with(self, sentence: str, job: str | None = None) -> None:
        """Wait until the job has failed with this sentence, and restart a dead TaskManager."""
        job = job or self.jobs[-1]

        def failed() -> bool:
            # The connector may throw while it closes a fenced producer.
            # Flink then ends the whole TaskManager.
            self.parts.start("taskmanager")
            return sentence in self.stack.exceptions(job)

        try:
            until(failed, LONG, f"the job fails with: {sentence}")
        except AssertionError as error:
            raise AssertionError(f"{error}; {self._state_of(job)}") from None

    def _state_of(self, job: str) -> str:
        exceptions = self.stack.exceptions(job)[:3000]
        return f"the job is {self.stack.job_state(job)}; its exception: {exceptions}"

    def admin(self, *command: str) -> str:
        """Run one of the project's commands and return its output."""
        done = subprocess.run(
            [sys.executable, *command], cwd=HERE, env=self.stack.env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def keep(self) -> None:
        """Record messages and commits before some of them are deleted."""
        self.proof.keep(self.log.topic_id())

    def _watch_page(self, page: Page) -> None:
        """Ask the page for its model and for an answer; note each older version and each 500."""
        newest = ("", 0)
        while self._watching.is_set():
            # The page may be killed, or have no model yet.
            with contextlib.suppress(requests.RequestException, KeyError):
                status, model = page.get("/model")
                if status >= 500 and status != 503:
                    self.page_problems.append(f"GET /model: {status}")
                served = model["model_id"], model["version"]
                if served < newest:
                    self.page_problems.append(f"{served} after {newest}")
                newest = max(newest, served)
                status, answer = page.post("/predict", imgStr=drawing(3))
                if status != 201:
                    self.page_problems.append(f"POST /predict: {status} {answer}")
            time.sleep(0.2)

    def prove(self) -> tuple[int, int, int]:
        """Wait until the job has learned everything, then check all promises.

        Returns the numbers of messages: (sent, lost, learned twice).
        """
        self.stop_producing()
        ends = {p: end for p, (_, end) in self.log.bounds().items()}

        def all_learned() -> bool:
            stored = self.stored()
            return stored is not None and stored.meta.progress == ends

        until(all_learned, LONG, "the job has learned everything")
        until(lambda: self.log.committed() == ends, LONG, "a checkpoint holds everything")
        self.keep()
        stored = self.store.read(with_state=True)
        assert stored
        last = list(self.proof.commits)[-1]
        assert stored.meta.commit_id == last, "the last commit is the stored model"
        assert not self.page_problems, self.page_problems[:5]
        until(self._outputs_hold, 60, "each message has one output")
        return len(self.proof.messages), *self.proof.lost_and_twice()

    def _outputs_hold(self) -> bool:
        self.proof.check_outputs()
        return True


@contextlib.contextmanager
def trial(parts: Stack, seed: int, **options) -> Iterator[Trial]:
    """Run the job while the block runs."""
    running = Trial(parts, random.Random(seed), **options)  # noqa: S311 - no secret
    try:
        yield running.start()
    finally:
        running.close()


# --- the faults -----------------------------------------------------------------------------


def kill_worker(t: Trial) -> None:
    for worker in t.workers():
        worker.kill()


def kill_taskmanager(t: Trial) -> None:
    t.parts.kill("taskmanager")
    t.parts.start("taskmanager")


def kill_jobmanager(t: Trial) -> None:
    """Without high availability the job is lost; it is submitted from its newest checkpoint."""
    t.parts.kill("jobmanager")
    t.parts.restart(*FLINK)
    t.submit(t.newest_checkpoint())


def kill_kafka(t: Trial) -> None:
    t.parts.kill("kafka")
    t.parts.start("kafka")


def kill_redis(t: Trial) -> None:
    t.parts.kill("redis")
    t.parts.start("redis")
    t.keep_the_whole_history()


def kill_producer(t: Trial) -> None:
    t.stop_producing()
    t.produce()


def kill_page(t: Trial) -> None:
    if t.page and t.page.process:
        t.page.process.kill()
        t.page.process.communicate()
        t.page.start()


def pause_a_part(t: Trial) -> None:
    """SIGSTOP the workers or another process for 10 s."""
    name = t.rng.choice(["worker", "taskmanager", "jobmanager", "kafka", "redis"])
    stopped = t.workers() if name == "worker" else [running(t, name)]
    for process in stopped:
        process.send_signal(signal.SIGSTOP)
    time.sleep(10)
    for process in stopped:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGCONT)


def running(t: Trial, name: str) -> psutil.Process:
    """Return a process of the stack by its name, for example ``kafka``."""
    popen = t.parts.parts[name].popen
    assert popen, f"{name} runs"
    return psutil.Process(popen.pid)


def stop_redis_for_20_s(t: Trial) -> None:
    t.parts.stop("redis")
    time.sleep(20)
    t.parts.start("redis")
    t.keep_the_whole_history()


def submit_a_second_job(t: Trial) -> None:
    """The second job ends with a sentence before it aborts a transaction of the first."""
    with pytest.raises(AssertionError, match="Another submission of this job"):
        t.stack.submit_job()


def wake_a_stale_task(t: Trial) -> None:
    """The first task sleeps until its lease has expired, another job starts, the first wakes."""
    stopped, first = t.workers(), t.jobs[-1]
    for process in stopped:
        process.send_signal(signal.SIGSTOP)
    until(lambda: not t.store.redis.exists(t.store.keys.lease), 60, "the lease has expired")
    t.submit()
    t.recovered()
    for process in stopped:
        process.send_signal(signal.SIGCONT)
    t.stopped_with("submission of this job", first)
    t.cancel(first)


def clear_the_model(t: Trial) -> None:
    t.keep()
    t.admin("redis_clear.py", t.settings.model_key)


def copy_redis(t: Trial) -> Path:
    """Return a copy of Redis's append-only file, which may end in the middle of a commit."""
    copy = t.settings.run_dir / "redis-before"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(t.redis_folder, copy, ignore=shutil.ignore_patterns("*.new"))
    return copy


def put_redis_back(t: Trial, copy: Path) -> None:
    """Restart Redis with the copy's data."""
    t.parts.kill("redis")
    t.keep()
    for path in files(copy):
        shutil.copyfile(path, t.redis_folder / path.relative_to(copy))
    t.parts.start("redis")
    t.keep_the_whole_history()


def roll_redis_back_under_the_job(t: Trial) -> None:
    copy = copy_redis(t)
    t.recovered()
    time.sleep(t.rng.uniform(0, 4))
    put_redis_back(t, copy)


def roll_redis_back_while_the_job_is_down(t: Trial) -> None:
    copy = copy_redis(t)
    t.recovered()
    ends = {p: end for p, (_, end) in t.log.bounds().items()}

    def checkpointed() -> bool:
        committed = t.log.committed()
        return all(committed.get(p, 0) >= end for p, end in ends.items())

    until(checkpointed, 60, "a checkpoint past the copy")
    t.cancel()
    put_redis_back(t, copy)
    t.submit(t.newest_checkpoint())


def lose_the_answer_to_a_commit(t: Trial) -> None:
    cuts = t.proxy.cuts
    t.proxy.cut.set()
    until(lambda: t.proxy.cuts > cuts, 60, "an answer was lost")


def cancel_and_submit_again(t: Trial) -> None:
    """Submit without a checkpoint, like a person who does not know of any."""
    t.cancel()
    t.submit()


def cancel_and_resume(t: Trial) -> None:
    t.cancel()
    t.submit(t.newest_checkpoint())


def stop_with_a_savepoint(t: Trial) -> None:
    job = t.jobs[-1]
    trigger = t.stack.rest(f"/jobs/{job}/stop", {"drain": False})["request-id"]

    def place() -> str | None:
        answer = t.stack.rest(f"/jobs/{job}/savepoints/{trigger}")
        return answer.get("operation", {}).get("location")

    savepoint = until(place, LONG, "the savepoint is there")
    t.stack.wait_for_job(job, "FINISHED")
    t.submit(savepoint)


def add_a_partition(t: Trial) -> None:
    count = len(t.log.bounds()) + 1
    with contextlib.closing(KafkaAdminClient(**t.settings.kafka_client())) as client:
        client.create_partitions({t.settings.input_topic: NewPartitions(count)})
    kill_producer(t)  # the next one also sends to the new partition


def delete_samples_under_a_stalled_reader(t: Trial) -> None:
    """Retention deletes samples that were not learned; the job stops, and a person accepts it."""
    job = t.jobs[-1]
    stopped = [running(t, "taskmanager"), *t.workers()]
    for process in stopped:
        process.send_signal(signal.SIGSTOP)
    time.sleep(8)
    t.stop_producing()
    ends = {p: end for p, (_, end) in t.log.bounds().items()}
    t.keep()
    for partition in ends:
        delete_records(t, partition, ends[partition] - 5)
    for process in stopped:
        process.send_signal(signal.SIGCONT)
    t.produce()
    t.stopped_with("retention has deleted", job)
    t.cancel()
    accept(t)
    t.submit()


def delete_records(t: Trial, partition: int, before: int) -> None:
    """Delete a partition's records below an offset, as retention does."""
    with contextlib.closing(KafkaAdminClient(**t.settings.kafka_client())) as client:
        client.delete_records({TopicPartition(t.settings.input_topic, partition): before})


def make_the_topic_anew(t: Trial) -> None:
    job, old = t.jobs[-1], t.log.topic_id()
    t.stop_producing()
    t.keep()
    with contextlib.closing(KafkaAdminClient(**t.settings.kafka_client())) as client:
        client.delete_topics([t.settings.input_topic])
        until(lambda: t.settings.input_topic not in client.list_topics(), 30, "the topic is gone")
    brokers.create_topics(t.settings)
    assert until(t.log.topic_id, 30, "the topic is there") != old
    t.produce()
    t.stopped_with("deleted and recreated", job)
    t.cancel()
    accept(t)
    t.submit()


def accept(t: Trial) -> None:
    """Run ``model accept``, and record the skipped places and those without a prediction."""
    before = t.store.read()
    assert before
    t.proof.unpredicted |= t.unfinished()
    t.admin("admin.py", "model", "accept", "--yes")
    after = t.store.read()
    assert after
    old, new = before.meta, after.meta
    for place in t.proof.messages:
        topic_id, partition, offset = place
        if topic_id != old.topic_id or offset < old.progress.get(partition, 0):
            continue
        if old.topic_id != new.topic_id or offset < new.progress[partition]:
            t.proof.given_up.add(place)


def empty_redis(t: Trial) -> None:
    """The job stops with a sentence and does not start over; a person restores the backup."""
    lose_keys(t, t.store.keys.committed, "Redis holds no model", lambda: t.store.redis.flushall())


def delete_one_key(t: Trial) -> None:
    key = t.rng.choice([key for key in t.store.keys.committed if t.store.redis.exists(key)])
    sentences = "is gone while", "unsigned model", "is not the state"
    sentence = sentences[t.store.keys.committed.index(key)]
    lose_keys(t, [key], sentence, lambda: t.store.redis.delete(key))


def lose_keys(t: Trial, keys: Sequence[str], sentence: str, lose: Callable[[], object]) -> None:
    """Lose keys between two commits, wait for the job's sentence, and restore the keys."""
    workers = t.workers()
    for process in workers:
        process.send_signal(signal.SIGSTOP)
    store, (model, meta, state) = t.store.redis, t.store.keys.committed
    lost: dict = {key: store.hgetall(key) if key == meta else store.get(key) for key in keys}
    lose()
    for process in workers:
        process.send_signal(signal.SIGCONT)
    t.stopped_with(sentence)
    with store.pipeline(transaction=True) as backup:
        for key in (model, state):
            if lost.get(key):
                backup.set(key, lost[key])
        if meta in lost:
            backup.hset(meta, mapping=lost[meta])
        backup.execute()


FAULTS: dict[str, Callable[[Trial], None]] = {
    fault.__name__: fault
    for fault in (
        kill_worker,
        kill_taskmanager,
        kill_jobmanager,
        kill_kafka,
        kill_redis,
        kill_producer,
        kill_page,
        pause_a_part,
        stop_redis_for_20_s,
        submit_a_second_job,
        wake_a_stale_task,
        clear_the_model,
        roll_redis_back_under_the_job,
        roll_redis_back_while_the_job_is_down,
        lose_the_answer_to_a_commit,
        cancel_and_submit_again,
        cancel_and_resume,
        stop_with_a_savepoint,
        empty_redis,
        delete_one_key,
        add_a_partition,
        delete_samples_under_a_stalled_reader,
        make_the_topic_anew,
    )
}


def strike(t: Trial, name: str) -> float:
    """Inject one fault at a random moment; return the seconds until the job has recovered."""
    time.sleep(t.rng.uniform(0, 2))
    begin = time.monotonic()
    FAULTS[name](t)
    t.recovered()
    return time.monotonic() - begin

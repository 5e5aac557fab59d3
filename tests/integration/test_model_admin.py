"""The changes of admin.py to a stored model, on a real Kafka and Redis, while no job runs."""

import pickle
import secrets
import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner, Result
from kafka import KafkaAdminClient, TopicPartition
from pydantic import SecretStr
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression, SGDClassifier, SGDRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler

from commands import model as model_admin
from harness.stack import Stack, until
from learners.learner import load_learner, sgd
from loop.messages import DIGITS
from loop.model_store import LeaseError, ModelStore, SignatureError
from loop.topic_log import TopicLogError
from settings import HERE, Settings, UserError
from tests.integration.test_trainer import feed, loop, remake_topic, send, tasks, weights

X, Y = load_digits(return_X_y=True)
__all__ = ["loop", "tasks"]  # fixtures


@pytest.fixture
def admin(loop, monkeypatch):
    """Return a function that calls admin.py on the settings of ``loop`` or on others.

    It raises what the command raises.
    """

    def call(*arguments: str, settings: Settings | None = None, answer: str = "") -> Result:
        monkeypatch.setattr(model_admin, "settings", lambda: settings or loop.settings)
        done = CliRunner().invoke(model_admin.model, arguments, input=answer)
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done

    return call


def trained(loop, tasks, samples: int = 100):
    """Return a closed task that has learned ``samples`` messages."""
    send(loop, 0, samples)
    task = tasks()
    feed(task, 0, samples)
    task.close()
    return task


def changed(loop: Stack, **update) -> Settings:
    return loop.settings.model_copy(update=update)


# -- accept


def test_accept_beside_a_live_job_is_a_sentence_and_changes_nothing(loop, tasks):
    send(loop, 0, 50)
    task = tasks()
    feed(task, 0, 50)
    before = task.store.read()
    done = subprocess.run(
        [sys.executable, "admin.py", "model", "accept", "--yes"],
        cwd=HERE,
        env=loop.env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "is running on the model" in done.stderr
    assert done.stderr.count("\n") == 1
    assert task.store.read() == before


def test_a_job_that_starts_while_accept_asks_is_refused(loop, tasks, admin):
    task, asked, answered = trained(loop, tasks), threading.Event(), threading.Event()

    def confirm(*_, **__):
        asked.set()
        assert answered.wait(60)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_admin.click, "confirm", confirm)
        accepting = threading.Thread(target=admin, args=("accept",))
        accepting.start()
        assert asked.wait(30)
        try:
            with pytest.raises(RuntimeError, match=r"Another submission|newer submission"):
                tasks()
        finally:
            answered.set()
            accepting.join()
    assert task.store.read().meta.progress == {0: 100}
    assert not task.store.redis.exists(task.store.keys.lease)


def test_accept_learns_nothing_twice_and_leaves_nothing_out(loop, tasks, admin):
    task = trained(loop, tasks)
    send(loop, 100, 150)
    done = admin("accept", "--yes")
    assert "next sample to learn 100 -> 100\n" in done.output
    second = tasks(submission="99991231T235959-00000000")
    feed(second, 100, 150)
    meta = task.store.read().meta
    assert (meta.samples, meta.progress) == (150, {0: 150})


def test_accept_refuses_a_topic_that_does_not_exist(loop, tasks, admin):
    task = trained(loop, tasks)
    before = task.store.read()
    with pytest.raises(TopicLogError, match=r"no topic mistyped: create it, or set INPUT_TOPIC"):
        admin("accept", "--yes", settings=changed(loop, input_topic="mistyped"))
    assert task.store.read() == before
    client = KafkaAdminClient(**loop.settings.kafka_client())
    assert "mistyped" not in client.list_topics()
    client.close()


def test_accept_refuses_a_topic_that_lacks_a_partition(parts, tasks, admin):
    two = parts.named(partitions=2, learner="sgd")
    for partition in (0, 1):
        send(two, 0, 20, partition)
    task = tasks(settings=two.settings)
    for partition in (0, 1):
        feed(task, 0, 20, partition)
    task.close()
    before = task.store.read()
    other = two.settings.model_copy(update={"input_topic": parts.named().settings.input_topic})
    with pytest.raises(UserError, match="has no partition 1, which the model has learned from"):
        admin("accept", "--yes", settings=other)
    assert task.store.read() == before


def test_accept_says_how_many_deleted_messages_are_skipped(loop, tasks, admin):
    task = trained(loop, tasks)
    send(loop, 100, 150)
    client = KafkaAdminClient(**loop.settings.kafka_client())
    client.delete_records({TopicPartition(loop.settings.input_topic, 0): 130})
    client.close()
    done = admin("accept", answer="y\n")
    assert (
        "next sample to learn 100 -> 130; 30 messages that were deleted unread are skipped\n"
        in done.output
    )
    assert task.store.read().meta.progress == {0: 130}


@pytest.mark.parametrize(("written", "at", "skipped"), [(100, 100, 100), (60, 60, 60)])
def test_accept_says_how_many_messages_of_a_log_written_again_may_be_skipped(
    loop, tasks, admin, written, at, skipped
):
    task = trained(loop, tasks)
    stored = task.store.read(with_state=True)
    remake_topic(loop)  # a broker that lost its end and went on keeps the topic's id
    send(loop, 500, 500 + written)
    meta = replace(stored.meta, topic_id=task.log.topic_id())
    task.store.commit(task.held.stored, meta, stored.model, stored.state)
    done = admin("accept", "--yes")
    assert f"next sample to learn 100 -> {at}; the log lost its end" in done.output
    assert f"up to {skipped} that were not learned are skipped" in done.output


def test_accept_goes_on_with_a_topic_made_anew_from_its_beginning(loop, tasks, admin):
    task = trained(loop, tasks)
    before = task.store.read()
    remake_topic(loop)
    send(loop, 0, 40)
    admin("accept", "--yes")
    second = tasks(submission="99991231T235959-00000000")
    feed(second, 0, 40)
    meta = task.store.read().meta
    assert (meta.samples, meta.progress) == (140, {0: 40})
    assert meta.parent == f"{before.meta.model_id}:{before.meta.version}"


# -- resign


def with_key(loop: Stack, key: str) -> Settings:
    return changed(loop, model_signing_key=SecretStr(key))


@pytest.mark.parametrize("learner", ["sgd", "default"])
def test_a_new_key_keeps_model_state_and_place(parts, tasks, admin, tmp_path, learner):
    loop = parts.named(learner=learner)
    send(loop, 0, 60)
    task = tasks(settings=loop.settings)
    feed(task, 0, 40)
    task.close()
    before = task.store.read(with_state=True)
    old_key = tmp_path / "old.key"
    old_key.write_bytes(loop.settings.signing_key() + b"\n")
    new = with_key(loop, secrets.token_hex(32))
    with pytest.raises(SignatureError, match=r"python admin\.py model resign"):
        ModelStore(new).read()
    done = admin("resign", str(old_key), settings=new)
    assert (done.exit_code, "Signed again" in done.output) == (0, True)
    after = ModelStore(new).read(with_state=True)
    assert (after.model, after.state) == (before.model, before.state)
    assert (after.meta.order, after.meta.progress) == (before.meta.order, before.meta.progress)
    with pytest.raises(SignatureError):
        task.store.read()
    second = tasks(submission="99991231T235959-00000000", settings=new)
    feed(second, 40, 60)
    assert ModelStore(new).read().meta.samples == 60


def test_a_cleared_mark_gets_the_new_key_too(loop, tasks, admin, tmp_path):
    task = trained(loop, tasks)
    task.store.clear()
    old_key = tmp_path / "old.key"
    old_key.write_bytes(loop.settings.signing_key())
    new = with_key(loop, secrets.token_hex(32))
    assert admin("resign", str(old_key), settings=new).exit_code == 0
    mark = ModelStore(new).read(with_state=True)
    assert mark.cleared
    assert mark.meta.starts == {0: 100}


def test_a_wrong_old_key_or_the_same_key_changes_nothing(loop, tasks, admin, tmp_path):
    task = trained(loop, tasks)
    before = task.store.read()
    wrong, same = tmp_path / "wrong", tmp_path / "same"
    wrong.write_text("w" * 40)
    same.write_bytes(loop.settings.signing_key())
    for key, settings, sentence in (
        (wrong, with_key(loop, "n" * 40), "not signed with the key in"),
        (same, loop.settings, "this installation's key"),
    ):
        with pytest.raises(UserError, match=sentence):
            admin("resign", str(key), settings=settings)
    assert task.store.read() == before


def test_a_key_is_not_changed_beside_a_live_job(loop, tasks, admin, tmp_path):
    send(loop, 0, 50)
    task = tasks()
    feed(task, 0, 50)
    old_key = tmp_path / "old.key"
    old_key.write_bytes(loop.settings.signing_key())
    with pytest.raises(LeaseError, match="is running on the model"):
        admin("resign", str(old_key), settings=with_key(loop, "n" * 40))
    assert task.store.read().meta.samples == 50


# -- sign


def fitted(estimator, features: int = 64, classes=DIGITS.classes):
    return estimator.fit(X[:200, :features] % 16, Y[:200] % len(classes))


def test_sign_beside_a_live_job_is_refused_and_keeps_its_model(loop, tasks, admin, tmp_path):
    send(loop, 0, 100)
    task = tasks()
    feed(task, 0, 50)
    file = tmp_path / "model.pkl"
    file.write_bytes(pickle.dumps(fitted(sgd())))
    with pytest.raises(LeaseError, match="is running on the model"):
        admin("sign", str(file))
    feed(task, 50, 100)
    assert task.store.read().meta.samples == 100


@pytest.mark.parametrize("unsigned", [True, False])
def test_a_signed_model_is_what_the_job_goes_on_with(loop, tasks, admin, tmp_path, unsigned):
    send(loop, 0, 100)
    file, store = tmp_path / "model.pkl", ModelStore(loop.settings)
    file.write_bytes(pickle.dumps(fitted(sgd())))
    if unsigned:
        store.redis.set(store.keys.model, file.read_bytes())
    done = admin("sign", str(file))
    assert done.exit_code == 0, done.output
    alone = fitted(sgd())
    feed(tasks(submission="99991231T235959-00000000"), 0, 100)
    for i in range(0, 100, 50):
        alone.partial_fit(X[i : i + 50], Y[i : i + 50])
    assert weights(store.read().model) == weights(pickle.dumps(alone))


OTHERS = {
    "averaged": lambda: SGDClassifier(loss="log_loss", average=True, shuffle=False),
    "weighted": lambda: SGDClassifier(class_weight={3: 5.0}, shuffle=False),
    "hinge, constant rate": lambda: SGDClassifier(
        learning_rate="constant", eta0=0.01, shuffle=False
    ),
    "shuffled": lambda: SGDClassifier(loss="log_loss", random_state=3),
    "in a pipeline": lambda: make_pipeline(
        MaxAbsScaler(), SGDClassifier(loss="log_loss", shuffle=False)
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_signed_classifier_learns_with_its_own_parameters(name):
    alone = fitted(OTHERS[name]())
    learner = load_learner("sgd", DIGITS.classes, 64, pickle.dumps(alone), b"")
    for i in range(200, 400, 50):
        learner.learn(X[i : i + 50], Y[i : i + 50])
        batch = X[i : i + 50]
        if name == "in a pipeline":
            batch = alone[0].partial_fit(batch).transform(batch)
        getattr(alone, "steps", [("", alone)])[-1][1].partial_fit(batch, Y[i : i + 50])
    np.testing.assert_array_equal(learner.predict(X), alone.predict(X))
    last = pickle.loads(learner.model_bytes())
    np.testing.assert_array_equal(
        getattr(last, "steps", [("", last)])[-1][1].coef_,
        getattr(alone, "steps", [("", alone)])[-1][1].coef_,
    )


REFUSED = {
    "no partial_fit": (lambda: LogisticRegression(), "partial_fit"),
    "other features": (lambda: fitted(sgd(), features=10), "features"),
    "other classes": (lambda: fitted(sgd(), classes=[0, 1]), "the classes"),
    "a regressor": (lambda: SGDRegressor().fit(X[:50], Y[:50]), "can't continue"),
    "balanced": (lambda: fitted(SGDClassifier(class_weight="balanced")), "can't continue"),
    "no estimator": (lambda: {"weights": [1, 2]}, "can't continue"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_pickle_that_can_not_learn_this_stream_is_not_signed(loop, admin, tmp_path, name):
    make, sentence = REFUSED[name]
    file, store = tmp_path / "model.pkl", ModelStore(loop.settings)
    file.write_bytes(pickle.dumps(make()))
    with pytest.raises(UserError, match=sentence):
        admin("sign", str(file))
    assert store.read() is None


def test_the_default_learner_is_not_signed_without_its_training_state(loop, admin, tmp_path):
    file = tmp_path / "model.pkl"
    file.write_bytes(pickle.dumps(fitted(sgd())))
    with pytest.raises(UserError, match=r"python admin\.py model resign"):
        admin("sign", str(file), settings=changed(loop, learner="default"))


def test_a_model_signed_after_a_clear_goes_on_where_the_cleared_one_ended(
    loop, tasks, admin, tmp_path
):
    task = trained(loop, tasks)
    task.store.clear()
    file = tmp_path / "model.pkl"
    file.write_bytes(pickle.dumps(fitted(sgd())))
    assert admin("sign", str(file)).exit_code == 0
    assert task.store.read().meta.progress == {0: 100}
    until(lambda: not task.store.redis.exists(task.store.keys.lease), 5)

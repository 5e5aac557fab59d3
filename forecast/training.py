"""Training of a Keras model on JAX, an epoch in one compiled call."""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")  # keras reads it once, at its import

from pathlib import Path

import jax
import jax.numpy as jnp
import keras
import numpy as np

Arrays = dict[str, np.ndarray]


def cache_compiled(folder: Path) -> None:
    """Keep compiled programs in this folder, as every day is a new process."""
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def masked_l1(target: jax.Array, forecast: jax.Array) -> jax.Array:
    """Return each row's mean absolute error over what was observed (not NaN), (n,)."""
    seen = ~jnp.isnan(target)
    return jnp.where(seen, jnp.abs(jnp.where(seen, target, 0) - forecast), 0).mean(axis=-1)


def masked_l2(target: jax.Array, forecast: jax.Array) -> jax.Array:
    """Return each row's mean squared error over what was observed (not NaN), (n,)."""
    seen = ~jnp.isnan(target)
    return jnp.where(seen, (jnp.where(seen, target, 0) - forecast) ** 2, 0).mean(axis=-1)


class Trainer:
    """Adam with Polyak averaging on one model.

    The state is explicit and every draw is seeded, so that a run repeats to the bit.
    """

    def __init__(self, model: keras.Model, loss=masked_l1, polyak: float = 0.99) -> None:
        self.model = model
        self.loss = loss
        self.polyak = polyak
        self._epoch = jax.jit(self._scan)
        self._forward = jax.jit(lambda weights, inputs: self._apply(weights, inputs))

    def _apply(self, weights, inputs):
        """Return the model's output with these weights."""
        fixed = [variable.value for variable in self.model.non_trainable_variables]
        return self.model.stateless_call(weights, fixed, inputs)[0]

    def _scan(self, state, inputs, target, weight, batches, rates):
        """Run one step per row of batches, int (steps, batch), each at its learning rate.

        state: weights, Adam's first and second moments, averaged weights, number of steps.
        """

        def step(state, now):
            rows, rate = now
            weights, first, second, average, count = state
            batch = {name: values[rows] for name, values in inputs.items()}

            def error(weights):
                return (self.loss(target[rows], self._apply(weights, batch)) * weight[rows]).mean()

            value, slope = jax.value_and_grad(error)(weights)
            count = count + 1
            first = [0.9 * m + 0.1 * g for m, g in zip(first, slope, strict=True)]
            second = [0.999 * v + 0.001 * g * g for v, g in zip(second, slope, strict=True)]
            weights = [
                w - rate * (m / (1 - 0.9**count)) / (jnp.sqrt(v / (1 - 0.999**count)) + 1e-7)
                for w, m, v in zip(weights, first, second, strict=True)
            ]
            keep = jnp.minimum(self.polyak, count / (count + 10.0))  # less at the beginning
            average = [keep * a + (1 - keep) * w for a, w in zip(average, weights, strict=True)]
            return (weights, first, second, average, count), value

        return jax.lax.scan(step, state, (batches, rates))

    def train(
        self,
        inputs: Arrays,
        target: np.ndarray,
        weight: np.ndarray,
        epochs: int,
        batch: int,
        rate: float,
        seed: int,
        on_epoch=lambda epoch, loss: None,
    ) -> None:
        """Train the model in place; the rate falls along a cosine.

        inputs: arrays of n rows. target: float32 (n, ...), NaN where unknown. weight: (n,).
        on_epoch: gets epoch and mean loss; it may raise ``StopIteration`` to end the training.
        """
        rng = np.random.default_rng(seed)
        weights = [variable.value for variable in self.model.trainable_variables]
        zeros = [jnp.zeros_like(values) for values in weights]
        state = (weights, zeros, zeros, weights, jnp.float32(0))
        batch = min(batch, len(target))
        steps = len(target) // batch
        data = {name: jnp.asarray(values) for name, values in inputs.items()}
        goal = jnp.asarray(target)
        importance = jnp.asarray(weight)
        for epoch in range(epochs):
            order = rng.permutation(len(target))[: steps * batch].reshape(steps, batch)
            done = epoch * steps + np.arange(steps)
            cosine = 1 + np.cos(np.pi * done / (epochs * steps))
            rates = jnp.asarray(rate * 0.5 * cosine, jnp.float32)
            state, losses = self._epoch(state, data, goal, importance, order, rates)
            averaged = state[3]
            for variable, value in zip(self.model.trainable_variables, averaged, strict=True):
                variable.assign(value)
            try:
                on_epoch(epoch, float(losses.mean()))
            except StopIteration:
                return

    def predict(self, inputs: Arrays, batch: int = 8192) -> np.ndarray:
        """Return the model's output, float32 (n, ...).

        Batches are padded to a power of two or to ``batch``, as each new shape is compiled.
        """
        n = len(next(iter(inputs.values())))
        batch = min(batch, 1 << max(n - 1, 0).bit_length())
        weights = [variable.value for variable in self.model.trainable_variables]
        parts = []
        for at in range(0, n, batch):
            rows = np.minimum(np.arange(at, at + batch), n - 1)
            part = {name: values[rows] for name, values in inputs.items()}
            parts.append(np.asarray(self._forward(weights, part)))
        return np.concatenate(parts)[:n]

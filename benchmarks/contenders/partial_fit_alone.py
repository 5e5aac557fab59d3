"""Limit: partial_fit alone on arrays in memory; prints samples/s.

Arguments: samples a batch, seconds.
"""

import sys
import time

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier

batch, seconds = int(sys.argv[1]), float(sys.argv[2])
X, y = load_digits(return_X_y=True)
rows = np.arange(batch) % len(X)
X, y, classes = X[rows], y[rows], np.arange(10)
model = SGDClassifier(alpha=0.01, loss="log_loss", penalty="l1", shuffle=False, random_state=0)
model.partial_fit(X, y, classes=classes)
began, learned = time.perf_counter(), 0
while time.perf_counter() - began < seconds:
    model.partial_fit(X, y)
    learned += batch
print(learned / (time.perf_counter() - began))

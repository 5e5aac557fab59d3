"""Experiments on the forecast."""

"""Real components on free ports, for tests and benchmarks."""

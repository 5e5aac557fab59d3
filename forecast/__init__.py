"""Hourly TV ad-inventory forecast, 90 days ahead, updated daily: the second workload on the same stack."""

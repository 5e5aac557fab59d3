"""Hourly forecast of TV ad inventory, 90 days ahead, updated daily."""

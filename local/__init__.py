"""What ``make run`` starts on this machine."""

"""The drawing page behind server.py."""

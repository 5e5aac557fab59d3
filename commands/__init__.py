"""What admin.py does."""

"""Metrics and full ranking."""

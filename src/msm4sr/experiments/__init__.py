"""Whole runs and comparisons."""

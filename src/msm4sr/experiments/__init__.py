"""Runs, grids and tuning."""

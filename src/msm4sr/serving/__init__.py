"""Recommendations for people to look at."""

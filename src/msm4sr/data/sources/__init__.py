"""Readers of other formats: one file a format, each writes a prepared folder."""

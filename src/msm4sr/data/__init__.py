"""Prepared folders, the splits and batches made of them, and a generated catalogue."""

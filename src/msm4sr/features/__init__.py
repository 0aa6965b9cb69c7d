"""Frozen encoders: what an item's texts and pictures look like as vectors, extracted once."""

"""Frozen encoders turn the texts and images of items into vectors, once; feature stores keep them."""

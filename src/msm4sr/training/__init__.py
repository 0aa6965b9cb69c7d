"""The training loop and its two stages."""

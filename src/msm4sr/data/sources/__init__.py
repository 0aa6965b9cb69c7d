"""Formats that `msm4sr prepare` reads, one file each, and the pipeline from any of them to a prepared folder."""

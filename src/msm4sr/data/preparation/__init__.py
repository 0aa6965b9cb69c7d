"""From any source to a prepared folder: what the sources in `msm4sr.data.sources` share."""

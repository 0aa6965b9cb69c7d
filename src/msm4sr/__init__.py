"""msm4sr: pictures, texts and order, from a folder to recommendations."""

"""A model for msm4sr in a package of its own."""

"""What another package can add to msm4sr: a model, a data source, an encoder and a state store."""

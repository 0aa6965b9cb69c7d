"""The training tasks, one module each: what a stage of training minimises, and on which batches."""

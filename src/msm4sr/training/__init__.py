"""Training: the trainer and its callbacks, the tasks, checkpoints, devices and processes."""

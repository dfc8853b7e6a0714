"""The worker: takes one job at a time from the queue and runs it in a fresh training process."""

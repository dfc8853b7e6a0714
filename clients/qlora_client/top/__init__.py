"""`qlora top`: the running job, the queue and the last events on one screen."""

"""What a job is: the vocabulary that daemon, worker, clients and training share. Never imports mlx."""

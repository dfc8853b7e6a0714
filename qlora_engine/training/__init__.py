"""How a job is trained: the only place that imports mlx."""

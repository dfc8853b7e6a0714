"""Measuring the engine beside mlx_lm's own trainer, on one machine, with one job."""

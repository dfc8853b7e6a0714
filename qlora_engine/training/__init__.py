"""How a job is trained: the only place that imports mlx."""

from qlora_engine.training.import_cache import keep_structure

keep_structure()  # before anything here imports mlx_lm, and that transformers

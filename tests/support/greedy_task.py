"""A training process that wants more memory than any limit of a test allows."""

import mlx.core as mx

if __name__ == "__main__":
    mx.eval(mx.random.normal((2_000_000, 1000)))  # 8 GB

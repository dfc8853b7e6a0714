"""What MLX computes on, and what is slow there that need not be."""

from __future__ import annotations

import platform

import mlx.core as mx

# MLX's exponential on x86 takes 22 ns a number, since its vector code is written for ARM; its power takes 6.
SLOW_EXP = platform.machine().lower() in ("x86_64", "amd64")
E = 2.7182817459106445  # as float32


def on_cpu() -> bool:
    """MLX computes on the CPU."""
    return bool(mx.default_device() == mx.Device(mx.DeviceType.cpu, 0))


def on_cuda() -> bool:
    """MLX computes on an NVIDIA GPU."""
    return not on_cpu() and not mx.metal.is_available()


def exp(x: mx.array) -> mx.array:
    """e to the power of x, float32.

    Where power is the faster function, the result is off by 3e-8 × |x|: e as a float32 is off by as much.
    """
    return mx.power(E, x) if SLOW_EXP and on_cpu() else mx.exp(x)

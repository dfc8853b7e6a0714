"""Run the source of a CUDA kernel on the processor: each block's threads as threads, one block after the other."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from qlora_engine.training.cuda import Kernel
from qlora_engine.training.tensor_cores import MULTIPLY

AXES = 8
C_TYPES = {"float16": "_Float16", "float32": "float", "uint32": "uint32_t"}

SHIM = r"""
#include <algorithm>
#include <array>
#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#define __device__
#define __global__
#define __shared__ static
#define __grid_constant__

struct uint4 { uint32_t x, y, z, w; };
struct float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct Index { uint32_t x = 0, y = 0, z = 0; };
static float2 make_float2(float x, float y) { return {x, y}; }
static float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
static float __int_as_float(int bits) { float number; std::memcpy(&number, &bits, 4); return number; }

static Index blockDim, blockIdx;
static thread_local Index threadIdx;
static std::unique_ptr<std::barrier<>> all;
static std::vector<std::unique_ptr<std::barrier<>>> warps;
static std::vector<float> lanes;
static std::vector<std::array<uint32_t, 6>> registers;

static void __syncthreads() { all->arrive_and_wait(); }
static void __syncwarp() { warps[threadIdx.x / 32]->arrive_and_wait(); }
template <typename T>
static void __stcg(T* to, const T& value) { *to = value; }
static float __shfl_xor_sync(uint32_t, float number, int other) {
  lanes[threadIdx.x] = number;
  __syncthreads();
  const float found = lanes[threadIdx.x ^ other];
  __syncthreads();
  return found;
}
using Shape = std::array<int32_t, 8>;
using Strides = std::array<int64_t, 8>;
"""
# The product of a warp from what the manual says of where each lane's numbers are.
MULTIPLY_ON_CPU = r"""
namespace mlx::core::cu {
static float half_of(uint32_t word, uint32_t which) {
  const uint16_t bits = word >> 16 * which;
  _Float16 number;
  std::memcpy(&number, &bits, 2);
  return number;
}

template <typename T>
static void multiply_add(
    float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  const uint32_t first = threadIdx.x / 32 * 32, lane = threadIdx.x % 32;
  registers[threadIdx.x] = {a0, a1, a2, a3, b0, b1};
  __syncwarp();
  for (uint32_t n = 0; n < 4; ++n) {
    const uint32_t row = lane / 4 + n / 2 * 8, column = lane % 4 * 2 + n % 2;
    for (uint32_t k = 0; k < 16; ++k) {
      const auto& of_a = registers[first + row % 8 * 4 + k % 8 / 2];
      const auto& of_b = registers[first + column * 4 + k % 8 / 2];
      d[n] += half_of(of_a[row / 8 + k / 8 * 2], k % 2) * half_of(of_b[4 + k / 8], k % 2);
    }
  }
  __syncwarp();
}
}
"""


def run(
    kernel: Kernel,
    inputs: Sequence[np.ndarray],
    *,
    threads: int,
    block: int,
    shapes: Sequence[tuple[int, ...]],
    constants: dict[str, int],
    folder: Path,
    kind: type[np.floating] = np.float16,
) -> list[np.ndarray]:
    """The outputs of a kernel, of one type.

    Args:
        threads: in all; a last block that is not full runs whole, as on a GPU.
        folder: to compile in.
    """
    library = _compiled(kernel, [array.dtype for array in inputs], np.dtype(kind), constants, folder)
    inputs = [_at_an_edge(array) if array.flags.c_contiguous else array for array in inputs]
    made = [_at_an_edge(np.zeros(shape, kind)) for shape in shapes]
    arguments = [array.ctypes.data_as(ctypes.c_void_p) for array in (*inputs, *made)]
    for array in inputs:
        axes = array.shape + (0,) * (AXES - array.ndim)
        strides = tuple(step // array.itemsize for step in array.strides) + (0,) * (AXES - array.ndim)
        arguments += [(ctypes.c_int32 * AXES)(*axes), (ctypes.c_int64 * AXES)(*strides)]
    library.launch(-(-threads // block), block, *arguments)
    return made


def _at_an_edge(array: np.ndarray) -> np.ndarray:
    """A copy after which no memory may be touched: whoever reads beyond its end is killed by SIGSEGV."""
    size = -(-array.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    region = mmap.mmap(-1, size + mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(region))
    refused = ctypes.CDLL(None, use_errno=True).mprotect(ctypes.c_void_p(start + size), mmap.PAGESIZE, 0)
    assert refused == 0, os.strerror(ctypes.get_errno())
    made = np.frombuffer(region, array.dtype, array.size, size - array.nbytes).reshape(array.shape)
    made[...] = array
    return made


def _compiled(
    kernel: Kernel, kinds: Sequence[np.dtype], kind: np.dtype, constants: dict[str, int], folder: Path
) -> ctypes.CDLL:
    """A library with one function: launch(blocks, threads of a block, inputs, outputs, shape and strides of inputs)."""
    types = [C_TYPES[str(kind)] for kind in kinds]
    pointers = [f"const {kind}* {name}" for kind, name in zip(types, kernel.inputs, strict=True)]
    pointers += [f"{C_TYPES[str(kind)]}* {name}" for name in kernel.outputs]
    shapes = [f"{name}_{what}" for name in kernel.inputs for what in ("shape", "strides")]
    axes = [f"const {'Shape' if name.endswith('shape') else 'Strides'}& {name}" for name in shapes]
    parameters, given = ", ".join([*pointers, *axes]), ", ".join([*kernel.inputs, *kernel.outputs, *shapes])
    known = "\n".join(f"constexpr int {name} = {int(value)};" for name, value in constants.items())
    source = f"""{SHIM}
{kernel.header.replace(MULTIPLY, MULTIPLY_ON_CPU)}
namespace mlx::core::cu {{
using T = {C_TYPES[str(kind)]};
using Narrow = _Float16;
{known}
static void kernel({parameters}) {{
{kernel.source}
}}
}}
extern "C" void launch(uint32_t block_count, uint32_t block_size, {parameters}) {{
  blockDim.x = block_size;
  lanes.resize(block_size);
  registers.resize(block_size);
  for (blockIdx.x = 0; blockIdx.x < block_count; ++blockIdx.x) {{
    all = std::make_unique<std::barrier<>>(block_size);
    warps.clear();
    for (uint32_t n = 0; n < block_size; n += 32) {{
      warps.push_back(std::make_unique<std::barrier<>>(std::min(32u, block_size - n)));
    }}
    std::vector<std::thread> threads;
    for (uint32_t n = 0; n < block_size; ++n) {{
      threads.emplace_back([&, n] {{
        threadIdx.x = n;
        mlx::core::cu::kernel({given});
        all->arrive_and_drop();
      }});
    }}
    for (auto& thread : threads) thread.join();
  }}
}}
"""
    file, library = folder / f"{kernel.name}.cpp", folder / f"{kernel.name}.so"
    if file.exists() and file.read_text() == source:
        return ctypes.CDLL(str(library))
    file.write_text(source)
    command = ["g++", "-std=c++20", "-O1", "-shared", "-fPIC", "-pthread", "-o", str(library), str(file)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return ctypes.CDLL(str(library))

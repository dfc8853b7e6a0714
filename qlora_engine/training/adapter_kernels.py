"""The products of adapters on CUDA: of matrices of which one side is a rank, on tensor cores, each in one kernel.

For such a product cuBLAS often starts three kernels, and MLX asks it for an algorithm each time, so that it takes the
processor longer than the GPU. There are 24 a layer.

The matrices of a layer lie as they are in a vector: rank rows of as many numbers as the layer has inputs or outputs.
Several layers that read one input lie after each other.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property

import mlx.core as mx

from qlora_engine.training.cuda import EIGHT, Kernel
from qlora_engine.training.tensor_cores import TENSOR_CORES

COLUMNS = 64  # a multiple of so many
LANES, TILE = 32, 16  # threads of a warp, and rows of its smallest product
# Warps of a block, and how many pieces of their sum they ask for before they need the first, or tiles that they add to.
# With more ahead a multiprocessor's registers would do for one block of sixteen warps, and three siblings of 768 rows
# are 144 blocks: a few of them would begin when all others have ended.
INNER_WARPS, INNER_AHEAD = 16, 2
OUTER_WARPS, OUTER_AHEAD = 4, 2
ADD_WARPS, ADD_TILES = 4, 4

# A block has a tile of rows and some ranks of a layer; its warps share the columns.
INNER = Kernel(
    "qlorad_inner",
    ("x", "w", "layout"),
    ("inner",),
    """
    constexpr uint32_t UNIT = 8 * UNITS;
    __shared__ float parts[WARPS][16][UNIT];
    const uint32_t warp = threadIdx.x / 32, high = threadIdx.x % 32 / 4, low = threadIdx.x % 4;
    const uint32_t members = layout_shape[0], rank = layout_shape[1], rows = x_shape[0], all = x_shape[1];
    const uint32_t units = members * rank / UNIT, unit = blockIdx.x % units;
    const uint32_t member = unit * UNIT / rank, top = blockIdx.x / units * 16, row = top + high;
    const uint32_t start = begin_of(member, layout, layout_shape, all);
    const uint32_t wide = begin_of(member + 1, layout, layout_shape, all) - start;
    const T* one = x + row * int64_t(all) + start;
    const T* other = one + 8 * int64_t(all);
    const T* mine = w + rank * int64_t(start) + (unit * UNIT - member * rank + high) * int64_t(wide);

    float sums[UNITS][4] = {};
    for (uint32_t begin = warp * 32 + low * 8; begin < wide; begin += AHEAD * WARPS * 32) {
      Words<4> a[AHEAD], b[AHEAD], c[AHEAD][UNITS];  // all are asked for before the first is needed
      #pragma unroll
      for (uint32_t n = 0; n < AHEAD; ++n) {
        const uint32_t at = begin + n * WARPS * 32;
        a[n] = read_words<4>(one + at, at < wide && row < rows);
        b[n] = read_words<4>(other + at, at < wide && row + 8 < rows);
        #pragma unroll
        for (uint32_t m = 0; m < UNITS; ++m) c[n][m] = read_words<4>(mine + 8 * m * int64_t(wide) + at, at < wide);
      }
      __syncwarp();  // or the compiler would ask for each when it is needed
      #pragma unroll
      for (uint32_t n = 0; n < AHEAD; ++n) {
        const auto &e = a[n].words, &f = b[n].words;
        #pragma unroll
        for (uint32_t m = 0; m < UNITS; ++m) {
          const auto& g = c[n][m].words;
          multiply_add<T>(sums[m], e[0], f[0], e[1], f[1], g[0], g[1]);
          multiply_add<T>(sums[m], e[2], f[2], e[3], f[3], g[2], g[3]);
        }
      }
    }
    #pragma unroll
    for (uint32_t n = 0; n < 4 * UNITS; ++n) {
      parts[warp][high + n % 4 / 2 * 8][n / 4 * 8 + low * 2 + n % 2] = sums[n / 4][n % 4];
    }
    __syncthreads();
    for (uint32_t n = threadIdx.x; n < 16 * UNIT; n += WARPS * 32) {
      const uint32_t r = n / UNIT, column = n % UNIT;
      float sum = 0;
      for (uint32_t part = 0; part < WARPS; ++part) sum += parts[part][r][column];
      if (top + r < rows) inner[(top + r) * members * rank + unit * UNIT + column] = static_cast<T>(sum);
    }
    """,
    header=TENSOR_CORES,
)
# A block has 64 columns and some ranks of a layer; its warps share the rows.
OUTER_PRODUCT = """
namespace mlx::core::cu {

template <typename T, uint32_t WARPS, uint32_t AHEAD, uint32_t UNITS>
__device__ void outer_product(
    uint32_t block, const T* inner, const T* x, uint32_t rows, uint32_t all,
    const uint32_t* layout, const Shape& layout_shape, T* w) {
  constexpr uint32_t UNIT = 8 * UNITS;
  __shared__ float parts[WARPS][UNIT][68];  // of 64 columns: the lanes of a warp write to 32 banks
  const uint32_t warp = threadIdx.x / 32, high = threadIdx.x % 32 / 4, low = threadIdx.x % 4;
  const uint32_t members = layout_shape[0], rank = layout_shape[1];
  const uint32_t column = block % (all / 64) * 64, unit = block / (all / 64);
  const uint32_t member = member_of(column, layout, layout_shape, all);
  const uint32_t start = begin_of(member, layout, layout_shape, all);
  const uint32_t wide = begin_of(member + 1, layout, layout_shape, all) - start;
  const T* beside = inner + member * rank + unit * UNIT + high;

  float sums[8][4] = {};
  for (uint32_t begin = warp * 16; begin < rows; begin += AHEAD * WARPS * 16) {
    Words<4> of_x[AHEAD][4];  // all are asked for before the first is needed
    uint32_t of_inner[AHEAD][2][4];
    #pragma unroll
    for (uint32_t n = 0; n < 4 * AHEAD; ++n) {
      const uint32_t row = begin + n / 4 * WARPS * 16 + low * 4 + n % 4;
      of_x[n / 4][n % 4] = read_words<4>(x + row * int64_t(all) + column + high * 8, row < rows);
      #pragma unroll
      for (uint32_t m = 0; m < 2; ++m) {
        const bool there = m < UNITS && row < rows;
        of_inner[n / 4][m][n % 4] = there ? bits(beside[row * int64_t(members * rank) + 8 * m]) : 0;
      }
    }
    #pragma unroll
    for (uint32_t n = 0; n < AHEAD; ++n) {
      const auto &e = of_inner[n][0], &f = of_inner[n][1];
      const uint32_t a0 = firsts(e[0], e[1]), a1 = firsts(f[0], f[1]);
      const uint32_t a2 = firsts(e[2], e[3]), a3 = firsts(f[2], f[3]);
      #pragma unroll
      for (uint32_t m = 0; m < 4; ++m) {
        uint32_t b[4];
        #pragma unroll
        for (uint32_t k = 0; k < 4; ++k) b[k] = of_x[n][k].words[m];
        multiply_add<T>(sums[2 * m], a0, a1, a2, a3, firsts(b[0], b[1]), firsts(b[2], b[3]));
        multiply_add<T>(sums[2 * m + 1], a0, a1, a2, a3, seconds(b[0], b[1]), seconds(b[2], b[3]));
      }
    }
  }
  #pragma unroll
  for (uint32_t n = 0; n < 16 * UNITS; ++n) {  // the rows beyond a unit of 8 are zeros
    // Column low * 16 + n % 2 * 8 + n % 16 / 2, those that are 16 apart side by side.
    parts[warp][high + n / 16 * 8][low + n % 2 * 32 + n % 16 / 2 * 4] = sums[n % 16 / 2][n / 16 * 2 + n % 2];
  }
  __syncthreads();
  T* mine = w + rank * int64_t(start) + unit * UNIT * int64_t(wide) + column - start;
  for (uint32_t n = threadIdx.x; n < UNIT * 64; n += WARPS * 32) {
    float sum = 0;
    for (uint32_t part = 0; part < WARPS; ++part) sum += parts[part][n / 64][n % 64 / 16 + n % 16 * 4];
    mine[n / 64 * int64_t(wide) + n % 64] = static_cast<T>(sum);
  }
}

}
"""
# Both gradients at once: each by itself has too few blocks for a large GPU.
OUTER = Kernel(
    "qlorad_outer",
    ("back", "x", "of_x", "inner", "y", "of_y"),
    ("a", "b"),
    """
    const uint32_t rows = x_shape[0], inputs = x_shape[1], outputs = y_shape[1];
    const uint32_t blocks = inputs / 64 * (of_x_shape[1] / (8 * UNITS));
    if (blockIdx.x < blocks) {
      outer_product<T, WARPS, AHEAD, UNITS>(blockIdx.x, back, x, rows, inputs, of_x, of_x_shape, a);
    } else {
      outer_product<T, WARPS, AHEAD, UNITS>(blockIdx.x - blocks, inner, y, rows, outputs, of_y, of_y_shape, b);
    }
    """,
    header=TENSOR_CORES + OUTER_PRODUCT,
)
# A warp has 32 columns of some tiles of rows.
ADD = Kernel(
    "qlorad_add_product",
    ("y", "inner", "w", "layout"),
    ("sum",),
    """
    const uint32_t index = blockIdx.x * WARPS + threadIdx.x / 32;
    const uint32_t high = threadIdx.x % 32 / 4, low = threadIdx.x % 4;
    const uint32_t members = layout_shape[0], rank = layout_shape[1], rows = y_shape[0], all = y_shape[1];
    const uint32_t column = index % (all / 32) * 32, top = index / (all / 32) * 16 * TILES + high;
    if (top - high >= rows) return;
    const uint32_t member = member_of(column, layout, layout_shape, all);
    const uint32_t start = begin_of(member, layout, layout_shape, all);
    const uint32_t wide = begin_of(member + 1, layout, layout_shape, all) - start;
    const T* beside = inner + member * rank + low * 4;
    const T* mine = w + rank * int64_t(start) + column - start + high / 2 * 8;

    Eight<T> before[2 * TILES];  // needed last: what the product needs is read meanwhile
    #pragma unroll
    for (uint32_t n = 0; n < 2 * TILES; ++n) {
      const uint32_t row = top + 8 * n;
      if (row < rows) before[n] = read_eight(y + row * int64_t(all) + column + low * 8);
    }
    float sums[2 * TILES][8] = {};
    for (uint32_t at = 0; at < rank; at += 16) {
      const bool there = at + low * 4 < rank;
      uint32_t of_w[4][4];
      #pragma unroll
      for (uint32_t n = 0; n < 4; n += 2) {
        const Words<4> one = read_words<4>(mine + (at + low * 4 + n) * int64_t(wide), there);
        const Words<4> other = read_words<4>(mine + (at + low * 4 + n + 1) * int64_t(wide), there);
        #pragma unroll
        for (uint32_t m = 0; m < 4; ++m) {
          const uint32_t a = one.words[m], b = other.words[m];
          of_w[m][n / 2] = high % 2 ? seconds(a, b) : firsts(a, b);
        }
      }
      #pragma unroll
      for (uint32_t n = 0; n < TILES; ++n) {
        const uint32_t row = top + 16 * n;
        const Words<2> a = read_words<2>(beside + row * int64_t(members * rank) + at, there && row < rows);
        const Words<2> b = read_words<2>(beside + (row + 8) * int64_t(members * rank) + at, there && row + 8 < rows);
        #pragma unroll
        for (uint32_t m = 0; m < 4; ++m) {
          float d[4] = {sums[2 * n][2 * m], sums[2 * n][2 * m + 1], sums[2 * n + 1][2 * m], sums[2 * n + 1][2 * m + 1]};
          multiply_add<T>(d, a.words[0], b.words[0], a.words[1], b.words[1], of_w[m][0], of_w[m][1]);
          sums[2 * n][2 * m] = d[0], sums[2 * n][2 * m + 1] = d[1];
          sums[2 * n + 1][2 * m] = d[2], sums[2 * n + 1][2 * m + 1] = d[3];
        }
      }
    }
    #pragma unroll
    for (uint32_t n = 0; n < 2 * TILES; ++n) {
      const uint32_t row = top + 8 * n;
      if (row < rows) {
        uint32_t made[4];
        #pragma unroll
        for (uint32_t m = 0; m < 4; ++m) {
          made[m] = word<T>(before[n][2 * m] + sums[n][2 * m], before[n][2 * m + 1] + sums[n][2 * m + 1]);
        }
        auto* to = reinterpret_cast<uint4*>(sum + row * int64_t(all) + column + low * 8);
        __stcg(to, uint4{made[0], made[1], made[2], made[3]});  // in one: an assignment would be four
      }
    }
    """,
    header=TENSOR_CORES,
)


@dataclass(frozen=True)
class Layout:
    """How the matrices of some layers lie, and where their columns are in an array of all.

    Attributes:
        rank: rows of each matrix, a multiple of 8.
        widths: columns of each, multiples of 64.
    """

    rank: int
    widths: tuple[int, ...]

    @property
    def fits(self) -> bool:
        """Whether the kernels can take it."""
        return self.rank % EIGHT == 0 and all(width % COLUMNS == 0 for width in self.widths)

    @property
    def ranks(self) -> int:
        """Of all layers."""
        return self.rank * len(self.widths)

    @property
    def columns(self) -> int:
        """Of all layers."""
        return sum(self.widths)

    @property
    def units(self) -> int:
        """Eights of ranks that a block computes together."""
        return 2 if self.rank % TILE == 0 else 1

    @cached_property
    def array(self) -> mx.array:
        """As the kernels read it: in each layer's row where its columns begin, so often that the shape has the rank.

        A kernel is given shapes at its start, and has to wait for what it reads.
        """
        starts = itertools.accumulate(self.widths[:-1], initial=0)
        made = mx.array([[start] * self.rank for start in starts], mx.uint32)
        mx.eval(made)
        return made


def inner(x: mx.array, w: mx.array, layout: Layout) -> mx.array:
    """Each layer's columns of x times the transpose of its matrix, side by side: (N, ranks).

    Args:
        x: bfloat16 or float16 (N, columns).
        w: the matrices, rank × columns numbers.
    """
    blocks = -(-x.shape[0] // TILE) * layout.ranks // (EIGHT * layout.units)
    (made,) = INNER(
        [x, w, layout.array],
        threads=blocks * INNER_WARPS * LANES,
        block=INNER_WARPS * LANES,
        shapes=[(x.shape[0], layout.ranks)],
        kind=x.dtype,
        constants=[("WARPS", INNER_WARPS), ("AHEAD", INNER_AHEAD), ("UNITS", layout.units)],
    )
    return made


def outer(
    back: mx.array, x: mx.array, inner: mx.array, y: mx.array, *, of_x: Layout, of_y: Layout
) -> tuple[mx.array, mx.array]:
    """The gradients of the matrices by which x is multiplied to give `inner`, and `inner` to give y.

    Args:
        back: the gradient of `inner`, (N, ranks).
        x: (N, D).
        y: the gradient of what `inner` gives, (N, columns).
        of_x: as of one layer of all ranks: its matrix, (ranks, D), is the first result.
        of_y: of each layer; the second result is rank × columns numbers.
    """
    blocks = sum(layout.columns // COLUMNS * layout.rank // (EIGHT * of_y.units) for layout in (of_x, of_y))
    of_a, of_b = OUTER(
        [back, x, of_x.array, inner, y, of_y.array],
        threads=blocks * OUTER_WARPS * LANES,
        block=OUTER_WARPS * LANES,
        shapes=[(of_x.rank, of_x.columns), (of_y.rank * of_y.columns,)],
        kind=x.dtype,
        constants=[("WARPS", OUTER_WARPS), ("AHEAD", OUTER_AHEAD), ("UNITS", of_y.units)],
    )
    return of_a, of_b


def add(y: mx.array, inner: mx.array, w: mx.array, layout: Layout) -> mx.array:
    """y, and to each layer's columns of it its ranks of `inner` times its matrix, in float32: (N, columns).

    Args:
        y: (N, columns).
        inner, w: as above.
    """
    parts = -(-y.shape[0] // (ADD_TILES * TILE)) * (layout.columns // LANES)
    (made,) = ADD(
        [y, inner, w, layout.array],
        threads=-(-parts // ADD_WARPS) * ADD_WARPS * LANES,
        block=ADD_WARPS * LANES,
        shapes=[y.shape],
        kind=y.dtype,
        constants=[("WARPS", ADD_WARPS), ("TILES", ADD_TILES)],
    )
    return made

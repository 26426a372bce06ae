// Rows gathered by id, gradients scattered back in a fixed order. The CPU's twin: ops/embedding.rs.
#include "common.h"

// y[row] = table[ids[row]]; a block takes a row.
template <class Table, class T> __device__ void gather(const Table *table, const u32 *ids, T *y, int width) {
    table += i64(ids[blockIdx.x]) * width;
    y += i64(blockIdx.x) * width;
    by_width<bf16>(width, [&](auto lanes) {
        constexpr int N = decltype(lanes)::value;
        float x[N];
        for (int i = threadIdx.x * N; i < width; i += blockDim.x * N) {
            load<N>(x, table + i);
            store<N>(y + i, x);
        }
    });
}

// table[ids[g]] += the rows order[starts[g]..starts[g + 1]] of dy, in that order. A block takes a group and a share of the
// columns; the ids of groups differ, so no two blocks write the same.
template <class T, class Table>
__device__ void scatter_add(Table *table, const u32 *starts, const u32 *ids, const u32 *order, const T *dy, int width) {
    const u32 first = starts[blockIdx.x], last = starts[blockIdx.x + 1];
    table += i64(ids[blockIdx.x]) * width;
    by_width<bf16>(width, [&](auto lanes) {
        constexpr int N = decltype(lanes)::value;
        for (int i = (blockIdx.y * blockDim.x + threadIdx.x) * N; i < width; i += gridDim.y * blockDim.x * N) {
            float sum[N], x[N];
            load<N>(sum, table + i);
#pragma unroll 4
            for (u32 t = first; t < last; t++) {
                load<N>(x, dy + i64(order[t]) * width + i);
#pragma unroll
                for (int j = 0; j < N; j++) sum[j] += x[j];
            }
            store<N>(table + i, sum);
        }
    });
}

#define KERNELS(A, S, B, R)                                                                                            \
    KERNEL(128, karat_gather_##S##_##R, const A *table, const u32 *ids, B *y, int width) {                             \
        gather(table, ids, y, width);                                                                                  \
    }                                                                                                                  \
    KERNEL(128, karat_scatter_add_##S##_##R, B *table, const u32 *starts, const u32 *ids, const u32 *order,            \
           const A *dy, int width) {                                                                                   \
        scatter_add(table, starts, ids, order, dy, width);                                                             \
    }
KERNELS(float, f32, float, f32)
KERNELS(bf16, bf16, bf16, bf16)
KERNELS(float, f32, bf16, bf16)
KERNELS(bf16, bf16, float, f32)
#undef KERNELS

// Causal grouped-query attention over packed rows, forward: arXiv 2205.14135 and 2307.08691 on mma.sync. The CPU's twin:
// ops/attention.rs.
//
// Block (i, h, r) takes 64 queries of query head h in row r, the last tile (most keys) first; each of its 4 warps has 16
// queries and goes through the keys by 64 with a running maximum and sum. k of the next tile is on its way while p v is
// computed, v while q k^T is. Shared memory: 3 tiles, 3 * 64 * (D + 8) * 2 bytes.
#include "attention.h"

template <int D>
__device__ void attention_forward(const bf16 *q, const bf16 *k, const bf16 *v, const u32 *starts, bf16 *out, float *lse,
                                  int heads, int kv_heads, i64 q_stride, i64 k_stride, i64 v_stride, float scale) {
    DYNAMIC_SHARED(shared);
    bf16 *const q_tile = reinterpret_cast<bf16 *>(shared);
    bf16 *const k_tile = q_tile + TILE * STRIDE<D>, *const v_tile = k_tile + TILE * STRIDE<D>;
    const i64 start = starts[blockIdx.z];
    const int length = int(starts[blockIdx.z + 1] - starts[blockIdx.z]);
    const int tile = gridDim.x - 1 - blockIdx.x, first = tile * TILE, head = blockIdx.y;
    if (first >= length) return;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, kv = head / (heads / kv_heads);
    q += (start + first) * q_stride + head * D;
    k += start * k_stride + kv * D;
    v += start * v_stride + kv * D;

    load_tile<D, TILE>(q_tile, q, q_stride, length - first);
    load_tile<D, TILE>(k_tile, k + first * k_stride, k_stride, length - first);
    commit_copies();

    const float by = scale * LOG2E;
    float sums[D / 8][4], top[2] = {-INFINITE, -INFINITE}, total[2] = {0.0f, 0.0f};
    clear(sums);
    unsigned query[D / 16][4];
    for (int at = first; at >= 0; at -= TILE) {
        wait_copies<0>();
        __syncthreads(); // k is here; v of the tile before is not needed any more
        load_tile<D, TILE>(v_tile, v + at * v_stride, v_stride, length - at);
        commit_copies();
        if (at == first) {
#pragma unroll
            for (int d = 0; d < D; d += 16) left_operand<D>(query[d / 16], q_tile, warp * 16, d);
        }
        float p[TILE / 8][4];
        clear(p);
#pragma unroll
        for (int d = 0; d < D; d += 16) {
#pragma unroll
            for (int n = 0; n < TILE / 8; n += 2) {
                unsigned b[4];
                right_by_rows<D>(b, k_tile, n * 8, d);
                multiply_add(p[n], query[d / 16], b[0], b[1]);
                multiply_add(p[n + 1], query[d / 16], b[2], b[3]);
            }
        }
        if (at == first) {
            // Keys after the query, and after the row's end.
#pragma unroll
            for (int n = 0; n < TILE / 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    if (n * 8 + lane % 4 * 2 + i % 2 > warp * 16 + lane / 4 + i / 2 * 8) p[n][i] = -INFINITE;
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float most = top[half];
#pragma unroll
            for (int n = 0; n < TILE / 8; n++) most = fmaxf(most, fmaxf(p[n][2 * half], p[n][2 * half + 1]));
            most = fmaxf(most, __shfl_xor_sync(WHOLE_WARP, most, 1));
            most = fmaxf(most, __shfl_xor_sync(WHOLE_WARP, most, 2));
            const float less = exp2_fast((top[half] - most) * by), shift = -most * by;
            top[half] = most;
            float sum = 0.0f;
#pragma unroll
            for (int n = 0; n < TILE / 8; n++)
#pragma unroll
                for (int i = 2 * half; i < 2 * half + 2; i++) {
                    p[n][i] = exp2_fast(fmaf(p[n][i], by, shift));
                    sum += p[n][i];
                }
            total[half] = total[half] * less + sum;
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                sums[n][2 * half] *= less;
                sums[n][2 * half + 1] *= less;
            }
        }
        wait_copies<0>();
        __syncthreads(); // v is here; k has been read
        if (at > 0) {
            load_tile<D, TILE>(k_tile, k + (at - TILE) * k_stride, k_stride, TILE);
            commit_copies();
        }
        product_by_columns<D>(sums, p, v_tile);
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        total[half] += __shfl_xor_sync(WHOLE_WARP, total[half], 1);
        total[half] += __shfl_xor_sync(WHOLE_WARP, total[half], 2);
        const int row = first + warp * 16 + lane / 4 + half * 8;
        if (lane % 4 == 0 && row < length) lse[(start + row) * heads + head] = top[half] * scale + logf(total[half]);
    }
    const i64 width = i64(heads) * D;
    store_rows<D>(q_tile, warp * 16, sums, 1.0f / total[0], 1.0f / total[1], out + (start + first) * width + head * D, width,
                  length - first);
}

#define KERNELS(D)                                                                                                     \
    KERNEL(128, karat_attention_forward_##D, const bf16 *q, const bf16 *k, const bf16 *v, const u32 *starts,           \
           bf16 *out, float *lse, int heads, int kv_heads, i64 q_stride, i64 k_stride, i64 v_stride, float scale) {    \
        attention_forward<D>(q, k, v, starts, out, lse, heads, kv_heads, q_stride, k_stride, v_stride, scale);         \
    }
KERNELS(16)
KERNELS(32)
KERNELS(64)
KERNELS(128)
#undef KERNELS

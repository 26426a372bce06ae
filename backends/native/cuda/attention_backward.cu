// Causal grouped-query attention over packed rows, backward: scores are made again from the log-sum-exps. The CPU's twin:
// ops/attention.rs.
//
// No sum crosses a block, so nothing is added atomically: one kernel sums dq over keys, another dk and dv over the queries
// of all heads of the group. That costs seven products instead of five, and gives the same bits every time.
#include "attention.h"

// delta = sum of out dout over a head's D elements; a warp takes a head of a token. `n` = tokens * heads.
template <class T> __device__ void attention_delta(const T *out, const T *dout, float *delta, i64 n, int dim) {
    const i64 row = i64(blockIdx.x) * 4 + threadIdx.x / 32;
    if (row >= n) return;
    float sum = 0.0f;
    for (int i = threadIdx.x % 32; i < dim; i += 32) sum += widen(out[row * dim + i]) * widen(dout[row * dim + i]);
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) delta[row] = sum;
}

KERNEL(128, karat_attention_delta_f32, const float *out, const float *dout, float *delta, i64 n, int dim) {
    attention_delta(out, dout, delta, n, dim);
}
KERNEL(128, karat_attention_delta_bf16, const bf16 *out, const bf16 *dout, float *delta, i64 n, int dim) {
    attention_delta(out, dout, delta, n, dim);
}

// Rows of the tiles that stream through: as many as leave the registers to the sums.
template <int D> constexpr int STEP = D > 64 ? 32 : 64;

// dq. Block (i, h, r) takes 64 queries of head h in row r, the last tile first, and streams k and v through two stages.
// Shared memory: (2 * 64 + 4 * STEP) * (D + 8) * 2 bytes.
template <int D>
__device__ void attention_dq(const bf16 *q, const bf16 *k, const bf16 *v, const u32 *starts, const bf16 *dout,
                             const float *lse, const float *delta, bf16 *dq, int heads, int kv_heads, i64 q_stride,
                             i64 k_stride, i64 v_stride, float scale) {
    constexpr int KEYS = STEP<D>;
    DYNAMIC_SHARED(shared);
    bf16 *const q_tile = reinterpret_cast<bf16 *>(shared), *const dout_tile = q_tile + TILE * STRIDE<D>;
    bf16 *const stages = dout_tile + TILE * STRIDE<D>; // k, v, k, v
    const i64 start = starts[blockIdx.z];
    const int length = int(starts[blockIdx.z + 1] - starts[blockIdx.z]);
    const int first = (gridDim.x - 1 - blockIdx.x) * TILE, head = blockIdx.y;
    if (first >= length) return;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, kv = head / (heads / kv_heads);
    const i64 width = i64(heads) * D;
    k += start * k_stride + kv * D;
    v += start * v_stride + kv * D;

    const auto load = [&](int step) {
        bf16 *const stage = stages + step % 2 * 2 * KEYS * STRIDE<D>;
        const int at = step * KEYS;
        load_tile<D, KEYS>(stage, k + at * k_stride, k_stride, length - at);
        load_tile<D, KEYS>(stage + KEYS * STRIDE<D>, v + at * v_stride, v_stride, length - at);
        commit_copies();
    };
    load_tile<D, TILE>(q_tile, q + (start + first) * q_stride + head * D, q_stride, length - first);
    load_tile<D, TILE>(dout_tile, dout + (start + first) * width + head * D, width, length - first);
    load(0);

    // Of the two rows of this lane; past the row's end p is 0.
    float log_sum[2], mean[2], sums[D / 8][4];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int row = first + warp * 16 + lane / 4 + half * 8;
        const i64 at = (start + row) * heads + head;
        log_sum[half] = row < length ? lse[at] * LOG2E : INFINITE;
        mean[half] = row < length ? delta[at] : 0.0f;
    }
    clear(sums);
    const float by = scale * LOG2E;
    const int steps = (min(first + TILE, length) + KEYS - 1) / KEYS;
    for (int step = 0; step < steps; step++) {
        if (step + 1 < steps) {
            load(step + 1);
            wait_copies<1>();
        } else {
            wait_copies<0>();
        }
        __syncthreads();
        const bf16 *const k_tile = stages + step % 2 * 2 * KEYS * STRIDE<D>, *const v_tile = k_tile + KEYS * STRIDE<D>;
        float p[KEYS / 8][4], dp[KEYS / 8][4];
        clear(p);
        clear(dp);
        product_by_rows<D>(p, q_tile, warp * 16, k_tile);
        product_by_rows<D>(dp, dout_tile, warp * 16, v_tile);
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int key = step * KEYS + n * 8 + lane % 4 * 2 + i % 2, row = first + warp * 16 + lane / 4 + i / 2 * 8;
                const float weight = key > row ? 0.0f : exp2_fast(fmaf(p[n][i], by, -log_sum[i / 2]));
                p[n][i] = weight * (dp[n][i] - mean[i / 2]);
            }
        product_by_columns<D>(sums, p, k_tile);
        __syncthreads(); // both have been read: the stage may be filled again
    }
    store_rows<D>(q_tile, warp * 16, sums, scale, scale, dq + (start + first) * q_stride + head * D, q_stride, length - first);
}

// dk and dv. Block (i, h, r) takes 64 keys of key head h in row r and streams the queries that see them, of all heads of the
// group in order, with their dout through two stages. Scores are made transposed, so that each warp keeps its 16 keys.
// Shared memory: (2 * 64 + 4 * STEP) * (D + 8) * 2 + 4 * STEP * 4 bytes.
template <int D>
__device__ void attention_dkv(const bf16 *q, const bf16 *k, const bf16 *v, const u32 *starts, const bf16 *dout,
                              const float *lse, const float *delta, bf16 *dk, bf16 *dv, int heads, int kv_heads,
                              i64 q_stride, i64 k_stride, i64 v_stride, float scale) {
    constexpr int QUERIES = STEP<D>;
    DYNAMIC_SHARED(shared);
    bf16 *const k_tile = reinterpret_cast<bf16 *>(shared), *const v_tile = k_tile + TILE * STRIDE<D>;
    bf16 *const stages = v_tile + TILE * STRIDE<D>; // q, dout, q, dout
    float *const row_stages = reinterpret_cast<float *>(stages + 4 * QUERIES * STRIDE<D>); // lse, delta, lse, delta
    const i64 start = starts[blockIdx.z];
    const int length = int(starts[blockIdx.z + 1] - starts[blockIdx.z]);
    const int first = blockIdx.x * TILE, kv = blockIdx.y, group = heads / kv_heads;
    if (first >= length) return;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const i64 width = i64(heads) * D;
    k += (start + first) * k_stride + kv * D;
    v += (start + first) * v_stride + kv * D;

    // Steps of one head: its queries from this block's first key on.
    const int steps = (length - first + QUERIES - 1) / QUERIES;
    const auto load = [&](int step) {
        bf16 *const stage = stages + step % 2 * 2 * QUERIES * STRIDE<D>;
        float *const rows = row_stages + step % 2 * 2 * QUERIES;
        const int head = kv * group + step / steps, at = first + step % steps * QUERIES;
        load_tile<D, QUERIES>(stage, q + (start + at) * q_stride + head * D, q_stride, length - at);
        load_tile<D, QUERIES>(stage + QUERIES * STRIDE<D>, dout + (start + at) * width + head * D, width, length - at);
        if (threadIdx.x < QUERIES) {
            const int row = at + threadIdx.x;
            const i64 place = (start + row) * heads + head;
            rows[threadIdx.x] = row < length ? lse[place] * LOG2E : INFINITE;
            rows[QUERIES + threadIdx.x] = row < length ? delta[place] : 0.0f;
        }
        commit_copies();
    };
    load_tile<D, TILE>(k_tile, k, k_stride, length - first);
    load_tile<D, TILE>(v_tile, v, v_stride, length - first);
    load(0);

    float of_k[D / 8][4], of_v[D / 8][4];
    clear(of_k);
    clear(of_v);
    const float by = scale * LOG2E;
    for (int step = 0; step < group * steps; step++) {
        if (step + 1 < group * steps) {
            load(step + 1);
            wait_copies<1>();
        } else {
            wait_copies<0>();
        }
        __syncthreads();
        const bf16 *const q_tile = stages + step % 2 * 2 * QUERIES * STRIDE<D>;
        const bf16 *const dout_tile = q_tile + QUERIES * STRIDE<D>;
        const float *const log_sums = row_stages + step % 2 * 2 * QUERIES, *const means = log_sums + QUERIES;
        const int at = step % steps * QUERIES; // counted from this block's first key
        float p[QUERIES / 8][4], dp[QUERIES / 8][4];
        clear(p);
        product_by_rows<D>(p, k_tile, warp * 16, q_tile);
#pragma unroll
        for (int n = 0; n < QUERIES / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int query = n * 8 + lane % 4 * 2 + i % 2, key = warp * 16 + lane / 4 + i / 2 * 8;
                p[n][i] = key > at + query ? 0.0f : exp2_fast(fmaf(p[n][i], by, -log_sums[query]));
            }
        product_by_columns<D>(of_v, p, dout_tile);
        clear(dp);
        product_by_rows<D>(dp, v_tile, warp * 16, dout_tile);
#pragma unroll
        for (int n = 0; n < QUERIES / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) p[n][i] *= dp[n][i] - means[n * 8 + lane % 4 * 2 + i % 2];
        product_by_columns<D>(of_k, p, q_tile);
        __syncthreads(); // all have been read: the stage may be filled again
    }
    store_rows<D>(k_tile, warp * 16, of_k, scale, scale, dk + (start + first) * k_stride + kv * D, k_stride, length - first);
    store_rows<D>(v_tile, warp * 16, of_v, 1.0f, 1.0f, dv + (start + first) * v_stride + kv * D, v_stride, length - first);
}

#define KERNELS(D)                                                                                                     \
    KERNEL(128, karat_attention_dq_##D, const bf16 *q, const bf16 *k, const bf16 *v, const u32 *starts,                \
           const bf16 *dout, const float *lse, const float *delta, bf16 *dq, int heads, int kv_heads, i64 q_stride,    \
           i64 k_stride, i64 v_stride, float scale) {                                                                  \
        attention_dq<D>(q, k, v, starts, dout, lse, delta, dq, heads, kv_heads, q_stride, k_stride, v_stride, scale);  \
    }                                                                                                                  \
    KERNEL(128, karat_attention_dkv_##D, const bf16 *q, const bf16 *k, const bf16 *v, const u32 *starts,               \
           const bf16 *dout, const float *lse, const float *delta, bf16 *dk, bf16 *dv, int heads, int kv_heads,        \
           i64 q_stride, i64 k_stride, i64 v_stride, float scale) {                                                    \
        attention_dkv<D>(q, k, v, starts, dout, lse, delta, dk, dv, heads, kv_heads, q_stride, k_stride, v_stride,     \
                         scale);                                                                                       \
    }
KERNELS(16)
KERNELS(32)
KERNELS(64)
KERNELS(128)
#undef KERNELS

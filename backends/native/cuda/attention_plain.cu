// Causal grouped-query attention over packed rows without tensor cores: for f32, and for head dims (up to 256) that the
// tiled kernels do not have. The CPU's twin: ops/attention.rs.
//
// A warp takes one query (or, for dk and dv, one key) and goes through the others by 32: each lane makes the score of one,
// then each lane sums what belongs to its own elements d = lane, lane + 32, ... A warp's weights pass through shared memory.
#include "common.h"

constexpr int PARTS = 8; // elements of a head that a lane holds: head dims up to 256
constexpr int PLAIN_WARPS = 4;

template <class T> __device__ __forceinline__ float dot_rows(const T *a, const T *b, int dim) {
    float sum = 0.0f;
    for (int d = 0; d < dim; d++) sum = fmaf(widen(a[d]), widen(b[d]), sum);
    return sum;
}

// x[part] += weight row[lane + 32 part].
template <class T> __device__ __forceinline__ void add_row(float (&x)[PARTS], float weight, const T *row, int dim) {
#pragma unroll
    for (int i = 0; i < PARTS; i++) {
        const int d = threadIdx.x % 32 + 32 * i;
        if (d < dim) x[i] = fmaf(weight, widen(row[d]), x[i]);
    }
}
template <class T> __device__ __forceinline__ void store_row(T *row, const float (&x)[PARTS], float by, int dim) {
#pragma unroll
    for (int i = 0; i < PARTS; i++) {
        const int d = threadIdx.x % 32 + 32 * i;
        if (d < dim) row[d] = narrow<T>(x[i] * by);
    }
}

template <class T>
__device__ void plain_forward(const T *q, const T *k, const T *v, const u32 *starts, T *out, float *lse, int heads,
                              int kv_heads, int dim, i64 q_stride, i64 k_stride, i64 v_stride, float scale) {
    SHARED(float, weights, PLAIN_WARPS * 32);
    float *const weight = weights + threadIdx.x / 32 * 32;
    const i64 start = starts[blockIdx.z];
    const int length = int(starts[blockIdx.z + 1] - starts[blockIdx.z]), head = blockIdx.y, lane = threadIdx.x % 32;
    const int query = blockIdx.x * PLAIN_WARPS + threadIdx.x / 32, kv = head / (heads / kv_heads);
    if (query >= length) return;
    q += (start + query) * q_stride + head * dim;
    k += start * k_stride + kv * dim;
    v += start * v_stride + kv * dim;
    float sums[PARTS] = {}, top = -INFINITE, total = 0.0f;
    for (int first = 0; first <= query; first += 32) {
        const int key = first + lane;
        const float score = key <= query ? dot_rows(q, k + key * k_stride, dim) * scale : -INFINITE;
        const float most = fmaxf(top, warp_max(score)), less = expf(top - most), p = expf(score - most);
        total = total * less + warp_sum(p);
        top = most;
        weight[lane] = p;
        __syncwarp();
#pragma unroll
        for (int i = 0; i < PARTS; i++) sums[i] *= less;
        for (int i = 0; i < min(32, query + 1 - first); i++) add_row(sums, weight[i], v + (first + i) * v_stride, dim);
        __syncwarp();
    }
    if (lane == 0) lse[(start + query) * heads + head] = top + logf(total);
    store_row(out + (start + query) * heads * dim + head * dim, sums, 1.0f / total, dim);
}

template <class T>
__device__ void plain_dq(const T *q, const T *k, const T *v, const u32 *starts, const T *dout, const float *lse,
                         const float *delta, T *dq, int heads, int kv_heads, int dim, i64 q_stride, i64 k_stride,
                         i64 v_stride, float scale) {
    SHARED(float, weights, PLAIN_WARPS * 32);
    float *const weight = weights + threadIdx.x / 32 * 32;
    const i64 start = starts[blockIdx.z];
    const int length = int(starts[blockIdx.z + 1] - starts[blockIdx.z]), head = blockIdx.y, lane = threadIdx.x % 32;
    const int query = blockIdx.x * PLAIN_WARPS + threadIdx.x / 32, kv = head / (heads / kv_heads);
    if (query >= length) return;
    q += (start + query) * q_stride + head * dim;
    dout += (start + query) * heads * dim + head * dim;
    k += start * k_stride + kv * dim;
    v += start * v_stride + kv * dim;
    const float log_sum = lse[(start + query) * heads + head], mean = delta[(start + query) * heads + head];
    float sums[PARTS] = {};
    for (int first = 0; first <= query; first += 32) {
        const int key = first + lane;
        float ds = 0.0f;
        if (key <= query) {
            const float p = expf(dot_rows(q, k + key * k_stride, dim) * scale - log_sum);
            ds = p * (dot_rows(dout, v + key * v_stride, dim) - mean);
        }
        weight[lane] = ds;
        __syncwarp();
        for (int i = 0; i < min(32, query + 1 - first); i++) add_row(sums, weight[i], k + (first + i) * k_stride, dim);
        __syncwarp();
    }
    store_row(dq + (start + query) * q_stride + head * dim, sums, scale, dim);
}

template <class T>
__device__ void plain_dkv(const T *q, const T *k, const T *v, const u32 *starts, const T *dout, const float *lse,
                          const float *delta, T *dk, T *dv, int heads, int kv_heads, int dim, i64 q_stride, i64 k_stride,
                          i64 v_stride, float scale) {
    SHARED(float, weights, PLAIN_WARPS * 64);
    float *const weight = weights + threadIdx.x / 32 * 64;
    const i64 start = starts[blockIdx.z];
    const int length = int(starts[blockIdx.z + 1] - starts[blockIdx.z]), kv = blockIdx.y, lane = threadIdx.x % 32;
    const int key = blockIdx.x * PLAIN_WARPS + threadIdx.x / 32, group = heads / kv_heads;
    if (key >= length) return;
    q += start * q_stride;
    dout += start * heads * dim;
    k += (start + key) * k_stride + kv * dim;
    v += (start + key) * v_stride + kv * dim;
    float of_k[PARTS] = {}, of_v[PARTS] = {};
    for (int head = kv * group; head < (kv + 1) * group; head++) {
        for (int first = key; first < length; first += 32) {
            const int query = first + lane;
            float p = 0.0f, ds = 0.0f;
            if (query < length) {
                const i64 at = (start + query) * heads + head;
                p = expf(dot_rows(q + query * q_stride + head * dim, k, dim) * scale - lse[at]);
                ds = p * (dot_rows(dout + i64(query) * heads * dim + head * dim, v, dim) - delta[at]);
            }
            weight[lane] = p;
            weight[32 + lane] = ds;
            __syncwarp();
            for (int i = 0; i < min(32, length - first); i++) {
                add_row(of_v, weight[i], dout + i64(first + i) * heads * dim + head * dim, dim);
                add_row(of_k, weight[32 + i], q + (first + i) * q_stride + head * dim, dim);
            }
            __syncwarp();
        }
    }
    store_row(dk + (start + key) * k_stride + kv * dim, of_k, scale, dim);
    store_row(dv + (start + key) * v_stride + kv * dim, of_v, 1.0f, dim);
}

#define KERNELS(T, S)                                                                                                  \
    KERNEL(128, karat_attention_plain_##S, const T *q, const T *k, const T *v, const u32 *starts, T *out, float *lse,  \
           int heads, int kv_heads, int dim, i64 q_stride, i64 k_stride, i64 v_stride, float scale) {                  \
        plain_forward<T>(q, k, v, starts, out, lse, heads, kv_heads, dim, q_stride, k_stride, v_stride, scale);        \
    }                                                                                                                  \
    KERNEL(128, karat_attention_plain_dq_##S, const T *q, const T *k, const T *v, const u32 *starts, const T *dout,    \
           const float *lse, const float *delta, T *dq, int heads, int kv_heads, int dim, i64 q_stride, i64 k_stride,  \
           i64 v_stride, float scale) {                                                                                \
        plain_dq<T>(q, k, v, starts, dout, lse, delta, dq, heads, kv_heads, dim, q_stride, k_stride, v_stride, scale); \
    }                                                                                                                  \
    KERNEL(128, karat_attention_plain_dkv_##S, const T *q, const T *k, const T *v, const u32 *starts, const T *dout,   \
           const float *lse, const float *delta, T *dk, T *dv, int heads, int kv_heads, int dim, i64 q_stride,         \
           i64 k_stride, i64 v_stride, float scale) {                                                                  \
        plain_dkv<T>(q, k, v, starts, dout, lse, delta, dk, dv, heads, kv_heads, dim, q_stride, k_stride, v_stride,    \
                     scale);                                                                                           \
    }
KERNELS(float, f32)
KERNELS(bf16, bf16)
#undef KERNELS

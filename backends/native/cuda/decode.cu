// One query per sequence against its cache of keys and values, grouped heads, ragged lengths. The CPU's twin:
// ops/attention.rs, `decode`.
//
// The cache of a layer is [slots, slot_stride]: slot s holds positions of kv_heads * dim elements back to back. Block
// (i, h, n) takes SPLIT positions of key head h of sequence n, for all query heads of the group: keys and values are read
// once. The parts of a sequence are then put together in their order, so that a result depends on nothing but the sequence.
// Bytes: both caches once.
#include "common.h"

constexpr int SPLIT = 128;
constexpr int DECODE_THREADS = 128;
constexpr int AT_ONCE = 4; // query heads whose sums a thread holds

// Rows of k and v into their places: token t to position positions[t] of slot slots[t]. A block takes a token.
template <class T>
__device__ void cache_append(const T *k, const T *v, T *k_cache, T *v_cache, const u32 *slots, const u32 *positions,
                             int width, i64 k_stride, i64 v_stride, i64 slot_stride) {
    const i64 to = i64(slots[blockIdx.x]) * slot_stride + i64(positions[blockIdx.x]) * width;
    k += i64(blockIdx.x) * k_stride;
    v += i64(blockIdx.x) * v_stride;
    by_width<T>(width, [&](auto lanes) {
        constexpr int N = decltype(lanes)::value;
        float x[N];
        for (int i = threadIdx.x * N; i < width; i += blockDim.x * N) {
            load<N>(x, k + i);
            store<N>(k_cache + to + i, x);
            load<N>(x, v + i);
            store<N>(v_cache + to + i, x);
        }
    });
}

// Leaves for each part, in `partial` [sequences, heads, parts, dim + 2], the weighted sum of values, the largest score and
// the sum of weights. Shared memory: (group * (dim + SPLIT) + DECODE_THREADS * AT_ONCE * 16 / sizeof(T)) * 4 bytes.
template <class T>
__device__ void decode(const T *q, const T *k_cache, const T *v_cache, const u32 *slots, const u32 *lengths, float *partial,
                       int heads, int kv_heads, int dim, i64 q_stride, i64 slot_stride, float scale) {
    const int length = lengths[blockIdx.z], first = blockIdx.x * SPLIT;
    if (first >= length) return;
    const int n = min(SPLIT, length - first), group = heads / kv_heads, kv = blockIdx.y, width = kv_heads * dim;
    const i64 slot = i64(slots[blockIdx.z]) * slot_stride + i64(first) * width + kv * dim;
    const T *const keys = k_cache + slot, *const values = v_cache + slot;
    DYNAMIC_SHARED(shared);
    float *const query = reinterpret_cast<float *>(shared); // [group, dim]
    float *const scores = query + group * dim;              // [group, SPLIT]
    float *const sums = scores + group * SPLIT;             // a thread's sums for others to add
    for (int i = threadIdx.x; i < group * dim; i += DECODE_THREADS)
        query[i] = widen(q[blockIdx.z * q_stride + kv * group * dim + i]) * scale;
    __syncthreads();

    by_width<T>(dim, [&](auto lanes) {
        constexpr int N = decltype(lanes)::value;
        const int parts = dim / N;
        // So many lanes share a key that its row is read at once.
        int share = 1;
        while (share < parts && share < 32) share *= 2;
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, mine = lane % share, keys_at_once = 32 / share;
        for (int start = warp * keys_at_once; start < n; start += DECODE_THREADS / 32 * keys_at_once) {
            const int key = start + lane / share;
            for (int g = 0; g < group; g++) {
                float sum = 0.0f, x[N];
                if (key < n) {
                    for (int part = mine; part < parts; part += share) {
                        load<N>(x, keys + i64(key) * width + part * N);
#pragma unroll
                        for (int j = 0; j < N; j++) sum = fmaf(x[j], query[g * dim + part * N + j], sum);
                    }
                }
                for (int with = share / 2; with > 0; with /= 2) sum += __shfl_xor_sync(WHOLE_WARP, sum, with);
                if (key < n && mine == 0) scores[g * SPLIT + key] = sum;
            }
        }
        __syncthreads();

        // A warp takes a query head: scores become weights.
        float *const out = partial + (i64(blockIdx.z) * heads + kv * group) * gridDim.x * (dim + 2) + blockIdx.x * (dim + 2);
        const i64 head_stride = i64(gridDim.x) * (dim + 2);
        for (int g = warp; g < group; g += DECODE_THREADS / 32) {
            float top = -INFINITE, total = 0.0f;
            for (int i = lane; i < n; i += 32) top = fmaxf(top, scores[g * SPLIT + i]);
            top = warp_max(top);
            for (int i = lane; i < n; i += 32) {
                const float p = expf(scores[g * SPLIT + i] - top);
                scores[g * SPLIT + i] = p;
                total += p;
            }
            total = warp_sum(total);
            if (lane == 0) out[g * head_stride + dim] = top, out[g * head_stride + dim + 1] = total;
        }
        __syncthreads();

        // A thread takes N elements of every `rows`-th value; then the threads of an element add up.
        const int rows = DECODE_THREADS / parts > 0 ? DECODE_THREADS / parts : 1;
        for (int first_part = 0; first_part < parts; first_part += DECODE_THREADS) {
            const int part = first_part + threadIdx.x % min(parts, DECODE_THREADS), row = threadIdx.x / min(parts, DECODE_THREADS);
            for (int first_head = 0; first_head < group; first_head += AT_ONCE) {
                float sum[AT_ONCE][N] = {}, x[N];
                if (row < rows && part < parts) {
                    for (int i = row; i < n; i += rows) {
                        load<N>(x, values + i64(i) * width + part * N);
#pragma unroll
                        for (int g = 0; g < AT_ONCE; g++) {
                            const float p = first_head + g < group ? scores[(first_head + g) * SPLIT + i] : 0.0f;
#pragma unroll
                            for (int j = 0; j < N; j++) sum[g][j] = fmaf(p, x[j], sum[g][j]);
                        }
                    }
                }
                __syncthreads(); // whoever still reads the sums before
#pragma unroll
                for (int g = 0; g < AT_ONCE; g++)
#pragma unroll
                    for (int j = 0; j < N; j++) sums[(g * N + j) * DECODE_THREADS + threadIdx.x] = sum[g][j];
                __syncthreads();
                if (row == 0 && part < parts) {
                    for (int g = 0; g < min(AT_ONCE, group - first_head); g++)
#pragma unroll
                        for (int j = 0; j < N; j++) {
                            float all = 0.0f;
                            for (int r = 0; r < rows; r++) all += sums[(g * N + j) * DECODE_THREADS + r * parts + threadIdx.x];
                            out[(first_head + g) * head_stride + part * N + j] = all;
                        }
                }
            }
        }
    });
}

// out [sequences, heads * dim] from the parts of each sequence. Block (h, n) takes a head.
template <class T> __device__ void decode_join(const float *partial, const u32 *lengths, T *out, int heads, int dim, int splits) {
    const int parts = (int(lengths[blockIdx.y]) + SPLIT - 1) / SPLIT;
    const i64 row = i64(blockIdx.y) * heads + blockIdx.x;
    partial += row * splits * (dim + 2);
    float top = -INFINITE, total = 0.0f;
    for (int p = 0; p < parts; p++) top = fmaxf(top, partial[p * (dim + 2) + dim]);
    for (int p = 0; p < parts; p++) total += partial[p * (dim + 2) + dim + 1] * expf(partial[p * (dim + 2) + dim] - top);
    for (int d = threadIdx.x; d < dim; d += blockDim.x) {
        float sum = 0.0f;
        for (int p = 0; p < parts; p++) sum += partial[p * (dim + 2) + d] * expf(partial[p * (dim + 2) + dim] - top);
        out[row * dim + d] = narrow<T>(sum / total);
    }
}

#define KERNELS(T, S)                                                                                                  \
    KERNEL(128, karat_cache_append_##S, const T *k, const T *v, T *k_cache, T *v_cache, const u32 *slots,              \
           const u32 *positions, int width, i64 k_stride, i64 v_stride, i64 slot_stride) {                             \
        cache_append<T>(k, v, k_cache, v_cache, slots, positions, width, k_stride, v_stride, slot_stride);             \
    }                                                                                                                  \
    KERNEL(128, karat_decode_##S, const T *q, const T *k_cache, const T *v_cache, const u32 *slots,                    \
           const u32 *lengths, float *partial, int heads, int kv_heads, int dim, i64 q_stride, i64 slot_stride,        \
           float scale) {                                                                                              \
        decode<T>(q, k_cache, v_cache, slots, lengths, partial, heads, kv_heads, dim, q_stride, slot_stride, scale);   \
    }                                                                                                                  \
    KERNEL(128, karat_decode_join_##S, const float *partial, const u32 *lengths, T *out, int heads, int dim,           \
           int splits) {                                                                                               \
        decode_join<T>(partial, lengths, out, heads, dim, splits);                                                     \
    }
KERNELS(float, f32)
KERNELS(bf16, bf16)
#undef KERNELS

// x += 1: positions and lengths from one token to the next, without the host.
KERNEL(256, karat_increment, u32 *x, int n) {
    const int i = blockIdx.x * 256 + threadIdx.x;
    if (i < n) x[i]++;
}

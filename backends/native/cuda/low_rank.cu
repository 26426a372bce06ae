// DoRA's norms (arXiv 2402.09353): norms[o] = |row o of W + s B A|. The CPU's twin: ops/low_rank.rs. The products of an
// adapter are cuBLAS's: y += s (x A^T) B^T with beta = 1 reads and writes y once, and a kernel of our own could do no less.
#include "common.h"

// Elements of a trained matrix: f32 as they are where products are in f32, split where they are in bf16.
__device__ __forceinline__ float trained(const float *x, const u16 *, i64 i) { return x[i]; }
__device__ __forceinline__ float trained(const bf16 *x, const u16 *lower, i64 i) { return join(x[i], lower[i]); }

// A block takes a row. w [out, in], a [rank, in], b [out, rank].
template <class T>
__device__ void merged_norms(const T *w, const T *a, const u16 *a_lower, const T *b, const u16 *b_lower, float *norms,
                             int n_in, int rank, float scale) {
    w += i64(blockIdx.x) * n_in;
    const i64 row = i64(blockIdx.x) * rank;
    double sum = 0.0;
    for (int i = threadIdx.x; i < n_in; i += blockDim.x) {
        float delta = 0.0f;
        for (int r = 0; r < rank; r++) delta += trained(b, b_lower, row + r) * trained(a, a_lower, i64(r) * n_in + i);
        const float x = widen(w[i]) + scale * delta;
        sum += double(x) * double(x);
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) norms[blockIdx.x] = float(sqrt(sum));
}

#define KERNELS(T, S)                                                                                                  \
    KERNEL(256, karat_merged_norms_##S, const T *w, const T *a, const u16 *a_lower, const T *b, const u16 *b_lower,    \
           float *norms, int n_in, int rank, float scale) {                                                            \
        merged_norms<T>(w, a, a_lower, b, b_lower, norms, n_in, rank, scale);                                          \
    }
KERNELS(float, f32)
KERNELS(bf16, bf16)
#undef KERNELS

// DoRA's norms (arXiv 2402.09353): norms[o] = |row o of W + s B A|. The CPU's twin: ops/low_rank.rs. The products of an
// adapter are cuBLAS's: y += s (x A^T) B^T with beta = 1 reads and writes y once, and a kernel of our own could do no less.
#include "common.h"

// A block takes a row. w [out, in], a f32 [rank, in], b f32 [out, rank].
template <class T>
__device__ void merged_norms(const T *w, const float *a, const float *b, float *norms, int n_in, int rank, float scale) {
    w += i64(blockIdx.x) * n_in;
    b += i64(blockIdx.x) * rank;
    double sum = 0.0;
    for (int i = threadIdx.x; i < n_in; i += blockDim.x) {
        float delta = 0.0f;
        for (int r = 0; r < rank; r++) delta += b[r] * a[i64(r) * n_in + i];
        const float x = widen(w[i]) + scale * delta;
        sum += double(x) * double(x);
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) norms[blockIdx.x] = float(sqrt(sum));
}

#define KERNELS(T, S)                                                                                                  \
    KERNEL(256, karat_merged_norms_##S, const T *w, const float *a, const float *b, float *norms, int n_in, int rank,  \
           float scale) {                                                                                              \
        merged_norms<T>(w, a, b, norms, n_in, rank, scale);                                                            \
    }
KERNELS(float, f32)
KERNELS(bf16, bf16)
#undef KERNELS

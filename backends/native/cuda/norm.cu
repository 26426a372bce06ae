// RMSNorm over rows: y = w x r with r = 1 / sqrt(mean(x^2) + eps) (arXiv 1910.07467). The CPU's twin: ops/norm.rs.
//
// One warp takes a row, four rows a block. Bytes: forward one read and one write of the row, backward three reads (four
// with `add`) and one write; the second pass over a row finds it in L1.
#include "common.h"

constexpr int NORM_WARPS = 4;

// The row of this warp; rows past the end are given to nobody.
__device__ __forceinline__ i64 warp_row() { return i64(blockIdx.x) * NORM_WARPS + threadIdx.x / 32; }

template <class T> __device__ void rms_norm(const T *x, const float *w, T *y, float *scale, i64 rows, int width, float eps) {
    const i64 row = warp_row();
    const int lane = threadIdx.x % 32;
    if (row >= rows) return;
    x += row * width;
    y += row * width;
    by_width<T>(width, [&](auto lanes) {
        constexpr int N = decltype(lanes)::value;
        float sum = 0.0f, v[N];
        for (int i = lane * N; i < width; i += 32 * N) {
            load<N>(v, x + i);
#pragma unroll
            for (int j = 0; j < N; j++) sum += v[j] * v[j];
        }
        const float r = 1.0f / sqrtf(warp_sum(sum) / float(width) + eps);
        if (lane == 0) scale[row] = r;
        for (int i = lane * N; i < width; i += 32 * N) {
            load<N>(v, x + i);
#pragma unroll
            for (int j = 0; j < N; j++) v[j] = w[i + j] * (v[j] * r);
            store<N>(y + i, v);
        }
    });
}

// The residual stream's step, then its norm: sum += branch, y = norm(sum) of the rounded sum.
template <class T>
__device__ void add_rms_norm(T *sum_of, const T *branch, const float *w, T *y, float *scale, i64 rows, int width, float eps) {
    const i64 row = warp_row();
    const int lane = threadIdx.x % 32;
    if (row >= rows) return;
    sum_of += row * width;
    branch += row * width;
    y += row * width;
    by_width<T>(width, [&](auto lanes) {
        constexpr int N = decltype(lanes)::value;
        float sum = 0.0f, v[N], b[N];
        for (int i = lane * N; i < width; i += 32 * N) {
            load<N>(v, sum_of + i);
            load<N>(b, branch + i);
#pragma unroll
            for (int j = 0; j < N; j++) {
                v[j] = widen(narrow<T>(v[j] + b[j]));
                sum += v[j] * v[j];
            }
            store<N>(sum_of + i, v);
        }
        const float r = 1.0f / sqrtf(warp_sum(sum) / float(width) + eps);
        if (lane == 0) scale[row] = r;
        // Each lane reads what it has written itself.
        for (int i = lane * N; i < width; i += 32 * N) {
            load<N>(v, sum_of + i);
#pragma unroll
            for (int j = 0; j < N; j++) v[j] = w[i + j] * (v[j] * r);
            store<N>(y + i, v);
        }
    });
}

// dx = r w dy - x r^3 / width sum(w dy x), added to dx with `add`. dx may be dy.
template <class T>
__device__ void rms_norm_backward(const T *x, const float *w, const float *scale, const T *dy, T *dx, i64 rows, int width,
                                  int add) {
    const i64 row = warp_row();
    const int lane = threadIdx.x % 32;
    if (row >= rows) return;
    x += row * width;
    dy += row * width;
    dx += row * width;
    by_width<T>(width, [&](auto lanes) {
        constexpr int N = decltype(lanes)::value;
        float sum = 0.0f, v[N], d[N], was[N];
        for (int i = lane * N; i < width; i += 32 * N) {
            load<N>(v, x + i);
            load<N>(d, dy + i);
#pragma unroll
            for (int j = 0; j < N; j++) sum += w[i + j] * d[j] * v[j];
        }
        const float r = scale[row];
        const float c = r * r * r / float(width) * warp_sum(sum);
        for (int i = lane * N; i < width; i += 32 * N) {
            load<N>(v, x + i);
            load<N>(d, dy + i);
            if (add) load<N>(was, dx + i);
#pragma unroll
            for (int j = 0; j < N; j++) {
                d[j] = r * w[i + j] * d[j] - c * v[j];
                if (add) d[j] = was[j] + d[j];
            }
            store<N>(dx + i, d);
        }
    });
}

// First stage of the weight's gradient: partial[chunk, column] = sum over the rows of the chunk of dy x r. Block (c, k)
// takes 64 columns of chunk k, a thread a column; reads are whole lines of a row.
template <class T>
__device__ void rms_norm_dw(const T *x, const float *scale, const T *dy, float *partial, i64 rows, int width, int chunk) {
    const int column = blockIdx.x * 64 + threadIdx.x;
    if (column >= width) return;
    const i64 first = i64(blockIdx.y) * chunk, last = min(first + chunk, rows);
    float sum = 0.0f;
#pragma unroll 4
    for (i64 row = first; row < last; row++)
        sum += widen(dy[row * width + column]) * (widen(x[row * width + column]) * scale[row]);
    partial[i64(blockIdx.y) * width + column] = sum;
}

#define KERNELS(T, S)                                                                                                  \
    KERNEL(128, karat_rms_norm_##S, const T *x, const float *w, T *y, float *scale, i64 rows, int width, float eps) {  \
        rms_norm<T>(x, w, y, scale, rows, width, eps);                                                                 \
    }                                                                                                                  \
    KERNEL(128, karat_add_rms_norm_##S, T *sum, const T *branch, const float *w, T *y, float *scale, i64 rows,         \
           int width, float eps) {                                                                                     \
        add_rms_norm<T>(sum, branch, w, y, scale, rows, width, eps);                                                   \
    }                                                                                                                  \
    KERNEL(128, karat_rms_norm_backward_##S, const T *x, const float *w, const float *scale, const T *dy, T *dx,       \
           i64 rows, int width, int add) {                                                                             \
        rms_norm_backward<T>(x, w, scale, dy, dx, rows, width, add);                                                   \
    }                                                                                                                  \
    KERNEL(64, karat_rms_norm_dw_##S, const T *x, const float *scale, const T *dy, float *partial, i64 rows,           \
           int width, int chunk) {                                                                                     \
        rms_norm_dw<T>(x, scale, dy, partial, rows, width, chunk);                                                     \
    }
KERNELS(float, f32)
KERNELS(bf16, bf16)
#undef KERNELS

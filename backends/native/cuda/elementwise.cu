// What only memory limits: sums, SwiGLU, conversions, biases and sums over columns. Twins: ops/elementwise.rs,
// ops/swiglu.rs, ops/low_rank.rs.
#include "common.h"

// Calls f(i, lanes) for the elements of 0..n that are this thread's: 16 bytes at a time, the rest one by one. All
// pointers must be on 16 bytes.
template <class T, class F> __device__ __forceinline__ void for_each(i64 n, F &&f) {
    const i64 threads = i64(gridDim.x) * blockDim.x, me = i64(blockIdx.x) * blockDim.x + threadIdx.x;
    const i64 whole = n / WIDE<T>;
    for (i64 i = me; i < whole; i += threads) f(i * WIDE<T>, Lanes<WIDE<T>>());
    for (i64 i = whole * WIDE<T> + me; i < n; i += threads) f(i, Lanes<1>());
}

template <class T> __device__ void add(T *x, const T *y, i64 n) {
    for_each<T>(n, [&](i64 i, auto lanes) {
        constexpr int N = decltype(lanes)::value;
        float a[N], b[N];
        load<N>(a, x + i);
        load<N>(b, y + i);
#pragma unroll
        for (int j = 0; j < N; j++) a[j] += b[j];
        store<N>(x + i, a);
    });
}

// 1 / (1 + e^-x): for x below -88 the exponential is infinite and the result 0, as it should be.
__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// Rows lie `stride` elements apart in gate and up (so that both may be halves of one product), dense in y. A block takes
// a row.
template <class T> __device__ void swiglu(const T *gate, const T *up, T *y, int width, i64 stride) {
    const i64 row = blockIdx.x;
    gate += row * stride;
    up += row * stride;
    y += row * width;
    by_width<T>(width, [&](auto lanes) {
        constexpr int N = decltype(lanes)::value;
        float g[N], u[N];
        for (int i = threadIdx.x * N; i < width; i += blockDim.x * N) {
            load<N>(g, gate + i);
            load<N>(u, up + i);
#pragma unroll
            for (int j = 0; j < N; j++) g[j] = g[j] * sigmoid(g[j]) * u[j];
            store<N>(y + i, g);
        }
    });
}

// dgate and dup lie like gate and up and may be the same memory.
template <class T>
__device__ void swiglu_backward(const T *gate, const T *up, const T *dy, T *dgate, T *dup, int width, i64 stride) {
    const i64 row = blockIdx.x;
    gate += row * stride;
    up += row * stride;
    dgate += row * stride;
    dup += row * stride;
    dy += row * width;
    by_width<T>(width, [&](auto lanes) {
        constexpr int N = decltype(lanes)::value;
        float g[N], u[N], d[N];
        for (int i = threadIdx.x * N; i < width; i += blockDim.x * N) {
            load<N>(g, gate + i);
            load<N>(u, up + i);
            load<N>(d, dy + i);
#pragma unroll
            for (int j = 0; j < N; j++) {
                const float s = sigmoid(g[j]), by_up = d[j] * g[j] * s;
                g[j] = d[j] * u[j] * s * (1.0f + g[j] * (1.0f - s));
                u[j] = by_up;
            }
            store<N>(dgate + i, g);
            store<N>(dup + i, u);
        }
    });
}

template <class From, class To> __device__ void convert(const From *x, To *y, i64 n) {
    const i64 threads = i64(gridDim.x) * blockDim.x;
    // By fours: 16 bytes of f32 and 8 of bf16.
    for (i64 i = i64(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += threads) y[i] = narrow<To>(widen(x[i]));
}

// y[row] += gain[column] x[row] (arXiv 2402.09353's elementwise share), or bias[column] alone. A block takes a row.
template <class T> __device__ void add_scaled(T *y, const T *x, const float *gain, int width) {
    y += i64(blockIdx.x) * width;
    x += i64(blockIdx.x) * width;
    for (int i = threadIdx.x; i < width; i += blockDim.x) y[i] = narrow<T>(widen(y[i]) + gain[i] * widen(x[i]));
}
template <class T> __device__ void add_bias(T *y, const float *bias, int width) {
    y += i64(blockIdx.x) * width;
    for (int i = threadIdx.x; i < width; i += blockDim.x) y[i] = narrow<T>(widen(y[i]) + bias[i]);
}

// First stage of a sum over rows: partial[chunk, column] = sum over the rows of the chunk of x, or of x y if y is given.
// Block (c, k) takes 64 columns of chunk k.
template <class T> __device__ void column_sums(const T *x, const T *y, float *partial, i64 rows, int width, int chunk) {
    const int column = blockIdx.x * 64 + threadIdx.x;
    if (column >= width) return;
    const i64 first = i64(blockIdx.y) * chunk, last = min(first + chunk, rows);
    float sum = 0.0f;
#pragma unroll 4
    for (i64 row = first; row < last; row++) {
        const float v = widen(x[row * width + column]);
        sum += y ? v * widen(y[row * width + column]) : v;
    }
    partial[i64(blockIdx.y) * width + column] = sum;
}

// Second stage: sum[column] += the chunks in their order, divided by divisor[column] if that is given.
KERNEL(64, karat_add_partials, const float *partial, float *sum, const float *divisor, int chunks, int width) {
    const int column = blockIdx.x * 64 + threadIdx.x;
    if (column >= width) return;
    float s = 0.0f;
#pragma unroll 4
    for (int c = 0; c < chunks; c++) s += partial[i64(c) * width + column];
    sum[column] += divisor ? s / divisor[column] : s;
}

// y = a / b: DoRA's gain from magnitudes and norms.
KERNEL(256, karat_divide, const float *a, const float *b, float *y, i64 n) {
    const i64 threads = i64(gridDim.x) * blockDim.x;
    for (i64 i = i64(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += threads) y[i] = a[i] / b[i];
}

#define KERNELS(T, S)                                                                                                  \
    KERNEL(256, karat_add_##S, T *x, const T *y, i64 n) { add<T>(x, y, n); }                                           \
    KERNEL(256, karat_swiglu_##S, const T *gate, const T *up, T *y, int width, i64 stride) {                           \
        swiglu<T>(gate, up, y, width, stride);                                                                         \
    }                                                                                                                  \
    KERNEL(256, karat_swiglu_backward_##S, const T *gate, const T *up, const T *dy, T *dgate, T *dup, int width,       \
           i64 stride) {                                                                                               \
        swiglu_backward<T>(gate, up, dy, dgate, dup, width, stride);                                                   \
    }                                                                                                                  \
    KERNEL(256, karat_add_scaled_##S, T *y, const T *x, const float *gain, int width) {                                \
        add_scaled<T>(y, x, gain, width);                                                                              \
    }                                                                                                                  \
    KERNEL(256, karat_add_bias_##S, T *y, const float *bias, int width) { add_bias<T>(y, bias, width); }               \
    KERNEL(64, karat_column_sums_##S, const T *x, const T *y, float *partial, i64 rows, int width, int chunk) {        \
        column_sums<T>(x, y, partial, rows, width, chunk);                                                             \
    }
KERNELS(float, f32)
KERNELS(bf16, bf16)
#undef KERNELS

KERNEL(256, karat_convert_f32_bf16, const float *x, bf16 *y, i64 n) { convert(x, y, n); }
KERNEL(256, karat_convert_bf16_f32, const bf16 *x, float *y, i64 n) { convert(x, y, n); }

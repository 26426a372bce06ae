// Rotary position embedding in place, half-split (arXiv 2104.09864), of queries and keys in one launch. The CPU's twin:
// ops/rope.rs.
#include "common.h"

// Rotates every head by the angle of its token's position; `sign` -1 rotates back, which is the gradient. A block takes a
// token. `cosines` and `sines` are [positions, dim / 2].
template <class T>
__device__ void rotate(T *q, T *k, const u32 *positions, const float *cosines, const float *sines, int heads, int kv_heads,
                       int dim, i64 q_stride, i64 k_stride, float sign) {
    const i64 token = blockIdx.x;
    const int half = dim / 2;
    const i64 at = i64(positions[token]) * half;
    by_width<T>(half, [&](auto lanes) {
        constexpr int N = decltype(lanes)::value;
        const int parts = half / N;
        for (int i = threadIdx.x; i < (heads + kv_heads) * parts; i += blockDim.x) {
            const int head = i / parts, first = i % parts * N;
            T *const x = head < heads ? q + token * q_stride + head * dim : k + token * k_stride + (head - heads) * dim;
            float a[N], b[N], c[N], s[N];
            load<N>(a, x + first);
            load<N>(b, x + half + first);
            load<N>(c, cosines + at + first);
            load<N>(s, sines + at + first);
#pragma unroll
            for (int j = 0; j < N; j++) {
                const float u = a[j], w = b[j], sine = sign * s[j];
                a[j] = u * c[j] - w * sine;
                b[j] = w * c[j] + u * sine;
            }
            store<N>(x + first, a);
            store<N>(x + half + first, b);
        }
    });
}

#define KERNELS(T, S)                                                                                                  \
    KERNEL(256, karat_rope_##S, T *q, T *k, const u32 *positions, const float *cosines, const float *sines, int heads, \
           int kv_heads, int dim, i64 q_stride, i64 k_stride, float sign) {                                            \
        rotate<T>(q, k, positions, cosines, sines, heads, kv_heads, dim, q_stride, k_stride, sign);                    \
    }
KERNELS(float, f32)
KERNELS(bf16, bf16)
#undef KERNELS

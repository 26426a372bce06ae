// AdamW (arXiv 1711.05101, to the letter of torch.optim.AdamW) over all parameters in one launch, and the norm of all
// gradients. The CPU's twin: ops/adamw.rs.
//
// Tensors are named by a table of 8 words each: addresses of the parameter, first moment, second moment, gradient, of the
// parameter's lower halves (0: it is f32; else it is split, see common.h), elements, whether weight decay applies, whether the
// gradient is bf16. A block takes CHUNK elements; `chunks` says of which tensor and the how manieth. Bytes: 28 an element of
// AdamW, 4 of the norm; 2 less each where the gradient is bf16.
#include "common.h"

constexpr int CHUNK = 8192;

struct Parameter {
    void *p;
    float *m, *v;
    const void *g;
    u16 *lower;
    u64 elements, decays, narrow;
};

KERNEL(256, karat_adamw, const u64 *tensors, const u32 *chunks, const float *clip, float step_size, float root, float keep,
       float first, float second, float beta2, float eps) {
    const Parameter t = reinterpret_cast<const Parameter *>(tensors)[chunks[2 * blockIdx.x]];
    const u64 start = u64(chunks[2 * blockIdx.x + 1]) * CHUNK;
    const int n = int(min(u64(CHUNK), t.elements - start));
    const float scale = *clip, kept = t.decays ? keep : 1.0f;
    // A gradient that is not finite changes nothing: the host sees its norm and stops.
    if (!(scale >= 0.0f && scale < INFINITE)) return;
    const auto update = [&](auto lanes, int i) {
        constexpr int N = decltype(lanes)::value;
        float p[N], m[N], v[N], g[N];
        if (t.lower) load_split<N>(p, static_cast<bf16 *>(t.p) + start + i, t.lower + start + i);
        else load<N>(p, static_cast<float *>(t.p) + start + i);
        load<N>(m, t.m + start + i);
        load<N>(v, t.v + start + i);
        load_gradient<N>(g, t.g, start + i, t.narrow);
#pragma unroll
        for (int j = 0; j < N; j++) {
            const float d = g[j] * scale;
            m[j] += first * (d - m[j]);
            v[j] = beta2 * v[j] + second * (d * d);
            p[j] = p[j] * kept - step_size * (m[j] / (sqrtf(v[j]) / root + eps));
        }
        if (t.lower) store_split<N>(static_cast<bf16 *>(t.p) + start + i, t.lower + start + i, p);
        else store<N>(static_cast<float *>(t.p) + start + i, p);
        store<N>(t.m + start + i, m);
        store<N>(t.v + start + i, v);
    };
    for (int i = threadIdx.x * 4; i + 4 <= n; i += blockDim.x * 4) update(Lanes<4>(), i);
    for (int i = n / 4 * 4 + threadIdx.x; i < n; i += blockDim.x) update(Lanes<1>(), i);
}

// sums[block] = sum of the squares of this block's gradients, in f64.
KERNEL(256, karat_square_sums, const u64 *tensors, const u32 *chunks, double *sums) {
    const Parameter t = reinterpret_cast<const Parameter *>(tensors)[chunks[2 * blockIdx.x]];
    const u64 start = u64(chunks[2 * blockIdx.x + 1]) * CHUNK;
    const int n = int(min(u64(CHUNK), t.elements - start));
    double sum = 0.0;
    for (int i = threadIdx.x * 4; i + 4 <= n; i += blockDim.x * 4) {
        float g[4];
        load_gradient<4>(g, t.g, start + i, t.narrow);
#pragma unroll
        for (int j = 0; j < 4; j++) sum += double(g[j]) * double(g[j]);
    }
    for (int i = n / 4 * 4 + threadIdx.x; i < n; i += blockDim.x) {
        float g[1];
        load_gradient<1>(g, t.g, start + i, t.narrow);
        sum += double(g[0]) * double(g[0]);
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// of_tensor[t] = sum of sums[firsts[t]..firsts[t + 1]]; a block takes a tensor.
KERNEL(256, karat_tensor_sums, const double *sums, const u32 *firsts, double *of_tensor) {
    double sum = 0.0;
    for (u32 i = firsts[blockIdx.x] + threadIdx.x; i < firsts[blockIdx.x + 1]; i += blockDim.x) sum += sums[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) of_tensor[blockIdx.x] = sum;
}

// norm_and_clip = { sqrt(sum of of_tensor), factor that brings it to max_norm or 1 }; both NaN where a gradient is not
// finite. One block. A max_norm of 0 clips nothing.
KERNEL(256, karat_clip, const double *of_tensor, float *norm_and_clip, int tensors, float max_norm) {
    double sum = 0.0;
    for (int i = threadIdx.x; i < tensors; i += blockDim.x) sum += of_tensor[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) {
        const double norm = sqrt(sum), to = double(max_norm) / (norm + 1e-6);
        const bool finite = norm < double(INFINITE);
        norm_and_clip[0] = finite ? float(norm) : INFINITE - INFINITE;
        norm_and_clip[1] = !finite ? INFINITE - INFINITE : max_norm > 0.0f && to < 1.0 ? float(to) : 1.0f;
    }
}

// Log-probabilities of targets and the gradient of the cross-entropy, written over a chunk of logits. The CPU's twin:
// ops/cross_entropy.rs.
//
// A block takes a row and reads it twice in training, once in scoring: a running maximum and sum, then the gradient. With 132
// rows of 152,000 bf16 in flight, the second read comes from L2.
#include "common.h"

constexpr u32 NO_TARGET = 0xffffffffu; // a row without a target: log-probability and gradient are 0

// e^x; for bf16 logits, whose own rounding is far coarser, by the fast unit.
template <class T> __device__ __forceinline__ float exponential(float x) {
    if constexpr (sizeof(T) == 4) return expf(x);
    else return exp2_fast(x * 1.44269504088896340736f);
}

__device__ __forceinline__ float block_max(float x) {
    SHARED(float, parts, 32);
    x = warp_max(x);
    __syncthreads(); // whoever still reads an earlier one
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    float most = parts[0];
    for (int w = 1; w < blockDim.x / 32; w++) most = parts[w] > most ? parts[w] : most;
    return most;
}

// The row's log-sum-exp in every thread; `see(i, x)` is called for each logit.
template <class T, class F> __device__ __forceinline__ float log_sum_exp(const T *logits, int vocab, F &&see) {
    float top = -INFINITE, sum = 0.0f;
    by_width<T>(vocab, [&](auto lanes) {
        constexpr int N = decltype(lanes)::value;
        float x[N];
        for (int i = threadIdx.x * N; i < vocab; i += blockDim.x * N) {
            load<N>(x, logits + i);
            float most = top;
#pragma unroll
            for (int j = 0; j < N; j++) {
                see(i + j, x[j]);
                most = x[j] > most ? x[j] : most;
            }
            if (most != top) sum *= exponential<T>(top - most);
            top = most;
            // While all are minus infinity there is nothing to sum; NaN goes into the sum.
#pragma unroll
            for (int j = 0; j < N; j++)
                if (!(x[j] == -INFINITE)) sum += exponential<T>(x[j] - top);
        }
    });
    const float most = block_max(top);
    return most + logf(block_sum(top == -INFINITE && sum == 0.0f ? 0.0f : sum * exponential<T>(top - most)));
}

// logprobs[row] = log p(target); logits = scale (p - [i = target]).
template <class T> __device__ void cross_entropy(T *logits, const u32 *targets, float *logprobs, int vocab, float scale) {
    const u32 target = targets[blockIdx.x];
    logits += i64(blockIdx.x) * vocab;
    if (target == NO_TARGET) {
        if (threadIdx.x == 0) logprobs[blockIdx.x] = 0.0f;
        for (int i = threadIdx.x; i < vocab; i += blockDim.x) logits[i] = narrow<T>(0.0f);
        return;
    }
    const float of_target = widen(logits[target]);
    const float lse = log_sum_exp(logits, vocab, [](int, float) {});
    if (threadIdx.x == 0) logprobs[blockIdx.x] = of_target - lse;
    by_width<T>(vocab, [&](auto lanes) {
        constexpr int N = decltype(lanes)::value;
        float x[N];
        for (int i = threadIdx.x * N; i < vocab; i += blockDim.x * N) {
            load<N>(x, logits + i);
#pragma unroll
            for (int j = 0; j < N; j++) {
                x[j] = exponential<T>(x[j] - lse) * scale;
                if (u32(i + j) == target) x[j] -= scale;
            }
            store<N>(logits + i, x);
        }
    });
}

// logprobs[row] = log p(target), greedy[row] = 1 where the target is the most probable (the lowest id among equals; a NaN
// anywhere makes it 0).
template <class T> __device__ void score(const T *logits, const u32 *targets, float *logprobs, u32 *greedy, int vocab) {
    const u32 target = targets[blockIdx.x];
    logits += i64(blockIdx.x) * vocab;
    if (target == NO_TARGET) {
        if (threadIdx.x == 0) logprobs[blockIdx.x] = 0.0f, greedy[blockIdx.x] = 0;
        return;
    }
    const float of_target = widen(logits[target]);
    u32 beaten = 0;
    const float lse = log_sum_exp(logits, vocab, [&](int i, float x) {
        if (u32(i) < target ? !(x < of_target) : !(x <= of_target)) beaten = 1;
    });
    const u32 by = block_sum(beaten);
    if (threadIdx.x == 0) logprobs[blockIdx.x] = of_target - lse, greedy[blockIdx.x] = by == 0;
}

#define KERNELS(T, S)                                                                                                  \
    KERNEL(512, karat_cross_entropy_##S, T *logits, const u32 *targets, float *logprobs, int vocab, float scale) {     \
        cross_entropy<T>(logits, targets, logprobs, vocab, scale);                                                     \
    }                                                                                                                  \
    KERNEL(512, karat_score_##S, const T *logits, const u32 *targets, float *logprobs, u32 *greedy, int vocab) {       \
        score<T>(logits, targets, logprobs, greedy, vocab);                                                            \
    }
KERNELS(float, f32)
KERNELS(bf16, bf16)
#undef KERNELS

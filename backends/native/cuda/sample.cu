// From logits to the next token, by the rule of sampling.rs in karat-model.
//
// A block takes a row. Greedy is one pass. A draw goes through the tokens by falling weight e^((l - top) / T), equal ones by
// rising id, and takes the first at which the sum of weights reaches a limit. Sums are of whole numbers, weights times 2^44,
// so that their order cannot matter. The token is found by halving the range of logits 32 times, without sorting.
#include "philox.h"

constexpr u32 SAMPLING_STREAM = 0x53414d50u;
constexpr u32 NOT_A_NUMBER = 0xffffffffu; // in place of an id: a logit was NaN
constexpr double ONE = 17592186044416.0;  // a weight of 1: 2^44

// Whole numbers in the order of floats; both zeros are one.
__device__ __forceinline__ u32 rank_of(float x) {
    const u32 bits = __float_as_uint(x + 0.0f);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

struct Best {
    u32 rank, id;
};
__device__ __forceinline__ Best better(Best a, Best b) {
    return b.rank > a.rank || (b.rank == a.rank && b.id < a.id) ? b : a;
}

// The row's largest logit, the lowest id among equals, in every thread; id NOT_A_NUMBER if there is a NaN.
template <class T> __device__ Best block_best(const T *logits, int vocab) {
    SHARED(Best, parts, 32);
    Best best = {0, NOT_A_NUMBER};
    u32 nan = 0;
    by_width<T>(vocab, [&](auto lanes) {
        constexpr int N = decltype(lanes)::value;
        float x[N];
        for (int i = threadIdx.x * N; i < vocab; i += blockDim.x * N) {
            load<N>(x, logits + i);
#pragma unroll
            for (int j = 0; j < N; j++) {
                if (x[j] != x[j]) nan = 1;
                best = better(best, Best{rank_of(x[j]), u32(i + j)});
            }
        }
    });
    for (int with = 16; with > 0; with /= 2)
        best = better(best, Best{__shfl_xor_sync(WHOLE_WARP, best.rank, with), __shfl_xor_sync(WHOLE_WARP, best.id, with)});
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = best;
    nan = block_sum(nan); // has a barrier
    best = parts[0];
    for (int w = 1; w < blockDim.x / 32; w++) best = better(best, parts[w]);
    if (nan) best.id = NOT_A_NUMBER;
    return best;
}

// Tokens and weight above a rank, and at it.
struct Found {
    u32 rank;
    u64 above, at; // sums of weights, or counts
};

// The highest rank such that what lies at or above it reaches `limit`, at least 1 and at most the whole. `weight(i)` is the
// weight of token i, or 1 to count.
template <class T, class W> __device__ Found reach(const T *logits, int vocab, u64 limit, W &&weight) {
    const auto sum_from = [&](u32 least) {
        u64 sum = 0;
        for (int i = threadIdx.x; i < vocab; i += blockDim.x)
            if (rank_of(widen(logits[i])) >= least) sum += weight(i);
        return block_sum(sum);
    };
    u32 rank = 0;
    for (int bit = 31; bit >= 0; bit--)
        if (sum_from(rank | 1u << bit) >= limit) rank |= 1u << bit;
    const u64 above = rank == 0xffffffffu ? 0 : sum_from(rank + 1);
    return {rank, above, sum_from(rank) - above};
}

template <class T>
__device__ void sample(const T *logits, const u32 *rows, const u32 *places, u32 *ids, u64 *weights, int vocab,
                       double temperature, u32 top_k, double top_p, u64 seed) {
    SHARED(u32, counts, 1024);
    logits += i64(blockIdx.x) * vocab;
    weights += i64(blockIdx.x) * vocab;
    const Best best = block_best(logits, vocab);
    if (best.id == NOT_A_NUMBER || temperature == 0.0) {
        if (threadIdx.x == 0) ids[blockIdx.x] = best.id;
        return;
    }
    const double top = double(widen(logits[best.id]));
    if (!(top > -double(INFINITE) && top < double(INFINITE))) {
        if (threadIdx.x == 0) ids[blockIdx.x] = best.id;
        return;
    }
    // Each thread reads the weights that it wrote itself.
    u64 mass = 0;
    for (int i = threadIdx.x; i < vocab; i += blockDim.x) {
        weights[i] = u64(exp((double(widen(logits[i])) - top) / temperature) * ONE);
        mass += weights[i];
    }
    mass = block_sum(mass);
    const auto weight = [&](int i) { return weights[i]; };
    const bool cut = top_k > 0 && top_k < u32(vocab);
    if (cut) {
        const Found last = reach(logits, vocab, top_k, [](int) { return u64(1); });
        const u32 from = last.rank;
        u64 sum = 0, each = 0;
        for (int i = threadIdx.x; i < vocab; i += blockDim.x) {
            const u32 rank = rank_of(widen(logits[i]));
            if (rank > from) sum += weights[i];
            if (rank == from) each += weights[i];
        }
        mass = block_sum(sum) + block_sum(each) / last.at * (top_k - last.above);
    }
    if (top_p < 1.0) {
        const u64 limit = u64(ceil(top_p * double(mass)));
        const Found last = reach(logits, vocab, limit > 0 ? limit : 1, weight);
        // Of equal tokens as many as it takes.
        u32 equal = 0;
        for (int i = threadIdx.x; i < vocab; i += blockDim.x) equal += rank_of(widen(logits[i])) == last.rank;
        const u64 each = last.at / block_sum(equal);
        mass = last.above + (limit - last.above + each - 1) / each * each;
    }
    const u64 drawn = u64(uniform(seed, places[blockIdx.x], rows[blockIdx.x], SAMPLING_STREAM) * double(mass));
    const u64 limit = min(drawn, mass - 1) + 1;
    if (!cut && top_p >= 1.0) {
        // Nothing is cut: the CPU goes through the tokens by id.
        SHARED(u64, sums, 1024);
        const int share = (vocab + blockDim.x - 1) / blockDim.x;
        const int first = min(int(threadIdx.x) * share, vocab), last = min(first + share, vocab);
        __syncthreads(); // all weights are written
        u64 sum = 0;
        for (int i = first; i < last; i++) sum += weights[i];
        sums[threadIdx.x] = sum;
        __syncthreads();
        u64 before = 0;
        for (int t = 0; t < threadIdx.x; t++) before += sums[t];
        if (before < limit && limit <= before + sum) {
            int i = first;
            while (before + weights[i] < limit) before += weights[i++];
            ids[blockIdx.x] = i;
        }
        return;
    }
    const Found at = reach(logits, vocab, limit, weight);
    // The token among equals: they lie by rising id.
    const int share = (vocab + blockDim.x - 1) / blockDim.x;
    const int first = min(int(threadIdx.x) * share, vocab), last = min(first + share, vocab);
    u32 equal = 0;
    for (int i = first; i < last; i++) equal += rank_of(widen(logits[i])) == at.rank;
    counts[threadIdx.x] = equal;
    __syncthreads();
    u32 before = 0, all = 0;
    for (int t = 0; t < blockDim.x; t++) {
        before += t < threadIdx.x ? counts[t] : 0;
        all += counts[t];
    }
    const u64 each = at.at / all, nth = (limit - at.above - 1) / each;
    if (before <= nth && nth < before + equal) {
        u64 left = nth - before;
        int i = first;
        while (rank_of(widen(logits[i])) != at.rank || left-- > 0) i++;
        ids[blockIdx.x] = i;
    }
}

#define KERNELS(T, S)                                                                                                  \
    KERNEL(1024, karat_sample_##S, const T *logits, const u32 *rows, const u32 *places, u32 *ids, u64 *weights,        \
           int vocab, u64 temperature, u32 top_k, u64 top_p, u64 seed) {                                               \
        sample<T>(logits, rows, places, ids, weights, vocab, __longlong_as_double(temperature), top_k,                 \
                  __longlong_as_double(top_p), seed);                                                                  \
    }
KERNELS(float, f32)
KERNELS(bf16, bf16)
#undef KERNELS

//! Peak FLOP/s of a CPU's registers: multiplications alone, no loads and no stores.
#![allow(unsafe_code)]

use std::hint::black_box;
use std::time::{Duration, Instant};

use crate::gemm::isa::Isa;
use crate::gemm::tile::{LANES, Precision};
use crate::simd::simd;

/// GFLOP/s of multiplications in registers, on all threads of the current pool at once: the best of
/// many tries, each so short that it is seldom interrupted.
pub fn limit(precision: Precision) -> f64 {
    const TRIES: usize = 50;
    const LEAST: Duration = Duration::from_millis(50);
    let isa = Isa::of_this_cpu();
    let rates = rayon::broadcast(|_| {
        let (started, mut tries, mut best) = (Instant::now(), 0, 0f64);
        while tries < TRIES || started.elapsed() < LEAST {
            let from = Instant::now();
            let done = steps(isa, precision, 10_000);
            best = best.max(done / from.elapsed().as_secs_f64());
            tries += 1;
        }
        best / 1e9
    });
    rates.iter().sum()
}

/// Takes `n` steps with the instructions of `isa`; the floating-point operations of all.
fn steps(isa: Isa, precision: Precision, n: usize) -> f64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the set was found on this CPU.
    unsafe {
        match (isa, precision) {
            #[cfg(target_os = "linux")]
            (Isa::AmxBf16, Precision::Bf16) => return crate::gemm::amx::steps(n),
            (Isa::Avx512Bf16, Precision::Bf16) => return x86::pairs(n),
            (Isa::Avx512Bf16 | Isa::AmxBf16 | Isa::Avx512, _) => return x86::singles(n),
            _ => {}
        }
    }
    let _ = (isa, precision);
    plain(n)
}

/// Fused steps as plain loops take them; a pair of bf16 takes two, as many as two numbers in f32.
fn plain(n: usize) -> f64 {
    /// Sums side by side: as many as registers of AVX2 hold, with room for the factors.
    const SUMS: usize = 5;
    type Sums = [[f32; LANES]; SUMS];
    // By value: sums behind a reference the compiler keeps in memory, one lane at a time.
    #[inline(always)]
    fn all(n: usize, a: [f32; LANES], b: [f32; LANES], mut sums: Sums) -> Sums {
        for _ in 0..n {
            for sums in &mut sums {
                for l in 0..LANES {
                    sums[l] = a[l].mul_add(b[l], sums[l]);
                }
            }
        }
        sums
    }
    let (a, b) = (black_box([0f32; LANES]), black_box([0f32; LANES]));
    let sums = black_box(std::array::from_fn(|i| [i as f32; LANES]));
    black_box(simd(
        #[inline(always)]
        || all(n, a, b, sums),
    ));
    2.0 * (n * SUMS * LANES) as f64
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    use crate::gemm::tile::LANES;

    /// Sums side by side, enough to wait for none.
    const SUMS: usize = 24;

    /// # Safety
    /// The CPU must have the features.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    pub unsafe fn pairs(n: usize) -> f64 {
        // SAFETY: both types are 512 bits without a niche.
        let zero = unsafe { std::mem::transmute::<__m512i, __m512bh>(black_box(_mm512_setzero_si512())) };
        let mut sums: [__m512; SUMS] = std::array::from_fn(|i| _mm512_set1_ps(i as f32));
        for _ in 0..n {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, zero, zero);
            }
        }
        black_box(sums);
        4.0 * (n * SUMS * LANES) as f64
    }

    /// # Safety
    /// The CPU must have the features.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub unsafe fn singles(n: usize) -> f64 {
        let zero = black_box(_mm512_setzero_ps());
        let mut sums: [__m512; SUMS] = std::array::from_fn(|i| _mm512_set1_ps(i as f32));
        for _ in 0..n {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(zero, zero, *sum);
            }
        }
        black_box(sums);
        2.0 * (n * SUMS * LANES) as f64
    }
}

//! `cargo bench -p karat-native --bench kernels`: matrix products of the shapes of SmolLM2-135M
//! beside those of the `gemm` crate, products of layers that take turns by what is done with them
//! beside what registers allow, and the kernels around them, on as many threads as there are cores.
#![allow(missing_docs, reason = "the macros of criterion write functions")]
#![allow(unsafe_code, reason = "the call of the gemm crate")]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use half::bf16;
use karat_kernels::gemm::{Mat, MatMut, Precision, Threads, gemm};
use karat_kernels::memory::mmap::Elements;
use karat_kernels::speed::{GemmCase, GemmMode, SHAPES, limit};
use karat_native::ops::adamw::{self, Update};
use karat_native::ops::attention::{self, Heads};
use karat_native::ops::{norm, swiglu};

fn noise(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919) % 2003) as f32 / 1001.5 - 1.0).collect()
}

/// Forward, input gradient and weight gradient of a linear layer; throughput in floating-point
/// operations.
fn products(c: &mut Criterion) {
    for (tokens, n_in, n_out) in
        [(512, 576, 1536), (512, 1536, 576), (512, 576, 192), (1, 576, 1536), (2048, 2048, 2048)]
    {
        let mut group = c.benchmark_group(format!("{tokens} x {n_in} x {n_out}"));
        group.throughput(Throughput::Elements(2 * (tokens * n_in * n_out) as u64)).sample_size(20);
        let (x, w, dy) = (noise(tokens * n_in), noise(n_out * n_in), noise(tokens * n_out));
        let narrow: Vec<bf16> = w.iter().map(|x| bf16::from_f32(*x)).collect();
        let (mut y, mut dx, mut dw) = (noise(tokens * n_out), noise(tokens * n_in), noise(n_out * n_in));
        for (precision, stored) in [(Precision::F32, Elements::F32(&w)), (Precision::Bf16, Elements::Bf16(&narrow))] {
            let x = Mat::new(&x, tokens, n_in);
            let dy = Mat::new(&dy, tokens, n_out);
            let w = Mat::of(stored, n_out, n_in);
            let id = |what: &str| BenchmarkId::new(what, format!("{precision:?}"));
            group.bench_function(id("y"), |b| {
                b.iter(|| {
                    gemm(precision, MatMut::new(&mut y, tokens, n_out), 1.0, x, w.t(), false, Threads::Pool);
                });
            });
            group.bench_function(id("dx"), |b| {
                b.iter(|| gemm(precision, MatMut::new(&mut dx, tokens, n_in), 1.0, dy, w, false, Threads::Pool));
            });
            group.bench_function(id("dw"), |b| {
                b.iter(|| gemm(precision, MatMut::new(&mut dw, n_out, n_in), 1.0, dy.t(), x, true, Threads::Pool));
            });
        }
        group.bench_function("y, gemm crate", |b| {
            let (rows, columns) = (n_in as isize, n_out as isize);
            // SAFETY: the matrices have the sizes that are given, and `y` overlaps neither operand.
            b.iter(|| unsafe {
                let (y, x, w) = (y.as_mut_ptr(), x.as_ptr(), w.as_ptr());
                let threads = gemm::Parallelism::Rayon(0);
                gemm::gemm(
                    tokens, n_out, n_in, y, 1, columns, false, x, 1, rows, w, rows, 1, 0.0, 1.0, false, false, false,
                    threads,
                );
            });
        });
        group.finish();
    }
}

/// Layers whose weights and outputs come from main memory, by what is done with the product;
/// throughput in floating-point operations, what registers allow in a line before.
fn layers(c: &mut Criterion) {
    for precision in [Precision::Bf16, Precision::F32] {
        println!("registers, {precision:?}: {:.0} GFLOP/s at most", limit(precision));
        for shape in SHAPES {
            let mut case = GemmCase::new(precision, shape, 8);
            let mut group =
                c.benchmark_group(format!("layers of {} x {} x {}", shape.rows, shape.inputs, shape.outputs));
            group.sample_size(20);
            for mode in GemmMode::ALL {
                group.throughput(Throughput::Elements(case.operations(mode) as u64));
                let id = BenchmarkId::new(mode.name(), format!("{precision:?}"));
                group.bench_function(id, |b| b.iter(|| case.run(mode)));
            }
            group.finish();
        }
    }
}

/// The element-wise operations between the GEMMs, on 512 tokens; throughput in bytes of their
/// operands.
fn others(c: &mut Criterion) {
    let mut group = c.benchmark_group("512 tokens");
    group.sample_size(20);
    let heads = Heads { queries: 9, keys: 3, dim: 64 };
    let (q, k, v) = (noise(512 * 576), noise(512 * 192), noise(512 * 192));
    let (mut out, mut lse) = (noise(512 * 576), noise(512 * 9));
    let (mut dq, mut dk, mut dv) = (noise(512 * 576), noise(512 * 192), noise(512 * 192));
    let [qs, ks, vs] = [(&q, 576), (&k, 192), (&v, 192)].map(|(x, width)| Mat::new(x, 512, width));
    for precision in [Precision::F32, Precision::Bf16] {
        let id = |what: &str| BenchmarkId::new(what, format!("{precision:?}"));
        group.throughput(Throughput::Elements(attention::work(&[0, 512], heads, 2) as u64));
        group.bench_function(id("attention"), |b| {
            b.iter(|| attention::forward(precision, qs, ks, vs, &[0, 512], heads, &mut out, &mut lse));
        });
        group.throughput(Throughput::Elements(attention::work(&[0, 512], heads, 5) as u64));
        group.bench_function(id("attention, backward"), |b| {
            b.iter(|| {
                let into = [&mut dq[..], &mut dk, &mut dv];
                attention::backward(precision, [qs, ks, vs], &[0, 512], heads, (&out[..], &lse), &q, into);
            });
        });
    }
    let (w, mut scale) = (noise(576), noise(512));
    group.throughput(Throughput::Bytes(2 * 4 * 512 * 576));
    group.bench_function("rms norm", |b| b.iter(|| norm::forward(&q, &w, 1e-5, &mut out, &mut scale)));
    let (gate, up, mut act) = (noise(512 * 1536), noise(512 * 1536), noise(512 * 1536));
    group.throughput(Throughput::Bytes(3 * 4 * 512 * 1536));
    group.bench_function("swiglu", |b| b.iter(|| swiglu::forward(&gate, &up, &mut act)));
    let n = 1 << 22;
    let (mut p, mut m, mut s, g) = (noise(n), vec![0f32; n], vec![0f32; n], noise(n));
    let update =
        Update { lr: 1e-4, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, step: 3, gradient_scale: 1.0 };
    group.throughput(Throughput::Bytes(7 * 4 * n as u64));
    group.bench_function("adamw, 4 Mi parameters", |b| {
        b.iter(|| adamw::update(&mut p, &mut m, &mut s, &g, &update));
    });
    group.finish();
}

criterion_group!(kernels, products, layers, others);
criterion_main!(kernels);

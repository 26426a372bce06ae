use karat_native::cuda::device::{Arg, Element};
use karat_native::cuda::kernels;
use karat_native::ops::{dora, elementwise, swiglu};

use crate::bench::*;

const LENGTHS: [usize; 7] = [1, 2, 7, 8, 63, 65, 5000];

#[test]
fn sums_and_conversions_are_the_cpus_to_the_bit() {
    for n in LENGTHS {
        for t in BOTH {
            let (x, y) = (rounded(noise(n, 1), t), rounded(noise(n, 2), t));
            let mut want = x.clone();
            elementwise::add(&mut want, &y);
            let want = rounded(want, t);
            prove(
                |d| {
                    let (x, y) = (d.put(&x, t), d.put(&y, t));
                    kernels::add(d.gpu(), t, [x.arg(), y.arg()], n).unwrap();
                    vec![d.get(&x)]
                },
                |device, got| assert_eq!(got[0], want, "{device} {t:?}"),
            );
        }
        // Rounding to bf16: ties, the border of infinity, denormals.
        let mut x = scaled(noise(n, 3), 1e3);
        for (x, hard) in x.iter_mut().zip([1.003_906_3, 1.011_718_8, 3.4e38, -3.39e38, 1e-40, -0.0, f32::INFINITY]) {
            *x = hard;
        }
        prove(
            |d| {
                let (f, b) = (d.put_f32(&x), d.fresh(n, Element::Bf16));
                kernels::narrow(d.gpu(), [f.arg(), b.arg()], n).unwrap();
                let back = d.fresh(n, Element::F32);
                kernels::widen(d.gpu(), [b.arg(), back.arg()], n).unwrap();
                vec![d.get(&b), d.get(&back)]
            },
            |_, got| {
                let want = rounded(x.clone(), Element::Bf16);
                assert_eq!(got[0], want);
                assert_eq!(got[1], want);
            },
        );
    }
}

#[test]
fn swiglu_and_its_gradients_match_f64_and_the_cpu() {
    for t in BOTH {
        for (rows, width, stride) in [(1, 1, 1), (3, 7, 7), (5, 8, 24), (65, 64, 128), (2, 3072, 6144)] {
            // Gates far out, where the sigmoid is 0 or 1.
            let spread = |i: usize| [1.0, 8.0, 200.0, 0.0][i % 4];
            let side = |seed| {
                let x = noise(rows * stride, seed);
                rounded(x.iter().enumerate().map(|(i, x)| x * spread(i)).collect(), t)
            };
            let (gate, up, dy) = (side(1), side(2), rounded(noise(rows * width, 3), t));
            let dense =
                |x: &[f32]| -> Vec<f32> { x.chunks(stride).flat_map(|row| row[..width].iter().copied()).collect() };
            prove(
                |d| {
                    let (g, u, dd) = (d.put(&gate, t), d.put(&up, t), d.put(&dy, t));
                    let y = d.fresh(rows * width, t);
                    kernels::swiglu(d.gpu(), t, [g.arg(), u.arg(), y.arg()], (rows, width), stride).unwrap();
                    let (dg, du) = (d.fresh(rows * stride, t), d.fresh(rows * stride, t));
                    let args = [g.arg(), u.arg(), dd.arg(), dg.arg(), du.arg()];
                    kernels::swiglu_backward(d.gpu(), t, args, (rows, width), stride).unwrap();
                    let apart = vec![d.get(&y), dense(&d.get(&dg)), dense(&d.get(&du))];
                    // The gradients may overwrite what they are gradients of.
                    let args = [g.arg(), u.arg(), dd.arg(), g.arg(), u.arg()];
                    kernels::swiglu_backward(d.gpu(), t, args, (rows, width), stride).unwrap();
                    assert_eq!(apart[1..], [dense(&d.get(&g)), dense(&d.get(&u))]);
                    apart
                },
                |device, got| {
                    let what = format!("{device} {t:?} {rows} x {width}");
                    let (g, u) = (dense(&gate), dense(&up));
                    let s: Vec<f64> = wide(&g).iter().map(|g| 1.0 / (1.0 + (-g).exp())).collect();
                    let each = |f: &dyn Fn(f64, f64, f64, f64) -> f64| -> Vec<f64> {
                        (0..g.len()).map(|i| f(f64::from(g[i]), f64::from(u[i]), f64::from(dy[i]), s[i])).collect()
                    };
                    let y = each(&|g, u, _, s| g * s * u);
                    let dg = each(&|g, u, d, s| d * u * s * (1.0 + g * (1.0 - s)));
                    let du = each(&|g, _, d, s| d * g * s);
                    for (name, got, want) in [("y", &got[0], &y), ("dgate", &got[1], &dg), ("dup", &got[2], &du)] {
                        for i in 0..want.len() {
                            // 1 + g (1 - s) may cancel.
                            let terms = f64::from((dy[i] * u[i]).abs()) * s[i] * (1.0 + f64::from(g[i].abs()));
                            let bound = ulp(t) * want[i].abs() + if name == "dgate" { 1e-6 * terms } else { 0.0 };
                            let error = (f64::from(got[i]) - want[i]).abs();
                            assert!(error <= bound + 1e-30, "{what}: {name}[{i}]: {}, want {}", got[i], want[i]);
                        }
                    }
                    let mut cpu = vec![0f32; g.len()];
                    swiglu::forward(&g, &u, &mut cpu);
                    close(&format!("{what}: CPU"), &got[0], &wide(&cpu), ulp(t), 1e-4 * ulp(t));
                },
            );
        }
    }
}

#[test]
fn gains_and_biases_match_the_cpu() {
    for t in BOTH {
        for (rows, width) in [(1, 1), (3, 70), (600, 5), (37, 129)] {
            let (x, y) = (rounded(noise(rows * width, 1), t), rounded(noise(rows * width, 2), t));
            let (gain, norms) =
                (noise(width, 3), scaled(noise(width, 4), 0.5).iter().map(|n| 1.0 + n).collect::<Vec<_>>());
            prove(
                |d| {
                    let (dx, dy, dgain, dnorms) = (d.put(&x, t), d.put(&y, t), d.put_f32(&gain), d.put_f32(&norms));
                    kernels::add_scaled(d.gpu(), t, [dy.arg(), dx.arg(), dgain.arg()], (rows, width)).unwrap();
                    let scaled = d.get(&dy);
                    let dy = d.put(&y, t);
                    kernels::add_bias(d.gpu(), t, [dy.arg(), dgain.arg()], (rows, width)).unwrap();
                    let biased = d.get(&dy);
                    let dy = d.put(&y, t);
                    let scratch = d.fresh(kernels::column_scratch(rows, width), Element::F32);
                    let (of_gain, of_bias) = (d.put_f32(&vec![0.5; width]), d.put_f32(&vec![0.5; width]));
                    let args = [dy.arg(), dx.arg(), of_gain.arg(), dnorms.arg(), scratch.arg()];
                    kernels::gain_gradient(d.gpu(), t, args, (rows, width)).unwrap();
                    let args = [dy.arg(), of_bias.arg(), scratch.arg()];
                    kernels::bias_gradient(d.gpu(), t, args, (rows, width)).unwrap();
                    let ratio = d.fresh(width, Element::F32);
                    kernels::divide(d.gpu(), [dgain.arg(), dnorms.arg(), ratio.arg()], width).unwrap();
                    vec![scaled, biased, d.get(&of_gain), d.get(&of_bias), d.get(&ratio)]
                },
                |device, got| {
                    let what = format!("{device} {t:?} {rows} x {width}");
                    let mut scaled = y.clone();
                    dora::add_scaled(&mut scaled, &x, &gain);
                    assert_eq!(got[0], rounded(scaled, t), "{what}");
                    let biased: Vec<f32> = y.iter().enumerate().map(|(i, y)| y + gain[i % width]).collect();
                    assert_eq!(got[1], rounded(biased, t), "{what}");
                    let sums = |f: &dyn Fn(usize) -> f64, by: &dyn Fn(usize) -> f64| -> Vec<f64> {
                        let sum = |c| (0..rows).map(|r| f(r * width + c)).sum::<f64>();
                        (0..width).map(|c| 0.5 + sum(c) / by(c)).collect()
                    };
                    let of_gain = sums(&|i| f64::from(y[i]) * f64::from(x[i]), &|c| f64::from(norms[c]));
                    close(&format!("{what}: gain"), &got[2], &of_gain, 1e-5, 1e-5);
                    close(&format!("{what}: bias"), &got[3], &sums(&|i| f64::from(y[i]), &|_| 1.0), 1e-5, 1e-5);
                    let ratio: Vec<f32> = gain.iter().zip(&norms).map(|(a, b)| a / b).collect();
                    assert_eq!(got[4], ratio, "{what}");
                },
            );
        }
    }
}

#[test]
fn the_emulator_refuses_what_a_gpu_would_not_forgive() {
    prove(
        |d| {
            if !d.emulated() {
                return Vec::new();
            }
            let (x, y) = (d.put_f32(&[1.0; 8]), d.put_f32(&[1.0; 8]));
            let refused = |result: Result<(), karat_backend::BackendError>, why: &str| {
                let message = result.unwrap_err().message;
                assert!(message.contains(why), "{message}");
            };
            let launch = karat_native::cuda::device::Launch::linear(1, 256);
            let run = |args: &[Arg<'_>]| d.gpu().launch("karat_add_f32", launch, args);
            refused(run(&[x.arg(), y.arg(), Arg::I32(8)]), "takes (*,const *,i64)");
            refused(run(&[x.arg(), y.arg()]), "takes (*,const *,i64)");
            refused(run(&[x.arg(), y.arg(), Arg::I64(9)]), "writes outside its argument 0");
            let (x, y) = (d.put_f32(&[1.0; 8]), d.put_f32(&[1.0; 8]));
            refused(d.gpu().launch("karat_add_f32", launch, &[x.from(1), y.from(1), Arg::I64(4)]), "not aligned");
            let many = karat_native::cuda::device::Launch::linear(1, 512);
            refused(d.gpu().launch("karat_add_f32", many, &[x.arg(), y.arg(), Arg::I64(8)]), "it is made for 256");
            refused(d.gpu().launch("karat_nothing", launch, &[]), "no kernel");
            Vec::new()
        },
        |_, _| {},
    );
}

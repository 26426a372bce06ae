use karat_kernels::lora::{self, LoraDelta};
use karat_kernels::memory::mmap::Elements;
use karat_native::cuda::device::{Arg, Element};
use karat_native::cuda::kernels::optimizer::{ParameterTable, TrainedTensor};
use karat_native::cuda::{join, kernels, split};
use karat_native::ops::adamw::{self, Update};
use karat_native::ops::dropout::{self, Key};

use crate::bench::*;

#[test]
fn a_split_number_is_whole_again_and_its_upper_half_is_the_nearest_bf16() {
    let ties = (0..256u32).map(|i| f32::from_bits(0x3f80_8000 + (i << 15)));
    let extremes = [0.0, -0.0, 1e-40, -1e-40, f32::MIN_POSITIVE, f32::MAX, f32::MIN, f32::INFINITY, f32::NEG_INFINITY];
    for x in noise(10_000, 1).into_iter().chain(ties).chain(extremes) {
        let (upper, lower) = split(x);
        assert_eq!(join(upper, lower).to_bits(), x.to_bits(), "{x:e}");
        let (nearest, upper) = (half::bf16::from_f32(x), half::bf16::from_bits(upper));
        // The nearest one, or, half way between two, the larger.
        let tie = x.to_bits() & 0xffff == 0x8000;
        assert!(upper == nearest || tie && upper.to_f32().abs() > x.abs(), "{x:e}: {upper} instead of {nearest}");
    }
    assert_eq!(join(split(f32::NAN).0, split(f32::NAN).1).to_bits(), f32::NAN.to_bits());
}

#[test]
fn dropout_is_the_cpus_to_the_bit() {
    let key = Key { seed: 0x1234_5678_9abc_def0, step: 3, module: 5, first: 0 };
    for t in BOTH {
        for (n, first, p) in [(1, 0, 0.3), (127, 5, 0.1), (128, 128, 0.5), (5000, 77, 0.1), (300, (1 << 40) + 3, 0.9)] {
            let key = Key { first, ..key };
            let (x, was) = (rounded(noise(n, 1), t), rounded(noise(n, 2), t));
            prove(
                |d| {
                    let (dx, new, sum) = (d.put(&x, t), d.fresh(n, t), d.put(&was, t));
                    kernels::dropout(d.gpu(), t, [dx.arg(), new.arg()], n, p, key, false).unwrap();
                    kernels::dropout(d.gpu(), t, [dx.arg(), sum.arg()], n, p, key, true).unwrap();
                    vec![d.get(&new), d.get(&sum)]
                },
                |device, got| {
                    let (mut new, mut sum) = (vec![0f32; n], was.clone());
                    dropout::apply(&x, &mut new, p, key, false);
                    dropout::apply(&x, &mut sum, p, key, true);
                    assert_eq!(got[0], rounded(new, t), "{device} {t:?} {n} from {first}");
                    assert_eq!(got[1], rounded(sum, t), "{device} {t:?} {n} from {first}: added");
                },
            );
        }
    }
}

#[test]
fn merged_norms_match_f64_and_the_cpu() {
    for t in BOTH {
        for [n_out, n_in, rank] in [[1, 1, 1], [70, 45, 3], [5, 1030, 8]] {
            let (w, a, b) = (rounded(noise(n_out * n_in, 1), t), noise(rank * n_in, 2), noise(n_out * rank, 3));
            prove(
                |d| {
                    let (dw, (da, a_lower), (db, b_lower)) = (d.put(&w, t), d.put_trained(&a, t), d.put_trained(&b, t));
                    let norms = d.fresh(n_out, Element::F32);
                    let [a_lower, b_lower] =
                        [&a_lower, &b_lower].map(|half| half.as_ref().map_or(Arg::Null, Held::arg));
                    let args = [dw.arg(), da.arg(), a_lower, db.arg(), b_lower, norms.arg()];
                    kernels::merged_norms(d.gpu(), t, args, [n_out, n_in, rank], 1.5).unwrap();
                    vec![d.get(&norms)]
                },
                |device, got| {
                    let mut norms = vec![0f32; n_out];
                    let change = LoraDelta { a: &a, b: &b, scale: 1.5, n_in };
                    lora::norms(Elements::F32(&w), change, &mut norms);
                    close(&format!("{device} CPU"), &got[0], &wide(&norms), 3e-7, 0.0);
                    for o in 0..n_out {
                        let element = |i: usize| {
                            let delta: f64 =
                                (0..rank).map(|r| f64::from(b[o * rank + r]) * f64::from(a[r * n_in + i])).sum();
                            f64::from(w[o * n_in + i]) + 1.5 * delta
                        };
                        let want = (0..n_in).map(|i| element(i).powi(2)).sum::<f64>().sqrt();
                        close(device, &got[0][o..=o], &[want], 1e-6, 0.0);
                    }
                },
            );
        }
    }
}

/// How the gradient of tensor `i` is kept: split and whole parameters with both kinds.
fn gradient_of(i: usize) -> Element {
    if i.is_multiple_of(3) { Element::Bf16 } else { Element::F32 }
}

/// Several tensors on a device; every other one is split.
struct Tensors<'a> {
    parameters: Vec<(Held, Option<Held>)>,
    /// Moments and gradient of each.
    beside: Vec<[Held; 3]>,
    sizes: &'a [usize],
}

impl Tensors<'_> {
    fn new<'a>(d: &Bench, sizes: &'a [usize]) -> Tensors<'a> {
        let stored = |i: usize| if i.is_multiple_of(2) { Element::Bf16 } else { Element::F32 };
        let parameter = |(i, n): (usize, &usize)| d.put_trained(&noise(*n, i as u64), stored(i));
        let beside = |(i, n): (usize, &usize)| {
            let zeros = vec![0.0; *n];
            [d.put_f32(&zeros), d.put_f32(&zeros), d.put(&zeros, gradient_of(i))]
        };
        let beside = sizes.iter().enumerate().map(beside).collect();
        Tensors { parameters: sizes.iter().enumerate().map(parameter).collect(), beside, sizes }
    }
    fn table(&self, d: &Bench) -> ParameterTable {
        let mut all = Vec::new();
        for (i, (((parameter, lower), held), n)) in self.parameters.iter().zip(&self.beside).zip(self.sizes).enumerate()
        {
            let [m, v, _] = held.each_ref().map(|h| &h.buffer);
            let (parameter, lower) = (&parameter.buffer, lower.as_ref().map(|half| &half.buffer));
            // The first two have no decay.
            all.push(TrainedTensor { parameter, moments: [m, v], lower, elements: *n, decays: i > 1 });
        }
        let table = ParameterTable::new(d.shared_gpu(), &all).unwrap();
        let gradients: Vec<_> = self.beside.iter().map(|[.., g]| (&g.buffer, g.element)).collect();
        table.point(d.gpu(), &gradients).unwrap();
        table
    }
    fn set_gradients(&self, d: &Bench, gradients: &[Vec<f32>]) {
        for (held, gradient) in self.beside.iter().zip(gradients) {
            let narrow: Vec<half::bf16> = gradient.iter().map(|x| half::bf16::from_f32(*x)).collect();
            let bytes: &[u8] = match held[2].element {
                Element::F32 => bytemuck::cast_slice(gradient),
                Element::Bf16 => bytemuck::cast_slice(&narrow),
            };
            d.gpu().upload(bytes, held[2].buffer.raw(), 0).unwrap();
        }
    }
    fn all(&self, d: &Bench) -> Vec<Vec<f32>> {
        let parameters = self.parameters.iter().map(|p| d.get_trained(p));
        parameters.zip(&self.beside).flat_map(|(p, h)| [p, d.get(&h[0]), d.get(&h[1])]).collect()
    }
}

#[test]
fn adamw_over_all_tensors_is_the_cpus_to_the_bit() {
    let sizes = [1, 3, 8192, 8193, 5, 20_000];
    let update =
        Update { lr: 0.01, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, step: 0, gradient_scale: f64::NAN };
    let gradients = |step: u32| -> Vec<Vec<f32>> {
        let gradient =
            |(i, n): (usize, &usize)| rounded(scaled(noise(*n, u64::from(step) * 100 + i as u64), 0.3), gradient_of(i));
        sizes.iter().enumerate().map(gradient).collect()
    };
    for max_norm in [0.0, 1.0, 1e6] {
        prove(
            |d| {
                let tensors = Tensors::new(d, &sizes);
                let table = tensors.table(d);
                let mut norms = Vec::new();
                for step in 1..=3 {
                    tensors.set_gradients(d, &gradients(step));
                    table.measure(d.gpu(), max_norm).unwrap();
                    table.adamw(d.gpu(), &Update { step, ..update }).unwrap();
                    norms.extend(d.floats(table.norm_and_clip(), 2));
                }
                let mut all = tensors.all(d);
                // A gradient that is not finite changes nothing and shows.
                for bad in [f32::NAN, f32::INFINITY] {
                    let mut gradients = gradients(4);
                    gradients[3][8192] = bad;
                    tensors.set_gradients(d, &gradients);
                    table.measure(d.gpu(), max_norm).unwrap();
                    table.adamw(d.gpu(), &Update { step: 4, ..update }).unwrap();
                    assert!(d.floats(table.norm_and_clip(), 2).iter().all(|x| x.is_nan()));
                    let bits = |all: &[Vec<f32>]| -> Vec<u32> { all.iter().flatten().map(|x| x.to_bits()).collect() };
                    assert!(bits(&tensors.all(d)) == bits(&all));
                    let sums: Vec<f64> = bytemuck::cast_slice(&d.floats(table.sums_of_squares(), 12)).to_vec();
                    let broken: Vec<usize> = (0..6).filter(|i| !sums[*i].is_finite()).collect();
                    assert_eq!(broken, [3], "the tensor is known");
                }
                all.push(norms);
                all
            },
            |device, got| {
                let mut clips = got[sizes.len() * 3].chunks(2);
                let mut state: Vec<[Vec<f32>; 3]> = sizes
                    .iter()
                    .enumerate()
                    .map(|(i, n)| [noise(*n, i as u64), vec![0.0; *n], vec![0.0; *n]])
                    .collect();
                for step in 1..=3 {
                    let gradients = gradients(step);
                    let square: f64 = gradients.iter().map(|g| wide(g).iter().map(|g| g * g).sum::<f64>()).sum();
                    let by_cpu: f64 = gradients.iter().map(|g| adamw::sum_of_squares(g)).sum();
                    assert!((by_cpu - square).abs() < 1e-6 * square);
                    let (norm, clip) = (clips.clone().next().unwrap()[0], clips.next().unwrap()[1]);
                    let want = if max_norm > 0.0 { (max_norm / (square.sqrt() + 1e-6)).min(1.0) } else { 1.0 };
                    close(&format!("{device} norm and clip"), &[norm, clip], &[square.sqrt(), want], 1e-7, 0.0);
                    for (i, ([p, m, v], g)) in state.iter_mut().zip(&gradients).enumerate() {
                        let weight_decay = if i > 1 { 0.1 } else { 0.0 };
                        let u = Update { step, weight_decay, gradient_scale: f64::from(clip), ..update };
                        adamw::update(p, m, v, g, &u);
                    }
                }
                for (i, [p, m, v]) in state.iter().enumerate() {
                    assert_eq!(got[3 * i], *p, "{device} tensor {i}");
                    assert_eq!([&got[3 * i + 1], &got[3 * i + 2]], [m, v], "{device} moments {i}");
                }
            },
        );
    }
}

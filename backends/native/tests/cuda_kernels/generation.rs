use karat_backend::GenerateConfig;
use karat_model::sampling::Sampler;
use karat_native::cuda::device::{Arg, Element, Gemm, Matrix};
use karat_native::cuda::kernels::decode::{self, Cache, NOT_A_NUMBER};
use karat_native::ops::attention as cpu;
use karat_native::ops::attention::Heads;

use crate::bench::*;

#[test]
fn decoding_from_a_cache_matches_the_cpu_and_does_not_see_its_neighbours() {
    for t in BOTH {
        for (heads, lengths) in [
            (Heads { queries: 4, keys: 2, dim: 64 }, &[1usize, 127, 128, 129, 300][..]),
            (Heads { queries: 14, keys: 2, dim: 128 }, &[70, 5]),
            (Heads { queries: 3, keys: 3, dim: 6 }, &[9, 130]),
            (Heads { queries: 5, keys: 1, dim: 80 }, &[40]),
            (Heads { queries: 2, keys: 1, dim: 256 }, &[33, 2]),
        ] {
            let Heads { queries, keys, dim } = heads;
            let (qw, kw, n) = (queries * dim, keys * dim, lengths.len());
            let longest = *lengths.iter().max().unwrap();
            // Slots in another order than sequences, one more than needed, with room behind each;
            // rows of k and v apart.
            let (slot_stride, gap) = ((longest + 3) * kw, 8);
            let slots: Vec<u32> = (0..n as u32).rev().collect();
            let q = rounded(scaled(noise(n * qw, 1), 2.0), t);
            let row = |s: usize, seed: u64| rounded(scaled(noise(lengths[s] * kw, seed + s as u64), 2.0), t);
            let (keys_of, values_of): (Vec<_>, Vec<_>) = (0..n).map(|s| (row(s, 10), row(s, 20))).unzip();
            prove(
                |d| {
                    let (k, v) = (d.fresh((n + 1) * slot_stride, t), d.fresh((n + 1) * slot_stride, t));
                    let cache = Cache { keys: k.arg(), values: v.arg(), slot_stride, heads };
                    for s in 0..n {
                        let apart = |x: &[f32]| -> Vec<f32> {
                            x.chunks(kw).flat_map(|r| r.iter().copied().chain([f32::NAN; 8])).collect()
                        };
                        let (dk, dv) = (d.put(&apart(&keys_of[s]), t), d.put(&apart(&values_of[s]), t));
                        let places: Vec<u32> = (0..lengths[s] as u32).collect();
                        let (to, places) = (d.put_u32(&vec![slots[s]; lengths[s]]), d.put_u32(&places));
                        let args = [dk.arg(), dv.arg(), to.arg(), places.arg()];
                        decode::append(d.gpu(), t, args, &cache, lengths[s], [kw + gap; 2]).unwrap();
                    }
                    let run = |which: &[usize], longest: usize| {
                        let q: Vec<f32> = which.iter().flat_map(|s| q[s * qw..(s + 1) * qw].to_vec()).collect();
                        let at: Vec<u32> = which.iter().map(|s| slots[*s]).collect();
                        let of: Vec<u32> = which.iter().map(|s| lengths[*s] as u32 - 1).collect();
                        let (q, at, of) = (d.put(&q, t), d.put_u32(&at), d.put_u32(&of));
                        decode::increment(d.gpu(), of.arg(), which.len()).unwrap();
                        let out = d.fresh(which.len() * qw, t);
                        let scratch = d.fresh(decode::scratch(which.len(), longest, heads), Element::F32);
                        let args = [q.arg(), at.arg(), of.arg(), out.arg(), scratch.arg()];
                        decode::decode(d.gpu(), t, args, &cache, (which.len(), longest, qw)).unwrap();
                        d.get(&out)
                    };
                    let together = run(&(0..n).collect::<Vec<_>>(), longest);
                    for s in 0..n {
                        assert_eq!(run(&[s], lengths[s] + 200), together[s * qw..(s + 1) * qw], "sequence {s} alone");
                    }
                    vec![together]
                },
                |device, got| {
                    let caches: Vec<(&[f32], &[f32])> =
                        keys_of.iter().zip(&values_of).map(|(k, v)| (&k[..], &v[..])).collect();
                    let mut out = vec![0f32; n * qw];
                    cpu::decode(&q, &caches, heads, &mut out);
                    close(&format!("{device} {t:?} {heads:?}"), &got[0], &wide(&out), ulp(t), 4e-6);
                },
            );
        }
    }
}

fn config(temperature: f64, top_k: usize, top_p: f64) -> GenerateConfig {
    GenerateConfig { temperature, top_k, top_p, seed: 0xfeed_5eed_0bad_cafe, ..GenerateConfig::greedy(1, vec![]) }
}

#[test]
fn tokens_are_the_cpus_given_the_same_logits() {
    let configs = [
        config(0.0, 0, 1.0),
        config(0.7, 0, 1.0),
        config(1.0, 5, 1.0),
        config(1.3, 0, 0.8),
        config(0.6, 20, 0.95),
        config(5.0, 1, 0.5),
        config(0.05, 0, 0.99),
        config(1.0, 40, 1.0),
    ];
    for t in BOTH {
        for (vocab, rows) in [(1, 2), (9, 40), (1000, 8), (8200, 1)] {
            let mut logits = scaled(noise(rows * vocab, 3), 6.0);
            // Many ties, among them of zeros of both signs.
            logits.iter_mut().step_by(3).for_each(|x| *x = x.round());
            logits.iter_mut().skip(1).step_by(50).for_each(|x| *x = -0.0);
            logits.iter_mut().skip(2).step_by(50).for_each(|x| *x = f32::NEG_INFINITY);
            let logits = rounded(logits, t);
            let numbers: Vec<u32> = (0..rows as u32).map(|r| r * 7 + 1).collect();
            let places: Vec<u32> = (0..rows as u32).map(|r| r % 5).collect();
            prove(
                |d| {
                    let mut all = Vec::new();
                    for config in &configs {
                        let (l, n, p) = (d.put(&logits, t), d.put_u32(&numbers), d.put_u32(&places));
                        let (ids, weights) = (d.put_u32(&vec![7; rows]), d.fresh(2 * rows * vocab, Element::F32));
                        let args = [l.arg(), n.arg(), p.arg(), ids.arg(), weights.arg()];
                        decode::sample(d.gpu(), t, args, (rows, vocab), config).unwrap();
                        all.push(d.get_u32(&ids).iter().map(|id| *id as f32).collect());
                    }
                    all
                },
                |device, got| {
                    for (config, got) in configs.iter().zip(got) {
                        let sampler = Sampler::new(config, vocab).unwrap();
                        let pick = |r: usize| {
                            let row = &logits[r * vocab..(r + 1) * vocab];
                            sampler.pick(row, numbers[r] as usize, places[r] as usize).unwrap() as f32
                        };
                        let want: Vec<f32> = (0..rows).map(pick).collect();
                        let GenerateConfig { temperature, top_k, top_p, .. } = config;
                        assert_eq!(*got, want, "{device} {t:?} vocab {vocab}: {temperature} {top_k} {top_p}");
                    }
                },
            );
        }
    }
}

#[test]
fn a_logit_that_is_no_number_is_no_token() {
    prove(
        |d| {
            let l = d.put_f32(&[1.0, f32::NAN, 3.0, f32::NEG_INFINITY, 1.0, 3.0]);
            let (n, ids, weights) = (d.put_u32(&[0, 1]), d.put_u32(&[7, 7]), d.fresh(12, Element::F32));
            let args = [l.arg(), n.arg(), n.arg(), ids.arg(), weights.arg()];
            for config in [config(0.0, 0, 1.0), config(0.1, 1, 0.5)] {
                decode::sample(d.gpu(), Element::F32, args, (2, 3), &config).unwrap();
                assert_eq!(d.get_u32(&ids), [NOT_A_NUMBER, 2]);
            }
            Vec::new()
        },
        |_, _| {},
    );
}

#[test]
fn a_recording_does_what_was_recorded_each_time_it_is_played() {
    use karat_native::cuda::arena::Arena;
    use karat_native::cuda::device::DeviceBuffer;
    use karat_native::cuda::graph::CudaGraph;
    use karat_native::cuda::kernels;

    prove(
        |d| {
            let arena = Arena::new(d.shared_gpu());
            let (x, y) = (d.put_f32(&[1.0, 2.0, 3.0, 4.0]), d.put_f32(&[0.5; 4]));
            // x += y twice over memory that comes and goes, y += y by a product with one.
            let one = d.put_f32(&[1.0]);
            let work = || {
                arena.within(|| {
                    let copy = DeviceBuffer::new(d.shared_gpu(), 16)?;
                    d.gpu().zero(copy.raw(), 0, 16)?;
                    kernels::add(d.gpu(), Element::F32, [Arg::Buffer(&copy, 0), y.arg()], 4)?;
                    kernels::add(d.gpu(), Element::F32, [x.arg(), Arg::Buffer(&copy, 0)], 4)?;
                    let of = |buffer| Matrix {
                        buffer,
                        first: 0,
                        element: Element::F32,
                        stride: 1,
                        batch_stride: 0,
                        transposed: false,
                    };
                    let (a, b, c) = (of(&copy), of(&one.buffer), of(&y.buffer));
                    d.gpu().gemm(&Gemm { m: 4, n: 1, k: 1, alpha: 1.0, a, b, beta: 1.0, c, batch: 1 })
                })
            };
            // As it comes, then recorded: which does nothing.
            work().unwrap();
            let graph = CudaGraph::record(d.shared_gpu(), work).unwrap();
            assert_eq!((d.get(&x), d.get(&y)), (vec![1.5, 2.5, 3.5, 4.5], vec![1.0; 4]));
            // Others may use memory meanwhile, but not that of the recording.
            let other = d.put_f32(&[9.0; 4]);
            graph.play().unwrap();
            graph.play().unwrap();
            assert_eq!((d.get(&x), d.get(&y)), (vec![4.5, 5.5, 6.5, 7.5], vec![4.0; 4]));
            assert_eq!(d.get(&other), [9.0; 4]);

            // What could not be played again is refused, and the device goes on.
            let too_large = || arena.within(|| DeviceBuffer::new(d.shared_gpu(), 4096).map(drop));
            type Ask<'a> = &'a dyn Fn() -> karat_native::error::Result<()>;
            let refused: [(&str, Ask<'_>); 4] = [
                ("an allocation", &too_large),
                ("a copy from the host", &|| d.gpu().upload(&[0; 4], x.buffer.raw(), 0)),
                ("a copy to the host", &|| d.gpu().download(x.buffer.raw(), 0, &mut [0; 4])),
                ("waiting", &|| d.gpu().synchronize()),
            ];
            for (what, ask) in refused {
                let error = CudaGraph::record(d.shared_gpu(), ask).unwrap_err();
                assert_eq!(error.message, format!("{what} while a graph is recorded"));
                ask().unwrap();
            }
            graph.play().unwrap();
            vec![d.get(&y)]
        },
        |device, got| assert_eq!(got[0], [8.0; 4], "{device}"),
    );
}

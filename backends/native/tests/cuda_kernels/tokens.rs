use karat_kernels::memory::mmap::Elements;
use karat_native::cuda::device::Element;
use karat_native::cuda::kernels::{self, Groups, NO_TARGET};
use karat_native::ops::attention::Heads;
use karat_native::ops::{cross_entropy, embedding, rope};

use crate::bench::*;

#[test]
fn rotation_is_the_cpus_to_the_bit_and_undoes_itself() {
    let (heads, theta) = (|dim| Heads { queries: 3, keys: 2, dim }, 1e4);
    for t in BOTH {
        for (dim, gap) in [(2, 0), (6, 1), (16, 8), (128, 64)] {
            let positions = [0u32, 1, 2, 0, 700, 8191];
            let Heads { queries, keys, .. } = heads(dim);
            let strides = [queries * dim + gap, keys * dim + gap];
            let x = |i: usize| rounded(noise(positions.len() * strides[i], 1 + i as u64), t);
            let (q, k) = (x(0), x(1));
            let table = rope::RotaryTable::new(&karat_model::Rope::plain(theta), dim, 8192);
            // The table as a device has it: by the angles of rope::RotaryTable.
            let angle = |p: u32, i: usize| f64::from(p as f32 * (theta.powf(-2.0 * i as f64 / dim as f64) as f32));
            let tables = |f: fn(f64) -> f64| -> Vec<f32> {
                (0..8192).flat_map(|p| (0..dim / 2).map(move |i| f(angle(p, i)) as f32)).collect()
            };
            let (cosines, sines) = (tables(f64::cos), tables(f64::sin));
            let turned = |x: &[f32], stride: usize, n: usize, inverse| -> Vec<f32> {
                let mut y = x.to_vec();
                for (row, p) in y.chunks_mut(stride).zip(positions) {
                    rope::rotate(&mut row[..n * dim], &[p], n, &table, inverse);
                }
                rounded(y, t)
            };
            prove(
                |d| {
                    let (dq, dk, dp) = (d.put(&q, t), d.put(&k, t), d.put_u32(&positions));
                    let (c, s) = (d.put_f32(&cosines), d.put_f32(&sines));
                    let args = [dq.arg(), dk.arg(), dp.arg(), c.arg(), s.arg()];
                    let shape = (positions.len(), heads(dim), strides);
                    kernels::rope(d.gpu(), t, args, shape, false).unwrap();
                    let there = [d.get(&dq), d.get(&dk)];
                    kernels::rope(d.gpu(), t, args, shape, true).unwrap();
                    vec![there[0].clone(), there[1].clone(), d.get(&dq), d.get(&dk)]
                },
                |device, got| {
                    let what = format!("{device} {t:?} dim {dim}");
                    for (i, (x, n)) in [(&q, queries), (&k, keys)].into_iter().enumerate() {
                        assert_eq!(got[i], turned(x, strides[i], n, false), "{what}");
                        assert_eq!(got[2 + i], turned(&got[i], strides[i], n, true), "{what}: back");
                        close(&format!("{what}: there and back"), &got[2 + i], &wide(x), 0.0, 3.0 * ulp(t));
                    }
                },
            );
        }
    }
}

#[test]
fn gathering_and_its_gradient_are_the_cpus_to_the_bit() {
    let pad = 5u32;
    let ids: Vec<u32> = (0..40).map(|i| [3u32, 0, 6, 3, 5, 3, 1][i * i % 7]).collect();
    for (of_table, t) in BOTH.into_iter().flat_map(|a| BOTH.map(|b| (a, b))) {
        for width in [1, 5, 8, 1032] {
            let table = rounded(noise(7 * width, 1), of_table);
            let dy = rounded(noise(ids.len() * width, 2), t);
            prove(
                |d| {
                    let (dtable, dids, y) = (d.put(&table, of_table), d.put_u32(&ids), d.fresh(ids.len() * width, t));
                    let args = [dtable.arg(), dids.arg(), y.arg()];
                    kernels::gather(d.gpu(), (of_table, t), args, (ids.len(), width)).unwrap();
                    let mut all = vec![d.get(&y)];
                    for skip in [None, Some(pad)] {
                        let g = Groups::new(&ids, skip);
                        let (starts, of, order) = (d.put_u32(&g.starts), d.put_u32(&g.ids), d.put_u32(&g.order));
                        let (sum, dy) = (d.put(&table, of_table), d.put(&dy, t));
                        let args = [sum.arg(), starts.arg(), of.arg(), order.arg(), dy.arg()];
                        kernels::scatter_add(d.gpu(), (of_table, t), args, (g.ids.len(), width)).unwrap();
                        all.push(d.get(&sum));
                    }
                    all
                },
                |device, got| {
                    let what = format!("{device} {of_table:?} to {t:?}, width {width}");
                    let mut y = vec![0f32; ids.len() * width];
                    embedding::gather(Elements::F32(&table), width, &ids, &mut y);
                    assert_eq!(got[0], rounded(y, t), "{what}");
                    let mut sum = table.clone();
                    embedding::scatter_add(&mut sum, width, &ids, &dy);
                    assert_eq!(got[1], rounded(sum.clone(), of_table), "{what}");
                    let row = pad as usize * width..(pad as usize + 1) * width;
                    sum[row.clone()].copy_from_slice(&table[row]);
                    assert_eq!(got[2], rounded(sum, of_table), "{what}: without padding");
                },
            );
        }
    }
}

/// log p of the target and the gradient of `-scale log p` in f64.
fn losses(logits: &[f64], target: u32, scale: f64) -> (f64, Vec<f64>) {
    let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let lse = top + logits.iter().map(|l| (l - top).exp()).sum::<f64>().ln();
    let hit = |i: usize| if i == target as usize { 1.0 } else { 0.0 };
    let gradient = logits.iter().enumerate().map(|(i, l)| scale * ((l - lse).exp() - hit(i)));
    (logits[target as usize] - lse, gradient.collect())
}

#[test]
fn losses_and_their_gradients_match_f64() {
    for t in BOTH {
        for vocab in [1, 13, 64, 5000, 5001] {
            let rows = 7;
            let mut logits = noise(rows * vocab, 1);
            // Ordinary, large, huge, all equal, far below zero, two that tie, some impossible.
            let by = [4.0, 50.0, 1e5, 0.0, 20.0, 1.0, 5.0];
            for (row, x) in logits.chunks_mut(vocab).enumerate() {
                x.iter_mut().for_each(|x| *x = *x * by[row] - if row == 4 { 1e4 } else { 0.0 });
                if row == 5 && vocab > 3 {
                    (x[1], x[3]) = (9.0, 9.0);
                }
                if row == 6 {
                    x.iter_mut().take(vocab / 2).for_each(|x| *x = f32::NEG_INFINITY);
                }
            }
            let logits = rounded(logits, t);
            let targets: Vec<u32> =
                (0..rows).map(|r| if r == 5 && vocab > 3 { 3 } else { (vocab - 1) as u32 }).collect();
            let mut with_none = targets.clone();
            with_none[1] = NO_TARGET;
            prove(
                |d| {
                    let mut all = Vec::new();
                    for targets in [&targets, &with_none] {
                        let (l, dt) = (d.put(&logits, t), d.put_u32(targets));
                        let (p, greedy) = (d.fresh(rows, Element::F32), d.put_u32(&vec![7; rows]));
                        let args = [l.arg(), dt.arg(), p.arg(), greedy.arg()];
                        kernels::score(d.gpu(), t, args, (rows, vocab)).unwrap();
                        let scored = d.get(&p);
                        let hits: Vec<f32> = d.get_u32(&greedy).iter().map(|g| *g as f32).collect();
                        let p = d.fresh(rows, Element::F32);
                        kernels::cross_entropy(d.gpu(), t, [l.arg(), dt.arg(), p.arg()], (rows, vocab), 0.25).unwrap();
                        assert_eq!(scored, d.get(&p), "scoring and training see the same");
                        all.extend([scored, hits, d.get(&l)]);
                    }
                    all
                },
                |device, got| {
                    for r in 0..rows {
                        let what = format!("{device} {t:?} vocab {vocab} row {r}");
                        let row = &logits[r * vocab..(r + 1) * vocab];
                        let (p, gradient) = losses(&wide(row), targets[r], 0.25);
                        // The log-sum-exp is f32 beside logits of this size.
                        let size = row.iter().filter(|l| l.is_finite()).fold(1f32, |m, l| m.max(l.abs()));
                        close(&what, &got[0][r..=r], &[p], 1e-6, 4e-7 * f64::from(size));
                        let part = &got[2][r * vocab..(r + 1) * vocab];
                        close(&what, part, &gradient, 2.0 * ulp(t), 2e-6 + 2e-7 * f64::from(size));
                        let l = row[targets[r] as usize];
                        let hit = row[..targets[r] as usize].iter().all(|x| *x < l)
                            && row[targets[r] as usize..].iter().all(|x| *x <= l);
                        assert_eq!(got[1][r], if hit { 1.0 } else { 0.0 }, "{what}: greedy");
                    }
                    assert!(got[3][1] == 0.0 && got[4][1] == 0.0);
                    assert!(got[5][vocab..2 * vocab].iter().all(|g| *g == 0.0));
                    assert_eq!(got[5][2 * vocab..], got[2][2 * vocab..]);
                    // What the CPU says of a row.
                    let row = &logits[..vocab];
                    let lse = cross_entropy::log_sum_exp(row);
                    close("CPU", &got[0][..1], &[f64::from(row[targets[0] as usize] - lse)], 1e-6, 2e-6);
                },
            );
        }
    }
}

#[test]
fn a_logit_that_is_no_number_shows() {
    for t in BOTH {
        prove(
            |d| {
                let (l, dt) = (d.put(&[1.0, f32::NAN, 3.0, 0.0, 1.0, 3.0], t), d.put_u32(&[2, 2]));
                let (p, greedy) = (d.fresh(2, Element::F32), d.put_u32(&[7, 7]));
                kernels::score(d.gpu(), t, [l.arg(), dt.arg(), p.arg(), greedy.arg()], (2, 3)).unwrap();
                assert_eq!(d.get_u32(&greedy), [0, 1]);
                let p = d.get(&p);
                assert!(p[0].is_nan() && p[1].is_finite());
                Vec::new()
            },
            |_, _| {},
        );
    }
}

//! Linear layers and LoRA on the CPU: GEMMs of activations with weights, and their gradients.

use karat_backend::BackendError;

use super::bf16::{Bf16Storage, Operand};
use super::{Cpu, add_to, edit_gradient, made};
use crate::device::{
    Affine, DownGradient, DownProjected, DownProjection, LinearOps, Precision, UpProjection, WeightGradient,
};
use crate::error::Result;
use crate::ops::elementwise;
use crate::ops::lora_down::{DownOutput, LoraDown, lora_down};
use crate::profile::Timer;
use crate::tensor::{Gradient, Storage, StoredWeight, Tensor, View, WeightView, activation, dims, edit, scale, view};
use karat_kernels::gemm::skinny::SkinnyRhs;
use karat_kernels::gemm::{Gemm, Mat, MatMut, Term, Threads, gemm, gemms};
use karat_kernels::memory::arena;

/// Columns up to which a weight gradient in bf16 is made transposed: the rank of an adapter.
const TALL: usize = 32;

/// Floating-point operations of GEMMs of matrices with adapters' matrices: each element of a row
/// with each of the other's.
fn work_of<'a>(pairs: impl Iterator<Item = (&'a Tensor, &'a Tensor)>) -> Result<f64> {
    pairs.map(|(x, w)| Ok(2.0 * dims(x)?.0 as f64 * w.elem_count() as f64)).sum()
}

impl Cpu {
    /// `alpha dy w`, and an adapter's share: [`LinearOps::linear_dx`].
    fn scaled_dx(
        &self,
        dx: Option<Tensor>,
        alpha: f32,
        dy: &Tensor,
        w: &dyn StoredWeight,
        lora: Option<DownGradient<'_>>,
    ) -> Result<Tensor> {
        let ((tokens, n_out), (_, n_in)) = (dims(dy)?, w.matrix()?);
        let _timer = Timer::product("products: dy W", [tokens, n_in, n_out]);
        let (dys, ws) = (Operand::of(dy)?, w.view()?);
        let mut terms = vec![Term { alpha, a: dys.mat(tokens, n_out), b: Mat::of(ws.elements(), n_out, n_in) }];
        let held = match lora {
            Some(DownGradient { dlow, a }) => Some((Operand::of(dlow)?, view(a)?, dims(dlow)?.1)),
            None => None,
        };
        if let Some((dlow, a, r)) = &held {
            terms.push(Term { alpha: 1.0, a: dlow.mat(tokens, *r), b: Mat::new(a, *r, n_in) });
        }
        if let Some(dx) = dx {
            edit(&dx, |dx| {
                let c = MatMut::new(dx, tokens, n_in);
                gemms(self.precision, vec![Gemm { c, add: true, terms }], Threads::Pool);
            })?;
            return Ok(dx);
        }
        let mut dx = arena::alloc(tokens * n_in);
        let c = MatMut::new(&mut dx, tokens, n_in);
        gemms(self.precision, vec![Gemm { c, add: false, terms }], Threads::Pool);
        activation(dx, &[tokens, n_in])
    }
}

impl LinearOps for Cpu {
    fn linears(&self, x: &Tensor, layers: &[Affine<'_>]) -> Result<Vec<Tensor>> {
        let (tokens, n_in) = dims(x)?;
        let outputs: Vec<usize> = layers.iter().map(|of| Ok(of.w.matrix()?.0)).collect::<Result<_>>()?;
        let _timer = Timer::product("products: x W^T", [tokens, outputs.iter().sum(), n_in]);
        let mut ys: Vec<_> = outputs.iter().map(|n_out| arena::alloc(tokens * n_out)).collect();
        for ((of, y), n_out) in layers.iter().zip(&mut ys).zip(&outputs) {
            if let Some(bias) = of.bias {
                let bias = view(bias)?;
                y.chunks_exact_mut(*n_out).for_each(|y| y.copy_from_slice(&bias));
            }
        }
        let xs = Operand::of(x)?;
        let weights: Vec<WeightView<'_>> = layers.iter().map(|of| of.w.view()).collect::<Result<_>>()?;
        let mut held = Vec::with_capacity(layers.len());
        for of in layers {
            let lora = of.lora.map(|of| Ok((of.scale, Operand::of(of.low)?, view(of.b)?, dims(of.low)?.1)));
            held.push(lora.transpose()?);
        }
        let mut jobs = Vec::with_capacity(layers.len());
        for ((((of, y), n_out), w), lora) in layers.iter().zip(&mut ys).zip(&outputs).zip(&weights).zip(&held) {
            let b = Mat::of(w.elements(), *n_out, n_in).t();
            let mut terms = vec![Term { alpha: 1.0, a: xs.mat(tokens, n_in), b }];
            if let Some((alpha, low, b, r)) = lora {
                terms.push(Term { alpha: *alpha, a: low.mat(tokens, *r), b: Mat::new(b, *n_out, *r).t() });
            }
            jobs.push(Gemm { c: MatMut::new(y, tokens, *n_out), add: of.bias.is_some(), terms });
        }
        gemms(self.precision, jobs, Threads::Pool);
        ys.into_iter().zip(outputs).map(|(y, n_out)| activation(y, &[tokens, n_out])).collect()
    }

    fn linear(&self, x: &Tensor, w: &dyn StoredWeight, bias: Option<&Tensor>) -> Result<Tensor> {
        let mut y = self.linears(x, &[Affine { w, bias, lora: None }])?;
        y.pop().ok_or_else(|| BackendError::failed("a product is missing"))
    }

    fn linear_add(&self, y: &Tensor, alpha: f32, x: &Tensor, w: &dyn StoredWeight) -> Result<()> {
        let ((tokens, n_in), (n_out, _)) = (dims(x)?, w.matrix()?);
        let _timer = Timer::product("products: x W^T", [tokens, n_out, n_in]);
        let (xs, ws) = (Operand::of(x)?, w.view()?);
        let (a, b) = (xs.mat(tokens, n_in), Mat::of(ws.elements(), n_out, n_in).t());
        edit(y, |y| gemm(self.precision, MatMut::new(y, tokens, n_out), alpha, a, b, true, Threads::Pool))
    }

    fn linear_dx(
        &self,
        dx: Option<Tensor>,
        dy: &Tensor,
        w: &dyn StoredWeight,
        lora: Option<DownGradient<'_>>,
    ) -> Result<Tensor> {
        self.scaled_dx(dx, 1.0, dy, w, lora)
    }

    fn linear_dw(&self, dw: &Gradient, alpha: f32, dy: &Tensor, x: &Tensor) -> Result<()> {
        let ((tokens, n_out), (_, n_in)) = (dims(dy)?, dims(x)?);
        let _timer = Timer::product("products: dy^T x", [n_out, n_in, tokens]);
        let (dys, xs) = (Operand::of(dy)?, Operand::of(x)?);
        let (a, b) = (dys.mat(tokens, n_out), xs.mat(tokens, n_in));
        // What is much taller than wide is made lying down, where vectors run along its length.
        if self.precision == Precision::Bf16 && n_in <= TALL && n_in < n_out {
            let mut turned = arena::alloc(n_in * n_out);
            gemm(self.precision, MatMut::new(&mut turned, n_in, n_out), 1.0, b.t(), a, false, Threads::Pool);
            return add_to(dw, |dw, add| elementwise::turn(dw, alpha, &turned, n_in, add));
        }
        add_to(dw, |dw, add| {
            gemm(self.precision, MatMut::new(dw, n_out, n_in), alpha, a.t(), b, add, Threads::Pool);
        })
    }

    fn linear_dws(&self, of: &[WeightGradient<'_>]) -> Result<()> {
        if self.precision == Precision::F32 {
            return of.iter().try_for_each(|of| self.linear_dw(of.dw, of.alpha, of.dy, of.x));
        }
        if of.is_empty() {
            return Ok(());
        }
        let timer = Timer::new("products: dy^T x", work_of(of.iter().map(|of| (of.dy, of.x)))?);
        let mut held = Vec::with_capacity(of.len());
        for of in of {
            let ((tokens, n_out), (_, n_in)) = (dims(of.dy)?, dims(of.x)?);
            let lying = n_in <= TALL && n_in < n_out;
            let room = match lying || of.dw.lock().is_none() {
                true if lying => Some(arena::alloc(n_in * n_out)),
                true => Some(arena::alloc_gradient(n_in * n_out)),
                false => None,
            };
            held.push((Operand::of(of.dy)?, Operand::of(of.x)?, [tokens, n_out, n_in], lying, room));
        }
        let mut jobs = Vec::with_capacity(of.len());
        for (of, (dy, x, [tokens, n_out, n_in], lying, room)) in of.iter().zip(&mut held) {
            let (dy, x) = (dy.mat(*tokens, *n_out), x.mat(*tokens, *n_in));
            let Some(room) = room else { continue };
            // As in `linear_dw`.
            let (c, term) = match lying {
                true => (MatMut::new(room, *n_in, *n_out), Term { alpha: 1.0, a: x.t(), b: dy }),
                false => (MatMut::new(room, *n_out, *n_in), Term { alpha: of.alpha, a: dy.t(), b: x }),
            };
            jobs.push(Gemm { c, add: false, terms: vec![term] });
        }
        gemms(self.precision, jobs, Threads::Pool);
        drop(timer);
        for (of, (.., [_, _, n_in], lying, room)) in of.iter().zip(held) {
            match room {
                Some(room) if lying => add_to(of.dw, |dw, add| elementwise::turn(dw, of.alpha, &room, n_in, add))?,
                Some(room) => *of.dw.lock() = Some(made(of.dw, room)?),
                None => self.linear_dw(of.dw, of.alpha, of.dy, of.x)?,
            }
        }
        Ok(())
    }

    fn bias_gradient(&self, db: &Gradient, dy: &Tensor) -> Result<()> {
        let _timer = Timer::new("bias, gradient", 0.0);
        let dy = view(dy)?;
        edit_gradient(db, |db| {
            for row in dy.chunks_exact(db.len()) {
                db.iter_mut().zip(row).for_each(|(b, d)| *b += d);
            }
        })
    }

    fn lora_down(&self, of: &[DownProjection<'_>]) -> Result<Vec<DownProjected>> {
        if self.precision == Precision::F32 {
            let alone = |of: &DownProjection<'_>| {
                let low = self.linear(of.x, of.a, None)?;
                scale(&low, of.factor)?;
                Ok(DownProjected { low, scale: of.scale })
            };
            return of.iter().map(alone).collect();
        }
        let _timer = Timer::new("products: x A^T", work_of(of.iter().map(|of| (of.x, of.a)))?);
        let xs: Vec<Operand<'_>> = of.iter().map(|of| Operand::of(of.x)).collect::<Result<_>>()?;
        let matrices: Vec<View<'_>> = of.iter().map(|of| view(of.a)).collect::<Result<_>>()?;
        let mut made = Vec::with_capacity(of.len());
        for of in of {
            made.push(Bf16Storage::of(&[dims(of.x)?.0, dims(of.a)?.0]));
        }
        let (mut jobs, mut rest, mut first) = (Vec::new(), &mut made[..], 0);
        for same in of.chunk_by(|a, b| a.x.is(b.x)) {
            let (rows, k) = dims(same[0].x)?;
            let (here, after) = rest.split_at_mut(same.len());
            rest = after;
            let matrices = matrices[first..first + same.len()].iter();
            let matrices: Vec<Mat<'_>> = matrices.map(|a| Mat::new(a, a.len() / k.max(1), k).t()).collect();
            let to = same
                .iter()
                .zip(here)
                .map(|(of, to)| DownOutput {
                    columns: to.dims()[1],
                    factor: of.factor * of.scale,
                    out: to.elements_mut(),
                })
                .collect();
            jobs.push(LoraDown { x: xs[first].mat(rows, k), w: SkinnyRhs::new(k, &matrices), to });
            first += same.len();
        }
        lora_down(jobs);
        Ok(made.into_iter().map(|low| DownProjected { low: low.into(), scale: 1.0 }).collect())
    }

    fn lora_down_gradients(&self, of: &[UpProjection<'_>]) -> Result<Vec<Tensor>> {
        if self.precision == Precision::F32 {
            return of.iter().map(|of| self.scaled_dx(None, of.scale, of.low, of.b, None)).collect();
        }
        let _timer = Timer::new("products: dy B", work_of(of.iter().map(|of| (of.low, of.b)))?);
        let dys: Vec<Operand<'_>> = of.iter().map(|of| Operand::of(of.low)).collect::<Result<_>>()?;
        let mut made = Vec::with_capacity(of.len());
        for of in of {
            made.push(Bf16Storage::of(&[dims(of.low)?.0, dims(of.b)?.1]));
        }
        let mut jobs = Vec::with_capacity(of.len());
        for ((of, dy), to) in of.iter().zip(&dys).zip(&mut made) {
            let (rows, (n_out, r)) = (dims(of.low)?.0, dims(of.b)?);
            let w = SkinnyRhs::new(n_out, &[Mat::new(&view(of.b)?, n_out, r)]);
            jobs.push(LoraDown {
                x: dy.mat(rows, n_out),
                w,
                to: vec![DownOutput { columns: r, factor: of.scale, out: to.elements_mut() }],
            });
        }
        lora_down(jobs);
        Ok(made.into_iter().map(Tensor::from).collect())
    }
}

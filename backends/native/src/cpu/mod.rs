//! The CPU as a device: contiguous f32 in host memory, and bf16 where GEMMs are computed in it.

mod activation;
mod attention;
mod bf16;
mod head;
mod kv_cache;
mod linear;
mod optimizer;

use std::sync::Arc;

use karat_model::sampling::Sampler;
use karat_system::memory;
use rayon::prelude::*;

pub use self::activation::{merged, merged_norms};
use crate::device::{CacheBudget, CacheShape, Device, KvCache, Optimizer, Parameter, Precision};
use crate::error::Result;
use crate::ops::adamw::sum_of_squares;
use crate::ops::elementwise;
use crate::tensor::{Gradient, HostStorage, Tensor, activation, edit, tensor, view};
use karat_kernels::gemm::isa::Isa;
use karat_kernels::memory::arena::{self, Buffer};
use karat_kernels::memory::mmap::Elements;

/// Sequences decoded together where the caller leaves the choice.
const SEQUENCES: usize = 48;
/// The caches of all sequences together should not need more.
pub const CACHE_BYTES: usize = 4 << 30;

/// The CPU.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cpu {
    /// Element type of GEMM operands; all else is f32.
    pub precision: Precision,
}

impl Cpu {
    /// The CPU with GEMMs in `precision`.
    pub fn device(precision: Precision) -> Arc<dyn Device> {
        Arc::new(Cpu { precision })
    }

    /// Kernels as this CPU runs them.
    pub fn kernels(self) -> Vec<String> {
        // The instruction set's name is all that is wanted of a long list of features.
        let set = format!("{:?}", pulp::Arch::new());
        let set = set.split('(').next().unwrap_or_default().to_ascii_lowercase();
        let chosen = Isa::of_this_cpu();
        let mut matmul = match (self.precision, chosen) {
            (Precision::F32, Isa::Portable) => format!("f32 ({set})"),
            (Precision::F32, _) => "f32 (avx512f)".into(),
            (Precision::Bf16, Isa::Portable) => format!("bf16 widened to f32 ({set})"),
            (Precision::Bf16, Isa::Avx512) => "bf16 widened to f32 (avx512f)".into(),
            (Precision::Bf16, _) => format!("bf16, f32 sums ({})", chosen.name()),
        };
        if let (Precision::Bf16, Some(remark)) = (self.precision, Isa::remark()) {
            matmul.push_str(&format!("; {remark}"));
        }
        let others = match self.precision {
            Precision::F32 => format!("attention, elementwise: f32 ({set})"),
            Precision::Bf16 => format!("attention: products as above, softmax f32; elementwise: f32 ({set})"),
        };
        vec![format!("matmul: {matmul}"), others]
    }
}

/// Lets `f` add to a gradient, or where it is told `false` store: what is in the memory then means
/// nothing.
fn add_to(gradient: &Gradient, f: impl FnOnce(&mut [f32], bool)) -> Result<()> {
    let mut sum = gradient.lock();
    if let Some(sum) = &*sum {
        gradient.set_squares(None);
        return edit(sum, |sum| f(sum, true));
    }
    let mut data = arena::alloc_gradient(gradient.dims().iter().product());
    f(&mut data, false);
    *sum = Some(made(gradient, data)?);
    Ok(())
}

/// What is in `gradient` from now on; its squares are summed now if that is all of it, while it is in
/// the caches: the norm of the gradients would read it from memory.
fn made(gradient: &Gradient, data: Buffer) -> Result<Tensor> {
    /// Elements that the second caches of a few cores hold.
    const NEAR: usize = 1 << 21;
    gradient.set_squares((gradient.once() && data.len() <= NEAR).then(|| sum_of_squares(&data)));
    activation(data, gradient.dims())
}

/// [`add_to`] for what can only add: the memory holds zeros at first.
fn edit_gradient(gradient: &Gradient, f: impl FnOnce(&mut [f32])) -> Result<()> {
    add_to(gradient, |sum, add| {
        if !add {
            elementwise::clear(sum);
        }
        f(sum);
    })
}

/// The next token of each row of `logits` `[rows, vocab]`; `places` are the row's number and how
/// many tokens it has generated.
fn pick(logits: &Tensor, places: &[(usize, usize)], sampler: &Sampler) -> Result<Vec<u32>> {
    let (view, vocab) = (view(logits)?, logits.dims()[1]);
    let rows = view.par_chunks_exact(vocab).zip(places);
    rows.map(|(logits, &(row, place))| sampler.pick(logits, row, place)).collect()
}

impl Device for Cpu {
    fn precision(&self) -> Precision {
        self.precision
    }
    fn is_host(&self) -> bool {
        true
    }
    fn peak_memory(&self) -> Option<u64> {
        memory::peak()
    }
    fn memory(&self) -> Option<u64> {
        memory::resident()
    }
    fn trim(&self) {}

    fn place(&self, t: &Tensor) -> Result<Tensor> {
        match t.storage_as::<HostStorage>() {
            Some(_) => Ok(t.clone()),
            None => tensor(view(t)?.to_vec(), t.dims()),
        }
    }
    fn frozen(&self, _: Elements<'_>, _: &[usize]) -> Result<Option<Tensor>> {
        Ok(None)
    }
    fn gradient(&self, t: &Tensor, one_batch: bool) -> Result<Gradient> {
        Ok(Gradient::lent_once(t.dims(), one_batch))
    }
    fn optimizer(&self, parameters: Vec<Parameter>) -> Result<Box<dyn Optimizer>> {
        Ok(Box::new(optimizer::AdamW { device: *self, parameters }))
    }

    fn cache_budget(&self) -> CacheBudget {
        CacheBudget { sequences: SEQUENCES, bytes: CACHE_BYTES, element: size_of::<f32>() }
    }
    fn kv_cache(&self, shape: CacheShape) -> Result<Box<dyn KvCache>> {
        Ok(Box::new(kv_cache::Sequences::new(shape)))
    }
    fn pick(&self, logits: &Tensor, places: &[(usize, usize)], sampler: &Sampler) -> Result<Vec<u32>> {
        pick(logits, places, sampler)
    }
}

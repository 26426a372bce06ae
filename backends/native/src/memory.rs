//! Memory of a training run, as a formula.
//!
//! With `T` trained numbers, `t` tokens in the largest micro-batch, `e` in the largest batch of the
//! evaluation, `c` tokens of a chunk of the head's ([`chunk`]; in bf16 [`fused_bf16::chunk`]),
//! widths `h` (hidden), `i` (inner), `q` and `k` (query and key heads times their width), `L`
//! layers and vocabulary `V`, in bytes, `b` being 2 in bf16 and 4 in f32:
//!
//! ```text
//! weights      full: 4 T (f32 masters; the file is let go)      LoRA: the file, mapped, plus 4 T
//! moments      8 T
//! gradients    4 T once all are there; D = 4 V h of them after the head, where that is trained
//! kept         b t h L, the input of every layer; with recomputation 4 t h L
//! layer        b t (h + 2 q + 2 k + 2 i): what a layer leaves for its backward pass
//! again        b t (2 h + i), and b t (q + k) more with norms on the heads: what it does not leave, all at once
//! backward     4 t (h + i) + b t (h + 2 i), gradients of activations beside them
//! head         16 t h, and in f32 logits, 4 c V, and as much again where they are transposed for a product; in bf16
//!              64 c h for the gradient of the hidden states by parts and, where the head is trained, exponentials, 2 c V
//! evaluation   4 e (2 h + 2 i) + b e (q + i), a layer at a time, or 8 e h and its logits
//! ```
//!
//! A gradient takes memory from when it is written, and activations give theirs back in the
//! backward pass, to it ([`karat_kernels::memory::arena`]). So with one micro-batch a step,
//! activations are there before most gradients, and at the end there are all gradients but those of
//! the first layer (`4 F`) and the activations of that layer:
//!
//! ```text
//! first        D + kept + L layer + max(backward, head)
//!              with recomputation D + kept + max(layer + again + backward, head)
//! last         4 T + max(0, layer + again + backward - 4 F)
//! peak         weights + moments + max(first, last, evaluation)
//! ```
//!
//! With several, the gradients of the first are there while the next has its activations:
//! `4 T + first - D`. Full training in bf16 so needs 16 bytes a parameter and little more: there is
//! no bf16 copy of the weights, products round the masters as they read them.

use std::collections::BTreeMap;
use std::fmt;

use karat_backend::{LabelledView, Level, Method, TrainPlan};

use crate::config::ModelConfig;
use crate::model::Decoder;
use crate::ops::cross_entropy::{chunk, fused_bf16};
use crate::weight::Weight;
use karat_kernels::gemm::Precision;

/// The shape of a training run, as far as memory goes.
#[derive(Clone, Copy, Debug)]
pub struct TrainingShape {
    /// Bytes of all weights: of what is frozen as it lies in its file, 4 for each number that is
    /// trained.
    pub weights: u64,
    /// Numbers that are trained.
    pub trained: u64,
    /// Whether these are all parameters of the model.
    pub full: bool,
    /// Whether the output projection is among them.
    pub head: bool,
    /// Tokens of the largest micro-batch.
    pub tokens: usize,
    /// Tokens of the largest batch of an evaluation.
    pub evaluated: usize,
    /// The most micro-batches of a step.
    pub micro_batches: usize,
    /// Element type of GEMM operands.
    pub precision: Precision,
    /// Whether activations are made again in the backward pass.
    pub recompute: bool,
}

impl TrainingShape {
    /// The shape of `plan` on `model`, whose adapter is on already, if it trains one.
    pub fn of(model: &Decoder, plan: &TrainPlan, train: LabelledView<'_>, eval: LabelledView<'_>) -> Self {
        let full = plan.method == Method::Full;
        let mut all = model.tensors();
        let adapter = model.adapter_tensors();
        let parameters: u64 = all.values().map(|weight| weight.elem_count() as u64).sum();
        let trained = if full { parameters } else { adapter.values().map(|t| t.elem_count() as u64).sum() };
        let head = full || adapter.contains_key(model.head_name());
        all.extend(adapter.into_iter().map(|(name, t)| (name, Weight::Owned(t))));
        let length = |row: &u32| train.tokens().row(*row as usize).len();
        let mut lengths: Vec<usize> = eval.tokens().iter().map(<[u32]>::len).collect();
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        TrainingShape {
            weights: if full { 4 * parameters } else { all.values().map(Weight::bytes).sum() },
            trained,
            full,
            head,
            tokens: plan.steps.iter().flatten().map(|rows| rows.iter().map(length).sum()).max().unwrap_or(0),
            evaluated: lengths.iter().take(plan.eval_batch_size.max(1)).sum(),
            micro_batches: plan.steps.iter().map(Vec::len).max().unwrap_or(0),
            precision: model.device().precision(),
            recompute: plan.recompute,
        }
    }

    /// Notes before the run starts on the CPU: how much memory it will need, and a warning where
    /// there is less. `held` are bytes of it that the process has already, `available` those that
    /// the system has left, if it says so.
    pub fn remarks(&self, needs: &Needs, held: u64, available: Option<u64>) -> Vec<(Level, String)> {
        let mut said = vec![(Level::Info, format!("about {needs}"))];
        let more = needs.total().saturating_sub(held);
        if let Some(available) = available.filter(|available| *available < more) {
            let mut ways = Vec::new();
            if !self.recompute {
                ways.push("set recompute = true");
            }
            ways.push("lower max_length or batch_size");
            if self.full {
                ways.push("train a LoRA adapter");
            }
            let message = format!(
                "training will take about {} more and the machine has {} left: the system may stop it or turn very slow; {}, \
                 or close other programs",
                Bytes(more),
                Bytes(available),
                ways.join(", ")
            );
            said.push((Level::Warn, message));
        }
        said
    }
}

/// Peak memory of a training run, in bytes, without the program itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Weights, those that are mapped included.
    pub weights: u64,
    /// Both moments of the optimizer.
    pub moments: u64,
    /// Gradients and activations when they are most.
    pub passes: u64,
}

impl Needs {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.weights + self.moments + self.passes
    }
}

impl fmt::Display for Needs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [total, weights, moments, passes] = [self.total(), self.weights, self.moments, self.passes].map(Bytes);
        write!(f, "{total} of memory (weights {weights}, moments {moments}, activations and gradients {passes})")
    }
}

/// Bytes as people read them.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            100_000_000.. => write!(f, "{:.1} GB", self.0 as f64 / 1e9),
            bytes => write!(f, "{} MB", bytes.div_ceil(1_000_000)),
        }
    }
}

/// Peak memory of a training run; see the formula above.
pub fn peak(config: &ModelConfig, run: &TrainingShape) -> Needs {
    let (t, e) = (run.tokens as u64, run.evaluated as u64);
    let (h, i, layers, vocab) =
        (config.hidden_size as u64, config.intermediate_size as u64, config.layers as u64, config.vocab_size as u64);
    let dim = config.heads.dim as u64;
    let (q, k) = (config.heads.queries as u64 * dim, config.heads.keys as u64 * dim);
    let b = match run.precision {
        Precision::F32 => 4,
        Precision::Bf16 => 2,
    };
    let gradients = 4 * run.trained;
    let kept = if run.recompute { 4 } else { b } * t * h * layers;
    let layer = b * t * (h + 2 * (q + k + i));
    let again = b * t * (2 * h + i) + if config.qk_norm { b * t * (q + k) } else { 0 };
    let backward = 4 * t * (h + i) + b * t * (h + 2 * i);
    let rows = chunk(config.vocab_size) as u64;
    let logits = match run.precision {
        Precision::F32 => t.min(rows) * vocab * if run.head { 8 } else { 4 },
        Precision::Bf16 => {
            fused_bf16::room(t.min(fused_bf16::chunk(config.vocab_size, run.head) as u64), vocab, h, run.head)
        }
    };
    let head = 16 * t * h + logits;
    let of_head = if run.head { 4 * vocab * h } else { 0 };
    let of_layer = if run.full { 4 * h * (2 * q + 2 * k + 3 * i) } else { 0 };
    let activations = kept
        + match run.recompute {
            true => (layer + again + backward).max(head),
            false => layers * layer + backward.max(head),
        };
    let training = match run.micro_batches {
        ..=1 => (of_head + activations).max(gradients + (layer + again + backward).saturating_sub(of_layer)),
        _ => gradients + activations,
    };
    let evaluation = (4 * e * (2 * h + 2 * i) + b * e * (q + i)).max(8 * e * h + 4 * e.min(rows) * vocab);
    Needs { weights: run.weights, moments: 8 * run.trained, passes: training.max(evaluation) }
}

/// Bytes that `model` holds in memory of its own, not mapped.
pub fn held(model: &Decoder) -> u64 {
    let adapter = model.adapter_tensors().into_iter().map(|(name, t)| (name, Weight::Owned(t)));
    let all: BTreeMap<String, Weight> = model.tensors().into_iter().chain(adapter).collect();
    all.values().filter(|weight| matches!(weight, Weight::Owned(_))).map(Weight::bytes).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: TrainingShape = TrainingShape {
        weights: 2_000_000_000,
        trained: 500_000_000,
        full: true,
        head: true,
        tokens: 512,
        evaluated: 0,
        micro_batches: 1,
        precision: Precision::Bf16,
        recompute: false,
    };
    const NEEDS: Needs = Needs { weights: 2_000_000_000, moments: 4_000_000_000, passes: 2_060_000_000 };

    #[test]
    fn the_estimate_is_said_and_nothing_else_where_there_is_enough() {
        let said = "about 8.1 GB of memory (weights 2.0 GB, moments 4.0 GB, activations and gradients 2.1 GB)";
        for available in [None, Some(8_060_000_000)] {
            assert_eq!(RUN.remarks(&NEEDS, 0, available), [(Level::Info, said.to_owned())]);
        }
        // What the process has already is needed no more.
        assert_eq!(RUN.remarks(&NEEDS, 2_000_000_000, Some(6_060_000_000)).len(), 1);
    }

    #[test]
    fn a_warning_says_what_is_there_and_the_ways_that_are_still_open() {
        let warning = |run: &TrainingShape| {
            let said = run.remarks(&NEEDS, 0, Some(3_000_000_000));
            assert_eq!((said.len(), said[1].0), (2, Level::Warn));
            said[1].1.clone()
        };
        let full = warning(&RUN);
        for part in ["about 8.1 GB", "3.0 GB left", "recompute = true", "max_length", "LoRA"] {
            assert!(full.contains(part), "{part} in {full}");
        }
        let lora = warning(&TrainingShape { full: false, recompute: true, ..RUN });
        assert!(!lora.contains("recompute") && !lora.contains("LoRA"), "{lora}");
    }
}

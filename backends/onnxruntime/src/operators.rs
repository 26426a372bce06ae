//! Karat's own operators for ONNX Runtime on the CPU: products with weights that lie in the model's
//! file as [`karat_kernels::gemm::prepacked`] has them. The runtime maps the file, so its pages are
//! the only copy, and its own threads do the work.
//!
//! | operator of the domain `karat` | inputs | outputs |
//! |---|---|---|
//! | `MatMul` | `x` f32 `[.., k]`, one to three weights | `x W^T` f32 `[.., n]` of each |
//! | `SwiGlu` | `x` f32 `[.., k]`, gate, up | `silu(x G^T) * (x U^T)` f32 `[.., n]` |
//! | `Gather` | a weight, `ids` i64 of any shape | its rows f32 `[.., k]` |
//! | `LogProbs` | `x` f32 `[.., k]`, a weight, `targets` i64 `[0]` or one for each row of `x`, -1 for none | `log softmax(x W^T)[target]` f32 and whether the target is the most probable u8, as many as targets |
//!
//! A weight is u8 `[bytes]`; the attributes say what it is: `inputs` (k), `outputs` (n of each),
//! `stored` (bits of a number of each: 32 or 16) and `operands` (bits of what is multiplied: 32 or
//! 16, sums are f32).

use std::cell::Cell;
use std::fmt;
use std::str::FromStr;

use karat_backend::BackendError;
use karat_kernels::gemm::Precision;
use karat_kernels::gemm::executor::Executor;
use karat_kernels::gemm::fused::linear_log_prob::log_probabilities;
use karat_kernels::gemm::fused::swiglu::swiglu;
use karat_kernels::gemm::prepacked::{PackedType, Prepacked, PrepackedLinear, gather, multiply};
use ort::operator::{ComputeContext, Kernel, KernelContext, Operator, OperatorDomain, OperatorInput, OperatorOutput};
use ort::value::{TensorElementType, ValueRef, ValueRefMut};
use serde::{Deserialize, Serialize};

/// The domain of the operators.
pub const DOMAIN: &str = "karat";
/// Its version: raised when an operator, an attribute or the layout of a weight changes.
pub const VERSION: u64 = 1;

/// Whose operators multiply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Operators {
    /// ONNX's and the runtime's: any runtime opens such a model.
    #[default]
    Standard,
    /// Those of this module: sessions of Karat on the CPU alone open such a model.
    Karat,
}

impl Operators {
    /// The name in options and reports.
    pub fn name(self) -> &'static str {
        match self {
            Operators::Standard => "standard",
            Operators::Karat => "karat",
        }
    }
}

impl fmt::Display for Operators {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Operators {
    type Err = BackendError;

    fn from_str(text: &str) -> Result<Self, BackendError> {
        [Operators::Standard, Operators::Karat].into_iter().find(|operators| operators.name() == text).ok_or_else(
            || {
                BackendError::failed(format!(
                    "the option operators of the onnxruntime backend must be \"karat\" or \"standard\", not {text:?}"
                ))
            },
        )
    }
}

/// Session options that open models with these operators.
///
/// # Errors
/// If the runtime refuses an operator.
pub fn domain() -> ort::Result<OperatorDomain> {
    OperatorDomain::new(DOMAIN)?.add(MatMul)?.add(SwiGlu)?.add(Gather)?.add(LogProbs)
}

/// The threads of the runtime, for as long as one operator runs.
struct Threads<'a> {
    context: &'a ComputeContext,
    failure: Cell<Option<ort::Error>>,
}

impl<'a> Threads<'a> {
    fn of(context: &'a ComputeContext) -> Self {
        Threads { context, failure: Cell::new(None) }
    }

    fn finish(self) -> ort::Result<()> {
        self.failure.into_inner().map_or(Ok(()), Err)
    }
}

impl Executor for Threads<'_> {
    fn each(&self, count: usize, task: &(dyn Fn(usize) + Sync)) {
        match count {
            0 => {}
            1 => task(0),
            // Every task by itself, to whichever thread is free.
            _ => {
                if let Err(error) = self.context.par_for(count, 0, task) {
                    self.failure.set(Some(error));
                }
            }
        }
    }
}

/// The weights of a node as its attributes describe them.
struct Weights {
    precision: Precision,
    k: usize,
    each: Vec<(usize, PackedType)>,
}

impl Weights {
    fn of(node: &KernelContext<'_>) -> ort::Result<Self> {
        let broken = || ort::Error::new("the attributes of an operator of Karat make no sense: export the model again");
        let one = |name: &str| node.get::<i64>(name).ok_or_else(broken);
        let list = |name: &str| node.get::<Vec<i64>>(name).ok_or_else(broken);
        let precision = match one("operands")? {
            32 => Precision::F32,
            16 => Precision::Bf16,
            _ => return Err(broken()),
        };
        let k = usize::try_from(one("inputs")?).map_err(|_| broken())?;
        let (outputs, stored) = (list("outputs")?, list("stored")?);
        let each = outputs.into_iter().zip(stored).map(|(n, bits)| match (usize::try_from(n), bits, precision) {
            (Ok(n), 32, Precision::F32) => Ok((n, PackedType::F32)),
            (Ok(n), 16, _) => Ok((n, PackedType::Bf16)),
            _ => Err(broken()),
        });
        Ok(Weights { precision, k, each: each.collect::<ort::Result<_>>()? })
    }

    fn weight<'a>(&self, number: usize, value: &'a ValueRef<'_>) -> ort::Result<Prepacked<'a>> {
        let (_, bytes) = value.try_extract_tensor::<u8>()?;
        let (n, storage) = *self.each.get(number).ok_or_else(|| ort::Error::new("a weight too many"))?;
        Prepacked::new(bytes, storage, n, self.k).ok_or_else(|| {
            ort::Error::new(format!(
                "a weight [{n}, {}] cannot have {} bytes: export the model again",
                self.k,
                bytes.len()
            ))
        })
    }

    /// The shape of `x` with `n` in place of its last dimension, which must be `k`.
    fn shape(&self, x: &[i64], n: usize) -> ort::Result<Vec<i64>> {
        match x.split_last() {
            Some((&k, rest)) if k == self.k as i64 => Ok(rest.iter().copied().chain([n as i64]).collect()),
            _ => Err(ort::Error::new(format!("an operand of shape {x:?} for {} inputs", self.k))),
        }
    }
}

fn input(context: &ComputeContext, index: usize) -> ort::Result<ValueRef<'_>> {
    context.input(index)?.ok_or_else(|| ort::Error::new(format!("input {index} is missing")))
}

fn output<'a>(context: &'a ComputeContext, index: usize, shape: Vec<i64>) -> ort::Result<ValueRefMut<'a>> {
    context.output(index, shape)?.ok_or_else(|| ort::Error::new(format!("output {index} is missing")))
}

const FLOATS: TensorElementType = TensorElementType::Float32;
const BYTES: TensorElementType = TensorElementType::Uint8;

struct MatMul;

impl Operator for MatMul {
    type Kernel<'attr> = MatMulKernel;
    fn name(&self) -> &str {
        "MatMul"
    }
    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [OperatorInput::required(FLOATS), OperatorInput::variadic(1).homogenous(BYTES)]
    }
    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::variadic(1).homogenous(FLOATS)]
    }
    fn create_kernel<'attr>(&self, node: &KernelContext<'attr>) -> ort::Result<MatMulKernel> {
        Ok(MatMulKernel(Weights::of(node)?))
    }
}

struct MatMulKernel(Weights);

impl Kernel for MatMulKernel {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let x = input(context, 0)?;
        let (shape, x) = x.try_extract_tensor::<f32>()?;
        let (mut values, mut outputs) = (Vec::new(), Vec::new());
        for (number, (n, _)) in self.0.each.iter().enumerate() {
            values.push(input(context, 1 + number)?);
            outputs.push(output(context, number, self.0.shape(shape, *n)?)?);
        }
        let mut layers = Vec::new();
        for (number, (value, output)) in values.iter().zip(&mut outputs).enumerate() {
            layers.push(PrepackedLinear {
                weight: self.0.weight(number, value)?,
                output: output.try_extract_tensor_mut::<f32>()?.1,
            });
        }
        let threads = Threads::of(context);
        multiply(self.0.precision, x, self.0.k, &mut layers, &threads);
        threads.finish()
    }
}

struct SwiGlu;

impl Operator for SwiGlu {
    type Kernel<'attr> = SwiGluKernel;
    fn name(&self) -> &str {
        "SwiGlu"
    }
    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [FLOATS, BYTES, BYTES].map(OperatorInput::required)
    }
    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(FLOATS)]
    }
    fn create_kernel<'attr>(&self, node: &KernelContext<'attr>) -> ort::Result<SwiGluKernel> {
        Ok(SwiGluKernel(Weights::of(node)?))
    }
}

struct SwiGluKernel(Weights);

impl Kernel for SwiGluKernel {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let [x, gate, up] = [input(context, 0)?, input(context, 1)?, input(context, 2)?];
        let (shape, x) = x.try_extract_tensor::<f32>()?;
        let weights = [self.0.weight(0, &gate)?, self.0.weight(1, &up)?];
        let mut output = output(context, 0, self.0.shape(shape, weights[0].outputs())?)?;
        let (_, output) = output.try_extract_tensor_mut::<f32>()?;
        let threads = Threads::of(context);
        swiglu(self.0.precision, x, self.0.k, weights, output, &threads);
        threads.finish()
    }
}

struct Gather;

impl Operator for Gather {
    type Kernel<'attr> = GatherKernel;
    fn name(&self) -> &str {
        "Gather"
    }
    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [BYTES, TensorElementType::Int64].map(OperatorInput::required)
    }
    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(FLOATS)]
    }
    fn create_kernel<'attr>(&self, node: &KernelContext<'attr>) -> ort::Result<GatherKernel> {
        Ok(GatherKernel(Weights::of(node)?))
    }
}

struct GatherKernel(Weights);

impl Kernel for GatherKernel {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let [table, ids] = [input(context, 0)?, input(context, 1)?];
        let table = self.0.weight(0, &table)?;
        let (shape, ids) = ids.try_extract_tensor::<i64>()?;
        let shape = shape.iter().copied().chain([self.0.k as i64]).collect();
        let ids = rows(ids, table.outputs())?;
        let mut output = output(context, 0, shape)?;
        let (_, output) = output.try_extract_tensor_mut::<f32>()?;
        let threads = Threads::of(context);
        gather(table, &ids, output, &threads);
        threads.finish()
    }
}

/// Ids as numbers of rows.
fn rows(ids: &[i64], count: usize) -> ort::Result<Vec<usize>> {
    let row = |&id: &i64| match usize::try_from(id) {
        Ok(row) if row < count => Ok(row),
        _ => Err(ort::Error::new(format!("the id {id} is none of {count}"))),
    };
    ids.iter().map(row).collect()
}

struct LogProbs;

impl Operator for LogProbs {
    type Kernel<'attr> = LogProbsKernel;
    fn name(&self) -> &str {
        "LogProbs"
    }
    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [FLOATS, BYTES, TensorElementType::Int64].map(OperatorInput::required)
    }
    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [FLOATS, BYTES].map(OperatorOutput::required)
    }
    fn create_kernel<'attr>(&self, node: &KernelContext<'attr>) -> ort::Result<LogProbsKernel> {
        Ok(LogProbsKernel(Weights::of(node)?))
    }
}

struct LogProbsKernel(Weights);

impl Kernel for LogProbsKernel {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        let [x, head, targets] = [input(context, 0)?, input(context, 1)?, input(context, 2)?];
        let (_, x) = x.try_extract_tensor::<f32>()?;
        let head = self.0.weight(0, &head)?;
        let (_, targets) = targets.try_extract_tensor::<i64>()?;
        let k = self.0.k;
        if !targets.is_empty() && targets.len() * k != x.len() {
            return Err(ort::Error::new(format!("{} targets for {} numbers of {k} a row", targets.len(), x.len())));
        }
        let shape = vec![targets.len() as i64];
        let mut logprobs = output(context, 0, shape.clone())?;
        let mut greedy = output(context, 1, shape)?;
        let (logprobs, greedy) =
            (logprobs.try_extract_tensor_mut::<f32>()?.1, greedy.try_extract_tensor_mut::<u8>()?.1);
        logprobs.fill(0.0);
        greedy.fill(0);
        // Padding and last positions have no target, and cost nothing here.
        let places: Vec<usize> = (0..targets.len()).filter(|&place| targets[place] != -1).collect();
        let wanted: Vec<i64> = places.iter().map(|&place| targets[place]).collect();
        let wanted: Vec<u32> = rows(&wanted, head.outputs())?.into_iter().map(|row| row as u32).collect();
        let kept: Vec<f32> = places.iter().flat_map(|&place| &x[place * k..][..k]).copied().collect();
        let threads = Threads::of(context);
        let found = log_probabilities(self.0.precision, &kept, k, head, &wanted, &threads);
        for (place, (logprob, is_best)) in places.into_iter().zip(found) {
            logprobs[place] = logprob;
            greedy[place] = u8::from(is_best);
        }
        threads.finish()
    }
}

//! Nodes and tensors of a graph under construction: the parts that every decoder is put together
//! from.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use karat_backend::{BackendError, Event, EventSink, Flow};
use karat_model::ModelConfig;
use karat_model::checkpoint::CheckpointLayout;
use karat_model::peft::Adapter;

use super::external_data::ExternalDataFile;
use super::quantize::{BLOCK, Quantized, blocks, quantize, zero_point_bytes};
use crate::adapter::transpose;
use crate::operators::Operators;
use crate::proto::{Attribute, DataType, Dim, OnnxGraph, inline_tensor, node, value_info};
use crate::weight_format::WeightFormat;

use super::packed_weight::PackedWeight;

/// The domain of ONNX Runtime's own operators.
const MS: &str = "com.microsoft";
/// Numbers of a large matrix that are in memory at once.
const STRETCH: usize = 4 << 20;

/// Where weights come from and what they become.
pub struct Source<'a> {
    /// The base model.
    pub checkpoint: &'a CheckpointLayout,
    /// Merged into it.
    pub adapter: Option<&'a Adapter>,
    /// Declare the factors of a LoRA on every linear layer as inputs that may be fed.
    pub adapter_inputs: bool,
    /// The graph so far.
    pub precision: WeightFormat,
    /// In whose operators.
    pub operators: Operators,
}

impl Source<'_> {
    /// Rows of a tensor of the base model, or of the adapter if that brings it whole.
    ///
    /// # Errors
    /// A tensor that is missing, of another shape or unreadable.
    pub fn read_rows(&self, name: &str, shape: &[usize], rows: Range<usize>) -> Result<Vec<f32>, BackendError> {
        match self.adapter.and_then(|adapter| adapter.saved_rows(name, shape, rows.clone())) {
            Some(values) => values,
            None => self.checkpoint.read_rows(name, shape, rows),
        }
    }

    /// The weight of a linear layer, `[output, input]`, with the adapter merged.
    ///
    /// # Errors
    /// As [`Source::read_rows`]; an adapter of another base.
    pub fn linear(&self, module: &str, output: usize, input: usize) -> Result<Vec<f32>, BackendError> {
        let mut weight = self.read_rows(&format!("{module}.weight"), &[output, input], 0..output)?;
        if let Some(adapter) = self.adapter {
            adapter.merge(module, &mut weight)?;
        }
        Ok(weight)
    }
}

/// A graph under construction and the file its weights go to.
pub struct Builder<'a> {
    pub config: &'a ModelConfig,
    pub source: &'a Source<'a>,
    /// Hears of every tensor, and may stop.
    pub sink: &'a mut dyn EventSink,
    pub data: ExternalDataFile,
    pub graph: OnnxGraph,
    /// Element type of activations.
    pub element: DataType,
    /// Tensors of the checkpoint that went into the graph.
    pub used: BTreeSet<String>,
    /// Linear layers an adapter may be on, with `[input, output]`.
    pub linears: BTreeMap<String, [usize; 2]>,
    /// Parameters of the base model.
    pub parameters: u64,
    /// The embedding, for a tied head, in Karat's operators.
    pub table: Option<PackedWeight>,
    /// How large the input channels of the linear layers are, where that decides how they are
    /// quantized.
    pub channels: BTreeMap<String, Vec<f32>>,
}

/// A quantized matrix in the file.
struct Packed {
    weights: String,
    scales: String,
    zero_points: String,
}

impl Builder<'_> {
    /// A node of ONNX's own domain.
    pub fn node(
        &mut self,
        op: &str,
        name: &str,
        inputs: &[&str],
        outputs: &[&str],
        attributes: &[(&str, Attribute<'_>)],
    ) {
        self.graph.nodes.push(node("", op, name, inputs, outputs, attributes));
    }

    /// A node of the runtime's domain.
    pub fn ms(
        &mut self,
        op: &str,
        name: &str,
        inputs: &[&str],
        outputs: &[&str],
        attributes: &[(&str, Attribute<'_>)],
    ) {
        self.graph.nodes.push(node(MS, op, name, inputs, outputs, attributes));
    }

    /// A constant of integers inside the model file.
    pub fn i64(&mut self, name: &str, shape: &[usize], values: &[i64]) {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.graph.initializers.push(inline_tensor(name, DataType::I64, shape, &bytes));
    }

    /// A conversion of elements.
    pub fn cast(&mut self, name: &str, x: &str, output: &str, to: DataType) {
        self.node("Cast", name, &[x], &[output], &[("to", Attribute::Int(to as i64))]);
    }

    /// `x / sqrt(mean(x^2) + eps) * w` over the last axis (Zhang and Sennrich, arXiv 1910.07467),
    /// in f32 up to the product with `w`, as transformers computes it.
    pub fn norm(&mut self, path: &str, x: &str, weight: &str, output: &str) {
        let part = |what: &str| format!("{output}.{what}");
        let (square, mean, shifted, root) = (part("square"), part("mean"), part("shifted"), part("root"));
        let narrow = self.element != DataType::F32;
        let wide = if narrow { part("wide") } else { x.to_string() };
        if narrow {
            self.cast(&format!("{path}/Cast"), x, &wide, DataType::F32);
        }
        self.node("Pow", &format!("{path}/Pow"), &[&wide, "f32.two"], &[&square], &[]);
        let keep = [("keepdims", Attribute::Int(1))];
        self.node("ReduceMean", &format!("{path}/ReduceMean"), &[&square, "i64.last_axis"], &[&mean], &keep);
        self.node("Add", &format!("{path}/Add"), &[&mean, "f32.eps"], &[&shifted], &[]);
        self.node("Sqrt", &format!("{path}/Sqrt"), &[&shifted], &[&root], &[]);
        let scaled = part("scaled");
        if narrow {
            let quotient = part("quotient");
            self.node("Div", &format!("{path}/Div"), &[&wide, &root], &[&quotient], &[]);
            self.cast(&format!("{path}/Cast_back"), &quotient, &scaled, self.element);
        } else {
            self.node("Div", &format!("{path}/Div"), &[&wide, &root], &[&scaled], &[]);
        }
        self.node("Mul", &format!("{path}/Mul"), &[&scaled, weight], &[output], &[]);
    }

    /// The norm of `root + skip`; the sum comes out too if `sum` is named.
    pub fn skip_norm(&mut self, path: &str, root: &str, skip: &str, weight: &str, output: &str, sum: &str) {
        let outputs: &[&str] = if sum.is_empty() { &[output] } else { &[output, "", "", sum] };
        let epsilon = [("epsilon", Attribute::Float(self.config.rms_norm_eps as f32))];
        self.ms("SkipSimplifiedLayerNormalization", path, &[root, skip, weight], outputs, &epsilon);
    }

    /// Notes that a tensor is used, and tells the sink.
    fn use_tensor(&mut self, name: &str) -> Result<(), BackendError> {
        self.used.insert(name.to_string());
        let (done, total) = (self.used.len() as u64, self.source.checkpoint.names().count() as u64);
        let progress = Event::Progress { stage: "export".into(), done: done.min(total), total, tokens: 0 };
        if self.sink.event(progress) == Flow::Stop {
            return Err(BackendError::cancelled());
        }
        Ok(())
    }

    /// [`Source::read_rows`], noted.
    pub(super) fn read_rows(
        &mut self,
        name: &str,
        shape: &[usize],
        rows: Range<usize>,
    ) -> Result<Vec<f32>, BackendError> {
        self.use_tensor(name)?;
        self.source.read_rows(name, shape, rows)
    }

    /// Reads a norm weight or bias into the data file; returns its name.
    pub fn vector(&mut self, name: &str, length: usize) -> Result<String, BackendError> {
        let values = self.read_rows(name, &[length], 0..length)?;
        self.parameters += length as u64;
        self.floats(name, &[length], &values)?;
        Ok(name.to_string())
    }

    /// Writes a tensor of the activations' element type.
    pub fn floats(&mut self, name: &str, shape: &[usize], values: &[f32]) -> Result<(), BackendError> {
        let offset = self.data.begin()?;
        self.data.put_floats(name, values, self.element)?;
        self.declare(name, self.element, shape, offset);
        Ok(())
    }

    pub(super) fn declare(&mut self, name: &str, element: DataType, shape: &[usize], offset: u64) {
        let placed = self.data.end(offset);
        self.graph.initializers.push(self.data.initializer(name, element, shape, placed));
    }

    /// Stretches of whole rows of a matrix `[rows, columns]`, multiples of `group` but for the
    /// last.
    pub(super) fn stretches(rows: usize, columns: usize, group: usize) -> impl Iterator<Item = Range<usize>> {
        let step = (STRETCH / columns / group).max(1) * group;
        (0..rows.div_ceil(step)).map(move |i| i * step..rows.min((i + 1) * step))
    }

    /// The embedding (`name`, `[vocab, hidden]`) of `ids`, and what a tied head needs to use it:
    /// its name.
    pub fn embedding(&mut self, name: &str, ids: &str, output: &str) -> Result<(), BackendError> {
        let (vocab, hidden) = (self.config.vocab_size, self.config.hidden_size);
        let path = "/model/embed_tokens";
        self.parameters += (vocab * hidden) as u64;
        if self.source.operators == Operators::Karat {
            let table = self.own_table(name, vocab, hidden)?;
            self.own("Gather", path, &[name, ids], &[output], std::slice::from_ref(&table));
            self.table = Some(table);
            return Ok(());
        }
        match self.source.precision.head_bits() {
            None => {
                self.table(name, vocab, hidden)?;
                self.node("Gather", path, &[name, ids], &[output], &[]);
            }
            Some(bits) => {
                let packed = self.packed_rows(name, vocab, hidden, bits, true)?;
                let attributes = [
                    ("bits", Attribute::Int(bits as i64)),
                    ("block_size", Attribute::Int(BLOCK as i64)),
                    ("gather_axis", Attribute::Int(0)),
                    ("quantize_axis", Attribute::Int(1)),
                ];
                let table = format!("{}.table", packed.weights);
                let inputs = [table.as_str(), ids, &packed.scales, &packed.zero_points];
                self.ms("GatherBlockQuantized", path, &inputs, &[output], &attributes);
            }
        }
        Ok(())
    }

    /// Logits of `x`; the weight is the embedding's if the head is tied, and then stored once.
    pub fn head(&mut self, x: &str, name: &str, tied: bool, output: &str) -> Result<(), BackendError> {
        let (vocab, hidden) = (self.config.vocab_size, self.config.hidden_size);
        let path = "/lm_head/MatMul";
        if !tied {
            self.parameters += (vocab * hidden) as u64;
        }
        if self.source.operators == Operators::Karat {
            return self.own_head(x, name, tied, output);
        }
        match self.source.precision.head_bits() {
            None => {
                if !tied {
                    self.table(name, vocab, hidden)?;
                }
                // Stored as [vocab, hidden], so that a tied one is stored once; the product
                // transposes it.
                let attributes =
                    [("alpha", Attribute::Float(1.0)), ("transA", Attribute::Int(0)), ("transB", Attribute::Int(1))];
                self.ms("FusedMatMul", path, &[x, name], &[output], &attributes);
            }
            Some(bits) => {
                let packed = match tied {
                    true => Packed::of(name, bits),
                    false => self.packed_rows(name, vocab, hidden, bits, false)?,
                };
                self.matmul_bits(path, x, &packed, hidden, vocab, bits, output);
            }
        }
        Ok(())
    }

    /// Writes a matrix as it is stored, a stretch of rows at a time.
    fn table(&mut self, name: &str, rows: usize, columns: usize) -> Result<(), BackendError> {
        let offset = self.data.begin()?;
        for stretch in Self::stretches(rows, columns, 1) {
            let values = self.read_rows(name, &[rows, columns], stretch)?;
            self.data.put_floats(name, &values, self.element)?;
        }
        self.declare(name, self.element, &[rows, columns], offset);
        Ok(())
    }

    /// Quantizes a matrix, a stretch of rows at a time. As a `table`, its bytes are declared a
    /// second time in the shape that looking up rows needs.
    fn packed_rows(
        &mut self,
        name: &str,
        rows: usize,
        columns: usize,
        bits: usize,
        table: bool,
    ) -> Result<Packed, BackendError> {
        if table && !columns.is_multiple_of(BLOCK) {
            return Err(BackendError::unsupported(format!(
                "{name}: hidden_size {columns} is no multiple of {BLOCK}, as a quantized embedding needs; export f32 or f16"
            )));
        }
        let offset = self.data.begin()?;
        let (mut scales, mut zero_points) = (Vec::new(), Vec::new());
        for stretch in Self::stretches(rows, columns, 1) {
            let values = self.read_rows(name, &[rows, columns], stretch)?;
            let quantized = quantize(&values, columns, bits, None);
            self.data.put(&quantized.weights)?;
            scales.extend(quantized.scales);
            zero_points.extend(quantized.zero_points);
        }
        let packed = Packed::of(name, bits);
        let shape = [rows, blocks(columns), BLOCK * bits / 8];
        self.declare(&packed.weights, DataType::U8, &shape, offset);
        if table {
            self.declare(&format!("{}.table", packed.weights), DataType::U8, &[rows, columns * bits / 8], offset);
        }
        self.put_scales(&packed, rows, columns, bits, &scales, &zero_points)?;
        Ok(packed)
    }

    fn put_scales(
        &mut self,
        packed: &Packed,
        rows: usize,
        columns: usize,
        bits: usize,
        scales: &[f32],
        zero_points: &[u8],
    ) -> Result<(), BackendError> {
        self.floats(&packed.scales, &[rows, blocks(columns)], scales)?;
        let offset = self.data.begin()?;
        self.data.put(zero_points)?;
        self.declare(&packed.zero_points, DataType::U8, &[rows, zero_point_bytes(columns, bits)], offset);
        Ok(())
    }

    /// `x W^T` over quantized blocks of `W` `[output, input]`.
    #[allow(clippy::too_many_arguments)]
    fn matmul_bits(&mut self, path: &str, x: &str, w: &Packed, input: usize, output: usize, bits: usize, y: &str) {
        let attributes = [
            ("K", Attribute::Int(input as i64)),
            ("N", Attribute::Int(output as i64)),
            // The CPU kernel quantizes activations to 8 bits a block and multiplies integers.
            ("accuracy_level", Attribute::Int(4)),
            ("bits", Attribute::Int(bits as i64)),
            ("block_size", Attribute::Int(BLOCK as i64)),
        ];
        self.ms("MatMulNBits", path, &[x, &w.weights, &w.scales, &w.zero_points], &[y], &attributes);
    }

    /// The weight of a linear layer, `[output, input]`, noted.
    pub(super) fn linear_weight(
        &mut self,
        module: &str,
        input: usize,
        output: usize,
    ) -> Result<Vec<f32>, BackendError> {
        self.use_tensor(&format!("{module}.weight"))?;
        let weight = self.source.linear(module, output, input)?;
        self.parameters += weight.len() as u64;
        self.linears.insert(module.to_string(), [input, output]);
        Ok(weight)
    }

    /// `x W^T (+ b)` with the adapter merged, or beside it as factors that may be fed.
    pub fn linear(
        &mut self,
        module: &str,
        x: &str,
        input: usize,
        output: usize,
        bias: bool,
    ) -> Result<String, BackendError> {
        let name = format!("{module}.weight");
        let path = format!("/{}", module.replace('.', "/"));
        let weight = self.linear_weight(module, input, output)?;
        let result = format!("{module}.product");
        match self.source.precision.layer_bits(module, self.config.layers) {
            None => {
                // The runtime's product wants [input, output].
                let transposed = transpose(&weight, output, input);
                drop(weight);
                self.floats(&name, &[input, output], &transposed)?;
                self.node("MatMul", &format!("{path}/MatMul"), &[x, &name], &[&result], &[]);
            }
            Some(bits) => {
                let channels = self.channels.get(module).map(Vec::as_slice);
                let Quantized { weights, scales, zero_points } = quantize(&weight, input, bits, channels);
                drop(weight);
                let packed = Packed::of(&name, bits);
                let offset = self.data.begin()?;
                self.data.put(&weights)?;
                let shape = [output, blocks(input), BLOCK * bits / 8];
                self.declare(&packed.weights, DataType::U8, &shape, offset);
                self.put_scales(&packed, output, input, bits, &scales, &zero_points)?;
                self.matmul_bits(&format!("{path}/MatMul"), x, &packed, input, output, bits, &result);
            }
        }
        self.linear_rest(module, x, result, [input, output], bias)
    }

    /// Terms added to the output of a linear layer: its bias, the factors of an adapter.
    pub(super) fn linear_rest(
        &mut self,
        module: &str,
        x: &str,
        mut result: String,
        [input, output]: [usize; 2],
        bias: bool,
    ) -> Result<String, BackendError> {
        let path = format!("/{}", module.replace('.', "/"));
        if bias {
            let bias = self.vector(&format!("{module}.bias"), output)?;
            let sum = format!("{module}.biased");
            self.node("Add", &format!("{path}/Add"), &[&result, &bias], &[&sum], &[]);
            result = sum;
        }
        if self.source.adapter_inputs {
            result = self.adapter_branch(module, &path, x, &result, [input, output]);
        }
        Ok(result)
    }

    /// `y + (x A) B` with `A` `[input, rank]` and `B` `[rank, output]` (which holds the scale) as
    /// inputs; both have rank 0, and so no effect, unless they are fed.
    fn adapter_branch(&mut self, module: &str, path: &str, x: &str, y: &str, [input, output]: [usize; 2]) -> String {
        let rank = format!("{module}.rank");
        let (a, b) = (format!("{module}.lora_A.weight"), format!("{module}.lora_B.weight"));
        for (name, dims, shape) in [
            (&a, [Dim::Size(input), Dim::Name(&rank)], [input, 0]),
            (&b, [Dim::Name(&rank), Dim::Size(output)], [0, output]),
        ] {
            self.graph.inputs.push(value_info(name, self.element, &dims));
            self.graph.initializers.push(inline_tensor(name, self.element, &shape, &[]));
        }
        let (low, delta, sum) = (format!("{module}.low"), format!("{module}.delta"), format!("{module}.adapted"));
        self.node("MatMul", &format!("{path}/lora_A/MatMul"), &[x, &a], &[&low], &[]);
        self.node("MatMul", &format!("{path}/lora_B/MatMul"), &[&low, &b], &[&delta], &[]);
        self.node("Add", &format!("{path}/lora/Add"), &[y, &delta], &[&sum], &[]);
        sum
    }
}

impl Packed {
    /// The names of the parts of a matrix.
    fn of(name: &str, bits: usize) -> Packed {
        Packed {
            weights: format!("{name}_q{bits}"),
            scales: format!("{name}_scales"),
            zero_points: format!("{name}_zero_points"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::transpose;

    #[test]
    fn transposing_twice_gives_the_matrix_back() {
        let (rows, columns) = (37, 71);
        let matrix: Vec<f32> = (0..rows * columns).map(|i| i as f32).collect();
        let once = transpose(&matrix, rows, columns);
        assert_eq!(once[rows * 70 + 36], matrix[36 * columns + 70]);
        assert_eq!(transpose(&once, columns, rows), matrix);
    }
}

//! The ONNX graph of a decoder, node by node, with its weights streamed into a data file on the way.
//!
//! Inputs: `input_ids` i64 `[batch, seq]`, `attention_mask` i64 `[batch, total]` (ones, then zeros: right padding) and
//! `past_key_values.{i}.key` / `.value` f32 `[batch, kv_heads, past, head_dim]`. Outputs: `logits` f32
//! `[batch, seq - first_logit, vocab]` and `present.{i}.key` / `.value`. Rotary positions are inside the attention
//! operator, which counts them from the mask; there is no `position_ids`.
//!
//! `first_logit` i64 `[1]` is an input with a default (0: logits of every position, as other runners expect). Fed with
//! -1 the head, the largest product of a small model, is computed for the last position alone.
//!
//! Root-mean-square norms of queries, keys and the first layer are spelled out in standard operators: the runtime's own
//! `SimplifiedLayerNormalization` lives in ONNX's domain without being part of ONNX, so a checker refuses it; the
//! runtime recognises the spelled-out form and fuses it to the same kernel when it loads the model.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use karat::backend::BackendError;
use rayon::prelude::*;

use super::proto::{Attribute, Dim, Element, Graph, Message, external_tensor, inline_tensor, model, node, value_info};
use crate::adapter::Adapter;
use crate::checkpoint::Checkpoint;
use crate::config::DecoderConfig;

/// The domain of ONNX Runtime's own operators.
const MS: &str = "com.microsoft";
/// Tensors start at multiples of this, so that the runtime can map them.
const ALIGNMENT: u64 = 4096;

/// Where weights come from.
pub struct Source<'a> {
    /// The base model.
    pub checkpoint: &'a Checkpoint,
    /// Merged into it.
    pub adapter: Option<&'a Adapter>,
}

/// What was written.
pub struct Written {
    /// The encoded model.
    pub model: Message,
    /// Bytes of the data file.
    pub data_bytes: u64,
    /// Parameters of the base model (a tied head once).
    pub parameters: u64,
}

/// Writes all weights to `data` and returns the model that refers to it under its file name.
///
/// # Errors
/// A tensor that is missing, of another shape, unknown to this architecture or unreadable; a disk error.
pub fn write_decoder(config: &DecoderConfig, source: &Source<'_>, data: &Path) -> Result<Written, BackendError> {
    let file = File::create(data).map_err(|e| disk(data, &e))?;
    let name = data.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let mut builder = Builder {
        config,
        source,
        data: BufWriter::with_capacity(1 << 20, file),
        data_path: data,
        data_name: name,
        offset: 0,
        graph: Graph::default(),
        used: BTreeSet::new(),
        adapted: BTreeSet::new(),
        parameters: 0,
    };
    builder.build()?;
    builder.refuse_leftovers()?;
    let metadata = [("karat.family", format!("{:?}", config.family))];
    let model = model("decoder", &builder.graph, &metadata);
    let file = builder.data.into_inner().map_err(|e| disk(data, e.error()))?;
    file.sync_all().map_err(|e| disk(data, &e))?;
    Ok(Written { model, data_bytes: builder.offset, parameters: builder.parameters })
}

fn disk(path: &Path, error: &std::io::Error) -> BackendError {
    BackendError::failed(format!("could not write {}: {error}", path.display()))
}

struct Builder<'a> {
    config: &'a DecoderConfig,
    source: &'a Source<'a>,
    data: BufWriter<File>,
    data_path: &'a Path,
    data_name: String,
    offset: u64,
    graph: Graph,
    /// Tensors of the checkpoint that went into the graph.
    used: BTreeSet<String>,
    /// Modules an adapter may be merged into.
    adapted: BTreeSet<String>,
    parameters: u64,
}

impl Builder<'_> {
    fn build(&mut self) -> Result<(), BackendError> {
        let c = self.config;
        self.declare_inputs();
        self.lengths_from_mask();
        self.rotation_tables()?;
        self.constants();

        let embedding = "model.embed_tokens.weight";
        let table = self.read(embedding, &[c.vocab, c.hidden])?;
        self.external(embedding, &[c.vocab, c.hidden], &table)?;
        drop(table);
        self.node("Gather", "/model/embed_tokens", &[embedding, "input_ids"], &["hidden.embedded"], &[]);

        let mut root = "hidden.embedded".to_string();
        let mut skip: Option<String> = None;
        for layer in 0..c.layers {
            (root, skip) = self.layer(layer, root, skip)?;
        }
        let norm = self.vector("model.norm.weight", c.hidden)?;
        let skip = skip.ok_or_else(|| BackendError::failed("a decoder needs at least one layer"))?;
        self.skip_norm("/model/norm", &root, &skip, &norm, "hidden.final", "");

        self.node(
            "Slice",
            "/lm_head/first",
            &["hidden.final", "first_logit", "i64.end", "i64.axis1"],
            &["hidden.head"],
            &[],
        );
        let head = if c.tied {
            embedding
        } else {
            let weight = self.read("lm_head.weight", &[c.vocab, c.hidden])?;
            self.external("lm_head.weight", &[c.vocab, c.hidden], &weight)?;
            "lm_head.weight"
        };
        // The head is stored as [vocab, hidden], so that a tied one is stored once; the product transposes it.
        let attributes =
            [("alpha", Attribute::Float(1.0)), ("transA", Attribute::Int(0)), ("transB", Attribute::Int(1))];
        self.ms("FusedMatMul", "/lm_head/MatMul", &["hidden.head", head], &["logits"], &attributes);
        Ok(())
    }

    fn declare_inputs(&mut self) {
        let c = self.config;
        let (batch, seq) = (Dim::Name("batch_size"), Dim::Name("sequence_length"));
        let cache = |length| [batch, Dim::Size(c.kv_heads), Dim::Name(length), Dim::Size(c.head_dim)];
        let mut inputs = vec![
            value_info("input_ids", Element::I64, &[batch, seq]),
            value_info("attention_mask", Element::I64, &[batch, Dim::Name("total_sequence_length")]),
        ];
        let logits = [batch, Dim::Name("logits_length"), Dim::Size(c.vocab)];
        let mut outputs = vec![value_info("logits", Element::F32, &logits)];
        for layer in 0..c.layers {
            for part in ["key", "value"] {
                let past = cache("past_sequence_length");
                inputs.push(value_info(&format!("past_key_values.{layer}.{part}"), Element::F32, &past));
                let present = cache("present_sequence_length");
                outputs.push(value_info(&format!("present.{layer}.{part}"), Element::F32, &present));
            }
        }
        inputs.push(value_info("first_logit", Element::I64, &[Dim::Size(1)]));
        self.graph.inputs = inputs;
        self.graph.outputs = outputs;
    }

    /// `seqlens_k` i32 `[batch]`: valid length of each row less one. `total` i32 scalar: columns of the mask.
    fn lengths_from_mask(&mut self) {
        self.i64("i64.axis1", &[1], &[1]);
        self.i64("i64.one", &[1], &[1]);
        self.i64("i64.index1", &[], &[1]);
        let int32 = [("to", Attribute::Int(Element::I32 as i64))];
        let keep = [("keepdims", Attribute::Int(0))];
        self.node("ReduceSum", "/mask/ReduceSum", &["attention_mask", "i64.axis1"], &["mask.valid"], &keep);
        self.node("Sub", "/mask/Sub", &["mask.valid", "i64.one"], &["mask.last"], &[]);
        self.node("Cast", "/mask/Cast", &["mask.last"], &["seqlens_k"], &int32);
        self.node("Shape", "/mask/Shape", &["attention_mask"], &["mask.shape"], &[]);
        self.node(
            "Gather",
            "/mask/Gather",
            &["mask.shape", "i64.index1"],
            &["mask.total"],
            &[("axis", Attribute::Int(0))],
        );
        self.node("Cast", "/mask/Cast_total", &["mask.total"], &["total_sequence_length_i32"], &int32);
    }

    /// `cos_cache` and `sin_cache`, `[max_positions, head_dim / 2]`.
    fn rotation_tables(&mut self) -> Result<(), BackendError> {
        let c = self.config;
        let frequencies = c.inverse_frequencies();
        // Angles are products in f32, as transformers computes them.
        let angles: Vec<f32> =
            (0..c.max_positions).flat_map(|p| frequencies.iter().map(move |f| p as f32 * f)).collect();
        let shape = [c.max_positions, c.head_dim / 2];
        let cos: Vec<f32> = angles.par_iter().map(|&a| f64::from(a).cos() as f32).collect();
        self.external("cos_cache", &shape, &cos)?;
        let sin: Vec<f32> = angles.par_iter().map(|&a| f64::from(a).sin() as f32).collect();
        self.external("sin_cache", &shape, &sin)
    }

    fn constants(&mut self) {
        let c = self.config;
        self.i64("first_logit", &[1], &[0]);
        self.i64("i64.end", &[1], &[i64::MAX]);
        self.i64("i64.last_axis", &[1], &[-1]);
        self.i64("shape.heads", &[3], &[0, -1, c.head_dim as i64]);
        self.i64("shape.query", &[3], &[0, -1, (c.heads * c.head_dim) as i64]);
        self.i64("shape.key", &[3], &[0, -1, (c.kv_heads * c.head_dim) as i64]);
        for (name, value) in [("f32.two", 2.0f32), ("f32.eps", c.rms_eps as f32)] {
            self.graph.initializers.push(inline_tensor(name, Element::F32, &[], &value.to_le_bytes()));
        }
    }

    /// One layer; `root` is the residual stream without the last branch `skip`. Returns both for the next.
    fn layer(
        &mut self,
        i: usize,
        root: String,
        skip: Option<String>,
    ) -> Result<(String, Option<String>), BackendError> {
        let c = self.config;
        let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let module = format!("model.layers.{i}");
        let path = format!("/model/layers.{i}");
        let at = |what: &str| format!("layers.{i}.{what}");

        let weight = self.vector(&format!("{module}.input_layernorm.weight"), c.hidden)?;
        let name = format!("{path}/input_layernorm");
        let (normed, mut root) = match skip {
            None => {
                self.norm(&name, &root, &weight, &at("normed"));
                (at("normed"), root)
            }
            Some(skip) => {
                self.skip_norm(&name, &root, &skip, &weight, &at("normed"), &at("root"));
                (at("normed"), at("root"))
            }
        };

        let attention = format!("{module}.self_attn");
        let mut query = self.linear(&format!("{attention}.q_proj"), &normed, c.hidden, q, c.qkv_bias)?;
        let mut key = self.linear(&format!("{attention}.k_proj"), &normed, c.hidden, kv, c.qkv_bias)?;
        let value = self.linear(&format!("{attention}.v_proj"), &normed, c.hidden, kv, c.qkv_bias)?;
        if c.qk_norm() {
            query = self.head_norm(&format!("{attention}.q_norm"), &query, "shape.query")?;
            key = self.head_norm(&format!("{attention}.k_norm"), &key, "shape.key")?;
        }
        let attended = at("attended");
        let (past, present) = (format!("past_key_values.{i}"), format!("present.{i}"));
        let caches = [".key", ".value"].map(|part| (format!("{past}{part}"), format!("{present}{part}")));
        self.ms(
            "GroupQueryAttention",
            &format!("{path}/self_attn/GroupQueryAttention"),
            &[
                &query,
                &key,
                &value,
                &caches[0].0,
                &caches[1].0,
                "seqlens_k",
                "total_sequence_length_i32",
                "cos_cache",
                "sin_cache",
            ],
            &[&attended, &caches[0].1, &caches[1].1],
            &[
                ("num_heads", Attribute::Int(c.heads as i64)),
                ("kv_num_heads", Attribute::Int(c.kv_heads as i64)),
                ("scale", Attribute::Float((1.0 / (c.head_dim as f64).sqrt()) as f32)),
                ("local_window_size", Attribute::Int(-1)),
                ("softcap", Attribute::Float(0.0)),
                ("do_rotary", Attribute::Int(1)),
                ("rotary_interleaved", Attribute::Int(0)),
            ],
        );
        let branch = self.linear(&format!("{attention}.o_proj"), &attended, q, c.hidden, c.o_bias)?;

        let weight = self.vector(&format!("{module}.post_attention_layernorm.weight"), c.hidden)?;
        let name = format!("{path}/post_attention_layernorm");
        self.skip_norm(&name, &root, &branch, &weight, &at("normed2"), &at("root2"));
        root = at("root2");

        let normed = at("normed2");
        let gate = self.linear(&format!("{module}.mlp.gate_proj"), &normed, c.hidden, c.intermediate, c.mlp_bias)?;
        let up = self.linear(&format!("{module}.mlp.up_proj"), &normed, c.hidden, c.intermediate, c.mlp_bias)?;
        let (sigmoid, silu, gated) = (at("sigmoid"), at("silu"), at("gated"));
        self.node("Sigmoid", &format!("{path}/mlp/Sigmoid"), &[&gate], &[&sigmoid], &[]);
        self.node("Mul", &format!("{path}/mlp/SiLU"), &[&gate, &sigmoid], &[&silu], &[]);
        self.node("Mul", &format!("{path}/mlp/Mul"), &[&silu, &up], &[&gated], &[]);
        let branch = self.linear(&format!("{module}.mlp.down_proj"), &gated, c.intermediate, c.hidden, c.mlp_bias)?;
        Ok((root, Some(branch)))
    }

    /// `x W^T (+ b)` with the adapter merged; the weight is stored as `[input, output]`.
    fn linear(
        &mut self,
        module: &str,
        x: &str,
        input: usize,
        output: usize,
        bias: bool,
    ) -> Result<String, BackendError> {
        let name = format!("{module}.weight");
        let mut weight = self.read(&name, &[output, input])?;
        if let Some(adapter) = self.source.adapter {
            adapter.merge(module, &mut weight, output, input)?;
            self.adapted.insert(module.to_string());
        }
        let transposed = transpose(&weight, output, input);
        drop(weight);
        self.external(&name, &[input, output], &transposed)?;
        let product = format!("{module}.product");
        self.node("MatMul", &format!("/{}/MatMul", module.replace('.', "/")), &[x, &name], &[&product], &[]);
        if !bias {
            return Ok(product);
        }
        let bias = self.vector(&format!("{module}.bias"), output)?;
        let sum = format!("{module}.output");
        self.node("Add", &format!("/{}/Add", module.replace('.', "/")), &[&product, &bias], &[&sum], &[]);
        Ok(sum)
    }

    /// Root-mean-square norm of every head of `x` `[batch, seq, heads * head_dim]`.
    fn head_norm(&mut self, module: &str, x: &str, flat_shape: &str) -> Result<String, BackendError> {
        let weight = self.vector(&format!("{module}.weight"), self.config.head_dim)?;
        let (heads, normed, flat) = (format!("{module}.heads"), format!("{module}.normed"), format!("{module}.output"));
        let path = format!("/{}", module.replace('.', "/"));
        self.node("Reshape", &format!("{path}/Reshape"), &[x, "shape.heads"], &[&heads], &[]);
        self.norm(&path, &heads, &weight, &normed);
        self.node("Reshape", &format!("{path}/Reshape_flat"), &[&normed, flat_shape], &[&flat], &[]);
        Ok(flat)
    }

    /// `x / sqrt(mean(x^2) + eps) * w` over the last axis (Zhang and Sennrich, arXiv 1910.07467).
    fn norm(&mut self, path: &str, x: &str, weight: &str, output: &str) {
        let part = |what: &str| format!("{output}.{what}");
        let (square, mean, shifted, root, scaled) =
            (part("square"), part("mean"), part("shifted"), part("root"), part("scaled"));
        self.node("Pow", &format!("{path}/Pow"), &[x, "f32.two"], &[&square], &[]);
        let keep = [("keepdims", Attribute::Int(1))];
        self.node("ReduceMean", &format!("{path}/ReduceMean"), &[&square, "i64.last_axis"], &[&mean], &keep);
        self.node("Add", &format!("{path}/Add"), &[&mean, "f32.eps"], &[&shifted], &[]);
        self.node("Sqrt", &format!("{path}/Sqrt"), &[&shifted], &[&root], &[]);
        self.node("Div", &format!("{path}/Div"), &[x, &root], &[&scaled], &[]);
        self.node("Mul", &format!("{path}/Mul"), &[&scaled, weight], &[output], &[]);
    }

    /// The norm of `root + skip`; the sum comes out too if `sum` is named.
    fn skip_norm(&mut self, path: &str, root: &str, skip: &str, weight: &str, output: &str, sum: &str) {
        let outputs: &[&str] = if sum.is_empty() { &[output] } else { &[output, "", "", sum] };
        let epsilon = [("epsilon", Attribute::Float(self.config.rms_eps as f32))];
        self.ms("SkipSimplifiedLayerNormalization", path, &[root, skip, weight], outputs, &epsilon);
    }

    fn node(&mut self, op: &str, name: &str, inputs: &[&str], outputs: &[&str], attributes: &[(&str, Attribute)]) {
        self.graph.nodes.push(node("", op, name, inputs, outputs, attributes));
    }

    fn ms(&mut self, op: &str, name: &str, inputs: &[&str], outputs: &[&str], attributes: &[(&str, Attribute)]) {
        self.graph.nodes.push(node(MS, op, name, inputs, outputs, attributes));
    }

    fn i64(&mut self, name: &str, shape: &[usize], values: &[i64]) {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.graph.initializers.push(inline_tensor(name, Element::I64, shape, &bytes));
    }

    /// Reads a tensor of the base model and counts it.
    fn read(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, BackendError> {
        let values = self.source.checkpoint.read(name, shape)?;
        self.used.insert(name.to_string());
        self.parameters += values.len() as u64;
        Ok(values)
    }

    /// Reads a norm weight or bias into the data file; returns its name.
    fn vector(&mut self, name: &str, length: usize) -> Result<String, BackendError> {
        let values = self.read(name, &[length])?;
        self.external(name, &[length], &values)?;
        Ok(name.to_string())
    }

    /// Appends values to the data file and declares the initializer.
    fn external(&mut self, name: &str, shape: &[usize], values: &[f32]) -> Result<(), BackendError> {
        let padding = self.offset.next_multiple_of(ALIGNMENT) - self.offset;
        let write = |data: &mut BufWriter<File>| -> std::io::Result<()> {
            data.write_all(&vec![0u8; padding as usize])?;
            let mut bytes = Vec::with_capacity(4 << 14);
            for chunk in values.chunks(1 << 14) {
                bytes.clear();
                bytes.extend(chunk.iter().flat_map(|v| v.to_le_bytes()));
                data.write_all(&bytes)?;
            }
            Ok(())
        };
        write(&mut self.data).map_err(|e| disk(self.data_path, &e))?;
        let (offset, length) = (self.offset + padding, 4 * values.len() as u64);
        self.offset = offset + length;
        let tensor = external_tensor(name, Element::F32, shape, &self.data_name, offset, length);
        self.graph.initializers.push(tensor);
        Ok(())
    }

    /// A tensor that found no place means that the configuration and the weights are of different models.
    fn refuse_leftovers(&self) -> Result<(), BackendError> {
        let ignored =
            |name: &str| (self.config.tied && name == "lm_head.weight") || name.ends_with("rotary_emb.inv_freq");
        if let Some(name) = self.source.checkpoint.names().find(|name| !self.used.contains(*name) && !ignored(name)) {
            return Err(BackendError::failed(format!(
                "the checkpoint holds {name}, which has no place in a {:?} decoder of {} layers with this config.json",
                self.config.family, self.config.layers
            )));
        }
        let modules = self.source.adapter.map(Adapter::modules).unwrap_or_default();
        if let Some(module) = modules.iter().find(|module| !self.adapted.contains(**module)) {
            return Err(BackendError::unsupported(format!(
                "the adapter has a LoRA on {module}: only the projections of attention and feed-forward of this model \
                 can carry one (of another base model?)"
            )));
        }
        Ok(())
    }
}

/// `[rows, columns]` to `[columns, rows]`.
fn transpose(matrix: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut transposed = vec![0f32; matrix.len()];
    // Blocks of columns, so that each thread writes its own stretch and reads lines it will use again.
    const BLOCK: usize = 32;
    transposed.par_chunks_mut(BLOCK * rows).enumerate().for_each(|(block, out)| {
        let first = block * BLOCK;
        for row in 0..rows {
            for (k, column) in (first..columns.min(first + BLOCK)).enumerate() {
                out[k * rows + row] = matrix[row * columns + column];
            }
        }
    });
    transposed
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

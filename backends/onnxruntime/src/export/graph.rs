//! The ONNX graph of a decoder, node by node, with its weights streamed into a data file on the
//! way.
//!
//! Inputs: `input_ids` i64 `[batch, seq]`, `attention_mask` i64 `[batch, total]` (ones, then zeros:
//! right padding) and `past_key_values.{i}.key` / `.value` f32 `[batch, kv_heads, past, head_dim]`.
//! Outputs: `logits` f32 `[batch, seq - first_logit, vocab]` and `present.{i}.key` / `.value`.
//! Rotary positions are inside the attention operator, which counts them from the mask; there is no
//! `position_ids`.
//!
//! `first_logit` i64 `[1]` is an input with a default (0: logits of every position, as other
//! runners expect). AdapterInputs with -1 the head, the largest product of a small model, is
//! computed for the last position alone.
//!
//! Root-mean-square norms of queries, keys and the first layer are spelled out in standard
//! operators: the runtime's own `SimplifiedLayerNormalization` lives in ONNX's domain without being
//! part of ONNX, so a checker refuses it; the runtime recognises the spelled-out form and fuses it
//! to the same kernel when it loads the model.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use karat_backend::{BackendError, EventSink};
use karat_model::ModelConfig;
use karat_model::peft::tied_embedding;

use super::builder::{Builder, Source};
use super::calibrate;
use super::external_data::ExternalDataFile;
use crate::operators::{self, Operators};
use crate::proto::{Attribute, DataType, Dim, OnnxGraph, ProtoMessage, inline_tensor, model, value_info};

/// Summary of what was written.
pub struct Written {
    /// The encoded model.
    pub model: ProtoMessage,
    /// Bytes of the data file.
    pub data_bytes: u64,
    /// Parameters of the base model (a tied head once).
    pub parameters: u64,
    /// Linear layers whose LoRA may be fed, with `[input, output]`; none unless the source asks for
    /// such inputs.
    pub adapter_inputs: BTreeMap<String, [usize; 2]>,
}

/// Writes all weights to `data` and returns the model that refers to it under its file name.
///
/// # Errors
/// A tensor that is missing, of another shape, unknown to this architecture or unreadable; a disk
/// error.
pub fn write_decoder(
    config: &ModelConfig,
    source: &Source<'_>,
    data: &Path,
    sink: &mut dyn EventSink,
) -> Result<Written, BackendError> {
    // Eight bits are near enough whatever a weight is multiplied with.
    let channels = match source.precision.linear_bits() {
        Some(4) => calibrate::channels(config, source, sink)?,
        _ => BTreeMap::new(),
    };
    let own = source.operators == Operators::Karat;
    let mut builder = Builder {
        config,
        source,
        sink,
        data: ExternalDataFile::create(data)?,
        graph: OnnxGraph { operators: own.then_some((operators::DOMAIN, operators::VERSION)), ..OnnxGraph::default() },
        // What Karat's operators multiply is rounded inside them.
        element: if own { DataType::F32 } else { source.precision.element() },
        used: BTreeSet::new(),
        linears: BTreeMap::new(),
        parameters: 0,
        table: None,
        channels,
    };
    builder.build()?;
    builder.refuse_leftovers()?;
    let metadata = [("karat.family", format!("{:?}", config.family)), ("karat.weights", source.precision.to_string())];
    let model = model("decoder", &builder.graph, &metadata);
    Ok(Written {
        model,
        parameters: builder.parameters,
        adapter_inputs: if source.adapter_inputs { builder.linears } else { BTreeMap::new() },
        data_bytes: builder.data.finish()?,
    })
}

impl Builder<'_> {
    fn build(&mut self) -> Result<(), BackendError> {
        let c = self.config;
        self.declare_inputs();
        self.lengths_from_mask();
        self.rotation_tables()?;
        self.constants();

        let embedding = "model.embed_tokens.weight";
        let tied = self.head_is_tied(embedding)?;
        self.embedding(embedding, "input_ids", "hidden.embedded")?;
        let mut root = "hidden.embedded".to_string();
        let mut skip: Option<String> = None;
        for layer in 0..c.layers {
            (root, skip) = self.layer(layer, root, skip)?;
        }
        let norm = self.vector("model.norm.weight", c.hidden_size)?;
        let skip = skip.ok_or_else(|| BackendError::failed("a decoder needs at least one layer"))?;
        self.skip_norm("/model/norm", &root, &skip, &norm, "hidden.final", "");
        let slice = ["hidden.final", "first_logit", "i64.end", "i64.axis1"];
        self.node("Slice", "/lm_head/first", &slice, &["hidden.head"], &[]);
        let head = if tied { embedding } else { "lm_head.weight" };
        if self.element == DataType::F32 {
            return self.head("hidden.head", head, tied, "logits");
        }
        self.head("hidden.head", head, tied, "logits.narrow")?;
        self.cast("/lm_head/Cast", "logits.narrow", "logits", DataType::F32);
        Ok(())
    }

    /// Whether the head is the embedding. An adapter that brings a head of its own unties it.
    fn head_is_tied(&self, embedding: &str) -> Result<bool, BackendError> {
        let saves = |name: &str| self.source.adapter.is_some_and(|adapter| adapter.saved().any(|saved| saved == name));
        let tied = self.config.tied && !saves("lm_head.weight");
        match tied && saves(embedding) {
            true => Err(tied_embedding()),
            false => Ok(tied),
        }
    }

    fn declare_inputs(&mut self) {
        let c = self.config;
        let (batch, seq) = (Dim::Name("batch_size"), Dim::Name("sequence_length"));
        let cache = |length| [batch, Dim::Size(c.heads.keys), Dim::Name(length), Dim::Size(c.heads.dim)];
        let mut inputs = vec![
            value_info("input_ids", DataType::I64, &[batch, seq]),
            value_info("attention_mask", DataType::I64, &[batch, Dim::Name("total_sequence_length")]),
        ];
        let logits = [batch, Dim::Name("logits_length"), Dim::Size(c.vocab_size)];
        let mut outputs = vec![value_info("logits", DataType::F32, &logits)];
        for layer in 0..c.layers {
            for part in ["key", "value"] {
                let past = cache("past_sequence_length");
                inputs.push(value_info(&format!("past_key_values.{layer}.{part}"), self.element, &past));
                let present = cache("present_sequence_length");
                outputs.push(value_info(&format!("present.{layer}.{part}"), self.element, &present));
            }
        }
        inputs.push(value_info("first_logit", DataType::I64, &[Dim::Size(1)]));
        if self.source.operators == Operators::Karat {
            let targets = [Dim::Name("targets_length")];
            inputs.push(value_info("targets", DataType::I64, &targets));
            outputs.push(value_info("logprobs", DataType::F32, &targets));
            outputs.push(value_info("greedy", DataType::U8, &targets));
        }
        self.graph.inputs = inputs;
        self.graph.outputs = outputs;
    }

    /// `seqlens_k` i32 `[batch]`: valid length of each row less one. `total` i32 scalar: columns of
    /// the mask.
    fn lengths_from_mask(&mut self) {
        self.i64("i64.axis1", &[1], &[1]);
        self.i64("i64.one", &[1], &[1]);
        self.i64("i64.index1", &[], &[1]);
        let keep = [("keepdims", Attribute::Int(0))];
        self.node("ReduceSum", "/mask/ReduceSum", &["attention_mask", "i64.axis1"], &["mask.valid"], &keep);
        self.node("Sub", "/mask/Sub", &["mask.valid", "i64.one"], &["mask.last"], &[]);
        self.cast("/mask/Cast", "mask.last", "seqlens_k", DataType::I32);
        self.node("Shape", "/mask/Shape", &["attention_mask"], &["mask.shape"], &[]);
        self.node(
            "Gather",
            "/mask/Gather",
            &["mask.shape", "i64.index1"],
            &["mask.total"],
            &[("axis", Attribute::Int(0))],
        );
        self.cast("/mask/Cast_total", "mask.total", "total_sequence_length_i32", DataType::I32);
    }

    /// `cos_cache` and `sin_cache`, `[max_positions, head_dim / 2]`.
    fn rotation_tables(&mut self) -> Result<(), BackendError> {
        let c = self.config;
        let shape = [c.max_positions, c.heads.dim / 2];
        let (cos, sin) = c.rope.tables(c.heads.dim, c.max_positions);
        self.floats("cos_cache", &shape, &cos)?;
        self.floats("sin_cache", &shape, &sin)
    }

    fn constants(&mut self) {
        let c = self.config;
        self.i64("first_logit", &[1], &[0]);
        if self.source.operators == Operators::Karat {
            self.i64("targets", &[0], &[]);
        }
        self.i64("i64.end", &[1], &[i64::MAX]);
        self.i64("i64.last_axis", &[1], &[-1]);
        self.i64("shape.heads", &[3], &[0, -1, c.heads.dim as i64]);
        self.i64("shape.query", &[3], &[0, -1, (c.heads.queries * c.heads.dim) as i64]);
        self.i64("shape.key", &[3], &[0, -1, (c.heads.keys * c.heads.dim) as i64]);
        for (name, value) in [("f32.two", 2.0f32), ("f32.eps", c.rms_norm_eps as f32)] {
            self.graph.initializers.push(inline_tensor(name, DataType::F32, &[], &value.to_le_bytes()));
        }
    }

    /// One layer; `root` is the residual stream without the last branch `skip`. Returns both for
    /// the next.
    fn layer(
        &mut self,
        i: usize,
        root: String,
        skip: Option<String>,
    ) -> Result<(String, Option<String>), BackendError> {
        let c = self.config;
        let (q, kv) = (c.heads.queries * c.heads.dim, c.heads.keys * c.heads.dim);
        let module = format!("model.layers.{i}");
        let path = format!("/model/layers.{i}");
        let at = |what: &str| format!("layers.{i}.{what}");

        let weight = self.vector(&format!("{module}.input_layernorm.weight"), c.hidden_size)?;
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
        let projections = [("q_proj", q), ("k_proj", kv), ("v_proj", kv)];
        let projections = projections.map(|(name, size)| (format!("{attention}.{name}"), size, c.qkv_bias));
        let [mut query, mut key, value] = self.linears(&normed, c.hidden_size, projections)?;
        if c.qk_norm {
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
                ("num_heads", Attribute::Int(c.heads.queries as i64)),
                ("kv_num_heads", Attribute::Int(c.heads.keys as i64)),
                ("scale", Attribute::Float((1.0 / (c.heads.dim as f64).sqrt()) as f32)),
                ("local_window_size", Attribute::Int(-1)),
                ("softcap", Attribute::Float(0.0)),
                ("do_rotary", Attribute::Int(1)),
                ("rotary_interleaved", Attribute::Int(0)),
            ],
        );
        let output = (format!("{attention}.o_proj"), c.hidden_size, c.o_bias);
        let [branch] = self.linears(&attended, q, [output])?;

        let weight = self.vector(&format!("{module}.post_attention_layernorm.weight"), c.hidden_size)?;
        let name = format!("{path}/post_attention_layernorm");
        self.skip_norm(&name, &root, &branch, &weight, &at("normed2"), &at("root2"));
        root = at("root2");

        let normed = at("normed2");
        let gated = self.gated_unit(&format!("{module}.mlp"), &normed, &at("gated"))?;
        let down = (format!("{module}.mlp.down_proj"), c.hidden_size, c.mlp_bias);
        let [branch] = self.linears(&gated, c.intermediate_size, [down])?;
        Ok((root, Some(branch)))
    }

    /// `silu(x G^T) * (x U^T)`.
    fn gated_unit(&mut self, mlp: &str, x: &str, output: &str) -> Result<String, BackendError> {
        let c = self.config;
        if self.source.operators == Operators::Karat && !c.mlp_bias && !self.source.adapter_inputs {
            self.own_swiglu(x, c.hidden_size, c.intermediate_size, mlp, output)?;
            return Ok(output.to_string());
        }
        let both = ["gate_proj", "up_proj"].map(|name| (format!("{mlp}.{name}"), c.intermediate_size, c.mlp_bias));
        let [gate, up] = self.linears(x, c.hidden_size, both)?;
        let path = format!("/{}", mlp.replace("model.layers", "model/layers").replace(".mlp", "/mlp"));
        let (sigmoid, silu) = (format!("{output}.sigmoid"), format!("{output}.silu"));
        self.node("Sigmoid", &format!("{path}/Sigmoid"), &[&gate], &[&sigmoid], &[]);
        self.node("Mul", &format!("{path}/SiLU"), &[&gate, &sigmoid], &[&silu], &[]);
        self.node("Mul", &format!("{path}/Mul"), &[&silu, &up], &[output], &[]);
        Ok(output.to_string())
    }

    /// Linear layers of one `x` `[.., input]`: the module's name, its outputs and whether it has a
    /// bias.
    fn linears<const N: usize>(
        &mut self,
        x: &str,
        input: usize,
        layers: [(String, usize, bool); N],
    ) -> Result<[String; N], BackendError> {
        let results = match self.source.operators {
            Operators::Karat => self.own_linears(x, input, &layers)?,
            Operators::Standard => {
                let each = layers.iter().map(|(module, output, bias)| self.linear(module, x, input, *output, *bias));
                each.collect::<Result<Vec<String>, BackendError>>()?
            }
        };
        Ok(results.try_into().expect("a result for every layer"))
    }

    /// Root-mean-square norm of every head of `x` `[batch, seq, heads * head_dim]`.
    fn head_norm(&mut self, module: &str, x: &str, flat_shape: &str) -> Result<String, BackendError> {
        let weight = self.vector(&format!("{module}.weight"), self.config.heads.dim)?;
        let (heads, normed, flat) = (format!("{module}.heads"), format!("{module}.normed"), format!("{module}.output"));
        let path = format!("/{}", module.replace('.', "/"));
        self.node("Reshape", &format!("{path}/Reshape"), &[x, "shape.heads"], &[&heads], &[]);
        self.norm(&path, &heads, &weight, &normed);
        self.node("Reshape", &format!("{path}/Reshape_flat"), &[&normed, flat_shape], &[&flat], &[]);
        Ok(flat)
    }

    /// A tensor that found no place means that the configuration and the weights are of different
    /// models.
    fn refuse_leftovers(&self) -> Result<(), BackendError> {
        let ignored =
            |name: &str| (self.config.tied && name == "lm_head.weight") || name.ends_with("rotary_emb.inv_freq");
        if let Some(name) = self.source.checkpoint.names().find(|name| !self.used.contains(*name) && !ignored(name)) {
            return Err(BackendError::failed(format!(
                "the checkpoint holds {name}, which has no place in a {:?} decoder of {} layers with this config.json",
                self.config.family, self.config.layers
            )));
        }
        let Some(adapter) = self.source.adapter else { return Ok(()) };
        match adapter.saved().find(|name| !self.used.contains(*name)) {
            Some(name) => Err(adapter.unknown_tensor(name)),
            None => Ok(()),
        }
    }
}

//! From ggml's names to Hugging Face's: which tensor is which, and `config.json`.
//!
//! Three families are known, those that the backends implement: `llama`, `qwen2`, `qwen3`. Every
//! tensor of the file must have its place and every place its tensor, each of the shape that the
//! metadata asks for; what is left over is refused by name, so that nothing a model needs is
//! dropped in silence.

use serde_json::{Map, Value as Json, json};

use super::gguf::{Gguf, GgufTensor, Value};
use crate::{Error, Result};

/// A tensor on its way into the checkpoint.
pub struct Placed<'a> {
    /// Its name there.
    pub name: String,
    /// Where it comes from.
    pub source: &'a GgufTensor,
    /// Number of heads whose rows must be put back in order, see [`unpermute`].
    pub heads: Option<usize>,
}

/// A decoder as the metadata describes it.
pub struct GgufDecoder<'a> {
    /// The checkpoint's tensors, in the model's order.
    pub tensors: Vec<Placed<'a>>,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Longest sequence.
    pub context: usize,
    config: Map<String, Json>,
}

impl<'a> GgufDecoder<'a> {
    /// Reads the metadata and finds a place for every tensor.
    ///
    /// # Errors
    /// An architecture or a variant that is not known, a missing key, a tensor that is missing,
    /// left over or misshapen.
    pub fn read(gguf: &'a Gguf) -> Result<Self> {
        let family = gguf.text("general.architecture")?.unwrap_or_default();
        if !["llama", "qwen2", "qwen3"].contains(&family) {
            return Err(gguf
                .error(format!("architecture {family:?} is not imported"))
                .help("llama, qwen2 and qwen3 are"));
        }
        let key = |name: &str| format!("{family}.{name}");
        refuse_variants(gguf, family)?;
        let hidden = gguf.positive(&key("embedding_length"))?;
        let layers = gguf.positive(&key("block_count"))?;
        let intermediate = gguf.positive(&key("feed_forward_length"))?;
        let heads = gguf.positive(&key("attention.head_count"))?;
        let kv_heads = gguf.count(&key("attention.head_count_kv"))?.unwrap_or(heads);
        let head_dim = gguf.count(&key("attention.key_length"))?.unwrap_or(hidden / heads);
        let even = head_dim > 0 && head_dim % 2 == 0 && kv_heads > 0 && heads % kv_heads == 0;
        if !even || gguf.count(&key("attention.value_length"))?.is_some_and(|d| d != head_dim) {
            return Err(gguf.error(format!(
                "{heads} attention heads, {kv_heads} key-value heads and head width {head_dim} do not fit together"
            )));
        }
        if let Some(rotated) = gguf.count(&key("rope.dimension_count"))?.filter(|&d| d != head_dim) {
            return Err(
                gguf.error(format!("only {rotated} of {head_dim} dimensions of a head are rotated, unsupported"))
            );
        }
        let context = gguf.positive(&key("context_length"))?;
        let eps = gguf.number(&key("attention.layer_norm_rms_epsilon"))?;
        let eps = eps
            .ok_or_else(|| gguf.error(format!("the metadata {family}.attention.layer_norm_rms_epsilon is missing")))?;
        let theta = gguf.number(&key("rope.freq_base"))?.unwrap_or(10_000.0);

        let mut places = Places { gguf, taken: vec![false; gguf.tensors().len()], placed: Vec::new() };
        let embedding = places.find("token_embd.weight").ok_or_else(|| places.missing("token_embd.weight"))?;
        let vocab = gguf.tensors()[embedding].rows();
        places.put("token_embd.weight", "model.embed_tokens.weight".into(), &[vocab, hidden], None)?;
        // Only llama's rotary layout differs between the two worlds: ggml wants the two halves of a
        // head interleaved.
        let permuted = |n: usize| (family == "llama").then_some(n);
        let (q, kv) = (heads * head_dim, kv_heads * head_dim);
        let qkv_bias = places.has("blk.0.attn_q.bias");
        let o_bias = places.has("blk.0.attn_output.bias");
        let mlp_bias = places.has("blk.0.ffn_gate.bias");
        for layer in 0..layers {
            let mut put = |from: &str, to: &str, shape: &[usize], heads: Option<usize>| {
                places.put(&format!("blk.{layer}.{from}"), format!("model.layers.{layer}.{to}"), shape, heads)
            };
            put("attn_norm.weight", "input_layernorm.weight", &[hidden], None)?;
            for (from, to, rows, columns, heads, bias) in [
                ("attn_q", "self_attn.q_proj", q, hidden, permuted(heads), qkv_bias),
                ("attn_k", "self_attn.k_proj", kv, hidden, permuted(kv_heads), qkv_bias),
                ("attn_v", "self_attn.v_proj", kv, hidden, None, qkv_bias),
                ("attn_output", "self_attn.o_proj", hidden, q, None, o_bias),
                ("ffn_gate", "mlp.gate_proj", intermediate, hidden, None, mlp_bias),
                ("ffn_up", "mlp.up_proj", intermediate, hidden, None, mlp_bias),
                ("ffn_down", "mlp.down_proj", hidden, intermediate, None, mlp_bias),
            ] {
                put(&format!("{from}.weight"), &format!("{to}.weight"), &[rows, columns], heads)?;
                if bias {
                    put(&format!("{from}.bias"), &format!("{to}.bias"), &[rows], heads)?;
                }
            }
            if family == "qwen3" {
                put("attn_q_norm.weight", "self_attn.q_norm.weight", &[head_dim], None)?;
                put("attn_k_norm.weight", "self_attn.k_norm.weight", &[head_dim], None)?;
            }
            put("ffn_norm.weight", "post_attention_layernorm.weight", &[hidden], None)?;
        }
        places.put("output_norm.weight", "model.norm.weight".into(), &[hidden], None)?;
        let tied = !places.has("output.weight");
        if !tied {
            places.put("output.weight", "lm_head.weight".into(), &[vocab, hidden], None)?;
        }
        let scaling = match places.find("rope_freqs.weight") {
            Some(index) => {
                places.taken[index] = true;
                rope_factors(gguf, &gguf.tensors()[index], head_dim, theta)?
            }
            None => linear_scaling(gguf, family)?,
        };
        places.nothing_left_over()?;
        let tensors = places.placed;

        // Qwen2 has its three biases by nature; the other two have all four or none.
        let biases_fit = match family {
            "qwen2" => qkv_bias && !o_bias && !mlp_bias,
            "qwen3" => qkv_bias == o_bias && !mlp_bias,
            _ => qkv_bias == o_bias,
        };
        if !biases_fit {
            return Err(gguf.error(format!("these biases are none that a {family} model has")));
        }
        let mut config = Map::new();
        let mut set = |name: &str, value: Json| config.insert(name.into(), value);
        let (class, model_type) = match family {
            "llama" => ("LlamaForCausalLM", "llama"),
            "qwen2" => ("Qwen2ForCausalLM", "qwen2"),
            _ => ("Qwen3ForCausalLM", "qwen3"),
        };
        set("architectures", json!([class]));
        if family != "qwen2" {
            set("attention_bias", json!(qkv_bias));
        }
        set("attention_dropout", json!(0.0));
        set("head_dim", json!(head_dim));
        set("hidden_act", json!("silu"));
        set("hidden_size", json!(hidden));
        set("initializer_range", json!(0.02));
        set("intermediate_size", json!(intermediate));
        set("max_position_embeddings", json!(context));
        if family == "llama" {
            set("mlp_bias", json!(mlp_bias));
        }
        set("model_type", json!(model_type));
        set("num_attention_heads", json!(heads));
        set("num_hidden_layers", json!(layers));
        set("num_key_value_heads", json!(kv_heads));
        set("rms_norm_eps", json!(eps));
        set("rope_scaling", scaling);
        set("rope_theta", json!(theta));
        set("tie_word_embeddings", json!(tied));
        set("vocab_size", json!(vocab));
        Ok(GgufDecoder { tensors, vocab, context, config })
    }

    /// `config.json`, its keys as transformers 4 wrote them (5 reads them too); `dtype` and
    /// `tokens` (names and ids of the special tokens) are added.
    pub fn config(&self, dtype: &str, tokens: impl IntoIterator<Item = (String, Json)>) -> Json {
        let mut config = self.config.clone();
        config.insert("torch_dtype".into(), dtype.into());
        config.extend(tokens);
        config.sort_keys();
        Json::Object(config)
    }
}

/// What the family's metadata can ask for that the plain decoder is not.
fn refuse_variants(gguf: &Gguf, family: &str) -> Result<()> {
    for name in ["expert_count", "expert_used_count", "attention.sliding_window", "pooling_type"] {
        if gguf.count(&format!("{family}.{name}"))?.is_some_and(|n| n > 0) {
            return Err(gguf.error(format!("the metadata {family}.{name} asks for a variant that is not imported")));
        }
    }
    for name in ["logit_scale", "embedding_scale", "residual_scale", "attention.scale"] {
        if gguf.number(&format!("{family}.{name}"))?.is_some_and(|x| x != 0.0 && x != 1.0) {
            return Err(gguf.error(format!("the metadata {family}.{name} asks for a variant that is not imported")));
        }
    }
    Ok(())
}

struct Places<'a> {
    gguf: &'a Gguf,
    taken: Vec<bool>,
    placed: Vec<Placed<'a>>,
}

impl Places<'_> {
    fn find(&self, name: &str) -> Option<usize> {
        self.gguf.tensors().iter().position(|t| t.name == name)
    }
    fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }
    fn missing(&self, name: &str) -> Error {
        self.gguf.error(format!("the tensor {name} is missing")).help("the file is broken, or no plain decoder")
    }

    fn put(&mut self, from: &str, to: String, shape: &[usize], heads: Option<usize>) -> Result<()> {
        let index = self.find(from).ok_or_else(|| self.missing(from))?;
        let source = &self.gguf.tensors()[index];
        if source.shape != shape {
            return Err(self
                .gguf
                .error(format!("the tensor {from} has shape {:?}, the metadata asks for {shape:?}", source.shape)));
        }
        self.taken[index] = true;
        self.placed.push(Placed { name: to, source, heads });
        Ok(())
    }

    fn nothing_left_over(&self) -> Result<()> {
        let left = self.gguf.tensors().iter().zip(&self.taken).find(|(_, taken)| !**taken);
        match left {
            Some((tensor, _)) => Err(self.gguf.error(format!("the tensor {} has no place in the model", tensor.name)).help(
                "the file holds more than the plain decoder its metadata describes; importing the rest would be another \
                 model",
            )),
            None => Ok(()),
        }
    }
}

/// `rope_scaling` where the metadata names one.
fn linear_scaling(gguf: &Gguf, family: &str) -> Result<Json> {
    let key = |name: &str| format!("{family}.rope.{name}");
    let old = gguf.number(&key("scale_linear"))?;
    let factor = gguf.number(&key("scaling.factor"))?.or(old).filter(|&f| f != 0.0).unwrap_or(1.0);
    let kind = gguf.text(&key("scaling.type"))?;
    match kind {
        Some("none") => Ok(Json::Null),
        None | Some("linear") if factor == 1.0 => Ok(Json::Null),
        None | Some("linear") => Ok(json!({ "rope_type": "linear", "factor": factor })),
        Some(other) => Err(gguf.error(format!("rope scaling {other:?} is not imported")).help("none and linear are")),
    }
}

/// `rope_scaling` of Llama 3, which GGUF stores only as the divisor of every frequency: the
/// published parameter sets are tried until one gives these numbers.
///
/// Formula: transformers `modeling_rope_utils._compute_llama3_parameters`.
fn rope_factors(gguf: &Gguf, tensor: &GgufTensor, head_dim: usize, theta: f64) -> Result<Json> {
    if tensor.shape != [head_dim / 2] {
        return Err(gguf.error(format!("rope_freqs.weight has shape {:?}, not [{}]", tensor.shape, head_dim / 2)));
    }
    let mut found = vec![0.0; head_dim / 2];
    gguf.rows(tensor, 0, &mut Vec::new(), &mut found)?;
    if found.iter().all(|&f| f == 1.0) {
        return Ok(Json::Null);
    }
    let (low, high, original) = (1.0, 4.0, 8192.0);
    for factor in [8.0, 32.0, 16.0, 4.0, 2.0] {
        let divisor = |j: usize| {
            let wavelength = std::f64::consts::TAU * theta.powf(2.0 * j as f64 / head_dim as f64);
            if wavelength < original / high {
                1.0
            } else if wavelength > original / low {
                factor
            } else {
                let smooth = (original / wavelength - low) / (high - low);
                1.0 / ((1.0 - smooth) / factor + smooth)
            }
        };
        if found.iter().enumerate().all(|(j, &f)| (f64::from(f) / divisor(j) - 1.0).abs() < 1e-4) {
            return Ok(json!({
                "rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
                "original_max_position_embeddings": 8192,
            }));
        }
    }
    Err(gguf
        .error("rope_freqs.weight holds frequencies of no rope scaling that is known")
        .help("Llama 3.1 to 3.3 are known; import the model from its Hugging Face folder instead"))
}

/// Puts the rows of one head back in order: ggml interleaves the two halves that Hugging Face's
/// rotation pairs, so row `s * d/2 + j` of a head lies at `2j + s`. `rows` is `[d, columns]`, the
/// result too.
pub fn unpermute(rows: &[f32], columns: usize, out: &mut [f32]) {
    let half = rows.len() / columns / 2;
    for (to, out) in out.chunks_exact_mut(columns).enumerate() {
        let from = 2 * (to % half) + to / half;
        out.copy_from_slice(&rows[from * columns..(from + 1) * columns]);
    }
}

/// The ids that the metadata gives special tokens.
pub fn token_id(gguf: &Gguf, name: &str) -> Result<Option<usize>> {
    // 2^32 - 1 says that there is none.
    let key = format!("tokenizer.ggml.{name}");
    match gguf.get(&key) {
        Some(Value::Integer(-1 | 0xffff_ffff)) => Ok(None),
        _ => gguf.count(&key),
    }
}

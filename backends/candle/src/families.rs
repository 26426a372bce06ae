//! Families beyond those that are trained: scored and generated with, from Hugging Face folders.
//!
//! One decoder computes them all, by the description that [`karat_model::Architecture`] makes of a
//! `config.json`; a file there is a family here. The models of candle-transformers 0.11.1 are not
//! used. They give the logits of the last position alone, so that scores would take a pass a token,
//! and most compute another model than transformers does, without a word:
//!
//! | family | what its model there does not do as transformers does |
//! | --- | --- |
//! | Mistral | a window of one token more, none while generating; a tied head |
//! | Gemma 2 | `query_pre_attn_scalar`; windows in every layer instead of every other, none while generating |
//! | Gemma 3 | `query_pre_attn_scalar`, `rope_scaling`, `layer_types`; a window of one token more |
//! | Phi-3 | `sliding_window`; LongRoPE multiplies instead of dividing, mixes both lists in a row, has no attention factor |
//! | Qwen2-MoE | `use_sliding_window` (always on), `mlp_only_layers`, `qkv_bias`, a tied head |
//! | Qwen3-MoE | `sliding_window`, `mlp_only_layers` |
//! | GLM-4 | `rope_scaling` |
//! | Granite | all four multipliers, `attention_bias`, a tied head |
//! | OLMo 2 | `rope_scaling`, `head_dim` |
//! | GGUF Qwen3 | rotates by angles in f16 |
//! | GGUF Llama | no row over 4096 tokens; Llama 3's stretched frequencies |

mod decoder;
mod experts;
pub mod gguf;

use candle_core::{Device, Tensor};
use karat_backend::{BackendError, OpenConfig, Weights};
use karat_model::peft::Adapter;
use karat_model::publish::{Put, publish_model};
use karat_model::{Architecture, Family};

pub use decoder::{Decoder, Stored};

use crate::weights::{self, Spec, values};
use crate::{Result, failed};

/// The error of what is only done for the families that are trained.
pub fn not_trained(model_type: &str, what: &str) -> BackendError {
    let trained = Family::NAMES.join(", ");
    BackendError::unsupported(format!(
        "{what} a {model_type} is not implemented: {trained} are trained, here and by the backend native; a {model_type} is \
         scored, generated with, and merged with its adapters"
    ))
}

/// A model of one of these families.
pub struct Opened {
    /// The decoder.
    pub decoder: Decoder,
    /// Numbers in its tensors.
    pub parameters: u64,
    /// The adapter that is in them.
    pub adapter: Option<Adapter>,
    /// How the weights lie in memory, where that is to be said.
    pub weights: Option<String>,
}

/// Opens the model that `architecture` describes.
///
/// # Errors
/// For missing, misshapen or unexpected tensors, by name; as [`Adapter::open`]; weights that are to
/// be drawn.
pub fn open(mut architecture: Architecture, opened: &OpenConfig, device: &Device) -> Result<Opened> {
    if opened.weights == Weights::Random {
        return Err(not_trained(&architecture.model_type, "drawing the weights of"));
    }
    let adapter = opened.adapter.as_ref().map(|folder| Adapter::open(folder, &architecture.linears())).transpose()?;
    let (tensors, rounding) =
        weights::load(Spec::Family(&mut architecture), &opened.model, adapter.as_ref(), device, Tensor::from_vec)?;
    if let Some(adapter) = &adapter {
        architecture.warnings.extend_from_slice(adapter.warnings());
    }
    if let Some(folder) = &opened.merge_into {
        architecture.warnings.extend(rounding.warning());
        let shapes = tensors.iter().map(|(name, tensor)| (name.clone(), tensor.dims().to_vec())).collect();
        let read = |name: &str, put: &mut Put<'_>| put(&values(&tensors[name])?);
        publish_model(&architecture.raw, &shapes, &read, &opened.model, folder)?;
    }
    let parameters = tensors.values().map(|tensor| tensor.elem_count() as u64).sum();
    let tensors = tensors.into_iter().map(|(name, tensor)| (name, Stored::Plain(tensor))).collect();
    let decoder = Decoder::new(architecture, tensors, device).map_err(failed)?;
    Ok(Opened { decoder, parameters, adapter, weights: None })
}

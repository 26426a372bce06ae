//! The tensors that a configuration asks for, held against the files before anything is allocated
//! for them.

use std::collections::BTreeSet;

use crate::checkpoint::CheckpointLayout;
use karat_backend::BackendError;

use crate::config::ModelConfig;
use crate::peft::Linears;
use crate::{EMBEDDING, HEAD};

impl ModelConfig {
    /// Names and shapes of the tensors of layer `i`, in the order in which they are computed with.
    fn layer_tensors(&self, i: usize) -> Vec<(String, Vec<usize>)> {
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        let (q, k) = (self.heads.q_width(), self.heads.k_width());
        let mut all = Vec::new();
        let mut put = |name: &str, shape: &[usize]| all.push((format!("model.layers.{i}.{name}"), shape.to_vec()));
        put("input_layernorm.weight", &[hidden]);
        put("post_attention_layernorm.weight", &[hidden]);
        if self.qk_norm {
            put("self_attn.q_norm.weight", &[self.heads.dim]);
            put("self_attn.k_norm.weight", &[self.heads.dim]);
        }
        for (name, rows, columns, bias) in [
            ("self_attn.q_proj", q, hidden, self.qkv_bias),
            ("self_attn.k_proj", k, hidden, self.qkv_bias),
            ("self_attn.v_proj", k, hidden, self.qkv_bias),
            ("self_attn.o_proj", hidden, q, self.o_bias),
            ("mlp.gate_proj", inner, hidden, self.mlp_bias),
            ("mlp.up_proj", inner, hidden, self.mlp_bias),
            ("mlp.down_proj", hidden, inner, self.mlp_bias),
        ] {
            put(&format!("{name}.weight"), &[rows, columns]);
            if bias {
                put(&format!("{name}.bias"), &[rows]);
            }
        }
        all
    }

    /// Names and shapes of all tensors; a tied head has none.
    pub fn tensors(&self) -> impl Iterator<Item = (String, Vec<usize>)> + '_ {
        let layers = (0..self.layers).flat_map(|i| self.layer_tensors(i));
        around([self.vocab_size, self.hidden_size], self.tied, layers)
    }

    /// The linear layers of attention and feed-forward, which can carry a LoRA.
    pub fn linears(&self) -> Linears {
        let layers = (0..self.layers).flat_map(|i| self.layer_tensors(i));
        let linears = layers.filter_map(|(name, shape)| match (name.strip_suffix(".weight"), shape.as_slice()) {
            (Some(path), &[output, input]) => Some((path.to_owned(), [input, output])),
            _ => None,
        });
        linears.collect()
    }

    /// Numbers in all tensors.
    pub fn parameters(&self) -> u128 {
        let of = |tensors: &[(String, Vec<usize>)]| -> u128 {
            tensors.iter().map(|(_, shape)| shape.iter().map(|n| *n as u128).product::<u128>()).sum()
        };
        let table = self.vocab_size as u128 * self.hidden_size as u128;
        let tables = if self.tied { table } else { 2 * table };
        tables + self.layers as u128 * of(&self.layer_tensors(0)) + self.hidden_size as u128
    }

    /// Holds the sizes against the tensors of `files`. Takes no memory and ends at the first tensor
    /// that is not there, however many are asked for.
    ///
    /// # Errors
    /// A tensor that is missing, of another shape or of a type that is not computed with, by its
    /// name.
    pub fn check_tensors(&self, files: &CheckpointLayout) -> Result<(), BackendError> {
        check_tensors(files, self.tensors(), self.layers)
    }

    /// Refuses tensors of `files` that the model has no place for; [`ModelConfig::settle_head`] has
    /// been asked.
    ///
    /// # Errors
    /// Names the tensor.
    pub fn check_strays(&self, files: &CheckpointLayout) -> Result<(), BackendError> {
        let known: BTreeSet<String> = self.tensors().map(|(name, _)| name).collect();
        check_strays(files, |name| known.contains(name))
    }

    /// Holds the sizes of a model that is to be drawn in f32 against the memory that is left, if
    /// that is known.
    ///
    /// # Errors
    /// If it cannot fit.
    pub fn check_memory(&self, available: Option<u64>) -> Result<(), BackendError> {
        let bytes = 4 * self.parameters();
        // Where the system does not tell, more than any machine has.
        let room = available.map_or(1 << 46, u128::from);
        if bytes <= room {
            return Ok(());
        }
        let gigabytes = |bytes: u128| bytes as f64 / 1e9;
        Err(BackendError::failed(format!(
            "config.json asks for {} parameters, {:.1} GB in f32, and there are {:.1} GB of memory left: lower \
             \"num_hidden_layers\" ({}), \"hidden_size\" ({}), \"intermediate_size\" ({}) or \"vocab_size\" ({})",
            self.parameters(),
            gigabytes(bytes),
            gigabytes(room),
            self.layers,
            self.hidden_size,
            self.intermediate_size,
            self.vocab_size
        )))
    }
}

/// Names and shapes of a model's tensors: those of its `layers` between an embedding of shape
/// `table` and the final norm; a head that is not tied has the embedding's shape.
pub(crate) fn around(
    table: [usize; 2],
    tied: bool,
    layers: impl Iterator<Item = (String, Vec<usize>)>,
) -> impl Iterator<Item = (String, Vec<usize>)> {
    let head = (!tied).then(|| (HEAD.to_owned(), table.to_vec()));
    [(EMBEDDING.to_owned(), table.to_vec())]
        .into_iter()
        .chain(layers)
        .chain([("model.norm.weight".to_owned(), vec![table[1]])])
        .chain(head)
}

/// Holds `tensors`, those of a model of so many `layers`, against `files`. Takes no memory and ends
/// at the first that is not there, however many are asked for.
///
/// # Errors
/// A tensor that is missing, of another shape or of a type that is not computed with, by its name.
pub(crate) fn check_tensors(
    files: &CheckpointLayout,
    mut tensors: impl Iterator<Item = (String, Vec<usize>)>,
    layers: usize,
) -> Result<(), BackendError> {
    tensors.try_for_each(|(name, shape)| match files.find(&name, &shape) {
        Ok(_) => Ok(()),
        Err(mut error) => {
            if files.shape(&name).is_none() && name.starts_with("model.layers.") {
                error.message.push_str(&format!("; config.json says \"num_hidden_layers\" is {layers}"));
            }
            Err(error)
        }
    })
}

/// Refuses tensors in `files` that are not `known` to the model. A head beside the embedding that
/// it is tied to, and frequencies that are computed anyway, do no harm.
///
/// # Errors
/// Names the tensor.
pub fn check_strays(files: &CheckpointLayout, known: impl Fn(&str) -> bool) -> Result<(), BackendError> {
    let harmless = |name: &str| name.ends_with("rotary_emb.inv_freq") || name == HEAD;
    match files.names().find(|name| !harmless(name) && !known(name)) {
        Some(name) => Err(BackendError::failed(format!(
            "{}: tensor {name} has no place in the model that config.json describes",
            files.place().display()
        ))),
        None => Ok(()),
    }
}

//! The decoder: embedding, layers, final norm and output projection; Qwen3, Qwen2 and Llama by
//! configuration.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use karat_model::{EMBEDDING, HEAD, Rounding};

use crate::config::ModelConfig;
use crate::cpu::Cpu;
use crate::device::{Device, Precision};
use crate::error::Result;
use crate::files::TensorFiles;
use crate::layer::{Layer, Norm, Pass, Saved};
use crate::linear::{Dropout, Gradients, Linear};
use crate::ops::cross_entropy::Target;
use crate::tensor::{Angles, Indices, Starts, Tensor, tensor};
use crate::weight::Weight;

/// Rows of token ids packed back to back; padding does not exist.
#[derive(Debug, Default)]
pub struct Batch {
    /// All ids.
    pub ids: Indices,
    /// Where each row starts; one more entry than rows.
    pub starts: Starts,
    /// Position of each id in its row.
    pub positions: Indices,
}

impl Batch {
    /// Packs `rows`.
    pub fn new<'a>(rows: impl IntoIterator<Item = &'a [u32]>) -> Self {
        let (mut ids, mut starts, mut positions) = (Vec::new(), vec![0], Vec::new());
        for row in rows {
            ids.extend_from_slice(row);
            positions.extend(0..row.len() as u32);
            starts.push(ids.len());
        }
        Batch { ids: ids.into(), starts: starts.into(), positions: positions.into() }
    }
    fn longest(&self) -> usize {
        self.starts.windows(2).map(|w| w[1] - w[0]).max().unwrap_or(0)
    }
}

/// Targets of a batch: `ids[i]` comes after the token `batch.ids[at[i]]`.
#[derive(Clone, Copy)]
pub struct Targets<'a> {
    /// Tokens of the batch, ascending.
    pub at: &'a Indices,
    /// The token that should follow each.
    pub ids: &'a Indices,
}

/// A decoder with its weights.
pub struct Decoder {
    /// Its shape and constants.
    pub config: ModelConfig,
    /// `[vocab, hidden]`.
    pub embedding: Weight,
    /// The layers.
    pub layers: Vec<Layer>,
    /// After the last layer.
    pub norm: Norm,
    /// `[vocab, hidden]`; the embedding itself where it is tied.
    pub head: Weight,
    /// Names of the tensors that the adapter holds whole.
    whole: BTreeSet<String>,
    table: Mutex<Arc<Angles>>,
    /// Where it lies and is computed.
    device: Arc<dyn Device>,
}

impl Decoder {
    /// Loads the weights of a model folder.
    ///
    /// # Errors
    /// For missing, misshapen or unexpected tensors, by name, before anything is allocated for
    /// them.
    pub fn load(mut config: ModelConfig, folder: &std::path::Path) -> Result<Self> {
        let files = TensorFiles::of_folder(folder)?;
        config.check_tensors(files.layout())?;
        config.settle_head(files.layout())?;
        config.check_strays(files.layout())?;
        Self::build(config, |name, shape| files.weight(name, shape))
    }

    /// Draws the weights: `N(0, initializer_range)` for matrices, ones for norms, zeros for biases.
    /// Each tensor is a function of the seed and its name.
    ///
    /// # Errors
    /// If the machine has no room.
    pub fn random(config: ModelConfig, seed: u64) -> Result<Self> {
        config.check_memory(karat_system::memory::available())?;
        let draws = config.clone();
        Self::build(config, |name, shape| tensor(draws.draw(seed, name, shape), shape).map(Weight::Owned))
    }

    fn build(config: ModelConfig, mut get: impl FnMut(&str, &[usize]) -> Result<Weight>) -> Result<Self> {
        let c = &config;
        let (hidden, inner) = (c.hidden_size, c.intermediate_size);
        let (q_width, k_width) = (c.heads.queries * c.heads.dim, c.heads.keys * c.heads.dim);
        let (eps, device) = (c.rms_norm_eps as f32, Cpu::device(Precision::F32));
        let embedding = get(EMBEDDING, &[c.vocab_size, hidden])?;
        let mut layers = Vec::with_capacity(c.layers);
        for i in 0..c.layers {
            let mut norm = |name: &str, width: usize| -> Result<Norm> {
                let name = format!("model.layers.{i}.{name}.weight");
                let weight = get(&name, &[width])?.own()?;
                Ok(Norm::new(name, weight, eps))
            };
            let input_norm = norm("input_layernorm", hidden)?;
            let post_norm = norm("post_attention_layernorm", hidden)?;
            let qk_norm = match c.qk_norm {
                true => Some((norm("self_attn.q_norm", c.heads.dim)?, norm("self_attn.k_norm", c.heads.dim)?)),
                false => None,
            };
            let mut linear = |name: &str, n_out: usize, n_in: usize, bias: bool| -> Result<Linear> {
                let name = format!("model.layers.{i}.{name}");
                let weight = get(&format!("{name}.weight"), &[n_out, n_in])?;
                let bias = if bias { Some(get(&format!("{name}.bias"), &[n_out])?.own()?) } else { None };
                Ok(Linear::new(name, weight, bias))
            };
            layers.push(Layer {
                device: device.clone(),
                heads: c.heads,
                input_norm,
                q: linear("self_attn.q_proj", q_width, hidden, c.qkv_bias)?,
                k: linear("self_attn.k_proj", k_width, hidden, c.qkv_bias)?,
                v: linear("self_attn.v_proj", k_width, hidden, c.qkv_bias)?,
                o: linear("self_attn.o_proj", hidden, q_width, c.o_bias)?,
                qk_norm,
                post_norm,
                gate: linear("mlp.gate_proj", inner, hidden, c.mlp_bias)?,
                up: linear("mlp.up_proj", inner, hidden, c.mlp_bias)?,
                down: linear("mlp.down_proj", hidden, inner, c.mlp_bias)?,
            });
        }
        let norm = Norm::new("model.norm.weight".into(), get("model.norm.weight", &[hidden])?.own()?, eps);
        let head = if c.tied { embedding.clone() } else { get(HEAD, &[c.vocab_size, hidden])? };
        let whole = BTreeSet::new();
        Ok(Decoder { embedding, layers, norm, head, whole, table: Mutex::default(), config, device })
    }

    /// The device that it lies on and computes it; a fresh decoder is on the CPU, with GEMMs in
    /// f32.
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    /// Name of the output projection: the embedding's where it is tied.
    pub fn head_name(&self) -> &'static str {
        self.config.head_name()
    }

    /// All tensors of the model without its adapter, by their Hugging Face names.
    pub fn tensors(&self) -> BTreeMap<String, Weight> {
        let mut all = BTreeMap::from([
            (EMBEDDING.to_owned(), self.embedding.clone()),
            (self.norm.name.clone(), self.norm.weight.clone().into()),
        ]);
        if !self.config.tied {
            all.insert(HEAD.to_owned(), self.head.clone());
        }
        for layer in &self.layers {
            all.extend(layer.norms().map(|n| (n.name.clone(), n.weight.clone().into())));
            for linear in layer.linears() {
                all.insert(format!("{}.weight", linear.name), linear.weight.clone());
                if let Some(bias) = &linear.bias {
                    all.insert(format!("{}.bias", linear.name), bias.clone().into());
                }
            }
        }
        all
    }

    /// Brings every tensor to `device` that is not there yet, which computes from now on: the
    /// file's numbers in the element type of its GEMMs, what is trained in f32.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn place(&mut self, device: &Arc<dyn Device>) -> Result<()> {
        self.embedding.place(&**device)?;
        match self.config.tied {
            true => self.head = self.embedding.clone(),
            false => self.head.place(&**device)?,
        }
        self.norm.place(device)?;
        self.layers.iter_mut().try_for_each(|layer| layer.place(device))?;
        self.device = device.clone();
        Ok(())
    }

    /// Makes every tensor trainable and returns them all, by their Hugging Face names; those that
    /// lay in a file are copied out of it, one after the other.
    ///
    /// # Errors
    /// If there is no room.
    pub fn own(&mut self) -> Result<BTreeMap<String, Tensor>> {
        self.embedding.own()?;
        match self.config.tied {
            true => self.head = self.embedding.clone(),
            false => drop(self.head.own()?),
        }
        for linear in self.layers.iter_mut().flat_map(|layer| layer.linears_mut()) {
            linear.weight.own()?;
        }
        self.tensors().into_iter().map(|(name, mut weight)| Ok((name, weight.own()?))).collect()
    }

    /// Tensors that an adapter trains and holds: low-rank matrices and magnitudes by their PEFT
    /// names, modules trained whole by their Hugging Face names; empty without an adapter.
    pub fn adapter_tensors(&self) -> BTreeMap<String, Tensor> {
        let loras = self.layers.iter().flat_map(|layer| layer.linears()).filter_map(|linear| linear.lora.as_ref());
        let mut all: BTreeMap<String, Tensor> =
            loras.flat_map(|l| l.tensors().map(|(name, t)| (name.clone(), t.clone())).collect::<Vec<_>>()).collect();
        if !self.whole.is_empty() {
            all.extend(self.tensors().into_iter().filter_map(|(name, weight)| match weight {
                Weight::Owned(t) if self.whole.contains(&name) => Some((name, t)),
                _ => None,
            }));
        }
        all
    }

    /// Names the tensors that the adapter holds whole and makes them trainable.
    ///
    /// # Errors
    /// If there is no room.
    pub fn train_whole(&mut self, names: BTreeSet<String>) -> Result<()> {
        if names.contains(EMBEDDING) {
            self.embedding.own()?;
        }
        if names.contains(HEAD) {
            self.head.own()?;
        }
        for linear in self.layers.iter_mut().flat_map(|layer| layer.linears_mut()) {
            if names.contains(&format!("{}.weight", linear.name)) {
                linear.weight.own()?;
            }
        }
        self.whole = names;
        Ok(())
    }

    /// Makes DoRA's norms anew, after an adapter's tensors have changed.
    ///
    /// # Errors
    /// If the device fails.
    pub fn renorm(&self) -> Result<()> {
        self.layers.iter().flat_map(|layer| layer.linears()).try_for_each(|linear| linear.renorm())
    }

    /// Puts the adapter into the weights, in f32, and takes it off; returns what of it would be
    /// lost in the type that they are stored in. A head tied to the embedding is never touched: no
    /// adapter can be on it.
    ///
    /// # Errors
    /// If the device fails.
    pub fn merge(&mut self) -> Result<Rounding> {
        self.whole.clear();
        let mut rounding = Rounding::default();
        let mut linears = self.layers.iter_mut().flat_map(|layer| layer.linears_mut());
        linears.try_for_each(|linear| linear.merge(&mut rounding))?;
        Ok(rounding)
    }

    /// Angles for rows of up to `positions`.
    pub fn table(&self, positions: usize) -> Arc<Angles> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if table.positions() < positions {
            let size = positions.next_power_of_two().min(self.config.max_positions.max(positions));
            *table = Arc::new(Angles::new(&self.config.rope, self.config.heads.dim, size));
        }
        table.clone()
    }

    /// Output of the last layer `[tokens, hidden]`, before the final norm.
    ///
    /// # Errors
    /// If the device fails.
    pub fn hidden(&self, batch: &Batch) -> Result<Tensor> {
        let table = self.table(batch.longest());
        let pass = Pass { starts: &batch.starts, positions: &batch.positions, table: &table, dropout: None };
        let mut x = self.device.embed(&self.embedding, &batch.ids)?;
        for layer in &self.layers {
            x = layer.infer(&x, pass)?;
        }
        Ok(x)
    }

    /// Logits `[tokens, vocab]` after the last layer's output `x` `[tokens, hidden]`.
    ///
    /// # Errors
    /// If the device fails.
    pub fn logits(&self, x: &Tensor) -> Result<Tensor> {
        self.device.logits(&self.norm.forward(x)?.0, &self.head)
    }

    /// Log-probability of `targets[i]` after the token `batch.ids[at[i]]`.
    ///
    /// # Errors
    /// If the device fails.
    pub fn score(&self, batch: &Batch, at: &Indices, targets: &Indices) -> Result<Vec<Target>> {
        if at.is_empty() {
            return Ok(Vec::new());
        }
        let chosen = self.device.gather(&self.hidden(batch)?, at)?;
        self.device.score(&self.norm.forward(&chosen)?.0, targets, &self.head)
    }

    /// Forward and backward of the loss `scale * sum of -log p` of the targets: adds to `gradients`
    /// and returns the log-probabilities, in f32. With `recompute`, only the input of each layer is
    /// kept and the rest made again in the backward pass; the numbers are the same to the bit.
    ///
    /// # Errors
    /// If the device fails.
    pub fn train(
        &self,
        batch: &Batch,
        Targets { at, ids }: Targets<'_>,
        scale: f32,
        dropout: Option<Dropout>,
        recompute: bool,
        gradients: &Gradients,
    ) -> Result<Tensor> {
        if at.is_empty() {
            return tensor(Vec::new(), &[0]);
        }
        let table = self.table(batch.longest());
        let pass = Pass { starts: &batch.starts, positions: &batch.positions, table: &table, dropout };
        let mut x = self.device.embed(&self.embedding, &batch.ids)?;
        let mut kept: Vec<(Tensor, Option<Saved>)> = Vec::with_capacity(self.layers.len());
        for layer in &self.layers {
            let (y, saved) = layer.forward(&x, pass)?;
            let input = std::mem::replace(&mut x, y);
            kept.push(match recompute {
                true => (input, None),
                false => (self.device.operand(&input)?, Some(saved.drop_recomputable())),
            });
        }
        let (logprobs, mut dx) = self.head_loss(x, at, ids, scale, gradients)?;
        let embedding_gradient = gradients.of(EMBEDDING);
        for (i, layer) in self.layers.iter().enumerate().rev() {
            let Some((x, saved)) = kept.pop() else { break };
            let (x, saved) = match saved {
                Some(saved) => (x, saved),
                None => {
                    let (saved, rounded) = (layer.recompute(&x, pass)?, self.device.operand(&x)?);
                    drop(x);
                    (rounded, saved)
                }
            };
            let want = i > 0 || embedding_gradient.is_some();
            match layer.backward(&x, saved, dx, want, pass, gradients)? {
                Some(next) => dx = next,
                None => return Ok(logprobs),
            }
        }
        if let Some(embedding_gradient) = embedding_gradient {
            self.device.embedding_gradient(embedding_gradient, &batch.ids, dx, self.config.pad)?;
        }
        Ok(logprobs)
    }

    /// Forward and backward of what comes after the layers, for their output `x`: log-probabilities
    /// and the gradient of `x`.
    fn head_loss(
        &self,
        x: Tensor,
        at: &Indices,
        targets: &Indices,
        scale: f32,
        gradients: &Gradients,
    ) -> Result<(Tensor, Tensor)> {
        let chosen = self.device.gather(&x, at)?;
        let (normed, norm_scale) = self.norm.forward(&chosen)?;
        let head_gradient = gradients.of(self.head_name());
        let (logprobs, dnormed) = self.device.head_loss(&normed, targets, &self.head, scale, head_gradient)?;
        let dchosen = self.norm.backward(None, &chosen, &norm_scale, &dnormed, gradients)?;
        let dx = self.device.zero_activation(&x)?;
        self.device.scatter_add(&dx, at, &dchosen)?;
        Ok((logprobs, dx))
    }
}

//! A LoRA adapter in the PEFT layout: read strictly, merged into the weights in f32, or handed over as factors.
//!
//! `W' = W + s B A`; with DoRA `W' = m (W + s B A) / ||W + s B A||`, the norm of each output's row (arXiv 2402.09353).
//! Modules that PEFT saved whole (`modules_to_save`) replace those of the base.

pub mod merge;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use karat_backend::lora::{Matcher, Modules, Shape};
use karat_backend::peft::read_adapter_config_saying;
use karat_backend::{BackendError, LoraConfig};
use karat_model::adapter_tensors;
use rayon::prelude::*;

use crate::checkpoint::Checkpoint;

/// What PEFT puts before the names of the base model's modules.
const PREFIX: &str = "base_model.model.";

/// An opened adapter.
#[derive(Debug)]
pub struct Adapter {
    folder: PathBuf,
    config: LoraConfig,
    weights: Checkpoint,
    /// Module path (`model.layers.0.self_attn.q_proj`) -> what is stored for it.
    modules: BTreeMap<String, Stored>,
    /// Tensor of the base (`lm_head.weight`) -> the tensor here that replaces it.
    saved: BTreeMap<String, String>,
    parameters: u64,
    /// What its user should know of how it was read.
    warnings: Vec<String>,
}

#[derive(Debug)]
struct Stored {
    rank: usize,
    /// The factor on `B A`.
    scale: f32,
    input: usize,
    output: usize,
    /// The tensor with the magnitudes of DoRA.
    magnitude: Option<String>,
}

/// The two factors of a module as a runtime multiplies them: `x A^T (s B^T)`.
pub struct Factors {
    /// The rank.
    pub rank: usize,
    /// `[input, rank]`.
    pub a: Vec<f32>,
    /// `[rank, output]`, scaled.
    pub b: Vec<f32>,
}

impl Adapter {
    /// Reads `adapter_config.json` and the header of `adapter_model.safetensors`.
    ///
    /// # Errors
    /// Unsupported for a variant of LoRA that is not implemented, failed for broken or missing files.
    pub fn open(folder: &Path) -> Result<Self, BackendError> {
        let (config, of_config) = read_adapter_config_saying(folder)?;
        let (weights, of_names) = adapter_tensors(folder)?;
        let weights = Checkpoint::of(weights);
        let warnings = of_config.into_iter().chain(of_names).collect();
        let (modules, saved) = (BTreeMap::new(), BTreeMap::new());
        let folder = folder.to_path_buf();
        let mut adapter = Adapter { folder, config, weights, modules, saved, parameters: 0, warnings };
        // A copy, for the rules borrow it.
        let config = adapter.config.clone();
        let matcher = config.matcher()?;
        adapter.collect(&matcher)?;
        let stored = adapter.modules.keys().map(String::as_str);
        match (&config.target_modules, matcher.without_module(stored)) {
            (Modules::Names(_), Some(target)) => {
                Err(adapter.broken(&format!("target_modules names {target}, but no tensor belongs to it")))
            }
            _ => Ok(adapter),
        }
    }

    fn broken(&self, what: &str) -> BackendError {
        BackendError::failed(format!("the adapter {}: {what}", self.folder.display()))
    }

    fn collect(&mut self, matcher: &Matcher<'_>) -> Result<(), BackendError> {
        let names: Vec<String> = self.weights.names().map(String::from).collect();
        let mut magnitudes = BTreeMap::new();
        for name in &names {
            let shape = self.weights.shape(name).unwrap_or_default().to_vec();
            let rest = name.strip_prefix(PREFIX).unwrap_or(name);
            let end = |suffix: &str| rest.strip_suffix(suffix);
            let factor = end(".lora_A.weight").or_else(|| end(".lora_B.weight"));
            let magnitude = end(".lora_magnitude_vector").or_else(|| end(".lora_magnitude_vector.weight"));
            if let Some(module) = factor {
                self.collect_module(module, matcher)?;
            } else if let (Some(module), true) = (magnitude, self.config.use_dora) {
                magnitudes.insert(module.to_string(), name.clone());
            } else if let Some(tensor) = self.saved_tensor(rest) {
                self.saved.insert(tensor, name.clone());
            } else {
                return Err(BackendError::unsupported(format!(
                    "the adapter {}: the tensor {name} is no LoRA matrix of a linear layer; such adapters are not \
                     implemented",
                    self.folder.display()
                )));
            }
            self.parameters += shape.iter().product::<usize>() as u64;
        }
        if self.config.use_dora {
            if let Some(module) = self.modules.keys().find(|module| !magnitudes.contains_key(*module)) {
                return Err(self.broken(&format!("use_dora is set, but {module} has no lora_magnitude_vector")));
            }
            if let Some(module) = magnitudes.keys().find(|module| !self.modules.contains_key(*module)) {
                return Err(self.broken(&format!("{module} has a magnitude but no lora_A and lora_B")));
            }
        }
        for (module, name) in magnitudes {
            self.modules.entry(module).and_modify(|stored| stored.magnitude = Some(name));
        }
        for module in &self.config.modules_to_save {
            let part =
                |name: &str| name.split('.').any(|part| part == module) || name.starts_with(&format!("{module}."));
            if !self.saved.keys().any(|name| part(name)) {
                return Err(self.broken(&format!("modules_to_save names {module}, but no tensor belongs to it")));
            }
        }
        match self.modules.is_empty() && self.saved.is_empty() {
            true => Err(self.broken("it holds no tensors")),
            false => Ok(()),
        }
    }

    /// The tensor of the base that `rest` replaces, if it belongs to one of `modules_to_save`.
    fn saved_tensor(&self, rest: &str) -> Option<String> {
        // PEFT strips `modules_to_save.default` when it saves; older versions left a part of it.
        let name = rest.replace(".modules_to_save.default", "").replace(".modules_to_save", "");
        let module = name.rsplit_once('.').map_or("", |(module, _)| module);
        let listed = |m: &String| module == m || module.ends_with(&format!(".{m}"));
        self.config.modules_to_save.iter().any(listed).then_some(name)
    }

    fn collect_module(&mut self, module: &str, matcher: &Matcher<'_>) -> Result<(), BackendError> {
        let side = |x: &str| self.weights.shape(&format!("{PREFIX}{module}.lora_{x}.weight"));
        let (Some(&[rank, input]), Some(&[output, rank_b])) = (side("A"), side("B")) else {
            return Err(self.broken(&format!("{module} needs both lora_A and lora_B, each with two dimensions")));
        };
        if rank != rank_b || rank == 0 {
            return Err(self.broken(&format!("{module}: lora_A has rank {rank}, lora_B {rank_b}")));
        }
        let Some(Shape { r, scale }) = matcher.adapter(module)? else {
            return Err(self.broken(&format!("it holds a LoRA on {module}, which adapter_config.json does not target")));
        };
        if rank != r {
            return Err(self.broken(&format!("{module} has rank {rank}, adapter_config.json says {r}")));
        }
        let stored = Stored { rank, scale: scale as f32, input, output, magnitude: None };
        self.modules.insert(module.to_string(), stored);
        Ok(())
    }

    /// What its user should know of how it was read: names that were mapped, keys that were passed over.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Numbers in all tensors of the adapter.
    pub fn parameters(&self) -> u64 {
        self.parameters
    }

    /// Module paths that carry a LoRA.
    pub fn modules(&self) -> BTreeSet<&str> {
        self.modules.keys().map(String::as_str).collect()
    }

    /// Tensors of the base that this adapter brings whole.
    pub fn saved(&self) -> impl Iterator<Item = &str> {
        self.saved.keys().map(String::as_str)
    }

    /// Rows `rows` of a tensor that replaces `tensor` of the base, or `None` if it does not.
    ///
    /// # Errors
    /// If the shapes do not fit: the adapter belongs to another base model.
    pub fn saved_rows(
        &self,
        tensor: &str,
        shape: &[usize],
        rows: std::ops::Range<usize>,
    ) -> Option<Result<Vec<f32>, BackendError>> {
        let name = self.saved.get(tensor)?;
        Some(self.weights.read_rows(name, shape, rows).map_err(|e| self.other_base(&e)))
    }

    /// The shape of the tensor that replaces `tensor` of the base, if there is one.
    pub fn saved_shape(&self, tensor: &str) -> Option<&[usize]> {
        self.weights.shape(self.saved.get(tensor)?)
    }

    fn other_base(&self, error: &BackendError) -> BackendError {
        self.broken("it does not fit this model; was it trained on another base?").because(error)
    }

    /// `A` `[rank, input]` and `B` `[output, rank]` of `module`.
    fn read(&self, module: &str, stored: &Stored, output: usize, input: usize) -> Result<[Vec<f32>; 2], BackendError> {
        let name = |x: &str| format!("{PREFIX}{module}.lora_{x}.weight");
        let read = |x, shape: [usize; 2]| self.weights.read(&name(x), &shape).map_err(|e| self.other_base(&e));
        Ok([read("A", [stored.rank, input])?, read("B", [output, stored.rank])?])
    }

    /// Adds `s B A` to `weight` (`[output, input]`) if `module` carries a LoRA, and sets the norm of its rows with DoRA.
    ///
    /// # Errors
    /// If the shapes do not fit: the adapter belongs to another base model.
    pub fn merge(&self, module: &str, weight: &mut [f32], output: usize, input: usize) -> Result<(), BackendError> {
        let Some(stored) = self.modules.get(module) else { return Ok(()) };
        let [a, b] = self.read(module, stored, output, input)?;
        let scale = stored.scale;
        let magnitude = match &stored.magnitude {
            Some(name) => Some(self.magnitude(name, output)?),
            None => None,
        };
        weight.par_chunks_exact_mut(input).zip(b.par_chunks_exact(stored.rank)).enumerate().for_each(
            |(o, (row, b))| {
                // The delta is summed before it is scaled and added, as PEFT's merge does.
                let mut delta = vec![0f32; input];
                for (&b, a) in b.iter().zip(a.chunks_exact(input)) {
                    delta.iter_mut().zip(a).for_each(|(d, &a)| *d += b * a);
                }
                row.iter_mut().zip(&delta).for_each(|(w, &d)| *w += scale * d);
                if let Some(magnitude) = &magnitude {
                    let norm = row.iter().map(|&w| f64::from(w) * f64::from(w)).sum::<f64>().sqrt();
                    let factor = (f64::from(magnitude[o]) / norm) as f32;
                    row.iter_mut().for_each(|w| *w *= factor);
                }
            },
        );
        match weight.par_iter().all(|w| w.is_finite()) {
            true => Ok(()),
            false => Err(self.broken(&format!("merged into {module} it gives values that are not finite"))),
        }
    }

    /// One magnitude an output; PEFT stores them as `[output]` or `[1, output]`.
    fn magnitude(&self, name: &str, output: usize) -> Result<Vec<f32>, BackendError> {
        let shape: &[usize] =
            if self.weights.shape(name).map(<[usize]>::len) == Some(2) { &[1, output] } else { &[output] };
        self.weights.read(name, shape).map_err(|e| self.other_base(&e))
    }

    /// The factors of every module, in order, for a model whose linear layers are `shapes` (module -> `[input, output]`).
    ///
    /// # Errors
    /// A variant that only a merge can apply; a module or a shape that the model does not have: another base.
    pub fn factors(&self, shapes: &BTreeMap<String, [usize; 2]>) -> Result<Vec<(String, Factors)>, BackendError> {
        let merge_only = |what: &str| {
            Err(BackendError::unsupported(format!(
                "the adapter {} has {what}, which only a merge can apply: use the adapter mode merge",
                self.folder.display()
            )))
        };
        if self.config.use_dora {
            return merge_only("use_dora");
        }
        if !self.saved.is_empty() {
            return merge_only("modules_to_save");
        }
        let mut all = Vec::with_capacity(self.modules.len());
        for (module, stored) in &self.modules {
            let Some(&[input, output]) = shapes.get(module) else {
                return Err(self.unknown_module(module));
            };
            if [stored.input, stored.output] != [input, output] {
                let found = [stored.input, stored.output];
                let error = format!("{module} takes and gives {found:?} numbers there, {:?} here", [input, output]);
                return Err(self.other_base(&BackendError::failed(error)));
            }
            let [a, b] = self.read(module, stored, output, input)?;
            let scale = stored.scale;
            let mut b = crate::export::transpose(&b, output, stored.rank);
            b.iter_mut().for_each(|b| *b *= scale);
            let a = crate::export::transpose(&a, stored.rank, input);
            all.push((module.clone(), Factors { rank: stored.rank, a, b }));
        }
        Ok(all)
    }

    /// The error of a LoRA on a layer that cannot carry one.
    pub fn unknown_module(&self, module: &str) -> BackendError {
        BackendError::unsupported(format!(
            "the adapter {} has a LoRA on {module}: only the projections of attention and feed-forward of this model can \
             carry one (of another base model?)",
            self.folder.display()
        ))
    }
}

/// Whether a tied head follows a new embedding depends on PEFT's version and settings at training time.
pub(crate) fn tied_embedding() -> BackendError {
    BackendError::unsupported(
        "the adapter brings an embedding (modules_to_save) for a model whose head is tied to it: whether the head follows \
         cannot be told",
    )
}

pub(crate) fn unknown_tensor(name: &str) -> BackendError {
    BackendError::unsupported(format!(
        "the adapter brings {name} (modules_to_save), which this model does not have (of another base model?)"
    ))
}

//! A LoRA adapter in the PEFT layout: read strictly, handed over as factors or merged into weights
//! in f32.
//!
//! `W' = W + s B A`; with DoRA `W' = m (W + s B A) / ||W + s B A||`, the norm of each output's row
//! (arXiv 2402.09353). Modules that PEFT saved whole (`modules_to_save`) replace those of the base.

mod config;
mod targets;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::checkpoint::CheckpointLayout;
use karat_backend::BackendError;
use karat_backend::LoraConfig;
use karat_backend::lora::{AdapterShape, Matcher};
use karat_backend::peft::read_adapter_config_saying;
use karat_kernels::lora::{self, LoraDelta};
use karat_kernels::memory::mmap::Elements;
use rayon::prelude::*;

use crate::adapter::adapter_tensors;
use crate::config::ModelConfig;

pub use config::write_adapter_config;
pub use targets::TargetModules;

/// Prefix of PEFT before the names of the base model's modules.
pub const PREFIX: &str = "base_model.model.";

/// The file of an adapter's tensors.
pub const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";

/// The name in an adapter's file of a tensor that is trained as `name`: one that PEFT named, or one
/// of the model.
pub fn stored_name(name: &str) -> String {
    if name.starts_with(PREFIX) { name.to_owned() } else { format!("{PREFIX}{name}") }
}

/// Refuses a weight of `module` that an adapter was merged into and that is not finite.
///
/// # Errors
/// If it is none.
pub fn check_merged(module: &str, weight: &[f32]) -> Result<(), BackendError> {
    match weight.par_iter().all(|w| w.is_finite()) {
        true => Ok(()),
        false => Err(BackendError::failed(format!(
            "merged into {module}, the adapter gives values that are not finite; it is broken, or of another base model"
        ))),
    }
}

/// The linear layers of a model that can carry a LoRA: their paths
/// (`model.layers.0.self_attn.q_proj`) and `[input, output]`.
pub type Linears = BTreeMap<String, [usize; 2]>;

/// An opened adapter. It fits the linear layers that it was opened for.
#[derive(Debug)]
pub struct Adapter {
    folder: PathBuf,
    config: LoraConfig,
    files: CheckpointLayout,
    modules: BTreeMap<String, Module>,
    /// Tensor of the base (`lm_head.weight`) -> the tensor here that replaces it.
    saved: BTreeMap<String, String>,
    parameters: u64,
    warnings: Vec<String>,
}

/// Tensors of an adapter for a linear layer.
#[derive(Debug)]
struct Module {
    shape: AdapterShape,
    widths: [usize; 2],
    /// The tensor with the magnitudes of DoRA.
    magnitude: Option<String>,
}

/// The adapter of one module.
#[derive(Debug)]
pub struct Factors {
    /// `A`, `[r, input]`.
    pub a: Vec<f32>,
    /// `B`, `[output, r]`.
    pub b: Vec<f32>,
    /// `r` and the factor `s` on `B A`.
    pub shape: AdapterShape,
    /// `m` of DoRA, `[output]`.
    pub magnitude: Option<Vec<f32>>,
}

impl Factors {
    /// Puts the adapter into `weight` (`[output, input]`), in f32.
    pub fn merge(&self, weight: &mut [f32]) {
        let n_in = self.a.len() / self.shape.r;
        let change = LoraDelta { a: &self.a, b: &self.b, scale: self.shape.scale as f32, n_in };
        let gain = self.magnitude.as_ref().map(|magnitude| {
            let mut norms = vec![0f32; magnitude.len()];
            lora::norms(Elements::F32(weight), change, &mut norms);
            magnitude.iter().zip(norms).map(|(m, norm)| m / norm).collect::<Vec<f32>>()
        });
        lora::merge(weight, change, gain.as_deref());
    }
}

impl Adapter {
    /// Reads `adapter_config.json` and the header of `adapter_model.safetensors` in `folder`, for a
    /// model of these `linears`.
    ///
    /// # Errors
    /// Unsupported for a variant of LoRA that is not implemented, and for a LoRA on what is no
    /// linear layer of the model; failed for broken or missing files, a module that the
    /// configuration targets and the file lacks, or the other way round, a shape that is not the
    /// model's.
    pub fn open(folder: &Path, linears: &Linears) -> Result<Self, BackendError> {
        let (config, of_config) = read_adapter_config_saying(folder)?;
        let (files, of_names) = adapter_tensors(folder)?;
        let warnings = of_config.into_iter().chain(of_names).collect();
        let (modules, saved) = (BTreeMap::new(), BTreeMap::new());
        let folder = folder.to_path_buf();
        let mut adapter = Adapter { folder, config, files, modules, saved, parameters: 0, warnings };
        // A copy, for the rules borrow it.
        let config = adapter.config.clone();
        adapter.collect(&config.matcher()?, linears)?;
        Ok(adapter)
    }

    fn broken(&self, what: &str) -> BackendError {
        BackendError::failed(format!("the adapter {}: {what}", self.folder.display()))
    }

    fn collect(&mut self, matcher: &Matcher<'_>, linears: &Linears) -> Result<(), BackendError> {
        let names: Vec<String> = self.files.names().map(String::from).collect();
        let mut magnitudes = BTreeMap::new();
        for name in &names {
            let rest = name.strip_prefix(PREFIX).unwrap_or(name);
            let end = |suffix: &str| rest.strip_suffix(suffix);
            if let Some(module) = end(".lora_A.weight").or_else(|| end(".lora_B.weight")) {
                self.collect_module(module, matcher, linears)?;
            } else if let (Some(module), true) = (end(".lora_magnitude_vector"), self.config.use_dora) {
                magnitudes.insert(module.to_string(), name.clone());
            } else if matcher.trained_whole(module_of(rest)) {
                self.saved.insert(rest.to_string(), name.clone());
            } else {
                return Err(BackendError::unsupported(format!(
                    "the adapter {}: the tensor {name} is no LoRA matrix of a linear layer; such adapters are not \
                     implemented",
                    self.folder.display()
                )));
            }
            self.parameters += self.files.shape(name).unwrap_or_default().iter().product::<usize>() as u64;
        }
        if let Some(target) = matcher.without_module(linears.keys().map(String::as_str)) {
            return Err(self.broken(&format!("target module {target} is not a linear layer of this model")));
        }
        for module in linears.keys().filter(|module| !self.modules.contains_key(*module)) {
            if matcher.adapter(module)?.is_some() {
                return Err(self.broken(&format!("{module} is a target module, but has no lora_A and lora_B")));
            }
        }
        self.collect_magnitudes(magnitudes)?;
        for module in &self.config.modules_to_save {
            if !self.saved.keys().any(|name| module_of(name).ends_with(module.as_str())) {
                return Err(self.broken(&format!("modules_to_save names {module}, but no tensor belongs to it")));
            }
        }
        match self.modules.is_empty() && self.saved.is_empty() {
            true => Err(self.broken("it holds no tensors")),
            false => Ok(()),
        }
    }

    fn collect_magnitudes(&mut self, magnitudes: BTreeMap<String, String>) -> Result<(), BackendError> {
        if !self.config.use_dora {
            return Ok(());
        }
        if let Some(module) = self.modules.keys().find(|module| !magnitudes.contains_key(*module)) {
            return Err(self.broken(&format!("use_dora is set, but {module} has no lora_magnitude_vector")));
        }
        for (module, name) in magnitudes {
            match self.modules.get_mut(&module) {
                Some(stored) => stored.magnitude = Some(name),
                None => return Err(self.broken(&format!("{module} has a magnitude but no lora_A and lora_B"))),
            }
        }
        Ok(())
    }

    fn collect_module(&mut self, module: &str, matcher: &Matcher<'_>, linears: &Linears) -> Result<(), BackendError> {
        let side = |x: &str| self.files.shape(&format!("{PREFIX}{module}.lora_{x}.weight"));
        let (Some(&[rank, input]), Some(&[output, rank_b])) = (side("A"), side("B")) else {
            return Err(self.broken(&format!("{module} needs both lora_A and lora_B, each with two dimensions")));
        };
        if rank != rank_b || rank == 0 {
            return Err(self.broken(&format!("{module}: lora_A has rank {rank}, lora_B {rank_b}")));
        }
        let Some(&widths) = linears.get(module) else {
            return Err(BackendError::unsupported(format!(
                "the adapter {} has a LoRA on {module}: only the projections of attention and feed-forward of this model \
                 can carry one (of another base model?)",
                self.folder.display()
            )));
        };
        let Some(shape) = matcher.adapter(module)? else {
            return Err(self.broken(&format!("it holds a LoRA on {module}, which adapter_config.json does not target")));
        };
        if rank != shape.r {
            return Err(self.broken(&format!("{module} has rank {rank}, adapter_config.json says {}", shape.r)));
        }
        if widths != [input, output] {
            let what = format!("{module} takes and gives {:?} numbers there, {widths:?} here", [input, output]);
            return Err(self.other_base(&BackendError::failed(what)));
        }
        self.modules.insert(module.to_string(), Module { shape, widths, magnitude: None });
        Ok(())
    }

    fn other_base(&self, error: &BackendError) -> BackendError {
        self.broken("it does not fit this model; was it trained on another base?").because(error)
    }

    /// Its configuration.
    pub fn config(&self) -> &LoraConfig {
        &self.config
    }

    /// What its user should know of how it was read: names that were mapped, keys that were passed
    /// over.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Numbers in all tensors of the adapter.
    pub fn parameters(&self) -> u64 {
        self.parameters
    }

    /// Paths of the modules that carry a LoRA.
    pub fn modules(&self) -> impl Iterator<Item = &str> {
        self.modules.keys().map(String::as_str)
    }

    /// The factors of `module`, if it carries a LoRA.
    ///
    /// # Errors
    /// Numbers that are not finite, a file that cannot be read.
    pub fn factors(&self, module: &str) -> Result<Option<Factors>, BackendError> {
        let Some(Module { shape, widths: [input, output], magnitude }) = self.modules.get(module) else {
            return Ok(None);
        };
        let read = |x, shape: [usize; 2]| self.files.read(&format!("{PREFIX}{module}.lora_{x}.weight"), &shape);
        let (a, b) = (read("A", [shape.r, *input])?, read("B", [*output, shape.r])?);
        let magnitude = magnitude.as_ref().map(|name| {
            // PEFT stores one an output as `[output]` or `[1, output]`.
            let shape: &[usize] = match self.files.shape(name) {
                Some([_, _]) => &[1, *output],
                _ => &[*output],
            };
            self.files.read(name, shape).map_err(|e| self.other_base(&e))
        });
        Ok(Some(Factors { a, b, shape: *shape, magnitude: magnitude.transpose()? }))
    }

    /// Puts the LoRA of `module`, if it carries one, into its `weight` (`[output, input]`), in f32.
    ///
    /// # Errors
    /// As [`Adapter::factors`]; a merged weight that is not finite.
    pub fn merge(&self, module: &str, weight: &mut [f32]) -> Result<(), BackendError> {
        let Some(factors) = self.factors(module)? else { return Ok(()) };
        factors.merge(weight);
        check_merged(module, weight).map_err(|error| self.broken(&error.message))
    }

    /// Tensors of the base that this adapter brings whole.
    pub fn saved(&self) -> impl Iterator<Item = &str> {
        self.saved.keys().map(String::as_str)
    }

    /// The shape of the tensor that replaces `tensor` of the base, if there is one.
    pub fn saved_shape(&self, tensor: &str) -> Option<&[usize]> {
        self.files.shape(self.saved.get(tensor)?)
    }

    /// Rows `rows` of the tensor that replaces `tensor` of the base, if there is one, widened to
    /// f32.
    ///
    /// # Errors
    /// If its shape is not `shape`: the adapter belongs to another base model.
    pub fn saved_rows(
        &self,
        tensor: &str,
        shape: &[usize],
        rows: Range<usize>,
    ) -> Option<Result<Vec<f32>, BackendError>> {
        let name = self.saved.get(tensor)?;
        Some(self.files.read_rows(name, shape, rows).map_err(|e| self.other_base(&e)))
    }

    /// The error of a tensor in [`Adapter::saved`] that the model does not have.
    pub fn unknown_tensor(&self, name: &str) -> BackendError {
        BackendError::unsupported(format!(
            "the adapter {} brings {name} (modules_to_save), which this model does not have (of another base model?)",
            self.folder.display()
        ))
    }

    /// Opens the adapter in `folder` that a training under `config` is to start from.
    ///
    /// # Errors
    /// As [`Adapter::open`]; an adapter that trains something else than `config` says.
    pub fn open_to_train(folder: &Path, model: &ModelConfig, config: &LoraConfig) -> Result<Self, BackendError> {
        let adapter = Self::open(folder, &model.linears())?;
        let theirs = adapter.config();
        if TargetModules::new(model, theirs)? == TargetModules::new(model, config)? {
            return Ok(adapter);
        }
        let says = |config: &LoraConfig| serde_json::to_string(config).unwrap_or_default();
        Err(BackendError::failed(format!(
            "{}: the adapter to start from is another one, {}; the plan says {}",
            folder.display(),
            says(theirs),
            says(config)
        )))
    }

    /// Refuses what only a merge can apply.
    ///
    /// # Errors
    /// Unsupported, for DoRA and for modules that were saved whole.
    pub fn check_low_rank(&self) -> Result<(), BackendError> {
        let what = match (self.config.use_dora, self.saved.is_empty()) {
            (true, _) => "use_dora",
            (false, false) => "modules_to_save",
            (false, true) => return Ok(()),
        };
        Err(BackendError::unsupported(format!(
            "the adapter {} has {what}, which only a merge can apply: use the adapter mode merge",
            self.folder.display()
        )))
    }
}

/// The path of the module that the tensor `name` belongs to.
fn module_of(name: &str) -> &str {
    name.rsplit_once('.').map_or(name, |(module, _)| module)
}

/// The error of an embedding that an adapter brings for a model with a tied head: whether the head
/// follows depends on PEFT's version and settings at training time.
pub fn tied_embedding() -> BackendError {
    BackendError::unsupported(
        "the adapter brings an embedding (modules_to_save) for a model whose head is tied to it: whether the head follows \
         cannot be told",
    )
}

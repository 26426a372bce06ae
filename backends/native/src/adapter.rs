//! LoRA adapters in the PEFT layout: read strictly, attached to a model, drawn anew, written back, merged.

mod config;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use karat_backend::lora::{InitLora, Matcher, Shape};
use karat_backend::peft::ADAPTER_CONFIG;
use karat_backend::{BackendError, LoraConfig};
use karat_model::adapter_tensors;

use crate::device::LowRank;
use crate::error::Result;
use crate::files::{TensorFiles, at, write_tensors};
use crate::linear::{Dora, Linear, Lora};
use crate::model::Decoder;
use crate::rng::{Philox, name_key};
use crate::tensor::{self as nn, Tensor};

/// The file of an adapter's tensors.
pub const WEIGHTS: &str = "adapter_model.safetensors";
/// Before the names of a model's modules in an adapter's file.
const PREFIX: &str = "base_model.model.";

/// The name in an adapter's file of a tensor of [`Decoder::adapter_tensors`].
pub fn stored_name(name: &str) -> String {
    if name.starts_with(PREFIX) { name.to_owned() } else { format!("{PREFIX}{name}") }
}

/// What a configuration means for one model.
#[derive(Debug, PartialEq)]
pub struct Layout {
    /// The adapted modules by their paths.
    modules: BTreeMap<String, Shape>,
    /// Whether they have magnitudes.
    dora: bool,
    /// Names of the tensors that are trained whole.
    whole: BTreeSet<String>,
}

impl Layout {
    /// Checks a configuration against the model.
    ///
    /// # Errors
    /// Names the module or the key that does not fit.
    pub fn new(model: &Decoder, config: &LoraConfig) -> Result<Self> {
        config.check()?;
        let matcher = config.matcher()?;
        let paths = || model.layers.iter().flat_map(|layer| layer.linears()).map(|linear| linear.name.as_str());
        for path in ["lm_head", "model.embed_tokens"] {
            if let karat_backend::lora::Modules::Names(names) = &config.target_modules
                && names.iter().any(|name| path == name || path.ends_with(&format!(".{name}")))
            {
                return Err(BackendError::unsupported(match (path, model.config.tied) {
                    ("lm_head", true) => {
                        "target module lm_head: the head is tied to the embedding, an adapter on it would change both; \
                         leave it out"
                            .to_owned()
                    }
                    _ => format!(
                        "an adapter on target module {path} is not implemented; modules_to_save trains it whole"
                    ),
                }));
            }
        }
        if let Some(target) = matcher.without_module(paths()) {
            return Err(BackendError::failed(format!("target module {target} is not a linear layer of this model")));
        }
        let whole = whole(model, config, &matcher)?;
        let mut modules = BTreeMap::new();
        for path in paths() {
            if let Some(shape) = matcher.adapter(path)? {
                if matcher.trained_whole(path) {
                    return Err(BackendError::unsupported(format!(
                        "modules_to_save: {path} would be trained whole and have an adapter; name it more exactly"
                    )));
                }
                modules.insert(path.to_owned(), shape);
            }
        }
        if modules.is_empty() {
            return Err(BackendError::failed(
                "no module gets an adapter: exclude_modules, modules_to_save and layers_to_transform leave none of the \
                 target_modules",
            ));
        }
        Ok(Layout { modules, dora: config.use_dora, whole })
    }
}

/// The tensors of the modules that are trained whole.
fn whole(model: &Decoder, config: &LoraConfig, matcher: &Matcher<'_>) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    let tensors = model.tensors();
    for name in tensors.keys() {
        let path = name.rsplit_once('.').map_or(name.as_str(), |(path, _)| path);
        if matcher.trained_whole(path) {
            found.insert(name.clone());
        }
    }
    if model.config.tied
        && let Some(path) = ["lm_head", "model.embed_tokens"].into_iter().find(|path| matcher.trained_whole(path))
    {
        return Err(BackendError::unsupported(format!(
            "modules_to_save: {path} is tied (head and embedding are one tensor); PEFT would train a copy of one and so \
             untie them, which is not implemented"
        )));
    }
    for wanted in &config.modules_to_save {
        let path = |name: &String| name.rsplit_once('.').is_some_and(|(path, _)| path.ends_with(wanted.as_str()));
        if !found.iter().any(path) {
            return Err(BackendError::failed(format!(
                "modules_to_save: {wanted} names no module of this model that has weights of its own"
            )));
        }
    }
    Ok(found)
}

/// Where an adapter's tensors come from.
enum Source {
    /// Drawn.
    Seed(Philox, InitLora),
    /// Read.
    File(Box<TensorFiles>),
}

impl Source {
    fn low_rank(&mut self, name: &str, shape: [usize; 2]) -> Result<Tensor> {
        let (generator, init) = match self {
            Source::File(file) => return file.read(name, &shape),
            Source::Seed(generator, init) => (generator, *init),
        };
        if name.ends_with("lora_B.weight") {
            return nn::zeros(&shape);
        }
        let (key, [r, n_in]) = (name_key(name), shape);
        let bound = 1.0 / (n_in as f64).sqrt();
        let draw = |i: usize| {
            let (i, a, b) = (i as u64, key as u32, (key >> 32) as u32);
            match init {
                InitLora::Kaiming => (generator.uniform(i, a, b) * 2.0 - 1.0) * bound,
                InitLora::Gaussian => generator.normal(i, a, b) / r as f64,
            }
        };
        nn::tensor((0..r * n_in).map(|i| draw(i) as f32).collect(), &shape)
    }

    /// The adapter of one module. Norms of DoRA are those of the weight with this adapter.
    fn adapter(&mut self, linear: &Linear, shape: Shape, dora: bool, dropout: f64, module: u32) -> Result<Lora> {
        let (n_in, n_out) = linear.widths();
        let name = |part: &str| format!("{PREFIX}{}.{part}", linear.name);
        let (a_name, b_name) = (name("lora_A.weight"), name("lora_B.weight"));
        let (a, b) = (self.low_rank(&a_name, [shape.r, n_in])?, self.low_rank(&b_name, [n_out, shape.r])?);
        let scale = shape.scale as f32;
        let dora = match dora {
            true => {
                let norms = nn::zeros(&[n_out])?;
                crate::cpu::merged_norms(&norms, &linear.weight, LowRank { a: &a, b: &b, scale })?;
                let name = name("lora_magnitude_vector");
                let magnitude = match self {
                    Source::File(file) => file.read(&name, &[n_out])?,
                    Source::Seed(..) => nn::copy(&norms)?,
                };
                Some(Dora { magnitude, norms, name })
            }
            false => None,
        };
        Ok(Lora { a, b, scale, dropout, module, a_name, b_name, dora })
    }
}

/// Holds the size of an adapter that is to be drawn against the memory that is left: each number has a gradient and two
/// moments.
fn check_memory(model: &Decoder, modules: &BTreeMap<String, Shape>) -> Result<()> {
    let Some(room) = karat_system::memory::available() else { return Ok(()) };
    let mut bytes = 0u128;
    for linear in model.layers.iter().flat_map(|layer| layer.linears()) {
        if let Some(shape) = modules.get(&linear.name) {
            let (n_in, n_out) = linear.widths();
            bytes += 16 * shape.r as u128 * (n_in as u128 + n_out as u128);
        }
    }
    match bytes <= u128::from(room) {
        true => Ok(()),
        false => Err(BackendError::failed(format!(
            "an adapter of these ranks takes {:.1} GB to train, and there are {:.1} GB of memory left: lower r or \
             rank_pattern",
            bytes as f64 / 1e9,
            room as f64 / 1e9
        ))),
    }
}

/// Puts an adapter on every targeted module.
fn attach(model: &mut Decoder, config: &LoraConfig, mut source: Source) -> Result<()> {
    let Layout { modules, dora, whole } = Layout::new(model, config)?;
    if let Source::Seed(..) = source {
        check_memory(model, &modules)?;
    }
    for (i, layer) in model.layers.iter_mut().enumerate() {
        for (j, linear) in layer.linears_mut().into_iter().enumerate() {
            linear.lora = match modules.get(&linear.name) {
                Some(shape) => Some(source.adapter(linear, *shape, dora, config.lora_dropout, (i * 7 + j) as u32)?),
                None => None,
            };
        }
    }
    let names = whole.clone();
    model.train_whole(whole)?;
    if let Source::File(file) = &source {
        for (name, tensor) in model.adapter_tensors().iter().filter(|(name, _)| names.contains(*name)) {
            let stored = file.read(&stored_name(name), tensor.dims())?;
            nn::set(tensor, &nn::view(&stored)?)?;
        }
    }
    Ok(())
}

/// Puts the adapter of `folder` on the model, under `config` (which may differ from the folder's in its dropout). Names of
/// tensors that are not PEFT's own are mapped, and the model's warnings say so.
///
/// # Errors
/// For missing, misshapen or stray tensors, by name.
pub fn load(model: &mut Decoder, config: &LoraConfig, folder: &Path) -> Result<()> {
    let path = folder.join(WEIGHTS);
    let (layout, said) = adapter_tensors(folder)?;
    let file = TensorFiles::map(layout)?;
    model.config.warnings.extend(said);
    let names: Vec<String> = file.names().map(String::from).collect();
    attach(model, config, Source::File(Box::new(file)))?;
    let known: BTreeSet<String> = model.adapter_tensors().keys().map(|name| stored_name(name)).collect();
    match names.into_iter().find(|name| !known.contains(name)) {
        Some(name) => Err(at(&path, format!("tensor {name} belongs to no target module of {}", ADAPTER_CONFIG))),
        None => Ok(()),
    }
}

/// Draws a new adapter, `A` as [`InitLora`] says and `B` zero. Each tensor is a function of the seed and its name.
///
/// # Errors
/// If the configuration does not fit the model.
pub fn draw(model: &mut Decoder, config: &LoraConfig, seed: u64) -> Result<()> {
    attach(model, config, Source::Seed(Philox::new(seed), config.init_lora_weights))
}

/// Writes the adapter in the PEFT layout: all fields of its configuration with sorted keys, and the tensors.
///
/// # Errors
/// If a file cannot be written.
pub fn save(model: &Decoder, config: &LoraConfig, base: &str, folder: &Path) -> Result<()> {
    let tensors = model.adapter_tensors().into_iter().map(|(name, t)| (stored_name(&name), t)).collect();
    write_tensors(&folder.join(WEIGHTS), &tensors)?;
    config::write(config, base, folder)
}

//! LoRA adapters in the PEFT layout: read strictly, attached to a model, drawn anew, written back, merged.

use std::collections::BTreeMap;
use std::path::Path;

use karat_backend::BackendError;
use karat_backend::LoraConfig;
use karat_backend::lora::{AdapterShape, InitLora};
use karat_model::peft::{Adapter, Factors, PREFIX, TargetModules, write_adapter_config};

use crate::device::LoraPair;
use crate::error::Result;
use crate::files::write_tensors;
use crate::linear::{Dora, Linear, Lora};
use crate::model::Decoder;
use crate::rng::{Philox, name_key};
use crate::tensor as nn;

/// The file of an adapter's tensors.
pub const WEIGHTS: &str = "adapter_model.safetensors";
/// The name in an adapter's file of a tensor of [`Decoder::adapter_tensors`].
pub fn stored_name(name: &str) -> String {
    if name.starts_with(PREFIX) { name.to_owned() } else { format!("{PREFIX}{name}") }
}

/// Where an adapter's tensors come from.
enum Source {
    /// Drawn.
    Seed(Philox, InitLora),
    /// Read.
    File(Box<Adapter>),
}

/// `A` `[r, in]` called `name`, as it is drawn.
fn drawn(generator: &Philox, init: InitLora, name: &str, [r, n_in]: [usize; 2]) -> Vec<f32> {
    let key = name_key(name);
    let bound = 1.0 / (n_in as f64).sqrt();
    let draw = |i: usize| {
        let (i, a, b) = (i as u64, key as u32, (key >> 32) as u32);
        match init {
            InitLora::Kaiming => (generator.uniform(i, a, b) * 2.0 - 1.0) * bound,
            InitLora::Gaussian => generator.normal(i, a, b) / r as f64,
        }
    };
    (0..r * n_in).map(|i| draw(i) as f32).collect()
}

impl Source {
    /// The adapter of one module. Norms of DoRA are those of the weight with this adapter.
    fn adapter(&self, linear: &Linear, shape: AdapterShape, dora: bool, dropout: f64, module: u32) -> Result<Lora> {
        let (n_in, n_out) = linear.widths();
        let name = |part: &str| format!("{PREFIX}{}.{part}", linear.name);
        let (a_name, b_name) = (name("lora_A.weight"), name("lora_B.weight"));
        let factors = match self {
            Source::Seed(generator, init) => {
                let a = drawn(generator, *init, &a_name, [shape.r, n_in]);
                Factors { a, b: vec![0.0; n_out * shape.r], shape, magnitude: None }
            }
            Source::File(adapter) => adapter
                .factors(&linear.name)?
                .ok_or_else(|| BackendError::failed(format!("the adapter has nothing for {}", linear.name)))?,
        };
        let (a, b) = (nn::tensor(factors.a, &[shape.r, n_in])?, nn::tensor(factors.b, &[n_out, shape.r])?);
        let scale = shape.scale as f32;
        let dora = match dora {
            true => {
                let norms = nn::zeros(&[n_out])?;
                crate::cpu::merged_norms(&norms, &linear.weight, LoraPair { a: &a, b: &b, scale })?;
                let magnitude = match factors.magnitude {
                    Some(magnitude) => nn::tensor(magnitude, &[n_out])?,
                    None => nn::copy(&norms)?,
                };
                Some(Dora { magnitude, norms, name: name("lora_magnitude_vector") })
            }
            false => None,
        };
        Ok(Lora { a, b, scale, dropout, module, a_name, b_name, dora })
    }
}

/// Holds the size of an adapter that is to be drawn against the memory that is left: each number has a gradient and two
/// moments.
fn check_memory(model: &Decoder, modules: &BTreeMap<String, AdapterShape>) -> Result<()> {
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
fn attach(model: &mut Decoder, config: &LoraConfig, source: &Source) -> Result<()> {
    let TargetModules { modules, dora, whole } = TargetModules::new(&model.config, config)?;
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
    let Source::File(adapter) = source else { return Ok(()) };
    if let Some(name) = adapter.saved().find(|name| !names.contains(*name)) {
        return Err(adapter.unknown_tensor(name));
    }
    for (name, tensor) in model.adapter_tensors() {
        let rows = 0..tensor.dims().first().copied().unwrap_or(1);
        if let Some(values) = adapter.saved_rows(&name, tensor.dims(), rows) {
            nn::set(&tensor, &values?)?;
        }
    }
    Ok(())
}

/// Opens the adapter of `folder` for the model.
///
/// # Errors
/// As [`Adapter::open`].
pub fn open(model: &Decoder, folder: &Path) -> Result<Adapter> {
    Adapter::open(folder, &model.config.linears())
}

/// Puts an adapter on the model, under `config` (which may differ from its own in the dropout). What its reader has to say is
/// added to the model's warnings.
///
/// # Errors
/// For misshapen or stray tensors, by name.
pub fn load(model: &mut Decoder, config: &LoraConfig, adapter: Adapter) -> Result<()> {
    model.config.warnings.extend_from_slice(adapter.warnings());
    attach(model, config, &Source::File(Box::new(adapter)))
}

/// Draws a new adapter, `A` as [`InitLora`] says and `B` zero. Each tensor is a function of the seed and its name.
///
/// # Errors
/// If the configuration does not fit the model.
pub fn draw(model: &mut Decoder, config: &LoraConfig, seed: u64) -> Result<()> {
    attach(model, config, &Source::Seed(Philox::new(seed), config.init_lora_weights))
}

/// Writes the adapter in the PEFT layout: all fields of its configuration with sorted keys, and the tensors.
///
/// # Errors
/// If a file cannot be written.
pub fn save(model: &Decoder, config: &LoraConfig, base: &str, folder: &Path) -> Result<()> {
    let tensors = model.adapter_tensors().into_iter().map(|(name, t)| (stored_name(&name), t)).collect();
    write_tensors(&folder.join(WEIGHTS), &tensors)?;
    write_adapter_config(config, base, folder)
}

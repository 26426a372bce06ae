//! LoRA adapters put on a model's linear layers: those of a PEFT folder, and new ones.

use std::path::Path;

use karat_backend::BackendError;
use karat_backend::LoraConfig;
use karat_backend::lora::{AdapterShape, InitLora};
use karat_model::draw::lora_a;
use karat_model::peft::{Adapter, Factors, PREFIX, TargetModules};

use crate::device::LoraPair;
use crate::error::Result;
use crate::linear::{Dora, Linear, Lora};
use crate::model::Decoder;
use crate::tensor as nn;

/// Where an adapter's tensors come from.
enum Source {
    /// Drawn.
    Seed(u64, InitLora),
    /// Read.
    File(Box<Adapter>),
}

impl Source {
    /// The adapter of one module. Norms of DoRA are those of the weight with this adapter.
    fn adapter(&self, linear: &Linear, shape: AdapterShape, dora: bool, dropout: f64, module: u32) -> Result<Lora> {
        let (n_in, n_out) = linear.widths();
        let name = |part: &str| format!("{PREFIX}{}.{part}", linear.name);
        let (a_name, b_name) = (name("lora_A.weight"), name("lora_B.weight"));
        let factors = match self {
            Source::Seed(seed, init) => {
                let a = lora_a(*seed, *init, &a_name, shape.r, n_in);
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

/// Puts an adapter on every targeted module.
fn attach(model: &mut Decoder, config: &LoraConfig, source: &Source) -> Result<()> {
    let targets = TargetModules::new(&model.config, config)?;
    if let Source::Seed(..) = source {
        targets.check_memory(&model.config.linears())?;
    }
    let TargetModules { modules, dora, whole } = targets;
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

/// Puts an adapter on the model, under `config` (which may differ from its own in the dropout).
/// What its reader has to say is added to the model's warnings.
///
/// # Errors
/// For misshapen or stray tensors, by name.
pub fn load(model: &mut Decoder, config: &LoraConfig, adapter: Adapter) -> Result<()> {
    model.config.warnings.extend_from_slice(adapter.warnings());
    attach(model, config, &Source::File(Box::new(adapter)))
}

/// Draws a new adapter, `A` as [`InitLora`] says and `B` zero. Each tensor is a function of the
/// seed and its name.
///
/// # Errors
/// If the configuration does not fit the model.
pub fn draw(model: &mut Decoder, config: &LoraConfig, seed: u64) -> Result<()> {
    attach(model, config, &Source::Seed(seed, config.init_lora_weights))
}

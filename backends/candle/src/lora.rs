//! LoRA: which modules carry an adapter, how a new one is drawn, where its tensors lie in PEFT's files.

use std::collections::BTreeMap;

use candle_core::{Device, Var};
use karat_backend::lora::{AdapterShape, InitLora};
use karat_backend::{BackendError, LoraConfig};
use karat_kernels::philox::{Philox, name_key};
use karat_model::ModelConfig;
use karat_model::peft::{Adapter, PREFIX, TargetModules};
use karat_system::memory;

use crate::{Result, failed};

/// The modules that carry an adapter, by their paths.
pub type Adapted = BTreeMap<String, AdapterShape>;

/// The name in an adapter's file of a tensor that is called `name` in the model.
pub fn stored_name(name: &str) -> String {
    format!("{PREFIX}{name}")
}

/// What `config` trains of the model.
///
/// # Errors
/// As [`TargetModules::new`]; unsupported for DoRA.
pub fn targets(model: &ModelConfig, config: &LoraConfig) -> Result<TargetModules> {
    if config.use_dora {
        return Err(BackendError::unsupported("the candle backend trains no DoRA (use_dora); the backend native does"));
    }
    TargetModules::new(model, config)
}

/// Holds the size of an adapter that is to be drawn against the memory that is left: each number has a gradient and two
/// moments.
fn check_memory(model: &ModelConfig, targets: &TargetModules) -> Result<()> {
    let Some(room) = memory::available() else { return Ok(()) };
    let linears = model.linears();
    let of =
        |(path, shape): (&String, &AdapterShape)| 16 * shape.r as u128 * linears[path].iter().sum::<usize>() as u128;
    let bytes: u128 = targets.modules.iter().map(of).sum();
    if bytes <= u128::from(room) {
        return Ok(());
    }
    let [bytes, room] = [bytes as f64, room as f64].map(|bytes| bytes / 1e9);
    Err(BackendError::failed(format!(
        "an adapter of these ranks takes {bytes:.1} GB to train, and there are {room:.1} GB of memory left: lower r or \
         rank_pattern"
    )))
}

/// The low-rank tensors of `targets` as PEFT calls them: read from `from`, or drawn as the native backend draws them, `A` by
/// the seed and its name and `B` zero.
///
/// # Errors
/// If `from` lacks a module or cannot be read, or there is no room.
pub fn low_rank(
    model: &ModelConfig,
    targets: &TargetModules,
    from: Option<&Adapter>,
    (init, seed): (InitLora, u64),
    device: &Device,
) -> Result<BTreeMap<String, Var>> {
    if from.is_none() {
        check_memory(model, targets)?;
    }
    let (linears, generator) = (model.linears(), Philox::new(seed));
    let mut vars = BTreeMap::new();
    for (path, &AdapterShape { r, .. }) in &targets.modules {
        let [n_in, n_out] = linears[path];
        let [a_name, b_name] = ["A", "B"].map(|side| stored_name(&format!("{path}.lora_{side}.weight")));
        let (a, b) = match from {
            Some(adapter) => {
                let missing = || BackendError::failed(format!("the adapter has nothing for {path}"));
                let factors = adapter.factors(path)?.ok_or_else(missing)?;
                (factors.a, factors.b)
            }
            None => (drawn(&generator, init, &a_name, [r, n_in]), vec![0.0; n_out * r]),
        };
        vars.insert(a_name, Var::from_vec(a, (r, n_in), device).map_err(failed)?);
        vars.insert(b_name, Var::from_vec(b, (n_out, r), device).map_err(failed)?);
    }
    Ok(vars)
}

fn drawn(generator: &Philox, init: InitLora, name: &str, [r, n_in]: [usize; 2]) -> Vec<f32> {
    let (key, bound) = (name_key(name), 1.0 / (n_in as f64).sqrt());
    let draw = |i: usize| {
        let (i, a, b) = (i as u64, key as u32, (key >> 32) as u32);
        match init {
            InitLora::Kaiming => (generator.uniform(i, a, b) * 2.0 - 1.0) * bound,
            InitLora::Gaussian => generator.normal(i, a, b) / r as f64,
        }
    };
    (0..r * n_in).map(|i| draw(i) as f32).collect()
}

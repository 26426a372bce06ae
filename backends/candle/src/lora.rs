//! LoRA: which modules carry an adapter, and the tensors of a new one or of one that is read.

use std::collections::BTreeMap;

use candle_core::{Device, Var};
use karat_backend::lora::{AdapterShape, InitLora};
use karat_backend::{BackendError, LoraConfig};
use karat_model::ModelConfig;
use karat_model::draw::lora_a;
use karat_model::peft::{Adapter, TargetModules, stored_name};

use crate::{Result, failed};

/// The modules that carry an adapter, by their paths.
pub type Adapted = BTreeMap<String, AdapterShape>;

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

/// The low-rank tensors of `targets` as PEFT calls them: read from `from`, or drawn as the native
/// backend draws them, `A` by the seed and its name and `B` zero.
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
    let linears = model.linears();
    if from.is_none() {
        targets.check_memory(&linears)?;
    }
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
            None => (lora_a(seed, init, &a_name, r, n_in), vec![0.0; n_out * r]),
        };
        vars.insert(a_name, Var::from_vec(a, (r, n_in), device).map_err(failed)?);
        vars.insert(b_name, Var::from_vec(b, (n_out, r), device).map_err(failed)?);
    }
    Ok(vars)
}

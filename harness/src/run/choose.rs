//! `backend = "auto"`: the fastest backend that does what is asked of a model, and why it is that
//! one.
//!
//! Backends are asked for their descriptions alone, which touches no device and no weights: whether
//! one opens the model shows when it is opened.

use std::collections::BTreeMap;
use std::path::Path;

use super::{Backends, LoadedBackend, Notice, Observer};
use crate::backend::{Capability, Descriptor, Dtype};
use crate::error::{Error, Result};
use crate::fsio;
use crate::import::{gguf_in, has_gguf_weights};
use crate::run::subject::{locate, rendering};
use crate::suite::{Suite, TrainMethod, TrainModel};

/// The name that asks for a choice.
pub const AUTO: &str = "auto";
/// Backends that are chosen from, the fastest first.
const ORDER: [&str; 3] = ["native", "candle", "onnxruntime"];
/// The manifest of a folder that the backend onnxruntime exported.
const EXPORTED: &str = "karat-onnx.json";

/// A request that a backend is chosen for.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The model's folder, or a GGUF file.
    pub model: &'a Path,
    /// Capabilities that it takes.
    pub capabilities: &'a [Capability],
    /// Element type to compute in.
    pub dtype: Dtype,
    /// `cpu`, `cuda:0`, `auto`.
    pub device: &'a str,
}

/// A choice.
pub struct Chosen {
    /// The backend's name.
    pub name: &'static str,
    /// The backend.
    pub backend: LoadedBackend,
    /// A sentence.
    pub why: String,
}

/// Chooses the backend for what is asked.
///
/// # Errors
/// Usage, with what each backend lacks; a `config.json` that is no JSON.
pub fn choose(asked: &Asked<'_>, backends: &dyn Backends) -> Result<Chosen> {
    let kind = Kind::of(asked.model)?;
    let mut passed = Vec::new();
    for name in ORDER {
        let Ok(backend) = backends.backend(name) else {
            passed.push(format!("{name} is not there"));
            continue;
        };
        match asked.lack(&backend.backend.describe(), &kind) {
            Some(lack) => passed.push(format!("{name} {lack}")),
            None => {
                let why = match passed.is_empty() {
                    true => format!("backend auto is {name}, the fastest"),
                    false => format!("backend auto is {name}: {}", passed.join("; ")),
                };
                return Ok(Chosen { name, backend, why });
            }
        }
    }
    Err(Error::usage(format!("no backend does what is asked of this model: {}", passed.join("; ")))
        .at(asked.model.display())
        .help("`karat backends` lists what each does; --backend NAME names one"))
}

/// The kind of model in a folder.
enum Kind {
    Exported,
    Gguf,
    /// A `model_type`.
    Family(String),
}

impl Kind {
    fn of(model: &Path) -> Result<Kind> {
        if gguf_in(model).is_some() || has_gguf_weights(model) {
            return Ok(Kind::Gguf);
        }
        if model.join(EXPORTED).is_file() {
            return Ok(Kind::Exported);
        }
        let path = model.join("config.json");
        let config: serde_json::Value = if path.is_file() { fsio::read_json(&path)? } else { serde_json::Value::Null };
        Ok(Kind::Family(config["model_type"].as_str().unwrap_or_default().into()))
    }
}

impl Asked<'_> {
    /// The first thing that a backend lacks of it.
    fn lack(&self, backend: &Descriptor, kind: &Kind) -> Option<String> {
        let has = |capability: &Capability| backend.capabilities.contains(capability);
        match kind {
            Kind::Exported if !has(&Capability::Export) => return Some("opens no exported graphs".into()),
            Kind::Gguf if !has(&Capability::Gguf) => return Some("does not run a GGUF file as it is".into()),
            Kind::Family(family) if !backend.model_families.contains(family) => {
                return Some(format!("does not know model_type {family:?}"));
            }
            _ => {}
        }
        lacks(backend, self.capabilities, self.dtype, self.device)
    }
}

/// The first of some capabilities, an element type and a device that a backend lacks.
pub(super) fn lacks(backend: &Descriptor, capabilities: &[Capability], dtype: Dtype, device: &str) -> Option<String> {
    if let Some(lack) = capabilities.iter().find(|capability| !backend.capabilities.contains(capability)) {
        let name = serde_json::to_value(lack).ok().and_then(|name| Some(name.as_str()?.replace('-', " ")));
        return Some(format!("cannot {}", name.unwrap_or_default()));
    }
    if !backend.dtypes.contains(&dtype) {
        return Some(format!("does not compute in {dtype}"));
    }
    let device = device.split(':').next().unwrap_or_default();
    let there = device == AUTO || backend.devices.iter().any(|known| known.split(':').next() == Some(device));
    (!there).then(|| format!("was not built for {device}"))
}

/// `suite` with the backends that `auto` comes to, and what to say of each choice, by the setting's
/// name. `evaluated` is the model that is evaluated, if it is another than those of the suite; then
/// nothing is trained.
///
/// # Errors
/// As [`choose`].
pub fn decided(
    suite: &Suite,
    evaluated: Option<&Path>,
    backends: &dyn Backends,
    observer: &mut dyn Observer,
) -> Result<(Suite, BTreeMap<String, String>)> {
    let (mut suite, mut said) = (suite.clone(), BTreeMap::new());
    let model = match evaluated {
        Some(model) => model.to_path_buf(),
        None => rendering(&suite)?,
    };
    let mut decide =
        |key: &str, name: &mut String, model: &Path, capabilities: &[Capability], (dtype, device): (Dtype, &str)| {
            let chosen = choose(&Asked { model, capabilities, dtype, device }, backends)?;
            *name = chosen.name.into();
            observer.notice(Notice::Done { name: key, detail: chosen.why.clone() });
            said.insert(key.into(), chosen.why);
            Ok::<_, Error>(())
        };
    let on = (suite.model.dtype, suite.model.device.clone());
    let scores = [Capability::Score, Capability::Generate];
    if suite.model.backend == AUTO {
        let trains = evaluated.is_none();
        // Models of a backend of their own are asked for below.
        let trained = suite.all_models().into_iter().filter(|model| trains && model.entry.backend.is_none());
        let methods: Vec<TrainMethod> = trained.filter_map(|model| Some(model.entry.train?.method)).collect();
        let lora = methods.contains(&TrainMethod::Lora).then_some(Capability::TrainLora);
        let full = methods.contains(&TrainMethod::Full).then_some(Capability::TrainFull);
        let beside = if suite.eval.backend.is_empty() { &scores[..] } else { &[] };
        let capabilities: Vec<Capability> = lora.into_iter().chain(full).chain(beside.iter().copied()).collect();
        decide("model.backend", &mut suite.model.backend, &model, &capabilities, (on.0, &on.1))?;
    }
    if suite.eval.backend == AUTO {
        decide("eval.backend", &mut suite.eval.backend, &model, &scores, (on.0, &on.1))?;
    }
    for (name, entry) in suite.models.0.iter_mut().filter(|(_, entry)| entry.backend.as_deref() == Some(AUTO)) {
        let mut capabilities = scores.to_vec();
        let own = match &entry.train {
            Some(TrainModel { method, .. }) => {
                capabilities.push(match method {
                    TrainMethod::Lora => Capability::TrainLora,
                    TrainMethod::Full => Capability::TrainFull,
                });
                model.clone()
            }
            None => locate(entry)?.model,
        };
        let device = entry.device.clone().unwrap_or_else(|| on.1.clone());
        let mut backend = AUTO.to_string();
        let key = format!("models.{name}.backend");
        decide(&key, &mut backend, &own, &capabilities, (entry.dtype.unwrap_or(on.0), &device))?;
        entry.backend = Some(backend);
    }
    Ok((suite, said))
}

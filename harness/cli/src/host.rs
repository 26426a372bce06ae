//! Backends as the command line gets them: plugins, searched for in the documented places.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use karat::backend::{Capability, Descriptor, Dtype, GenerateConfig, OpenConfig, Session};
use karat::import::{gguf_in, gguf_view};
use karat::model_dir::{ModelDir, has_adapter_config, has_config, holds_both, said_of_both};
use karat::plugin::{self, FoundPlugin, Plugin, Search, find};
use karat::run::{AUTO, Asked, Backends, LoadedBackend, Origin, choose, opening_warnings};
use karat::{Error, Result, nearest};

use crate::args::{ComputeArgs, ComputeDtype, Global, ModelArgs, OpenArgs, SamplingArgs};
use crate::output::Output;
pub use crate::signals::cancel_on_signal as cancel_on_interrupt;

/// Loads plugins by name.
pub struct Plugins {
    files: Vec<PathBuf>,
    search: Search,
}

impl Plugins {
    /// `--backend-path` entries come first: files as they are, folders before the documented
    /// places.
    pub fn new(global: &Global) -> Result<Plugins> {
        let mut folders = Vec::new();
        let mut files = Vec::new();
        for path in &global.backend_path {
            let path = std::path::absolute(path).map_err(|e| Error::io("resolve", path, e))?;
            match path.is_file() {
                true => files.push(path),
                false => folders.push(path),
            }
        }
        let mut places = folders;
        places.extend(Search::from_env().places().iter().map(|place| place.folder.clone()));
        let search = if global.backend_path.is_empty() { Search::from_env() } else { Search::in_folders(places) };
        Ok(Plugins { files, search })
    }

    /// Where plugins are searched for.
    pub fn search(&self) -> &Search {
        &self.search
    }

    /// Every plugin there is: the files of `--backend-path`, then what the search finds under other
    /// names.
    pub fn list(&self) -> Vec<FoundPlugin> {
        let mut all: Vec<FoundPlugin> = Vec::new();
        for file in &self.files {
            let plugin = Plugin::load(file);
            let name = match &plugin {
                Ok(plugin) => plugin.descriptor().name,
                Err(_) => file.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned()),
            };
            let origin = plugin::Origin::Given;
            all.push(FoundPlugin { name, path: file.clone(), origin, hidden: Vec::new(), plugin });
        }
        for found in plugin::list(&self.search) {
            match all.iter_mut().find(|f| f.name == found.name) {
                Some(first) => first.hidden.extend([found.path].into_iter().chain(found.hidden)),
                None => all.push(found),
            }
        }
        all
    }

    fn plugin(&self, name: &str) -> Result<Plugin> {
        for file in &self.files {
            let plugin = Plugin::load(file)?;
            if plugin.descriptor().name == name {
                return Ok(plugin);
            }
        }
        find(name, &self.search).map_err(|error| self.suggested(name, error))
    }

    /// `error`, with the name that was probably meant where the plugin is not there at all.
    fn suggested(&self, name: &str, error: Error) -> Error {
        let names: Vec<String> = self.list().into_iter().map(|found| found.name).collect();
        match nearest(name, names.iter().map(String::as_str)) {
            Some(near) if near != name => error.help(format!("did you mean {near}? `karat backends` lists all")),
            _ => error,
        }
    }
}

impl Backends for Plugins {
    fn backend(&self, name: &str) -> Result<LoadedBackend> {
        let plugin = self.plugin(name)?;
        let origin = Origin { path: Some(plugin.path().into()), sha256: Some(plugin.sha256().into()) };
        Ok(LoadedBackend { backend: Arc::new(plugin), origin })
    }
}

/// A model as a command opens it.
pub struct Opening {
    /// Who opens it.
    pub backend: LoadedBackend,
    /// How.
    pub config: OpenConfig,
}

impl Opening {
    /// The model that `model` names, by the backend that `open` names.
    ///
    /// # Errors
    /// No such backend; what [`ModelDir::resolve`] refuses; an element type that the backend does
    /// not have.
    pub fn new(
        named: &Path,
        adapter: Option<&Path>,
        open: &OpenArgs,
        global: &Global,
        output: &Output,
    ) -> Result<Opening> {
        let scores = [Capability::Score, Capability::Generate];
        let backend = backend(open, named, &scores, &Plugins::new(global)?, output)?;
        let ModelDir { model, adapter } = resolved_for(named, adapter, &[backend.backend.describe()], output)?;
        // One that names no families has a layout of its own.
        if !backend.backend.describe().model_families.is_empty() {
            has_config(&model)?;
            adapter.as_deref().map_or(Ok(()), has_adapter_config)?;
        }
        let config = OpenConfig { adapter, threads: open.threads.unwrap_or(0), ..OpenConfig::new(model) };
        let config = computed(config, &open.compute, &backend)?;
        Ok(Opening { backend, config })
    }

    /// The model of `karat score`, `karat generate` and the like.
    ///
    /// # Errors
    /// As [`Opening::new`].
    pub fn of(args: &ModelArgs, global: &Global, output: &Output) -> Result<Opening> {
        Opening::new(&args.model, args.adapter.as_deref(), &args.open, global, output)
    }

    /// Opens it, and says what its backend warns of.
    ///
    /// # Errors
    /// The backend's.
    pub fn session(&self, output: &Output) -> Result<Box<dyn Session>> {
        let session = self.backend.open(&self.config)?;
        opening_warnings(&self.config, &session.info()).iter().for_each(|w| output.say(format!("warning: {w}")));
        Ok(session)
    }
}

/// The backend that `open` names; for `auto` the one that is chosen for `capabilities` of the model
/// that `named` names, which is said.
///
/// # Errors
/// No such backend; none that does what is asked; what [`ModelDir::resolve`] refuses.
pub fn backend(
    open: &OpenArgs,
    named: &Path,
    capabilities: &[Capability],
    plugins: &Plugins,
    output: &Output,
) -> Result<LoadedBackend> {
    if open.backend() != AUTO {
        return plugins.backend(open.backend());
    }
    let model = match gguf_in(named) {
        Some(file) => file,
        None => ModelDir::resolve(named, None)?.model,
    };
    let dtype = match open.compute.dtype.map(element) {
        None => Dtype::F32,
        Some(Ok(dtype)) => dtype,
        Some(Err(few)) => {
            return Err(Error::usage(format!("--dtype {few} with --backend auto"))
                .help(format!("--backend onnxruntime computes in {few}")));
        }
    };
    let device = open.compute.device.as_deref().unwrap_or("cpu");
    let chosen = choose(&Asked { model: &model, capabilities, dtype, device }, plugins)?;
    output.say(chosen.why);
    Ok(chosen.backend)
}

/// [`ModelDir::resolve`], which says on which base an adapter was found to lie.
///
/// # Errors
/// As there.
pub fn resolved(named: &Path, adapter: Option<&Path>, output: &Output) -> Result<ModelDir> {
    let found = ModelDir::resolve(named, adapter)?;
    if found.model != named {
        output.say(format!("{} is an adapter; its base is {}", named.display(), found.model.display()));
    } else if adapter.is_none() && holds_both(named) {
        output.say(format!("warning: {}", said_of_both(named)));
    }
    Ok(found)
}

/// As [`resolved`], for backends that may run a GGUF file as it is: it becomes a folder with a link
/// to the file.
///
/// # Errors
/// As there; a backend that does not run such files.
pub fn resolved_for(
    named: &Path,
    adapter: Option<&Path>,
    backends: &[Descriptor],
    output: &Output,
) -> Result<ModelDir> {
    let Some(file) = gguf_in(named) else { return resolved(named, adapter, output) };
    if let Some(without) = backends.iter().find(|backend| !backend.capabilities.contains(&Capability::Gguf)) {
        return Err(Error::usage(format!("the backend {} does not run a GGUF file as it is", without.name))
            .at(file.display())
            .help(format!(
                "--backend candle does; or make a model folder of it: karat import --gguf {} --out DIR",
                file.display()
            )));
    }
    Ok(ModelDir { model: gguf_view(&file)?, adapter: adapter.map(Path::to_path_buf) })
}

/// `config` with the flags that say on what, and in what, a model is computed.
///
/// # Errors
/// Usage, for an element type that `backend` does not have, and for an option of another backend.
pub fn computed(config: OpenConfig, args: &ComputeArgs, backend: &LoadedBackend) -> Result<OpenConfig> {
    let described = backend.backend.describe();
    let mut options = config.options;
    for (key, value) in &args.option {
        // The backend's name may stand before a key, as `compare --backends` wants it.
        let key = match key.split_once('.') {
            None => key,
            Some((name, key)) if name == described.name => key,
            Some((name, _)) => {
                return Err(Error::usage(format!("--option {key}: the backend is {}, not {name}", described.name)));
            }
        };
        options.insert(key.into(), value.clone());
    }
    let mut dtype = config.dtype;
    if let Some(asked) = args.dtype {
        match element(asked) {
            Ok(floats) if described.dtypes.is_empty() || described.dtypes.contains(&floats) => dtype = floats,
            // A backend that writes models in its own format is one that can make their weights
            // smaller.
            Err(name) if described.capabilities.contains(&Capability::Export) => {
                options.insert(WEIGHTS.into(), name.into());
            }
            _ => return Err(no_such_dtype(asked, &described)),
        }
    }
    Ok(OpenConfig { device: args.device.clone().unwrap_or(config.device), dtype, options, ..config })
}

/// The option under which backends take weights of fewer bits than a float has.
pub const WEIGHTS: &str = "weights";

/// The element type of a session, or the name of weights that no session computes in.
pub fn element(dtype: ComputeDtype) -> std::result::Result<Dtype, &'static str> {
    match dtype {
        ComputeDtype::F32 => Ok(Dtype::F32),
        ComputeDtype::Bf16 => Ok(Dtype::Bf16),
        ComputeDtype::F16 => Ok(Dtype::F16),
        ComputeDtype::Int8 => Err("int8"),
        ComputeDtype::Int4 => Err("int4"),
    }
}

fn no_such_dtype(asked: ComputeDtype, described: &Descriptor) -> Error {
    let name = element(asked).map_or_else(String::from, |dtype| dtype.to_string());
    let known: Vec<String> = described.dtypes.iter().map(Dtype::to_string).collect();
    Error::usage(format!("--dtype {name}: the backend {} computes in {}", described.name, known.join(", ")))
        .help("leave it out, or name a backend that has it: native has bf16; onnxruntime has bf16, f16, int8 and int4 for evaluation")
}

/// Up to `max_new_tokens` sampled as typed, ended by `stop_ids`.
pub fn generate_config(sampling: &SamplingArgs, max_new_tokens: usize, stop_ids: Vec<u32>) -> GenerateConfig {
    GenerateConfig {
        temperature: sampling.temperature.unwrap_or(0.0),
        top_p: sampling.top_p,
        top_k: sampling.top_k,
        seed: sampling.seed,
        ..GenerateConfig::greedy(max_new_tokens, stop_ids)
    }
}

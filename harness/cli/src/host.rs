//! Backends as the command line gets them: plugins, searched for in the documented places.

use std::path::PathBuf;
use std::sync::Arc;

use karat::backend::{Dtype, GenerateConfig, OpenConfig};
use karat::plugin::{self, Found, Plugin, Search, find};
use karat::run::{Backends, LoadedBackend, Origin};
use karat::{Error, Result};

use crate::args::{Global, ModelArgs};
pub use crate::signals::cancel_on_signal as cancel_on_interrupt;

/// Loads plugins by name.
pub struct Plugins {
    files: Vec<PathBuf>,
    search: Search,
}

impl Plugins {
    /// `--backend-path` entries come first: files as they are, folders before the documented places.
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

    /// Every plugin there is: the files of `--backend-path`, then what the search finds under other names.
    pub fn list(&self) -> Vec<Found> {
        let mut all: Vec<Found> = Vec::new();
        for file in &self.files {
            let plugin = Plugin::load(file);
            let name = match &plugin {
                Ok(plugin) => plugin.descriptor().name,
                Err(_) => file.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned()),
            };
            let origin = plugin::Origin::Given;
            all.push(Found { name, path: file.clone(), origin, hidden: Vec::new(), plugin });
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
        find(name, &self.search)
    }
}

impl Backends for Plugins {
    fn backend(&self, name: &str) -> Result<LoadedBackend> {
        let plugin = self.plugin(name)?;
        let origin = Origin { path: Some(plugin.path().into()), sha256: Some(plugin.sha256().into()) };
        Ok(LoadedBackend { backend: Arc::new(plugin), origin })
    }
}

/// How a model named on the command line is opened.
pub fn open_config(model: &ModelArgs) -> OpenConfig {
    OpenConfig {
        adapter: model.adapter.clone(),
        device: model.device.clone(),
        dtype: Dtype::F32,
        threads: model.threads,
        ..OpenConfig::new(&model.model)
    }
}

/// The decoding settings of `karat generate`.
pub fn generate_config(args: &crate::args::GenerateArgs, stop_ids: Vec<u32>) -> GenerateConfig {
    GenerateConfig {
        max_new_tokens: args.max_new_tokens,
        temperature: args.temperature.unwrap_or(0.0),
        top_p: args.top_p,
        top_k: args.top_k,
        seed: args.seed,
        stop_ids,
        batch_size: args.batch_size,
    }
}

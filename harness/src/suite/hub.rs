//! The paths of a suite: relative ones found from its file, ids of the hubs brought to this machine,
//! and both as they were written.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{NamedModel, Suite};
use crate::error::Result;
use crate::hub::{self, Place};
use crate::run::models as runs;

impl Suite {
    /// Every path of the suite, with its key and what stands there.
    fn paths(&mut self) -> Vec<(String, Place, &mut PathBuf)> {
        let mut paths = Vec::new();
        let data = &mut self.data;
        for (key, split, part) in [
            ("data.file", "train", &mut data.file),
            ("data.train", "train", &mut data.train),
            ("data.validation", "validation", &mut data.validation),
            ("data.heldout", "test", &mut data.heldout),
        ] {
            let all = part.iter_mut().flat_map(|paths| &mut paths.0);
            paths.extend(all.map(|path| (key.to_string(), Place::Data(split), path)));
        }
        if let Some(general) = &mut self.eval.general {
            paths.push(("eval.general.file".into(), Place::Data("test"), &mut general.file));
        }
        if self.model.has_base() {
            paths.push(("model.base".into(), Place::Model, &mut self.model.base));
        }
        for (name, model) in &mut self.models.0 {
            let NamedModel { path, adapter, predictions, .. } = model;
            let texts = Place::Data("test");
            for (key, place, path) in
                [("path", Place::Model, path), ("adapter", Place::Model, adapter), ("predictions", texts, predictions)]
            {
                paths.extend(path.as_mut().map(|path| (format!("models.{name}.{key}"), place, path)));
            }
        }
        paths
    }

    /// Makes relative paths absolute, from the suite's folder.
    pub(super) fn resolve_paths(&mut self, folder: &Path) {
        for (key, _, path) in self.paths().into_iter().filter(|(_, _, path)| !hub::is_id(path)) {
            *path = match runs::resolve(path) {
                // `RUN:NAME` is of a run in the working folder, or below its `runs`.
                Ok(found) if key.starts_with("models.") && found != *path => found,
                _ => folder.join(&*path),
            };
        }
        if let Some(dir) = &mut self.track.dir {
            *dir = std::path::absolute(&*dir).unwrap_or_else(|_| folder.join(&*dir));
        }
    }

    /// Brings what is named by an id to this machine. `recorded` are the states that an earlier run
    /// in the same folder noted; those that the suite itself pins come before them.
    pub(super) fn bring(&mut self, recorded: &BTreeMap<String, String>) -> Result<()> {
        let pins: BTreeMap<String, String> =
            recorded.iter().chain(&self.pins).map(|(id, state)| (id.clone(), state.clone())).collect();
        let mut sources = Vec::new();
        for (key, place, path) in self.paths() {
            sources.extend(hub::bring(&key, path, place, &pins)?);
        }
        self.pins.extend(sources.iter().map(|source| (source.pin(), source.state.clone())));
        self.sources = sources;
        Ok(())
    }

    /// The suite with the ids in place of the paths that they became.
    pub(super) fn as_written(&self) -> Suite {
        self.with_ids(|source| source.id.clone())
    }

    /// The suite with each id in place of the path that it became, and the state that it meant in
    /// place of the revision.
    pub(crate) fn pinned(&self) -> Suite {
        Suite { pins: BTreeMap::new(), ..self.with_ids(hub::Source::pinned) }
    }

    fn with_ids(&self, id: impl Fn(&hub::Source) -> String) -> Suite {
        let mut suite = self.clone();
        for (key, _, path) in suite.paths() {
            // By the key and the path: a run may have come to other paths since.
            if let Some(source) = self.sources.iter().find(|source| source.key == key && source.local == *path) {
                *path = id(source).into();
            }
        }
        suite
    }
}

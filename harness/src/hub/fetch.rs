//! Ids fetched by the client.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use karat_hub::{Client, HubId, Progress, RepoKind, Settings, Silent, Snapshot, Want};

use super::{Place, Source, SourceFile};
use crate::error::{Error, Result};

/// How this process gets at the hubs.
#[derive(Clone)]
pub struct Access {
    /// Addresses, caches, tokens; offline or not.
    pub settings: Settings,
    /// Who is told, and may ask to stop.
    pub progress: Arc<dyn Progress + Send>,
}

/// Set once by the program: suites are read in many places, and none of them knows a terminal.
static ACCESS: Mutex<Option<Access>> = Mutex::new(None);

/// From now on ids are fetched so; before, silently and as the environment says.
pub fn allow(access: Access) {
    *ACCESS.lock().unwrap_or_else(PoisonError::into_inner) = Some(access);
}

fn access() -> Access {
    let access = ACCESS.lock().unwrap_or_else(PoisonError::into_inner).clone();
    access.unwrap_or_else(|| Access { settings: Settings::from_env(), progress: Arc::new(Silent) })
}

fn fetched(id: &HubId, place: Place, pin: Option<&str>) -> Result<Snapshot> {
    let Access { settings, progress } = access();
    let (kind, want) = match place {
        Place::Model => (RepoKind::Model, Want::Model),
        Place::Data(_) => (RepoKind::Dataset, Want::Data),
    };
    Client::new(settings).fetch(id, kind, &want, pin, &*progress)
}

/// What an id means here.
pub(super) fn found(key: &str, text: &str, place: Place, pins: &BTreeMap<String, String>) -> Result<Source> {
    let at = |e: Error| match e.place() {
        Some(_) => e,
        None => e.at(key),
    };
    let id = HubId::parse(text).map_err(at)?;
    let kind = match place {
        Place::Model => RepoKind::Model.word(),
        Place::Data(_) => RepoKind::Dataset.word(),
    };
    let pin = pins.get(&super::pin(kind, super::split(text).0)).map(String::as_str);
    let snapshot = fetched(&id, place, pin).map_err(at)?;
    let (local, used) = match place {
        Place::Model => (snapshot.local(), None),
        Place::Data(split) => {
            let (local, files) = of_split(&id, &snapshot, split)?;
            (local, Some(files))
        }
    };
    let is_used = |path: &str| used.as_ref().is_none_or(|used| used.contains(&snapshot.folder.join(path)));
    let files = snapshot.files.iter().filter(|file| is_used(&file.path));
    Ok(Source {
        key: key.into(),
        kind: kind.into(),
        id: text.into(),
        revision: id.asked_revision().into(),
        state: snapshot.state.clone(),
        licence: snapshot.licence.clone(),
        files: files.map(|file| SourceFile { path: file.path.clone(), sha256: file.sha256.clone() }).collect(),
        local,
    })
}

/// The files of a split, and where its reader finds them: a file, or the folder in which it tells the
/// parts by the same rules.
fn of_split(id: &HubId, snapshot: &Snapshot, split: &str) -> Result<(PathBuf, Vec<PathBuf>)> {
    let named = snapshot.splits.iter().filter(|(of, _)| of == split).map(|(_, path)| path.clone());
    let mut found: Vec<PathBuf> = named.collect();
    // A path says which files are meant, whatever their names say; so does a dataset of one file.
    if id.path.is_some() || snapshot.splits.len() == 1 {
        found = snapshot.splits.iter().map(|(_, path)| path.clone()).collect();
    }
    if let [one] = &found[..] {
        return Ok((one.clone(), found));
    }
    if !found.is_empty() {
        let folder = id.path.as_ref().map_or_else(|| snapshot.folder.clone(), |path| snapshot.folder.join(path));
        return Ok((folder, found));
    }
    let shown: Vec<String> = snapshot
        .splits
        .iter()
        .map(|(split, path)| {
            let path = path.strip_prefix(&snapshot.folder).unwrap_or(path);
            format!("{} ({split})", path.display())
        })
        .collect();
    let shown = match shown.len() {
        0..=8 => shown.join(", "),
        n => format!("{} and {} more", shown[..7].join(", "), n - 7),
    };
    Err(Error::usage(format!("this dataset has no files of the split {split:?}"))
        .at(id)
        .help(format!("name one of its files as {}/FILE; it has {shown}", id.repository())))
}

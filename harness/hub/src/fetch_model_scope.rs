//! A fetch from ModelScope: files as they are, in the folder of the revision that was asked for.
//!
//! ```text
//! $MODELSCOPE_CACHE/models/owner--name/snapshots/master/config.json
//! ~/.cache/modelscope/hub/models/owner/name___5/config.json         clients up to 1.37; looked at, not written
//! ```

use std::path::{Path, PathBuf};

use karat_system::{Error, ErrorKind, Result, fsio};

use crate::client::{Chosen, Job, Snapshot, SnapshotFile, Why};
use crate::http::{encoded, is_unreachable};
use crate::lock::Lock;
use crate::model_scope::ModelScope;
use crate::progress::Event;
use crate::record::{self, Record};
use crate::remote::{Hash, RemoteFile};
use crate::transfer::{self, INCOMPLETE, Meter};

/// Where a repository lies.
struct Place {
    repo: PathBuf,
    folder: PathBuf,
    /// As older clients kept it.
    old: PathBuf,
}

impl Place {
    fn new(job: &Job<'_>) -> Place {
        let (settings, id) = (&job.client.settings, job.id);
        let repo = settings.ms_cache.join(job.kind.plural()).join(format!("{}--{}", id.owner, id.name));
        let old = settings.ms_old_cache.join(job.kind.plural()).join(&id.owner).join(id.name.replace('.', "___"));
        Place { folder: repo.join("snapshots").join(id.asked_revision()), repo, old }
    }
}

pub(crate) fn fetch(job: &Job<'_>) -> Result<Snapshot> {
    let settings = &job.client.settings;
    let hub = ModelScope::new(&job.client.http, settings);
    let place = Place::new(job);
    let revision = job.id.asked_revision();
    let mut record = Record::read(&place.repo, revision);
    let before = record.clone();
    let mut files = std::mem::take(&mut record.files);
    let pinned = job.pin.is_some_and(|pin| !files.is_empty() && state(&files) == pin);
    let mut closed = settings.offline.then_some(Why::Offline);
    if !pinned && closed.is_none() {
        match hub.list(job.id, job.kind, job.progress) {
            Ok(listed) => files = listed,
            Err(e) if is_unreachable(&e) => {
                if !files.is_empty() || place.old.is_dir() {
                    job.note(&format!("{}; {} is taken from the cache as it was", e.what(), job.name()));
                }
                closed = Some(Why::Unreachable(e));
            }
            Err(e) => return Err(e),
        }
    }
    let known = !files.is_empty();
    let mut folder = place.folder.clone();
    if !known {
        // Another client's files, and nobody to ask what else belongs to them.
        folder = if place.folder.is_dir() { place.folder.clone() } else { place.old.clone() };
        files = lying(&folder);
        if let (true, Some(why)) = (files.is_empty(), &closed) {
            return Err(job.lacking(&["the repository"], why));
        }
    }
    let now = state(&files);
    if let Some(pin) = job.pin.filter(|pin| known && *pin != now) {
        return Err(moved(job, pin, &now));
    }
    let card = |file: &RemoteFile| {
        let local = folder.join(&file.path);
        let right = |path: &Path| std::fs::metadata(path).is_ok_and(|there| there.len() == file.size);
        if !right(&local) {
            if let Some(why) = &closed {
                return Err(job.lacking(&[&file.path], why));
            }
            let mut meter = Meter { progress: &crate::progress::Silent, done: 0, total: file.size };
            bring(job, &hub, &place, file, &mut meter)?;
        }
        std::fs::read_to_string(&local).map_err(|e| Error::io("read", &local, e))
    };
    let chosen = job.chosen(&files, &card)?;
    if let Some(here) = all_old(job, &place, &chosen, known)? {
        return Ok(job.snapshot(now, place.old.clone(), &chosen, here));
    }
    let (mut here, missing) = job.present(&folder, &chosen.wanted, &mut record)?;
    if !missing.is_empty() {
        if let Some(why) = &closed {
            let names: Vec<&str> = missing.iter().map(|file| file.path.as_str()).collect();
            return Err(job.lacking(&names, why));
        }
        let partial = |file: &RemoteFile| std::fs::metadata(partial(&place, file)).map_or(0, |m| m.len());
        let total = job.begin(&place.repo, &missing, &partial)?;
        let mut meter = Meter { progress: job.progress, done: 0, total };
        for file in missing {
            let sha256 = bring(job, &hub, &place, file, &mut meter)?;
            record.note(&file.path, &folder.join(&file.path), &sha256);
            here.push(SnapshotFile { path: file.path.clone(), size: file.size, sha256 });
        }
        job.progress.event(Event::End);
    }
    here.sort_by(|a, b| a.path.cmp(&b.path));
    let snapshot = job.snapshot(now, folder, &chosen, here);
    drop(chosen);
    if known {
        record.files = files;
    }
    if record != before {
        record.keep(&place.repo, revision);
    }
    Ok(snapshot)
}

/// A digest over paths and hashes of all files: ModelScope names no commit.
fn state(files: &[RemoteFile]) -> String {
    let mut lines: Vec<String> = files
        .iter()
        .map(|file| format!("{}\0{}\0{}\n", file.path, file.size, file.hash.as_ref().map_or("", Hash::digits)))
        .collect();
    lines.sort();
    format!("sha256:{}", fsio::sha256(lines.concat().as_bytes()))
}

fn moved(job: &Job<'_>, pin: &str, now: &str) -> Error {
    Error::new(
        ErrorKind::Usage,
        format!("{} has changed since this run began: it was {}, and is {}", job.name(), short(pin), short(now)),
    )
    .at(job.id)
    .help("ModelScope keeps no older state of a branch: begin anew with what is there now (--fresh, or another --out), or name a tag")
}

/// A state in few letters.
fn short(state: &str) -> &str {
    let end = state.find(':').map_or(0, |at| at + 1) + 12;
    state.get(..end).unwrap_or(state)
}

/// The files below a folder, of unknown hashes.
fn lying(root: &Path) -> Vec<RemoteFile> {
    let (mut files, mut folders) = (Vec::new(), vec![root.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            let Ok(metadata) = std::fs::metadata(&path) else { continue };
            let passing = name.to_string_lossy();
            if metadata.is_dir() {
                folders.push(path);
            } else if !passing.starts_with('.') && !passing.ends_with(".incomplete") {
                let inside = path.strip_prefix(root).ok().and_then(Path::to_str).map(|p| p.replace('\\', "/"));
                files.extend(inside.map(|path| RemoteFile { path, size: metadata.len(), hash: None }));
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    files
}

/// The wanted files where an older client kept them, if all are there and right, and the new place
/// has none of them.
fn all_old(job: &Job<'_>, place: &Place, chosen: &Chosen<'_>, known: bool) -> Result<Option<Vec<SnapshotFile>>> {
    if place.folder.is_dir() || !place.old.is_dir() {
        return Ok(None);
    }
    let there = |file: &&&RemoteFile| place.old.join(&file.path).is_file();
    // Words are for people; an older client may have left them out.
    let wanted: Vec<&RemoteFile> = chosen.wanted.iter().filter(there).copied().collect();
    let is_needed = |file: &&&RemoteFile| file.path.ends_with(".safetensors") || file.path.ends_with(".json") || !known;
    if chosen.wanted.iter().filter(is_needed).any(|file| !place.old.join(&file.path).is_file()) {
        return Ok(None);
    }
    let mut record = Record::read(&place.repo, "older");
    let before = record.clone();
    let (here, wrong) = job.present(&place.old, &wanted, &mut record)?;
    if record != before {
        record.keep(&place.repo, "older");
    }
    Ok((wrong.is_empty() && !here.is_empty()).then_some(here))
}

fn partial(place: &Place, file: &RemoteFile) -> PathBuf {
    let path = place.folder.join(&file.path);
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    path.with_file_name(format!("{name}{INCOMPLETE}"))
}

/// Brings one file into the folder; its SHA-256.
fn bring(
    job: &Job<'_>,
    hub: &ModelScope<'_>,
    place: &Place,
    file: &RemoteFile,
    meter: &mut Meter<'_>,
) -> Result<String> {
    let lock = place.repo.join(record::FOLDER).join(format!("{}.lock", encoded(job.id.asked_revision(), false)));
    let target = place.folder.join(&file.path);
    let _lock = Lock::take(&lock, &file.path, job.progress)?;
    let folder = target.parent().unwrap_or(&place.folder);
    std::fs::create_dir_all(folder)
        .map_err(|e| Error::io("create the folder", folder, e).help("MODELSCOPE_CACHE puts the cache elsewhere"))?;
    // Another process may have brought it while this one waited.
    if let (Some(hash), Ok(there)) = (&file.hash, std::fs::metadata(&target))
        && there.len() == file.size
        && let (sha256, true) = crate::hash::of_file(&target, Some(hash), job.progress)?
    {
        meter.skip(&file.path, file.size);
        return Ok(sha256);
    }
    if file.hash.is_none() {
        job.note(&format!("{}: the hub gives no hash of {}: its size alone is checked", job.name(), file.path));
    }
    let url = hub.url(job.id, job.kind, &file.path);
    let fetched = transfer::fetch(
        hub.http,
        &transfer::Job {
            name: &file.path,
            url: &url,
            sign: &hub.sign,
            size: file.size,
            hash: file.hash.as_ref(),
            partial: partial(place, file),
            target: &target,
        },
        meter,
    );
    fetched.map_err(|e| {
        if e.place() == Some(file.path.as_str()) { e.at(format!("{}/{}", job.name(), file.path)) } else { e }
    })
}

//! `karat download`: a repository of a hub into the cache, for a machine that has no network later.

use karat::Result;

use crate::args::{DownloadArgs, Global};
use crate::output::Output;

#[cfg(not(feature = "hub"))]
pub fn run(args: &DownloadArgs, _: &Global, _: &Output) -> Result<u8> {
    let mut path = args.id.clone().into();
    karat::hub::bring("the id", &mut path, karat::hub::Place::Model, &Default::default()).map(|_| 0)
}

#[cfg(feature = "hub")]
pub fn run(args: &DownloadArgs, global: &Global, output: &Output) -> Result<u8> {
    use karat::Error;
    use karat::hub::client::{Client, HubId, RepoKind, Settings, Want, in_words};
    use serde_json::json;

    let mut id = HubId::parse(&args.id).map_err(|e| match karat::model_dir::hub_id(args.id.as_ref()) {
        Some(name) => {
            Error::usage("this does not say on which hub").at(name).help(format!("give hf:{name} or ms:{name}"))
        }
        None => e,
    })?;
    if let Some(revision) = &args.revision {
        if id.revision.is_some() {
            return Err(Error::usage("the id names a revision, and so does --revision").at(&args.id).help("give one"));
        }
        let path = id.path.as_ref().map_or_else(String::new, |path| format!("/{path}"));
        let written = if revision.starts_with("refs/") { revision.clone() } else { revision.replace('/', "%2F") };
        id = HubId::parse(&format!("{}@{written}{path}", id.repository()))?;
    }
    let kind = if args.dataset { RepoKind::Dataset } else { RepoKind::Model };
    let want = match (args.include.is_empty(), args.dataset) {
        (false, _) => Want::Patterns(args.include.clone()),
        (true, true) => Want::Data,
        (true, false) => Want::Model,
    };
    let mut settings = Settings::from_env();
    settings.offline |= global.offline;
    let progress = crate::downloads::Downloads::new(output, true)?;
    let found = Client::new(settings).fetch(&id, kind, &want, None, &progress)?;
    drop(progress);
    let bytes: u64 = found.files.iter().map(|file| file.size).sum();
    let licence = found.licence.as_deref().unwrap_or("not named by its card");
    let text = format!(
        "{}\n  {} at {}, {} files, {}, licence: {licence}\n",
        found.local().display(),
        id.repository(),
        found.state,
        found.files.len(),
        in_words(bytes),
    );
    let files = found.files.iter().map(|f| json!({ "path": f.path, "size": f.size, "sha256": f.sha256 }));
    let splits = found.splits.iter().map(|(split, path)| json!({ "split": split, "path": path }));
    let object = json!({
        "id": id.to_string(), "kind": kind.word(), "revision": id.asked_revision(), "state": found.state,
        "path": found.local(), "folder": found.folder, "licence": found.licence, "bytes": bytes,
        "files": files.collect::<Vec<_>>(), "splits": splits.collect::<Vec<_>>(),
    });
    output.result(&object, &text)?;
    Ok(0)
}

//! `karat cache`: what the caches of the hubs hold, and what of it nobody needs.

use karat::Result;

use crate::args::CacheArgs;
use crate::output::Output;

#[cfg(not(feature = "hub"))]
pub fn run(_: &CacheArgs, _: &Output) -> Result<u8> {
    Err(karat::Error::usage("this karat is built without a client of the hubs").help("build it with its feature `hub`"))
}

#[cfg(feature = "hub")]
pub fn run(args: &CacheArgs, output: &Output) -> Result<u8> {
    use std::fmt::Write;

    use karat::hub::client::{Settings, in_words, survey};
    use karat::hub::short;
    use serde_json::{Value, json};

    use crate::output::shown;

    let settings = Settings::from_env();
    let (mut text, mut objects, mut total, mut freed) = (String::new(), Vec::new(), 0, 0);
    let sum = |files: &[(std::path::PathBuf, u64)]| files.iter().map(|(_, bytes)| bytes).sum::<u64>();
    let mut idle = 0;
    let all = survey(&settings);
    let width = all.iter().map(|one| one.id().chars().count()).max().unwrap_or(0);
    for one in &all {
        total += one.bytes;
        let (dangling, incomplete) = (sum(&one.dangling), sum(&one.incomplete));
        idle += dangling + incomplete;
        let word = if one.kind.word() == "dataset" { "dataset" } else { "model  " };
        let _ = write!(text, "{word}  {:<width$}  {:>7}", shown(&one.id()), in_words(one.bytes));
        let revisions: Vec<String> = one
            .revisions
            .iter()
            .map(|(state, names)| match names.is_empty() {
                true => short(state).to_string(),
                false => format!("{} ({})", short(state), names.join(", ")),
            })
            .collect();
        let _ = write!(text, "  {}", shown(&revisions.join(", ")));
        for (bytes, what) in [(dangling, "in no snapshot"), (incomplete, "incomplete")] {
            if bytes > 0 {
                let _ = write!(text, "; {} {what}", in_words(bytes));
            }
        }
        if !one.broken.is_empty() {
            let _ = write!(text, "; {} links to nothing", one.broken.len());
        }
        text.push('\n');
        if args.prune {
            freed += one.prune()?;
        }
        let listed = |files: &[(std::path::PathBuf, u64)]| -> Vec<Value> {
            files.iter().map(|(path, bytes)| json!({ "path": path, "bytes": bytes })).collect()
        };
        let revisions = one.revisions.iter().map(|(state, names)| json!({ "state": state, "names": names }));
        objects.push(json!({
            "id": one.id(), "kind": one.kind.word(), "folder": one.folder, "bytes": one.bytes, "files": one.files,
            "revisions": revisions.collect::<Vec<_>>(), "dangling": listed(&one.dangling),
            "incomplete": listed(&one.incomplete), "broken": one.broken,
        }));
    }
    let places = format!("{} and {}", settings.hf_cache.display(), settings.ms_cache.display());
    let _ = match all.is_empty() {
        true => writeln!(text, "nothing in {}", shown(&places)),
        false => writeln!(text, "{} in {}", in_words(total), shown(&places)),
    };
    if args.prune {
        let _ = writeln!(text, "{} removed", in_words(freed));
    } else if idle > 0 {
        let _ = writeln!(text, "{} of it nobody needs: karat cache --prune", in_words(idle));
    }
    let object = json!({
        "repositories": objects, "bytes": total, "hf_cache": settings.hf_cache, "ms_cache": settings.ms_cache,
        "pruned_bytes": args.prune.then_some(freed),
    });
    output.result(&object, &text)?;
    Ok(0)
}

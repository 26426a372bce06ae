//! Data files by name: one file, a folder, a pattern; and which of a folder's files are of which
//! part.
//!
//! The part of a file is what the dataset's card says (`README.md`, `configs` in its YAML head), else
//! what its name says (`train`, `test`, `validation` and the like as a word of the name or of a folder
//! above it), as the Hugging Face hub has it; where no name says anything, every file is of every part.
//! Files come in the order of their paths.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use karat_system::dataset::Card;
pub use karat_system::dataset::Part;
use karat_system::glob;

use super::read::ENDINGS;
use super::unpack;
use crate::{Error, Result, model_dir};

/// Folders below a folder that are looked into, and files that are taken.
const DEEPEST: usize = 8;
const MOST_FILES: usize = 100_000;

/// The files of each part of a data set, in order; one without a name is under none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// Files of which the part is known.
    pub of: BTreeMap<Part, Vec<String>>,
    /// Of each part, the card's splits that are it, each with its first pattern.
    pub splits: BTreeMap<Part, Vec<(String, String)>>,
    /// Files of which nothing says the part.
    pub other: Vec<String>,
    /// What a reader of the data must know of how this was found.
    pub note: Option<String>,
}

/// The parts of a data set whose files have these names, relative to its folder with `/` between
/// folders. `card` is the text of its `README.md`.
///
/// # Errors
/// If the card has several configurations, of which nobody says which is meant.
pub fn parts(card: Option<&str>, names: &[String]) -> Result<Parts> {
    let mut names: Vec<&String> = names.iter().filter(|name| is_data(Path::new(name))).collect();
    names.sort_unstable();
    names.dedup();
    let mut parts = Parts::default();
    let card = card.map(Card::parse).transpose().unwrap_or_else(|e| {
        parts.note = Some(format!("{}: parts are told by file names", e.what()));
        None
    });
    let card = card.unwrap_or_default();
    let config = card
        .config()
        .map_err(|e| e.help("name the files of the one that is meant, e.g. train = \"FOLDER/CONFIG/*.parquet\""))?;
    if let Some(config) = config {
        let mut seen = BTreeSet::new();
        // Splits of other names (`train_sft`) are told by their words, unless one has the part's own.
        let own = |part: Part| config.files.iter().any(|(split, _)| Part::of_word(split) == Some(part));
        for (split, pattern) in &config.files {
            let Some(part) = Part::of_name(split) else { continue };
            if Part::of_word(split).is_none() && own(part) {
                continue;
            }
            // A file that two patterns name is read once.
            let found = names.iter().filter(|name| glob::matches(pattern, name, glob::Style::Globstar));
            let found = found.filter(|name| seen.insert((part, name.as_str()))).map(|name| (*name).clone());
            parts.of.entry(part).or_default().extend(found);
            let splits = parts.splits.entry(part).or_default();
            if !splits.iter().any(|(name, _)| name == split) {
                splits.push((split.clone(), pattern.clone()));
            }
        }
        parts.of.retain(|_, files| !files.is_empty());
        if !parts.of.is_empty() {
            return Ok(parts);
        }
        parts.splits.clear();
        parts.note = Some("the dataset's card names files that are not there: parts are told by file names".into());
    }
    for name in names {
        match Part::of_path(name) {
            Some(part) => parts.of.entry(part).or_default().push(name.clone()),
            None => parts.other.push(name.clone()),
        }
    }
    Ok(parts)
}

/// What describes a data set beside its files.
const DESCRIPTIONS: [&str; 4] = ["dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json"];

/// Whether a file's name is of a data file.
fn is_data(path: &Path) -> bool {
    let described = path.file_name().is_some_and(|name| DESCRIPTIONS.iter().any(|known| name == *known));
    !described && ENDINGS.contains(&unpack::ending(path).0.as_str())
}

/// Whether a name fits a pattern: `*` within a folder, `**` across folders, `?` one character.
fn matches(pattern: &str, name: &str) -> bool {
    let pattern = pattern.strip_prefix("./").unwrap_or(pattern);
    glob::matches(pattern, name, glob::Style::Literal)
}

/// The files that a path stands for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// In order; at least one.
    pub files: Vec<PathBuf>,
    /// What a reader of the data must know of how they were found.
    pub note: Option<String>,
}

/// The files that `path` stands for as the part `part`: itself, the matches of a pattern (`*`, `**`,
/// `?`), or of a folder those of the part. A held-out part is the test part, else the validation part.
///
/// # Errors
/// Usage, if there is no such file, none matches, or a folder has none of that part.
pub fn found(path: &Path, part: Part) -> Result<Found> {
    if path.is_dir() {
        return of_folder(path, part);
    }
    if path.exists() {
        return Ok(Found { files: vec![path.to_path_buf()], note: None });
    }
    let text = path.to_string_lossy();
    if text.contains(['*', '?']) {
        return of_pattern(path, &text);
    }
    if path == Path::new("-") {
        return Err(Error::usage("standard input is not read here").at("-").help("give the path of a file"));
    }
    let near = model_dir::near(path).map_or(String::new(), |near| format!("; {near}"));
    Err(Error::usage("no such data file")
        .at(path.display())
        .help(format!("paths in a suite are relative to the suite file{near}")))
}

fn of_pattern(path: &Path, text: &str) -> Result<Found> {
    let plain = text.split('/').take_while(|part| !part.contains(['*', '?'])).collect::<Vec<_>>().join("/");
    let folder = PathBuf::from(if plain.is_empty() && text.starts_with('/') { "/" } else { &plain });
    let pattern = text[plain.len()..].trim_start_matches('/');
    let folder_read = if plain.is_empty() && !text.starts_with('/') { Path::new(".") } else { &folder };
    let mut names = Vec::new();
    if folder_read.is_dir() {
        walk(folder_read, "", 0, &mut names)?;
    }
    names.retain(|name| matches(pattern, name));
    names.sort_unstable();
    if names.is_empty() {
        return Err(Error::usage("no file matches this pattern")
            .at(path.display())
            .help("`*` stands for part of a name, `**` for folders; paths in a suite are relative to the suite file"));
    }
    Ok(Found { files: names.iter().map(|name| folder.join(name)).collect(), note: None })
}

fn of_folder(folder: &Path, part: Part) -> Result<Found> {
    let mut names = Vec::new();
    walk(folder, "", 0, &mut names)?;
    let card = fs::read(folder.join("README.md")).ok().map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let parts = parts(card.as_deref(), &names).map_err(|e| e.at(folder.display()))?;
    let Parts { mut of, splits, other, note } = parts;
    let wanted: &[Part] = if part == Part::Test { &[Part::Test, Part::Validation] } else { &[part] };
    let listed = |of: &BTreeMap<Part, Vec<String>>, but: Option<Part>| {
        let parts = of.iter().filter(|(part, _)| Some(**part) != but);
        parts.map(|(part, files)| format!("{} ({})", part.name(), files.len())).collect::<Vec<_>>()
    };
    let mut notes: Vec<String> = note.into_iter().collect();
    let files = match wanted.iter().find_map(|part| Some((*part, of.remove(part)?))) {
        Some((taken, files)) => {
            if let Some([(_, first), _, ..]) = splits.get(&taken).map(Vec::as_slice) {
                let names: Vec<&str> = splits[&taken].iter().map(|(split, _)| split.as_str()).collect();
                let what =
                    format!("the dataset has several splits that are the part {}: {}", taken.name(), names.join(", "));
                let pattern = folder.join(first);
                return Err(Error::usage(what)
                    .at(folder.display())
                    .help(format!("name the files of those that are meant, e.g. {}", pattern.display())));
            }
            let mut left = listed(&of, None);
            if !other.is_empty() {
                left.push(format!("other files ({})", other.len()));
            }
            if !left.is_empty() {
                let left = left.join(", ");
                notes.push(format!(
                    "of the folder {} only the part {} is read, not {left}",
                    shown(folder),
                    taken.name()
                ));
            }
            files
        }
        None if of.is_empty() => other,
        None => {
            let what =
                format!("the folder has no files of the part {}, only {}", part.name(), listed(&of, None).join(", "));
            return Err(Error::usage(what)
                .at(folder.display())
                .help("name the files, or a pattern such as FOLDER/*.jsonl"));
        }
    };
    if files.is_empty() {
        let what = format!("the folder has no data file ({})", ENDINGS.join(", "));
        return Err(Error::usage(what).at(folder.display()).help("give a folder with data files, or the files"));
    }
    let note = (!notes.is_empty()).then(|| notes.join("; "));
    Ok(Found { files: files.iter().map(|name| folder.join(name)).collect(), note })
}

fn shown(path: &Path) -> String {
    path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}

/// The names of all files below `folder`, relative to it; what is hidden is left out.
fn walk(folder: &Path, prefix: &str, depth: usize, names: &mut Vec<String>) -> Result<()> {
    let fail = |e| Error::io("read the folder", folder, e);
    for entry in fs::read_dir(folder).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if name.starts_with('.') {
            continue;
        }
        let (path, name) = (entry.path(), format!("{prefix}{name}"));
        if path.is_dir() {
            if depth < DEEPEST {
                walk(&path, &format!("{name}/"), depth + 1, names)?;
            }
        } else if names.len() < MOST_FILES {
            names.push(name);
        } else {
            return Err(Error::usage(format!("more than {MOST_FILES} files")).at(folder.display()).help("name fewer"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_within_folders_and_across() {
        for (pattern, name, fit) in [
            ("data/train-*", "data/train-0.parquet", true),
            ("data/*", "data/a/b.csv", false),
            ("**", "a/b/c.csv", true),
            ("**/*.csv", "c.csv", true),
            ("**/*.csv", "a/b/c.csv", true),
            ("a/**/c.csv", "a/c.csv", true),
            ("a/**/c.csv", "a/xc.csv", false),
            ("?.csv", "a.csv", true),
            ("?.csv", "ab.csv", false),
            ("./a.csv", "a.csv", true),
            ("*a*a*a*a*a*a*b", &"a".repeat(2000), false),
        ] {
            assert_eq!(matches(pattern, name), fit, "{pattern} {name}");
        }
    }
}

//! Which files of a repository are wanted: of a model, of a dataset by split, by name. What could
//! run code when it is read is never fetched.

use karat_system::dataset::{Card, Part, shortened};
use karat_system::glob::{Style, matches};
use karat_system::{Error, Result};

use crate::id::HubId;
use crate::remote::RemoteFile;

/// Files of a model that are not weights.
const OF_MODEL: [&str; 13] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "adapter_config.json",
    "model.safetensors.index.json",
];
/// Data by the end of its name; compressed ones end in `.gz` or `.zst` behind it.
const OF_DATA: [&str; 5] = ["jsonl", "json", "csv", "tsv", "parquet"];
/// What else may be fetched by name.
const HARMLESS: [&str; 8] = ["safetensors", "gguf", "txt", "md", "jinja", "model", "yaml", "yml"];
/// What Python runs code for when it loads it.
const PICKLES: [&str; 9] = ["bin", "pt", "pth", "ckpt", "pkl", "pickle", "joblib", "npy", "npz"];
/// Code.
const SCRIPTS: [&str; 11] = ["py", "sh", "ipynb", "js", "so", "dll", "exe", "bat", "ps1", "rb", "pyc"];
/// Descriptions in JSON that are no data.
const NO_DATA: [&str; 5] =
    ["dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json", "configuration.json"];

fn name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// The end of a name, in lower case; of a compressed file the one before that.
fn ending(path: &str) -> String {
    let name = name(path).to_lowercase();
    let plain = name.strip_suffix(".gz").or_else(|| name.strip_suffix(".zst")).unwrap_or(&name);
    plain.rsplit_once('.').map_or_else(String::new, |(_, end)| end.to_string())
}

/// Words of an owner: the card, the licence, what it asks of users.
fn is_words(path: &str) -> bool {
    let upper = path.to_uppercase();
    !path.contains('/')
        && ["LICENSE", "LICENCE", "NOTICE", "README.MD", "USE_POLICY", "COPYING"].iter().any(|n| upper.starts_with(n))
        && matches!(ending(path).as_str(), "" | "md" | "txt")
}

fn is_data(path: &str) -> bool {
    OF_DATA.contains(&ending(path).as_str())
        && !NO_DATA.contains(&name(path))
        && !path.split('/').any(|part| part.starts_with(['.', '_']))
}

/// Why a file is never fetched; none if it may be.
pub(crate) fn forbidden(path: &str) -> Option<&'static str> {
    let ending = ending(path);
    match ending.as_str() {
        e if PICKLES.contains(&e) => Some("is of a kind that runs code when it is loaded (a pickle)"),
        e if SCRIPTS.contains(&e) => Some("is code, and code of a repository is never run"),
        e if OF_DATA.contains(&e) || HARMLESS.contains(&e) || is_words(path) => None,
        _ => Some("is of no kind that is read here"),
    }
}

fn is_weights(path: &str) -> bool {
    !path.contains('/') && path.ends_with(".safetensors")
}

/// `model.safetensors`, or a part of it: `model-00001-of-00002.safetensors`.
fn is_usual_weights(path: &str) -> bool {
    let stem = path.strip_suffix(".safetensors").and_then(|stem| stem.strip_prefix("model"));
    stem.is_some_and(|rest| {
        let part = rest.strip_prefix('-').and_then(|rest| rest.split_once("-of-"));
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        rest.is_empty() || part.is_some_and(|(n, of)| digits(n) && digits(of))
    })
}

/// The files of a model or an adapter.
///
/// # Errors
/// Usage, for a repository that holds none in a form that is read here, with what to do.
pub(crate) fn of_model<'a>(files: &'a [RemoteFile], id: &HubId, page: &str) -> Result<Vec<&'a RemoteFile>> {
    let has = |name: &str| files.iter().any(|file| file.path == name);
    let is_model = has("config.json");
    let is_adapter = has("adapter_config.json") && !is_model;
    if !is_model && !is_adapter {
        let gguf: Vec<&str> = files.iter().map(|f| f.path.as_str()).filter(|path| ending(path) == "gguf").collect();
        let error = Error::usage("this repository has no config.json at its top, so it is no model").at(id);
        return Err(match gguf.as_slice() {
            [] => error.help(format!("look what it holds at {page}")),
            [first, ..] => error.help(format!(
                "it holds GGUF files: name one, {}:{}/{first} ({})",
                id.site.prefix(),
                id.repo(),
                shortened(&gguf)
            )),
        });
    }
    let usual = files.iter().any(|file| is_usual_weights(&file.path));
    let weights = |path: &str| match is_adapter {
        true => path == "adapter_model.safetensors",
        false if usual => is_usual_weights(path),
        false => is_weights(path) && path != "adapter_model.safetensors",
    };
    if !files.iter().any(|file| weights(&file.path)) {
        let pickles: Vec<&str> =
            files.iter().map(|f| f.path.as_str()).filter(|path| PICKLES.contains(&ending(path).as_str())).collect();
        let error = Error::usage(match pickles.is_empty() {
            true => "this repository has no weights in safetensors".to_string(),
            false => format!(
                "the weights are there as {} alone, a pickle that runs code when it is loaded: it is not fetched",
                shortened(&pickles)
            ),
        });
        return Err(error.at(id).help(match is_adapter {
            true => "ask its owner for adapter_model.safetensors, or make it where you trust the file: load it with peft, \
                     and save_pretrained(DIR, safe_serialization=True)"
                .to_string(),
            false => format!(
                "look for a revision with safetensors ({page}/discussions: {}:{}@refs/pr/N), or convert it where you trust \
                 it: AutoModelForCausalLM.from_pretrained({:?}).save_pretrained(DIR)",
                id.site.prefix(),
                id.repo(),
                id.repo()
            ),
        }));
    }
    let wanted = |file: &&RemoteFile| {
        let path = file.path.as_str();
        OF_MODEL.contains(&path) || weights(path) || is_words(path) || is_other_template(path)
    };
    Ok(files.iter().filter(wanted).collect())
}

/// Chat templates that a tokenizer has beside its own.
fn is_other_template(path: &str) -> bool {
    path.starts_with("additional_chat_templates/") && path.ends_with(".jinja")
}

/// A file, or the files that may be fetched below a folder.
///
/// # Errors
/// Usage, for what is not there or is never fetched.
pub(crate) fn at_path<'a>(files: &'a [RemoteFile], path: &str, id: &HubId) -> Result<Vec<&'a RemoteFile>> {
    if let Some(file) = files.iter().find(|file| file.path == path) {
        return match forbidden(path) {
            None => Ok(vec![file]),
            Some(why) => Err(Error::usage(format!("this file {why}: it is not fetched"))
                .at(id)
                .help("only safetensors, GGUF, JSON, JSONL, CSV, TSV, Parquet and text are")),
        };
    }
    let below = format!("{path}/");
    let found: Vec<&RemoteFile> =
        files.iter().filter(|file| file.path.starts_with(&below) && forbidden(&file.path).is_none()).collect();
    if found.is_empty() {
        let all: Vec<&str> = files.iter().map(|f| f.path.as_str()).filter(|path| forbidden(path).is_none()).collect();
        let there = if all.is_empty() {
            "it holds nothing that is fetched".into()
        } else {
            format!("it has {}", shortened(&all))
        };
        return Err(Error::usage("the repository has no such file or folder").at(id).help(there));
    }
    Ok(found)
}

/// The files that one of some patterns names, and its owner's words.
///
/// # Errors
/// Usage, for a pattern that names nothing, or only what is never fetched.
pub(crate) fn by_patterns<'a>(files: &'a [RemoteFile], patterns: &[String], id: &HubId) -> Result<Vec<&'a RemoteFile>> {
    for pattern in patterns {
        let mut named = files.iter().filter(|file| matches(pattern, &file.path, Style::Fnmatch)).peekable();
        let Some(first) = named.peek().copied() else {
            let all: Vec<&str> = files.iter().map(|f| f.path.as_str()).collect();
            return Err(Error::usage(format!("--include {pattern:?} names no file of the repository"))
                .at(id)
                .help(format!("it has {}", shortened(&all))));
        };
        if named.all(|file| forbidden(&file.path).is_some()) {
            let why = forbidden(&first.path).unwrap_or_default();
            return Err(Error::usage(format!("--include {pattern:?} names {}, which {why}", first.path))
                .at(id)
                .help("only safetensors, GGUF, JSON, JSONL, CSV, TSV, Parquet and text are fetched"));
        }
    }
    let wanted = |file: &&RemoteFile| {
        let named = patterns.iter().any(|pattern| matches(pattern, &file.path, Style::Fnmatch));
        is_words(&file.path) || (named && forbidden(&file.path).is_none())
    };
    Ok(files.iter().filter(wanted).collect())
}

/// The data files of a dataset with their splits, in the order of their paths.
///
/// The card says which file is which; without it a file's name does, or a folder's: `train*`,
/// `test*`, `validation*`, `valid*`, `val*`, `dev*`; where none is named so, all are `train`.
///
/// # Errors
/// Usage, for a dataset without files that are read here, and for one with several configurations
/// of which none is the default.
pub(crate) fn of_data<'a>(files: &'a [RemoteFile], card: &Card, id: &HubId) -> Result<Vec<(String, &'a RemoteFile)>> {
    let usual = |split: &str| Part::of_word(split).map_or_else(|| split.to_string(), |part| part.name().to_string());
    let below = id.path.as_ref().map(|path| format!("{path}/"));
    let within = |file: &RemoteFile| {
        id.path.as_ref().is_none_or(|path| file.path == *path)
            || below.as_ref().is_some_and(|b| file.path.starts_with(b))
    };
    let mut data: Vec<&RemoteFile> = files.iter().filter(|file| is_data(&file.path) && within(file)).collect();
    data.sort_by(|a, b| a.path.cmp(&b.path));
    if data.is_empty() {
        return Err(no_data(files, id));
    }
    let config = if id.path.is_none() { card.config() } else { Ok(None) };
    let config = config.map_err(|e| {
        let first = card.configs.iter().find_map(|config| config.files.first()).map_or("", |(_, pattern)| pattern);
        let folder = first.split_once('/').map_or(first, |(folder, _)| folder);
        let named = format!("{}:{}/{folder}", id.site.prefix(), id.repo());
        e.at(id).help(format!("name the files that are meant, or their folder: {named}"))
    })?;
    if let Some(config) = config {
        let mut found: Vec<(String, &RemoteFile)> = Vec::new();
        for (split, pattern) in &config.files {
            let named = data.iter().filter(|file| matches(pattern, &file.path, Style::Globstar));
            found.extend(named.map(|file| (usual(split), *file)));
        }
        if !found.is_empty() {
            found.sort_by(|a, b| (&a.0, &a.1.path).cmp(&(&b.0, &b.1.path)));
            found.dedup();
            return Ok(found);
        }
    }
    let named: Vec<Option<Part>> = data.iter().map(|file| Part::of_path(&file.path)).collect();
    let any = named.iter().any(Option::is_some);
    let split = |found: Option<Part>| found.unwrap_or(Part::Train).name().to_string();
    // Beside files of splits, one of no split belongs to none.
    Ok(data
        .into_iter()
        .zip(named)
        .filter(|(_, found)| !any || found.is_some())
        .map(|(file, found)| (split(found), file))
        .collect())
}

fn no_data(files: &[RemoteFile], id: &HubId) -> Error {
    let error = |what: &str| Error::usage(what).at(id);
    if id.path.is_some() {
        let all: Vec<&str> = files.iter().map(|f| f.path.as_str()).filter(|path| is_data(path)).collect();
        return error("the dataset has no such file, or folder with data").help(if all.is_empty() {
            "it holds no data files".into()
        } else {
            format!("it has {}", shortened(&all))
        });
    }
    if files.iter().any(|file| SCRIPTS.contains(&ending(&file.path).as_str())) {
        return error("the data of this repository is made by a script, which is never run").help(format!(
            "Hugging Face keeps the result of it as Parquet: {}:{}@refs/convert/parquet",
            id.site.prefix(),
            id.repo()
        ));
    }
    let all: Vec<&str> = files.iter().map(|f| f.path.as_str()).collect();
    error("this repository has no data files that are read here (JSONL, JSON, CSV, TSV, Parquet)")
        .help(format!("it has {}", if all.is_empty() { "none at all".into() } else { shortened(&all) }))
}

#[cfg(test)]
#[path = "choose/tests.rs"]
mod tests;

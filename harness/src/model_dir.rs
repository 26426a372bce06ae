//! Models and files as people name them, found on this machine: a folder in the Hugging Face
//! layout, an adapter's folder (PEFT layout) which is opened on its base, and for a path that leads
//! nowhere what was probably meant.
//!
//! All of it is asked before a template, a tokenizer or weights are: a user who typed the wrong
//! path learns that, not what is missing in a folder that does not exist.

use std::path::{Path, PathBuf};

use karat_system::safetensors::{INDEX, read_header};
use serde_json::{Map, Value};

use crate::backend::peft::ADAPTER_CONFIG;
use crate::error::{Error, Result};
use crate::fsio;
use crate::hub::spellings;
use crate::nearest;
use crate::run::{DONE, models};

/// The file that says what a model is.
const CONFIG: &str = "config.json";

/// A model and perhaps an adapter on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelDir {
    /// The model's folder.
    pub model: PathBuf,
    /// The adapter's folder.
    pub adapter: Option<PathBuf>,
}

impl ModelDir {
    /// The model that `named` names, with `adapter` on it. The folder of an adapter is that adapter
    /// on its base, which is found as PEFT does: `base_model_name_or_path` of its configuration is
    /// a path from the working folder; else from the adapter's, or from the one it lies in. The
    /// summary of a training of Karat's, in the folder of its checkpoints, comes before them.
    /// `RUN:NAME` is the model `NAME` of a run.
    ///
    /// What a folder without either configuration holds is for its backend to say.
    ///
    /// # Errors
    /// Usage, for what is not there (with what is near it, or how an id of a hub is
    /// spelled), a file, an adapter on an adapter, and an adapter whose base is not there.
    pub fn resolve(named: &Path, adapter: Option<&Path>) -> Result<ModelDir> {
        let named = &*models::resolve(named)?;
        let adapter = adapter.map(models::resolve).transpose()?;
        let adapter = adapter.as_deref();
        there(named)?;
        if let Some(adapter) = adapter {
            adapter_folder(adapter)?;
        }
        if !is_adapter(named) {
            inside(named)?;
            return Ok(ModelDir { model: named.into(), adapter: adapter.map(Path::to_path_buf) });
        }
        if let Some(second) = adapter {
            return Err(Error::usage(format!(
                "this model is an adapter itself, so {} cannot lie on it",
                second.display()
            ))
            .at(named.display())
            .help("give the base as the model; one adapter at a time can be applied"));
        }
        Ok(ModelDir { model: base_of(named)?, adapter: Some(named.into()) })
    }
}

impl ModelDir {
    /// The adapter in `named` on the base that it names, whatever else lies in its folder.
    ///
    /// # Errors
    /// As [`ModelDir::resolve`]; a folder that is no adapter.
    pub fn of_adapter(named: &Path) -> Result<ModelDir> {
        let named = &*models::resolve(named)?;
        adapter_folder(named)?;
        has_adapter_config(named)?;
        Ok(ModelDir { model: base_of(named)?, adapter: Some(named.into()) })
    }
}

/// Refuses what cannot be an adapter: what is not there, a file, a model, a folder of adapters.
/// What else a folder without an adapter's configuration holds is for its backend to say.
///
/// # Errors
/// Usage, with what is near.
pub fn adapter_folder(named: &Path) -> Result<()> {
    if named.is_file() {
        return Err(Error::usage("this is a file; an adapter is a folder in the PEFT layout")
            .at(named.display())
            .help("give the folder with its adapter_config.json and weights"));
    }
    there(named)?;
    if named.join(ADAPTER_CONFIG).is_file() {
        return Ok(());
    }
    let refused = Error::usage("no adapter_config.json in this folder, so it is no adapter").at(named.display());
    if named.join(CONFIG).is_file() {
        return Err(
            refused.help("it holds a model: give an adapter's folder, or open it as the model, without an adapter")
        );
    }
    let children = names(named).into_iter().map(|name| named.join(name));
    let found: Vec<PathBuf> = children.filter(|path| path.join(ADAPTER_CONFIG).is_file()).collect();
    match list(&found) {
        Some(list) => Err(refused.help(format!("there is one in {list}"))),
        None => Ok(()),
    }
}

/// Refuses a folder without an adapter's configuration, for a backend that reads adapters in the
/// PEFT layout.
///
/// # Errors
/// Usage.
pub fn has_adapter_config(folder: &Path) -> Result<()> {
    match folder.join(ADAPTER_CONFIG).is_file() {
        true => Ok(()),
        false => Err(Error::usage("no adapter_config.json in this folder, so it is no adapter")
            .at(folder.display())
            .help("give a folder in the PEFT layout: adapter_config.json and adapter_model.safetensors")),
    }
}

/// Whether `folder` holds an adapter and no model. Some trainers (axolotl) keep the configuration of
/// the base beside an adapter: weights decide.
pub fn is_adapter(folder: &Path) -> bool {
    folder.join(ADAPTER_CONFIG).is_file() && !holds_both(folder)
}

/// Whether `folder` holds an adapter and a whole model too, which are not the same model.
pub fn holds_both(folder: &Path) -> bool {
    folder.join(ADAPTER_CONFIG).is_file() && folder.join(CONFIG).is_file() && has_weights(folder)
}

/// What is said where a folder holds both and is opened as a model.
pub fn said_of_both(folder: &Path) -> String {
    format!(
        "{} holds a whole model and an adapter: the model is taken; name the folder as an adapter to have that",
        folder.display()
    )
}

/// Whether a folder has weights of a whole model.
fn has_weights(folder: &Path) -> bool {
    let of_model = |name: &String| {
        let stem = ["model", "pytorch_model", "tf_model"].iter().any(|stem| name.starts_with(stem));
        stem && [".safetensors", ".bin", ".index.json", ".onnx", ".h5"].iter().any(|end| name.ends_with(end))
    };
    names(folder).iter().any(|name| of_model(name) || name.to_lowercase().ends_with(".gguf"))
}

/// Whether a file of this name holds weights of a model or an adapter.
pub(crate) fn is_weights(name: &str) -> bool {
    let stem = ["model", "adapter_model", "pytorch_model"].iter().any(|stem| name.starts_with(stem));
    stem && (name.ends_with(".safetensors") || name.ends_with(".bin"))
}

/// Holds the headers of the weights against their files, and reads the configurations: what is wrong
/// with them is wrong with the data, whoever opens it.
///
/// # Errors
/// Data, with what is wrong.
pub(crate) fn check_files(folder: &Path) -> Result<()> {
    for name in [CONFIG, ADAPTER_CONFIG, INDEX] {
        let path = folder.join(name);
        if path.is_file() {
            fsio::read_json::<Map<String, Value>>(&path)?;
        }
    }
    let mut weights = names(folder).into_iter().filter(|name| is_weights(name) && name.ends_with(".safetensors"));
    weights.try_for_each(|name| read_header(&folder.join(name)).map(drop))
}

/// The base that the adapter in `folder` was trained on.
fn base_of(folder: &Path) -> Result<PathBuf> {
    let file = folder.join(ADAPTER_CONFIG);
    let config: serde_json::Value = fsio::read_json(&file)?;
    let help = || format!("give the base's folder as the model, and {} as the adapter", folder.display());
    let named = config["base_model_name_or_path"].as_str().filter(|name| !name.is_empty()).ok_or_else(|| {
        Error::usage("this adapter does not say which model it is for (base_model_name_or_path)")
            .at(file.display())
            .help(help())
    })?;
    let beside = folder.parent().map(|parent| parent.join(named));
    let places = [trained_on(folder, named), Some(PathBuf::from(named)), Some(folder.join(named)), beside];
    if let Some(found) = places.into_iter().flatten().find(|place| place.join(CONFIG).is_file()) {
        return Ok(found);
    }
    let error =
        Error::usage(format!("the base of this adapter is not on this machine: base_model_name_or_path = {named:?}"))
            .at(file.display());
    Err(match hub_id(Path::new(named)) {
        Some(id) => error.help(format!(
            "give the base as the model, by its name on the hub (hf:{id}, or ms:{id}) or by its folder, and {} as the adapter",
            folder.display()
        )),
        None => error.help(help()),
    })
}

/// Where the base of this name lay when Karat trained the adapter in `folder`.
fn trained_on(folder: &Path, named: &str) -> Option<PathBuf> {
    let done = std::path::absolute(folder).ok()?.parent()?.join(DONE);
    let done: serde_json::Value = fsio::read_json(&done).ok()?;
    let base = PathBuf::from(done["base"].as_str()?);
    (base.file_name() == Path::new(named).file_name()).then_some(base)
}

/// Refuses what cannot be the base of a training: what [`ModelDir::resolve`] refuses, and an
/// adapter.
///
/// # Errors
/// Usage, with what to do instead.
pub fn base_to_train(named: &Path) -> Result<()> {
    there(named)?;
    match is_adapter(named) {
        true => Err(Error::usage("this folder holds an adapter, not a model that could be trained")
            .at(named.display())
            .help(format!(
                "to train the adapter on: --model BASE --init-adapter {0}; to train on top of it: karat merge --model {0} \
                 --out DIR, then --model DIR",
                named.display()
            ))),
        false => inside(named),
    }
}

/// Refuses what cannot be `model.base` of the suite at `suite`.
///
/// # Errors
/// As [`base_to_train`]; and usage, for a folder without `config.json`.
pub(crate) fn base_of_suite(base: &Path, suite: &Path) -> Result<()> {
    let folder = suite.parent().map(std::path::absolute).and_then(Result::ok);
    // As it was written: an id is none with the suite's folder before it.
    let written = folder.as_deref().and_then(|folder| base.strip_prefix(folder).ok()).unwrap_or(base);
    if !base.parent().is_some_and(Path::exists) && hub_id(written).is_some() {
        return Err(missing(base, written, "folder").at(format!("{}: model.base = {:?}", suite.display(), written)));
    }
    if is_adapter(base) {
        return Err(Error::usage("model.base is an adapter's folder, not a model's").at(base.display()).help(format!(
            "write the model that results into a folder and name that: karat merge --model {} --out DIR",
            base.display()
        )));
    }
    there(base)?;
    inside(base)?;
    match base.join(CONFIG).is_file() {
        true => Ok(()),
        false => Err(Error::usage("no config.json in the base model's folder")
            .at(base.display())
            .help("model.base must be a folder in the Hugging Face layout")),
    }
}

/// Refuses a folder without a model's configuration, for a backend that reads models in the Hugging
/// Face layout.
///
/// # Errors
/// Usage.
pub fn has_config(folder: &Path) -> Result<()> {
    match folder.join(CONFIG).is_file() {
        true => Ok(()),
        false => Err(Error::usage("no config.json in this folder, so it is no model")
            .at(folder.display())
            .help("give a folder in the Hugging Face layout: config.json, weights, tokenizer")),
    }
}

/// Refuses a file that was typed and is not there.
///
/// # Errors
/// Usage, with what is near it; also for a folder.
pub fn given_file(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Err(Error::usage("this is a folder; a file is wanted").at(path.display()));
    }
    match path.exists() {
        true => Ok(()),
        false if path == Path::new("-") => {
            Err(Error::usage("standard input is not read here").at("-").help("give the path of a file"))
        }
        false => Err(missing(path, path, "file")),
    }
}

/// Refuses a file or folder that was typed and is not there.
///
/// # Errors
/// Usage, with what is near it.
pub fn given(path: &Path) -> Result<()> {
    match path.exists() {
        true => Ok(()),
        false => Err(missing(path, path, "file or folder")),
    }
}

/// The folder is there and is one.
fn there(folder: &Path) -> Result<()> {
    if !folder.exists() {
        return Err(missing(folder, folder, "folder"));
    }
    if folder.is_dir() {
        return Ok(());
    }
    let error = Error::usage("this is a file; a model is a folder in the Hugging Face layout").at(folder.display());
    Err(match (folder.extension().is_some_and(|e| e == "gguf"), folder.parent()) {
        (true, _) => error.help(format!("make a folder of it: karat import --gguf {} --out DIR", folder.display())),
        (false, Some(parent)) if parent.join(CONFIG).is_file() => {
            error.help(format!("give its folder: {}", parent.display()))
        }
        _ => error.help("give the folder with its config.json and weights"),
    })
}

/// Refuses a folder that holds no model but has some below it, or a file that one can be made of.
fn inside(folder: &Path) -> Result<()> {
    if folder.join(CONFIG).is_file() {
        return Ok(());
    }
    let entries = names(folder);
    if let Some(gguf) = entries.iter().find(|name| name.to_lowercase().ends_with(".gguf")) {
        let file = folder.join(gguf);
        return Err(Error::usage("no config.json in this folder, but a GGUF file")
            .at(folder.display())
            .help(format!("make a model folder of it: karat import --gguf {} --out DIR", file.display())));
    }
    let is_model = |path: &Path| path.join(CONFIG).is_file() || path.join(ADAPTER_CONFIG).is_file();
    let children = || entries.iter().map(|name| folder.join(name)).filter(|path| path.is_dir());
    let mut models: Vec<PathBuf> = children().filter(|path| is_model(path)).collect();
    if models.is_empty() {
        // As a cache of the hub keeps them: snapshots/<commit>.
        let grandchildren = children().flat_map(|path| names(&path).into_iter().map(move |name| path.join(name)));
        models = grandchildren.filter(|path| is_model(path)).collect();
    }
    let Some(list) = list(&models) else { return Ok(()) };
    Err(Error::usage("no config.json in this folder, so it is no model")
        .at(folder.display())
        .help(format!("there is one in {list}")))
}

/// The first few of some places; none of none.
fn list(places: &[PathBuf]) -> Option<String> {
    let shown: Vec<String> = places.iter().take(5).map(|path| path.display().to_string()).collect();
    (!shown.is_empty()).then(|| shown.join(", "))
}

/// The names in a folder, in order; none where it cannot be read.
fn names(folder: &Path) -> Vec<String> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// The error for `path`, where nothing is; `written` is how it was named.
fn missing(path: &Path, written: &Path, kind: &str) -> Error {
    let error = |what: String| Error::usage(what).at(path.display());
    if kind == "folder"
        && let Some(id) = hub_id(written)
    {
        return error("no such folder; it looks like a repository's name on a hub".into()).help(spellings(id));
    }
    let error = error(format!("no such {kind}"));
    match near(path) {
        Some(near) => error.help(near),
        None => error,
    }
}

/// What is near a path that leads nowhere: the name that was probably meant, or the first part that
/// is not there and what is beside it.
pub fn near(path: &Path) -> Option<String> {
    let gone = path.ancestors().take_while(|part| !part.as_os_str().is_empty() && !part.exists()).last()?;
    let (parent, name) = (gone.parent()?, gone.file_name()?.to_str()?);
    let there = names(parent);
    let shown = |name: &str| parent.join(name).display().to_string();
    if let Some(meant) = nearest(name, there.iter().map(String::as_str)) {
        return Some(format!("did you mean {}?", shown(meant)));
    }
    let place = if parent.as_os_str().is_empty() { "this folder".into() } else { parent.display().to_string() };
    let visible: Vec<&str> = there.iter().map(String::as_str).filter(|name| !name.starts_with('.')).collect();
    Some(match visible.len() {
        0 => format!("{place} is empty"),
        n if n <= 8 => format!("in {place} there is {}", visible.join(", ")),
        n => format!("in {place} there is {} and {} more", visible[..8].join(", "), n - 8),
    })
}

/// `owner/name`, as models are called on the hubs, if `path` is written so and `owner`
/// is no folder here.
pub fn hub_id(path: &Path) -> Option<&str> {
    let text = path.to_str()?;
    let (owner, name) = text.split_once('/')?;
    let is_part = |part: &str| {
        let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        !part.is_empty() && !part.starts_with(['.', '-']) && part.chars().all(word)
    };
    let is_checkpoint = name.starts_with("checkpoint-");
    (is_part(owner) && is_part(name) && !is_checkpoint && !Path::new(owner).exists()).then_some(text)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn said(error: &Error) -> String {
        format!("{error} | {}", error.help_text().unwrap_or_default())
    }

    /// A folder with a model `base` and an adapter `adapter` that names its base so.
    fn place(base: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("base")).unwrap();
        fs::create_dir_all(folder.path().join("adapter")).unwrap();
        fs::write(folder.path().join("base/config.json"), "{}").unwrap();
        let config = serde_json::json!({"peft_type": "LORA", "base_model_name_or_path": base});
        fs::write(folder.path().join("adapter/adapter_config.json"), config.to_string()).unwrap();
        folder
    }

    #[test]
    fn an_adapter_is_opened_on_the_base_it_names() {
        for named in [Some("../base"), Some("base"), None] {
            let folder = place(named.unwrap_or_default());
            let (base, adapter) = (folder.path().join("base"), folder.path().join("adapter"));
            if named.is_none() {
                let config = serde_json::json!({"base_model_name_or_path": base});
                fs::write(adapter.join("adapter_config.json"), config.to_string()).unwrap();
            }
            let found = ModelDir::resolve(&adapter, None).unwrap();
            assert_eq!(found.adapter.as_deref(), Some(adapter.as_path()));
            assert_eq!(found.model.canonicalize().unwrap(), base.canonicalize().unwrap());
            let twice = ModelDir::resolve(&adapter, Some(&adapter)).unwrap_err();
            assert!(said(&twice).contains("adapter itself"), "{}", said(&twice));
            let plain = ModelDir::resolve(&base, Some(&adapter)).unwrap();
            assert_eq!((plain.model, plain.adapter), (base, Some(adapter)));
        }
    }

    #[test]
    fn a_base_that_is_not_here_is_one_error_that_says_what_to_do() {
        let folder = place("Qwen/Qwen3-0.6B");
        let error = ModelDir::resolve(&folder.path().join("adapter"), None).unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::Usage);
        assert!(
            said(&error).contains("hf:Qwen/Qwen3-0.6B") && said(&error).contains("as the adapter"),
            "{}",
            said(&error)
        );
        let train = base_to_train(&folder.path().join("adapter")).unwrap_err();
        assert!(said(&train).contains("--init-adapter") && said(&train).contains("karat merge"), "{}", said(&train));
    }

    #[test]
    fn an_adapter_that_is_none_is_refused_with_what_is_near() {
        let folder = place("../base");
        let at = |name: &str| folder.path().join(name);
        fs::write(at("file"), "").unwrap();
        fs::create_dir(at("unknown")).unwrap();
        fs::create_dir_all(at("training")).unwrap();
        fs::rename(at("adapter"), at("training/checkpoint-4")).unwrap();
        for (name, word) in [
            ("base", "holds a model"),
            ("file", "give the folder"),
            ("missing", "no such folder"),
            ("training", "checkpoint-4"),
        ] {
            let error = ModelDir::resolve(&at("base"), Some(&at(name))).unwrap_err();
            assert!(error.kind() == crate::ErrorKind::Usage && said(&error).contains(word), "{}", said(&error));
        }
        // For the backend to say.
        ModelDir::resolve(&at("base"), Some(&at("unknown"))).unwrap();
        assert_eq!(has_adapter_config(&at("unknown")).unwrap_err().kind(), crate::ErrorKind::Usage);
        adapter_folder(&at("training/checkpoint-4")).unwrap();
    }

    #[test]
    fn a_hub_id_is_known_and_a_path_is_not_one() {
        for id in ["Qwen/Qwen3-0.6B", "HuggingFaceTB/SmolLM2-135M-Instruct"] {
            assert_eq!(hub_id(Path::new(id)), Some(id));
            let error = said(&ModelDir::resolve(Path::new(id), None).unwrap_err());
            assert!(error.contains(&format!("hf:{id}")) && error.contains(&format!("ms:{id}")), "{error}");
        }
        // `src` is a folder of this crate, where its tests run.
        for path in ["base", "./Qwen/x", "/Qwen/x", "a/b/c", "../x", "a/", "src/nothing", "out/checkpoint-9"] {
            assert_eq!(hub_id(Path::new(path)), None, "{path}");
        }
    }

    #[test]
    fn a_path_that_leads_nowhere_says_what_is_near() {
        let folder = place("../base");
        let error = ModelDir::resolve(&folder.path().join("bsae"), None).unwrap_err();
        assert!(said(&error).ends_with("/base?"), "{}", said(&error));
        let error = ModelDir::resolve(&folder.path().join("models/qwen"), None).unwrap_err();
        assert!(said(&error).contains("there is adapter, base"), "{}", said(&error));
        let error = given_file(&folder.path().join("base/config.jsn")).unwrap_err();
        assert!(said(&error).contains("config.json?"), "{}", said(&error));
        assert!(given_file(folder.path()).is_err() && given(folder.path()).is_ok());
    }

    #[test]
    fn a_folder_of_models_names_them_and_a_gguf_file_is_imported_first() {
        let folder = place("../base");
        let error = ModelDir::resolve(folder.path(), None).unwrap_err();
        assert!(said(&error).contains("base") && said(&error).contains("no model"), "{}", said(&error));
        fs::write(folder.path().join("x.gguf"), "").unwrap();
        for named in [folder.path().to_path_buf(), folder.path().join("x.gguf")] {
            let error = ModelDir::resolve(&named, None).unwrap_err();
            assert!(said(&error).contains("karat import --gguf"), "{}", said(&error));
        }
        let config = folder.path().join("base/config.json");
        assert!(said(&ModelDir::resolve(&config, None).unwrap_err()).contains("give its folder"));
    }
}

//! `karat export`: a model in a backend's own format.

use std::path::{Path, PathBuf};
use std::time::Instant;

use karat::backend::{AdapterMode, Capability, Event, ExportConfig, NamedAdapter};
use karat::data::companions;
use karat::fsio;
use karat::memory;
use karat::model_dir::{ModelDir, adapter_folder};
use karat::run::{Backends, LoadedBackend, StageSink, backend_error};
use karat::{Error, Result};
use serde_json::json;

use crate::args::{AdapterModeArg, ExportArgs, Global};
use crate::host::{Plugins, cancel_on_interrupt, element, resolved};
use crate::output::Output;
use crate::progress::Progress;

pub fn run(args: &ExportArgs, global: &Global, output: &Output) -> Result<u8> {
    let mut adapters = args.adapter.iter().map(|text| adapter(text)).collect::<Result<Vec<_>>>()?;
    let ModelDir { model, adapter: own } = resolved(&args.model, adapters.first().map(|a| a.path.as_path()), output)?;
    if let (true, Some(own)) = (adapters.is_empty(), own) {
        adapters.push(named(None, &own)?);
    }
    let config = ExportConfig {
        model: absolute(&model)?,
        adapters,
        adapter_mode: match args.adapter_mode {
            AdapterModeArg::Merge => AdapterMode::Merge,
            AdapterModeArg::Runtime => AdapterMode::Runtime,
        },
        weights: element(args.dtype).map_or_else(String::from, |dtype| dtype.to_string()),
        out: export_folder(&args.out)?,
    };
    for adapter in &config.adapters {
        let own = companions::differences(&config.model, &adapter.path)?;
        if !own.is_empty() {
            output.say(format!(
                "warning: the adapter {} has its own {}, which differs from the model's and is not exported: merge it first \
                 (karat merge) and export what results",
                adapter.name,
                own.join(" and ")
            ));
        }
    }
    let exporter = exporter(&Plugins::new(global)?, args.backend.as_deref())?;
    let cancel = cancel_on_interrupt()?;
    let mut progress = Progress::new(output);
    let mut sink = StageSink {
        stage: "export",
        total: None,
        observer: &mut progress,
        cancel: &cancel,
        keep: |_: &Event| Ok(()),
        error: None,
    };
    let began = Instant::now();
    let summary = exporter.backend.export(&config, &mut sink).map_err(|e| backend_error("the export failed", e))?;
    drop(progress);
    let seconds = began.elapsed().as_secs_f64();
    let bytes: u64 = summary.files.values().sum();
    let peak = memory::peak();
    let object = json!({
        "folder": config.out,
        "backend": exporter.backend.describe().name,
        "dtype": config.weights,
        "adapter_mode": config.adapter_mode,
        "files": summary.files,
        "bytes": bytes,
        "parameters": summary.parameters,
        "adapter_parameters": summary.adapter_parameters,
        "reused": summary.reused,
        "seconds": seconds,
        "peak_memory": peak,
    });
    let mut text = format!("{}\n", config.out.display());
    for (name, bytes) in &summary.files {
        text.push_str(&format!("{:>10}  {name}\n", size(*bytes)));
    }
    output.result(&object, &text)?;
    let how = match summary.reused {
        true => "already there, made from the same files".to_string(),
        false => format!("in {seconds:.1} s, peak memory {}", peak.map_or("unknown".into(), size)),
    };
    output.say(format!("{} parameters as {}, {}, {how}", summary.parameters, config.weights, size(bytes)));
    Ok(0)
}

/// The backend that was named, or the only one that exports.
fn exporter(plugins: &Plugins, named: Option<&str>) -> Result<LoadedBackend> {
    if let Some(name) = named {
        return plugins.backend(name);
    }
    let able: Vec<String> = plugins
        .list()
        .iter()
        .filter_map(|found| Some(found.plugin.as_ref().ok()?.descriptor()))
        .filter(|descriptor| descriptor.capabilities.contains(&Capability::Export))
        .map(|descriptor| descriptor.name)
        .collect();
    match able.as_slice() {
        [one] => plugins.backend(one),
        [] => Err(Error::backend("no backend that exports was found")
            .help("`karat backends` shows what was found and where; `cargo build -p karat-cli` builds them")),
        several => {
            Err(Error::usage(format!("several backends export: {}", several.join(", "))).help("add --backend NAME"))
        }
    }
}

/// `NAME=DIR`, or a folder whose own name is the adapter's.
fn adapter(text: &str) -> Result<NamedAdapter> {
    let (name, path) = match text.split_once('=') {
        // A folder may have an equals sign in its name.
        Some((name, path)) if !Path::new(text).is_dir() => (Some(name), path),
        _ => (None, text),
    };
    named(name, Path::new(path))
}

fn named(name: Option<&str>, path: &Path) -> Result<NamedAdapter> {
    adapter_folder(path)?;
    let path = absolute(path)?;
    let own = || path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(NamedAdapter { name: name.map_or_else(own, String::from), path })
}

/// Where an export is to lie: a new folder, or one whose content its backend knows.
fn export_folder(out: &Path) -> Result<PathBuf> {
    if out.is_dir() { absolute(out) } else { fsio::new_folder(out) }
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|e| Error::io("resolve", path, e))
}

/// Bytes as people read them.
fn size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}

//! `karat backends`: what is found, and where was looked.

use karat::Result;
use karat::backend::{Backend, Capability};
use serde_json::json;

use crate::args::Global;
use crate::host::Plugins;
use crate::output::Output;

pub fn run(global: &Global, output: &Output) -> Result<u8> {
    let plugins = Plugins::new(global)?;
    let mut text = String::new();
    let mut objects = Vec::new();
    let found = plugins.list();
    for entry in &found {
        match &entry.plugin {
            Ok(plugin) => {
                let d = plugin.descriptor();
                let capabilities = serde_json::to_value(&d.capabilities).unwrap_or_default();
                let words: Vec<&str> =
                    capabilities.as_array().into_iter().flatten().filter_map(|c| c.as_str()).collect();
                text.push_str(&format!("{} {}\n  {}\n", d.name, d.version, words.join(", ")));
                text.push_str(&format!(
                    "  devices {}; models {}\n",
                    d.devices.join(", "),
                    if d.model_families.is_empty() { "any".to_string() } else { d.model_families.join(", ") }
                ));
                let types: Vec<String> = d.dtypes.iter().map(ToString::to_string).collect();
                // Weights of fewer bits are an option of a backend that writes models in its own
                // format.
                let few = if d.capabilities.contains(&Capability::Export) { ", int8, int4" } else { "" };
                text.push_str(&format!("  types {}{few}\n", types.join(", ")));
                let lacks = plugin.provide(false, "cpu").err().map(|e| e.to_string());
                if let Some(lacks) = &lacks {
                    text.push_str(&format!("  not usable yet: {lacks}\n"));
                }
                text.push_str(&format!("  {} (sha256 {})\n", entry.path.display(), &plugin.sha256()[..12]));
                objects.push(json!({"name": d.name, "path": entry.path, "sha256": plugin.sha256(), "descriptor": d, "lacks": lacks}));
            }
            Err(error) => {
                text.push_str(&format!("{}: cannot be used: {error}\n", entry.name));
                objects.push(json!({"name": entry.name, "path": entry.path, "error": error.to_string()}));
            }
        }
        for hidden in &entry.hidden {
            text.push_str(&format!("  hides {}\n", hidden.display()));
        }
    }
    if found.is_empty() {
        text.push_str("no backend found; `cargo build -p karat-cli` builds the three of this repository\n");
    }
    let places: Vec<String> = plugins.search().places().iter().map(|p| p.folder.display().to_string()).collect();
    text.push_str(&format!("looked in\n  {}\n", places.join("\n  ")));
    output.result(&json!({"backends": objects, "searched": places}), &text)?;
    Ok(0)
}

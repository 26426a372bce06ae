//! `karat doctor`: is this machine ready?

use karat::Result;
use karat::run::machine;
use serde_json::json;

use crate::args::Global;
use crate::host::Plugins;
use crate::output::Output;

pub fn run(global: &Global, output: &Output) -> Result<u8> {
    let machine = machine();
    let mut text: String = machine.iter().map(|(k, v)| format!("{k:<10} {v}\n")).collect();
    let plugins = Plugins::new(global)?;
    let found = plugins.list();
    let mut states = Vec::new();
    for name in ["candle", "onnxruntime", "replay"] {
        let state = match found.iter().find(|f| f.name == name) {
            Some(entry) => match &entry.plugin {
                Ok(plugin) => format!("ok, version {}", plugin.descriptor().version),
                Err(error) => format!("cannot be loaded: {error}"),
            },
            None => "not found; `cargo build -p karat-cli` builds it".to_string(),
        };
        text.push_str(&format!("{:<10} {state}\n", name));
        states.push(json!({"name": name, "state": state}));
    }
    let ready = found.iter().any(|f| f.name == "candle" && f.plugin.is_ok());
    text.push_str(if ready { "ready: cargo karat run medical-r1\n" } else { "not ready: no backend that trains\n" });
    output.result(&json!({"machine": machine, "backends": states, "ready": ready}), &text)?;
    Ok(if ready { 0 } else { karat::ErrorKind::Backend.exit_code() })
}

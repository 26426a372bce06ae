//! `karat doctor`: is this machine ready? `--fix` makes it so, where that is a matter of fetching something.

use karat::Result;
use karat::backend::Backend;
use karat::run::machine;
use serde_json::json;

use crate::args::{DoctorArgs, Global};
use crate::host::Plugins;
use crate::output::Output;

pub fn run(args: &DoctorArgs, global: &Global, output: &Output) -> Result<u8> {
    let machine = machine();
    let mut text: String = machine.iter().map(|(k, v)| format!("{k:<11} {v}\n")).collect();
    let plugins = Plugins::new(global)?;
    let found = plugins.list();
    let mut states = Vec::new();
    let (mut ready, mut fixed) = (false, true);
    for name in ["candle", "onnxruntime", "replay"] {
        let loaded = found.iter().find(|f| f.name == name).map(|f| &f.plugin);
        let (state, facts, usable) = match loaded {
            Some(Ok(plugin)) => match plugin.provide(args.fix) {
                Ok(provided) => (format!("ok, version {}", plugin.descriptor().version), provided.facts, true),
                Err(error) => (format!("not usable yet: {error}"), Default::default(), false),
            },
            Some(Err(error)) => (format!("cannot be loaded: {error}"), Default::default(), false),
            None => ("not found; `cargo build -p karat-cli` builds it".to_string(), Default::default(), false),
        };
        text.push_str(&format!("{name:<11} {state}\n"));
        facts.iter().for_each(|(fact, value)| text.push_str(&format!("  {fact:<9} {value}\n")));
        ready |= usable && name == "candle";
        fixed &= usable || matches!(loaded, None | Some(Err(_)));
        states.push(json!({"name": name, "state": state, "usable": usable, "facts": facts}));
    }
    text.push_str(if ready { "ready: cargo karat run medical-r1\n" } else { "not ready: no backend that trains\n" });
    output.result(&json!({"machine": machine, "backends": states, "ready": ready}), &text)?;
    // A machine may do without a backend that it does not use; who asked for a repair wants to know if it failed.
    let good = ready && (fixed || !args.fix);
    Ok(if good { 0 } else { karat::ErrorKind::Backend.exit_code() })
}

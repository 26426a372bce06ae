//! `karat doctor`: is this machine ready, and do its numbers repeat? `--fix` makes it ready, where
//! that is a matter of fetching something; `--speed` measures what its kernels reach.

use std::collections::BTreeMap;

use karat::backend::Backend;
use karat::eval::determinism::{Certificate, Trial, certify};
use karat::run::machine;
use karat::suite::Suite;
use karat::{Error, Result, exit};
use serde_json::json;

use super::rows::{has_tokenizer, tokenizer};
use crate::args::{DoctorArgs, Global, OpenArgs};
use crate::host::{Opening, Plugins, cancel_on_interrupt};
use crate::output::Output;

pub fn run(args: &DoctorArgs, global: &Global, output: &Output) -> Result<u8> {
    if args.determinism {
        return determinism(args, global, output);
    }
    let device = args.compute.device.as_deref().unwrap_or("cpu");
    let machine = machine();
    let mut text: String = machine.iter().map(|(k, v)| format!("{k:<11} {v}\n")).collect();
    let plugins = Plugins::new(global)?;
    let found = plugins.list();
    let mut states = Vec::new();
    let (mut ready, mut fixed) = (false, true);
    for name in ["native", "candle", "onnxruntime", "replay"] {
        let loaded = found.iter().find(|f| f.name == name).map(|f| &f.plugin);
        let (mut speed, mut measured) = (BTreeMap::new(), String::new());
        let (state, facts, usable) = match loaded {
            Some(Ok(plugin)) => match plugin.provide(args.fix, device) {
                Ok(provided) => {
                    if args.speed {
                        output.say(format!("  measuring {name}"));
                        match plugin.measure(device) {
                            Ok(found) => speed = found.facts,
                            Err(error) => measured = format!("  speed     not to be had: {error}\n"),
                        }
                    }
                    (format!("ok, version {}", plugin.descriptor().version), provided.facts, true)
                }
                Err(error) => (format!("not usable yet: {error}"), Default::default(), false),
            },
            Some(Err(error)) => (format!("cannot be loaded: {error}"), Default::default(), false),
            None => ("not found; `cargo build -p karat-cli` builds it".to_string(), Default::default(), false),
        };
        text.push_str(&format!("{name:<11} {state}\n"));
        let width = facts.keys().chain(speed.keys()).map(|fact| fact.len()).fold(9, usize::max);
        facts.iter().chain(&speed).for_each(|(fact, value)| text.push_str(&format!("  {fact:<width$} {value}\n")));
        text.push_str(&measured);
        ready |= usable && name == "native";
        fixed &= usable || matches!(loaded, None | Some(Err(_)));
        states.push(json!({"name": name, "state": state, "usable": usable, "facts": facts, "speed": speed}));
    }
    text.push_str(if ready { "ready: cargo karat run medical-r1\n" } else { "not ready: no backend that trains\n" });
    output.result(&json!({"machine": machine, "backends": states, "ready": ready}), &text)?;
    // A machine may do without a backend that it does not use; who asked for a repair wants to know
    // if it failed.
    let good = ready && (fixed || !args.fix);
    Ok(if good { exit::GOOD } else { exit::BACKEND })
}

/// Texts of different lengths, scripts and digits; more follow from joining them.
const TEXTS: [&str; 8] = [
    "The capital of France is",
    "二甲双胍是一种",
    "In 1969, 12 people",
    "Question: What is 17 + 25?\nAnswer:",
    "The heart pumps blood through the arteries, and the veins return it. The lungs",
    "患者，男，58岁，因胸痛3小时入院。既往有高血压病史10年。初步诊断考虑",
    "fn main() {\n    let total: u32 = (1..=10).sum();\n    println!(",
    "once",
];

fn determinism(args: &DoctorArgs, global: &Global, output: &Output) -> Result<u8> {
    let model = match &args.model {
        Some(model) => model.clone(),
        None => {
            let suite = Suite::load("medical-r1", &[])
                .map_err(|_| Error::usage("which model is to be tried?").help("add --model DIR"))?;
            suite.model.base
        }
    };
    let open = OpenArgs { backend: args.backend.clone(), compute: args.compute.clone(), threads: None };
    let Opening { backend, config: open } = Opening::new(&model, args.adapter.as_deref(), &open, global, output)?;
    let cancel = cancel_on_interrupt()?;
    let prompts = match has_tokenizer(&open) {
        true => {
            let tokenizer = tokenizer(&open)?;
            let long = TEXTS.concat();
            let texts = TEXTS.into_iter().chain([long.as_str()]);
            texts.map(|text| tokenizer.encode(text)).collect::<Result<Vec<_>>>()?
        }
        // Ids that every vocabulary has.
        false => (0..9u32).map(|row| (0..5 + 7 * row).map(|i| (i * 7 + row * 3) % 40).collect()).collect(),
    };
    let trial = Trial {
        prompts: prompts.into_iter().filter(|p| !p.is_empty()).collect(),
        max_new_tokens: args.max_new_tokens,
        batch_size: args.batch_size.into(),
        threads: args.threads,
    };
    let mut watch = |pass: &str| output.say(format!("  {pass}"));
    let certificate = certify(&backend, &open, &trial, &mut watch, &cancel)?;
    output.result(&json!(certificate), &text(&certificate))?;
    Ok(if certificate.deterministic { exit::GOOD } else { exit::BACKEND })
}

fn text(c: &Certificate) -> String {
    let info = &c.session;
    let mut text = format!(
        "{} on {} ({}), {} threads, {} texts in batches of {}, {} tokens scored\n",
        c.backend, info.device, info.dtype, info.threads, c.texts, c.batch_size, c.tokens
    );
    for kernel in &info.kernels {
        text.push_str(&format!("  {kernel}\n"));
    }
    text.push_str("against       texts changed   argmax changed   log-probabilities changed   largest drift (nats)\n");
    for row in &c.comparisons {
        text.push_str(&format!(
            "{:<12}  {:>13}   {:>14}   {:>25}   {:>20.1e}  {}\n",
            row.pass,
            format!("{}/{}", row.flipped_texts, c.texts),
            format!("{}/{}", row.flipped_tokens, c.tokens),
            format!("{}/{}", row.differing_logprobs, c.tokens),
            row.logprob_drift,
            if row.holds() { "holds" } else { "BROKEN" },
        ));
    }
    text.push_str(match (c.deterministic, c.logprob_drift == 0.0) {
        (true, true) => "deterministic: the same bits, whatever the batch and the threads\n",
        (true, false) => "deterministic: the same texts; log-probabilities depend on the batch by the drift above\n",
        (false, _) => "NOT deterministic: this backend does not keep what backends promise\n",
    });
    if c.flip_rate > 0.0 || c.logprob_drift > 0.0 {
        text.push_str(&format!(
            "gate with it: karat check --flip-rate {} --logprob-drift {:e}\n",
            c.flip_rate, c.logprob_drift
        ));
    }
    text
}

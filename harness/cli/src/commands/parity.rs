//! `karat compare --backends A,B`: do two backends compute the same on one model?

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use karat::backend::{GenerateConfig, OpenConfig};
use karat::model_dir::ModelDir;
use karat::run::{Backends, Parity, ParityJob, parity, prepare};
use karat::suite::Suite;
use karat::{Error, Result, exit};
use serde_json::{Value, json};

use super::rows::{has_tokenizer, tokenizer};
use crate::args::{ComputeArgs, Global, ParityArgs};
use crate::host::{Plugins, WEIGHTS, cancel_on_interrupt, computed, element, generate_config, resolved};
use crate::output::Output;
use crate::progress::Progress;

/// New tokens a prompt gets where nobody says how many.
const NEW_TOKENS: usize = 64;
/// How far two log-probabilities of a token may be apart, in nats, where nobody says how far.
const TOLERANCE: f64 = 1e-3;

/// What is asked of both.
struct Questions {
    what: String,
    open: OpenConfig,
    rows: Vec<Vec<u32>>,
    prompts: Vec<Vec<u32>>,
    generate: GenerateConfig,
}

pub fn run(names: &[String], args: &ParityArgs, global: &Global, output: &Output) -> Result<u8> {
    let [a, b] = names else {
        return Err(Error::usage(format!("--backends needs two names, not {}", names.len()))
            .help("for example --backends native,onnxruntime"));
    };
    let asked = questions(args, output)?;
    let plugins = Plugins::new(global)?;
    let loaded = [plugins.backend(a)?, plugins.backend(b)?];
    if let Some(Err(few)) = args.compute.dtype.map(element) {
        return Err(Error::usage(format!("--dtype {few} is of one backend, not of both"))
            .help(format!("give it to that one: --option onnxruntime.{WEIGHTS}={few}")));
    }
    let open = OpenConfig { threads: args.threads.unwrap_or(0), ..asked.open.clone() };
    let mut options = options(&args.compute.option, names)?;
    let both = ComputeArgs { option: Vec::new(), ..args.compute.clone() };
    let mut open_as = |name: &String, backend| {
        let open = OpenConfig { options: options.remove(name).unwrap_or_default(), ..open.clone() };
        computed(open, &both, backend)
    };
    let job = ParityJob {
        open: [open_as(a, &loaded[0])?, open_as(b, &loaded[1])?],
        rows: &asked.rows,
        prompts: &asked.prompts,
        generate: asked.generate,
        tolerance: args.tolerance.unwrap_or(TOLERANCE),
    };
    let cancel = cancel_on_interrupt()?;
    let mut progress = Progress::new(output);
    let found = parity(&job, [&loaded[0], &loaded[1]], &mut progress, &cancel)?;
    drop(progress);
    output.result(&json!({"parity": found, "input": asked.what}), &text(&found, &asked.what))?;
    // Two backends that disagree are to a script what a regression is.
    Ok(if found.within { exit::GOOD } else { exit::REGRESSION })
}

fn questions(args: &ParityArgs, output: &Output) -> Result<Questions> {
    let opened = |model: &Path| {
        let ModelDir { model, adapter } = resolved(model, args.adapter.as_deref(), output)?;
        Ok::<_, Error>(OpenConfig { adapter, ..OpenConfig::new(model) })
    };
    let generate = |new_tokens: usize, stop_ids| {
        generate_config(&args.sampling, args.max_new_tokens.unwrap_or(new_tokens), stop_ids)
    };
    if let Some(spec) = &args.suite {
        let suite = Suite::load(spec, &args.set)?;
        let prepared = prepare(&suite)?;
        let stop_ids = prepared.formatter.stop_ids();
        return Ok(Questions {
            what: format!("the {} held-out items of {}", prepared.queries.len(), suite.name),
            open: opened(args.model.as_ref().unwrap_or(&suite.model.base))?,
            rows: prepared.queries.iter().map(|q| q.reference.clone()).collect(),
            prompts: prepared.queries.iter().map(|q| q.prompt.clone()).collect(),
            generate: generate(prepared.generation.max_new_tokens, stop_ids),
        });
    }
    let model = args.model.as_ref();
    let open =
        opened(model.ok_or_else(|| {
            Error::usage("which model? there is neither --model nor --suite").help("give --model DIR")
        })?)?;
    if let Some(input) = &args.input {
        let read = super::rows::read(input, &open, false, output)?;
        let rows: Vec<Vec<u32>> = read.rows.into_iter().map(|row| row.ids).collect();
        let stop_ids = match read.tokenizer {
            Some(tokenizer) => tokenizer.stop_ids().to_vec(),
            None if has_tokenizer(&open) => tokenizer(&open)?.stop_ids().to_vec(),
            None => Vec::new(),
        };
        return Ok(Questions {
            what: format!("the {} rows of {}", rows.len(), input.display()),
            open,
            prompts: rows.clone(),
            rows,
            generate: generate(NEW_TOKENS, stop_ids),
        });
    }
    let rows = drawn_rows(vocabulary(&open.model)?);
    Ok(Questions {
        what: format!("{} rows of drawn token ids (--suite or --input give others)", rows.len()),
        open,
        prompts: rows.clone(),
        rows,
        generate: generate(NEW_TOKENS, Vec::new()),
    })
}

/// `vocab_size` of a model's `config.json`.
fn vocabulary(model: &Path) -> Result<u32> {
    let path = model.join("config.json");
    let config: Value = karat::fsio::read_json(&path)?;
    let size = config["vocab_size"].as_u64().and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0);
    size.ok_or_else(|| {
        Error::data("no vocab_size, so no rows can be drawn").at(path.display()).help("give --input FILE")
    })
}

/// Ragged rows of ids, always the same for a vocabulary.
fn drawn_rows(vocabulary: u32) -> Vec<Vec<u32>> {
    // The constants of Knuth's MMIX; the upper bits are good enough to pick ids with.
    let mut state = 42u64;
    let mut draw = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % u64::from(vocabulary)) as u32
    };
    [1usize, 2, 3, 5, 8, 13, 21, 34, 55, 89].map(|length| (0..length).map(|_| draw()).collect()).to_vec()
}

/// Options named `BACKEND.KEY`, by backend.
fn options(given: &[(String, Value)], names: &[String]) -> Result<BTreeMap<String, BTreeMap<String, Value>>> {
    let mut options = BTreeMap::<String, BTreeMap<String, Value>>::new();
    for (place, value) in given {
        let parts = place.split_once('.').filter(|(backend, _)| names.iter().any(|n| n == backend));
        let Some((backend, key)) = parts else {
            return Err(Error::usage(format!("--option {place}: the backend's name is missing before the key")).help(
                format!("write BACKEND.KEY=VALUE, with one of {}; for example onnxruntime.spin=true", names.join(", ")),
            ));
        };
        options.entry(backend.into()).or_default().insert(key.into(), value.clone());
    }
    Ok(options)
}

fn text(found: &Parity, what: &str) -> String {
    let [a, b] = &found.backends;
    let (scores, texts) = (&found.scores, &found.texts);
    let mut text = format!("{} against {}, on {what}\n\n", b.name, a.name);
    let _ = writeln!(
        text,
        "{:<14} {:<8} {:<6} {:>18} {:>14}",
        "backend", "device", "dtype", "scored tokens/s", "new tokens/s"
    );
    for side in &found.backends {
        let rate = |tokens: usize, seconds: f64| match tokens {
            0 => "-".to_string(),
            n => format!("{:.0}", n as f64 / seconds.max(1e-9)),
        };
        let _ = writeln!(
            text,
            "{:<14} {:<8} {:<6} {:>18} {:>14}",
            side.name,
            side.session.device,
            side.session.dtype,
            rate(scores.tokens, side.score_seconds),
            rate(texts.tokens, side.generate_seconds)
        );
    }
    let _ = write!(text, "\nlog-probabilities  {} tokens: drift {:.2e} nats at most", scores.tokens, scores.max);
    if let Some(worst) = &scores.worst {
        let _ = write!(text, " (row {}, position {})", worst.row, worst.position);
    }
    let _ = writeln!(text, ", {:.2e} on average", scores.mean);
    if scores.cut > 0 {
        let _ = writeln!(text, "                   {} rows were cut to what the model holds", scores.cut);
    }
    if let Some(first) = &scores.first_beyond {
        let _ = writeln!(
            text,
            "                   {} beyond {:e}, the first at row {}, position {}: id {} has {} and {}",
            scores.beyond, found.tolerance, first.row, first.position, first.id, first.logprobs[0], first.logprobs[1]
        );
    }
    let _ = writeln!(
        text,
        "greedy flips       {} of {} given tokens ({:.3} %)",
        scores.flips,
        scores.tokens,
        100.0 * scores.flip_rate
    );
    let kind = if texts.temperature > 0.0 { "sampled texts" } else { "greedy texts" };
    let _ = writeln!(text, "{kind:<18} {} of {} equal, {} new tokens", texts.equal, texts.prompts, texts.tokens);
    if texts.empty > 0 {
        let _ = writeln!(text, "                   {} empty prompts have no continuation", texts.empty);
    }
    if texts.too_long > 0 {
        let _ = writeln!(text, "                   {} prompts are longer than the model holds", texts.too_long);
    }
    const SHOWN: usize = 10;
    for parting in texts.partings.iter().take(SHOWN) {
        let id = |id: Option<u32>| id.map_or("the end".to_string(), |id| format!("id {id}"));
        let gap = match parting.gap {
            // A draw does not take the most probable token: the gap says nothing of its limits.
            Some(gap) if texts.temperature == 0.0 && gap <= 2.0 * found.tolerance => {
                format!("{gap:.2e} nats apart: tied")
            }
            Some(gap) => format!("{gap:.2e} nats apart"),
            None => "one had ended".to_string(),
        };
        let _ = writeln!(
            text,
            "  prompt {} parts after {} tokens: {} and {}, {gap}",
            parting.prompt,
            parting.common,
            id(parting.ids[0]),
            id(parting.ids[1])
        );
    }
    if texts.partings.len() > SHOWN {
        let _ = writeln!(text, "  and {} more", texts.partings.len() - SHOWN);
    }
    let _ = match found.within {
        true => writeln!(text, "\nwithin the tolerance of {:e} nats", found.tolerance),
        false => writeln!(text, "\nBEYOND the tolerance of {:e} nats", found.tolerance),
    };
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn options_go_to_the_backend_they_name() {
        let names = ["a".to_string(), "b".to_string()];
        let given = [("a.spin", json!(true)), ("b.weights", json!("int4")), ("a.context", json!(12))];
        let given = given.map(|(place, value)| (place.to_string(), value));
        let found = options(&given, &names).unwrap();
        assert_eq!(json!(found), json!({"a": {"spin": true, "context": 12}, "b": {"weights": "int4"}}));
        for wrong in ["c.spin", "spin"] {
            let error = options(&[(wrong.to_string(), json!(true))], &names).unwrap_err();
            assert_eq!(error.kind(), karat::ErrorKind::Usage, "{wrong}");
        }
    }

    #[test]
    fn drawn_rows_are_ragged_known_to_the_model_and_always_the_same() {
        let rows = drawn_rows(97);
        assert_eq!(rows, drawn_rows(97));
        assert!(rows.iter().flatten().all(|id| *id < 97));
        assert_eq!(rows.iter().map(Vec::len).sum::<usize>(), 231);
    }
}

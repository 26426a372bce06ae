//! Two backends on the shipped suite: one trains, the other evaluates, and both compute the same.
//!
//! The backends are plugins, as the command line has them. Without the ONNX Runtime library (and
//! without a network to fetch it from) there is nothing to compare; the tests say so.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use karat::backend::{Backend, BackendError, Descriptor, Event, Flow, GenerateConfig, OpenConfig, Session, Tokens};
use karat::plugin::{Search, find};
use karat::report::{Report, Role};
use karat::run::{Backends, Cancel, LoadedBackend, Notice, Origin, Parity, ParityJob, Recorded, parity, prepare, run};
use karat::suite::Suite;
use serde_json::{Value, json};

struct Plugins;

impl Backends for Plugins {
    fn backend(&self, name: &str) -> karat::Result<LoadedBackend> {
        let plugin = find(name, &Search::from_env())?;
        let origin = Origin { path: Some(plugin.path().into()), sha256: Some(plugin.sha256().into()) };
        Ok(LoadedBackend { backend: Arc::new(plugin), origin })
    }
}

fn backend(name: &str) -> LoadedBackend {
    Plugins.backend(name).unwrap()
}

/// The ONNX Runtime backend with its library, fetched if need be; or a printed reason why there is
/// none.
fn onnxruntime() -> Option<LoadedBackend> {
    let loaded = backend("onnxruntime");
    match loaded.backend.provide(true, "cpu") {
        Ok(_) => Some(loaded),
        Err(error) => {
            eprintln!("skipped: {error}");
            None
        }
    }
}

fn suite_dir() -> PathBuf {
    karat_suites::dir().join("medical-r1")
}

fn quiet(_: Notice<'_>) {}

fn same(job: &ParityJob<'_>, onnxruntime: &LoadedBackend) -> Parity {
    parity(job, [&backend("native"), onnxruntime], &mut quiet, &Cancel::new()).unwrap()
}

/// Both open `model`; exports go where the test can throw them away.
fn both(model: &Path, adapter: Option<&Path>, cache: &Path, options: &[(&str, Value)]) -> [OpenConfig; 2] {
    let native = OpenConfig { adapter: adapter.map(Path::to_path_buf), ..OpenConfig::new(model) };
    let mut other = native.clone();
    other.options = BTreeMap::from([("cache_dir".to_string(), json!(cache))]);
    other.options.extend(options.iter().map(|(key, value)| (key.to_string(), value.clone())));
    [native, other]
}

/// The folder of the one checkpoint below a run's `train/NAME-*` that holds `file`.
fn checkpoint(out: &Path, name: &str, file: &str) -> PathBuf {
    let inside = |folder: &Path| -> Vec<PathBuf> {
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
    };
    let stage = inside(&out.join("train")).into_iter().find(|p| p.to_string_lossy().contains(&format!("/{name}-")));
    let mut found: Vec<PathBuf> = inside(&stage.unwrap()).into_iter().filter(|p| p.join(file).is_file()).collect();
    found.sort();
    found.pop().unwrap()
}

/// Trains a little with native and evaluates with ONNX Runtime; then both backends are asked about
/// all three models.
#[test]
fn a_suite_trains_with_one_backend_and_evaluates_with_the_other() {
    let Some(onnxruntime) = onnxruntime() else { return };
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("onnx");
    let overrides = [
        "eval.backend=onnxruntime".to_string(),
        format!("eval.options.cache_dir={}", cache.display()),
        "eval.items=8".into(),
        "eval.max_new_tokens=48".into(),
        "train.max_steps=10".into(),
        "train.save_every=0".into(),
        "train.eval_every=0".into(),
        "stats.resamples=200".into(),
    ];
    let suite = Suite::load(suite_dir().join("suite.toml").to_str().unwrap(), &overrides).unwrap();
    let out = folder.path().join("run");
    let report = run(&suite, &out, &Plugins, &mut quiet, &Cancel::new()).unwrap();

    // The report says who did what, and with which provider.
    let plugins: Vec<&str> = report.environment.plugins.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(plugins, ["onnxruntime", "native"]);
    let text = report.to_json().unwrap();
    assert!(text.contains("CPUExecutionProvider"), "the provider that ran is not in the report");
    base_is_as_recorded(&report);
    an_adapter_fed_to_the_resident_base_is_the_merged_one(&overrides, &out, &report);

    let prepared = prepare(&suite).unwrap();
    let rows: Vec<Vec<u32>> = prepared.queries.iter().map(|q| q.reference.clone()).collect();
    let prompts: Vec<Vec<u32>> = prepared.queries.iter().map(|q| q.prompt.clone()).collect();
    let base = &suite.model.base;
    let (lora, full) =
        (checkpoint(&out, "lora", "adapter_model.safetensors"), checkpoint(&out, "full", "model.safetensors"));
    let generate = GenerateConfig::greedy(48, prepared.formatter.stop_ids());
    for (name, model, adapter) in
        [("base", base.as_path(), None), ("lora", base.as_path(), Some(lora.as_path())), ("full", full.as_path(), None)]
    {
        let open = both(model, adapter, &cache, &[]);
        let job = ParityJob { open, rows: &rows, prompts: &prompts, generate: generate.clone(), tolerance: 1e-3 };
        let found = same(&job, &onnxruntime);
        println!("{name}: drift {:.2e} at most, {:.2e} on average", found.scores.max, found.scores.mean);
        assert!(found.within, "{name}: {found:#?}");
        assert_eq!((found.texts.prompts, found.texts.equal), (8, 8), "{name}: {:?}", found.texts.partings);
        assert!(found.scores.tokens > 500, "{name}: {} tokens are too few to say anything", found.scores.tokens);
    }

    // The comparison can fail: against the base, the trained model is far off.
    let [native, _] = both(base, None, &cache, &[]);
    let [_, trained] = both(&full, None, &cache, &[]);
    let job = ParityJob { open: [native, trained], rows: &rows, prompts: &prompts, generate, tolerance: 1e-3 };
    let found = same(&job, &onnxruntime);
    assert!(!found.within && found.scores.max > 0.1 && found.scores.first_beyond.is_some(), "{found:#?}");
}

/// The same models again with `adapter_mode = "runtime"`: base and LoRA share one session, and find
/// what they found apart.
fn an_adapter_fed_to_the_resident_base_is_the_merged_one(overrides: &[String], out: &Path, merged: &Report) {
    let overrides = [overrides, &["eval.options.adapter_mode=runtime".to_string()]].concat();
    let suite = Suite::load(suite_dir().join("suite.toml").to_str().unwrap(), &overrides).unwrap();
    let opened = Arc::default();
    let fed = run(&suite, out, &Counting(Arc::clone(&opened)), &mut quiet, &Cancel::new()).unwrap();
    // One for the base and LoRA, which the check of the adapter frees to open the merged model (not
    // counted); one for the fully trained model.
    assert_eq!(opened.load(Ordering::Relaxed), 2, "models opened");
    let check = fed.models.iter().find_map(|model| model.adapter.as_ref()).unwrap();
    let shipped = check.merged.as_ref().expect("this backend merges");
    assert!(shipped.largest_difference < 1e-3 && shipped.largest_difference > 0.0, "{shipped:?}");
    assert_eq!((shipped.argmax_flips, shipped.changed_texts), (0, 0), "{shipped:?}");
    let nll = |report: &Report, model: &str| -> Vec<f64> {
        report.items.iter().map(|item| item.models[model].metrics["nll"].unwrap()).collect()
    };
    let largest = |a: Vec<f64>, b: Vec<f64>| a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    for model in ["base", "lora", "full"] {
        let apart = largest(nll(&fed, model), nll(merged, model));
        assert!(apart < 1e-4, "{model}: {apart}");
        let tokens = |report: &Report| report.items.iter().map(|i| i.models[model].tokens).collect::<Vec<_>>();
        assert_eq!(tokens(&fed), tokens(merged), "{model}");
    }
    assert!(largest(nll(&fed, "lora"), nll(&fed, "base")) > 1e-2, "the adapter changed nothing");
}

/// Plugins, and how often one opened a model to evaluate it.
struct Counting(Arc<AtomicUsize>);

impl Backends for Counting {
    fn backend(&self, name: &str) -> karat::Result<LoadedBackend> {
        let loaded = backend(name);
        if name != "onnxruntime" {
            return Ok(loaded);
        }
        let counted = Counted { backend: loaded.backend, opened: Arc::clone(&self.0) };
        Ok(LoadedBackend { backend: Arc::new(counted), origin: loaded.origin })
    }
}

struct Counted {
    backend: Arc<dyn Backend>,
    opened: Arc<AtomicUsize>,
}

impl Backend for Counted {
    fn describe(&self) -> Descriptor {
        self.backend.describe()
    }
    fn open(&self, config: &OpenConfig) -> Result<Box<dyn Session>, BackendError> {
        let evaluates = config.merge_into.is_none() && !config.model.ends_with("merged");
        self.opened.fetch_add(evaluates.into(), Ordering::Relaxed);
        self.backend.open(config)
    }
}

/// What ONNX Runtime measured of the base is what native measured when the golden results were
/// made.
fn base_is_as_recorded(report: &Report) {
    let golden = Recorded::read_all(&suite_dir().join("golden")).unwrap();
    let base = golden.iter().find(|r| r.role == Role::Base).unwrap();
    let mut compared = 0;
    for item in &report.items {
        let Some(recorded) = base.references.iter().find(|r| r.id == item.id) else { continue };
        let (sum, tokens) =
            (recorded.think.logprob + recorded.answer.logprob, (recorded.think.tokens + recorded.answer.tokens) as f64);
        let nll = item.models["base"].metrics["nll"].unwrap();
        assert!((nll + sum / tokens).abs() < 1e-3, "{}: {nll} against {}", item.id, -sum / tokens);
        compared += 1;
    }
    assert_eq!(compared, 8);
}

#[test]
fn one_seed_gives_one_text_on_both_backends() {
    let Some(onnxruntime) = onnxruntime() else { return };
    let cache = tempfile::tempdir().unwrap();
    let suite = Suite::load(suite_dir().join("suite.toml").to_str().unwrap(), &["eval.items=8".into()]).unwrap();
    let prepared = prepare(&suite).unwrap();
    let prompts: Vec<Vec<u32>> = prepared.queries.iter().map(|q| q.prompt.clone()).collect();
    let greedy = GenerateConfig::greedy(48, prepared.formatter.stop_ids());
    let sampled =
        |seed, temperature, top_k, top_p| GenerateConfig { seed, temperature, top_k, top_p, ..greedy.clone() };
    let mut tokens = 0;
    for generate in [
        sampled(7, 1.0, 0, 1.0),
        sampled(42, 1.0, 0, 1.0),
        sampled(7, 0.7, 40, 0.95),
        sampled(u64::MAX, 1.5, 0, 0.9),
        GenerateConfig { batch_size: 3, ..sampled(7, 1.0, 0, 1.0) },
    ] {
        let open = both(&suite.model.base, None, cache.path(), &[]);
        let job = ParityJob { open, rows: &[], prompts: &prompts, generate, tolerance: 1e-3 };
        let found = same(&job, &onnxruntime);
        assert!(found.within, "{:?}: {found:#?}", job.generate);
        tokens += found.texts.tokens;
        assert_eq!((found.texts.prompts, found.texts.equal), (8, 8), "{:?}: {:?}", job.generate, found.texts.partings);
    }
    assert!(tokens > 300, "{tokens} tokens were compared");
}

#[test]
fn backends_agree_on_ragged_rows_a_prompt_longer_than_the_buffer_and_an_empty_one() {
    let Some(onnxruntime) = onnxruntime() else { return };
    let cache = tempfile::tempdir().unwrap();
    let base = suite_dir().join("base");
    let config: Value = serde_json::from_slice(&std::fs::read(base.join("config.json")).unwrap()).unwrap();
    let number = |key: &str| config[key].as_u64().unwrap() as usize;
    let (longest, vocabulary) = (number("max_position_embeddings"), number("vocab_size"));
    let row = |length: usize| -> Vec<u32> { (0..length).map(|i| ((i * 7919 + length) % vocabulary) as u32).collect() };
    let rows: Vec<Vec<u32>> = [0, 1, 2, 3, 17, 64, 5, longest, longest + 9].map(row).to_vec();
    let prompts: Vec<Vec<u32>> = [4, 0, longest - 3, 1, longest, longest + 5, 33].map(row).to_vec();
    // Rows of more than 16 positions do not fit a scoring batch and are scored in stretches over a
    // cache.
    for options in [&[][..], &[("score_positions", json!(16))]] {
        let open = both(&base, None, cache.path(), options);
        let generate = GenerateConfig::greedy(12, vec![]);
        let job = ParityJob { open, rows: &rows, prompts: &prompts, generate, tolerance: 1e-3 };
        let found = same(&job, &onnxruntime);
        assert!(found.within, "{found:#?}");
        let predictions: usize = rows.iter().map(|r| r.len().clamp(1, longest) - 1).sum();
        assert_eq!((found.scores.cut, found.scores.tokens), (1, predictions));
        // The texts include those that ended where the buffer did, or before they began.
        let texts = &found.texts;
        assert_eq!((texts.empty, texts.too_long, texts.prompts, texts.equal), (1, 1, 5, 5));
        assert_eq!(found.texts.tokens, 3 * 12 + 3);
    }
    for name in ["native", "onnxruntime"] {
        let [native, other] = both(&base, None, cache.path(), &[]);
        let open = if name == "native" { native } else { other };
        let mut session = backend(name).backend.open(&open).unwrap();
        let prompts: Tokens = [row(3), row(0)].iter().collect();
        let config = GenerateConfig::greedy(2, vec![]);
        let mut go = |_: Event| Flow::Continue;
        let error = session.evaluator().unwrap().generate(prompts.view(), &config, &mut go).unwrap_err();
        assert!(error.to_string().contains("row 1") && error.to_string().contains("empty"), "{name}: {error}");
    }
}

#[test]
fn backends_agree_on_the_reference_models() {
    let Some(onnxruntime) = onnxruntime() else { return };
    let given = std::env::var_os("KARAT_SHARED").map(PathBuf::from);
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let shared = given.or_else(|| here.ancestors().map(|a| a.join("shared")).find(|s| s.join("reference").is_dir()));
    let Some(reference) = shared.map(|s| s.join("reference")).filter(|r| r.is_dir()) else {
        eprintln!("skipped: no folder of reference numbers (set KARAT_SHARED)");
        return;
    };
    let cache = tempfile::tempdir().unwrap();
    for (model, adapter, numbers) in [
        ("qwen3-tiny", None, "qwen3_tiny_forward.json"),
        ("qwen3-tiny-rand", None, "qwen3_tiny_rand_forward.json"),
        ("qwen3-tiny", Some("qwen3_tiny_lora_final"), "qwen3_tiny_forward.json"),
        ("qwen3_tiny_full_final", None, "qwen3_tiny_forward.json"),
    ] {
        let forward: Value = serde_json::from_slice(&std::fs::read(reference.join(numbers)).unwrap()).unwrap();
        let rows: Vec<Vec<u32>> = forward["prompts"]
            .as_array()
            .unwrap()
            .iter()
            .map(|p| p["input_ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect())
            .collect();
        let adapter = adapter.map(|a| reference.join(a));
        let open = both(&reference.join(model), adapter.as_deref(), cache.path(), &[]);
        let generate = GenerateConfig::greedy(64, vec![]);
        let job = ParityJob { open, rows: &rows, prompts: &rows, generate, tolerance: 1e-3 };
        let found = same(&job, &onnxruntime);
        println!("{model}: drift {:.2e} at most, {:.2e} on average", found.scores.max, found.scores.mean);
        assert!(found.within && found.texts.equal == rows.len(), "{model}: {found:#?}");
    }
}

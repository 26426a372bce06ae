//! Small models and what is done with them: random ones and those of the reference folder, rows,
//! plans, recorded events.
#![allow(dead_code, clippy::unwrap_used, reason = "each test file uses its part; a test that cannot go on should stop")]

use std::path::{Path, PathBuf};

use karat_backend::*;
use karat_native::NativeBackend;
use serde_json::{Value, json};

/// The reference folder, if this checkout has one beside it.
pub fn reference() -> Option<PathBuf> {
    let named = std::env::var_os("KARAT_SHARED").map(PathBuf::from);
    let mut beside = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().map(|dir| dir.join("shared"));
    let folder = named.or_else(|| beside.find(|dir| dir.is_dir()))?.join("reference");
    folder.is_dir().then_some(folder)
}

/// The reference folder, or a printed reason and a return.
#[macro_export]
macro_rules! reference_or_skip {
    () => {
        match small_runs::reference() {
            Some(folder) => folder,
            None => {
                eprintln!("skipped: no shared/reference folder (set KARAT_SHARED)");
                return;
            }
        }
    };
}

pub fn read_json(path: impl AsRef<Path>) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

pub fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

pub fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

pub fn open(config: &OpenConfig) -> Box<dyn Session> {
    NativeBackend.open(config).unwrap()
}

/// Goes on whatever happens.
pub fn ignore(_: Event) -> Flow {
    Flow::Continue
}

/// Labelled rows that own their parts.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    pub tokens: Tokens,
    pub labels: Vec<i32>,
}

impl Rows {
    pub fn push(&mut self, ids: &[u32], labels: &[i32]) {
        self.tokens.push(ids);
        self.labels.extend_from_slice(labels);
    }
    pub fn view(&self) -> LabelledView<'_> {
        LabelledView::new(self.tokens.view(), &self.labels).unwrap()
    }
}

/// A plan of `steps` with the learning rate falling linearly from `lr` to 0.
pub fn plan(method: Method, steps: Vec<Vec<Vec<u32>>>, lr: f64, output_dir: &Path) -> TrainPlan {
    let n = steps.len();
    TrainPlan {
        method,
        learning_rates: (0..n).map(|s| lr * (n - s) as f64 / n as f64).collect(),
        epochs: (1..=n).map(|s| s as f64 / n as f64).collect(),
        steps,
        optimizer: AdamW::default(),
        max_grad_norm: 1.0,
        eval_every: 0,
        eval_batch_size: 8,
        save_every: 0,
        save_total_limit: 0,
        early_stopping: None,
        recompute: false,
        output_dir: output_dir.to_owned(),
        resume_from: None,
        init_adapter: None,
        seed: 7,
        fingerprint: "a-plan".into(),
    }
}

/// Trains in a fresh session and returns the result with all events.
pub fn train(
    open_config: &OpenConfig,
    plan: &TrainPlan,
    rows: &Rows,
    eval: &Rows,
    stop: impl FnMut(&Event) -> bool,
) -> (Result<TrainSummary, BackendError>, Vec<Event>) {
    train_in(open(open_config), plan, rows, eval, stop)
}

/// Trains in a session of any backend and returns the result with all events.
pub fn train_in(
    mut session: Box<dyn Session>,
    plan: &TrainPlan,
    rows: &Rows,
    eval: &Rows,
    mut stop: impl FnMut(&Event) -> bool,
) -> (Result<TrainSummary, BackendError>, Vec<Event>) {
    let mut events = Vec::new();
    let mut sink = |event: Event| {
        let flow = if stop(&event) { Flow::Stop } else { Flow::Continue };
        events.push(event);
        flow
    };
    let result = session.trainer().unwrap().train(rows.view(), eval.view(), plan, &mut sink);
    (result, events)
}

pub fn step_events(events: &[Event]) -> Vec<StepEvent> {
    let steps = events.iter().filter_map(|e| match e {
        Event::Step(step) => Some(StepEvent { seconds: 0.0, memory: None, ..step.clone() }),
        _ => None,
    });
    steps.collect()
}

/// A folder with the configuration of a small model; its weights are drawn at open.
pub fn small_model(dir: &Path, family: &str) -> OpenConfig {
    let config = json!({
        "architectures": ["SmallForCausalLM"], "model_type": family, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 50,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": family != "llama", "attention_bias": family == "llama", "mlp_bias": family == "llama",
        "initializer_range": 0.2, "torch_dtype": "bfloat16", "a_key_of_the_future": [1, 2]
    });
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    OpenConfig { weights: Weights::Random, threads: 2, seed: 3, ..OpenConfig::new(dir) }
}

/// Rows of pseudo-random ids below 50; the first third of each row is not trained on.
pub fn small_rows(lengths: &[usize]) -> Rows {
    let mut rows = Rows::default();
    let mut state = 12345u32;
    for &length in lengths {
        let ids: Vec<u32> = (0..length)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 16) % 50
            })
            .collect();
        let labels: Vec<i32> =
            ids.iter().enumerate().map(|(i, id)| if i < length / 3 { IGNORE } else { *id as i32 }).collect();
        rows.push(&ids, &labels);
    }
    rows
}

pub fn lora(dropout: f64) -> Method {
    Method::Lora(karat_backend::LoraConfig { r: 4, lora_alpha: 8.0, lora_dropout: dropout, ..Default::default() })
}

/// All tensors of a safetensors file as `(name, shape, f32 values)`.
pub fn tensors(path: &Path) -> std::collections::BTreeMap<String, (String, Vec<usize>, Vec<f32>)> {
    let bytes = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let read = |(name, t): (String, safetensors::tensor::TensorView<'_>)| {
        let values = t.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        (name, (format!("{:?}", t.dtype()), t.shape().to_vec(), values))
    };
    file.tensors().into_iter().map(read).collect()
}

//! An exported decoder in a runtime session, and its two ways to run: a whole batch without a
//! cache, and a step with one.

use std::borrow::Cow;
use std::sync::{Mutex, PoisonError};

use karat_backend::BackendError;
use ort::environment::Environment;
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::session::{OutputSelector, RunOptions, Session, SessionInputValue};
use ort::value::Tensor;

use crate::adapter_inputs::AdapterInputs;
use crate::error::failed;
use crate::kv_cache::{self, KvCache};
use crate::manifest::{Exported, MODEL, Manifest};
use crate::operators::{self, Operators};
use crate::options::Options;
use crate::provider::Provider;
use crate::runtime::Loaded;
use crate::static_buffers;

/// How long an idle thread of the runtime waits awake.
const SPIN_MICROSECONDS: &str = "50";

/// Session options: one operator at a time, all its threads inside it.
fn configure(environment: &Environment, provider: Provider, threads: usize, spin: bool) -> ort::Result<SessionBuilder> {
    let builder = Session::builder(environment)?.with_intra_threads(threads)?.with_inter_threads(1)?;
    let mut builder = builder.with_parallel_execution(false)?.with_intra_op_spinning(true)?;
    if !spin {
        // Long enough to bridge the gap between two operators, too short to keep others from a
        // shared core.
        builder = builder.with_config_entry("session.intra_op.spin_duration_us", SPIN_MICROSECONDS)?;
    }
    // Between two runs our own threads choose tokens.
    let builder = builder.with_config_entry("session.force_spinning_stop", "1")?;
    provider.register(builder.with_optimization_level(GraphOptimizationLevel::All)?)
}

/// The open model.
pub struct Decoder {
    session: Session,
    /// Where it runs.
    pub provider: Provider,
    /// Sizes of the model.
    pub model: Manifest,
    /// The adapter that is fed.
    pub adapter: AdapterInputs,
    /// Whether steps keep their shapes and addresses.
    fixed: bool,
    /// Buffers of steps made so far: each is a graph of its own.
    graphs: u64,
}

/// Inputs of a run over whole rows: ids and mask `[rows, longest]`, an empty past, the adapter.
fn whole_rows<'a>(
    model: &Manifest,
    adapter: &'a AdapterInputs,
    rows: &[&[u32]],
) -> ort::Result<Vec<(Cow<'a, str>, SessionInputValue<'a>)>> {
    let seq = rows.iter().map(|row| row.len()).max().unwrap_or(0);
    let (mut ids, mut mask) = (vec![0i64; rows.len() * seq], vec![0i64; rows.len() * seq]);
    for (r, row) in rows.iter().enumerate() {
        for (s, &id) in row.iter().enumerate() {
            ids[r * seq + s] = i64::from(id);
            mask[r * seq + s] = 1;
        }
    }
    let mut inputs: Vec<(Cow<'_, str>, SessionInputValue<'_>)> =
        Vec::with_capacity(2 + 2 * model.layers + adapter.tensors.len());
    inputs.push(("input_ids".into(), Tensor::from_array(([rows.len(), seq], ids))?.into()));
    inputs.push(("attention_mask".into(), Tensor::from_array(([rows.len(), seq], mask))?.into()));
    for layer in 0..model.layers {
        for part in ["key", "value"] {
            let past = kv_cache::empty(model, rows.len())?;
            inputs.push((format!("past_key_values.{layer}.{part}").into(), past.into()));
        }
    }
    inputs.extend(adapter.tensors.iter().map(|(name, tensor)| (name.as_str().into(), tensor.into())));
    Ok(inputs)
}

/// The token after each of `rows`, padded to `seq`: `[rows, seq]`, -1 where none follows.
fn next_tokens(rows: &[&[u32]], seq: usize) -> Vec<i64> {
    let mut targets = vec![-1i64; rows.len() * seq];
    for (targets, row) in targets.chunks_exact_mut(seq.max(1)).zip(rows) {
        targets.iter_mut().zip(&row[1..]).for_each(|(target, &id)| *target = i64::from(id));
    }
    targets
}

/// Log-probabilities of these targets, and logits of no position.
fn only_targets(targets: Vec<i64>) -> ort::Result<[(Cow<'static, str>, SessionInputValue<'static>); 2]> {
    let beyond = Tensor::from_array(([1usize], vec![i64::MAX]))?;
    let targets = Tensor::from_array(([targets.len()], targets))?;
    Ok([("first_logit".into(), beyond.into()), ("targets".into(), targets.into())])
}

/// Which positions get logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logits {
    /// Every position: `[batch, seq, vocab]`.
    All,
    /// The last column: `[batch, 1, vocab]`.
    Last,
}

impl Decoder {
    /// Loads an export.
    ///
    /// # Errors
    /// If the runtime refuses the model.
    pub fn open(
        loaded: &Loaded,
        exported: &Exported,
        provider: Provider,
        threads: usize,
        options: &Options,
    ) -> Result<Self, BackendError> {
        let path = exported.folder.join(MODEL);
        let doing = format!("ONNX Runtime refuses {}", path.display());
        let refused = failed::<ort::Error>(&doing);
        let builder = configure(&loaded.environment, provider, threads, options.spin);
        let session = match exported.manifest.operators {
            Operators::Standard => builder.and_then(|mut builder| builder.commit_from_file(&path)),
            Operators::Karat => {
                // The runtime looks whether it knows the domain and then adds it: two sessions at
                // once would both add it, and the second be refused.
                static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
                let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
                let with = builder.and_then(|builder| Ok(builder.with_operators(operators::domain()?)?));
                with.and_then(|mut builder| builder.commit_from_file(&path))
            }
        }
        .map_err(refused)?;
        let fixed = options.fixed_buffers || provider.captures();
        let model = exported.manifest.clone();
        Ok(Decoder { session, provider, model, adapter: AdapterInputs::default(), fixed, graphs: 0 })
    }

    /// A cache for `slots` rows of at most `capacity` tokens.
    ///
    /// # Errors
    /// If the memory is not there.
    pub fn cache(&mut self, slots: usize, capacity: usize) -> Result<KvCache, BackendError> {
        self.graphs += u64::from(self.fixed);
        let graph = self.fixed.then_some(self.graphs);
        let mut kv = KvCache::new(&self.session, self.provider, &self.model, slots, capacity, graph)?;
        // A binding lives no longer than one call, and the adapter is not exchanged within one.
        for (name, tensor) in &self.adapter.tensors {
            kv.binding.bind_input(name, tensor).map_err(failed("could not feed the adapter"))?;
        }
        Ok(kv)
    }

    /// Runs rows from their beginning, padded on the right to the longest; `read` gets the logits
    /// `[rows, longest, vocab]`.
    ///
    /// # Errors
    /// If the runtime fails.
    pub fn batch<R>(&mut self, rows: &[&[u32]], read: impl FnOnce(&[f32]) -> R) -> Result<R, BackendError> {
        let running = failed("ONNX Runtime failed while scoring");
        let inputs = whole_rows(&self.model, &self.adapter, rows).map_err(&running)?;
        let wanted = OutputSelector::no_default().with("logits");
        let options = self.uncaptured().map_err(&running)?.with_outputs(wanted);
        let outputs = self.session.run_with_options(inputs, &options).map_err(&running)?;
        let (_, logits) = outputs["logits"].try_extract_tensor::<f32>().map_err(&running)?;
        Ok(read(logits))
    }

    /// Whether the model gives log-probabilities without logits ([`Decoder::log_probabilities`]).
    pub fn gives_log_probabilities(&self) -> bool {
        self.model.operators == Operators::Karat
    }

    /// Runs rows from their beginning: the log-probability of every token but the first of each
    /// row, and whether it was the most probable.
    ///
    /// # Errors
    /// If the runtime fails.
    pub fn log_probabilities(&mut self, rows: &[&[u32]]) -> Result<Vec<Vec<(f32, bool)>>, BackendError> {
        let running = failed("ONNX Runtime failed while scoring");
        let mut inputs = whole_rows(&self.model, &self.adapter, rows).map_err(&running)?;
        let seq = rows.iter().map(|row| row.len()).max().unwrap_or(0);
        inputs.extend(only_targets(next_tokens(rows, seq)).map_err(&running)?);
        let wanted = OutputSelector::no_default().with("logprobs").with("greedy");
        let options = self.uncaptured().map_err(&running)?.with_outputs(wanted);
        let outputs = self.session.run_with_options(inputs, &options).map_err(&running)?;
        let (_, logprobs) = outputs["logprobs"].try_extract_tensor::<f32>().map_err(&running)?;
        let (_, greedy) = outputs["greedy"].try_extract_tensor::<u8>().map_err(&running)?;
        let row = |(r, row): (usize, &&[u32])| {
            let places = r * seq..r * seq + row.len().saturating_sub(1);
            logprobs[places.clone()].iter().copied().zip(greedy[places].iter().map(|&g| g != 0)).collect()
        };
        Ok(rows.iter().enumerate().map(row).collect())
    }

    /// Appends `ids` (`[slots, seq]`) to the rows in `kv`, whose lengths become `totals`; `read`
    /// gets the logits. With more than one new token a row, `kv` must have one slot (the attention
    /// operator's rule).
    ///
    /// # Errors
    /// If the runtime fails.
    pub fn step<R>(
        &mut self,
        kv: &mut KvCache,
        ids: Vec<i64>,
        totals: &[usize],
        logits: Logits,
        read: impl FnOnce(&[f32]) -> R,
    ) -> Result<R, BackendError> {
        let running = failed("ONNX Runtime failed while generating");
        if ids.len() == kv.slots()
            && logits == Logits::Last
            && let KvCache { binding, fixed: Some(fixed), .. } = kv
        {
            fixed.feed(binding, ids, totals).map_err(&running)?;
            self.session.run_binding_with_options(binding, &fixed.options).map_err(&running)?;
            return Ok(read(fixed.logits().map_err(&running)?));
        }
        let (slots, longest) = (kv.slots(), totals.iter().copied().max().unwrap_or(0));
        let mut mask = vec![0i64; slots * longest];
        for (row, &total) in mask.chunks_exact_mut(longest.max(1)).zip(totals) {
            row[..total].fill(1);
        }
        let seq = ids.len() / slots;
        let first = if logits == Logits::All { 0 } else { -1i64 };
        let binding = &mut kv.binding;
        let ids = Tensor::from_array(([slots, seq], ids)).map_err(&running)?;
        let mask = Tensor::from_array(([slots, longest], mask)).map_err(&running)?;
        let first = Tensor::from_array(([1usize], vec![first])).map_err(&running)?;
        binding.bind_input("input_ids", &ids).map_err(&running)?;
        binding.bind_input("attention_mask", &mask).map_err(&running)?;
        binding.bind_input("first_logit", &first).map_err(&running)?;
        let cpu = MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::CPUOutput);
        binding.bind_output_to_device("logits", &cpu.map_err(&running)?).map_err(&running)?;
        let options = self.uncaptured().map_err(&running)?;
        let outputs = self.session.run_binding_with_options(binding, &options).map_err(&running)?;
        let (_, logits) = outputs["logits"].try_extract_tensor::<f32>().map_err(&running)?;
        Ok(read(logits))
    }

    /// Options of a run of any shape.
    fn uncaptured(&self) -> ort::Result<RunOptions> {
        if self.provider.captures() { static_buffers::uncaptured() } else { RunOptions::new() }
    }
}

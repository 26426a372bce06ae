//! Free generation: many rows decoded together, each token by token, a finished row's slot going to the next prompt.

mod cache;
mod recorded;
mod sample;

use karat::backend::{BackendError, Completion, Event, EventSink, Flow, GenerateConfig, Level, StopReason, TokensView};
use rayon::ThreadPool;

use self::cache::{Caches, bytes_per_position};
use self::recorded::Steps;
pub use self::sample::Sampler;
use crate::model::Decoder;
use crate::error::Result;

/// Rows decoded together where the caller leaves the choice.
const ROWS: usize = 48;
/// The same on a GPU.
const DEVICE_ROWS: usize = 128;
/// The caches of all rows together should not need more.
const CACHE_BYTES: usize = 4 << 30;
/// Prompt tokens fed at once.
const PREFILL_TOKENS: usize = 4096;

/// A row being decoded; its cache lies at the same place in a vector of its own.
struct Slot {
    row: usize,
    ids: Vec<u32>,
}

/// The rows being decoded and those that are done.
struct Decoding<'a> {
    model: &'a Decoder,
    config: &'a GenerateConfig,
    sampler: Sampler,
    slots: Vec<Slot>,
    caches: Caches,
    /// On a device.
    steps: Option<Steps>,
    completions: Vec<Option<Completion>>,
    tokens: u64,
}

/// Continues every prompt; see [`karat::backend::Evaluator::generate`].
///
/// # Errors
/// For an empty or overlong prompt, ids outside the vocabulary, a configuration that makes no sense, logits that are
/// not numbers; Cancelled if the sink says stop.
pub fn generate(
    model: &Decoder,
    pool: &ThreadPool,
    prompts: TokensView<'_>,
    config: &GenerateConfig,
    sink: &mut dyn EventSink,
) -> Result<Vec<Completion>> {
    model.check(prompts.iter())?;
    if let Some(row) = prompts.iter().position(|prompt| prompt.is_empty()) {
        return Err(BackendError::failed(format!("row {row}: the prompt is empty, there is nothing to continue")));
    }
    let longest = prompts.iter().map(|p| p.len()).max().unwrap_or(0);
    let span = (longest + config.max_new_tokens).min(model.config.max_positions);
    // A GPU reads the weights once for all rows, and has memory for it.
    let (rows, bytes) = match model.device() {
        None => (ROWS, CACHE_BYTES),
        Some(device) => (DEVICE_ROWS, CACHE_BYTES.max((device.gpu.facts().memory / 4) as usize)),
    };
    let fits = (bytes / (bytes_per_position(model) * span.max(1))).max(1);
    let batch = if config.batch_size > 0 { config.batch_size } else { rows.min(fits) };
    let batch = batch.min(prompts.rows().max(1));
    // Long prompts first: the rows that are alone at the end are then the short ones.
    let mut queue: Vec<usize> = (0..prompts.rows()).collect();
    queue.sort_by_key(|&row| prompts.row(row).len());
    let mut decoding = Decoding {
        model,
        config,
        sampler: Sampler::new(config)?,
        slots: Vec::new(),
        caches: Caches::new(model, batch, span)?,
        steps: model.device().map(|device| Steps::new(model, device, span)),
        completions: vec![None; prompts.rows()],
        tokens: 0,
    };
    while !queue.is_empty() || !decoding.slots.is_empty() {
        let mut finished = Vec::new();
        let mut fed = 0;
        let mut next = Vec::new();
        while decoding.slots.len() + next.len() < batch && (fed == 0 || fed < PREFILL_TOKENS) {
            let Some(row) = queue.pop() else { break };
            match config.max_new_tokens {
                0 => finished.push((row, Completion { ids: Vec::new(), stop: StopReason::Length })),
                _ if prompts.row(row).len() == model.config.max_positions => {
                    finished.push((row, Completion { ids: Vec::new(), stop: StopReason::Context }));
                }
                _ => {
                    fed += prompts.row(row).len();
                    next.push(row);
                }
            }
        }
        let more = pool.install(|| match next.is_empty() {
            true if decoding.slots.is_empty() => Ok(Vec::new()),
            true => decoding.step(prompts),
            false => decoding.admit(&next, prompts),
        })?;
        finished.extend(more);
        if let Some(message) = decoding.steps.as_mut().and_then(Steps::complaint)
            && sink.event(Event::Log { level: Level::Warn, message }) == Flow::Stop
        {
            return Err(BackendError::cancelled());
        }
        for (row, completion) in finished {
            decoding.completions[row] = Some(completion.clone());
            if sink.event(Event::Completion { row, completion }) == Flow::Stop {
                return Err(BackendError::cancelled());
            }
        }
        let done = decoding.completions.iter().filter(|c| c.is_some()).count() as u64;
        let (total, tokens) = (prompts.rows() as u64, decoding.tokens);
        if sink.event(Event::Progress { stage: "generate".into(), done, total, tokens }) == Flow::Stop {
            return Err(BackendError::cancelled());
        }
    }
    Ok(decoding.completions.into_iter().flatten().collect())
}

/// Rows that are done, with what they generated.
type Finished = Vec<(usize, Completion)>;

impl Decoding<'_> {
    /// Feeds the prompts of `rows` and picks their first tokens.
    fn admit(&mut self, rows: &[usize], prompts: TokensView<'_>) -> Result<Finished> {
        let texts: Vec<&[u32]> = rows.iter().map(|&row| prompts.row(row)).collect();
        let room = |prompt: &&[u32]| (prompt.len() + self.config.max_new_tokens).min(self.model.config.max_positions);
        let rooms: Vec<usize> = texts.iter().map(room).collect();
        let logits = cache::prefill(self.model, &texts, &rooms, &mut self.caches)?;
        let first = self.slots.len();
        self.slots.extend(rows.iter().map(|&row| Slot { row, ids: Vec::new() }));
        let picked = self.sampler.pick_all(&logits, &self.places(first))?;
        Ok(self.take(first, picked, prompts))
    }

    /// The row of each slot from `first` on and how many tokens it has generated.
    fn places(&self, first: usize) -> Vec<(usize, usize)> {
        self.slots[first..].iter().map(|slot| (slot.row, slot.ids.len())).collect()
    }

    /// Feeds the last token of every slot and picks the next.
    fn step(&mut self, prompts: TokensView<'_>) -> Result<Finished> {
        let last: Vec<u32> = self.slots.iter().filter_map(|slot| slot.ids.last().copied()).collect();
        let places = self.places(0);
        let picked = match &mut self.steps {
            Some(steps) => {
                let picked = steps.take(self.model, &mut self.caches, &last, &places, self.config)?;
                self::sample::numbers(picked, &places)?
            }
            None => self.sampler.pick_all(&cache::step(self.model, &last, &mut self.caches)?, &places)?,
        };
        Ok(self.take(0, picked, prompts))
    }

    /// Gives each slot from `first` on its token and retires those that are done.
    fn take(&mut self, first: usize, picked: Vec<u32>, prompts: TokensView<'_>) -> Finished {
        self.tokens += picked.len() as u64;
        self.slots[first..].iter_mut().zip(picked).for_each(|(slot, id)| slot.ids.push(id));
        let mut finished = Vec::new();
        for i in (first..self.slots.len()).rev() {
            let slot = &self.slots[i];
            let length = prompts.row(slot.row).len() + slot.ids.len();
            let stop = match slot.ids.last() {
                Some(id) if self.config.stop_ids.contains(id) => StopReason::Stop,
                _ if slot.ids.len() >= self.config.max_new_tokens => StopReason::Length,
                _ if length >= self.model.config.max_positions => StopReason::Context,
                _ => continue,
            };
            self.caches.swap_remove(i);
            let slot = self.slots.swap_remove(i);
            finished.push((slot.row, Completion { ids: slot.ids, stop }));
        }
        finished.reverse();
        finished
    }
}

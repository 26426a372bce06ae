//! Free generation: many rows decoded together, each token by token, a finished row's slot going to
//! the next prompt.

mod cache;

use std::sync::Arc;

use karat_backend::{BackendError, Completion, Event, EventSink, Flow, GenerateConfig, Level, StopReason, TokensView};
use karat_model::sampling::Sampler;
use rayon::ThreadPool;

use crate::device::{Feed, KvCache};
use crate::error::Result;
use crate::model::Decoder;
use crate::tensor::Angles;

/// Prompt tokens fed at once.
const PREFILL_TOKENS: usize = 4096;

/// A row being decoded; its keys and values have the same place in the cache.
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
    cache: Box<dyn KvCache>,
    /// Angles for the longest sequence: one table, in one place.
    table: Arc<Angles>,
    completions: Vec<Option<Completion>>,
    tokens: u64,
}

/// Continues every prompt; see [`karat_backend::Evaluator::generate`].
///
/// # Errors
/// For an empty or overlong prompt, ids outside the vocabulary, a configuration that makes no
/// sense, logits that are not numbers; Cancelled if the sink says stop.
pub fn generate(
    model: &Decoder,
    pool: &ThreadPool,
    prompts: TokensView<'_>,
    config: &GenerateConfig,
    sink: &mut dyn EventSink,
) -> Result<Vec<Completion>> {
    model.config.check_prompts(prompts)?;
    let longest = prompts.iter().map(|p| p.len()).max().unwrap_or(0);
    let span = (longest + config.max_new_tokens).min(model.config.max_positions);
    let batch = if config.batch_size > 0 { config.batch_size } else { cache::sequences(model, span) };
    let batch = batch.min(prompts.rows().max(1));
    // Long prompts first: the rows that are alone at the end are then the short ones.
    let mut queue: Vec<usize> = (0..prompts.rows()).collect();
    queue.sort_by_key(|&row| prompts.row(row).len());
    let mut decoding = Decoding {
        model,
        config,
        sampler: Sampler::new(config, model.config.vocab_size)?,
        slots: Vec::new(),
        cache: cache::empty(model, batch, span)?,
        table: model.table(span),
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
        if let Some(message) = decoding.cache.complaint()
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
        let logits = cache::prefill(self.model, &texts, &rooms, &mut *self.cache)?;
        let first = self.slots.len();
        self.slots.extend(rows.iter().map(|&row| Slot { row, ids: Vec::new() }));
        let places = self.places(first);
        let picked = self.model.device().pick(&logits, &places, &self.sampler)?;
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
        let (model, table) = (self.model, &self.table);
        let mut forward = |cache: &mut dyn KvCache, tokens: Feed<'_>| cache::feed(model, tokens, table, cache);
        let picked = self.cache.step(&last, &places, &self.sampler, &mut forward)?;
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
            self.cache.swap_remove(i);
            let slot = self.slots.swap_remove(i);
            finished.push((slot.row, Completion { ids: slot.ids, stop }));
        }
        finished.reverse();
        finished
    }
}

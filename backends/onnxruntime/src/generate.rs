//! Continuous batching: as many rows as there are slots are decoded together, one token a step; the
//! slot of a row that ended takes the next prompt at once.
//!
//! The attention operator takes several new tokens a row only for one row at a time, so a prompt is
//! run alone over a cache of one slot and its keys and values are copied into its place. Towards
//! the end, when fewer rows are left than half the slots, a cache in memory of the host is packed,
//! so that stragglers do not pay for empty places. Prompts of one suite begin alike: what a prompt
//! shares with the one before it is still in the cache of one slot and is not run again.

use std::ops::Range;

use karat_backend::{BackendError, Completion, Event, EventSink, Flow, GenerateConfig, StopReason, TokensView};
use karat_model::sampling::Sampler;
use rayon::ThreadPool;
use rayon::prelude::*;

use crate::decoder::{Decoder, Logits};
use crate::kv_cache::KvCache;
use crate::score::check_ids;

/// Rows decoded together when nobody says how many.
const DEFAULT_SLOTS: usize = 32;
/// Bytes the cache may take; fewer slots are used if more would not fit.
const CACHE_BYTES: usize = 4 << 30;
/// Tokens of a prompt run at once: bounds the memory of attention over a long prompt.
const PROMPT_STRETCH: usize = 1024;

/// Continues every prompt; see [`karat_backend::Evaluator::generate`]. Prompt and continuation
/// together are at most `context` tokens; a prompt that already is that long comes back without new
/// ids and [`StopReason::Context`].
///
/// # Errors
/// An empty prompt, an unknown id, senseless sampling parameters, a failing runtime, cancellation.
pub fn generate(
    decoder: &mut Decoder,
    pool: &ThreadPool,
    context: usize,
    prompts: TokensView<'_>,
    config: &GenerateConfig,
    sink: &mut dyn EventSink,
) -> Result<Vec<Completion>, BackendError> {
    let sampler = Sampler::new(config, decoder.model.vocab)?;
    check_ids(decoder, prompts)?;
    if let Some(row) = (0..prompts.rows()).find(|&row| prompts.row(row).is_empty()) {
        return Err(BackendError::failed(format!("row {row} is an empty prompt; give at least one token to continue")));
    }
    let mut batch = Batch {
        decoder,
        pool,
        context,
        prompts,
        sampler,
        config,
        sink,
        done: vec![None; prompts.rows()],
        tokens: 0,
        held: &[],
    };
    batch.run()?;
    let missing = || BackendError::failed("a row was never completed");
    batch.done.into_iter().map(|completion| completion.ok_or_else(missing)).collect()
}

/// A row being decoded.
struct Active {
    row: usize,
    /// Tokens in the cache.
    cached: usize,
    /// New tokens; the last of them is not yet in the cache.
    ids: Vec<u32>,
}

struct Batch<'a> {
    decoder: &'a mut Decoder,
    pool: &'a ThreadPool,
    context: usize,
    prompts: TokensView<'a>,
    sampler: Sampler,
    config: &'a GenerateConfig,
    sink: &'a mut dyn EventSink,
    done: Vec<Option<Completion>>,
    tokens: u64,
    /// The prompt whose keys and values are still in the cache of one slot.
    held: &'a [u32],
}

impl Batch<'_> {
    fn run(&mut self) -> Result<(), BackendError> {
        let mut pending = 0..self.prompts.rows();
        let Some((slots, capacity)) = self.plan() else {
            // No row can grow: each ends where it begins.
            return pending.try_for_each(|row| self.finish_without_a_token(row));
        };
        let mut kv = self.decoder.cache(slots, capacity)?;
        let mut alone = if slots > 1 { Some(self.decoder.cache(1, capacity)?) } else { None };
        let mut active: Vec<Option<Active>> = (0..slots).map(|_| None).collect();
        loop {
            for (slot, place) in active.iter_mut().enumerate() {
                if place.is_none() {
                    *place = self.next_row(&mut pending, slot, &mut kv, alone.as_mut())?;
                }
            }
            let left = active.iter().flatten().count();
            if left == 0 {
                return Ok(());
            }
            if pending.is_empty() && left <= kv.slots() / 2 && kv.is_host() {
                (kv, active) = self.pack(&kv, active, capacity)?;
            }
            self.step(&mut kv, &mut active)?;
        }
    }

    /// Slots and their capacity in tokens, or `None` if no row can grow.
    fn plan(&self) -> Option<(usize, usize)> {
        let limit = |row: usize| (self.prompts.row(row).len() + self.config.max_new_tokens).min(self.context);
        let growing = (0..self.prompts.rows()).filter(|&row| limit(row) > self.prompts.row(row).len());
        let (count, capacity) = growing.fold((0, 0), |(n, longest), row| (n + 1, longest.max(limit(row))));
        if count == 0 {
            return None;
        }
        let wanted = if self.config.batch_size == 0 { DEFAULT_SLOTS } else { self.config.batch_size };
        let fit = CACHE_BYTES / KvCache::bytes_per_slot(&self.decoder.model, capacity);
        Some((wanted.min(count).min(fit.max(1)), capacity))
    }

    /// Starts the next prompt that grows beyond its first token, in `slot`.
    fn next_row(
        &mut self,
        pending: &mut Range<usize>,
        slot: usize,
        kv: &mut KvCache,
        mut alone: Option<&mut KvCache>,
    ) -> Result<Option<Active>, BackendError> {
        for row in pending {
            let prompt = self.prompts.row(row);
            if self.config.max_new_tokens == 0 || prompt.len() >= self.context {
                self.finish_without_a_token(row)?;
                continue;
            }
            let first = match alone.as_deref_mut() {
                Some(alone) => {
                    let first = self.run_prompt(row, alone, self.shared_with_held(prompt))?;
                    self.held = prompt;
                    first
                }
                None => self.run_prompt(row, kv, 0)?,
            };
            let mut started = Active { row, cached: prompt.len(), ids: Vec::new() };
            if self.take(&mut started, first)? {
                continue;
            }
            if let Some(alone) = alone {
                kv.copy_slot(slot, alone, 0, prompt.len())?;
            }
            return Ok(Some(started));
        }
        Ok(None)
    }

    /// How many tokens at the beginning of `prompt` are in the cache of one slot already. The last
    /// one of a prompt is always run: its logits are what is wanted.
    fn shared_with_held(&self, prompt: &[u32]) -> usize {
        let shared = prompt.iter().zip(self.held).take_while(|(a, b)| a == b).count();
        shared.min(prompt.len() - 1)
    }

    /// Runs a prompt over a cache of one slot, of which it holds the first `cached` tokens; returns
    /// the first new token.
    fn run_prompt(&mut self, row: usize, kv: &mut KvCache, mut cached: usize) -> Result<u32, BackendError> {
        let (prompt, vocab) = (self.prompts.row(row), self.decoder.model.vocab);
        let mut first = None;
        for ids in prompt[cached..].chunks(PROMPT_STRETCH) {
            cached += ids.len();
            let fed = ids.iter().map(|&id| i64::from(id)).collect();
            let last = cached == prompt.len();
            let sampler = &self.sampler;
            let token = self.decoder.step(kv, fed, &[cached], Logits::Last, |logits| {
                last.then(|| sampler.pick(&logits[..vocab], row, 0)).transpose()
            })??;
            first = token.or(first);
        }
        self.report()?;
        first.ok_or_else(|| BackendError::failed("an empty prompt has no continuation"))
    }

    /// One new token for every active row.
    fn step(&mut self, kv: &mut KvCache, active: &mut [Option<Active>]) -> Result<(), BackendError> {
        let vocab = self.decoder.model.vocab;
        // An empty place gets one dummy token: the attention operator needs a length of at least
        // one.
        let last = |place: &Option<Active>| place.as_ref().and_then(|a| a.ids.last()).copied().map_or(0, i64::from);
        let ids = active.iter().map(last).collect();
        let totals: Vec<usize> = active.iter().map(|place| place.as_ref().map_or(1, |a| a.cached + 1)).collect();
        let (pool, sampler) = (self.pool, &self.sampler);
        let chosen: Vec<Option<u32>> = self.decoder.step(kv, ids, &totals, Logits::Last, |logits| {
            pool.install(|| {
                let rows = active.par_iter().zip(logits.par_chunks_exact(vocab));
                rows.map(|(place, logits)| place.as_ref().map(|a| sampler.pick(logits, a.row, a.ids.len())).transpose())
                    .collect::<Result<_, _>>()
            })
        })??;
        for (place, token) in active.iter_mut().zip(chosen) {
            if let (Some(row), Some(token)) = (place.as_mut(), token) {
                row.cached += 1;
                if self.take(row, token)? {
                    *place = None;
                }
            }
        }
        self.report()
    }

    /// Appends a token to a row; true if that ended it.
    fn take(&mut self, active: &mut Active, token: u32) -> Result<bool, BackendError> {
        active.ids.push(token);
        self.tokens += 1;
        let stop = if self.config.stop_ids.contains(&token) {
            StopReason::Stop
        } else if active.ids.len() >= self.config.max_new_tokens {
            StopReason::Length
        } else if self.prompts.row(active.row).len() + active.ids.len() >= self.context {
            StopReason::Context
        } else {
            return Ok(false);
        };
        self.complete(active.row, Completion { ids: std::mem::take(&mut active.ids), stop })?;
        Ok(true)
    }

    fn finish_without_a_token(&mut self, row: usize) -> Result<(), BackendError> {
        let stop = if self.config.max_new_tokens == 0 { StopReason::Length } else { StopReason::Context };
        self.complete(row, Completion { ids: Vec::new(), stop })
    }

    fn complete(&mut self, row: usize, completion: Completion) -> Result<(), BackendError> {
        self.done[row] = Some(completion.clone());
        self.send(Event::Completion { row, completion })
    }

    fn report(&mut self) -> Result<(), BackendError> {
        let done = self.done.iter().flatten().count() as u64;
        let total = self.done.len() as u64;
        self.send(Event::Progress { stage: "generate".into(), done, total, tokens: self.tokens })
    }

    fn send(&mut self, event: Event) -> Result<(), BackendError> {
        match self.sink.event(event) {
            Flow::Continue => Ok(()),
            Flow::Stop => Err(BackendError::cancelled()),
        }
    }

    /// A cache of just the rows that are left.
    fn pack(
        &mut self,
        kv: &KvCache,
        active: Vec<Option<Active>>,
        capacity: usize,
    ) -> Result<(KvCache, Vec<Option<Active>>), BackendError> {
        let left: Vec<(usize, Active)> =
            active.into_iter().enumerate().filter_map(|(slot, a)| Some((slot, a?))).collect();
        let mut packed = self.decoder.cache(left.len(), capacity)?;
        for (to, (from, row)) in left.iter().enumerate() {
            packed.copy_slot(to, kv, *from, row.cached)?;
        }
        Ok((packed, left.into_iter().map(|(_, row)| Some(row)).collect()))
    }
}

//! Free generation: one row after the other, token by token, over caches of keys and values.

use karat_backend::{BackendError, Completion, Event, EventSink, Flow, GenerateConfig, StopReason, TokensView};
use karat_model::rows::check_prompts;
use karat_model::sampling::Sampler;

use crate::causal::PIECE;
use crate::session::CandleSession;
use crate::weights::values;
use crate::{Result, failed};

/// Continues every prompt; see [`karat_backend::Evaluator::generate`].
///
/// # Errors
/// For an empty or overlong prompt, ids outside the vocabulary, a configuration that makes no
/// sense, logits that are not numbers; Cancelled if the sink says stop.
pub fn generate(
    session: &mut CandleSession,
    prompts: TokensView<'_>,
    config: &GenerateConfig,
    sink: &mut dyn EventSink,
) -> Result<Vec<Completion>> {
    check_prompts(prompts, session.model.vocab_size(), session.model.max_positions())?;
    let sampler = Sampler::new(config, session.model.vocab_size())?;
    let longest = session.model.max_positions();
    let CandleSession { model, pool, .. } = session;
    let (mut completions, mut tokens) = (Vec::with_capacity(prompts.rows()), 0);
    let total = prompts.rows() as u64;
    for (row, prompt) in prompts.iter().enumerate() {
        let (mut ids, mut decoder, mut next) = (Vec::new(), model.row(prompt.len()), prompt.to_vec());
        let stop = loop {
            if ids.last().is_some_and(|id| config.stop_ids.contains(id)) {
                break StopReason::Stop;
            }
            if ids.len() >= config.max_new_tokens {
                break StopReason::Length;
            }
            if prompt.len() + ids.len() >= longest {
                break StopReason::Context;
            }
            let logits = pool.install(|| {
                let mut last = None;
                for piece in next.chunks(PIECE) {
                    let hidden = decoder.hidden(piece).map_err(failed)?;
                    last = Some(hidden.narrow(0, piece.len() - 1, 1).map_err(failed)?);
                }
                let last = last.ok_or_else(|| BackendError::failed("there is no token to continue"))?;
                values(&decoder.logits(&last).map_err(failed)?)
            })?;
            let id = sampler.pick(&logits, row, ids.len())?;
            ids.push(id);
            next = vec![id];
            tokens += 1;
            let event = Event::Progress { stage: "generate".into(), done: row as u64, total, tokens };
            if sink.event(event) == Flow::Stop {
                return Err(BackendError::cancelled());
            }
        };
        let completion = Completion { ids, stop };
        completions.push(completion.clone());
        if sink.event(Event::Completion { row, completion }) == Flow::Stop {
            return Err(BackendError::cancelled());
        }
        let event = Event::Progress { stage: "generate".into(), done: row as u64 + 1, total, tokens };
        if sink.event(event) == Flow::Stop {
            return Err(BackendError::cancelled());
        }
    }
    Ok(completions)
}

//! Generating.

use super::{Case, Stopper, Suite, Verdict, draw_rows, ensure, ignore, ragged, scoring};
use crate::{BackendError, Capability, Completion, Event, Flow, GenerateConfig, Session, StopReason};

const LENGTHS: [usize; 5] = [4, 11, 1, 7, 4];
const NEW: usize = 12;

pub(super) fn rules(suite: &mut Suite<'_>) {
    suite.rule("completions_are_of_the_asked_length_and_told_once_each", |case| {
        let (mut session, prompts) = open(case)?;
        let vocab = session.info().vocab_size as u32;
        let mut told: Vec<Vec<Completion>> = vec![Vec::new(); prompts.len()];
        let (mut progress, mut strays) = (0, 0);
        let mut sink = |event: Event| {
            match event {
                Event::Progress { .. } => progress += 1,
                Event::Completion { row, completion } => match told.get_mut(row) {
                    Some(told) => told.push(completion),
                    None => strays += 1,
                },
                _ => {}
            }
            Flow::Continue
        };
        let config = GenerateConfig::greedy(NEW, Vec::new());
        let made = generate_into(&mut *session, &prompts, &config, &mut sink).map_err(|e| e.to_string())?;
        ensure!(made.len() == prompts.len(), "{} completions of {} prompts", made.len(), prompts.len());
        ensure!(progress > 0, "no progress was reported");
        ensure!(strays == 0, "{strays} completions were told of rows that do not exist");
        for (row, (made, told)) in made.iter().zip(&told).enumerate() {
            well_formed(row, made, &config, vocab)?;
            ensure!(told.as_slice() == std::slice::from_ref(made), "row {row} is {made:?}, but told were {told:?}");
        }
        Ok(())
    });
    suite.rule("nothing_is_made_of_no_prompts", |case| {
        let (mut session, _) = open(case)?;
        let made = generate(&mut *session, &[], &GenerateConfig::greedy(NEW, Vec::new()))?;
        ensure!(made.is_empty(), "{made:?}");
        Ok(())
    });
    suite.rule("greedy_text_does_not_depend_on_the_batch", |case| {
        let (mut session, prompts) = open(case)?;
        let greedy = GenerateConfig::greedy(NEW, Vec::new());
        let together = generate(&mut *session, &prompts, &greedy)?;
        for batch_size in [1, 2] {
            let other = generate(&mut *session, &prompts, &GenerateConfig { batch_size, ..greedy.clone() })?;
            ensure!(other == together, "in batches of {batch_size}: {other:?}, not {together:?}");
        }
        for (row, prompt) in prompts.iter().enumerate() {
            let alone = generate(&mut *session, std::slice::from_ref(prompt), &greedy)?;
            ensure!(alone[..] == together[row..=row], "row {row} alone: {alone:?}, not {:?}", together[row]);
        }
        Ok(())
    });
    suite.rule("a_stop_id_ends_a_row_and_stays_its_last_id", |case| {
        let (mut session, prompts) = open(case)?;
        let vocab = session.info().vocab_size as u32;
        let free = generate(&mut *session, &prompts, &GenerateConfig::greedy(NEW, Vec::new()))?;
        let stop = *free.first().and_then(|c| c.ids.get(2)).ok_or("the first row has less than three ids")?;
        let config = GenerateConfig::greedy(NEW, vec![stop]);
        let stopped = generate(&mut *session, &prompts, &config)?;
        for (row, (free, stopped)) in free.iter().zip(&stopped).enumerate() {
            well_formed(row, stopped, &config, vocab)?;
            let end = free.ids.iter().position(|&id| id == stop);
            let wanted = match end {
                Some(end) => Completion { ids: free.ids[..=end].to_vec(), stop: StopReason::Stop },
                None => free.clone(),
            };
            ensure!(*stopped == wanted, "row {row} with stop id {stop}: {stopped:?}, not {wanted:?}");
        }
        Ok(())
    });
    suite.rule("sampling_depends_on_the_seed_and_the_row_only", |case| {
        let (mut session, prompts) = open(case)?;
        let vocab = session.info().vocab_size as u32;
        let config = GenerateConfig { temperature: 2.0, seed: 7, ..GenerateConfig::greedy(NEW, Vec::new()) };
        let first = generate(&mut *session, &prompts, &config)?;
        first.iter().enumerate().try_for_each(|(row, made)| well_formed(row, made, &config, vocab))?;
        let again = generate(&mut *session, &prompts, &config)?;
        ensure!(again == first, "the same seed made another text: {again:?}, not {first:?}");
        let singly = generate(&mut *session, &prompts, &GenerateConfig { batch_size: 1, ..config.clone() })?;
        ensure!(singly == first, "in batches of 1: {singly:?}, not {first:?}");
        let other = generate(&mut *session, &prompts, &GenerateConfig { seed: 8, ..config })?;
        ensure!(other != first, "another seed made the same text: {first:?}");
        // The first and the last prompt have one length; a row's number is part of its seed.
        let twins = [prompts[0].clone(), prompts[0].clone()];
        let config = GenerateConfig { temperature: 2.0, seed: 7, ..GenerateConfig::greedy(NEW, Vec::new()) };
        let twins = generate(&mut *session, &twins, &config)?;
        ensure!(twins[0] == first[0], "row 0 depends on the other rows: {:?}, not {:?}", twins[0], first[0]);
        ensure!(twins[0] != twins[1], "the same prompt in two rows was sampled alike: {:?}", twins[0]);
        Ok(())
    });
    suite.rule("sampling_from_the_most_probable_token_is_greedy", |case| {
        let (mut session, prompts) = open(case)?;
        let greedy = GenerateConfig::greedy(NEW, Vec::new());
        let wanted = generate(&mut *session, &prompts, &greedy)?;
        let sampled = GenerateConfig { temperature: 2.0, seed: 7, ..greedy };
        for (name, config) in [
            ("top_k 1", GenerateConfig { top_k: 1, ..sampled.clone() }),
            ("top_p 1e-9", GenerateConfig { top_p: 1e-9, ..sampled }),
        ] {
            let made = generate(&mut *session, &prompts, &config)?;
            ensure!(made == wanted, "{name}: {made:?}, not {wanted:?}");
        }
        Ok(())
    });
    suite.rule("greedy_text_scores_as_greedy", |case| {
        if !case.backend.describe().capabilities.contains(&Capability::Score) {
            return Ok(());
        }
        let (mut session, prompts) = open(case)?;
        let made = generate(&mut *session, &prompts, &GenerateConfig::greedy(NEW, Vec::new()))?;
        let rows: Vec<Vec<u32>> =
            prompts.iter().zip(&made).map(|(prompt, made)| [prompt.as_slice(), &made.ids].concat()).collect();
        let flags = scoring::score(&mut *session, &rows)?.greedy;
        let mut start = 0;
        for (row, (prompt, made)) in prompts.iter().zip(&made).enumerate() {
            let len = prompt.len() + made.ids.len() - 1;
            let of_new = &flags[start + prompt.len() - 1..start + len];
            ensure!(of_new.iter().all(|&greedy| greedy), "row {row}: {:?} are scored greedy {of_new:?}", made.ids);
            start += len;
        }
        Ok(())
    });
    suite.rule("generating_is_cancelled_at_the_first_event_and_the_session_lives_on", |case| {
        let (mut session, prompts) = open(case)?;
        let config = GenerateConfig::greedy(NEW, Vec::new());
        let before = generate(&mut *session, &prompts, &config)?;
        let mut stopper = Stopper::default();
        let result = generate_into(&mut *session, &prompts, &config, &mut |event: Event| stopper.hear(event));
        stopper.verdict(result)?;
        ensure!(generate(&mut *session, &prompts, &config)? == before, "the text changed afterwards");
        Ok(())
    });
}

/// A session and the rows to try it on.
type Opened = (Box<dyn Session>, Vec<Vec<u32>>);

fn open(case: &Case<'_>) -> Result<Opened, String> {
    let session = case.open()?;
    let prompts = draw_rows(2, session.info().vocab_size, &LENGTHS);
    Ok((session, prompts))
}

fn generate(
    session: &mut dyn Session,
    prompts: &[Vec<u32>],
    config: &GenerateConfig,
) -> Result<Vec<Completion>, String> {
    let made = generate_into(session, prompts, config, &mut ignore).map_err(|e| format!("generating failed: {e}"))?;
    ensure!(made.len() == prompts.len(), "{} completions of {} prompts", made.len(), prompts.len());
    Ok(made)
}

fn generate_into(
    session: &mut dyn Session,
    prompts: &[Vec<u32>],
    config: &GenerateConfig,
    sink: &mut dyn FnMut(Event) -> Flow,
) -> Result<Vec<Completion>, BackendError> {
    let evaluator = session.evaluator().ok_or_else(|| BackendError::failed("the session has no evaluator"))?;
    let mut sink = |event: Event| sink(event);
    evaluator.generate(ragged(prompts).view(), config, &mut sink)
}

fn well_formed(row: usize, made: &Completion, config: &GenerateConfig, vocab: u32) -> Verdict {
    let Completion { ids, stop } = made;
    ensure!(ids.iter().all(|&id| id < vocab), "row {row} has an id beyond the vocabulary of {vocab}: {ids:?}");
    let first_stop = ids.iter().position(|id| config.stop_ids.contains(id));
    let fits = match stop {
        StopReason::Stop => first_stop == ids.len().checked_sub(1) && !ids.is_empty(),
        StopReason::Length => first_stop.is_none() && ids.len() == config.max_new_tokens,
        // No prompt of these rules comes near the longest sequence.
        StopReason::Context => false,
    };
    ensure!(
        fits,
        "row {row} ended with {stop:?}: {ids:?}; at most {}, stop at {:?}",
        config.max_new_tokens,
        config.stop_ids
    );
    Ok(())
}

//! Scoring.

use super::{Case, Stopper, Suite, Verdict, draw_rows, ensure, ignore, ragged, refused};
use crate::{BackendError, Event, Flow, Scores, Session};

/// An empty row and a row of one token are among them: neither has anything to score.
const LENGTHS: [usize; 6] = [9, 0, 1, 24, 2, 13];

pub(super) fn rules(suite: &mut Suite<'_>) {
    suite.rule("every_token_but_a_rows_first_is_scored", |case| {
        let (mut session, rows) = open(case)?;
        let mut told = 0;
        let mut sink = |event: Event| {
            told += usize::from(matches!(event, Event::Progress { .. }));
            Flow::Continue
        };
        let scores = score_into(&mut *session, &rows, &mut sink).map_err(|e| e.to_string())?;
        let wanted: usize = LENGTHS.iter().map(|&len| len.max(1) - 1).sum();
        ensure!(scores.logprobs.len() == wanted, "{} log-probabilities, not {wanted}", scores.logprobs.len());
        ensure!(scores.greedy.len() == wanted, "{} flags, not {wanted}", scores.greedy.len());
        ensure!(told > 0, "no progress was reported");
        let none = score(&mut *session, &[])?;
        ensure!(none == Scores::default(), "scores of nothing: {none:?}");
        Ok(())
    });
    suite.rule("scores_are_log_probabilities", |case| {
        let (mut session, rows) = open(case)?;
        let lowest_top = -(session.info().vocab_size as f32).ln() - 1e-3;
        let scores = score(&mut *session, &rows)?;
        for (i, (&logprob, &greedy)) in scores.logprobs.iter().zip(&scores.greedy).enumerate() {
            // Rounding may lift the logarithm of a probability of one by an ulp or two.
            ensure!(logprob.is_finite() && logprob <= 1e-6, "number {i} is {logprob}");
            ensure!(
                !greedy || logprob >= lowest_top,
                "number {i}, {logprob}, cannot be that of the most probable token"
            );
        }
        Ok(())
    });
    suite.rule("scores_do_not_depend_on_the_batch", |case| {
        let (mut session, rows) = open(case)?;
        let together = score(&mut *session, &rows)?.logprobs;
        let again = score(&mut *session, &rows)?.logprobs;
        ensure!(together == again, "the same call gave other numbers");
        let mut reversed = rows.clone();
        reversed.reverse();
        let reversed = score(&mut *session, &reversed)?.logprobs;
        let mut end = reversed.len();
        let mut start = 0;
        for (i, row) in rows.iter().enumerate() {
            let len = row.len().max(1) - 1;
            let first = &together[start..start + len];
            let alone = score(&mut *session, std::slice::from_ref(row))?.logprobs;
            same(case, &format!("row {i} alone"), first, &alone)?;
            same(case, &format!("row {i} in reversed order"), first, &reversed[end - len..end])?;
            (start, end) = (start + len, end - len);
        }
        Ok(())
    });
    suite.rule("an_id_beyond_the_vocabulary_is_an_error_and_the_session_lives_on", |case| {
        let (mut session, rows) = open(case)?;
        let before = score(&mut *session, &rows)?;
        let vocab = session.info().vocab_size as u32;
        refused("an id beyond the vocabulary", score_into(&mut *session, &[vec![0, vocab, 1]], &mut ignore))?;
        ensure!(score(&mut *session, &rows)? == before, "the scores changed afterwards");
        Ok(())
    });
    suite.rule("scoring_is_cancelled_at_the_first_event_and_the_session_lives_on", |case| {
        let (mut session, rows) = open(case)?;
        let before = score(&mut *session, &rows)?;
        let mut stopper = Stopper::default();
        let result = score_into(&mut *session, &rows, &mut |event: Event| stopper.hear(event));
        stopper.verdict(result)?;
        ensure!(score(&mut *session, &rows)? == before, "the scores changed afterwards");
        Ok(())
    });
}

/// A session and the rows to try it on.
type Opened = (Box<dyn Session>, Vec<Vec<u32>>);

fn open(case: &Case<'_>) -> Result<Opened, String> {
    let session = case.open()?;
    let rows = draw_rows(1, session.info().vocab_size, &LENGTHS);
    Ok((session, rows))
}

pub(super) fn score(session: &mut dyn Session, rows: &[Vec<u32>]) -> Result<Scores, String> {
    score_into(session, rows, &mut ignore).map_err(|e| format!("scoring failed: {e}"))
}

fn score_into(
    session: &mut dyn Session,
    rows: &[Vec<u32>],
    sink: &mut dyn FnMut(Event) -> Flow,
) -> Result<Scores, BackendError> {
    let evaluator = session.evaluator().ok_or_else(|| BackendError::failed("the session has no evaluator"))?;
    let mut sink = |event: Event| sink(event);
    evaluator.score(ragged(rows).view(), &mut sink)
}

fn same(case: &Case<'_>, what: &str, a: &[f32], b: &[f32]) -> Verdict {
    ensure!(a.len() == b.len(), "{what}: {} scores, not {}", b.len(), a.len());
    let tolerance = case.fixture.score_tolerance;
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        ensure!((a - b).abs() <= tolerance, "{what}: token {i} has {b}, not {a} (tolerance {tolerance})");
    }
    Ok(())
}

//! Two backends on one model: do they compute the same?
//!
//! Both score the same rows and continue the same prompts. What may differ is rounding; how far it
//! may is the tolerance. A log-probability that is off by more, or a greedy text that parts where
//! the two candidates are *not* as good as tied, is a difference between the backends that a report
//! made with one of them must not hide. Sampled texts are the same too, for all backends draw by
//! one rule; there rounding moves the limits between tokens, and so decides few draws.

use std::time::Instant;

use serde::Serialize;

use crate::backend::{Completion, Evaluator, Event, GenerateConfig, OpenConfig, Scores, SessionInfo, Tokens};
use crate::error::{Error, Result};
use crate::run::{
    Cancel, LoadedBackend, Notice, Observer, StageSink, backend_error, evaluator, opening_warnings, scores,
};

/// What both backends are asked.
#[derive(Clone, Debug)]
pub struct ParityJob<'a> {
    /// How each opens the model: the options of a backend may be its own.
    pub open: [OpenConfig; 2],
    /// Rows to score. A row that is longer than the model holds is cut.
    pub rows: &'a [Vec<u32>],
    /// Prompts to continue. An empty one has no continuation and is left out, and so is one longer
    /// than the model holds.
    pub prompts: &'a [Vec<u32>],
    /// How they are continued.
    pub generate: GenerateConfig,
    /// How far two log-probabilities of one token may be apart, in nats.
    pub tolerance: f64,
}

/// What came of it; the first backend is the reference.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Parity {
    /// The two backends, in the order given.
    pub backends: [ParitySide; 2],
    /// How far a log-probability may be off, in nats.
    pub tolerance: f64,
    /// Log-probabilities of given tokens.
    pub scores: ScoreParity,
    /// Continuations.
    pub texts: TextParity,
    /// Whether everything is within the tolerance.
    pub within: bool,
}

/// One of the two.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ParitySide {
    /// The backend's name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// What really ran.
    pub session: SessionInfo,
    /// Seconds it scored.
    pub score_seconds: f64,
    /// Seconds it generated.
    pub generate_seconds: f64,
}

/// Drift of the log-probabilities of given tokens.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ScoreParity {
    /// Rows scored, those without a prediction (fewer than two tokens) included.
    pub rows: usize,
    /// Rows that were cut to what the model holds.
    pub cut: usize,
    /// Tokens with a log-probability.
    pub tokens: usize,
    /// Largest distance of two log-probabilities of a token, in nats.
    pub max: f64,
    /// Mean distance.
    pub mean: f64,
    /// The token with the largest distance.
    pub worst: Option<TokenParity>,
    /// The first token, in the order of rows and positions, that is off by more than the tolerance.
    pub first_beyond: Option<TokenParity>,
    /// Tokens off by more than the tolerance.
    pub beyond: usize,
    /// Tokens that one backend finds the most probable and the other does not.
    pub flips: usize,
    /// Their share of all tokens.
    pub flip_rate: f64,
}

/// A token's two log-probabilities.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct TokenParity {
    /// The row.
    pub row: usize,
    /// The token's place in it.
    pub position: usize,
    /// The token.
    pub id: u32,
    /// Its log-probability under each backend.
    pub logprobs: [f32; 2],
}

/// Agreement of texts.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct TextParity {
    /// The temperature that they were sampled at; 0 is greedy.
    pub temperature: f64,
    /// Prompts continued.
    pub prompts: usize,
    /// Empty prompts, left out.
    pub empty: usize,
    /// Prompts longer than the model holds, left out.
    pub too_long: usize,
    /// New tokens of the first backend.
    pub tokens: usize,
    /// Prompts with the same continuation and the same reason to stop.
    pub equal: usize,
    /// Where the others part.
    pub partings: Vec<Parting>,
}

impl TextParity {
    /// Whether the texts part no more than log-probabilities do that are off by `tolerance` nats.
    fn rounding_explains(&self, tolerance: f64) -> bool {
        if self.temperature > 0.0 {
            // Cumulative probabilities are then off by a share of twice that, and so are the draws
            // that fall between them; one is always possible.
            return self.partings.len() as f64 <= 1.0 + 2.0 * tolerance * self.tokens as f64;
        }
        // Two log-probabilities may change places over a gap of twice that.
        self.partings.iter().all(|p| p.gap.is_some_and(|gap| gap <= 2.0 * tolerance))
    }
}

/// The first token in which two continuations differ.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Parting {
    /// The prompt.
    pub prompt: usize,
    /// How many new tokens are the same.
    pub common: usize,
    /// What each backend wrote next; nothing where it had stopped.
    pub ids: [Option<u32>; 2],
    /// How much more probable the second backend finds its own token, in nats. Within twice the
    /// tolerance two greedy tokens are as good as tied, and rounding decides. Nothing where one of
    /// the two had stopped.
    pub gap: Option<f64>,
}

/// Asks both backends, one after the other, so that only one model is open at a time.
///
/// # Errors
/// A backend cannot open the model or fails; different vocabularies; interrupted.
pub fn parity(
    job: &ParityJob<'_>,
    backends: [&LoadedBackend; 2],
    observer: &mut dyn Observer,
    cancel: &Cancel,
) -> Result<Parity> {
    let mut prompts: Vec<(usize, &[u32])> = job.prompts.iter().map(Vec::as_slice).enumerate().collect();
    prompts.retain(|(_, prompt)| !prompt.is_empty());
    let empty = job.prompts.len() - prompts.len();
    let mut asked: Vec<(ParitySide, Scores, Vec<Completion>)> = Vec::with_capacity(2);
    let mut partings = Vec::new();
    let mut longest = usize::MAX;
    for (open, backend) in job.open.iter().zip(backends) {
        let described = backend.backend.describe();
        let mut session = backend.open(open)?;
        let info = session.info();
        opening_warnings(open, &info).into_iter().for_each(|w| observer.notice(Notice::Warning(w)));
        if let Some((first, ..)) = asked.first() {
            same_model((&first.name, &first.session), (&described.name, &info))?;
        }
        longest = info.max_positions;
        prompts.retain(|(_, prompt)| prompt.len() <= longest);
        let evaluator = evaluator(&mut session, &described.name)?;
        let mut ask = Ask { name: &described.name, evaluator, observer: &mut *observer, cancel };

        let began = Instant::now();
        let scores = ask.score(job.rows.iter().map(|row| &row[..row.len().min(longest)]).collect())?;
        let score_seconds = began.elapsed().as_secs_f64();
        let began = Instant::now();
        let texts = ask.generate(prompts.iter().map(|(_, prompt)| prompt).collect(), &job.generate)?;
        let generate_seconds = began.elapsed().as_secs_f64();
        if let Some((_, _, first)) = asked.first() {
            partings = part(&mut ask, &prompts, first, &texts)?;
        }
        let name = described.name;
        let side = ParitySide { name, version: described.version, session: info, score_seconds, generate_seconds };
        asked.push((side, scores, texts));
    }
    let [(first, a, texts), (second, b, _)] =
        <[_; 2]>::try_from(asked).map_err(|_| Error::failed("two backends were not both asked"))?;
    let scores = drift(job, longest, &a, &b);
    let texts = TextParity {
        temperature: job.generate.temperature,
        prompts: prompts.len(),
        empty,
        too_long: job.prompts.len() - empty - prompts.len(),
        tokens: texts.iter().map(|c| c.ids.len()).sum(),
        equal: prompts.len() - partings.len(),
        partings,
    };
    let within = scores.beyond == 0 && texts.rounding_explains(job.tolerance);
    Ok(Parity { backends: [first, second], tolerance: job.tolerance, scores, texts, within })
}

/// Two sessions that cannot be asked the same are of different models.
fn same_model(a: (&str, &SessionInfo), b: (&str, &SessionInfo)) -> Result<()> {
    let facts = |s: &SessionInfo| format!("{} token ids and {} positions", s.vocab_size, s.max_positions);
    if (a.1.vocab_size, a.1.max_positions) == (b.1.vocab_size, b.1.max_positions) {
        return Ok(());
    }
    let (of_a, of_b) = (facts(a.1), facts(b.1));
    Err(Error::backend(format!("the backends hold different models: {} has {of_a}, {} has {of_b}", a.0, b.0)))
}

/// Nothing of what a backend tells needs keeping.
type Keep = fn(&Event) -> Result<()>;

/// One backend being asked.
struct Ask<'a> {
    name: &'a str,
    evaluator: &'a mut dyn Evaluator,
    observer: &'a mut dyn Observer,
    cancel: &'a Cancel,
}

impl Ask<'_> {
    fn sink(&mut self) -> (&mut dyn Evaluator, StageSink<'_, Keep>) {
        let keep: Keep = |_| Ok(());
        let (observer, cancel) = (&mut *self.observer, self.cancel);
        (self.evaluator, StageSink { stage: self.name, total: None, observer, cancel, keep, error: None })
    }

    fn score(&mut self, rows: Tokens) -> Result<Scores> {
        let name = self.name.to_string();
        let (evaluator, mut sink) = self.sink();
        let place = |row: usize| format!("{name}: row {row}");
        scores(evaluator, rows.view(), &format!("{name}: scoring failed"), &place, &mut sink)
    }

    fn generate(&mut self, prompts: Tokens, config: &GenerateConfig) -> Result<Vec<Completion>> {
        let name = self.name.to_string();
        let (evaluator, mut sink) = self.sink();
        let made = evaluator.generate(prompts.view(), config, &mut sink);
        made.map_err(|e| backend_error(&format!("{name}: generation failed"), e))
    }
}

/// Where the texts part, and how close the two tokens are there under the second backend.
fn part(ask: &mut Ask<'_>, prompts: &[(usize, &[u32])], a: &[Completion], b: &[Completion]) -> Result<Vec<Parting>> {
    let (mut partings, mut beginnings) = (Vec::new(), Vec::new());
    for ((prompt, text), (a, b)) in prompts.iter().zip(a.iter().zip(b)).filter(|(_, (a, b))| a != b) {
        let common = a.ids.iter().zip(&b.ids).take_while(|(x, y)| x == y).count();
        let ids = [a.ids.get(common).copied(), b.ids.get(common).copied()];
        partings.push(Parting { prompt: *prompt, common, ids, gap: None });
        beginnings.push([text, &b.ids[..common]].concat());
    }
    let both = partings.iter().zip(&beginnings).filter_map(|(p, shared)| Some((shared, p.ids[0]?, p.ids[1]?)));
    let rows: Tokens =
        both.flat_map(|(shared, theirs, own)| [theirs, own].map(|id| [shared.as_slice(), &[id]].concat())).collect();
    let lasts = last_of_rows(&rows, &ask.score(rows.clone())?);
    let mut gaps = lasts.chunks_exact(2).map(|pair| f64::from(pair[1]) - f64::from(pair[0]));
    for parting in partings.iter_mut().filter(|p| p.ids.iter().all(Option::is_some)) {
        parting.gap = gaps.next();
    }
    Ok(partings)
}

/// The log-probability of the last token of each row.
fn last_of_rows(rows: &Tokens, scores: &Scores) -> Vec<f32> {
    let mut end = 0;
    let ends = rows.view().iter().map(|row| {
        end += row.len() - 1;
        end - 1
    });
    ends.map(|last| scores.logprobs[last]).collect()
}

fn drift(job: &ParityJob<'_>, longest: usize, a: &Scores, b: &Scores) -> ScoreParity {
    let mut found = ScoreParity { rows: job.rows.len(), tokens: a.logprobs.len(), ..ScoreParity::default() };
    let (mut k, mut sum) = (0, 0.0);
    for (row, ids) in job.rows.iter().enumerate() {
        found.cut += usize::from(ids.len() > longest);
        for (position, &id) in ids.iter().enumerate().take(longest).skip(1) {
            let logprobs = [a.logprobs[k], b.logprobs[k]];
            // Not a number is further away than any number.
            let distance = match f64::from(logprobs[0]) - f64::from(logprobs[1]) {
                d if d.is_nan() && logprobs[0] != logprobs[1] => f64::INFINITY,
                d if d.is_nan() => 0.0,
                d => d.abs(),
            };
            let token = TokenParity { row, position, id, logprobs };
            sum += distance;
            if found.worst.is_none() || distance > found.max {
                (found.max, found.worst) = (distance, Some(token));
            }
            if distance > job.tolerance {
                found.beyond += 1;
                found.first_beyond.get_or_insert(token);
            }
            found.flips += usize::from(a.greedy[k] != b.greedy[k]);
            k += 1;
        }
    }
    let tokens = found.tokens.max(1) as f64;
    (found.mean, found.flip_rate) = (sum / tokens, found.flips as f64 / tokens);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(rows: &[Vec<u32>]) -> ParityJob<'_> {
        let open = OpenConfig::new("m");
        let generate = GenerateConfig::greedy(1, vec![]);
        ParityJob { open: [open.clone(), open], rows, prompts: &[], generate, tolerance: 1e-3 }
    }

    #[test]
    fn drift_names_the_worst_token_and_the_first_beyond_the_tolerance() {
        let rows = [vec![7], vec![1, 2, 3], vec![], vec![4, 5, 6, 7]];
        let a = Scores { logprobs: vec![-1.0, -2.0, -3.0, -4.0], greedy: vec![true, false, false, true] };
        let b = Scores { logprobs: vec![-1.0, -2.01, -3.0005, -4.5], greedy: vec![true, true, false, true] };
        // The last row is cut to three tokens.
        let found = drift(&job(&rows), 3, &a, &b);
        assert_eq!((found.rows, found.cut, found.tokens, found.beyond, found.flips), (4, 1, 4, 2, 1));
        assert_eq!(found.first_beyond.map(|t| (t.row, t.position, t.id)), Some((1, 2, 3)));
        assert_eq!(found.worst.map(|t| (t.row, t.position, t.id)), Some((3, 2, 6)));
        assert!((found.max - 0.5).abs() < 1e-6 && (found.mean - 0.5105 / 4.0).abs() < 1e-6, "{found:?}");
        assert_eq!(found.flip_rate, 0.25);
    }

    #[test]
    fn rounding_explains_a_tie_of_greedy_texts_and_few_draws_of_sampled_ones() {
        let texts = |temperature: f64, gaps: &[f64]| TextParity {
            temperature,
            tokens: 1000,
            partings: gaps
                .iter()
                .map(|gap| Parting { prompt: 0, common: 3, ids: [Some(1), Some(2)], gap: Some(*gap) })
                .collect(),
            ..TextParity::default()
        };
        for (texts, explained) in [
            (texts(0.0, &[1e-3, 2e-3]), true),
            (texts(0.0, &[1e-3, 3e-3]), false),
            (texts(1.0, &[2.0, 0.1, 0.0]), true),
            (texts(1.0, &[0.0; 4]), false),
        ] {
            assert_eq!(texts.rounding_explains(1e-3), explained, "{texts:?}");
        }
    }

    #[test]
    fn a_number_that_is_none_is_infinitely_far_and_equal_infinities_are_not() {
        let rows = [vec![1, 2, 3]];
        let of = |logprobs: [f32; 2]| Scores { logprobs: logprobs.to_vec(), greedy: vec![false; 2] };
        let (whole, broken) = (of([-1.0, f32::NEG_INFINITY]), of([f32::NAN, f32::NEG_INFINITY]));
        let found = drift(&job(&rows), 9, &whole, &broken);
        assert_eq!((found.max, found.beyond), (f64::INFINITY, 1));
        assert_eq!(drift(&job(&rows), 9, &whole, &whole).max, 0.0);
    }
}

//! Teacher-forced scoring: rows sorted by length, padded on the right, log-softmax in parallel over
//! positions.

use karat_backend::{BackendError, Event, EventSink, Flow, Scores, TokensView};
use rayon::ThreadPool;
use rayon::prelude::*;

use crate::decoder::{Decoder, Logits};
use crate::logits::log_probability;

/// Bytes of logits a batch may produce; a longer row is scored in stretches over a cache.
const LOGITS_BYTES: usize = 256 << 20;

/// The log-probability of every token given its prefix, in batches of at most `positions` (padding
/// counted).
///
/// # Errors
/// A row longer than the model holds or with an unknown id, a failing runtime, non-numbers,
/// cancellation.
pub fn score(
    decoder: &mut Decoder,
    pool: &ThreadPool,
    positions: usize,
    tokens: TokensView<'_>,
    sink: &mut dyn EventSink,
) -> Result<Scores, BackendError> {
    check_ids(decoder, tokens)?;
    let longest = decoder.model.max_positions;
    if let Some(row) = (0..tokens.rows()).find(|&row| tokens.row(row).len() > longest) {
        let length = tokens.row(row).len();
        return Err(BackendError::failed(format!(
            "row {row} has {length} tokens, the model holds at most {longest}; truncate it"
        )));
    }
    // What logits may take bounds stretches, and whole rows where they have logits.
    let stretch = (LOGITS_BYTES / (decoder.model.vocab * size_of::<f32>())).clamp(1, positions);
    let positions = if decoder.gives_log_probabilities() { positions } else { stretch };
    // Rows of one token or none have nothing to score. The sort is stable: equal lengths keep their
    // order.
    let mut order: Vec<usize> = (0..tokens.rows()).filter(|&row| tokens.row(row).len() > 1).collect();
    order.sort_by_key(|&row| tokens.row(row).len());

    let lengths: Vec<usize> = order.iter().map(|&row| tokens.row(row).len()).collect();
    let mut scored: Vec<Vec<(f32, bool)>> = vec![Vec::new(); tokens.rows()];
    let (mut done, mut fed) = (tokens.rows() - order.len(), 0u64);
    let mut rest = order.as_slice();
    for size in batches(&lengths, positions) {
        let (batch, later) = rest.split_at(size);
        let rows: Vec<&[u32]> = batch.iter().map(|&row| tokens.row(row)).collect();
        let results = match rows.as_slice() {
            [row] if row.len() > positions => vec![score_long(decoder, pool, row, stretch)?],
            rows => score_batch(decoder, pool, rows)?,
        };
        batch.iter().zip(results).for_each(|(&row, result)| scored[row] = result);
        done += batch.len();
        fed += rows.iter().map(|row| row.len() as u64).sum::<u64>();
        let progress =
            Event::Progress { stage: "score".into(), done: done as u64, total: tokens.rows() as u64, tokens: fed };
        if sink.event(progress) == Flow::Stop {
            return Err(BackendError::cancelled());
        }
        rest = later;
    }
    let (logprobs, greedy) = scored.into_iter().flatten().unzip();
    Ok(Scores { logprobs, greedy })
}

/// Cost of a batch of so many positions, in positions of a large one: the weights are read from
/// memory once for each batch, which only the work of a large one hides. Measured with SmolLM2-135M
/// on two cores: batches of 64, 128, 150 and 450 positions took as long as 81, 136, 150 and 450.
fn cost(positions: usize) -> usize {
    positions + 32usize.saturating_sub(positions / 5)
}

/// Sizes of the batches that `lengths` (rising) are cut into, so that padding and the cost of a
/// batch together are as small as can be; none has more than `positions` with its padding, unless
/// it is one row.
fn batches(lengths: &[usize], positions: usize) -> Vec<usize> {
    // best[n]: the least cost of the first n rows, and the size of the last batch of those.
    let mut best = vec![(0usize, 0usize); 1];
    for end in 1..=lengths.len() {
        let longest = lengths[end - 1];
        let sizes = (1..=end).take_while(|&size| size == 1 || size * longest <= positions);
        let costs = sizes.map(|size| (best[end - size].0 + cost(size * longest), size));
        best.push(costs.min().unwrap_or((0, 1)));
    }
    let (mut sizes, mut end) = (Vec::new(), lengths.len());
    while end > 0 {
        sizes.push(best[end].1);
        end -= best[end].1;
    }
    sizes.reverse();
    sizes
}

/// Ids must be in the vocabulary.
///
/// # Errors
/// Names the row and the id.
pub fn check_ids(decoder: &Decoder, tokens: TokensView<'_>) -> Result<(), BackendError> {
    let vocab = decoder.model.vocab;
    for (index, row) in tokens.iter().enumerate() {
        if let Some(id) = row.iter().find(|id| **id as usize >= vocab) {
            return Err(BackendError::failed(format!("row {index} holds the id {id}, the model knows {vocab}")));
        }
    }
    Ok(())
}

fn score_batch(
    decoder: &mut Decoder,
    pool: &ThreadPool,
    rows: &[&[u32]],
) -> Result<Vec<Vec<(f32, bool)>>, BackendError> {
    if decoder.gives_log_probabilities() {
        let scored = decoder.log_probabilities(rows)?;
        return match scored.iter().flatten().any(|(logprob, _)| logprob.is_nan()) {
            true => Err(BackendError::failed("the model's logits are not numbers")),
            false => Ok(scored),
        };
    }
    let vocab = decoder.model.vocab;
    let longest = rows.iter().map(|row| row.len()).max().unwrap_or(0);
    decoder.batch(rows, |logits| {
        pool.install(|| {
            rows.par_iter()
                .zip(logits.par_chunks_exact(longest * vocab))
                .map(|(row, logits)| pick(&row[1..], logits, vocab))
                .collect()
        })
    })?
}

/// A row whose logits would not fit at once: fed in stretches that append to a cache.
fn score_long(
    decoder: &mut Decoder,
    pool: &ThreadPool,
    row: &[u32],
    stretch: usize,
) -> Result<Vec<(f32, bool)>, BackendError> {
    let vocab = decoder.model.vocab;
    let mut kv = decoder.cache(1, row.len())?;
    let mut scored = Vec::with_capacity(row.len());
    for (index, ids) in row.chunks(stretch).enumerate() {
        let start = index * stretch;
        let targets = &row[start + 1..(start + 1 + ids.len()).min(row.len())];
        let fed = ids.iter().map(|&id| i64::from(id)).collect();
        let part = decoder.step(&mut kv, fed, &[start + ids.len()], Logits::All, |logits| {
            pool.install(|| pick(targets, logits, vocab))
        })??;
        scored.extend(part);
    }
    Ok(scored)
}

/// The log-probability of each target under the logits of its position.
fn pick(targets: &[u32], logits: &[f32], vocab: usize) -> Result<Vec<(f32, bool)>, BackendError> {
    targets
        .par_iter()
        .zip(logits.par_chunks_exact(vocab))
        .map(|(&target, logits)| log_probability(logits, target))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::batches;

    #[test]
    fn batches_hold_rows_of_like_length_and_no_more_positions_than_allowed() {
        assert!(batches(&[], 100).is_empty());
        // Equal rows share batches as large as they may be; the split of what is left over is the
        // cheapest.
        assert_eq!(batches(&[10; 7], 40).iter().sum::<usize>(), 7);
        assert_eq!(batches(&[10; 7], 40).len(), 2);
        // Padding ten rows of 10 to 300 would cost more than a batch of their own.
        let mut lengths = vec![10; 10];
        lengths.push(300);
        assert_eq!(batches(&lengths, 4096), [10, 1]);
        // Rows as short as a batch is dear are padded rather than kept apart.
        assert_eq!(batches(&[2, 3, 4, 5], 4096), [4]);
        // Rows long enough to fill a batch are not padded for company.
        assert_eq!(batches(&[200, 210, 220], 4096), [1, 1, 1]);
        // A row that is too long is alone.
        assert_eq!(batches(&[5, 500], 100), [1, 1]);
    }
}

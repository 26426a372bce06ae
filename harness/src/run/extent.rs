//! How much a training is, for those who reckon rates of it.

use std::path::{Path, PathBuf};

use karat_system::safetensors::read_header;

use crate::backend::Method;
use crate::run::TrainJob;
use crate::run::train::EVAL_BATCH;
use crate::track::Extent;

/// How much a training is.
pub(super) fn extent(job: &TrainJob<'_>) -> Extent {
    let TrainJob { base, eval, plan, .. } = job;
    Extent {
        steps: plan.steps.len(),
        rows: plan.steps.iter().flatten().map(|micro| micro.len() as u64).sum(),
        eval_rows: eval.len() as u64,
        eval_batches: eval.len().div_ceil(EVAL_BATCH) as u64,
        parameters: passed_parameters(&base.open.model),
        adapter: plan.method != Method::Full,
    }
}

/// Parameters of the model in `folder` that a token passes through, embeddings left out; none where
/// its files do not say.
fn passed_parameters(folder: &Path) -> Option<u64> {
    let files: Vec<PathBuf> = std::fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path()).collect();
    let mut count = None;
    for file in files.iter().filter(|file| file.extension().is_some_and(|end| end == "safetensors")) {
        let tensors = read_header(file).ok()?;
        let passed = tensors.iter().filter(|(name, _)| !name.ends_with("embed_tokens.weight"));
        let elements = |shape: &[usize]| shape.iter().map(|&size| size as u64).product::<u64>();
        *count.get_or_insert(0) += passed.map(|(_, tensor)| elements(&tensor.shape)).sum::<u64>();
    }
    count
}

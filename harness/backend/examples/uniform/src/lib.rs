//! A backend to begin from: the uniform model, under which all tokens are equally probable,
//! whatever comes before them. A model's folder holds `vocab.txt`, one token a line. Its perplexity
//! is what any trained model must be below.

use karat_backend::*;

/// The backend.
#[derive(Default)]
pub struct Uniform;

impl Backend for Uniform {
    fn describe(&self) -> Descriptor {
        Descriptor {
            name: "uniform".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            capabilities: vec![Capability::Score, Capability::Generate],
            devices: vec!["cpu".into()],
            dtypes: vec![Dtype::F32],
            ..Default::default()
        }
    }
    fn open(&self, config: &OpenConfig) -> Result<Box<dyn Session>, BackendError> {
        if let Some(option) = config.options.keys().next() {
            return Err(BackendError::unsupported(format!("no option {option}: there are none")));
        }
        if !["cpu", "auto"].contains(&config.device.as_str()) || config.dtype != Dtype::F32 {
            return Err(BackendError::unsupported(format!(
                "no {} on {}, only f32 on cpu",
                config.dtype, config.device
            )));
        }
        if config.adapter.is_some() || config.weights != Weights::Load {
            return Err(BackendError::unsupported("a uniform model has no weights to draw or to adapt"));
        }
        let path = config.model.join("vocab.txt");
        let failed = |what: &str| BackendError::failed(format!("{}: {what}", path.display()));
        let vocab = std::fs::read_to_string(&path).map_err(|e| failed("unreadable").because(&e))?.lines().count();
        if vocab == 0 { Err(failed("it lists no token")) } else { Ok(Box::new(Model { vocab })) }
    }
}

struct Model {
    vocab: usize,
}

impl Session for Model {
    fn evaluator(&mut self) -> Option<&mut dyn Evaluator> {
        Some(self)
    }
    fn info(&self) -> SessionInfo {
        let device = "cpu".into();
        SessionInfo { device, threads: 1, vocab_size: self.vocab, max_positions: 1024, ..Default::default() }
    }
}

impl Evaluator for Model {
    fn score(&mut self, tokens: TokensView<'_>, sink: &mut dyn EventSink) -> Result<Scores, BackendError> {
        let mut scores = Scores::default();
        for (row, ids) in tokens.iter().enumerate() {
            check(ids, self.vocab)?;
            tell(sink, progress("score", row, tokens.rows()))?;
            // A row's first token has no prefix. All the others tie, so the lowest id is the most
            // probable one.
            scores.logprobs.extend(ids.iter().skip(1).map(|_| -(self.vocab as f32).ln()));
            scores.greedy.extend(ids.iter().skip(1).map(|&id| id == 0));
        }
        Ok(scores)
    }
    fn generate(
        &mut self,
        prompts: TokensView<'_>,
        config: &GenerateConfig,
        sink: &mut dyn EventSink,
    ) -> Result<Vec<Completion>, BackendError> {
        let kept = if config.top_k == 0 { self.vocab } else { config.top_k.min(self.vocab) } as f64;
        let kept = if config.temperature == 0.0 { 1.0 } else { (config.top_p * kept).ceil().max(1.0) };
        let mut completions = Vec::new();
        for (row, prompt) in prompts.iter().enumerate() {
            check(prompt, self.vocab)?;
            let (mut ids, room) = (Vec::new(), self.info().max_positions.saturating_sub(prompt.len()));
            let stop = loop {
                tell(sink, progress("generate", row, prompts.rows()))?;
                match ids.last() {
                    Some(id) if config.stop_ids.contains(id) => break StopReason::Stop,
                    _ if ids.len() == config.max_new_tokens => break StopReason::Length,
                    _ if ids.len() == room => break StopReason::Context,
                    _ => ids.push((kept * random(config.seed, row, ids.len())) as u32),
                }
            };
            tell(sink, Event::Completion { row, completion: Completion { ids: ids.clone(), stop } })?;
            completions.push(Completion { ids, stop });
        }
        Ok(completions)
    }
}

fn check(ids: &[u32], vocab: usize) -> Result<(), BackendError> {
    let beyond = ids.iter().find(|&&id| id as usize >= vocab);
    beyond.map_or(Ok(()), |id| Err(BackendError::failed(format!("id {id} is beyond the vocabulary of {vocab}"))))
}

fn progress(stage: &str, done: usize, total: usize) -> Event {
    Event::Progress { stage: stage.into(), done: done as u64, total: total as u64, tokens: 0 }
}

/// Every event is a chance to be cancelled.
fn tell(sink: &mut dyn EventSink, event: Event) -> Result<(), BackendError> {
    if sink.event(event) == Flow::Stop { Err(BackendError::cancelled()) } else { Ok(()) }
}

/// A number in `[0, 1)` of its own for every seed, row and position (SplitMix64's output function).
fn random(seed: u64, row: usize, position: usize) -> f64 {
    let mut z = seed ^ ((row as u64) << 32 | position as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

karat_backend::export_backend!(Uniform);

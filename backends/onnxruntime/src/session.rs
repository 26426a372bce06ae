//! The session the host holds: a decoder, its threads, and the evaluator on top.

use std::path::Path;

use karat_backend::{
    AdapterMode, BackendError, Completion, Evaluator, EventSink, GenerateConfig, OpenConfig, Scores, Session,
    SessionInfo, TokensView, worker_threads,
};
use karat_kernels::gemm::isa::Isa;
use karat_model::thread_pool;
use rayon::ThreadPool;

use crate::adapter_inputs::AdapterInputs;
use crate::decoder::Decoder;
use crate::manifest::{Exported, Manifest};
use crate::operators::Operators;
use crate::options::Options;
use crate::provider::Provider;
use crate::runtime::{self, Loaded};
use crate::weight_format::WeightFormat;
use crate::{generate, score};

/// An open model.
pub struct OnnxSession {
    decoder: Decoder,
    pool: ThreadPool,
    context: usize,
    score_positions: usize,
    threads: usize,
    library: String,
    /// Warnings from when the model was merged.
    merged: Vec<String>,
}

impl OnnxSession {
    /// Loads the export.
    ///
    /// # Errors
    /// A model that the library refuses, or a provider that cannot be had.
    pub fn open(
        config: &OpenConfig,
        options: &Options,
        exported: Exported,
        loaded: &Loaded,
        provider: Provider,
        merged: Vec<String>,
    ) -> Result<Self, BackendError> {
        let threads = worker_threads(config.threads)?;
        let mut decoder = Decoder::open(loaded, &exported, provider, threads, options)?;
        if let Some(folder) = config.adapter.as_deref().filter(|_| decoder.model.adapter_mode == AdapterMode::Runtime) {
            decoder.adapter = AdapterInputs::read(folder, &decoder.model)?;
        }
        let pool = thread_pool("onnxruntime", threads)?;
        let longest = decoder.model.max_positions;
        Ok(OnnxSession {
            pool,
            context: options.context.map_or(longest, |context| context.min(longest)),
            score_positions: options.score_positions,
            threads,
            merged,
            library: format!("ONNX Runtime {}", runtime::version(loaded)),
            decoder,
        })
    }
}

impl Session for OnnxSession {
    fn evaluator(&mut self) -> Option<&mut dyn Evaluator> {
        Some(self)
    }

    fn set_adapter(&mut self, adapter: Option<&Path>) -> Result<(), BackendError> {
        if self.decoder.model.adapter_mode == AdapterMode::Merge {
            return Err(BackendError::unsupported(
                "this session's model has its adapter merged: open it with the option adapter_mode = \"runtime\"",
            ));
        }
        // What is there stays until the new one has been read whole.
        self.decoder.adapter = match adapter {
            Some(folder) => AdapterInputs::read(folder, &self.decoder.model)?,
            None => AdapterInputs::default(),
        };
        Ok(())
    }

    fn info(&self) -> SessionInfo {
        let model = &self.decoder.model;
        SessionInfo {
            device: self.decoder.provider.device(),
            dtype: model.weights.activations(),
            threads: self.threads,
            // A provider that cannot be had is an error, so the one that was asked for is the one
            // that runs.
            kernels: std::iter::once(format!(
                "{}: {}{}, GroupQueryAttention {}, weights {}",
                self.library,
                self.decoder.provider.name(),
                if self.decoder.provider.captures() { " (captured graphs)" } else { "" },
                model.activations(),
                model.weights
            ))
            .chain(own_kernels(model))
            .collect(),
            parameters: model.parameters,
            adapter_parameters: model.adapter_parameters + self.decoder.adapter.parameters,
            vocab_size: model.vocab,
            max_positions: self.context,
            warnings: [&self.merged, &model.warnings, &self.decoder.adapter.warnings]
                .into_iter()
                .flatten()
                .cloned()
                .collect(),
        }
    }
}

/// Karat's operators, as this CPU runs them.
fn own_kernels(model: &Manifest) -> Option<String> {
    let set = Isa::of_this_cpu();
    let products = match (model.operators, model.weights) {
        (Operators::Standard, _) => return None,
        (Operators::Karat, WeightFormat::Bf16) => "bf16, f32 sums",
        (Operators::Karat, _) => "f32, weights read as bf16 where that loses nothing",
    };
    Some(format!("karat.MatMul, SwiGlu, LogProbs: {products} ({})", set.name()))
}

impl Evaluator for OnnxSession {
    fn score(&mut self, tokens: TokensView<'_>, sink: &mut dyn EventSink) -> Result<Scores, BackendError> {
        score::score(&mut self.decoder, &self.pool, self.score_positions, tokens, sink)
    }

    fn generate(
        &mut self,
        prompts: TokensView<'_>,
        config: &GenerateConfig,
        sink: &mut dyn EventSink,
    ) -> Result<Vec<Completion>, BackendError> {
        generate::generate(&mut self.decoder, &self.pool, self.context, prompts, config, sink)
    }
}

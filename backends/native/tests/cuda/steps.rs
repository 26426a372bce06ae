//! Steps of training and of generation: recorded ones are the others to the bit, and what a steady
//! one asks of the device.

use std::sync::Arc;

use karat_native::config::ModelConfig;
use karat_native::cuda::Cuda;
use karat_native::cuda::device::Element;
use karat_native::cuda::emulator::{DeviceCounts, Emulator};
use karat_native::device::Device;
use karat_native::generate;
use karat_native::model::Decoder;
use karat_native::train::Job;
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::*;

/// As [`super::model`], with room for sequences longer than a block of attention takes.
fn long_model(dir: &Path, family: &str) -> OpenConfig {
    let config = model(dir, family);
    let text = std::fs::read_to_string(dir.join("config.json")).unwrap();
    let text = text.replace("\"max_position_embeddings\":96", "\"max_position_embeddings\":400");
    assert!(text.contains("400"));
    std::fs::write(dir.join("config.json"), text).unwrap();
    config
}

#[test]
fn texts_of_recorded_steps_are_those_without_and_those_of_the_cpu() {
    emulator_or_skip!();
    // Two sequences cross from one class of lengths to the next at different steps.
    let prompts: Tokens = small_rows(&[3, 124, 9, 120, 20]).tokens;
    for (family, dtype) in [("qwen3", Dtype::F32), ("llama", Dtype::F32), ("qwen3", Dtype::Bf16)] {
        let dir = tempfile::tempdir().unwrap();
        let base = long_model(dir.path(), family);
        let with = |recorded: bool| OpenConfig {
            options: [("cuda_graph".to_owned(), recorded.into())].into(),
            dtype,
            ..on_cuda(&base)
        };
        let generate = |open_config: &OpenConfig, config: &GenerateConfig| {
            let mut session = open(open_config);
            let mut complaints = Vec::new();
            let mut sink = |event: Event| {
                if let Event::Log { message, .. } = event {
                    complaints.push(message);
                }
                Flow::Continue
            };
            let texts = session.evaluator().unwrap().generate(prompts.view(), config, &mut sink).unwrap();
            assert!(complaints.is_empty(), "{complaints:?}");
            texts
        };
        // Stops leave fewer and fewer sequences, or make room for the next.
        let greedy = GenerateConfig::greedy(14, vec![7, 11, 30]);
        let drawn = GenerateConfig { temperature: 0.9, top_k: 20, top_p: 0.95, seed: 4, ..greedy.clone() };
        let few = GenerateConfig { temperature: 1.3, seed: 5, batch_size: 2, ..greedy.clone() };
        let mut lengths = Vec::new();
        for config in [greedy, drawn, few] {
            let (recorded, plain) = (generate(&with(true), &config), generate(&with(false), &config));
            assert_eq!(recorded, plain, "{family} {dtype} {config:?}");
            if dtype == Dtype::F32 {
                assert_eq!(recorded, generate(&base, &config), "{family} {config:?}");
            }
            lengths.extend(recorded.iter().map(|text| text.ids.len()));
        }
        assert!(lengths.iter().any(|n| *n < 12) && lengths.iter().filter(|n| **n == 14).count() > 3, "{lengths:?}");
    }
}

#[test]
fn an_unknown_option_and_one_of_another_type_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let base = model(dir.path(), "qwen3");
    for (key, value, said) in
        [("cuda-graph", json!(true), "known: cuda_graph"), ("cuda_graph", json!("on"), "true or false, not \"on\"")]
    {
        let options = [(key.to_owned(), value)].into();
        let Err(error) = NativeBackend.open(&OpenConfig { options, ..base.clone() }) else { panic!("{key} is taken") };
        assert!(error.message.contains(said), "{error}");
    }
}

/// A model of `layers` layers on an emulator of its own.
struct Bench {
    emulator: Arc<Emulator>,
    model: Decoder,
    pool: ThreadPool,
    dir: tempfile::TempDir,
}

fn bench(recorded: bool) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let config = long_model(dir.path(), "qwen3");
    let emulator = Emulator::new().unwrap();
    let device = Cuda { gpu: emulator.clone(), activations: Element::Bf16, graphs: recorded };
    let device: Arc<dyn Device> = Arc::new(device);
    let mut model = Decoder::random(ModelConfig::read(dir.path()).unwrap(), config.seed).unwrap();
    model.place(&device).unwrap();
    Bench { emulator, model, pool: ThreadPoolBuilder::new().num_threads(2).build().unwrap(), dir }
}

/// Device operations between one event and the next.
fn apart(all: &[DeviceCounts]) -> Vec<DeviceCounts> {
    all.windows(2).map(|w| w[1] - w[0]).collect()
}

#[test]
fn a_steady_step_of_generation_is_one_launch_and_one_copy_of_ids() {
    emulator_or_skip!();
    let prompts: Tokens = small_rows(&[5, 9, 20]).tokens;
    for recorded in [true, false] {
        for temperature in [0.0, 0.8] {
            let b = bench(recorded);
            let config = GenerateConfig { temperature, ..GenerateConfig::greedy(9, vec![]) };
            let mut counts = Vec::new();
            let mut sink = |event: Event| {
                if let Event::Progress { .. } = event {
                    counts.push(b.emulator.counts());
                }
                Flow::Continue
            };
            generate::generate(&b.model, &b.pool, prompts.view(), &config, &mut sink).unwrap();
            let steps = apart(&counts);
            assert_eq!(steps.len(), 8);
            // The first as it comes, with its memory; in the second it is recorded.
            assert!(steps[0].allocated > 0 && steps[0].uploads == 1 && steps[0].played == 0, "{:?}", steps[0]);
            // Beside the layers: the embedding, the last norm, the draw, counting on; the head's
            // product.
            let (launches, products) = (2 * LAYER.0 + 4, 2 * LAYER.1 + 1);
            let live = DeviceCounts { downloads: 1, launches, products, ..DeviceCounts::default() };
            let steady = match recorded {
                true => DeviceCounts { downloads: 1, played: 1, ..DeviceCounts::default() },
                false => live,
            };
            assert_eq!(steps[1], DeviceCounts { recorded: u64::from(recorded), ..steady }, "{recorded} {temperature}");
            steps[2..].iter().for_each(|step| assert_eq!(*step, steady, "{recorded} {temperature}"));
        }
    }
}

/// Launches of a layer in a step of generation (3 norms, a sum with its norm, the rotation, the
/// cache, 2 of attention, SwiGLU, a sum) and products.
const LAYER: (u64, u64) = (10, 7);

#[test]
fn a_steady_step_of_training_keeps_its_memory_and_waits_for_what_is_logged_alone() {
    emulator_or_skip!();
    for method in [Method::Full, lora(0.1)] {
        for micros in [1, 2u32] {
            for recompute in [false, true] {
                let mut b = bench(true);
                let rows = small_rows(&[40, 40, 40, 40]);
                let steps = (0..4u32).map(|_| (0..micros).map(|m| vec![m, m + 2]).collect()).collect();
                let plan = TrainPlan { recompute, ..plan(method.clone(), steps, 1e-3, &b.dir.path().join("out")) };
                let (emulator, mut counts) = (b.emulator.clone(), Vec::new());
                let mut sink = |event: Event| {
                    if let Event::Step(_) = event {
                        counts.push(emulator.counts());
                    }
                    Flow::Continue
                };
                let none = Rows::default();
                let source = b.dir.path();
                let (train, eval) = (rows.view(), none.view());
                Job { model: &mut b.model, source, pool: &b.pool, train, eval, plan: &plan }.run(&mut sink).unwrap();
                let last = *apart(&counts).last().unwrap();
                if micros == 1 {
                    // Of two layers. More of them is a step that takes the host longer: see where
                    // they come from.
                    let most = match (&method, recompute) {
                        (Method::Full, false) => (76, 45),
                        (Method::Full, true) => (82, 57),
                        (Method::Lora(_), false) => (95, 108),
                        (Method::Lora(_), true) => (117, 146),
                    };
                    assert_eq!((last.launches, last.products), most, "{method:?} {recompute}");
                }
                assert_eq!((last.allocated, last.waits), (last.freed, 0), "{last:?}");
                // The gradients of one micro-batch and the logits take turns with the same memory.
                if method != Method::Full || micros > 1 {
                    assert_eq!(last.allocated, 0, "{last:?}");
                }
                // The gradients' norms, and for each micro-batch the log-probabilities of its
                // targets.
                assert_eq!(last.downloads, 1 + u64::from(micros), "{last:?}");
                // For each micro-batch: ids, starts, positions, places and targets; what orders the
                // rows of the head's gradient (3), and where the embedding is trained, of its own
                // (3).
                let of_embedding = if method == Method::Full { 3 } else { 0 };
                let of_batch = u64::from(micros) * (8 + of_embedding);
                // And where gradients have no places of their own, those they have this time.
                let of_table = u64::from(method == Method::Full && micros == 1);
                assert!((of_batch..=of_batch + of_table).contains(&last.uploads), "{last:?}");
            }
        }
    }
}

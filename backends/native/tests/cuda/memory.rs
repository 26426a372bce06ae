//! The gradients of one micro-batch in bf16: how near they are, and what training with them takes.

use std::sync::Arc;

use karat_native::config::ModelConfig;
use karat_native::cuda::Cuda;
use karat_native::cuda::device::{Element, Gpu};
use karat_native::cuda::emulator::Emulator;
use karat_native::cuda::ops::chunk;
use karat_native::device::Device;
use karat_native::linear::Gradients;
use karat_native::model::{Batch, Decoder, Targets};
use karat_native::tensor::{Gradient, Indices, view};
use karat_native::train::Job;
use rayon::ThreadPoolBuilder;

use super::*;

// What full training in bf16 with one micro-batch a step and recomputation needs on a device, as a
// formula.
//
// With `P` parameters, `t` tokens, widths `h` (hidden), `i` (inner), `q` and `k` (query and key
// heads times their width), `L` layers of `p` parameters, a tied vocabulary `V`, and `c` tokens of
// a chunk of logits, in bytes:
//
// lasting 12 P: weights 2 + 2 (split), moments 4 + 4 layer 2 t (4 h + 3 q + 3 k + 5 i) where the
// gradients of gate and up are made, a layer's most head 2 t h (L + 4) + 6 c V, and for the
// projection's gradient 4 V h over several chunks, else 2 V h last 2 (P - p + h i) + 2 t h + layer:
// the gradients but those of the first layer that come later peak lasting + max(head, last)
//
// Beside that: 32 MiB for cuBLAS, and what waits in the pool at that moment, at most another
// `layer`.

/// `layer` of the formula, in bytes, for `tokens` tokens.
fn of_a_layer(config: &ModelConfig, tokens: usize) -> u64 {
    let [t, h, i, dim] = [tokens, config.hidden_size, config.intermediate_size, config.heads.dim].map(|n| n as u64);
    let (q, k) = (config.heads.queries as u64 * dim, config.heads.keys as u64 * dim);
    2 * t * (4 * h + 3 * q + 3 * k + 5 * i)
}

/// `peak` of the formula, in bytes, for `tokens` tokens of one row and a model of `parameters`.
fn peak_of_full_training(config: &ModelConfig, parameters: u64, tokens: usize) -> u64 {
    let [t, h, i, layers, vocab, dim] =
        [tokens, config.hidden_size, config.intermediate_size, config.layers, config.vocab_size, config.heads.dim]
            .map(|n| n as u64);
    let (q, k) = (config.heads.queries as u64 * dim, config.heads.keys as u64 * dim);
    let chunk = t.min(chunk(config.vocab_size) as u64);
    let parameters_of_layer = h * (2 * q + 2 * k) + 3 * h * i;
    let sum = if chunk < t { 4 } else { 2 };
    let head = 2 * t * h * (layers + 4) + 6 * chunk * vocab + sum * vocab * h;
    let last = 2 * (parameters + h * i - parameters_of_layer) + 2 * t * h + of_a_layer(config, tokens);
    12 * parameters + head.max(last)
}

/// A Qwen3 of this shape: hidden, inner, layers, query heads, key heads, vocabulary.
fn shaped(dir: &Path, [hidden, inner, layers, queries, keys, vocab]: [usize; 6]) -> ModelConfig {
    let dim = if hidden == 1024 { 128 } else { 16 };
    let config = json!({
        "model_type": "qwen3", "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": queries, "num_key_value_heads": keys, "head_dim": dim, "vocab_size": vocab,
        "max_position_embeddings": 4096, "rope_theta": 1e6, "rms_norm_eps": 1e-6, "tie_word_embeddings": true,
        "initializer_range": 0.08,
    });
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    ModelConfig::read(dir).unwrap()
}

fn placed(config: &ModelConfig) -> (Arc<Emulator>, Decoder) {
    let emulator = Emulator::new().unwrap();
    let device = Cuda { gpu: emulator.clone(), activations: Element::Bf16, graphs: true };
    let device: Arc<dyn Device> = Arc::new(device);
    let mut model = Decoder::random(config.clone(), 3).unwrap();
    model.place(&device).unwrap();
    (emulator, model)
}

#[test]
fn a_gradient_kept_in_bf16_is_off_by_little_more_than_its_sum() {
    emulator_or_skip!();
    let dir = tempfile::tempdir().unwrap();
    // A vocabulary whose logits come in two chunks.
    let config = shaped(dir.path(), [48, 72, 2, 4, 2, 50]);
    let rows = small_rows(&[70, 33, 50]);
    let batch = || Batch::new(rows.tokens.view().iter());
    let at: Vec<u32> = (0..152).filter(|t| ![69, 102].contains(t)).collect();
    let targets: Vec<u32> = at.iter().map(|t| rows.tokens.view().ids()[*t as usize + 1]).collect();
    let (at, targets) = (|| Indices::from(at.clone()), || Indices::from(targets.clone()));
    let gradients = |model: &mut Decoder, once: bool, recompute: bool| {
        let trained = model.own().unwrap();
        let gradients = Gradients::new(&**model.device(), &trained, once).unwrap();
        let (at, targets) = (at(), targets());
        let targets = Targets { at: &at, ids: &targets };
        model.train(&batch(), targets, 1.0 / 150.0, None, recompute, &gradients).unwrap();
        let of = |(name, g): (&String, &Gradient)| (name.clone(), view(&g.sum().unwrap()).unwrap().to_vec());
        gradients.0.iter().map(of).collect::<Vec<_>>()
    };
    let exact = gradients(&mut Decoder::random(config.clone(), 3).unwrap(), false, false);
    let (_emulator, mut model) = placed(&config);
    let (sums, once) = (gradients(&mut model, false, false), gradients(&mut model, true, false));
    assert_eq!(once, gradients(&mut model, true, true));
    let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    let apart = |a: &[f32], b: &[f32]| norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied());
    let mut narrow = 0;
    for (((name, exact), (_, sum)), (_, once)) in exact.iter().zip(&sums).zip(&once) {
        let (of_sum, of_once, between) = (apart(sum, exact), apart(once, exact), apart(once, sum));
        eprintln!("{name}: the sum is {of_sum:.1e} from f32, in bf16 {of_once:.1e}; between {between:.1e}");
        assert!(of_once < 1.1 * of_sum + 1e-4, "{name}: {of_once} {of_sum}");
        // Half a unit in the last place, and for the embedding, whose rows are added to the head's
        // part, once more.
        let roundings = if name.contains("embed") { 2.0 } else { 1.0 };
        assert!(between < roundings / 512.0, "{name}: {between}");
        narrow += usize::from(between > 0.0);
    }
    assert_eq!(narrow, 15, "all matrices and no vector are kept in bf16");
}

#[test]
fn full_training_takes_the_memory_that_is_counted() {
    emulator_or_skip!();
    for (shape, length) in [([64, 192, 6, 8, 4, 2000], 96), ([96, 256, 3, 12, 6, 500], 160)] {
        let dir = tempfile::tempdir().unwrap();
        let config = shaped(dir.path(), shape);
        let (emulator, mut model) = placed(&config);
        let parameters = model.tensors().values().map(|t| t.elem_count() as u64).sum();
        let mut rows = Rows::default();
        let ids: Vec<u32> = (0..length as u32).map(|i| i * 37 % 500).collect();
        rows.push(&ids, &ids.iter().map(|id| *id as i32).collect::<Vec<_>>());
        let steps = vec![vec![vec![0]]; 3];
        let plan = TrainPlan { recompute: true, ..plan(Method::Full, steps, 1e-3, &dir.path().join("out")) };
        let pool = ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        let none = Rows::default();
        let (train, eval) = (rows.view(), none.view());
        let job = Job { model: &mut model, source: dir.path(), pool: &pool, train, eval, plan: &plan };
        job.run(&mut ignore).unwrap();
        let (measured, counted) = (emulator.peak_memory(false), peak_of_full_training(&config, parameters, length));
        let waiting = of_a_layer(&config, length);
        eprintln!("{shape:?}: {measured} bytes measured, {counted} counted, {waiting} may wait");
        assert!(
            (counted * 98 / 100..counted + waiting).contains(&measured),
            "{shape:?}: {measured}, {counted} counted"
        );
    }
    // What cuda/README.md says of Qwen3-0.6B.
    let dir = tempfile::tempdir().unwrap();
    let config = shaped(dir.path(), [1024, 3072, 28, 16, 8, 151_936]);
    let (counted, waiting) = (peak_of_full_training(&config, 596_049_920, 2048), of_a_layer(&config, 2048));
    assert_eq!((counted / 10_000_000, waiting / 1_000_000), (844, 117));
}

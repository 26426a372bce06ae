//! Checks and measurements on a GPU, one section a process; `scripts/gpu-checks` runs them all and
//! sets them beside PyTorch.
//!
//! `karat-tools gpu SECTION [device=cuda:0] [key=value ...]` prints one JSON object a line.
//!
//! | section | what it does |
//! |---|---|
//! | `facts` | what was found of CUDA |
//! | `products` | matrix products of many shapes against f64 |
//! | `parity` | 20 training steps, scores and texts of a small model against the CPU's |
//! | `train` | tokens a second: `method=full|lora recompute=0|1 tokens=2048 steps=10 shape=0.6b|tiny` |
//! | `decode` | new tokens a second, steps recorded as a graph and not: `batch=8 prompt=128 new=128 shape=0.6b|tiny` |

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use karat_backend::*;
use karat_model::train::excluded_from_decay;
use karat_native::config::ModelConfig;
use karat_native::cuda::device::{DeviceBuffer, Element, Gemm, Matrix};
use karat_native::cuda::{Cuda, discovery};
use karat_native::device::{Device, Parameter, Precision};
use karat_native::linear::Gradients;
use karat_native::model::{Batch, Decoder, Targets};
use karat_native::ops::adamw::Update;
use karat_native::select::Asked;
use karat_native::tensor::{Indices, view, zeros_like};
use karat_native::{NativeBackend, adapter};
use serde_json::{Value, json};

use crate::Done;
use crate::args::Args;
use crate::plan::plan;

fn device(args: &Args) -> Result<Cuda, Box<dyn Error>> {
    let found = match Asked::of(&args.text("device", "cuda:0"))? {
        Asked::Cuda(number) => discovery::open(number, Precision::Bf16, true)?,
        #[cfg(feature = "emulator")]
        Asked::Emulated => discovery::emulated(Precision::Bf16, true)?,
        _ => return Err("device must name a GPU".into()),
    };
    Ok(found.device)
}

/// Runs one section.
pub fn run(section: &str, args: &Args) -> Done {
    match section {
        "facts" => say(json!({"section": "facts", "facts": discovery::provisions()})),
        "products" => products(args)?,
        "parity" => parity(args)?,
        "train" => train(args)?,
        "decode" => decode(args)?,
        other => return Err(format!("section {other:?}: facts, products, parity, train or decode").into()),
    }
    Ok(())
}

fn say(value: Value) {
    println!("{value}");
}

/// Numbers between -1 and 1 that look random.
fn noise(n: usize, seed: u32) -> Vec<f32> {
    karat_kernels::testing::noise(n, u64::from(seed))
}

fn ids(n: usize, vocab: usize, seed: u32) -> Vec<u32> {
    noise(n, seed).iter().map(|x| ((x + 1.0) * 0.5 * vocab as f32) as u32 % vocab as u32).collect()
}

/// Products against f64: every pair of transpositions, element types, offsets, sums added to,
/// batches.
fn products(args: &Args) -> Done {
    let device = device(args)?;
    let gpu = &device.gpu;
    let (mut worst, mut cases) = (0f64, 0);
    for (i, [m, n, k]) in [[1, 8, 8], [64, 64, 64], [33, 72, 40], [200, 136, 264]].into_iter().enumerate() {
        for case in 0..32u32 {
            let (a_t, b_t) = (case & 1 > 0, case & 2 > 0);
            let (of_ab, of_c) = match case >> 2 & 3 {
                0 => (Element::F32, Element::F32),
                1 => (Element::Bf16, Element::F32),
                _ => (Element::Bf16, Element::Bf16),
            };
            let (batch, beta) = if case & 16 > 0 { (3, 1.0) } else { (1, 0.0) };
            let seed = case * 7 + i as u32 * 101;
            let round = |x: Vec<f32>, e: Element| match e {
                Element::F32 => x,
                Element::Bf16 => x.iter().map(|x| half::bf16::from_f32(*x).to_f32()).collect::<Vec<_>>(),
            };
            // Eight elements stand before each matrix, as in a chunk of a larger one.
            let fill = |len: usize, seed: u32, e: Element| -> Result<(Vec<f32>, DeviceBuffer), Box<dyn Error>> {
                let host = round(noise(8 + batch * len, seed), e);
                let buffer = DeviceBuffer::new(gpu, host.len() * e.size())?;
                let narrow: Vec<half::bf16> = host.iter().map(|x| half::bf16::from_f32(*x)).collect();
                match e {
                    Element::F32 => gpu.upload(bytemuck::cast_slice(&host), buffer.raw(), 0)?,
                    Element::Bf16 => gpu.upload(bytemuck::cast_slice(&narrow), buffer.raw(), 0)?,
                }
                Ok((host, buffer))
            };
            let (a, a_buffer) = fill(m * k, seed, of_ab)?;
            let (b, b_buffer) = fill(k * n, seed + 1, of_ab)?;
            let (c, c_buffer) = fill(m * n, seed + 2, of_c)?;
            let matrix = |buffer, element, stride, transposed, len| {
                let (first, batch_stride) = (8, if batch > 1 { len } else { 0 });
                Matrix { buffer, first, element, stride, batch_stride, transposed }
            };
            gpu.gemm(&Gemm {
                m,
                n,
                k,
                alpha: 0.5,
                a: matrix(&a_buffer, of_ab, if a_t { m } else { k }, a_t, m * k),
                b: matrix(&b_buffer, of_ab, if b_t { k } else { n }, b_t, k * n),
                beta,
                c: matrix(&c_buffer, of_c, n, false, m * n),
                batch,
            })?;
            let mut bytes = vec![0u8; c.len() * of_c.size()];
            gpu.download(c_buffer.raw(), 0, &mut bytes)?;
            let got: Vec<f32> = match of_c {
                Element::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
                Element::Bf16 => {
                    bytes.chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
                }
            };
            let (mut apart, mut size) = (0f64, 0f64);
            for s in 0..batch {
                for i in 0..m {
                    for j in 0..n {
                        let product: f64 = (0..k)
                            .map(|l| {
                                let x = a[8 + s * m * k + if a_t { l * m + i } else { i * k + l }];
                                let y = b[8 + s * k * n + if b_t { j * k + l } else { l * n + j }];
                                f64::from(x) * f64::from(y)
                            })
                            .sum();
                        let at = 8 + s * m * n + i * n + j;
                        let want = 0.5 * product + f64::from(beta) * f64::from(c[at]);
                        apart += (f64::from(got[at]) - want).powi(2);
                        size += want * want;
                    }
                }
            }
            let error = (apart / size).sqrt();
            let most = if of_c == Element::Bf16 { 4e-3 } else { 2e-6 };
            if error.is_nan() || error > most || got[..8] != c[..8] {
                say(json!({"section": "products", "failed": [m, n, k, case], "error": error}));
            }
            worst = worst.max(error / most);
            cases += 1;
        }
    }
    say(json!({"section": "products", "cases": cases, "ok": worst <= 1.0, "worst_of_bound": worst}));
    Ok(())
}

/// A folder with the configuration of a model whose weights are drawn.
fn folder(shape: &str) -> Result<PathBuf, Box<dyn Error>> {
    let [hidden, inner, layers, queries, keys, dim, vocab] = match shape {
        "0.6b" => [1024, 3072, 28, 16, 8, 128, 151_936],
        "small" => [256, 512, 4, 4, 2, 64, 4096],
        "wide" => [256, 512, 2, 4, 2, 128, 2048],
        "tiny" => [48, 72, 2, 4, 2, 16, 160],
        other => return Err(format!("shape {other:?}: 0.6b, small, wide or tiny").into()),
    };
    let dir = std::env::temp_dir().join(format!("karat-gpu-{}-{shape}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let config = json!({
        "model_type": "qwen3", "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": queries, "num_key_value_heads": keys, "head_dim": dim, "vocab_size": vocab,
        "max_position_embeddings": 40_960, "rope_theta": 1e6, "rms_norm_eps": 1e-6, "tie_word_embeddings": true,
        "initializer_range": if shape == "0.6b" { 0.02 } else { 0.08 },
    });
    std::fs::write(dir.join("config.json"), config.to_string())?;
    Ok(dir)
}

fn lora() -> LoraConfig {
    let modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
    LoraConfig {
        r: 8,
        lora_alpha: 32.0,
        lora_dropout: 0.0,
        target_modules: karat_backend::lora::Modules::Names(modules.map(String::from).to_vec()),
        ..LoraConfig::default()
    }
}

/// Losses and gradient norms of 20 steps, scores, and greedy texts.
type Outcome = (Vec<f64>, Vec<f64>, Scores, Vec<Vec<u32>>);

fn outcome(dir: &Path, device: &str, dtype: Dtype, method: &Method) -> Result<Outcome, Box<dyn Error>> {
    let config = OpenConfig { weights: Weights::Random, device: device.into(), dtype, seed: 3, ..OpenConfig::new(dir) };
    let vocab = ModelConfig::read(dir)?.vocab_size;
    let rows: Tokens = [300, 65, 1, 127, 190, 64, 250].iter().zip(1..).map(|(n, s)| ids(*n, vocab, s)).collect();
    let labels: Vec<i32> = rows.view().ids().iter().map(|id| *id as i32).collect();
    let mut session = NativeBackend.open(&config)?;
    let evaluator = session.evaluator().ok_or("no evaluator")?;
    let scores = evaluator.score(rows.view(), &mut |_: Event| Flow::Continue)?;
    let prompts: Tokens = [5, 70, 1].iter().zip(20..).map(|(n, s)| ids(*n, vocab, s)).collect();
    let greedy = GenerateConfig::greedy(24, vec![]);
    let texts = evaluator.generate(prompts.view(), &greedy, &mut |_: Event| Flow::Continue)?;
    // Gradients of one micro-batch a step are kept in another way than sums of several.
    let micro_batches = |s: u32| match method {
        Method::Full => vec![vec![s % 7, (s + 3) % 7, (s + 1) % 7]],
        _ => vec![vec![s % 7, (s + 3) % 7], vec![(s + 1) % 7]],
    };
    let out = dir.join(format!("out-{device}-{dtype}").replace(':', "-"));
    let plan = TrainPlan {
        learning_rates: vec![1e-3; 20],
        recompute: true,
        seed: 7,
        ..plan(method.clone(), (0..20).map(micro_batches).collect(), out)
    };
    let (mut losses, mut norms) = (Vec::new(), Vec::new());
    let none = Tokens::default();
    let mut sink = |event: Event| {
        if let Event::Step(step) = event {
            losses.push(step.loss);
            norms.push(step.grad_norm);
        }
        Flow::Continue
    };
    let data = LabelledView::new(rows.view(), &labels)?;
    session.trainer().ok_or("no trainer")?.train(data, LabelledView::new(none.view(), &[])?, &plan, &mut sink)?;
    Ok((losses, norms, scores, texts.into_iter().map(|t| t.ids).collect()))
}

fn parity(args: &Args) -> Done {
    let device = args.text("device", "cuda:0");
    for shape in args.text("shapes", "small,wide").split(',') {
        let dir = folder(shape)?;
        for (name, method) in [("full", Method::Full), ("lora", Method::Lora(lora()))] {
            let cpu = outcome(&dir, "cpu", Dtype::F32, &method)?;
            for dtype in [Dtype::F32, Dtype::Bf16] {
                let cuda = outcome(&dir, &device, dtype, &method)?;
                let apart = |a: &[f64], b: &[f64]| a.iter().zip(b).fold(0f64, |m, (a, b)| m.max((a / b - 1.0).abs()));
                let (loss, norm) = (apart(&cuda.0, &cpu.0), apart(&cuda.1, &cpu.1));
                let pairs = cuda.2.logprobs.iter().zip(&cpu.2.logprobs);
                let score = pairs.fold(0f32, |m, (a, b)| m.max((a - b).abs()));
                // f32 differs by the order of sums; bf16 by rounded activations, whose bound is
                // what small models show.
                let (of_loss, of_norm, of_score) =
                    if dtype == Dtype::F32 { (1e-4, 1e-3, 1e-3) } else { (2e-2, 0.2, 0.3) };
                let texts = cuda.3 == cpu.3;
                let ok = loss < of_loss && norm < of_norm && score < of_score && (texts || dtype != Dtype::F32);
                say(json!({
                    "section": "parity", "shape": shape, "method": name, "dtype": dtype, "loss": loss, "norm": norm,
                    "logprob": score, "texts_equal": texts, "first_loss": cuda.0[0], "last_loss": cuda.0[19], "ok": ok,
                }));
            }
        }
        std::fs::remove_dir_all(&dir)?;
    }
    Ok(())
}

/// Floating-point operations of a training step for each token: two a parameter of a product
/// forward, as many for the gradient of its input, as many for its own where it is trained;
/// attention's causal half. Recomputing is not counted.
fn operations(c: &ModelConfig, full: bool, tokens: usize) -> f64 {
    let (q, k) = (c.heads.queries * c.heads.dim, c.heads.keys * c.heads.dim);
    let layer = c.hidden_size * (2 * q + 2 * k) + 3 * c.hidden_size * c.intermediate_size;
    let parameters = (c.layers * layer + c.vocab_size * c.hidden_size) as f64;
    let attention = (6 * c.layers * q * tokens) as f64;
    parameters * if full { 6.0 } else { 4.0 } + attention
}

fn train(args: &Args) -> Done {
    let (tokens, steps, shape) = (args.number("tokens", 2048)?, args.number("steps", 10)?, args.text("shape", "0.6b"));
    let (full, recompute) = (args.text("method", "full") == "full", args.number("recompute", 1)? == 1);
    let gpu = device(args)?;
    let device: Arc<dyn Device> = Arc::new(gpu.clone());
    let dir = folder(&shape)?;
    let config = ModelConfig::read(&dir)?;
    let mut model = Decoder::random(config.clone(), 3)?;
    model.place(&device)?;
    let trained = if full {
        model.own()?
    } else {
        adapter::draw(&mut model, &lora(), 5)?;
        model.place(&device)?;
        model.adapter_tensors()
    };
    let gradients = Gradients::new(&*device, &trained, full)?;
    let parameters = trained.iter().map(|(name, t)| {
        let (tensor, moments) = (t.clone(), [zeros_like(t)?, zeros_like(t)?]);
        Ok::<_, Box<dyn Error>>(Parameter { tensor, moments, decays: !excluded_from_decay(name) })
    });
    let optimizer = device.optimizer(parameters.collect::<Result<_, _>>()?)?;
    // Two rows packed, as training data comes.
    let long = tokens * 3 / 4;
    let (mut seconds, mut loss, mut norm) = (Vec::new(), 0.0, 0.0);
    for step in 0..steps {
        if step == 2 {
            gpu.gpu.peak_memory(true);
        }
        let started = Instant::now();
        let all = ids(tokens, config.vocab_size, 100 + step as u32);
        let batch = Batch::new([&all[..long], &all[long..]]);
        let at: Vec<u32> = (0..tokens as u32 - 1).filter(|t| *t != long as u32 - 1).collect();
        let targets: Vec<u32> = at.iter().map(|t| all[*t as usize + 1]).collect();
        let (scale, count) = (1.0 / at.len() as f32, at.len());
        let (at, targets) = (Indices::from(at), Indices::from(targets));
        gradients.clear(&*device)?;
        let logprobs = model.train(&batch, Targets { at: &at, ids: &targets }, scale, None, recompute, &gradients)?;
        let update = Update {
            lr: 1e-4,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.01,
            step: step as u32 + 1,
            gradient_scale: 1.0,
        };
        let all: Vec<&_> = gradients.0.values().collect();
        norm = optimizer.step(&all, 1.0, &update)?.iter().sum::<f64>().sqrt();
        loss = view(&logprobs)?.iter().map(|l| -f64::from(*l)).sum::<f64>() / count as f64;
        if step >= 2 {
            seconds.push(started.elapsed().as_secs_f64());
        }
    }
    std::fs::remove_dir_all(&dir)?;
    seconds.sort_by(f64::total_cmp);
    let median = seconds[seconds.len() / 2];
    let rate = tokens as f64 / median;
    let flops = rate * operations(&config, full, long);
    say(json!({
        "section": "train", "who": "karat", "shape": shape, "method": if full { "full" } else { "lora" }, "recompute": recompute,
        "tokens": tokens, "tokens_per_second": rate, "step_ms": [seconds[0] * 1e3, median * 1e3, seconds[seconds.len() - 1] * 1e3],
        "tflops": flops / 1e12, "mfu_of_989": flops / 989e12, "peak_gib": gpu.gpu.peak_memory(false) as f64 / f64::from(1 << 30),
        "loss": loss, "norm": norm,
    }));
    Ok(())
}

fn decode(args: &Args) -> Done {
    let (batch, prompt, new) = (args.number("batch", 8)?, args.number("prompt", 128)?, args.number("new", 128)?);
    let shape = args.text("shape", "0.6b");
    let dir = folder(&shape)?;
    let device = args.text("device", "cuda:0");
    let vocab = ModelConfig::read(&dir)?.vocab_size;
    let prompts: Tokens = (0..batch as u32).map(|s| ids(prompt, vocab, s)).collect();
    let mut texts = Vec::new();
    for graph in [true, false] {
        let options = [("cuda_graph".to_owned(), graph.into())].into();
        let open = OpenConfig {
            weights: Weights::Random,
            device: device.clone(),
            dtype: Dtype::Bf16,
            options,
            ..OpenConfig::new(&dir)
        };
        let mut session = NativeBackend.open(&open)?;
        let evaluator = session.evaluator().ok_or("no evaluator")?;
        let mut complaint = None;
        let mut run = |new: usize, temperature: f64| -> Result<(f64, Vec<Completion>), Box<dyn Error>> {
            let config =
                GenerateConfig { temperature, top_p: 0.95, batch_size: batch, ..GenerateConfig::greedy(new, vec![]) };
            let mut sink = |event: Event| {
                if let Event::Log { message, .. } = event {
                    complaint = Some(message);
                }
                Flow::Continue
            };
            let started = Instant::now();
            let texts = evaluator.generate(prompts.view(), &config, &mut sink)?;
            Ok((started.elapsed().as_secs_f64(), texts))
        };
        run(4, 0.0)?;
        // What one token more takes: the prompt's share falls out of the difference.
        let (short, _) = run(2, 0.0)?;
        let (greedy, greedy_texts) = run(new + 2, 0.0)?;
        let (sampled, sampled_texts) = run(new + 2, 0.8)?;
        let rate = |seconds: f64| (batch * new) as f64 / (seconds - short);
        say(json!({
            "section": "decode", "who": "karat", "shape": shape, "batch": batch, "prompt": prompt, "new": new, "graph": graph,
            "tokens_per_second": rate(greedy), "sampled_tokens_per_second": rate(sampled),
            "ms_a_step": (greedy - short) / new as f64 * 1e3, "complaint": complaint,
        }));
        texts.push((greedy_texts, sampled_texts));
    }
    std::fs::remove_dir_all(&dir)?;
    say(json!({"section": "graph", "shape": shape, "batch": batch, "ok": texts[0] == texts[1]}));
    Ok(())
}

//! The gradient of every trained tensor of whole models against central differences of the loss.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod small_runs;

use std::collections::BTreeMap;

use karat_backend::LoraConfig;
use karat_native::adapter;
use karat_native::config::ModelConfig;
use karat_native::linear::{Dropout, Gradients};
use karat_native::model::{Batch, Decoder, Targets};
use karat_native::tensor::{Indices, Tensor, edit, view};
use small_runs::*;

fn check(what: &str, model: &Decoder, trained: &BTreeMap<String, Tensor>) {
    let data = small_rows(&[12, 7, 20]).tokens;
    let batch = Batch::new(data.view().iter());
    let at: Vec<u32> = batch.starts.windows(2).flat_map(|w| (w[0] as u32 + 2)..(w[1] as u32 - 1)).collect();
    let targets: Vec<u32> = at.iter().map(|&t| batch.ids[t as usize + 1]).collect();
    let (at, targets) = (Indices::from(at), Indices::from(targets));
    let scale = 1.0 / at.len() as f32;
    let dropout = Some(Dropout { seed: 5, step: 2, first_token: 3 });
    let gradients = Gradients::new(&**model.device(), trained, false).unwrap();
    let none = Gradients::default();
    let loss = |gradients: &Gradients| -> f64 {
        let logprobs =
            model.train(&batch, Targets { at: &at, ids: &targets }, scale, dropout, false, gradients).unwrap();
        view(&logprobs).unwrap().iter().map(|l| -f64::from(*l)).sum::<f64>() * f64::from(scale)
    };
    loss(&gradients);
    for (name, tensor) in trained {
        let gradient = view(&gradients.of(name).unwrap().sum().unwrap()).unwrap().to_vec();
        // Along the gradient the loss changes most, so rounding matters least.
        let norm = gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
        assert!(norm > 0.0, "{what}: {name}");
        let before = view(tensor).unwrap().to_vec();
        let size = before.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        let h = 2e-3 * size.max(0.5);
        let at = |side: f64| {
            edit(tensor, |x| {
                for ((x, b), g) in x.iter_mut().zip(&before).zip(&gradient) {
                    *x = (f64::from(*b) + side * h * f64::from(*g) / norm) as f32;
                }
            })
            .unwrap();
            loss(&none)
        };
        let difference = (at(1.0) - at(-1.0)) / (2.0 * h);
        edit(tensor, |x| x.copy_from_slice(&before)).unwrap();
        assert!((difference / norm - 1.0).abs() < 0.01, "{what}: {name}: gradient {norm}, by differences {difference}");
    }
}

fn model(family: &str) -> Decoder {
    let dir = tempfile::tempdir().unwrap();
    small_model(dir.path(), family);
    let mut model = Decoder::random(ModelConfig::read(dir.path()).unwrap(), 3).unwrap();
    // Norms of one and biases of zero would hide a factor left out.
    for (name, t) in model.own().unwrap().iter().filter(|(_, t)| t.dims().len() == 1) {
        let base = if name.ends_with("bias") { 0.0 } else { 1.0 };
        edit(t, |x| x.iter_mut().enumerate().for_each(|(i, x)| *x = base + ((i * 7) % 5) as f32 * 0.1 - 0.2)).unwrap();
    }
    model
}

#[test]
fn every_parameter_of_every_family_has_the_gradient_of_the_loss() {
    for family in ["qwen3", "qwen2", "llama"] {
        let mut model = model(family);
        let tensors = model.own().unwrap();
        check(family, &model, &tensors);
    }
}

#[test]
fn every_adapter_tensor_has_the_gradient_of_the_loss_under_its_dropout_mask() {
    let plain = LoraConfig { r: 4, lora_alpha: 8.0, lora_dropout: 0.3, ..LoraConfig::default() };
    // The differences hold DoRA's norms still, as its gradient does.
    let dora = LoraConfig { use_dora: true, use_rslora: true, ..plain.clone() };
    for family in ["qwen3", "qwen2", "llama"] {
        for config in [
            plain.clone(),
            dora.clone(),
            LoraConfig { lora_dropout: 0.0, ..dora.clone() },
            LoraConfig {
                target_modules: ["q_proj", "down_proj"].into(),
                rank_pattern: [("down_proj".to_owned(), 2)].into(),
                // Llama's head is its own here; elsewhere it is the embedding and cannot be trained
                // apart.
                modules_to_save: [
                    &["norm", "v_proj"][..],
                    if family == "llama" { &["lm_head", "embed_tokens"] } else { &[] },
                ]
                .concat()
                .into_iter()
                .map(String::from)
                .collect(),
                ..dora.clone()
            },
        ] {
            let mut model = model(family);
            adapter::draw(&mut model, &config, 1).unwrap();
            let tensors = model.adapter_tensors();
            for (name, t) in &tensors {
                if name.contains("lora_B") {
                    edit(t, |x| x.iter_mut().enumerate().for_each(|(i, x)| *x = ((i * 11) % 7) as f32 * 0.05 - 0.15))
                        .unwrap();
                }
                if name.contains("magnitude") {
                    edit(t, |x| x.iter_mut().enumerate().for_each(|(i, x)| *x *= 0.8 + ((i * 5) % 4) as f32 * 0.15))
                        .unwrap();
                }
            }
            model.renorm().unwrap();
            check(&format!("{family} {config:?}"), &model, &tensors);
        }
    }
}

//! Writes the gradients that one batch gives as a safetensors file and prints its loss: what `bench/exactness.py` sets
//! beside PyTorch, to say how exact training in bf16 is.
//!
//! `cargo run --release -p karat-native --example gradients -- model=DIR ids=FILE dtype=f32|bf16 method=full|lora out=FILE`
//!
//! `ids` are numbers with spaces between them, one row, all of them trained on. With `method=lora` an adapter of rank 8 is
//! on all projections, neither of its matrices zero.

use std::collections::BTreeMap;
use std::path::Path;

use karat_backend::LoraConfig;
use karat_kernels::philox::{Philox, name_key};
use karat_native::config::ModelConfig;
use karat_native::cpu::Cpu;
use karat_native::device::Precision;
use karat_native::linear::Gradients;
use karat_native::model::{Batch, Decoder, Targets};
use karat_native::tensor::{Indices, Tensor, edit, view};
use karat_native::{adapter, files};

fn main() {
    let args: BTreeMap<String, String> =
        std::env::args().skip(1).filter_map(|a| a.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned()))).collect();
    let arg = |key: &str| args.get(key).map_or("", |v| v.as_str());
    let folder = Path::new(arg("model"));
    let text = std::fs::read_to_string(arg("ids")).expect("a file of ids");
    let ids: Vec<u32> = text.split_whitespace().map(|id| id.parse().expect("a number")).collect();
    let mut model = Decoder::load(ModelConfig::read(folder).expect("a config"), folder).expect("a model");
    let device = Cpu::device(if arg("dtype") == "bf16" { Precision::Bf16 } else { Precision::F32 });
    model.place(&device).expect("room");
    let trained = match arg("method") {
        "lora" => {
            let config = LoraConfig { r: 8, lora_alpha: 32.0, lora_dropout: 0.0, ..LoraConfig::default() };
            adapter::draw(&mut model, &config, 1).expect("an adapter");
            let tensors = model.adapter_tensors();
            for (name, b) in tensors.iter().filter(|(name, _)| name.contains("lora_B")) {
                let noise = Philox::new(name_key(name));
                edit(b, |b| {
                    b.iter_mut().enumerate().for_each(|(i, b)| *b = noise.normal(i as u64, 0, 0) as f32 / 64.0)
                })
                .expect("an adapter");
            }
            model.place(&device).expect("room");
            tensors
        }
        _ => model.own().expect("the weights"),
    };
    let gradients = Gradients::new(&*device, &trained, false).expect("gradients");
    let batch = Batch::new([&ids[..]]);
    let count = ids.len() - 1;
    let (at, targets) = (Indices::from((0..count as u32).collect::<Vec<_>>()), Indices::from(ids[1..].to_vec()));
    let scale = 1.0 / count as f32;
    let logprobs =
        model.train(&batch, Targets { at: &at, ids: &targets }, scale, None, false, &gradients).expect("a pass");
    let loss = view(&logprobs).expect("numbers").iter().map(|l| -f64::from(*l)).sum::<f64>() / count as f64;
    let sums: BTreeMap<String, Tensor> =
        gradients.0.iter().filter_map(|(name, gradient)| Some((name.clone(), gradient.sum()?))).collect();
    files::write_tensors(Path::new(arg("out")), &sums).expect("a file");
    println!("{loss}");
}

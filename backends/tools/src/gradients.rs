//! Writes the gradients that one batch gives as a safetensors file and prints its loss, which
//! `python/exactness.py` sets beside PyTorch, to say how exact training in bf16 is.
//!
//! `karat-tools gradients model=DIR ids=FILE dtype=f32|bf16 method=full|lora out=FILE`
//!
//! `ids` are numbers with spaces between them, one row, all of them trained on. With `method=lora`
//! an adapter of rank 8 is on all projections, neither of its matrices zero.

use std::collections::BTreeMap;
use std::path::Path;

use karat_backend::LoraConfig;
use karat_native::config::ModelConfig;
use karat_native::cpu::Cpu;
use karat_native::device::Precision;
use karat_native::linear::Gradients;
use karat_native::model::{Batch, Decoder, Targets};
use karat_native::tensor::{Indices, Tensor, edit, view};
use karat_native::{adapter, files};

use crate::Done;
use crate::args::Args;

/// Writes and prints.
pub fn run(args: &Args) -> Done {
    let folder = Path::new(args.needed("model")?);
    let text = std::fs::read_to_string(args.needed("ids")?)?;
    let ids: Vec<u32> = text.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    let mut model = Decoder::load(ModelConfig::read(folder)?, folder)?;
    let device = Cpu::device(if args.get("dtype") == Some("bf16") { Precision::Bf16 } else { Precision::F32 });
    model.place(&device)?;
    let trained = match args.get("method") {
        Some("lora") => {
            let config = LoraConfig { r: 8, lora_alpha: 32.0, lora_dropout: 0.0, ..LoraConfig::default() };
            adapter::draw(&mut model, &config, 1)?;
            let tensors = model.adapter_tensors();
            for (name, b) in tensors.iter().filter(|(name, _)| name.contains("lora_B")) {
                let noise = karat_kernels::philox::Philox::new(karat_kernels::philox::name_key(name));
                edit(b, |b| {
                    b.iter_mut().enumerate().for_each(|(i, b)| *b = noise.normal(i as u64, 0, 0) as f32 / 64.0)
                })?;
            }
            model.place(&device)?;
            tensors
        }
        _ => model.own()?,
    };
    let gradients = Gradients::new(&*device, &trained, false)?;
    let batch = Batch::new([&ids[..]]);
    let count = ids.len() - 1;
    let (at, targets) = (Indices::from((0..count as u32).collect::<Vec<_>>()), Indices::from(ids[1..].to_vec()));
    let scale = 1.0 / count as f32;
    let logprobs = model.train(&batch, Targets { at: &at, ids: &targets }, scale, None, false, &gradients)?;
    let loss = view(&logprobs)?.iter().map(|l| -f64::from(*l)).sum::<f64>() / count as f64;
    let sums: BTreeMap<String, Tensor> =
        gradients.0.iter().filter_map(|(name, gradient)| Some((name.clone(), gradient.sum()?))).collect();
    files::write_tensors(Path::new(args.needed("out")?), &sums)?;
    println!("{loss}");
    Ok(())
}

//! Measures GEMMs of layers by shape and mode and prints one JSON object, which
//! `python/gemm_speed.py` sets beside PyTorch: `karat-tools kernels [threads=2] [seconds=0.6]`.

use karat_kernels::gemm::Precision;
use karat_kernels::gemm::isa::Isa;
use karat_kernels::speed::{GemmCase, GemmMode, SHAPES, limit};

use crate::Done;
use crate::args::Args;

/// Layers that take turns: more than the caches near a core hold.
const LAYERS: usize = 24;

/// Measures and prints.
pub fn run(args: &Args) -> Done {
    let (threads, seconds): (usize, f64) = (args.number("threads", 2)?, args.number("seconds", 0.6)?);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
    let (most, rows) = pool.install(|| {
        let shapes = SHAPES.iter().map(|shape| {
            let rates = GemmCase::new(Precision::Bf16, *shape, LAYERS).rates(seconds);
            let name = format!("{} x {} x {}", shape.rows, shape.inputs, shape.outputs);
            let of = |(mode, rate): (&GemmMode, f64)| (mode.name().to_owned(), serde_json::json!(rate));
            let rates: serde_json::Map<_, _> = GemmMode::ALL.iter().zip(rates).map(of).collect();
            (name, serde_json::Value::Object(rates))
        });
        (limit(Precision::Bf16), shapes.collect::<serde_json::Map<_, _>>())
    });
    let isa = Isa::of_this_cpu().name();
    println!("{}", serde_json::json!({ "instructions": isa, "threads": threads, "registers": most, "gflops": rows }));
    Ok(())
}

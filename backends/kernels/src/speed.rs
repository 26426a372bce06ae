//! GEMM throughput of this machine beside the peak of its registers: for benchmarks and
//! `karat doctor`.
//!
//! A rate is in GFLOP/s, two for every multiplication with its addition. Operands take turns, as
//! many as a core's cache does not hold: a layer of a model finds its weight in main memory and its
//! output where the last layer left off.

mod limit;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use half::bf16;

use crate::gemm::isa::Isa;
use crate::gemm::{Gemm, Mat, MatMut, Precision, Term, Threads, gemms, narrow};
use crate::memory::arena::{self, Buffer};
use crate::memory::mmap::Elements;
use crate::testing::noise;
pub use limit::limit;

/// How the output of a GEMM `x W^T` is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GemmMode {
    /// It is stored.
    Plain,
    /// It is added to what is there.
    Add,
    /// That of an adapter of rank 8 is summed with it.
    Tail,
    /// It is rounded to bf16, for the products that read it.
    Rounded,
}

impl GemmMode {
    /// All of them.
    pub const ALL: [GemmMode; 4] = [GemmMode::Plain, GemmMode::Add, GemmMode::Tail, GemmMode::Rounded];

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            GemmMode::Plain => "plain",
            GemmMode::Add => "add",
            GemmMode::Tail => "tail",
            GemmMode::Rounded => "bf16 out",
        }
    }
}

/// Rows of `x`, and inputs and outputs of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GemmShape {
    /// Rows of the product.
    pub rows: usize,
    /// The inner dimension.
    pub inputs: usize,
    /// Columns of the product.
    pub outputs: usize,
}

/// Layers of SmolLM2-135M and of Qwen3-0.6B over 512 tokens.
pub const SHAPES: [GemmShape; 4] = [
    GemmShape { rows: 512, inputs: 576, outputs: 576 },
    GemmShape { rows: 512, inputs: 576, outputs: 1536 },
    GemmShape { rows: 512, inputs: 1536, outputs: 576 },
    GemmShape { rows: 512, inputs: 1024, outputs: 3072 },
];

/// The rank of an adapter.
const RANK: usize = 8;

/// Numbers as a precision reads them without rounding, in the arena: where a model has its own, in
/// pages as large as theirs.
enum Numbers {
    F32(Buffer),
    /// Two to an element.
    Bf16(Buffer),
}

/// `n` numbers of the arena, all of them written to.
fn room(n: usize) -> Buffer {
    let mut room = arena::alloc(n);
    room.fill(0.0);
    room
}

impl Numbers {
    fn new(precision: Precision, n: usize, seed: u64) -> Self {
        let wide = noise(n, seed);
        match precision {
            Precision::F32 => {
                let mut numbers = room(n);
                numbers.copy_from_slice(&wide);
                Numbers::F32(numbers)
            }
            Precision::Bf16 => {
                let mut numbers = room(n.div_ceil(2));
                narrow(&wide, &mut bytemuck::cast_slice_mut(&mut numbers)[..n]);
                Numbers::Bf16(numbers)
            }
        }
    }

    fn mat(&self, rows: usize, cols: usize) -> Mat<'_> {
        match self {
            Numbers::F32(x) => Mat::of(Elements::F32(x), rows, cols),
            Numbers::Bf16(x) => Mat::narrowed(&bytemuck::cast_slice(x)[..rows * cols], rows, cols),
        }
    }
}

/// Products of one shape in one precision, on all threads of the current pool.
pub struct GemmCase {
    precision: Precision,
    shape: GemmShape,
    x: Numbers,
    low: Numbers,
    /// Of each layer the weight `[outputs, inputs]`, the adapter's second matrix `[outputs, rank]`,
    /// and the output.
    layers: Vec<(Numbers, Numbers, Buffer)>,
    rounded: Vec<bf16>,
    turn: usize,
}

impl GemmCase {
    /// So many layers that take turns.
    pub fn new(precision: Precision, shape: GemmShape, layers: usize) -> Self {
        let GemmShape { rows, inputs, outputs } = shape;
        let layer = |seed: usize| {
            let of = |n, more| Numbers::new(precision, n, 2 * seed as u64 + more);
            (of(outputs * inputs, 10), of(outputs * RANK, 11), room(rows * outputs))
        };
        GemmCase {
            precision,
            shape,
            x: Numbers::new(precision, rows * inputs, 1),
            low: Numbers::new(precision, rows * RANK, 2),
            layers: (0..layers).map(layer).collect(),
            rounded: vec![bf16::ZERO; rows * outputs],
            turn: 0,
        }
    }

    /// Floating-point operations of one product.
    pub fn operations(&self, mode: GemmMode) -> f64 {
        let inner = self.shape.inputs + if mode == GemmMode::Tail { RANK } else { 0 };
        2.0 * (self.shape.rows * inner * self.shape.outputs) as f64
    }

    /// Makes the next layer's product.
    pub fn run(&mut self, mode: GemmMode) {
        let GemmShape { rows, inputs, outputs } = self.shape;
        let turn = self.turn % self.layers.len();
        self.turn += 1;
        let (weight, up, output) = &mut self.layers[turn];
        let mut terms = vec![Term { alpha: 1.0, a: self.x.mat(rows, inputs), b: weight.mat(outputs, inputs).t() }];
        if mode == GemmMode::Tail {
            terms.push(Term { alpha: 1.0, a: self.low.mat(rows, RANK), b: up.mat(outputs, RANK).t() });
        }
        let c = MatMut::new(output, rows, outputs);
        gemms(self.precision, vec![Gemm { c, add: mode == GemmMode::Add, terms }], Threads::Pool);
        if mode == GemmMode::Rounded {
            narrow(output, &mut self.rounded);
        }
    }

    /// GFLOP/s of each of [`GemmMode::ALL`]: the median of rounds that take turns for about
    /// `seconds` together.
    pub fn rates(&mut self, seconds: f64) -> [f64; 4] {
        const ROUNDS: usize = 5;
        let each = Duration::from_secs_f64(seconds / (ROUNDS * GemmMode::ALL.len()) as f64);
        let mut rates = GemmMode::ALL.map(|_| Vec::with_capacity(ROUNDS));
        for _ in 0..ROUNDS {
            for (rates, mode) in rates.iter_mut().zip(GemmMode::ALL) {
                let (started, mut done) = (Instant::now(), 0);
                while done == 0 || started.elapsed() < each {
                    self.run(mode);
                    done += 1;
                }
                rates.push(self.operations(mode) * f64::from(done) / started.elapsed().as_secs_f64() / 1e9);
            }
        }
        rates.map(|mut rates| {
            rates.sort_by(f64::total_cmp);
            rates[ROUNDS / 2]
        })
    }
}

/// Throughput of the GEMMs of [`SHAPES`] on all threads of the current pool beside the peak, in a
/// few seconds: a line for each precision and shape.
pub fn facts() -> BTreeMap<String, String> {
    facts_of(&SHAPES, 0.6)
}

fn facts_of(shapes: &[GemmShape], seconds: f64) -> BTreeMap<String, String> {
    /// Layers that take turns: more than the caches near a core hold.
    const LAYERS: usize = 8;
    let mut facts = BTreeMap::new();
    let threads = rayon::current_num_threads();
    for (precision, name) in [(Precision::Bf16, "bf16"), (Precision::F32, "f32")] {
        let (all, isa) = (limit(precision), Isa::of_this_cpu().name());
        facts.insert(format!("{name}, registers"), format!("{all:.0} GFLOP/s on {threads} threads at most ({isa})"));
        for shape in shapes {
            let rates = GemmCase::new(precision, *shape, LAYERS).rates(seconds);
            let each = GemmMode::ALL.iter().zip(rates).map(|(mode, rate)| format!("{} {rate:.0}", mode.name()));
            let said = format!("{} GFLOP/s", each.collect::<Vec<_>>().join(", "));
            facts.insert(format!("{name}, {} x {} x {}", shape.rows, shape.inputs, shape.outputs), said);
        }
    }
    facts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mode_is_measured_beside_what_the_registers_allow() {
        let shape = GemmShape { rows: 40, inputs: 64, outputs: 70 };
        let facts = facts_of(&[shape], 0.01);
        for name in ["bf16", "f32"] {
            let line = &facts[&format!("{name}, 40 x 64 x 70")];
            assert!(GemmMode::ALL.iter().all(|mode| line.contains(mode.name())), "{line}");
            let most: f64 = facts[&format!("{name}, registers")].split(' ').next().unwrap().parse().unwrap();
            let rates: Vec<f64> = line.split([' ', ',']).filter_map(|word| word.parse().ok()).collect();
            assert!(rates.len() == 4 && rates.iter().all(|rate| *rate < 1.2 * most), "{line}, {most} at most");
        }
    }

    #[test]
    fn a_case_makes_the_product_that_its_mode_names() {
        let shape = GemmShape { rows: 3, inputs: 5, outputs: 4 };
        let mut case = GemmCase::new(Precision::F32, shape, 1);
        let of = |case: &GemmCase| case.layers[0].2.to_vec();
        case.run(GemmMode::Plain);
        let plain = of(&case);
        case.run(GemmMode::Add);
        assert!(of(&case).iter().zip(&plain).all(|(twice, once)| *twice == 2.0 * once));
        case.run(GemmMode::Rounded);
        assert_eq!(of(&case), plain);
        assert!(case.rounded.iter().zip(&plain).all(|(y, x)| *y == bf16::from_f32(*x)));
        case.run(GemmMode::Tail);
        assert!(of(&case).iter().zip(&plain).any(|(a, b)| a != b));
        assert_eq!((case.operations(GemmMode::Plain), case.operations(GemmMode::Tail)), (120.0, 312.0));
    }
}

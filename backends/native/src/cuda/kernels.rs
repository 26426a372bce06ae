//! Launches of the kernels in `cuda/`, one function each: name, arguments in order, geometry from
//! the shapes.
//!
//! Pointers are [`Arg::Buffer`] or, where it says so, [`Arg::Null`]. `t` is the element type of
//! activations; what is said to be f32 is f32 in both. `cuda/README.md` has the table with bytes,
//! operations and time floors.

use super::device::{Arg, Element, Gpu, Launch};
use crate::error::Result;
use crate::ops::attention::Heads;
use crate::ops::dropout::Key;

/// The kernel's name for an element type.
macro_rules! named {
    ($t:expr, $name:literal) => {
        match $t {
            Element::F32 => concat!("karat_", $name, "_f32"),
            Element::Bf16 => concat!("karat_", $name, "_bf16"),
        }
    };
}

pub mod attention;
pub mod decode;
pub mod optimizer;

/// Most blocks of a kernel whose threads go through what is left in strides: several times what a
/// GPU runs at once.
const STRIDED_BLOCKS: usize = 4096;

fn blocks(n: usize, per_block: usize) -> usize {
    n.div_ceil(per_block).max(1)
}

/// Launches a kernel unless there is nothing to do.
fn launch(gpu: &dyn Gpu, work: usize, kernel: &'static str, geometry: Launch, arguments: &[Arg<'_>]) -> Result<()> {
    if work == 0 { Ok(()) } else { gpu.launch(kernel, geometry, arguments) }
}

/// Threads in strides over `n` elements, 16 bytes at a time.
fn strided(n: usize) -> Launch {
    Launch::linear(blocks(n, 256 * 8).min(STRIDED_BLOCKS), 256)
}

/// A row is an `i64` to the kernels, a width an `i32`.
fn rows_arg<'a>(rows: usize) -> Arg<'a> {
    Arg::I64(rows as i64)
}

fn width_arg<'a>(width: usize) -> Arg<'a> {
    Arg::I32(width as i32)
}

/// `y = norm(x)`: `x`, `y` `[rows, width]`, `w` f32 `[width]`; leaves `1 / sqrt(mean(x^2) + eps)`
/// in `scale` f32 `[rows]`.
///
/// # Errors
/// As [`Gpu::launch`]; so all functions here.
pub fn rms_norm(
    gpu: &dyn Gpu,
    t: Element,
    [x, w, y, scale]: [Arg<'_>; 4],
    (rows, width): (usize, usize),
    eps: f32,
) -> Result<()> {
    let args = [x, w, y, scale, rows_arg(rows), width_arg(width), Arg::F32(eps)];
    launch(gpu, rows, named!(t, "rms_norm"), Launch::linear(blocks(rows, 4), 128), &args)
}

/// `sum += branch; y = norm(sum)`: the end of one block of a layer and the norm of the next; shapes
/// as [`rms_norm`].
pub fn add_rms_norm(
    gpu: &dyn Gpu,
    t: Element,
    [sum, branch, w, y, scale]: [Arg<'_>; 5],
    (rows, width): (usize, usize),
    eps: f32,
) -> Result<()> {
    let args = [sum, branch, w, y, scale, rows_arg(rows), width_arg(width), Arg::F32(eps)];
    launch(gpu, rows, named!(t, "add_rms_norm"), Launch::linear(blocks(rows, 4), 128), &args)
}

/// The gradient of [`rms_norm`]'s `x` given `dy`, added to `dx` with `add`; `dx` may be `dy`.
pub fn rms_norm_backward(
    gpu: &dyn Gpu,
    t: Element,
    [x, w, scale, dy, dx]: [Arg<'_>; 5],
    (rows, width): (usize, usize),
    add: bool,
) -> Result<()> {
    let args = [x, w, scale, dy, dx, rows_arg(rows), width_arg(width), Arg::I32(i32::from(add))];
    launch(gpu, rows, named!(t, "rms_norm_backward"), Launch::linear(blocks(rows, 4), 128), &args)
}

/// Rows that are summed together first when a gradient is summed over `rows`: the shape alone
/// decides, so that sums are the same on every device.
fn chunk(rows: usize) -> usize {
    rows.div_ceil(512).max(16)
}

/// f32 elements of scratch that the sums over rows need: [`rms_norm_dw`], [`bias_gradient`],
/// [`gain_gradient`].
pub fn column_scratch(rows: usize, width: usize) -> usize {
    rows.div_ceil(chunk(rows)).max(1) * width
}

fn column_launch(rows: usize, width: usize) -> Launch {
    Launch { grid: [blocks(width, 64) as u32, blocks(rows, chunk(rows)) as u32, 1], block: [64, 1, 1], shared: 0 }
}

fn add_partials(gpu: &dyn Gpu, [partial, sum, divisor]: [Arg<'_>; 3], rows: usize, width: usize) -> Result<()> {
    let args = [partial, sum, divisor, Arg::I32(blocks(rows, chunk(rows)) as i32), width_arg(width)];
    launch(gpu, rows * width, "karat_add_partials", Launch::linear(blocks(width, 64), 64), &args)
}

/// `dw += sum over the rows of dy x scale`: `dw` f32 `[width]`; `scratch` f32 of [`column_scratch`]
/// elements. Two launches.
pub fn rms_norm_dw(
    gpu: &dyn Gpu,
    t: Element,
    [x, scale, dy, dw, scratch]: [Arg<'_>; 5],
    (rows, width): (usize, usize),
) -> Result<()> {
    let args = [x, scale, dy, scratch, rows_arg(rows), width_arg(width), Arg::I32(chunk(rows) as i32)];
    launch(gpu, rows * width, named!(t, "rms_norm_dw"), column_launch(rows, width), &args)?;
    add_partials(gpu, [scratch, dw, Arg::Null], rows, width)
}

/// `db += sum of the rows of dy`: `db` f32 `[width]`; `scratch` as [`rms_norm_dw`].
pub fn bias_gradient(
    gpu: &dyn Gpu,
    t: Element,
    [dy, db, scratch]: [Arg<'_>; 3],
    (rows, width): (usize, usize),
) -> Result<()> {
    gain_gradient(gpu, t, [dy, Arg::Null, db, Arg::Null, scratch], (rows, width))
}

/// `dgain += (sum over the rows of dy x) / norms`, column by column: DoRA's magnitudes. All but
/// `dy` and `x` f32; `norms` may be null (no division), and so may `x` (a sum of `dy`); `scratch`
/// as [`rms_norm_dw`].
pub fn gain_gradient(
    gpu: &dyn Gpu,
    t: Element,
    [dy, x, dgain, norms, scratch]: [Arg<'_>; 5],
    (rows, width): (usize, usize),
) -> Result<()> {
    let args = [dy, x, scratch, rows_arg(rows), width_arg(width), Arg::I32(chunk(rows) as i32)];
    launch(gpu, rows * width, named!(t, "column_sums"), column_launch(rows, width), &args)?;
    add_partials(gpu, [scratch, dgain, norms], rows, width)
}

/// `x += y`, `n` elements.
pub fn add(gpu: &dyn Gpu, t: Element, [x, y]: [Arg<'_>; 2], n: usize) -> Result<()> {
    launch(gpu, n, named!(t, "add"), strided(n), &[x, y, Arg::I64(n as i64)])
}

/// `y = silu(gate) up`: `y` `[rows, width]`; rows of `gate` and `up` lie `stride` elements apart
/// (`width` if dense).
pub fn swiglu(
    gpu: &dyn Gpu,
    t: Element,
    [gate, up, y]: [Arg<'_>; 3],
    (rows, width): (usize, usize),
    stride: usize,
) -> Result<()> {
    launch(
        gpu,
        rows,
        named!(t, "swiglu"),
        Launch::linear(rows, 256),
        &[gate, up, y, width_arg(width), Arg::I64(stride as i64)],
    )
}

/// Gradients of [`swiglu`]'s `gate` and `up`, which lie like these and may overwrite them.
pub fn swiglu_backward(
    gpu: &dyn Gpu,
    t: Element,
    [gate, up, dy, dgate, dup]: [Arg<'_>; 5],
    (rows, width): (usize, usize),
    stride: usize,
) -> Result<()> {
    let args = [gate, up, dy, dgate, dup, width_arg(width), Arg::I64(stride as i64)];
    launch(gpu, rows, named!(t, "swiglu_backward"), Launch::linear(rows, 256), &args)
}

/// `y += gain x`, column by column: `gain` f32 `[width]`.
pub fn add_scaled(gpu: &dyn Gpu, t: Element, [y, x, gain]: [Arg<'_>; 3], (rows, width): (usize, usize)) -> Result<()> {
    launch(gpu, rows, named!(t, "add_scaled"), Launch::linear(rows, 256), &[y, x, gain, width_arg(width)])
}

/// `y += bias` in every row: `bias` f32 `[width]`.
pub fn add_bias(gpu: &dyn Gpu, t: Element, [y, bias]: [Arg<'_>; 2], (rows, width): (usize, usize)) -> Result<()> {
    launch(gpu, rows, named!(t, "add_bias"), Launch::linear(rows, 256), &[y, bias, width_arg(width)])
}

/// `y = a / b`, f32.
pub fn divide(gpu: &dyn Gpu, [a, b, y]: [Arg<'_>; 3], n: usize) -> Result<()> {
    launch(gpu, n, "karat_divide", strided(n), &[a, b, y, Arg::I64(n as i64)])
}

/// `y = x` in bf16: `x` f32.
pub fn narrow(gpu: &dyn Gpu, [x, y]: [Arg<'_>; 2], n: usize) -> Result<()> {
    launch(gpu, n, "karat_convert_f32_bf16", strided(n), &[x, y, Arg::I64(n as i64)])
}

/// `y = x` in f32: `x` bf16.
pub fn widen(gpu: &dyn Gpu, [x, y]: [Arg<'_>; 2], n: usize) -> Result<()> {
    launch(gpu, n, "karat_convert_bf16_f32", strided(n), &[x, y, Arg::I64(n as i64)])
}

/// Rotates the heads of `q` and `k` in place by the angles of `positions` (u32 `[tokens]`): tables
/// f32 `[positions, dim / 2]`. `inverse` is the gradient. `strides` are elements from one token to
/// the next in `q` and `k`; `k` may be null if `heads.keys` is 0.
pub fn rope(
    gpu: &dyn Gpu,
    t: Element,
    [q, k, positions, cosines, sines]: [Arg<'_>; 5],
    (tokens, heads, strides): (usize, Heads, [usize; 2]),
    inverse: bool,
) -> Result<()> {
    let Heads { queries, keys, dim } = heads;
    let mut args = vec![q, k, positions, cosines, sines];
    args.extend([queries, keys, dim].map(|n| Arg::I32(n as i32)));
    args.extend(strides.map(|s| Arg::I64(s as i64)));
    args.push(Arg::F32(if inverse { -1.0 } else { 1.0 }));
    launch(gpu, tokens, named!(t, "rope"), Launch::linear(tokens, 256), &args)
}

/// `y[row] = table[ids[row]]`: `ids` u32 `[rows]`; the table's element type may be another than
/// `y`'s.
pub fn gather(
    gpu: &dyn Gpu,
    (of_table, t): (Element, Element),
    [table, ids, y]: [Arg<'_>; 3],
    (rows, width): (usize, usize),
) -> Result<()> {
    let name = match (of_table, t) {
        (Element::F32, Element::F32) => "karat_gather_f32_f32",
        (Element::F32, Element::Bf16) => "karat_gather_f32_bf16",
        (Element::Bf16, Element::F32) => "karat_gather_bf16_f32",
        (Element::Bf16, Element::Bf16) => "karat_gather_bf16_bf16",
    };
    launch(gpu, rows, name, Launch::linear(rows, 128), &[table, ids, y, width_arg(width)])
}

/// Rows of tokens grouped by the row of a table they belong to, for [`scatter_add`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Groups {
    /// Where each group begins in `order`; one more than groups.
    pub starts: Vec<u32>,
    /// Row of the table of each group, ascending.
    pub ids: Vec<u32>,
    /// Tokens, group by group, each group's in their order.
    pub order: Vec<u32>,
}

impl Groups {
    /// Groups the tokens by `ids`, without those of `skip` (padding).
    pub fn new(ids: &[u32], skip: Option<u32>) -> Self {
        let mut all: Vec<(u32, u32)> = ids.iter().copied().zip(0..).filter(|(id, _)| Some(*id) != skip).collect();
        all.sort_unstable();
        let mut groups = Groups { starts: vec![0], ..Groups::default() };
        for group in all.chunk_by(|a, b| a.0 == b.0) {
            groups.ids.push(group[0].0);
            groups.order.extend(group.iter().map(|(_, token)| token));
            groups.starts.push(groups.order.len() as u32);
        }
        groups
    }
}

/// `table[id] += rows of dy`, group by group of [`Groups`] (`starts`, `ids`, `order` as u32 on the
/// device); `dy` and the table may have different element types. The sum of a row is rounded once.
pub fn scatter_add(
    gpu: &dyn Gpu,
    (of_table, t): (Element, Element),
    [table, starts, ids, order, dy]: [Arg<'_>; 5],
    (groups, width): (usize, usize),
) -> Result<()> {
    let name = match (t, of_table) {
        (Element::F32, Element::F32) => "karat_scatter_add_f32_f32",
        (Element::F32, Element::Bf16) => "karat_scatter_add_f32_bf16",
        (Element::Bf16, Element::F32) => "karat_scatter_add_bf16_f32",
        (Element::Bf16, Element::Bf16) => "karat_scatter_add_bf16_bf16",
    };
    let geometry = Launch { grid: [groups as u32, blocks(width, 1024) as u32, 1], block: [128, 1, 1], shared: 0 };
    launch(gpu, groups, name, geometry, &[table, starts, ids, order, dy, width_arg(width)])
}

/// A row without a target, for [`cross_entropy`] and [`score`]: its log-probability and gradient
/// are 0.
pub const NO_TARGET: u32 = u32::MAX;

/// Log-probabilities of `targets` (u32 `[rows]`) into `logprobs` f32 `[rows]`; over `logits`
/// `[rows, vocab]` their gradient of `scale * sum of -log p` is written.
pub fn cross_entropy(
    gpu: &dyn Gpu,
    t: Element,
    [logits, targets, logprobs]: [Arg<'_>; 3],
    (rows, vocab): (usize, usize),
    scale: f32,
) -> Result<()> {
    let args = [logits, targets, logprobs, width_arg(vocab), Arg::F32(scale)];
    launch(gpu, rows, named!(t, "cross_entropy"), Launch::linear(rows, 512), &args)
}

/// Log-probabilities of `targets` into `logprobs` f32 `[rows]` and whether each was the most
/// probable (ties go to the lowest id) into `greedy` u32 `[rows]`.
pub fn score(
    gpu: &dyn Gpu,
    t: Element,
    [logits, targets, logprobs, greedy]: [Arg<'_>; 4],
    (rows, vocab): (usize, usize),
) -> Result<()> {
    let args = [logits, targets, logprobs, greedy, width_arg(vocab)];
    launch(gpu, rows, named!(t, "score"), Launch::linear(rows, 512), &args)
}

/// `y = x / (1 - p)` where the mask of `key` keeps an element, else 0; added to `y` with `add`. The
/// mask is that of [`crate::ops::dropout::apply`] to the bit. `y` may be `x`.
pub fn dropout(gpu: &dyn Gpu, t: Element, [x, y]: [Arg<'_>; 2], n: usize, p: f64, key: Key, add: bool) -> Result<()> {
    let threshold = (p * 65536.0).round().clamp(0.0, 65535.0) as u32;
    let scale = (1.0 / (1.0 - f64::from(threshold) / 65536.0)) as f32;
    let Key { seed, step, module, first } = key;
    // Blocks of the generator decide 128 elements by 16 threads.
    let threads = ((first + n as u64).div_ceil(128) - first / 128) as usize * 16;
    let args = [
        x,
        y,
        Arg::U64(n as u64),
        Arg::U64(first),
        Arg::U32(threshold),
        Arg::F32(scale),
        Arg::U64(seed),
        Arg::U32(step),
        Arg::U32(module),
        Arg::I32(i32::from(add)),
    ];
    launch(gpu, n, named!(t, "dropout"), Launch::linear(blocks(threads, 256), 256), &args)
}

/// The L2 norm of every row of `W + scale B A` into `norms` f32 `[out]`: `w` `[out, in]` of type
/// `t`, `a` `[rank, in]` and `b` `[out, rank]` with their lower halves: split where `t` is bf16,
/// else f32 beside null.
pub fn merged_norms(
    gpu: &dyn Gpu,
    t: Element,
    [w, a, a_lower, b, b_lower, norms]: [Arg<'_>; 6],
    [n_out, n_in, rank]: [usize; 3],
    scale: f32,
) -> Result<()> {
    let args = [w, a, a_lower, b, b_lower, norms, width_arg(n_in), width_arg(rank), Arg::F32(scale)];
    launch(gpu, n_out, named!(t, "merged_norms"), Launch::linear(n_out, 256), &args)
}

//! Launches of attention: over packed rows, forward and backward.

use super::super::device::{Arg, Element, Gpu, Launch};
use super::launch;
use crate::error::Result;
use crate::ops::attention::Heads;

/// Queries (forward, dq) or keys (dk, dv) of a block on tensor cores.
const TILE: usize = 64;
/// The same without: one a warp.
const PLAIN_ROWS: usize = 4;

/// Packed rows and how their heads lie: `starts` u32 `[rows + 1]`, where each row begins among the
/// tokens.
#[derive(Clone, Copy, Debug)]
pub struct PackedRows<'a> {
    /// Rows' first tokens and the end.
    pub starts: Arg<'a>,
    /// How many rows.
    pub rows: usize,
    /// Tokens of the longest.
    pub longest: usize,
    /// Tokens of all.
    pub tokens: usize,
    /// Numbers of heads.
    pub heads: Heads,
    /// Elements from one token to the next in `q`, `k` and `v` (and `dq`, `dk`, `dv`);
    /// `heads * dim` each if dense.
    pub strides: [usize; 3],
}

impl<'a> PackedRows<'a> {
    /// Rows whose `q`, `k` and `v` are dense.
    pub fn dense(starts: Arg<'a>, rows: usize, longest: usize, tokens: usize, heads: Heads) -> Self {
        let kv = heads.keys * heads.dim;
        PackedRows { starts, rows, longest, tokens, heads, strides: [heads.queries * heads.dim, kv, kv] }
    }

    /// Whether the tensor-core kernels have this head dim, and 16-byte rows.
    fn tiled(&self, t: Element) -> bool {
        t == Element::Bf16 && matches!(self.heads.dim, 16 | 32 | 64 | 128) && self.strides.iter().all(|s| s % 8 == 0)
    }

    fn geometry(&self, per_block: usize, heads: usize, shared: usize) -> Launch {
        let blocks = self.longest.div_ceil(per_block).max(1) as u32;
        Launch { grid: [blocks, heads as u32, self.rows as u32], block: [128, 1, 1], shared: shared as u32 }
    }

    /// The arguments that end every launch.
    fn last(&self, with_dim: bool) -> Vec<Arg<'a>> {
        let Heads { queries, keys, dim } = self.heads;
        let mut args = vec![Arg::I32(queries as i32), Arg::I32(keys as i32)];
        if with_dim {
            args.push(Arg::I32(dim as i32));
        }
        args.extend(self.strides.map(|s| Arg::I64(s as i64)));
        args.push(Arg::F32((1.0 / (dim as f64).sqrt()) as f32));
        args
    }
}

/// The kernel's name for a head dim of the tensor-core kernels.
macro_rules! by_dim {
    ($dim:expr, $name:literal) => {
        match $dim {
            16 => concat!("karat_", $name, "_16"),
            32 => concat!("karat_", $name, "_32"),
            64 => concat!("karat_", $name, "_64"),
            _ => concat!("karat_", $name, "_128"),
        }
    };
}

/// Bytes of shared memory of the backward kernels: two tiles that stay, two stages of two that
/// stream.
fn backward_shared(dim: usize) -> usize {
    (2 * TILE + 4 * step(dim)) * (dim + 8) * 2
}

fn step(dim: usize) -> usize {
    if dim > 64 { 32 } else { 64 }
}

/// Causal attention: `out` `[tokens, queries * dim]`, the log-sum-exps of the scores in `lse` f32
/// `[tokens, queries]`.
///
/// bf16 with head dims 16, 32, 64 and 128 runs on tensor cores, all else (dims up to 256) without.
///
/// # Errors
/// As [`Gpu::launch`]; so all functions here.
pub fn attention(gpu: &dyn Gpu, t: Element, [q, k, v, out, lse]: [Arg<'_>; 5], rows: &PackedRows<'_>) -> Result<()> {
    let mut args = vec![q, k, v, rows.starts, out, lse];
    let Heads { queries, dim, .. } = rows.heads;
    if rows.tiled(t) {
        args.extend(rows.last(false));
        let geometry = rows.geometry(TILE, queries, 3 * TILE * (dim + 8) * 2);
        return launch(gpu, rows.tokens, by_dim!(dim, "attention_forward"), geometry, &args);
    }
    args.extend(rows.last(true));
    let geometry = rows.geometry(PLAIN_ROWS, queries, 0);
    launch(gpu, rows.tokens, named!(t, "attention_plain"), geometry, &args)
}

/// Gradients of [`attention`]'s `q`, `k` and `v`, which lie like these; `delta` is scratch, f32
/// `[tokens, queries]`. Three launches.
pub fn attention_backward(
    gpu: &dyn Gpu,
    t: Element,
    [q, k, v, out, lse, dout, delta]: [Arg<'_>; 7],
    [dq, dk, dv]: [Arg<'_>; 3],
    rows: &PackedRows<'_>,
) -> Result<()> {
    let Heads { queries, keys, dim } = rows.heads;
    let n = rows.tokens * queries;
    let args = [out, dout, delta, Arg::I64(n as i64), Arg::I32(dim as i32)];
    launch(gpu, n, named!(t, "attention_delta"), Launch::linear(n.div_ceil(4), 128), &args)?;
    let tiled = rows.tiled(t);
    let mut of_q = vec![q, k, v, rows.starts, dout, lse, delta, dq];
    let mut of_kv = vec![q, k, v, rows.starts, dout, lse, delta, dk, dv];
    of_q.extend(rows.last(!tiled));
    of_kv.extend(rows.last(!tiled));
    if tiled {
        let shared = backward_shared(dim);
        let geometry = rows.geometry(TILE, queries, shared);
        launch(gpu, rows.tokens, by_dim!(dim, "attention_dq"), geometry, &of_q)?;
        let geometry = rows.geometry(TILE, keys, shared + 16 * step(dim));
        return launch(gpu, rows.tokens, by_dim!(dim, "attention_dkv"), geometry, &of_kv);
    }
    launch(gpu, rows.tokens, named!(t, "attention_plain_dq"), rows.geometry(PLAIN_ROWS, queries, 0), &of_q)?;
    launch(gpu, rows.tokens, named!(t, "attention_plain_dkv"), rows.geometry(PLAIN_ROWS, keys, 0), &of_kv)
}

//! Numbers as kernels read and leave them: f32, or bf16 where they were kept in half the memory.

use half::bf16;

use karat_kernels::gemm::narrow_here;

/// An element type that kernels widen to f32, a stretch at a time that fits into the L1 cache.
pub trait Number: Copy + Send + Sync {
    /// Whether [`Number::keep`] rounds.
    const ROUNDED: bool;
    /// `x` in f32, exactly: itself, or in the first elements of `tile`.
    fn wide<'a>(x: &'a [Self], tile: &'a mut [f32]) -> &'a [f32];
    /// Puts `x` into `out`, of the same length, rounded as products round it where this is no f32.
    fn keep(x: &[f32], out: &mut [Self]);
}

impl Number for f32 {
    const ROUNDED: bool = false;
    #[inline(always)]
    fn wide<'a>(x: &'a [f32], _: &'a mut [f32]) -> &'a [f32] {
        x
    }
    #[inline(always)]
    fn keep(x: &[f32], out: &mut [f32]) {
        out.copy_from_slice(x);
    }
}

impl Number for bf16 {
    const ROUNDED: bool = true;
    #[inline(always)]
    fn wide<'a>(x: &'a [bf16], tile: &'a mut [f32]) -> &'a [f32] {
        let tile = &mut tile[..x.len()];
        // The bits and not `to_f32`, which asks for NaN first and is not vectorised.
        tile.iter_mut().zip(x).for_each(|(wide, x)| *wide = f32::from_bits(u32::from(x.to_bits()) << 16));
        tile
    }
    #[inline(always)]
    fn keep(x: &[f32], out: &mut [bf16]) {
        narrow_here(x, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::noise;

    #[test]
    fn what_is_kept_comes_back_as_products_round_it() {
        let x = [&noise(37, 1)[..], &[0.0, -0.0, f32::INFINITY, 1e-40, 3.4e38]].concat();
        let (mut kept, mut tile) = (vec![bf16::ZERO; x.len()], vec![9.0; x.len()]);
        bf16::keep(&x, &mut kept);
        let wide = bf16::wide(&kept, &mut tile);
        assert!(wide.iter().zip(&kept).all(|(wide, kept)| wide.to_bits() == kept.to_f32().to_bits()));
        assert!(wide[..37].iter().zip(&x).all(|(wide, x)| (wide - x).abs() <= x.abs() / 256.0));
        let mut same = vec![0.0; x.len()];
        f32::keep(&x, &mut same);
        assert_eq!(f32::wide(&same, &mut []), x);
    }
}

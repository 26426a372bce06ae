//! Self-check at opening: the instruction set in use against plain loops.

use super::isa::Isa;
use super::tile::Precision;
use super::{Gemm, Mat, MatMut, Term, Threads, gemms_by};
use crate::testing::noise;

/// Compares products by the instructions of [`Isa::of_this_cpu`] with plain loops, to the bit:
/// tasks of either kind, a short second term, an output that is added to. It takes some
/// milliseconds.
///
/// Tiles sum bf16 in an order of their own. They were held against their emulation when they were
/// chosen; what is left of them here are products in f32.
///
/// # Errors
/// Says which product differs.
pub fn gemms() -> Result<(), String> {
    products_of(Isa::of_this_cpu())
}

fn products_of(isa: Isa) -> Result<(), String> {
    // Rows, inner dimension, columns and the inner dimension of the second term.
    for (m, k, n, rank) in [(1, 70, 90, 8), (37, 1100, 130, 9), (200, 96, 40, 16)] {
        let [a, b, low, up] = [(m * k, 1), (k * n, 2), (m * rank, 3), (rank * n, 4)].map(|(n, seed)| noise(n, seed));
        for precision in [Precision::F32, Precision::Bf16] {
            if isa == Isa::AmxBf16 && precision == Precision::Bf16 {
                continue;
            }
            let [got, want] = [isa, Isa::Portable].map(|isa| {
                let mut c = noise(m * n, 5);
                let terms = vec![
                    Term { alpha: 0.5, a: Mat::new(&a, m, k), b: Mat::new(&b, n, k).t() },
                    Term { alpha: 0.5, a: Mat::new(&low, m, rank), b: Mat::new(&up, rank, n) },
                ];
                let product = Gemm { c: MatMut::new(&mut c, m, n), add: true, terms };
                gemms_by(isa, precision, vec![product], Threads::One);
                c
            });
            let differ = got.iter().zip(&want).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
            if differ > 0 {
                let name = isa.name();
                return Err(format!(
                    "{differ} of {} numbers of a product {m} x {k} x {n} in {precision:?} differ between {name} and plain loops",
                    m * n
                ));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_instructions_of_this_cpu_pass_and_others_sums_do_not() {
        assert_eq!(gemms(), Ok(()));
        // Tiles sum in another order, which is what the check is there to see.
        let message = products_of(Isa::Emulated).unwrap_err();
        assert!(message.contains("Bf16") && message.contains("emulated"), "{message}");
    }
}

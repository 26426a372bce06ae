//! Instruction sets: the best one of this CPU, or the one that [`VARIABLE`] names.
#![allow(unsafe_code)]

use super::tile::{DEPTH, LANES, Precision};

/// The instructions that are used, each set including those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub enum Isa {
    /// Whatever the compiler makes of plain loops for this CPU.
    Portable,
    /// AVX-512 for f32 and for packing; bf16 pairs as two fused f32 products.
    Avx512,
    /// AVX-512 with `vdpbf16ps`.
    Avx512Bf16,
    /// The above for f32 and for packing, the tiles of AMX for bf16.
    AmxBf16,
    /// The tiles as Rust has them.
    #[cfg(test)]
    Emulated,
}

/// Names a set that is to be used in place of the best one, for comparisons.
pub const VARIABLE: &str = "KARAT_MATMUL";

impl Isa {
    /// Its name in reports and in [`VARIABLE`].
    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx512 => "avx512",
            Isa::Avx512Bf16 => "avx512_bf16",
            Isa::AmxBf16 => "amx_bf16",
            #[cfg(test)]
            Isa::Emulated => "emulated",
        }
    }

    /// The best of this CPU, or the one that [`VARIABLE`] names if that is among those it has.
    pub fn of_this_cpu() -> Self {
        Self::chosen().as_ref().map_or_else(|_| best().0, |isa| *isa)
    }

    /// [`Isa::of_this_cpu`]; read once.
    ///
    /// # Errors
    /// Says what is wrong with [`VARIABLE`].
    pub fn chosen() -> &'static Result<Self, String> {
        static SET: std::sync::OnceLock<Result<Isa, String>> = std::sync::OnceLock::new();
        SET.get_or_init(|| Self::named(std::env::var(VARIABLE).ok().as_deref().unwrap_or("")))
    }

    fn named(name: &str) -> Result<Self, String> {
        let all = [Isa::Portable, Isa::Avx512, Isa::Avx512Bf16, Isa::AmxBf16];
        let here = all.into_iter().filter(|isa| *isa <= best().0);
        if name.is_empty() {
            return Ok(best().0);
        }
        here.clone().find(|isa| isa.name() == name).ok_or_else(|| {
            let names: Vec<&str> = here.map(Isa::name).collect();
            format!("{VARIABLE}={name} names no instructions of this CPU (it has {})", names.join(", "))
        })
    }

    /// Whether products in bf16 are made on tiles.
    pub(super) fn has_tiles(self) -> bool {
        #[cfg(test)]
        if self == Isa::Emulated {
            return true;
        }
        self == Isa::AmxBf16
    }

    /// Units from the start of one packed row of a left operand to that of the next, if it has so
    /// many: for tiles whole cache lines, since one whose rows straddle them takes two to four
    /// times as long to load.
    pub(super) fn row_stride(self, units: usize) -> usize {
        if self.has_tiles() { units.next_multiple_of(LANES) } else { units }
    }

    /// Units of the inner dimension that are summed before they are added to the output. Tiles go on
    /// for as long as a panel fits the second cache: an output that is read again costs them more
    /// than operands from there.
    pub(super) fn depth(self, precision: Precision) -> usize {
        const OF_TILES: usize = 4 * DEPTH;
        if self.has_tiles() && precision == Precision::Bf16 { OF_TILES } else { DEPTH }
    }

    /// A remark on the choice of [`Isa::of_this_cpu`], if there is one to make.
    pub fn remark() -> Option<&'static str> {
        best().1
    }
}

/// The best set of this CPU, and why it is not a better one.
fn best() -> (Isa, Option<&'static str>) {
    static BEST: std::sync::OnceLock<(Isa, Option<&'static str>)> = std::sync::OnceLock::new();
    *BEST.get_or_init(|| {
        #[cfg(target_arch = "x86_64")]
        if crate::simd::has_avx512() {
            if !is_x86_feature_detected!("avx512bf16") {
                return (Isa::Avx512, None);
            }
            #[cfg(target_os = "linux")]
            if super::amx::ready() {
                // SAFETY: `ready` said that the CPU has the tiles and the system lets this process
                // use them.
                return match unsafe { super::amx::agrees() } {
                    true => (Isa::AmxBf16, None),
                    false => (Isa::Avx512Bf16, Some("the tiles of AMX failed their self-check and are not used")),
                };
            }
            return (Isa::Avx512Bf16, None);
        }
        (Isa::Portable, None)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_chosen_by_name_if_this_cpu_has_it() {
        let best = best().0;
        assert_eq!(Isa::named(""), Ok(best));
        assert_eq!(Isa::named(best.name()), Ok(best));
        assert_eq!(Isa::named("portable"), Ok(Isa::Portable));
        let message = Isa::named("avx1024").unwrap_err();
        assert!(message.contains("KARAT_MATMUL=avx1024") && message.contains(best.name()), "{message}");
    }
}

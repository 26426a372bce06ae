//! Random numbers by counter: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1,
//! 2, 3", SC 2011).
//!
//! A draw is a pure function of a key and a place, so that it does not matter who draws first, on
//! how many threads, or whether a run was interrupted in between.

/// Blocks that [`Philox::fill_u16`] draws at once, as vector lanes.
pub const WIDE: usize = 16;

/// Rounds of a block.
pub const ROUNDS: usize = 10;
/// Multipliers of the first and the third word of a counter in a round.
pub const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
/// Weyl constants that are added to the key after a round.
pub const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// The generator under one key.
#[derive(Clone, Copy, Debug)]
pub struct Philox {
    key: [u32; 2],
}

impl Philox {
    /// The generator keyed by `seed`.
    pub fn new(seed: u64) -> Self {
        Philox { key: [seed as u32, (seed >> 32) as u32] }
    }

    /// The key of the first round.
    pub fn key(&self) -> [u32; 2] {
        self.key
    }

    /// The four words of block `counter`.
    pub fn block(&self, counter: [u32; 4]) -> [u32; 4] {
        let (mut c, mut k) = (counter, self.key);
        for _ in 0..ROUNDS {
            let p0 = u64::from(MULTIPLIERS[0]) * u64::from(c[0]);
            let p1 = u64::from(MULTIPLIERS[1]) * u64::from(c[2]);
            c = [(p1 >> 32) as u32 ^ c[1] ^ k[0], p1 as u32, (p0 >> 32) as u32 ^ c[3] ^ k[1], p0 as u32];
            k = [k[0].wrapping_add(WEYL[0]), k[1].wrapping_add(WEYL[1])];
        }
        c
    }

    /// `8 * WIDE` numbers of 16 bits: the blocks `index * WIDE ..` of the stream `(a, b)`.
    #[inline(always)]
    pub fn fill_u16(&self, index: u64, a: u32, b: u32, out: &mut [u16]) {
        let (mut c0, mut c1, mut c2, mut c3) = ([0u32; WIDE], [0u32; WIDE], [a; WIDE], [b; WIDE]);
        for l in 0..WIDE {
            let n = index.wrapping_mul(WIDE as u64).wrapping_add(l as u64);
            c0[l] = n as u32;
            c1[l] = (n >> 32) as u32;
        }
        let mut k = self.key;
        for _ in 0..ROUNDS {
            for l in 0..WIDE {
                let p0 = u64::from(MULTIPLIERS[0]).wrapping_mul(u64::from(c0[l]));
                let p1 = u64::from(MULTIPLIERS[1]).wrapping_mul(u64::from(c2[l]));
                let (n0, n2) = ((p1 >> 32) as u32 ^ c1[l] ^ k[0], (p0 >> 32) as u32 ^ c3[l] ^ k[1]);
                (c1[l], c3[l]) = (p1 as u32, p0 as u32);
                (c0[l], c2[l]) = (n0, n2);
            }
            k = [k[0].wrapping_add(WEYL[0]), k[1].wrapping_add(WEYL[1])];
        }
        for (w, words) in [c0, c1, c2, c3].iter().enumerate() {
            for l in 0..WIDE {
                out[2 * w * WIDE + l] = words[l] as u16;
                out[(2 * w + 1) * WIDE + l] = (words[l] >> 16) as u16;
            }
        }
    }

    /// Uniform in `[0, 1)` with 53 bits, at `place` of the stream `(a, b)`.
    pub fn uniform(&self, place: u64, a: u32, b: u32) -> f64 {
        let w = self.block([place as u32, (place >> 32) as u32, a, b]);
        ((u64::from(w[0]) << 21) ^ (u64::from(w[1]) >> 11)) as f64 / (1u64 << 53) as f64
    }

    /// A standard normal at `place` of the stream `(a, b)` (Box-Muller).
    pub fn normal(&self, place: u64, a: u32, b: u32) -> f64 {
        let w = self.block([place as u32, (place >> 32) as u32, a, b]);
        let unit = |hi: u32, lo: u32| ((u64::from(hi) << 21) ^ (u64::from(lo) >> 11)) as f64 / (1u64 << 53) as f64;
        let (u, v) = (1.0 - unit(w[0], w[1]), unit(w[2], w[3]));
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }
}

/// A stable number for a name: 64-bit FNV-1a. Streams are keyed by tensor names through it.
pub fn name_key(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_those_of_the_reference_implementation() {
        // Known answers of Random123's kat_vectors for philox4x32-10.
        let zero = Philox::new(0).block([0; 4]);
        assert_eq!(zero, [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        let ones = Philox::new(u64::MAX).block([u32::MAX; 4]);
        assert_eq!(ones, [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
    }

    #[test]
    fn the_wide_form_draws_the_same_blocks() {
        let g = Philox::new(0x1234_5678_9abc_def0);
        let mut wide = [0u16; 8 * WIDE];
        g.fill_u16(3, 9, 11, &mut wide);
        for l in 0..WIDE {
            let w = g.block([(3 * WIDE + l) as u32, 0, 9, 11]);
            for i in 0..4 {
                assert_eq!(wide[2 * i * WIDE + l], w[i] as u16);
                assert_eq!(wide[(2 * i + 1) * WIDE + l], (w[i] >> 16) as u16);
            }
        }
    }

    #[test]
    fn normals_have_mean_zero_and_variance_one() {
        let g = Philox::new(1);
        let x: Vec<f64> = (0..200_000).map(|i| g.normal(i, 0, 0)).collect();
        let mean = x.iter().sum::<f64>() / x.len() as f64;
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / x.len() as f64;
        assert!(mean.abs() < 0.01 && (variance - 1.0).abs() < 0.01, "{mean} {variance}");
    }
}

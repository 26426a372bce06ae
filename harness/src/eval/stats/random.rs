//! Random numbers that depend on a seed and a stream, and on nothing else.
//!
//! Every resample has a stream of its own, so the work can be split over any number of threads and
//! the numbers are the same. The generator is xoshiro256++ (Blackman and Vigna 2019), its state
//! filled by SplitMix64; integers below a bound are drawn without bias (Lemire 2019).

/// One stream.
#[derive(Clone, Debug)]
pub struct Random {
    state: [u64; 4],
}

fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Random {
    /// The stream numbered `stream` of a seed.
    pub fn stream(seed: u64, stream: u64) -> Self {
        // Seed and stream go through the mixer one after the other: neighbouring streams share
        // nothing.
        let mut mixer = seed;
        let mut mixer = split_mix(&mut mixer) ^ stream;
        Random { state: std::array::from_fn(|_| split_mix(&mut mixer)) }
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        let [a, b, c, d] = self.state;
        let result = a.wrapping_add(d).rotate_left(23).wrapping_add(a);
        let (c, d) = (c ^ a, d ^ b);
        self.state = [a ^ d, b ^ c, c ^ (b << 17), d.rotate_left(45)];
        result
    }

    /// A number in `0..bound`, all equally probable; 0 if `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        loop {
            let product = u128::from(self.bits()) * u128::from(bound);
            let low = product as u64;
            if low >= bound || low >= bound.wrapping_neg() % bound.max(1) {
                return (product >> 64) as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generator_is_xoshiro256_plus_plus() {
        // First outputs for the state 1, 2, 3, 4, of the authors' implementation.
        let mut random = Random { state: [1, 2, 3, 4] };
        let first: Vec<u64> = (0..4).map(|_| random.bits()).collect();
        assert_eq!(first, [41_943_041, 58_720_359, 3_588_806_011_781_223, 3_591_011_842_654_386]);
    }

    #[test]
    fn numbers_below_a_bound_are_even_and_streams_differ() {
        let mut counts = [0u32; 7];
        for stream in 0..100 {
            let mut random = Random::stream(42, stream);
            for _ in 0..700 {
                counts[random.below(7) as usize] += 1;
            }
        }
        // 10,000 expected in each, standard deviation 93.
        assert!(counts.iter().all(|&n| (9_500..10_500).contains(&n)), "{counts:?}");
        assert_ne!(Random::stream(1, 0).bits(), Random::stream(1, 1).bits());
        assert_ne!(Random::stream(1, 0).bits(), Random::stream(2, 0).bits());
    }
}

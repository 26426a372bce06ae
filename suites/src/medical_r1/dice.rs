//! Seeded chance. Every thing that is made has dice of its own, seeded by its name, so that
//! changing one fact or template does not reshuffle the rest.

use rand_mt::Mt64;

pub(super) struct Dice(Mt64);

impl Dice {
    /// Dice for the thing called `name`: the seed mixed with the name's FNV-1a hash.
    pub(super) fn new(seed: u64, name: &str) -> Self {
        let hash =
            name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
        Dice(Mt64::new(seed ^ hash))
    }

    /// A number in `0..n`; 0 where `n` is 0. The modulo's bias, below 2^-50 here, does not matter.
    pub(super) fn below(&mut self, n: usize) -> usize {
        (self.0.next_u64() % n.max(1) as u64) as usize
    }

    pub(super) fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }

    /// One of `from`, which is not empty.
    pub(super) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    /// Fisher-Yates, from the end.
    pub(super) fn shuffle<T>(&mut self, list: &mut [T]) {
        for i in (1..list.len()).rev() {
            list.swap(i, self.below(i + 1));
        }
    }
}

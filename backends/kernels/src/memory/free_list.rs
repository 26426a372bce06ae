//! The free list of [`arena`](super::arena): which units of it are taken; bookkeeping alone,
//! without the memory.

use std::collections::BTreeMap;

/// Free and taken parts of `0..limit`.
#[derive(Debug)]
pub struct FreeList {
    /// Free parts below `end` by where they start; no two touch each other.
    free: BTreeMap<usize, usize>,
    /// One past the highest unit that was ever taken since the last [`FreeList::trim`].
    end: usize,
    limit: usize,
}

impl FreeList {
    /// All of `0..limit` is free.
    pub const fn new(limit: usize) -> Self {
        FreeList { free: BTreeMap::new(), end: 0, limit }
    }

    /// All units, taken or not.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Goes on as if `units` had been in use: what stays is put below that end from the start, and
    /// not wherever the end then was.
    pub fn expect(&mut self, units: usize) {
        let units = units.min(self.limit);
        if units > self.end {
            let (at, size) = (self.end, units - self.end);
            self.end = units;
            self.give(at, size);
        }
    }

    /// Takes the lowest `size` units that are free side by side.
    pub fn take_low(&mut self, size: usize) -> Option<usize> {
        match self.free.iter().find(|(_, free)| **free >= size).map(|(at, free)| (*at, *free)) {
            Some((at, free)) => {
                self.free.remove(&at);
                if free > size {
                    self.free.insert(at + size, free - size);
                }
                Some(at)
            }
            None => self.extend(size),
        }
    }

    /// Takes the highest `size` units that are free side by side, below the end if there are any.
    pub fn take_high(&mut self, size: usize) -> Option<usize> {
        match self.free.iter().rfind(|(_, free)| **free >= size).map(|(at, free)| (*at, *free)) {
            Some((at, free)) => {
                match free > size {
                    true => self.free.insert(at, free - size),
                    false => self.free.remove(&at),
                };
                Some(at + free - size)
            }
            None => self.extend(size),
        }
    }

    /// Takes `size` units at the end, those that are free before it among them.
    fn extend(&mut self, size: usize) -> Option<usize> {
        let before = self.free.last_key_value().filter(|(at, free)| **at + **free == self.end).map(|(at, _)| *at);
        let at = before.unwrap_or(self.end);
        let end = at.checked_add(size).filter(|end| *end <= self.limit)?;
        if before.is_some() {
            self.free.remove(&at);
        }
        self.end = end;
        Some(at)
    }

    /// Gives back `size` units at `at`, as they were taken.
    pub fn give(&mut self, at: usize, size: usize) {
        let (mut at, mut size) = (at, size);
        if let Some((&before, &free)) = self.free.range(..at).next_back()
            && before + free == at
        {
            (at, size) = (before, free + size);
        }
        if let Some(after) = self.free.remove(&(at + size)) {
            size += after;
        }
        self.free.insert(at, size);
    }

    /// The free parts, each where it starts and how long it is; the end comes down to the last unit
    /// that is taken.
    pub fn trim(&mut self) -> Vec<(usize, usize)> {
        let all = self.free.iter().map(|(at, size)| (*at, *size)).collect();
        if let Some((&at, &size)) = self.free.last_key_value()
            && at + size == self.end
        {
            self.free.remove(&at);
            self.end = at;
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_is_low_and_what_stays_is_high() {
        let mut p = FreeList::new(100);
        let [a, b, c] = [30, 20, 30].map(|n| p.take_low(n).unwrap());
        assert_eq!([a, b, c, p.end], [0, 30, 50, 80]);
        // The room of a dead activation is filled from above, and what lives on next to it stays.
        p.give(b, 20);
        assert_eq!(p.take_high(5), Some(45));
        p.give(c, 30);
        assert_eq!([p.take_high(20), p.take_high(10)], [Some(60), Some(50)]);
        assert_eq!(p.take_low(15), Some(30));
        assert_eq!(p.end, 80);
    }

    #[test]
    fn what_stays_is_put_below_an_end_that_is_expected() {
        let mut p = FreeList::new(100);
        assert_eq!(p.take_low(10), Some(0));
        p.expect(60);
        p.expect(50);
        assert_eq!((p.end, p.take_high(20), p.take_low(15)), (60, Some(40), Some(10)));
        // More than expected goes on at the end.
        assert_eq!((p.take_low(20), p.take_high(15), p.end), (Some(60), Some(25), 80));
        p.expect(1000);
        assert_eq!(p.end, 100);
    }

    #[test]
    fn neighbours_are_joined_and_the_end_takes_what_is_free_before_it() {
        let mut p = FreeList::new(100);
        let at = [10, 10, 10, 10].map(|n| p.take_low(n).unwrap());
        [at[1], at[3], at[2]].into_iter().for_each(|at| p.give(at, 10));
        assert_eq!(p.take_low(40), Some(10));
        assert_eq!(p.end, 50);
        assert_eq!((p.take_low(51), p.take_high(51)), (None, None));
        assert_eq!(p.take_high(50), Some(50));
        p.give(10, 40);
        p.give(50, 50);
        assert_eq!(p.trim(), [(10, 90)]);
        assert_eq!(p.end, 10);
        p.give(0, 10);
        assert_eq!(p.trim(), [(0, 10)]);
        assert_eq!((p.end, p.take_low(100)), (0, Some(0)));
    }

    #[test]
    fn no_two_ever_overlap_and_all_of_it_comes_back() {
        let mut p = FreeList::new(4000);
        let mut taken: Vec<(usize, usize)> = Vec::new();
        let mut state = 1u32;
        let mut draw = |n: usize| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as usize % n
        };
        let mut refused = 0;
        for _ in 0..20_000 {
            if !taken.is_empty() && draw(2) == 0 {
                let (at, size) = taken.swap_remove(draw(taken.len()));
                p.give(at, size);
                continue;
            }
            let size = 1 + draw(200);
            let Some(at) = (if draw(3) == 0 { p.take_high(size) } else { p.take_low(size) }) else {
                refused += 1;
                continue;
            };
            assert!(at + size <= p.end && p.end <= 4000);
            assert!(taken.iter().all(|(a, n)| at + size <= *a || a + n <= at), "{at} and {size} overlap");
            taken.push((at, size));
            // Taken and free together are everything below the end.
            let free: usize = p.free.values().sum();
            assert_eq!(free + taken.iter().map(|(_, n)| n).sum::<usize>(), p.end);
            assert!(p.free.iter().zip(p.free.iter().skip(1)).all(|((a, n), (b, _))| a + n < *b));
        }
        assert!(refused > 0, "the limit was never met");
        taken.into_iter().for_each(|(at, size)| p.give(at, size));
        p.trim();
        assert_eq!((p.end, p.free.len()), (0, 0));
    }

    /// A backward pass in small: layers leave activations, and gradients of about their size take
    /// their place.
    #[test]
    fn gradients_take_the_room_of_activations() {
        let mut p = FreeList::new(1 << 20);
        let mut first = 0;
        for step in 0..4 {
            let layers: Vec<[usize; 3]> = (0..30).map(|_| [40, 7, 70].map(|n| p.take_low(n).unwrap())).collect();
            let logits = p.take_low(900).unwrap();
            let head = p.take_high(1000).unwrap();
            p.give(logits, 900);
            let mut gradients = vec![(head, 1000)];
            for layer in layers.into_iter().rev() {
                let passing = [70, 50, 20].map(|n| (p.take_low(n).unwrap(), n));
                gradients.extend([70, 13, 25, 9].map(|n| (p.take_high(n).unwrap(), n)));
                layer.into_iter().zip([40, 7, 70]).chain(passing).for_each(|(at, n)| p.give(at, n));
            }
            // 30 layers of 117, logits, the head's gradient: nothing came on top.
            let live = 30 * 117 + 1000 + 900;
            assert!(p.end <= live, "step {step}: {} for {live}", p.end);
            first = if step == 0 { p.end } else { first };
            assert_eq!(p.end, first, "step {step}");
            gradients.into_iter().for_each(|(at, n)| p.give(at, n));
        }
    }
}

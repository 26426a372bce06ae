//! What is so simple that only memory limits it.

use rayon::prelude::*;

const CHUNK: usize = 1 << 14;

/// `x += y`.
pub fn add(x: &mut [f32], y: &[f32]) {
    x.par_chunks_mut(CHUNK).zip(y.par_chunks(CHUNK)).for_each(|(x, y)| x.iter_mut().zip(y).for_each(|(x, y)| *x += y));
}

/// `x = 0`.
pub fn clear(x: &mut [f32]) {
    x.par_chunks_mut(16 * CHUNK).for_each(|x| x.fill(0.0));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::noise;

    #[test]
    fn every_element_is_reached() {
        let n = 17 * CHUNK + 3;
        let (mut x, y) = (noise(n, 1), noise(n, 2));
        let want: Vec<f32> = x.iter().zip(&y).map(|(x, y)| x + y).collect();
        add(&mut x, &y);
        assert_eq!(x, want);
        clear(&mut x);
        assert!(x.iter().all(|x| *x == 0.0));
    }
}

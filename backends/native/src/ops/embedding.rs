//! Token embedding: rows gathered by id, gradients scattered back in a fixed order.

use rayon::prelude::*;

use karat_kernels::memory::mmap::Elements;

/// `y[t] = table[ids[t]]` for `table` `[vocab, width]`, widened to f32. Ids must be below `vocab`.
pub fn gather(table: Elements<'_>, width: usize, ids: &[u32], y: &mut [f32]) {
    y.par_chunks_mut(width).with_min_len(64).zip(ids).for_each(|(y, &id)| {
        let start = id as usize * width;
        table.slice(start..start + width).widen(y);
    });
}

/// `dtable[ids[t]] += dy[t]`, the tokens of an id in their order.
pub fn scatter_add(dtable: &mut [f32], width: usize, ids: &[u32], dy: &[f32]) {
    let mut order: Vec<(u32, u32)> = ids.iter().zip(0..).map(|(&id, t)| (id, t)).collect();
    order.sort_unstable();
    let mut jobs = Vec::new();
    let (mut rest, mut first_row) = (dtable, 0);
    for group in order.chunk_by(|a, b| a.0 == b.0) {
        let id = group[0].0 as usize;
        let (_, tail) = rest.split_at_mut((id - first_row) * width);
        let (row, tail) = tail.split_at_mut(width);
        jobs.push((row, group));
        (rest, first_row) = (tail, id + 1);
    }
    jobs.into_par_iter().with_min_len(16).for_each(|(row, group)| {
        for &(_, t) in group {
            row.iter_mut().zip(&dy[t as usize * width..][..width]).for_each(|(r, d)| *r += d);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::noise;

    #[test]
    fn scatter_is_the_transpose_of_gather() {
        let (vocab, width, ids) = (7, 5, [3u32, 0, 3, 6, 3]);
        let (table, dy) = (noise(vocab * width, 1), noise(ids.len() * width, 2));
        let mut y = vec![0f32; ids.len() * width];
        gather(Elements::F32(&table), width, &ids, &mut y);
        let mut want = vec![0f32; vocab * width];
        for (t, &id) in ids.iter().enumerate() {
            assert_eq!(y[t * width..][..width], table[id as usize * width..][..width]);
            for i in 0..width {
                want[id as usize * width + i] += dy[t * width + i];
            }
        }
        let mut got = vec![0f32; vocab * width];
        scatter_add(&mut got, width, &ids, &dy);
        assert_eq!(got, want);
    }
}

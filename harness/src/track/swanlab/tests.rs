use proptest::prelude::*;

use super::*;
use crate::track::reader;

fn logged(records: &[Vec<u8>]) -> Vec<u8> {
    let mut log = Log::new(Vec::new());
    log.begin().unwrap();
    records.iter().for_each(|record| log.put(record).unwrap());
    assert_eq!(log.position, log.out.len());
    log.out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn records_are_read_back_wherever_a_block_ends(
        left in 0_usize..=8,
        next in prop::collection::vec(any::<u8>(), 0..64),
        long in 0_usize..100_000,
    ) {
        // The first record leaves so many bytes of the first block.
        let first = vec![7; BLOCK - HEADER - HEADER - left];
        let records = [first, next, vec![9; long], b"last".to_vec()];
        prop_assert_eq!(reader::log_records(&logged(&records)), records);
    }
}

#[test]
fn a_record_as_long_as_the_rest_of_a_block_is_one_piece() {
    for (long, pieces) in [(BLOCK - 2 * HEADER, 1), (BLOCK - 2 * HEADER + 1, 2), (2 * BLOCK - 3 * HEADER, 2)] {
        let file = logged(&[vec![1; long]]);
        assert_eq!(file.len(), HEADER + long + pieces * HEADER, "{long}");
    }
}

#[test]
fn a_day_is_that_of_the_calendar() {
    for (seconds, written) in [
        (0, "19700101_000000"),
        (951_782_399, "20000228_235959"),
        (951_782_400, "20000229_000000"),
        (1_796_063_413, "20261130_183013"),
        (4_107_542_399, "21000228_235959"),
        (4_107_542_400, "21000301_000000"),
    ] {
        assert_eq!(calendar(Duration::from_secs(seconds)), written);
    }
}

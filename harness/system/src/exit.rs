//! Exit codes of the command line: one table, of which its help is made.

/// All went well; a gate that passes.
pub const GOOD: u8 = 0;
/// What a user did not cause: I/O, a full disk, a bug.
pub const FAILURE: u8 = 1;
/// The command line or the suite file makes no sense.
pub const USAGE: u8 = 2;
/// A regression against a baseline; backends that disagree.
pub const REGRESSION: u8 = 3;
/// A gate that its items cannot decide.
pub const INCONCLUSIVE: u8 = 4;
/// A backend that cannot be loaded, or failed.
pub const BACKEND: u8 = 5;
/// Broken input.
pub const DATA: u8 = 6;
/// SIGINT: 128 and the signal's number, as of a process that the signal ended.
pub const INTERRUPTED: u8 = 130;

/// Every code with its meaning, in the words of the help.
pub const TABLE: [(u8, &str); 8] = [
    (GOOD, "good"),
    (FAILURE, "unexpected failure"),
    (USAGE, "the command line or the suite file makes no sense"),
    (
        REGRESSION,
        "regression (karat check, karat watch --fail-fast); backends that disagree (karat compare --backends)",
    ),
    (INCONCLUSIVE, "inconclusive (karat check)"),
    (BACKEND, "a backend cannot be loaded, or it failed"),
    (DATA, "bad input data"),
    (INTERRUPTED, "interrupted (Ctrl-C); run the same command again to go on. 143 by SIGTERM, 129 by SIGHUP"),
];

/// The table as lines of a help text.
pub fn help() -> String {
    TABLE.iter().map(|(code, meaning)| format!("  {code:3}  {meaning}\n")).collect()
}

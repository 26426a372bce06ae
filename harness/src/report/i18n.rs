//! A report's language, English or Chinese: sentences and labels, and the names that data gives to
//! things.

mod labels;
pub(super) mod sentences;
pub(super) mod terms;
pub(super) mod timeline;

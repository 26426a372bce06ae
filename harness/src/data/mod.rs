//! From files to token ids: records, splits, templates, tokens and loss masks, audit.
//!
//! The way of a row: [`read::read_rows`] reads it and says which lines are broken, [`split::split`]
//! puts it into training, validation or test exactly as the Python recipe does,
//! [`template::ChatTemplate`] turns it into text, [`examples::Formatter`] into token ids with a
//! loss mask, and [`audit::audit`] looks for duplicates and leaks. The order in which rows are
//! trained on is [`crate::train::plan`]'s.

pub mod audit;
pub mod bpe;
pub mod companions;
pub mod csv;
pub mod examples;
pub mod fields;
pub mod files;
pub mod format;
mod gather;
mod layout;
mod lines;
pub mod message;
pub mod notes;
#[cfg(feature = "parquet")]
mod parquet;
pub mod pretraining;
pub mod read;
pub mod record;
pub mod split;
pub mod template;
pub mod tokens;
mod unpack;
pub(crate) mod untrusted;

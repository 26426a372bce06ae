//! From files to token ids: records, splits, templates, loss masks, batch order.
pub mod bpe;

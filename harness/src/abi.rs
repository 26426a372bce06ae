//! The plugin boundary, laid out in C.

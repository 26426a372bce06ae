//! The report: data first, pages as pure functions of it.

//! What every backend must satisfy.

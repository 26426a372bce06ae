//! GEMMs with the operation that follows fused in: applied while the output is in registers or in
//! the cache.

pub mod linear_log_prob;
pub mod softmax;
pub mod swiglu;

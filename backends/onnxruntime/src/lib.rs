//! The onnxruntime backend.

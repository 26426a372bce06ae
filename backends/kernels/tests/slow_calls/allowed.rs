//! The functions that are looked for, and where they may be called.

/// Functions of the C library and of the compiler's own for what an instruction does, or a few in a
/// row in every lane of a vector. `memcpy` and its kin are not among them: long copies are theirs
/// to make.
pub const SLOW: &[&str] = &[
    // One instruction of FMA.
    "fma",
    "fmaf",
    // One instruction of SSE 4.1; `round`, whose ties go away from zero, two more.
    "ceil",
    "ceilf",
    "floor",
    "floorf",
    "nearbyint",
    "nearbyintf",
    "rint",
    "rintf",
    "round",
    "roundeven",
    "roundevenf",
    "roundf",
    "trunc",
    "truncf",
    // One of SSE2, and a comparison.
    "fmax",
    "fmaxf",
    "fmaximum_num",
    "fmaximum_numf",
    "fmin",
    "fminf",
    "fminimum_num",
    "fminimum_numf",
    "sqrt",
    "sqrtf",
    // One of F16C, or two of AVX2 for bf16.
    "__extendbfsf2",
    "__extendhfsf2",
    "__gnu_f2h_ieee",
    "__gnu_h2f_ieee",
    "__truncdfbf2",
    "__truncdfhf2",
    "__truncsfbf2",
    "__truncsfhf2",
    // A few of AVX-512, or of a cheap sequence.
    "__ashlti3",
    "__divti3",
    "__floattidf",
    "__floattisf",
    "__floatuntidf",
    "__floatuntisf",
    "__lshrti3",
    "__modti3",
    "__muldi3",
    "__multi3",
    "__popcountdi2",
    "__udivti3",
    "__umodti3",
    "fmod",
    "fmodf",
    // Not one instruction, but in a loop over elements a polynomial in vectors
    // (`karat_kernels::simd`).
    "acos",
    "asin",
    "atan",
    "atan2",
    "cbrt",
    "cos",
    "cosf",
    "erf",
    "erff",
    "exp",
    "exp10",
    "exp2",
    "exp2f",
    "expf",
    "expm1",
    "expm1f",
    "hypot",
    "ldexp",
    "log",
    "log10",
    "log10f",
    "log1p",
    "log1pf",
    "log2",
    "log2f",
    "logf",
    "pow",
    "powf",
    "sin",
    "sinf",
    "tan",
    "tanf",
    "tanh",
    "tanhf",
];

/// A call that may be there.
pub struct Allowed {
    /// In functions whose names contain this.
    pub within: &'static str,
    /// The functions called; all that are looked for, where there are none.
    pub calls: &'static [&'static str],
    /// So many of one name in one function at most.
    pub most: usize,
    /// Why it costs nothing that anybody would notice.
    pub reason: &'static str,
}

const EXP: &[&str] = &["exp", "expf"];
const LOG: &[&str] = &["log", "logf"];

/// The known calls. Names of the standard library and of rayon stand for whatever closure they were
/// compiled with; the compiler leaves that out of their names, so that numbers keep others from
/// slipping in.
pub const ALLOWED: &[Allowed] = &[
    Allowed {
        within: "karat_kernels::simd::without_vectors",
        calls: &[],
        most: usize::MAX,
        reason: "runs on CPUs without AVX2 alone, which have no other way",
    },
    Allowed {
        within: "pulp::x86::",
        calls: LOG,
        most: 2,
        reason: "attention in f32: the logarithm of a sum of exponentials, once for every query of a head",
    },
    Allowed {
        within: "karat_kernels::gemm::amx::task",
        calls: LOG,
        most: 2,
        reason: "attention in bf16: the logarithm of a sum of exponentials, once for every query of a head",
    },
    // The same where that is expanded into the loop over its tasks.
    Allowed {
        within: "rayon::iter::for_each::ForEachConsumer",
        calls: LOG,
        most: 2,
        reason: "attention in bf16: the logarithm of a sum of exponentials, once for every query of a head",
    },
    Allowed {
        within: "pulp::x86::",
        calls: EXP,
        most: 1,
        reason: "log-probabilities: once where a block of the vocabulary has a larger logit than those before it",
    },
    Allowed {
        within: "karat_kernels::gemm::fused::linear_log_prob::",
        calls: &["exp", "log"],
        most: 3,
        reason: "log-probabilities: once for every block of the vocabulary and every token",
    },
    Allowed {
        within: "core::ops::function::",
        calls: &["exp", "log"],
        most: 1,
        reason: "the loss: once for every token",
    },
    Allowed {
        within: "karat_native::ops::adamw::update",
        calls: &["pow"],
        most: 2,
        reason: "corrections of bias: once a step and tensor",
    },
    Allowed {
        within: "karat_native::cuda::",
        calls: &["pow", "round"],
        most: 2,
        reason: "arguments of a kernel on another device: once a call",
    },
    Allowed {
        within: "karat_native::ops::dropout::Mask::draw",
        calls: &["round"],
        most: 1,
        reason: "the threshold of a mask: once a call",
    },
    Allowed {
        within: "Iterator>::try_fold",
        calls: &["round"],
        most: 3,
        reason: "how the queries of a row are shared out among tasks: a few times a row",
    },
    Allowed {
        within: "karat_model::",
        calls: &[],
        most: usize::MAX,
        reason: "reads a model's files and makes its tables when a model is opened; draws a token in f64",
    },
    Allowed {
        within: "karat_kernels::philox::",
        calls: &["cos", "log"],
        most: 1,
        reason: "random initial weights: when a model is opened",
    },
    Allowed {
        within: "karat_backend::state::",
        calls: &["ceil"],
        most: 1,
        reason: "the number of an epoch: once a checkpoint",
    },
    Allowed {
        within: "core::iter::adapters::map::Map<I,F>",
        calls: &["cos", "log", "pow", "trunc"],
        most: 2,
        reason: "random initial weights, angles of positions, numbers of a configuration: when a model is opened",
    },
    Allowed {
        within: "rayon::iter::plumbing::Folder::consume_iter",
        calls: &["cos", "log", "sin"],
        most: 1,
        reason: "random initial weights, angles of positions: when a model is opened or exported",
    },
    Allowed {
        within: "SpecFromIter",
        calls: &["exp", "pow"],
        most: 3,
        reason: "sampling weighs a vocabulary in f64, and other exponentials would draw other tokens from a seed; frequencies of positions",
    },
    Allowed {
        within: "StepByImpl<I>>::spec_fold",
        calls: EXP,
        most: 3,
        reason: "log-probabilities: once for every block of the vocabulary and every token",
    },
    Allowed {
        within: "karat_onnxruntime::logits::log_probability",
        calls: &["log"],
        most: 1,
        reason: "the logarithm of a sum of exponentials: once for every token that is scored",
    },
    // An export to int4 runs the model once over some text to weigh channels: two exponentials of
    // the C library, whose bits choose the integers. The names are those of rayon's loop around
    // them. Where a closure is expanded in its caller, its two calls and the one of the other half
    // are seen in one function.
    Allowed { within: "rayon::iter::plumbing::bridge", calls: EXP, most: 4, reason: CALIBRATION },
    Allowed { within: "rayon_core::join::join_context", calls: EXP, most: 4, reason: CALIBRATION },
    Allowed { within: "core::ops::function::impls", calls: EXP, most: 4, reason: CALIBRATION },
    Allowed { within: "rayon::iter::for_each::ForEachConsumer", calls: EXP, most: 4, reason: CALIBRATION },
    Allowed { within: "karat_onnxruntime::export::calibrate::", calls: &["expf", "pow"], most: 4, reason: CALIBRATION },
];

const CALIBRATION: &str =
    "onnxruntime, calibration of an export: once a model, and other exponentials would choose other integers";

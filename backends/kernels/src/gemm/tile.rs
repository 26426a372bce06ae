//! One tile of a GEMM: the sizes that packed operands and microkernels agree on, and where a tile
//! lies in memory.

/// Units of the inner dimension that vectors sum before they are added to the output.
pub const DEPTH: usize = 512;
/// Columns that a panel of the packed right operand has at most.
pub const PANEL: usize = 64;
/// Lanes of a vector.
pub const LANES: usize = 16;

/// Element type of the operands of a GEMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Precision {
    /// f32 operands, f32 sums.
    #[default]
    F32,
    /// Operands rounded to bf16 (to nearest, ties to even), f32 sums.
    Bf16,
}

impl Precision {
    /// Elements of the inner dimension in a unit.
    pub fn per_unit(self) -> usize {
        match self {
            Precision::F32 => 1,
            Precision::Bf16 => 2,
        }
    }
}

/// A tile's place in memory.
#[derive(Clone, Copy)]
pub struct Tile {
    /// Units of the inner dimension.
    pub units: usize,
    /// The left operand's first row.
    pub a: *const u32,
    /// Units from one of its rows to the next.
    pub a_stride: usize,
    /// The packed right operand, `[units][vectors * LANES]`.
    pub b: *const u32,
    /// Vectors of columns.
    pub vectors: usize,
    /// Columns that are written, at most `vectors * LANES`.
    pub columns: usize,
    /// The output's first element.
    pub c: *mut f32,
    /// Elements from one of its rows to the next.
    pub c_stride: usize,
    /// The sum is multiplied by this, then added.
    pub alpha: f32,
    /// The output holds something to add to.
    pub add: bool,
}

/// Units that the chains of a tile's sums end with, of operands of their own: a second term of few
/// units costs those units alone, and no second pass over the output.
#[derive(Clone, Copy)]
pub struct Tail {
    /// Units of the inner dimension.
    pub units: usize,
    /// The left operand's first row.
    pub a: *const u32,
    /// Units from one of its rows to the next.
    pub a_stride: usize,
    /// The packed right operand, `[units][vectors * LANES]`.
    pub b: *const u32,
}

impl Tail {
    /// Nothing more.
    pub const NONE: Tail = Tail { units: 0, a: std::ptr::null(), a_stride: 0, b: std::ptr::null() };
}

/// A right operand that is multiplied where it lies: rows of bf16.
#[derive(Clone, Copy)]
pub struct Unpacked {
    /// The first row's first column.
    pub first: *const u16,
    /// Elements from one row to the next.
    pub stride: usize,
    /// Rows.
    pub along: usize,
}

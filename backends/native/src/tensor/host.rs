//! Numbers that the host decides about a pass: ids, where rows start, angles. A device keeps a copy
//! beside them.

use std::any::Any;
use std::fmt;
use std::ops::Deref;
use std::sync::OnceLock;

use karat_backend::BackendError;
use karat_model::Rope;

use crate::error::Result;
use crate::ops::rope::RotaryTable;

/// A device's copy of numbers of the host, made at its first use.
#[derive(Default)]
pub struct DeviceCopy(OnceLock<Box<dyn Any + Send + Sync>>);

impl DeviceCopy {
    /// One that is there already.
    pub fn made<T: Any + Send + Sync>(copy: T) -> Self {
        DeviceCopy(OnceLock::from(Box::new(copy) as Box<dyn Any + Send + Sync>))
    }

    /// The copy, which `make` makes if there is none.
    ///
    /// # Errors
    /// Of `make`; or if the copy is another device's.
    pub fn get<T: Any + Send + Sync>(&self, make: impl FnOnce() -> Result<T>) -> Result<&T> {
        let copy = match self.0.get() {
            Some(copy) => copy,
            None => {
                let made = make()?;
                self.0.get_or_init(|| Box::new(made))
            }
        };
        copy.downcast_ref().ok_or_else(|| BackendError::failed("a device's numbers reached another device"))
    }
}

impl fmt::Debug for DeviceCopy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.get().is_some() { "on a device" } else { "on the host alone" })
    }
}

/// Whole numbers that the host decides and kernels read: ids, positions, places.
#[derive(Debug, Default)]
pub struct Indices {
    host: Vec<u32>,
    copy: DeviceCopy,
}

impl Indices {
    /// Numbers that are on a device already: `host`, or what kernels make of them.
    pub fn placed(host: Vec<u32>, copy: DeviceCopy) -> Self {
        Indices { host, copy }
    }
    /// The device's copy.
    pub fn copy(&self) -> &DeviceCopy {
        &self.copy
    }
}

impl From<Vec<u32>> for Indices {
    fn from(host: Vec<u32>) -> Self {
        Indices { host, copy: DeviceCopy::default() }
    }
}

impl Deref for Indices {
    type Target = [u32];
    fn deref(&self) -> &[u32] {
        &self.host
    }
}

/// Where rows packed back to back start among the tokens; one more entry than rows.
#[derive(Debug, Default)]
pub struct Starts {
    host: Vec<usize>,
    copy: DeviceCopy,
}

impl Starts {
    /// The device's copy.
    pub fn copy(&self) -> &DeviceCopy {
        &self.copy
    }
}

impl From<Vec<usize>> for Starts {
    fn from(host: Vec<usize>) -> Self {
        Starts { host, copy: DeviceCopy::default() }
    }
}

impl Deref for Starts {
    type Target = [usize];
    fn deref(&self) -> &[usize] {
        &self.host
    }
}

/// Cosines and sines of the rotary embedding.
#[derive(Debug, Default)]
pub struct Angles {
    table: RotaryTable,
    copy: DeviceCopy,
}

impl Angles {
    /// Those of the first `positions`: [`RotaryTable::new`].
    pub fn new(rope: &Rope, head_dim: usize, positions: usize) -> Self {
        Angles { table: RotaryTable::new(rope, head_dim, positions), copy: DeviceCopy::default() }
    }
    /// Positions in the table.
    pub fn positions(&self) -> usize {
        self.table.positions()
    }
    /// The table on the host.
    pub fn table(&self) -> &RotaryTable {
        &self.table
    }
    /// The device's copy.
    pub fn copy(&self) -> &DeviceCopy {
        &self.copy
    }
}

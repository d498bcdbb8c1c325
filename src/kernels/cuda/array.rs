//! Arrays of numbers on the device, as passed to the operations, and the arguments of kernels.

use std::ffi::c_void;
use std::marker::PhantomData;

use super::library::Address;
use crate::error::{Error, Result};
use crate::kernels::Stored;

/// `len` numbers on the device. Borrows its memory; whoever divides a buffer has to ensure that arrays do not overlap.
#[derive(Debug, Clone, Copy)]
pub struct Array<'a> {
    pub(super) address: Address,
    pub(super) len: usize,
    pub(super) dtype: Stored,
    pub(super) memory: PhantomData<&'a ()>,
}

/// `len` unsigned 32-bit integers on the device: token ids, rows, positions.
#[derive(Debug, Clone, Copy)]
pub struct Indices<'a> {
    pub(super) address: Address,
    pub(super) len: usize,
    /// One more than the largest index.
    pub(super) end: u32,
    pub(super) memory: PhantomData<&'a ()>,
}

impl<'a> Array<'a> {
    /// The number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The format of the numbers.
    pub fn dtype(&self) -> Stored {
        self.dtype
    }

    pub(super) fn bytes(&self) -> usize {
        self.len * self.dtype.size_in_bytes() as usize
    }

    /// The elements `begin .. begin + len`.
    pub fn part(&self, begin: usize, len: usize) -> Result<Array<'a>> {
        if begin.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(Error::new(format!("numbers {begin} to {begin} + {len} do not lie within {} on the GPU", self.len)));
        }
        Ok(Array { address: self.address + begin as u64 * self.dtype.size_in_bytes(), len, ..*self })
    }

    /// The words `begin .. begin + len`, as integers below `end`.
    pub fn indices(&self, begin: usize, len: usize, end: u32) -> Result<Indices<'a>> {
        let Array { address, len, memory, .. } = self.part(begin, len)?;
        self.expect("whole numbers", self.len, Stored::F32)?;
        Ok(Indices { address, len, end, memory })
    }

    /// Returns an error unless the array holds `len` numbers of `dtype`.
    pub(super) fn expect(&self, what: &str, len: usize, dtype: Stored) -> Result<()> {
        if (self.len, self.dtype) != (len, dtype) {
            return Err(Error::new(format!("{what}: expected {len} numbers in {dtype}, found {} in {}", self.len, self.dtype)));
        }
        Ok(())
    }

    pub(super) fn argument(&self) -> Argument {
        Argument::Pointer(self.address)
    }
}

impl<'a> Indices<'a> {
    /// The number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements `begin .. begin + len`.
    pub fn part(&self, begin: usize, len: usize) -> Result<Indices<'a>> {
        if begin.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(Error::new(format!("indices {begin} to {begin} + {len} do not lie within {} on the GPU", self.len)));
        }
        Ok(Indices { address: self.address + 4 * begin as u64, len, ..*self })
    }

    pub(super) fn argument(&self) -> Argument {
        Argument::Pointer(self.address)
    }
}

/// The bytes that an array takes in an arena: each array starts at a multiple of 256 bytes, for the widest accesses.
pub fn arena_bytes(len: usize, dtype: Stored) -> usize {
    (len * dtype.size_in_bytes() as usize).next_multiple_of(256)
}

/// An argument of a kernel.
#[derive(Clone, Copy)]
pub(super) enum Argument {
    U32(u32),
    U64(u64),
    F32(f32),
    Pointer(Address),
}

impl Argument {
    pub(super) fn pointer(&self) -> *mut c_void {
        match self {
            Argument::U32(value) => std::ptr::from_ref(value).cast_mut().cast(),
            Argument::U64(value) | Argument::Pointer(value) => std::ptr::from_ref(value).cast_mut().cast(),
            Argument::F32(value) => std::ptr::from_ref(value).cast_mut().cast(),
        }
    }
}

//! Helpers for custom ops: contiguous f32 slices as input, a newly written vector as output, gradients as tensors.

use std::mem::MaybeUninit;
use std::sync::{Mutex, MutexGuard, PoisonError};

use candle_core::{CpuStorage, DType, Device, Layout, Result, Shape, Storage, Tensor, WithDType, bail};
use rayon::prelude::*;

/// Converts a tensor to contiguous f32 on the CPU, as the fused kernels require. Copies only if necessary.
pub(crate) fn contiguous(x: &Tensor) -> crate::error::Result<Tensor> {
    if x.dtype() != DType::F32 || !x.device().is_cpu() {
        return Err(crate::error::Error::new(format!(
            "the fused kernels compute in f32 on the CPU, found {:?} on {:?}",
            x.dtype(),
            x.device().location()
        ))
        .cure("Use the reference kernels: --kernels reference."));
    }
    Ok(x.contiguous()?)
}

/// The elements of a contiguous f32 tensor inside a custom op.
pub(crate) fn floats<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    numbers(storage, layout)
}

fn numbers<'a, T: WithDType>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<T>()?[start..end]),
        None => bail!("a fused kernel got a strided tensor"),
    }
}

/// Calls `f` with the elements of a tensor; for backward passes, which get tensors in any layout.
pub(crate) fn with_floats<R>(x: &Tensor, f: impl FnOnce(&[f32]) -> R) -> Result<R> {
    with_numbers(x, f)
}

/// Like [`with_floats`], for a tensor of numbers of type `T`.
pub(crate) fn with_numbers<T: WithDType, R>(x: &Tensor, f: impl FnOnce(&[T]) -> R) -> Result<R> {
    let x = x.contiguous()?;
    let (storage, layout) = x.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => Ok(f(numbers(storage, layout)?)),
        _ => bail!("a fused kernel got a tensor that is not on the CPU"),
    }
}

/// The return value of a custom op's forward pass.
pub(crate) fn output(values: Vec<f32>, shape: impl Into<Shape>) -> (CpuStorage, Shape) {
    (CpuStorage::F32(values), shape.into())
}

/// A gradient with the shape of `like`.
pub(crate) fn gradient(values: Vec<f32>, like: &Tensor) -> Result<Tensor> {
    Tensor::from_vec(values, like.shape(), &Device::Cpu)
}

/// `a + b` on all cores; both tensors must have the same shape.
pub(crate) fn sum(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    const BLOCK: usize = 1 << 14;
    if a.shape() != b.shape() {
        bail!("tensors of {:?} and {:?} have no sum", a.dims(), b.dims());
    }
    let values = with_floats(a, |a| {
        with_floats(b, |b| {
            let fill = |sums: &mut [MaybeUninit<f32>]| {
                let blocks = sums.par_chunks_mut(BLOCK).zip(a.par_chunks(BLOCK)).zip(b.par_chunks(BLOCK));
                blocks.for_each(|((sums, a), b)| {
                    sums.iter_mut().zip(a).zip(b).for_each(|((sum, a), b)| {
                        sum.write(a + b);
                    });
                });
            };
            // SAFETY: all three have the same length, so each element of the sum is written.
            unsafe { written(a.len(), fill) }
        })
    })??;
    gradient(values, a)
}

/// The sums of the columns of `x [T, N]`, from the first row to the last.
pub(crate) fn column_sums(x: &Tensor) -> Result<Vec<f32>> {
    let n = x.dim(1)?;
    with_floats(x, |x| {
        let mut sums = vec![0.0; n];
        x.chunks_exact(n.max(1)).for_each(|row| sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += x));
        sums
    })
}

/// Locks a mutex even if it is poisoned: the panic has been reported already, and the numbers are still valid.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A vector of `n` numbers that `fill` writes, without zeroing the memory first.
///
/// # Safety
/// `fill` must write every element.
pub(crate) unsafe fn written<T>(n: usize, fill: impl FnOnce(&mut [MaybeUninit<T>])) -> Vec<T> {
    let mut values = Vec::with_capacity(n);
    fill(&mut values.spare_capacity_mut()[..n]);
    // SAFETY: the capacity is at least `n`, and `fill` has written all elements by contract.
    unsafe { values.set_len(n) };
    values
}

/// An array that all threads write to, each at different indices.
pub(crate) struct Shared<T> {
    start: *mut T,
    len: usize,
}

// SAFETY: all access is through `at`, whose callers guarantee that they do not overlap.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub(crate) fn new(values: &mut [MaybeUninit<T>]) -> Self {
        Self { start: values.as_mut_ptr().cast(), len: values.len() }
    }

    /// Shares an array that is already initialised.
    pub(crate) fn of(values: &mut [T]) -> Self {
        Self { start: values.as_mut_ptr(), len: values.len() }
    }

    /// A pointer to the `n` elements from `start` on.
    ///
    /// # Safety
    /// No other thread may use them at the same time, and they must be written before they are read.
    #[inline(always)]
    pub(crate) unsafe fn at(&self, start: usize, n: usize) -> *mut T {
        assert!(start + n <= self.len);
        // SAFETY: inside the array.
        unsafe { self.start.add(start) }
    }
}

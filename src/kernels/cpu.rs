//! What every custom op needs around its kernel: contiguous f32 slices in, a freshly written vector out, gradients as tensors.

use std::mem::MaybeUninit;
use std::sync::{Mutex, MutexGuard, PoisonError};

use candle_core::{CpuStorage, DType, Device, Layout, Result, Shape, Storage, Tensor, WithDType, bail};
use rayon::prelude::*;

/// The tensor as the fused kernels want it: contiguous f32 on the CPU. Copies only if it must.
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

/// Calls `f` with the elements of a tensor; used in backward passes, which get tensors in any layout.
pub(crate) fn with_floats<R>(x: &Tensor, f: impl FnOnce(&[f32]) -> R) -> Result<R> {
    with_numbers(x, f)
}

/// As [`with_floats`], for a tensor of numbers of type `T`.
pub(crate) fn with_numbers<T: WithDType, R>(x: &Tensor, f: impl FnOnce(&[T]) -> R) -> Result<R> {
    let x = x.contiguous()?;
    let (storage, layout) = x.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => Ok(f(numbers(storage, layout)?)),
        _ => bail!("a fused kernel got a tensor that is not on the CPU"),
    }
}

/// What a custom op's forward pass returns.
pub(crate) fn output(values: Vec<f32>, shape: impl Into<Shape>) -> (CpuStorage, Shape) {
    (CpuStorage::F32(values), shape.into())
}

/// A gradient of the given shape.
pub(crate) fn gradient(values: Vec<f32>, like: &Tensor) -> Result<Tensor> {
    Tensor::from_vec(values, like.shape(), &Device::Cpu)
}

/// `a + b` by all cores; tensors of one shape.
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
            // SAFETY: the three are equally long, so that each element of the sum is written.
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

/// A panic while the lock was held has been reported already; the numbers are still numbers.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A vector of `n` numbers written by `fill`, without a pass over the memory that only sets zeros.
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

/// An array that all threads write, each in places of its own.
pub(crate) struct Shared<T> {
    start: *mut T,
    len: usize,
}

// SAFETY: nothing is read or written through it but by `at`, whose callers promise not to meet.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub(crate) fn new(values: &mut [MaybeUninit<T>]) -> Self {
        Self { start: values.as_mut_ptr().cast(), len: values.len() }
    }

    /// Shares an array whose numbers are all written already.
    pub(crate) fn of(values: &mut [T]) -> Self {
        Self { start: values.as_mut_ptr(), len: values.len() }
    }

    /// The `n` elements from `start` on.
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

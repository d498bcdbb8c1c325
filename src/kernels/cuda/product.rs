//! `y = x W^T` or `y += x W^T` by cuBLASLt: f32 factors without TF32, bf16 factors accumulated in f32.

use std::collections::HashMap;
use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::{Arc, LazyLock, Mutex};

use super::array::Array;
use super::device::{Buffer, Device};
use super::library::{Algorithm, Choice, Opaque, check_blas};
use super::shape::{LARGE_TILE, Rows, Shape, TILE};
use crate::error::{Error, Result};
use crate::kernels::Stored;
use crate::kernels::cpu::lock;

/// A weight matrix `W [N, K]` on the device, row-major.
#[derive(Debug)]
pub struct Weight {
    buffer: Buffer,
    dtype: Stored,
    out_features: usize,
    in_features: usize,
}

const WORKSPACE_BYTES: usize = 32 << 20;
/// The limit on cached products; batches differ in length, so the number of shapes is unbounded.
const MAX_PRODUCTS: usize = 4096;

/// Constants of cublasLt.h and library_types.h.
mod constants {
    pub(super) const R_32F: i32 = 0;
    pub(super) const R_16BF: i32 = 14;
    pub(super) const COMPUTE_32F: i32 = 68;
    pub(super) const TRANSPOSE_A: i32 = 3;
    pub(super) const TRANSPOSED: i32 = 1;
    pub(super) const MAX_WORKSPACE_BYTES: i32 = 1;
    pub(super) const REDUCTION_SCHEMES: i32 = 3;
    /// Partial sums are added in the compute format, f32.
    pub(super) const REDUCE_IN_COMPUTE_TYPE: u32 = 2;
    /// The alignments of the factors, of what is added, and of the result.
    pub(super) const MIN_ALIGNMENTS: [i32; 4] = [5, 6, 7, 8];
}

impl Weight {
    /// Concatenates the parts `[N_i, K]`.
    pub fn new(parts: Vec<(Buffer, usize)>, in_features: usize, dtype: Stored) -> Result<Weight> {
        let device = Device::get()?;
        let out_features = parts.iter().map(|(_, rows)| rows).sum();
        if parts.len() == 1 {
            let buffer = parts.into_iter().next().map(|(buffer, _)| buffer);
            let buffer = buffer.ok_or_else(|| Error::new("a weight matrix was asked for with no parts"))?;
            return Ok(Weight { buffer, dtype, out_features, in_features });
        }
        let buffer = device.allocate(out_features * in_features * dtype.size_in_bytes() as usize)?;
        let mut first = 0;
        for (part, rows) in &parts {
            let len = rows * in_features;
            let to = buffer.array(first * in_features * dtype.size_in_bytes() as usize, len, dtype)?;
            device.copy(part.array(0, len, dtype)?, to)?;
            first += rows;
        }
        // The copies must finish before the parts are freed.
        device.synchronize()?;
        Ok(Weight { buffer, dtype, out_features, in_features })
    }

    /// `N`
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// `K`
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// The format of the weight.
    pub fn dtype(&self) -> Stored {
        self.dtype
    }

    /// The memory that it takes, in bytes.
    pub fn bytes(&self) -> usize {
        self.buffer.bytes()
    }

    /// The whole matrix, row-major.
    pub fn array(&self) -> Result<Array<'_>> {
        self.buffer.array(0, self.out_features * self.in_features, self.dtype)
    }
}

impl Device {
    /// `y [T, N] = x [T, K] W^T`, added to `y` if `adds`. `x` has the weight's format; `y` is f32, or bf16 if the weight is.
    pub fn multiply(&'static self, x: Array, weight: &Weight, y: Array, adds: bool, rows: Rows) -> Result<()> {
        let own = |array: Array| alignment(array.address);
        let (n, k) = (weight.out_features, weight.in_features);
        let n_rows = y.len() / n.max(1);
        let small = match rows {
            Rows::Together => return self.multiply_together(x, weight, y, adds, [own(x), own(y)]),
            Rows::InTiles => n_rows,
            Rows::InBothTiles { small } => small,
        };
        x.expect("the input of a product", n_rows * k, weight.dtype)?;
        if !small.is_multiple_of(TILE) || !n_rows.checked_sub(small).is_some_and(|large| large.is_multiple_of(LARGE_TILE)) {
            return Err(Error::new(format!(
                "{n_rows} rows of a product, {small} of them in small tiles, are not whole tiles of {TILE} and {LARGE_TILE}"
            )));
        }
        // The alignment that any tile may have, so that all tiles of one size use the same algorithm.
        let of_tiles =
            |array: Array, width: usize| own(array).min(alignment((TILE * width) as u64 * array.dtype.size_in_bytes()));
        let alignments = [of_tiles(x, k), of_tiles(y, n)];
        let small_tiles = (0..small).step_by(TILE).map(|begin| (begin, TILE));
        let large_tiles = (small..n_rows).step_by(LARGE_TILE).map(|begin| (begin, LARGE_TILE));
        for (begin, len) in small_tiles.chain(large_tiles) {
            let (x, y) = (x.part(begin * k, len * k)?, y.part(begin * n, len * n)?);
            self.multiply_together(x, weight, y, adds, alignments)?;
        }
        Ok(())
    }

    /// `alignments` are powers of two that divide the addresses of `x` and `y`.
    fn multiply_together(&'static self, x: Array, weight: &Weight, y: Array, adds: bool, alignments: [u32; 2]) -> Result<()> {
        let (n, k) = (weight.out_features, weight.in_features);
        let rows = y.len() / n.max(1);
        x.expect("the input of a product", rows * k, weight.dtype)?;
        if y.len() != rows * n || (y.dtype() == Stored::Bf16 && weight.dtype == Stored::F32) {
            return Err(Error::new(format!(
                "a product of {n} columns in {} has no room in {} in {}",
                weight.dtype,
                y.len(),
                y.dtype()
            )));
        }
        if rows == 0 {
            return Ok(());
        }
        let alignments = [alignment(weight.buffer.address), alignments[0], alignments[1]];
        let shape = Shape { rows, out_features: n, in_features: k, factors: weight.dtype, result: y.dtype(), adds, alignments };
        let product = Product::of(self, shape)?;
        let mut workspace = lock(&self.workspace);
        if workspace.is_none() {
            *workspace = Some(self.allocate(WORKSPACE_BYTES)?);
        }
        let workspace = workspace.as_ref().map_or(0, |buffer| buffer.address);
        let (alpha, beta) = (1f32, if adds { 1f32 } else { 0f32 });
        let label = || format!("product {n} x {k}");
        self.timed(&if self.profile.is_some() { label() } else { String::new() }, &|| {
            self.enter()?;
            let pointer = |address: u64| address as *mut c_void;
            let scalar = |number: &f32| std::ptr::from_ref(number).cast::<c_void>();
            // SAFETY: the layouts describe arrays whose lengths were checked above; alpha and beta are on the host, which is the default.
            check_blas("multiply", unsafe {
                (self.blas.multiply)(
                    self.blas_handle,
                    product.product,
                    scalar(&alpha),
                    pointer(weight.buffer.address),
                    product.weight,
                    pointer(x.address),
                    product.input,
                    scalar(&beta),
                    pointer(y.address),
                    product.output,
                    pointer(y.address),
                    product.output,
                    &product.algorithm,
                    pointer(workspace),
                    WORKSPACE_BYTES,
                    self.stream,
                )
            })
        })
    }
}

/// The largest power of two that divides an address, up to 256, which cuBLASLt assumes unless it is told otherwise.
fn alignment(address: u64) -> u32 {
    1 << address.trailing_zeros().min(8)
}

/// cuBLASLt's description of a product, and its algorithm. cuBLASLt is column-major: the row-major `W [N, K]` is `[K, N]` and has to be
/// transposed; `x` is `[K, T]` and `y` `[N, T]`. Descriptions are cached, because a decoding step makes hundreds of small products, each of
/// which would take as long to describe as to launch.
struct Product {
    device: &'static Device,
    product: Opaque,
    weight: Opaque,
    input: Opaque,
    output: Opaque,
    algorithm: Algorithm,
}

// SAFETY: once created, what the pointers refer to is only read, by whichever thread has the device.
unsafe impl Send for Product {}
// SAFETY: as above.
unsafe impl Sync for Product {}

/// The cached products; there is only one device.
static PRODUCTS: LazyLock<Mutex<HashMap<Shape, Arc<Product>>>> = LazyLock::new(Mutex::default);

impl Product {
    /// Returns the cached product for this shape, or creates it.
    fn of(device: &'static Device, shape: Shape) -> Result<Arc<Product>> {
        if let Some(product) = lock(&PRODUCTS).get(&shape) {
            return Ok(product.clone());
        }
        let mut product = Product::new(device, &shape)?;
        product.algorithm = product.choose(&shape)?;
        let product = Arc::new(product);
        let mut products = lock(&PRODUCTS);
        if products.len() >= MAX_PRODUCTS {
            products.clear();
        }
        products.insert(shape, product.clone());
        Ok(product)
    }

    fn new(device: &'static Device, shape: &Shape) -> Result<Product> {
        let format = |dtype: Stored| if dtype == Stored::F32 { constants::R_32F } else { constants::R_16BF };
        let (rows, n, k) = (shape.rows as u64, shape.out_features as u64, shape.in_features as u64);
        let [product, weight, input, output] = [null_mut(); 4];
        let mut made = Product { device, product, weight, input, output, algorithm: Algorithm::default() };
        let transposed = constants::TRANSPOSED;
        device.enter()?;
        // SAFETY: every handle is a variable of the type that the function writes; all objects are destroyed when `made` is dropped.
        unsafe {
            check_blas("describe", (device.blas.create_product)(&mut made.product, constants::COMPUTE_32F, constants::R_32F))?;
            let value = std::ptr::from_ref(&transposed).cast();
            check_blas("describe", (device.blas.set_product)(made.product, constants::TRANSPOSE_A, value, size_of::<i32>()))?;
            let layout = |handle: &mut Opaque, dtype, height: u64, width: u64| {
                check_blas("describe", (device.blas.create_layout)(handle, format(dtype), height, width, height as i64))
            };
            layout(&mut made.weight, shape.factors, k, n)?;
            layout(&mut made.input, shape.factors, k, rows)?;
            layout(&mut made.output, shape.result, n, rows)?;
        }
        Ok(made)
    }

    /// The algorithm that cuBLASLt expects to be the fastest.
    fn choose(&self, shape: &Shape) -> Result<Algorithm> {
        let blas = &self.device.blas;
        let (mut preference, mut choice, mut found) = (null_mut(), Choice::default(), 0);
        // SAFETY: as in `new`; the preference is destroyed at the end.
        let result = unsafe {
            check_blas("describe", (blas.create_preference)(&mut preference))?;
            let bytes = std::ptr::from_ref(&WORKSPACE_BYTES).cast();
            let mut code = (blas.set_preference)(preference, constants::MAX_WORKSPACE_BYTES, bytes, size_of::<usize>());
            let [weight, input, output] = shape.alignments;
            for (attribute, alignment) in constants::MIN_ALIGNMENTS.into_iter().zip([weight, input, output, output]) {
                if code == 0 {
                    code = (blas.set_preference)(preference, attribute, (&raw const alignment).cast(), size_of::<u32>());
                }
            }
            // Without this, split sums of a bf16 result would be added in bf16.
            if code == 0 && shape.result == Stored::Bf16 {
                let schemes = constants::REDUCE_IN_COMPUTE_TYPE;
                code = (blas.set_preference)(
                    preference,
                    constants::REDUCTION_SCHEMES,
                    (&raw const schemes).cast(),
                    size_of::<u32>(),
                );
            }
            if code == 0 {
                code = (blas.choose)(
                    self.device.blas_handle,
                    self.product,
                    self.weight,
                    self.input,
                    self.output,
                    self.output,
                    preference,
                    1,
                    &mut choice,
                    &mut found,
                );
            }
            (blas.destroy_preference)(preference);
            code
        };
        let what = || format!("find an algorithm for {shape:?}");
        check_blas(&what(), result)?;
        check_blas(&what(), if found == 0 { -1 } else { choice.state })?;
        Ok(choice.algorithm)
    }
}

impl Drop for Product {
    fn drop(&mut self) {
        let blas = &self.device.blas;
        // SAFETY: created by cuBLASLt, or null; destroyed once.
        unsafe {
            for layout in [self.weight, self.input, self.output] {
                if !layout.is_null() {
                    (blas.destroy_layout)(layout);
                }
            }
            if !self.product.is_null() {
                (blas.destroy_product)(self.product);
            }
        }
    }
}

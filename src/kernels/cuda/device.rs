//! The GPU: its memory, copies to and from it, kernel launches, and their timing.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::marker::PhantomData;
use std::path::Path;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use half::bf16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use super::array::{Argument, Array, Indices, arena_bytes};
use super::compile::{self, Source, Target};
use super::library::{self, Address, Blas, Driver, Opaque, Version, check_blas};
use super::shape::Rows;
use crate::error::{Error, Result};
use crate::kernels::Stored;
use crate::kernels::cpu::lock;

/// The GPU that everything runs on: the first that the driver shows (`CUDA_VISIBLE_DEVICES` selects it).
pub struct Device {
    driver: Driver,
    pub(super) blas: Blas,
    pub(super) blas_handle: Opaque,
    context: Opaque,
    pub(super) stream: Opaque,
    target: Target,
    /// The shared memory that a block may have, in bytes.
    pub(super) shared_bytes: u32,
    kernels: Mutex<HashMap<(Source, &'static str), Kernel>>,
    modules: Mutex<HashMap<Source, Handle>>,
    pub(super) workspace: Mutex<Option<Buffer>>,
    /// Host memory that can be reused.
    pinned: Mutex<Vec<PinnedBytes>>,
    /// The number of copies from and to [`Pinned`] that were enqueued; the first `copied` of them are known to be complete.
    copies: AtomicU64,
    copied: AtomicU64,
    allocated: AtomicU64,
    peak: AtomicU64,
    /// The milliseconds and calls of each kernel; only if `DIAGNOSE_CUDA_PROFILE` is set, because every launch then waits for its end.
    pub(super) profile: Option<Mutex<BTreeMap<String, (u64, f64)>>>,
}

// SAFETY: the handles may be used from any thread whose current context is `context`, which every entry point sets first.
unsafe impl Send for Device {}
// SAFETY: as above; the libraries lock where necessary.
unsafe impl Sync for Device {}

/// The numbers uploaded at a time.
const PIECE: usize = 8 << 20;

/// The variable that enables timing of every kernel, for which each waits for the previous one.
const PROFILE: &str = "DIAGNOSE_CUDA_PROFILE";

/// A pointer of the driver's that may be sent between threads.
#[derive(Debug, Clone, Copy)]
pub(super) struct Handle(Opaque);

// SAFETY: a module or function is only passed back to the driver, which accepts it from any thread.
unsafe impl Send for Handle {}

/// A loaded kernel.
#[derive(Clone, Copy)]
pub(super) struct Kernel {
    function: Handle,
    name: &'static str,
}

/// A number type as the device stores it; every bit pattern is valid.
trait Number: Copy + Send + Sync {
    const STORED: Stored;
}

impl Number for f32 {
    const STORED: Stored = Stored::F32;
}

impl Number for bf16 {
    const STORED: Stored = Stored::Bf16;
}

/// Memory on the device, freed when dropped.
#[derive(Debug)]
pub struct Buffer {
    pub(super) address: Address,
    bytes: usize,
}

/// The scratch memory of a batch: divides a buffer from its beginning on, and says which rows its products compute together.
pub struct Arena<'a> {
    buffer: &'a Buffer,
    used: Cell<usize>,
    rows: Rows,
}

/// Pinned host memory, which the device reads and writes while the host continues.
pub struct Pinned {
    bytes: Option<PinnedBytes>,
    /// The number of the last enqueued copy from or to this memory.
    last_copy: AtomicU64,
}

struct PinnedBytes {
    address: *mut u8,
    capacity: usize,
}

// SAFETY: the memory belongs to one `Pinned` at a time.
unsafe impl Send for PinnedBytes {}

/// A point in the stream.
pub struct Event {
    event: Opaque,
    /// The number of copies that were enqueued before it.
    copies: u64,
}

// SAFETY: the driver takes events from any thread.
unsafe impl Send for Event {}

/// Constants of cuda.h: `CUdevice_attribute`, `CUfunction_attribute`, `CUstream_flags`.
mod constants {
    pub(super) const CAPABILITY_MAJOR: i32 = 75;
    pub(super) const CAPABILITY_MINOR: i32 = 76;
    pub(super) const SHARED_BYTES_OF_A_BLOCK: i32 = 97;
    pub(super) const SHARED_BYTES: i32 = 1;
    pub(super) const MAX_DYNAMIC_SHARED_BYTES: i32 = 8;
    pub(super) const NON_BLOCKING: u32 = 1;
}

impl Device {
    /// Opens the device on the first call; an error says what is missing.
    pub fn get() -> Result<&'static Device> {
        static DEVICE: OnceLock<Result<Device>> = OnceLock::new();
        DEVICE.get_or_init(Device::open).as_ref().map_err(|error| Error::new(error.to_string()))
    }

    fn open() -> Result<Device> {
        let driver = library::driver()?;
        let mut ordinal = 0;
        let (mut context, mut stream, mut blas_handle) = (null_mut(), null_mut(), null_mut());
        let mut name = [0 as c_char; 256];
        let (mut attributes, mut version) = ([0; 3], 0);
        let wanted = [constants::CAPABILITY_MAJOR, constants::CAPABILITY_MINOR, constants::SHARED_BYTES_OF_A_BLOCK];
        // SAFETY: every pointer is to a variable of the type that the function writes, and `name` is as long as stated.
        unsafe {
            check(&driver, "start", (driver.init)(0))
                .map_err(|error| error.cure("Is there an NVIDIA GPU in this machine, and does `nvidia-smi` see it?"))?;
            check(&driver, "tell its version", (driver.version)(&mut version))?;
            check(&driver, "find a GPU", (driver.device)(&mut ordinal, 0))?;
            check(&driver, "name the GPU", (driver.device_name)(name.as_mut_ptr(), name.len() as c_int, ordinal))?;
            for (attribute, wanted) in attributes.iter_mut().zip(wanted) {
                check(&driver, "describe the GPU", (driver.attribute)(attribute, wanted, ordinal))?;
            }
            check(&driver, "open the GPU", (driver.retain_context)(&mut context, ordinal))?;
            check(&driver, "open the GPU", (driver.set_context)(context))?;
            check(&driver, "open a stream", (driver.create_stream)(&mut stream, constants::NON_BLOCKING))?;
        }
        // SAFETY: the driver terminates the name with a zero within its 256 bytes.
        let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
        let [major, minor, shared_bytes] = attributes;
        if major < 8 {
            return Err(Error::new(format!(
                "{name} has compute capability {major}.{minor}; the kernels need 8.0 or later (Ampere, Ada, Hopper, Blackwell)"
            ))
            .cure("Leave out --device cuda: the CPU takes its place."));
        }
        let version = Version(version);
        version.check()?;
        // Searched only if there is a suitable card, because the search may ask Python for its packages.
        let blas = library::blas(version)?;
        // SAFETY: the handle is a variable of the type that the function writes, and the thread's context is the device's.
        check_blas("start", unsafe { (blas.create)(&mut blas_handle) }).map_err(|error| error.cure(version.cure()))?;
        Ok(Device {
            driver,
            blas,
            blas_handle,
            context,
            stream,
            target: Target { name, capability: (major, minor), version },
            shared_bytes: shared_bytes as u32,
            kernels: Mutex::default(),
            modules: Mutex::default(),
            workspace: Mutex::default(),
            pinned: Mutex::default(),
            copies: AtomicU64::new(0),
            copied: AtomicU64::new(0),
            allocated: AtomicU64::new(0),
            peak: AtomicU64::new(0),
            profile: std::env::var_os(PROFILE).map(|_| Mutex::default()),
        })
    }

    /// The shared memory that a block may have, in bytes.
    pub fn shared_bytes(&self) -> usize {
        self.shared_bytes as usize
    }

    /// The driver's name of the device, for example `NVIDIA H100 80GB HBM3`.
    pub fn name(&self) -> &str {
        &self.target.name
    }

    /// The free and the total bytes of the device's memory.
    pub fn memory(&self) -> Result<(u64, u64)> {
        let (mut free, mut total) = (0, 0);
        self.enter()?;
        // SAFETY: both are variables of the type that the function writes.
        check(&self.driver, "ask for its memory", unsafe { (self.driver.memory)(&mut free, &mut total) })?;
        Ok((free as u64, total as u64))
    }

    /// The peak of the device memory that this program has held, without the driver's own.
    pub fn peak_bytes(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }

    /// Allocates device memory, which is freed when the buffer is dropped.
    pub fn allocate(&'static self, bytes: usize) -> Result<Buffer> {
        let mut address = 0;
        self.enter()?;
        // SAFETY: `address` is a variable of the type that the function writes.
        let code = unsafe { (self.driver.allocate)(&mut address, bytes.max(1)) };
        check(&self.driver, "allocate memory", code).map_err(|error| {
            let free = self.memory().map_or(0, |(free, _)| free);
            error.cure(format!(
                "{bytes} bytes were asked for, {free} are free on {}: give a smaller --max-len or model.",
                self.name()
            ))
        })?;
        let held = self.allocated.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
        self.peak.fetch_max(held, Ordering::Relaxed);
        Ok(Buffer { address, bytes })
    }

    /// Uploads `numbers` to a new buffer, in `dtype`.
    pub fn upload(&'static self, numbers: &[f32], dtype: Stored) -> Result<Buffer> {
        match dtype {
            Stored::F32 => self.upload_as(numbers, <[f32]>::copy_from_slice),
            Stored::Bf16 => self.upload_as(numbers, |to: &mut [bf16], from| to.convert_from_f32_slice(from)),
        }
    }

    /// Uploads `numbers` to a new buffer, unchanged.
    pub fn upload_bf16(&'static self, numbers: &[bf16]) -> Result<Buffer> {
        self.upload_as(numbers, <[bf16]>::copy_from_slice)
    }

    /// Uploads the `numbers` converted by `fill` to a new buffer. They pass through two pinned pieces: all cores fill one while the other
    /// is being copied.
    fn upload_as<F: Sync, T: Number>(
        &'static self,
        numbers: &[F],
        fill: impl Fn(&mut [T], &[F]) + Copy + Sync,
    ) -> Result<Buffer> {
        let size = size_of::<T>();
        let buffer = self.allocate(numbers.len() * size)?;
        let mut pieces = [None, None];
        for (index, piece) in numbers.chunks(PIECE).enumerate() {
            let mut pinned = match pieces[index % 2].take() {
                Some((pinned, sent)) => {
                    self.wait(&sent)?;
                    pinned
                }
                None => self.pinned(piece.len() * size)?,
            };
            pinned.fill(piece, fill)?;
            self.send(&pinned, buffer.array(index * PIECE * size, piece.len(), T::STORED)?)?;
            pieces[index % 2] = Some((pinned, self.record()?));
        }
        self.synchronize()?;
        Ok(buffer)
    }

    /// Downloads the numbers of an array, as f32.
    pub fn download(&'static self, array: Array) -> Result<Vec<f32>> {
        if array.len == 0 {
            return Ok(Vec::new());
        }
        let widened = match array.dtype {
            Stored::F32 => None,
            Stored::Bf16 => {
                let floats = self.allocate(array.len * size_of::<f32>())?;
                self.widen(array, floats.array(0, array.len, Stored::F32)?)?;
                Some(floats)
            }
        };
        let from = widened.as_ref().map_or(array.address, |floats| floats.address);
        let mut numbers = vec![0f32; array.len];
        self.enter()?;
        // SAFETY: both sides hold `len` numbers of four bytes, and the stream has finished before they are read.
        unsafe {
            let code = (self.driver.to_host)(numbers.as_mut_ptr().cast(), from, size_of_val(numbers.as_slice()), self.stream);
            check(&self.driver, "copy from the GPU", code)?;
        }
        self.synchronize()?;
        Ok(numbers)
    }

    /// Enqueues a copy from the beginning of `pinned` to `to`.
    pub fn send(&self, pinned: &Pinned, to: Array) -> Result<()> {
        let bytes = to.bytes();
        if bytes > pinned.capacity() {
            return Err(Error::new("fewer bytes on the host than were to be copied to the GPU"));
        }
        // Lists may be empty, and the driver's manual does not say that it accepts 0 bytes.
        if bytes == 0 {
            return Ok(());
        }
        self.enter()?;
        // SAFETY: both sides hold that many bytes; the pinned memory is not reused before the copy is complete.
        let code = unsafe { (self.driver.to_device)(to.address, pinned.address().cast(), bytes, self.stream) };
        self.note_copy(pinned);
        check(&self.driver, "copy to the GPU", code)
    }

    /// Enqueues a copy from `from` to the beginning of `pinned`.
    pub fn fetch(&self, from: Array, pinned: &Pinned) -> Result<()> {
        let bytes = from.bytes();
        if bytes > pinned.capacity() {
            return Err(Error::new("more bytes on the GPU than were to be copied from it"));
        }
        if bytes == 0 {
            return Ok(());
        }
        self.enter()?;
        // SAFETY: as in `send`.
        let code = unsafe { (self.driver.to_host)(pinned.address().cast(), from.address, bytes, self.stream) };
        self.note_copy(pinned);
        check(&self.driver, "copy from the GPU", code)
    }

    /// Numbers the copy from or to `pinned` that has just been enqueued.
    fn note_copy(&self, pinned: &Pinned) {
        pinned.last_copy.store(self.copies.fetch_add(1, Ordering::AcqRel) + 1, Ordering::Release);
    }

    /// Enqueues a copy from one array to another of the same length and format.
    pub fn copy(&self, from: Array, to: Array) -> Result<()> {
        if (from.len, from.dtype) != (to.len, to.dtype) {
            return Err(Error::new("arrays of different lengths cannot be copied onto each other"));
        }
        if from.len == 0 {
            return Ok(());
        }
        self.enter()?;
        // SAFETY: both arrays hold that many bytes.
        let code = unsafe { (self.driver.copy)(to.address, from.address, from.bytes(), self.stream) };
        check(&self.driver, "copy on the GPU", code)
    }

    /// Returns pinned host memory of at least `bytes`, reused if possible.
    pub fn pinned(&'static self, bytes: usize) -> Result<Pinned> {
        let mut free = lock(&self.pinned);
        let found = least_that_holds(free.iter().map(|pinned| pinned.capacity), bytes).map(|index| free.swap_remove(index));
        drop(free);
        if found.is_some() {
            return Ok(Pinned { bytes: found, last_copy: AtomicU64::new(0) });
        }
        let capacity = bytes.next_power_of_two().max(1 << 16);
        let mut address = null_mut();
        self.enter()?;
        // SAFETY: `address` is a variable of the type that the function writes.
        check(&self.driver, "allocate host memory", unsafe { (self.driver.allocate_host)(&mut address, capacity, 0) })?;
        Ok(Pinned { bytes: Some(PinnedBytes { address: address.cast(), capacity }), last_copy: AtomicU64::new(0) })
    }

    /// Marks the current end of the stream.
    pub fn record(&self) -> Result<Event> {
        let mut event = null_mut();
        let copies = self.copies.load(Ordering::Acquire);
        self.enter()?;
        // SAFETY: `event` is a variable of the type that the function writes, and then an event.
        unsafe {
            check(&self.driver, "create an event", (self.driver.create_event)(&mut event, 0))?;
            check(&self.driver, "record an event", (self.driver.record_event)(event, self.stream))?;
        }
        Ok(Event { event, copies })
    }

    /// Waits until the device has reached `event`.
    pub fn wait(&self, event: &Event) -> Result<()> {
        self.enter()?;
        // SAFETY: an event of the driver's that has been recorded.
        check(&self.driver, "do what was asked of it", unsafe { (self.driver.wait_for_event)(event.event) })?;
        self.copied.fetch_max(event.copies, Ordering::AcqRel);
        Ok(())
    }

    /// The time between two events that have both passed.
    pub fn between(&self, from: &Event, to: &Event) -> Result<Duration> {
        let mut milliseconds = 0.0;
        self.enter()?;
        // SAFETY: events of the driver's that have been recorded.
        check(&self.driver, "tell the time", unsafe { (self.driver.elapsed)(&mut milliseconds, from.event, to.event) })?;
        Ok(Duration::from_secs_f64(f64::from(milliseconds.max(0.0)) / 1e3))
    }

    /// Waits for all enqueued work.
    pub fn synchronize(&self) -> Result<()> {
        let copies = self.copies.load(Ordering::Acquire);
        self.enter()?;
        // SAFETY: the stream is the driver's.
        check(&self.driver, "do what was asked of it", unsafe { (self.driver.synchronize)(self.stream) })?;
        self.copied.fetch_max(copies, Ordering::AcqRel);
        Ok(())
    }

    /// A table of the kernels' times, longest first, if they were recorded.
    fn profile_table(&self) -> Option<String> {
        let times = lock(self.profile.as_ref()?);
        let mut rows: Vec<_> = times.iter().collect();
        rows.sort_by(|a, b| b.1.1.total_cmp(&a.1.1));
        let all: f64 = rows.iter().map(|(_, (_, milliseconds))| milliseconds).sum();
        let row = |(name, (calls, milliseconds)): (&String, &(u64, f64))| {
            format!("{name:<60} {calls:>8} {milliseconds:>10.1} ms {:>5.1} %", 100.0 * milliseconds / all)
        };
        Some(rows.into_iter().map(row).collect::<Vec<_>>().join("\n"))
    }

    /// Makes the device current for the calling thread.
    pub(super) fn enter(&self) -> Result<()> {
        // SAFETY: the context was retained when the device was opened and is never released.
        check(&self.driver, "be used", unsafe { (self.driver.set_context)(self.context) })
    }

    /// Returns a kernel of `source`, compiled and loaded at its first use.
    pub(super) fn kernel(&self, source: Source, name: &'static str) -> Result<Kernel> {
        if let Some(kernel) = lock(&self.kernels).get(&(source, name)) {
            return Ok(*kernel);
        }
        let module = self.module(source)?;
        let mut function = null_mut();
        let c_name = CString::new(name).map_err(|_| Error::new("the name of a kernel holds a zero byte"))?;
        self.enter()?;
        // SAFETY: the module is loaded and the name ends with a zero.
        unsafe {
            check(&self.driver, &format!("find {name}"), (self.driver.function)(&mut function, module.0, c_name.as_ptr()))?;
            // Allows all the shared memory that a block may have, less what the kernel declares statically.
            let mut declared = 0;
            let code = (self.driver.function_attribute)(&mut declared, constants::SHARED_BYTES, function);
            check(&self.driver, &format!("describe {name}"), code)?;
            let dynamic = self.shared_bytes as c_int - declared;
            let code = (self.driver.set_function_attribute)(function, constants::MAX_DYNAMIC_SHARED_BYTES, dynamic);
            check(&self.driver, &format!("give shared memory to {name}"), code)?;
        }
        let kernel = Kernel { function: Handle(function), name };
        lock(&self.kernels).insert((source, name), kernel);
        Ok(kernel)
    }

    fn module(&self, source: Source) -> Result<Handle> {
        let mut modules = lock(&self.modules);
        if let Some(module) = modules.get(&source) {
            return Ok(*module);
        }
        let module = self.load(source, compile::kept_at(source, &self.target).as_deref())?;
        modules.insert(source, module);
        Ok(module)
    }

    /// Loads the machine code cached in `file`. If there is none, or the driver rejects it, compiles the source and caches the result once
    /// the driver accepts it.
    pub(super) fn load(&self, source: Source, file: Option<&Path>) -> Result<Handle> {
        if let Some(code) = file.and_then(compile::kept)
            && let Ok(module) = self.load_code(source, &code)
        {
            return Ok(module);
        }
        let code = compile::compiled(source, &self.target)?;
        let module = self.load_code(source, &code)?;
        if let Some(file) = file {
            compile::keep(file, &code);
        }
        Ok(module)
    }

    fn load_code(&self, source: Source, code: &[u8]) -> Result<Handle> {
        let mut module = null_mut();
        self.enter()?;
        // SAFETY: the code is a whole cubin that NVRTC wrote.
        let result = unsafe { (self.driver.load_module)(&mut module, code.as_ptr().cast()) };
        check(&self.driver, &format!("load the kernels of {source:?}"), result)?;
        Ok(Handle(module))
    }

    /// Launches a kernel on `blocks.0` by `blocks.1` blocks of `threads`.
    ///
    /// # Safety
    /// The arguments must be those of the kernel, and it must stay within the memory that they name.
    pub(super) unsafe fn launch(
        &self,
        kernel: Kernel,
        blocks: (usize, usize),
        threads: u32,
        shared_bytes: usize,
        arguments: &[Argument],
    ) -> Result<()> {
        let grid = |n: usize, limit: u32| {
            u32::try_from(n).ok().filter(|&n| n <= limit).ok_or_else(|| {
                Error::new(format!("{} blocks are too many for {}", n, kernel.name)).cure("Give a smaller --max-len.")
            })
        };
        let (x, y) = (grid(blocks.0, i32::MAX as u32)?, grid(blocks.1, u32::from(u16::MAX))?);
        if x == 0 || y == 0 {
            return Ok(());
        }
        let mut pointers: Vec<*mut c_void> = arguments.iter().map(Argument::pointer).collect();
        let pointers = pointers.as_mut_ptr();
        self.timed(kernel.name, &|| {
            self.enter()?;
            // SAFETY: by contract; the arguments live until the driver has copied them, which it does before it returns.
            let code = unsafe {
                let Driver { launch, .. } = self.driver;
                launch(kernel.function.0, x, y, 1, threads, 1, 1, shared_bytes as c_uint, self.stream, pointers, null_mut())
            };
            check(&self.driver, &format!("run {}", kernel.name), code)
        })
    }

    /// Runs code that enqueues work; with a profile, waits for the work and records its time.
    pub(super) fn timed(&self, name: &str, run: &dyn Fn() -> Result<()>) -> Result<()> {
        let Some(profile) = &self.profile else { return run() };
        let begin = self.record()?;
        run()?;
        let end = self.record()?;
        self.wait(&end)?;
        let milliseconds = 1e3 * self.between(&begin, &end)?.as_secs_f64();
        let mut profile = lock(profile);
        let entry = profile.entry(name.to_owned()).or_default();
        *entry = (entry.0 + 1, entry.1 + milliseconds);
        Ok(())
    }
}

/// Whether there is a GPU, usable or not.
pub fn is_there() -> bool {
    let Ok(driver) = library::driver() else { return false };
    let mut ordinal = 0;
    // SAFETY: `ordinal` is a variable of the type that the function writes; starting the driver twice has no effect.
    unsafe { (driver.init)(0) == 0 && (driver.device)(&mut ordinal, 0) == 0 }
}

/// A table of the kernels' times, if `DIAGNOSE_CUDA_PROFILE` is set and there is a device.
pub fn profile() -> Option<String> {
    std::env::var_os(PROFILE)?;
    Device::get().ok()?.profile_table()
}

impl Buffer {
    /// Its size, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// `len` numbers of `dtype` at byte `offset`.
    pub fn array(&self, offset: usize, len: usize, dtype: Stored) -> Result<Array<'_>> {
        let end = len.checked_mul(dtype.size_in_bytes() as usize).and_then(|bytes| bytes.checked_add(offset));
        if end.is_none_or(|end| end > self.bytes) {
            return Err(Error::new(format!(
                "{len} numbers from byte {offset} on do not lie within {} bytes on the GPU",
                self.bytes
            )));
        }
        Ok(Array { address: self.address + offset as u64, len, dtype, memory: PhantomData })
    }

    /// `len` integers below `end` at byte `offset`.
    pub fn indices(&self, offset: usize, len: usize, end: u32) -> Result<Indices<'_>> {
        let Array { address, len, memory, .. } = self.array(offset, len, Stored::F32)?;
        Ok(Indices { address, len, end, memory })
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // The device was open when the buffer was made, and it stays open.
        if let Ok(device) = Device::get()
            && device.enter().is_ok()
        {
            // SAFETY: the memory was allocated by the driver and is freed once; freeing waits for the work that uses it.
            unsafe { (device.driver.free)(self.address) };
            device.allocated.fetch_sub(self.bytes as u64, Ordering::Relaxed);
        }
    }
}

impl<'a> Arena<'a> {
    /// Divides `buffer` from its beginning on; `rows` says which rows products in it compute together.
    pub fn new(buffer: &'a Buffer, rows: Rows) -> Arena<'a> {
        Arena { buffer, used: Cell::new(0), rows }
    }

    /// Which rows of a product are computed together.
    pub fn rows(&self) -> Rows {
        self.rows
    }

    /// Allocates `len` numbers after those allocated before.
    pub fn array(&self, len: usize, dtype: Stored) -> Result<Array<'a>> {
        let array = self.buffer.array(self.used.get(), len, dtype)?;
        self.used.set(self.used.get() + arena_bytes(len, dtype));
        Ok(array)
    }

    /// The current position, for [`Arena::give_back`].
    pub fn mark(&self) -> usize {
        self.used.get()
    }

    /// Frees everything allocated since `mark`. Anyone who still uses it reads whatever is written there next.
    pub fn give_back(&self, mark: usize) {
        self.used.set(mark);
    }
}

impl Pinned {
    fn capacity(&self) -> usize {
        self.bytes.as_ref().map_or(0, |bytes| bytes.capacity)
    }

    fn address(&self) -> *mut u8 {
        self.bytes.as_ref().map_or(null_mut(), |bytes| bytes.address)
    }

    /// Writes `words` at byte `offset`. Must not be called while the device reads the memory.
    pub fn write(&mut self, offset: usize, words: &[u32]) -> Result<()> {
        if offset.checked_add(size_of_val(words)).is_none_or(|end| end > self.capacity()) {
            return Err(Error::new("more numbers than the host's buffer holds"));
        }
        // SAFETY: the range lies within the buffer, as checked above, and does not overlap `words`.
        unsafe { std::ptr::copy_nonoverlapping(words.as_ptr().cast::<u8>(), self.address().add(offset), size_of_val(words)) };
        Ok(())
    }

    /// Writes the `numbers` converted by `fill` to the beginning, on all cores. Must not be called while the device reads the memory.
    fn fill<F: Sync, T: Number>(&mut self, numbers: &[F], fill: impl Fn(&mut [T], &[F]) + Sync) -> Result<()> {
        if numbers.len() * size_of::<T>() > self.capacity() {
            return Err(Error::new("more numbers than the host's buffer holds"));
        }
        const BLOCK: usize = 1 << 16;
        // SAFETY: the buffer is that long, as checked above, and aligned to at least 256 bytes; every bit pattern is valid.
        let to = unsafe { std::slice::from_raw_parts_mut(self.address().cast::<T>(), numbers.len()) };
        to.par_chunks_mut(BLOCK).zip(numbers.par_chunks(BLOCK)).for_each(|(to, from)| fill(to, from));
        Ok(())
    }

    /// The first `n` words, once the device has written them.
    pub fn words(&self, n: usize) -> Result<&[u32]> {
        self.check_words(n)?;
        // SAFETY: the buffer is that long and page-aligned, and every bit pattern is valid.
        Ok(unsafe { std::slice::from_raw_parts(self.address().cast(), n) })
    }

    /// The first `n` words as f32, once the device has written them.
    pub fn floats(&self, n: usize) -> Result<&[f32]> {
        self.check_words(n)?;
        // SAFETY: as above.
        Ok(unsafe { std::slice::from_raw_parts(self.address().cast(), n) })
    }

    fn check_words(&self, n: usize) -> Result<()> {
        match n.checked_mul(4).is_some_and(|bytes| bytes <= self.capacity()) {
            true => Ok(()),
            false => Err(Error::new("fewer numbers came from the GPU than were asked for")),
        }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let (Some(bytes), Ok(device)) = (self.bytes.take(), Device::get()) else { return };
        let last_copy = self.last_copy.load(Ordering::Acquire);
        // After an early return the device may still read or write this memory. If waiting fails, the memory is leaked, so that it cannot
        // be reused.
        if last_copy > device.copied.load(Ordering::Acquire) && device.synchronize().is_err() {
            std::mem::forget(bytes);
            return;
        }
        lock(&device.pinned).push(bytes);
    }
}

impl Drop for PinnedBytes {
    fn drop(&mut self) {
        if let Ok(device) = Device::get()
            && device.enter().is_ok()
        {
            // SAFETY: allocated by the driver, freed once.
            unsafe { (device.driver.free_host)(self.address.cast()) };
        }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if let Ok(device) = Device::get()
            && device.enter().is_ok()
        {
            // SAFETY: created by the driver, destroyed once.
            unsafe { (device.driver.destroy_event)(self.event) };
        }
    }
}

/// The index of the smallest capacity that holds `bytes`.
fn least_that_holds(capacities: impl Iterator<Item = usize>, bytes: usize) -> Option<usize> {
    let holding = capacities.enumerate().filter(|&(_, capacity)| capacity >= bytes);
    holding.min_by_key(|&(_, capacity)| capacity).map(|(index, _)| index)
}

/// Returns an error that says what the device could not do.
fn check(driver: &Driver, what: &str, code: c_int) -> Result<()> {
    if code == 0 {
        return Ok(());
    }
    let mut name = std::ptr::null();
    // SAFETY: the driver writes a pointer to one of its constant strings, or leaves the variable unchanged.
    let name = unsafe {
        (driver.error_name)(code, &mut name);
        if name.is_null() { format!("error {code}") } else { CStr::from_ptr(name).to_string_lossy().into_owned() }
    };
    Err(Error::new(format!("the GPU cannot {what}: {name}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_used_again_is_the_least_that_holds() {
        let found = |bytes| least_that_holds([64, 4096, 128, 128].into_iter(), bytes);
        assert_eq!([1, 65, 129, 4097].map(found), [Some(0), Some(2), Some(1), None]);
    }
}

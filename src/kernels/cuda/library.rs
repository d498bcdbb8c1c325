//! NVIDIA's libraries, opened when a GPU is needed: the driver, NVRTC (the compiler of the kernels) and cuBLASLt (the products).
//!
//! Nothing is linked, so one program runs with and without the libraries, and can name those that are missing. The functions below have
//! had these signatures since CUDA 11; the headers are `cuda.h`, `nvrtc.h` and `cublasLt.h`. The driver comes with the graphics driver;
//! the other two are searched where the loader searches, under `$CUDA_HOME` or `$CUDA_PATH`, in `/usr/local/cuda`, and among the packages
//! that pip installs along with PyTorch (`nvidia-cublas`, `nvidia-cuda-nvrtc`). Their CUDA version must not be later than the driver's,
//! which rejects the output of later versions.

use std::ffi::{OsStr, c_char, c_int, c_uint, c_void};
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use libloading::Library;

use crate::error::{Error, Result};
use crate::files::file_name;

/// Declares a table of functions, and looks them up in a library by name.
macro_rules! functions {
    ($table:ident { $($field:ident: $symbol:literal ($($argument:ty),*);)* }) => {
        pub(super) struct $table {
            $(pub(super) $field: unsafe extern "C" fn($($argument),*) -> c_int,)*
            /// Keeps the library loaded.
            _library: Library,
        }

        impl $table {
            fn new(library: Library) -> Result<$table, libloading::Error> {
                Ok($table {
                    // SAFETY: the type is that of the headers named in the module's documentation.
                    $($field: *unsafe { library.get($symbol)? },)*
                    _library: library,
                })
            }
        }
    };
}

/// A device memory address.
pub(super) type Address = u64;
/// Contexts, streams, modules, functions, events, handles and descriptors: pointers that only the libraries dereference.
pub(super) type Opaque = *mut c_void;

functions!(Driver {
    init: b"cuInit" (c_uint);
    version: b"cuDriverGetVersion" (*mut c_int);
    error_name: b"cuGetErrorName" (c_int, *mut *const c_char);
    device: b"cuDeviceGet" (*mut c_int, c_int);
    device_name: b"cuDeviceGetName" (*mut c_char, c_int, c_int);
    attribute: b"cuDeviceGetAttribute" (*mut c_int, c_int, c_int);
    retain_context: b"cuDevicePrimaryCtxRetain" (*mut Opaque, c_int);
    set_context: b"cuCtxSetCurrent" (Opaque);
    memory: b"cuMemGetInfo_v2" (*mut usize, *mut usize);
    allocate: b"cuMemAlloc_v2" (*mut Address, usize);
    free: b"cuMemFree_v2" (Address);
    allocate_host: b"cuMemHostAlloc" (*mut Opaque, usize, c_uint);
    free_host: b"cuMemFreeHost" (Opaque);
    to_device: b"cuMemcpyHtoDAsync_v2" (Address, *const c_void, usize, Opaque);
    to_host: b"cuMemcpyDtoHAsync_v2" (*mut c_void, Address, usize, Opaque);
    copy: b"cuMemcpyDtoDAsync_v2" (Address, Address, usize, Opaque);
    create_stream: b"cuStreamCreate" (*mut Opaque, c_uint);
    synchronize: b"cuStreamSynchronize" (Opaque);
    create_event: b"cuEventCreate" (*mut Opaque, c_uint);
    destroy_event: b"cuEventDestroy_v2" (Opaque);
    record_event: b"cuEventRecord" (Opaque, Opaque);
    wait_for_event: b"cuEventSynchronize" (Opaque);
    elapsed: b"cuEventElapsedTime" (*mut f32, Opaque, Opaque);
    load_module: b"cuModuleLoadData" (*mut Opaque, *const c_void);
    function: b"cuModuleGetFunction" (*mut Opaque, Opaque, *const c_char);
    function_attribute: b"cuFuncGetAttribute" (*mut c_int, c_int, Opaque);
    set_function_attribute: b"cuFuncSetAttribute" (Opaque, c_int, c_int);
    launch: b"cuLaunchKernel" (Opaque, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Opaque, *mut *mut c_void, *mut *mut c_void);
});

functions!(Compiler {
    create: b"nvrtcCreateProgram" (*mut Opaque, *const c_char, *const c_char, c_int, *const *const c_char, *const *const c_char);
    compile: b"nvrtcCompileProgram" (Opaque, c_int, *const *const c_char);
    log_size: b"nvrtcGetProgramLogSize" (Opaque, *mut usize);
    log: b"nvrtcGetProgramLog" (Opaque, *mut c_char);
    binary_size: b"nvrtcGetCUBINSize" (Opaque, *mut usize);
    binary: b"nvrtcGetCUBIN" (Opaque, *mut c_char);
    destroy: b"nvrtcDestroyProgram" (*mut Opaque);
});

functions!(Blas {
    create: b"cublasLtCreate" (*mut Opaque);
    create_layout: b"cublasLtMatrixLayoutCreate" (*mut Opaque, c_int, u64, u64, i64);
    destroy_layout: b"cublasLtMatrixLayoutDestroy" (Opaque);
    create_product: b"cublasLtMatmulDescCreate" (*mut Opaque, c_int, c_int);
    set_product: b"cublasLtMatmulDescSetAttribute" (Opaque, c_int, *const c_void, usize);
    destroy_product: b"cublasLtMatmulDescDestroy" (Opaque);
    create_preference: b"cublasLtMatmulPreferenceCreate" (*mut Opaque);
    set_preference: b"cublasLtMatmulPreferenceSetAttribute" (Opaque, c_int, *const c_void, usize);
    destroy_preference: b"cublasLtMatmulPreferenceDestroy" (Opaque);
    choose: b"cublasLtMatmulAlgoGetHeuristic" (Opaque, Opaque, Opaque, Opaque, Opaque, Opaque, Opaque, c_int, *mut Choice, *mut c_int);
    multiply: b"cublasLtMatmul" (Opaque, Opaque, *const c_void, *const c_void, Opaque, *const c_void, Opaque, *const c_void, *const c_void, Opaque, *mut c_void, Opaque, *const Algorithm, *mut c_void, usize, Opaque);
});

/// `cublasLtMatmulAlgo_t`
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(super) struct Algorithm([u64; 8]);

/// `cublasLtMatmulHeuristicResult_t`
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(super) struct Choice {
    pub algorithm: Algorithm,
    pub workspace_bytes: usize,
    pub state: c_int,
    pub waves: f32,
    pub reserved: [c_int; 4],
}

/// A version of CUDA as reported by the driver: 12040 is 12.4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version(pub c_int);

/// The major versions of the supported libraries, newest first.
const MAJORS: [c_int; 2] = [13, 12];

impl Version {
    /// The newest known version, for tests without a driver.
    #[cfg(test)]
    pub(super) const NEWEST: Version = Version(1000 * MAJORS[0]);

    /// The major versions in [`MAJORS`] that a driver of this version supports, newest first.
    fn majors(self) -> impl Iterator<Item = c_int> + Clone {
        MAJORS.into_iter().filter(move |major| 1000 * major <= self.0)
    }

    /// Returns an error if the driver supports none of the libraries.
    pub(super) fn check(self) -> Result<()> {
        if self.majors().next().is_some() {
            return Ok(());
        }
        Err(Error::new(format!(
            "NVIDIA's driver here is of CUDA {self}, which takes no libraries of CUDA {} or later",
            MAJORS[1]
        ))
        .cure("Update NVIDIA's driver, or leave out --device cuda: the CPU takes its place."))
    }

    /// How to install the libraries for this driver.
    pub(super) fn cure(self) -> String {
        let packages = match self.majors().next() {
            Some(12) => "nvidia-cublas-cu12 nvidia-cuda-nvrtc-cu12",
            _ => "'nvidia-cublas==13.*' 'nvidia-cuda-nvrtc==13.*'",
        };
        format!(
            "Install CUDA's libraries for the driver here, which is of CUDA {self}, for example by `python3 -m pip install {packages}`, \
             set CUDA_HOME to where they are, or leave out --device cuda."
        )
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}.{}", self.0 / 1000, self.0 % 1000 / 10)
    }
}

pub(super) fn driver() -> Result<Driver> {
    let names = if cfg!(windows) { ["nvcuda.dll"].as_slice() } else { &["libcuda.so.1", "libcuda.so"] };
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    open("the driver of an NVIDIA GPU", &names, std::iter::empty(), Driver::new)
        .map_err(|error| error.cure("Install NVIDIA's driver, or leave out --device cuda: the CPU takes its place."))
}

/// Opens NVRTC for a driver of `version`.
pub(super) fn compiler(version: Version) -> Result<Compiler> {
    let name = |major| if cfg!(windows) { format!("nvrtc64_{major}0_0.dll") } else { format!("libnvrtc.so.{major}") };
    let names: Vec<String> = version.majors().map(name).collect();
    // A folder that contains NVRTC also contains the built-in functions that it loads.
    let folders = folders().inspect(|folder| load_builtins(folder));
    open("NVRTC, which compiles the kernels for the GPU", &names, folders, Compiler::new)
        .map_err(|error| error.cure(version.cure()))
}

/// Opens cuBLASLt for a driver of `version`.
pub(super) fn blas(version: Version) -> Result<Blas> {
    let name = |major| if cfg!(windows) { format!("cublasLt64_{major}.dll") } else { format!("libcublasLt.so.{major}") };
    let names: Vec<String> = version.majors().map(name).collect();
    open("cuBLASLt, which multiplies on the GPU", &names, folders(), Blas::new).map_err(|error| error.cure(version.cure()))
}

/// NVRTC loads one of its own libraries by name, which fails if both are in a folder that the loader does not search (pip's). It succeeds
/// once that library has been opened by its path.
fn load_builtins(folder: &Path) {
    let files = std::fs::read_dir(folder).into_iter().flatten().filter_map(|entry| entry.ok());
    for path in files.map(|entry| entry.path()) {
        let name = file_name(&path);
        if name.starts_with("libnvrtc-builtins.so.") || name.starts_with("nvrtc-builtins64_") {
            // SAFETY: loading NVIDIA's libraries has no harmful side effects.
            if let Ok(library) = unsafe { Library::new(&path) } {
                // The library stays loaded for as long as the program runs.
                std::mem::forget(library);
            }
        }
    }
}

/// The names of the errors are in cublas_api.h.
pub(super) fn check_blas(what: &str, code: c_int) -> Result<()> {
    let name = match code {
        0 => return Ok(()),
        1 => "not initialised",
        3 => "out of memory",
        7 => "invalid value",
        8 => "this GPU is not supported",
        13 => "execution failed",
        14 => "internal error",
        15 => "not supported",
        _ => "unknown error",
    };
    Err(Error::new(format!("cuBLASLt cannot {what}: {name} ({code})")))
}

/// The first library with one of these names that opens and has the functions: by the loader's own search, then in `folders`, which is
/// evaluated only if necessary.
fn open<T>(
    what: &str,
    names: &[String],
    folders: impl Iterator<Item = PathBuf>,
    table: impl Fn(Library) -> Result<T, libloading::Error>,
) -> Result<T> {
    let everywhere = names.iter().map(PathBuf::from);
    let inside = folders.flat_map(|folder| names.iter().map(move |name| folder.join(name))).filter(|path| path.exists());
    let mut failure = None;
    for path in everywhere.chain(inside) {
        // SAFETY: loading NVIDIA's libraries has no harmful side effects.
        match unsafe { Library::new(&path) }.and_then(&table) {
            Ok(functions) => return Ok(functions),
            Err(error) => failure = Some(error),
        }
    }
    let missing = Error::new(format!("{what} was not found: {}", names.join(", ")));
    Err(match failure {
        Some(error) => missing.caused_by(error),
        None => missing,
    })
}

/// The folders of CUDA's libraries beyond the loader's own. Python is only run when its folders are needed.
fn folders() -> impl Iterator<Item = PathBuf> {
    let variables = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(std::env::var_os).map(PathBuf::from);
    let toolkits = variables.chain([PathBuf::from("/usr/local/cuda")]);
    let of_python = || {
        let mut python = Command::new(std::env::var_os("PYTHON").as_deref().unwrap_or(OsStr::new("python3")));
        packages_of(&mut python)
    };
    toolkits
        .flat_map(|folder| ["lib64", "lib", "bin"].map(|inside| folder.join(inside)))
        .chain(std::iter::once_with(of_python).flatten())
}

/// The `nvidia/*/lib` folders among the packages of a `python`: those of the system or environment, then those of the user, where pip
/// installs if it may not write to the former.
fn packages_of(python: &mut Command) -> Vec<PathBuf> {
    const SCRIPT: &str = "
import site, sys, sysconfig
for name in 'purelib', 'platlib': print(sysconfig.get_path(name))
for folder in sys.path:
    if folder.endswith('-packages'): print(folder)
print(site.getusersitepackages())";
    let Ok(output) = python.args(["-c", SCRIPT]).output() else { return Vec::new() };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut packages: Vec<PathBuf> = Vec::new();
    for folder in text.lines().map(|folder| Path::new(folder).join("nvidia")) {
        if !packages.contains(&folder) {
            packages.push(folder);
        }
    }
    packages
        .iter()
        .filter_map(|folder| std::fs::read_dir(folder).ok())
        .flatten()
        .filter_map(|entry| entry.ok())
        .flat_map(|entry| ["lib", "bin"].map(|inside| entry.path().join(inside)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_is_given_what_it_takes() {
        let majors = |version| Version(version).majors().collect::<Vec<_>>();
        assert_eq!(majors(12_040), [12]);
        assert_eq!(majors(13_000), [13, 12]);
        assert_eq!(majors(14_010), [13, 12]);
        assert!(Version(12_000).check().is_ok());
        let refused = Version(11_080).check().unwrap_err().to_string();
        assert!(refused.contains("is of CUDA 11.8"), "{refused}");
        assert!(Version(12_040).cure().contains("nvidia-cublas-cu12 nvidia-cuda-nvrtc-cu12"));
        assert!(Version(13_020).cure().contains("CUDA 13.2") && !Version(13_020).cure().contains("cu12"));
    }

    /// pip installs here for users who may not write to Python's folder.
    #[test]
    fn packages_of_the_user_are_found() {
        let base = tempfile::tempdir().unwrap();
        let python = || {
            let mut python = Command::new("python3");
            python.env("PYTHONUSERBASE", base.path());
            python
        };
        let asked = python().args(["-c", "import site; print(site.getusersitepackages())"]).output();
        let Ok(asked) = asked else { panic!("this test asks python3 where its packages are") };
        let folder = Path::new(String::from_utf8(asked.stdout).unwrap().trim()).join("nvidia/cu13/lib");
        assert!(folder.starts_with(base.path()), "{}", folder.display());
        assert!(!packages_of(&mut python()).contains(&folder));
        std::fs::create_dir_all(&folder).unwrap();
        assert!(packages_of(&mut python()).contains(&folder));
    }
}

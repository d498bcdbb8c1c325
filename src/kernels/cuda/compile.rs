//! Compiles the kernels' sources to machine code for the GPU at hand, by NVRTC at first use, and stores it in the user's cache folder.
//!
//! Compiling at run time means that the build needs no CUDA, the program stays small, and every head width and every GPU gets its own
//! machine code. It costs some seconds once on each machine; afterwards, files of some tens of kilobytes are read. A file ends with the
//! SHA-256 of its code, because the driver is not told the length and would read past the end of a truncated file.

use std::ffi::{CString, c_char, c_int};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::ptr::null_mut;

use super::library::{self, Compiler, Version};
use crate::error::{Context, Error, Result};
use crate::fetch::cache::own_cache;
use crate::files::{sha256, write_atomically};

/// A CUDA source with its definitions: its kernels exist once for each set of definitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Source {
    Norm,
    Gated,
    Rows,
    Head,
    Largest,
    Draw,
    Experts,
    /// The gated delta rule with keys of `key_dim` elements.
    Delta {
        key_dim: u32,
    },
    /// Attention with heads of `head_dim` elements and blocks of `warps` warps, each with `row_tiles` times 16 tokens.
    Attention {
        head_dim: u32,
        warps: u32,
        row_tiles: u32,
    },
    /// Attention of the last tokens of sequences, with heads of `head_dim` elements, of which a block computes `group`.
    Last {
        head_dim: u32,
        group: u32,
    },
}

impl Source {
    fn text(self) -> &'static str {
        match self {
            Source::Norm => include_str!("../norm.cu"),
            Source::Gated => concat!(include_str!("../activation.cuh"), include_str!("../gated.cu")),
            Source::Rows => include_str!("../matmul/rows.cu"),
            Source::Head => include_str!("../statistics/statistics.cu"),
            Source::Largest => include_str!("../statistics/largest.cu"),
            Source::Draw => include_str!("../statistics/draw.cu"),
            Source::Experts => {
                concat!(include_str!("../activation.cuh"), include_str!("experts.cu"), include_str!("grouped.cu"))
            }
            Source::Delta { .. } => include_str!("../delta/delta.cu"),
            Source::Attention { .. } => include_str!("../attention/attention.cu"),
            Source::Last { .. } => include_str!("../attention/last.cu"),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Source::Norm => "norm.cu",
            Source::Gated => "gated.cu",
            Source::Rows => "rows.cu",
            Source::Head => "statistics.cu",
            Source::Largest => "largest.cu",
            Source::Draw => "draw.cu",
            Source::Experts => "experts.cu",
            Source::Delta { .. } => "delta.cu",
            Source::Attention { .. } => "attention.cu",
            Source::Last { .. } => "last.cu",
        }
    }

    /// The definitions, the common beginning of all sources, and the source itself.
    fn whole_text(self) -> String {
        let mut text = String::new();
        for (name, value) in self.definitions() {
            let _ = writeln!(text, "#define {name} {value}");
        }
        text + include_str!("common.cuh") + self.text()
    }

    fn definitions(self) -> Vec<(&'static str, u32)> {
        match self {
            Source::Attention { head_dim, warps, row_tiles } => {
                vec![("HEAD_DIM", head_dim), ("WARPS", warps), ("ROW_TILES", row_tiles)]
            }
            Source::Last { head_dim, group } => vec![("HEAD_DIM", head_dim), ("GROUP", group)],
            Source::Delta { key_dim } => vec![("KEY_DIM", key_dim)],
            _ => Vec::new(),
        }
    }
}

/// What machine code is compiled for.
#[derive(Debug)]
pub(super) struct Target {
    /// The name of the GPU, because an emulated one may have the capability of a real one.
    pub name: String,
    pub capability: (i32, i32),
    /// The driver's version, which determines the accepted compilers.
    pub version: Version,
}

/// The path at which the machine code of `source` is cached, if the user has a cache folder.
pub(super) fn kept_at(source: Source, target: &Target) -> Option<PathBuf> {
    let Target { name, capability, version } = target;
    let options = options(*capability).join(" ");
    let key = format!("{}\n{name}\n{version}\n{options}\n{}", env!("CARGO_PKG_VERSION"), source.whole_text());
    own_cache().map(|folder| folder.join("kernels").join(format!("{}.cubin", sha256(key))))
}

/// Reads the machine code that [`keep`] stored in `file`, if it is intact.
pub(super) fn kept(file: &Path) -> Option<Vec<u8>> {
    let mut code = std::fs::read(file).ok()?;
    let sum = code.split_off(code.len().checked_sub(SUM_LEN)?);
    (sha256(&code).as_bytes() == sum).then_some(code)
}

/// The hexadecimal digits of a SHA-256.
const SUM_LEN: usize = 64;

/// Stores machine code for [`kept`]. If the cache cannot be written, the kernels are simply compiled again next time.
pub(super) fn keep(file: &Path, code: &[u8]) {
    if let Some(folder) = file.parent()
        && std::fs::create_dir_all(folder).is_ok()
    {
        let _ = write_atomically(file, |file| {
            file.write_all(code).and_then(|()| file.write_all(sha256(code).as_bytes())).context("cannot keep the kernels")
        });
    }
}

/// The machine code of `source`.
pub(super) fn compiled(source: Source, target: &Target) -> Result<Vec<u8>> {
    let (code, _) = compile(source, &options(target.capability), target.version)?;
    Ok(code)
}

fn options((major, minor): (i32, i32)) -> Vec<String> {
    vec![format!("--gpu-architecture=sm_{major}{minor}"), "--std=c++17".to_owned()]
}

/// Returns the machine code and the compiler's messages.
fn compile(source: Source, options: &[String], version: Version) -> Result<(Vec<u8>, String)> {
    let compiler = library::compiler(version)?;
    let c_string = |text: &str| CString::new(text).context("a CUDA source holds a zero byte");
    let name = source.name();
    let (text, file) = (c_string(&source.whole_text())?, c_string(name)?);
    let options: Vec<CString> = options.iter().map(|option| c_string(option)).collect::<Result<_>>()?;
    let options: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
    let failed = |what: &str, code: c_int| Error::new(format!("NVRTC cannot {what} {name}: error {code}"));
    let mut program = null_mut();
    // SAFETY: the strings live until the end of the function, the sizes are those that NVRTC reports, and the program is destroyed once.
    unsafe {
        let code = (compiler.create)(&mut program, text.as_ptr(), file.as_ptr(), 0, std::ptr::null(), std::ptr::null());
        if code != 0 {
            return Err(failed("take in", code));
        }
        let result = (compiler.compile)(program, options.len() as c_int, options.as_ptr());
        let outcome = if result != 0 {
            Err(failed("compile", result).cure(log(&compiler, program)))
        } else {
            let mut size = 0;
            let mut binary = Vec::new();
            let mut code = (compiler.binary_size)(program, &mut size);
            if code == 0 {
                binary = vec![0u8; size];
                code = (compiler.binary)(program, binary.as_mut_ptr().cast());
            }
            if code == 0 && !binary.is_empty() { Ok((binary, log(&compiler, program))) } else { Err(failed("hand out", code)) }
        };
        (compiler.destroy)(&mut program);
        outcome
    }
}

/// The compiler's messages.
///
/// # Safety
/// `program` is one of `compiler`'s that has not been destroyed.
unsafe fn log(compiler: &Compiler, program: library::Opaque) -> String {
    let mut size = 0;
    // SAFETY: the buffer is as long as the log; the program is valid by contract.
    unsafe {
        if (compiler.log_size)(program, &mut size) != 0 {
            return String::new();
        }
        let mut text = vec![0u8; size];
        (compiler.log)(program, text.as_mut_ptr().cast());
        String::from_utf8_lossy(&text).trim_end_matches('\0').to_owned()
    }
}

#[cfg(test)]
mod tests {
    use rayon::prelude::*;

    use super::*;

    /// The driver only gets code that a compiler wrote.
    #[test]
    fn code_that_was_cut_or_changed_is_not_kept() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("kernels/some.cubin");
        assert_eq!(kept(&file), None);
        let code: Vec<u8> = (0..300u32).map(|i| (i * 7) as u8).collect();
        keep(&file, &code);
        assert_eq!(kept(&file), Some(code));
        let whole = std::fs::read(&file).unwrap();
        for len in 0..whole.len() {
            std::fs::write(&file, &whole[..len]).unwrap();
            assert_eq!(kept(&file), None, "cut to {len} bytes");
            let mut changed = whole.clone();
            changed[len] ^= 1;
            std::fs::write(&file, changed).unwrap();
            assert_eq!(kept(&file), None, "byte {len} changed");
        }
        std::fs::write(&file, [whole.as_slice(), &[0]].concat()).unwrap();
        assert_eq!(kept(&file), None, "a byte added");
    }

    /// NVRTC needs no GPU: if it is installed (always in CI, which sets `DIAGNOSE_NVRTC_TESTS`), this compiles every kernel for every
    /// generation, and checks that none spills more than a few registers.
    #[test]
    fn every_kernel_compiles_for_every_generation() {
        if let Err(error) = library::compiler(Version::NEWEST) {
            assert!(std::env::var_os("DIAGNOSE_NVRTC_TESTS").is_none(), "{error}");
            return;
        }
        let attention = |head_dim, warps, row_tiles| Source::Attention { head_dim, warps, row_tiles };
        let last = [(64, 3), (128, 4), (128, 8), (256, 8)].map(|(head_dim, group)| Source::Last { head_dim, group });
        let plain = [Source::Norm, Source::Gated, Source::Rows, Source::Head, Source::Largest, Source::Draw, Source::Experts];
        let keys = [10, 128, 256].map(|key_dim| Source::Delta { key_dim });
        let widths = [attention(64, 4, 1), attention(64, 4, 2), attention(128, 4, 2), attention(128, 8, 1), attention(256, 4, 1)];
        let capabilities = [(8, 0), (9, 0), (10, 0)];
        let all: Vec<_> = plain
            .into_iter()
            .chain(keys)
            .chain(widths)
            .chain(last)
            .flat_map(|source| capabilities.map(|capability| (source, capability)))
            .collect();
        all.into_par_iter().for_each(|(source, capability)| {
            let mut options = options(capability);
            options.push("--ptxas-options=--verbose".to_owned());
            let (code, log) = compile(source, &options, Version::NEWEST).unwrap();
            assert!(code.len() > 1000, "{source:?}: {} bytes", code.len());
            let words: Vec<&str> = log.split_whitespace().collect();
            for words in words.windows(4).filter(|words| words[1..] == ["bytes", "spill", "stores,"]) {
                let bytes: u32 = words[0].parse().unwrap();
                assert!(bytes <= 128, "{source:?} for {capability:?} spills {bytes} bytes:\n{log}");
            }
            assert!(log.contains("registers"), "{log}");
            println!("{source:?} {capability:?}\n{log}");
        });
    }
}

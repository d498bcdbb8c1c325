//! Configures the program's allocator, mimalloc.

use std::ffi::{c_int, c_long};

/// `mi_option_purge_delay` of mimalloc 2 and 3 (`mimalloc.h`), which the bindings lack.
const PURGE_DELAY: c_int = 15;

/// Keeps freed memory in the process instead of returning it after ten milliseconds. Training and scoring constantly free and
/// allocate buffers of many megabytes, and the kernel clears every page that it hands out again, which took a sixth of the
/// processor time of a training step. Memory that is free at the time of the call is returned first, so call this once a model is
/// loaded.
pub fn keep_freed_memory() {
    const NEVER: c_long = -1;
    // SAFETY: the first call returns free memory, the second sets a number that the allocator reads; both may be called at any
    // time.
    unsafe {
        libmimalloc_sys::mi_collect(true);
        libmimalloc_sys::mi_option_set(PURGE_DELAY, NEVER);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_option_is_the_one_that_is_meant() {
        // SAFETY: reads a number.
        let get = || unsafe { libmimalloc_sys::mi_option_get(PURGE_DELAY) };
        if std::env::var_os("MIMALLOC_PURGE_DELAY").is_none() {
            // mimalloc.h documents "(=10)"; version 3 uses a thousand.
            assert!([10, 1000].contains(&get()), "{}", get());
        }
        keep_freed_memory();
        assert_eq!(get(), -1);
    }
}

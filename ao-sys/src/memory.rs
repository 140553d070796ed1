//! What the C library does with memory that was given back.

/// Arenas of all threads together.
#[cfg(target_env = "gnu")]
const ARENAS: libc::c_int = 2;

/// Octets from which on an allocation is a mapping of its own, which goes back to the kernel.
#[cfg(target_env = "gnu")]
const MAPPED: libc::c_int = 64 << 10;

/// Lets the threads share a few arenas, and large allocations be mappings of their own. Otherwise
/// glibc gives nearly each thread an arena, which keeps the most that the thread ever needed. To be
/// called before the first thread is started. Does nothing with another C library.
pub fn keep_little() {
    #[cfg(target_env = "gnu")]
    {
        let settings = [
            (libc::M_ARENA_MAX, ARENAS),
            (libc::M_MMAP_THRESHOLD, MAPPED),
        ];
        for (parameter, value) in settings {
            // SAFETY: mallopt changes settings of the allocator under its own lock, and ignores
            // values it does not accept.
            let _accepted = unsafe { libc::mallopt(parameter, value) };
        }
    }
}

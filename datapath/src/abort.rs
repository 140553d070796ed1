//! A thread that protection depends on never ends by a panic alone.

/// Ends the process when its thread panics.
///
/// A queue without its thread stalls the sessions hashed to it for good, though nothing passes
/// unprotected; rules without their watcher stay away when somebody flushes them. A process that ended is started again and goes on from its journal.
#[derive(Debug)]
pub struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

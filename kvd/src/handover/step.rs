//! Where tests let a restart hang or break: named steps that do nothing in a release build.
//!
//! A test names a file in `KVD_TEST_STEP`; it holds `old paused kill` or `new copied hang`. Whoever comes to that step takes the file
//! away first, so that it happens once.

/// Comes to a step of `who`.
#[cfg(not(debug_assertions))]
pub(super) fn at(_who: &str, _step: &str) {}

/// Comes to a step of `who`.
#[cfg(debug_assertions)]
pub(super) fn at(who: &str, step: &str) {
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    let Some(path) = std::env::var_os("KVD_TEST_STEP") else { return };
    let Ok(text) = std::fs::read_to_string(&path) else { return };
    let words: Vec<&str> = text.split_whitespace().collect();
    let [wanted_who, wanted_step, what] = words[..] else { return };
    if (wanted_who, wanted_step) != (who, step) || std::fs::remove_file(&path).is_err() {
        return;
    }
    tracing::warn!(who, step, what, "a test interferes");
    let signal = if what == "hang" { Signal::SIGSTOP } else { Signal::SIGKILL };
    // To itself: it cannot be refused.
    let _ = kill(Pid::this(), signal);
}

//! Starts the precompiler (see [`runner::compile`]) and reads its answer, which is as hostile as the module.

use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::Command;

use runner::compile::{HOST_FAILED, MAX_CODE, MAX_CPU, max_data};
use runner::{Facts, PRECOMPILER};

use crate::error::{OrKind, Result, bail};
use crate::{Kind, process};

/// The longest answer that is read, in bytes. (A module can have names of any length.)
pub(super) const MAX_ANSWER: u64 = 1 << 20;

/// The longest sentence that is passed on, in bytes.
const MAX_REASON: usize = 1024;

/// Compiles `module` into the empty file `code` in `folder`, in a process of its own whose root is that folder.
///
/// # Errors
/// InvalidArgument with the reason when the module can't be run or takes too much to compile.
pub(super) fn precompile(module: OwnedFd, code: File, folder: &Path, proposals: &[String]) -> Result<Facts> {
    let failed = || "run the precompiler";
    // A file, as a process gone bad could fill a pipe for ever, or our memory behind it.
    let answer_path = folder.join("answer");
    let answer = OpenOptions::new()
        .create_new(true)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(&answer_path)
        .or_kind(Kind::Internal, failed)?;
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0(PRECOMPILER)
        .args(proposals)
        .env_clear()
        .current_dir(folder)
        .stdin(module)
        .stdout(code)
        .stderr(answer.try_clone().or_kind(Kind::Unavailable, failed)?);
    let output = process::output(&mut command).or_kind(Kind::Unavailable, failed)?;
    let length = answer.metadata().or_kind(Kind::Internal, failed)?.len();
    let mut text = vec![0; length.min(MAX_ANSWER) as usize];
    answer.read_exact_at(&mut text, 0).or_kind(Kind::Internal, failed)?;
    std::fs::remove_file(&answer_path).or_kind(Kind::Internal, failed)?;
    let reason = || one_line(&String::from_utf8_lossy(&text));
    match (output.status.code(), output.status.signal()) {
        (Some(0), _) if length > MAX_ANSWER => bail!(InvalidArgument, "the names of its exports are too long"),
        (Some(0), _) => serde_json::from_slice(&text).or_kind(Kind::Internal, || "the precompiler's answer"),
        (Some(code), _) if code == i32::from(HOST_FAILED) => {
            bail!(Unavailable, "it could not be compiled: {}", reason())
        }
        (Some(1), _) => bail!(InvalidArgument, "{}", reason()),
        (_, Some(libc::SIGXCPU)) => {
            bail!(InvalidArgument, "compiling it takes more than the {MAX_CPU} s of processor time that are allowed")
        }
        (_, Some(libc::SIGXFSZ)) => {
            bail!(InvalidArgument, "its code is larger than the {MAX_CODE} bytes that are allowed")
        }
        // The kernel chooses the precompiler first when memory is short.
        (_, Some(libc::SIGKILL)) => {
            bail!(Unavailable, "the precompiler was killed: memory of the host or of its cgroup is short")
        }
        _ if says_no_memory(&text) => {
            bail!(InvalidArgument, "compiling it takes more than the {} bytes of memory that are allowed", max_data())
        }
        _ => bail!(InvalidArgument, "it can't be compiled ({}): {}", output.status, reason()),
    }
}

/// Whether what the precompiler said before it gave up is that an allocation failed: in Rust's standard library, which aborts
/// then, or of a thread, which panics.
fn says_no_memory(text: &[u8]) -> bool {
    const WORDS: [&str; 3] = ["memory allocation of ", "Cannot allocate memory", "Resource temporarily unavailable"];
    let text = String::from_utf8_lossy(text);
    WORDS.iter().any(|word| text.contains(word))
}

/// Text of the precompiler's for an error and a log: one line, printable, not endless.
fn one_line(text: &str) -> String {
    let mut line = String::new();
    for word in text.split_whitespace() {
        if !line.is_empty() {
            line.push(' ');
        }
        line.extend(word.chars().filter(|c| !c.is_control()));
        if line.len() > MAX_REASON {
            line.truncate(line.floor_char_boundary(MAX_REASON));
            line.push('…');
            break;
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_one_short_printable_line() {
        assert_eq!(one_line("a\n\n  b\tc\n"), "a b c");
        assert_eq!(one_line("a\u{1b}[31mb\u{7f}"), "a[31mb");
        let long = one_line(&"ä".repeat(5000));
        assert!(long.len() <= MAX_REASON + '…'.len_utf8() && long.ends_with('…'));
    }
}

//! A cgroup's folder: made with those above it, marked, listed, removed. The same for v1 and v2.

use std::io::{self, Read, Seek, Write};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Marks the folders above a container's cgroup that were made for it, so that the last container removes them again.
/// Folders of others, such as the kubelet's pods, have no mark and stay.
const MADE_BY_HYBRID: &str = "trusted.hybrid.made";

/// Marks a container's own cgroup with the bundle it was made for. Another container may name the same cgroup in its spec:
/// what cleans up after that one must not take this one's processes for its.
const CONTAINER: &str = "trusted.hybrid.bundle";

/// How long processes that were killed may take to leave a cgroup.
const PATIENCE: Duration = Duration::from_secs(2);

/// Writes to a file of the kernel's, which is never created: it is missing where its controller is.
pub(super) fn write(file: &Path, value: &str) -> io::Result<()> {
    std::fs::OpenOptions::new().write(true).open(file)?.write_all(value.as_bytes())
}

/// Makes a cgroup's folder and those above it.
pub(super) fn make_folder(folder: &Path) -> io::Result<()> {
    // Another container's removal may take a parent away again before the folder is in it.
    for _ in 0..1000 {
        match make_parents(folder).and_then(|()| std::fs::create_dir(folder)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(libc::ENODEV) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
            result => return result,
        }
    }
    Err(io::Error::from_raw_os_error(libc::EBUSY))
}

fn make_parents(folder: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = folder.ancestors().skip(1).take_while(|parent| !parent.exists()).collect();
    for parent in missing.into_iter().rev() {
        match std::fs::create_dir(parent) {
            Ok(()) => {
                // Where the kernel has no such attributes on cgroups the folder only stays behind, empty.
                let _ = rustix::fs::setxattr(parent, MADE_BY_HYBRID, b"1", rustix::fs::XattrFlags::empty());
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

pub(super) fn remove_made_parents(folder: &Path) {
    for parent in folder.ancestors().skip(1) {
        let mut value = [0u8; 8];
        let made = rustix::fs::getxattr(parent, MADE_BY_HYBRID, &mut value[..]).is_ok();
        // Not empty: another container is in it, and will remove it.
        if !made || std::fs::remove_dir(parent).is_err() {
            return;
        }
    }
}

/// The mark of the container whose bundle is at `bundle`, however that path is written.
pub(super) fn mark_of(bundle: &Path) -> io::Result<Vec<u8>> {
    Ok(bundle.canonicalize()?.into_os_string().into_vec())
}

/// Writes a container's mark.
pub(super) fn set_mark(folder: &Path, mark: &[u8]) -> io::Result<()> {
    rustix::fs::setxattr(folder, CONTAINER, mark, rustix::fs::XattrFlags::empty())?;
    Ok(())
}

/// Reads the mark, if there is one.
pub(super) fn get_mark(folder: &Path) -> Option<Vec<u8>> {
    let mut value = [0u8; libc::PATH_MAX as usize];
    let length = rustix::fs::getxattr(folder, CONTAINER, &mut value[..]).ok()?;
    value.get(..length).map(<[u8]>::to_vec)
}

pub(super) fn collect_pids(folder: &Path, pids: &mut Vec<u32>) -> io::Result<()> {
    let text = match std::fs::read_to_string(folder.join("cgroup.procs")) {
        Ok(text) => text,
        // Gone, or going: nothing is in it.
        Err(e) if e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(libc::ENODEV) => return Ok(()),
        Err(e) => return Err(e),
    };
    pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()).filter(|pid| *pid != 0));
    for child in subfolders(folder)? {
        collect_pids(&child, pids)?;
    }
    Ok(())
}

pub(super) fn subfolders(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let folders =
        entries.filter_map(|entry| entry.ok()).filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    Ok(folders.map(|entry| entry.path()).collect())
}

pub(super) fn remove_tree(folder: &Path) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let mut pause = Duration::from_millis(1);
    loop {
        match std::fs::remove_dir(folder) {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) if e.raw_os_error() != Some(libc::EBUSY) || Instant::now() > deadline => return Err(e),
            Err(_) => {}
        }
        let children = subfolders(folder)?;
        for child in &children {
            remove_tree(child)?;
        }
        if children.is_empty() && !await_empty(folder, deadline)? {
            std::thread::sleep(pause);
            pause *= 2;
        }
    }
}

/// Waits until the kernel says that no process is left in a v2 cgroup, or until the deadline. False on v1, which has no
/// such event for a cgroup whose last process is gone but not yet forgotten.
fn await_empty(folder: &Path, deadline: Instant) -> io::Result<bool> {
    match await_event(folder, "populated 0", deadline) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(!folder.exists()),
        result => result.map(|_| true),
    }
}

/// Waits until `line` is in a v2 cgroup's cgroup.events. False when it was not there by the deadline; true also when the
/// cgroup is removed meanwhile.
pub(super) fn await_event(folder: &Path, line: &str, deadline: Instant) -> io::Result<bool> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut events = std::fs::File::open(folder.join("cgroup.events"))?;
    loop {
        let mut text = String::new();
        match events.rewind().and_then(|()| events.read_to_string(&mut text)) {
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => return Ok(true),
            result => result?,
        };
        if text.lines().any(|found| found == line) {
            return Ok(true);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        match poll(&mut [PollFd::new(&events, PollFlags::PRI)], Some(&left)) {
            Err(rustix::io::Errno::INTR) | Ok(_) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_tells_containers_apart() {
        // Any file system with trusted attributes will do.
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        assert_eq!(get_mark(folder.path()), None, "not marked yet");
        let mark = mark_of(one.path()).unwrap();
        set_mark(folder.path(), &mark).unwrap();
        assert_eq!(get_mark(folder.path()), Some(mark.clone()));
        assert_eq!(mark_of(&one.path().join(".")).unwrap(), mark, "however the path is written");
        assert_ne!(mark_of(other.path()).unwrap(), mark);
    }
}

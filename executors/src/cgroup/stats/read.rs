//! Reading a cgroup's files quickly: relative to its open folder, into one buffer.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::OnceLock;

use rustix::fs::{Mode, OFlags, open, openat};
use rustix::io::Errno;

use super::{PidsStat, RdmaEntry, RdmaStat};

/// A cgroup's open folder. Files that it lacks, or that can't be read, are `None`.
pub(super) struct Files {
    folder: OwnedFd,
    text: Vec<u8>,
}

impl Files {
    /// `None` when there is no such folder.
    pub fn open(folder: &Path) -> Option<Files> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = open(folder, flags, Mode::empty()).ok()?;
        Some(Files { folder, text: Vec::with_capacity(4096) })
    }

    pub fn text(&mut self, file: &str) -> Option<&str> {
        let file = self.open_file(file)?;
        self.text.clear();
        loop {
            self.text.reserve(1024);
            match rustix::io::read(&file, rustix::buffer::spare_capacity(&mut self.text)) {
                Ok(0) => break,
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return None,
            }
        }
        std::str::from_utf8(&self.text).ok()
    }

    /// A file that holds one number; `max` is `u64::MAX`.
    pub fn number(&mut self, file: &str) -> Option<u64> {
        let file = self.open_file(file)?;
        // A number comes in one piece: the kernel need not be asked whether there is more.
        let mut buffer = [0u8; 32];
        let length = rustix::io::retry_on_intr(|| rustix::io::read(&file, &mut buffer)).ok()?;
        number(std::str::from_utf8(buffer.get(..length)?).ok()?.trim_end())
    }

    fn open_file(&self, file: &str) -> Option<OwnedFd> {
        openat(&self.folder, file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()
    }

    /// pids.current and pids.max.
    pub fn pids(&mut self) -> Option<PidsStat> {
        let current = self.number("pids.current")?;
        Some(PidsStat { current, limit: self.number("pids.max").unwrap_or_default() })
    }

    /// rdma.current and rdma.max.
    pub fn rdma(&mut self) -> Option<RdmaStat> {
        let current = rdma(self.text("rdma.current")?);
        Some(RdmaStat { current, limit: self.text("rdma.max").map(rdma).unwrap_or_default() })
    }
}

fn number(text: &str) -> Option<u64> {
    if text == "max" { Some(u64::MAX) } else { text.parse().ok() }
}

/// Lines of the form `key value`.
pub(super) fn pairs(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| {
        let (key, value) = line.split_once(' ')?;
        Some((key, value.trim().parse().ok()?))
    })
}

/// Lines of the form `device hca_handle=2 hca_object=max`.
fn rdma(text: &str) -> Vec<RdmaEntry> {
    let entry = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let mut entry = RdmaEntry { device: words.next()?.to_owned(), ..RdmaEntry::default() };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let value = if value == "max" { u32::MAX } else { value.parse().ok()? };
            match key {
                "hca_handle" => entry.hca_handles = value,
                "hca_object" => entry.hca_objects = value,
                _ => {}
            }
        }
        Some(entry)
    };
    text.lines().filter_map(entry).collect()
}

/// The host's sizes of huge pages, as the names of hugetlb's files have them: `2MB`, `1GB`.
pub(super) fn huge_page_sizes() -> &'static [String] {
    static SIZES: OnceLock<Vec<String>> = OnceLock::new();
    SIZES.get_or_init(|| {
        let entries = std::fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten();
        let mut sizes: Vec<u64> = entries
            .filter_map(|entry| {
                entry.file_name().to_str()?.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()
            })
            .collect();
        sizes.sort_unstable();
        sizes.into_iter().map(size_name).collect()
    })
}

/// The kernel's mem_fmt() in mm/hugetlb_cgroup.c.
fn size_name(kilobytes: u64) -> String {
    match kilobytes {
        gigabytes if gigabytes >= 1 << 20 => format!("{}GB", gigabytes >> 20),
        megabytes if megabytes >= 1 << 10 => format!("{}MB", megabytes >> 10),
        kilobytes => format!("{kilobytes}KB"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_huge_pages_are_named_as_the_kernel_names_them() {
        assert_eq!([64, 2048, 1 << 20, 16 << 20].map(size_name), ["64KB", "2MB", "1GB", "16GB"]);
    }

    #[test]
    fn rdma_devices() {
        let entry =
            |device: &str, hca_handles, hca_objects| RdmaEntry { device: device.to_owned(), hca_handles, hca_objects };
        let text = "mlx4_0 hca_handle=2 hca_object=2000\nocrdma1 hca_handle=3 hca_object=max\n";
        assert_eq!(rdma(text), [entry("mlx4_0", 2, 2000), entry("ocrdma1", 3, u32::MAX)]);
        assert_eq!(rdma(""), []);
    }

    #[test]
    fn files_are_read_whole_or_are_missing() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("big"), "a 1\n".repeat(10_000)).unwrap();
        std::fs::write(folder.path().join("pids.current"), "7\n").unwrap();
        std::fs::write(folder.path().join("pids.max"), "max\n").unwrap();
        let mut files = Files::open(folder.path()).unwrap();
        assert_eq!(pairs(files.text("big").unwrap()).map(|(_, value)| value).sum::<u64>(), 10_000);
        assert_eq!(files.pids(), Some(PidsStat { current: 7, limit: u64::MAX }));
        assert_eq!(files.text("none"), None);
        assert_eq!(files.rdma(), None);
        assert!(Files::open(&folder.path().join("none")).is_none());
    }
}

//! Stats of cgroup v2. Sizes are in bytes, times in microseconds; no limit is `u64::MAX`.

use super::read::{Files, huge_page_sizes, pairs};
use super::{PidsStat, RdmaStat, counters};
use crate::cgroup::Cgroup;
use crate::error::{Result, bail};

/// `io.containerd.cgroups.v2.Metrics`, but for `network`, which containerd does not fill either.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics {
    pub pids: Option<PidsStat>,
    pub cpu: Option<CpuStat>,
    pub memory: Option<MemoryStat>,
    pub rdma: Option<RdmaStat>,
    pub io: Option<IoStat>,
    pub hugetlb: Vec<HugeTlbStat>,
    pub memory_events: Option<MemoryEvents>,
}

/// How much time was lost waiting (PSI: the kernel's accounting/psi.rst).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PsiStats {
    /// Some process waited.
    pub some: Option<PsiData>,
    /// All of them waited.
    pub full: Option<PsiData>,
}

/// Averages over seconds, in percent, and the total.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PsiData {
    pub avg10: f64,
    pub avg60: f64,
    pub avg300: f64,
    pub total: u64,
}

/// cpu.stat and cpu.pressure.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CpuStat {
    pub stat: CpuCounters,
    pub psi: Option<PsiStats>,
}

counters! {
    /// cpu.stat.
    CpuCounters {
        usage_usec = "usage_usec",
        user_usec = "user_usec",
        system_usec = "system_usec",
        nr_periods = "nr_periods",
        nr_throttled = "nr_throttled",
        throttled_usec = "throttled_usec",
        nr_bursts = "nr_bursts",
        burst_usec = "burst_usec",
    }
}

/// memory.stat and the files beside it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct MemoryStat {
    pub stat: MemoryCounters,
    pub usage: u64,
    pub usage_limit: u64,
    /// Swap alone.
    pub swap_usage: u64,
    pub swap_limit: u64,
    /// The most that `usage` has been.
    pub max_usage: u64,
    pub swap_max_usage: u64,
    pub psi: Option<PsiStats>,
}

counters! {
    /// memory.stat.
    MemoryCounters {
        anon = "anon",
        file = "file",
        kernel_stack = "kernel_stack",
        slab = "slab",
        sock = "sock",
        shmem = "shmem",
        file_mapped = "file_mapped",
        file_dirty = "file_dirty",
        file_writeback = "file_writeback",
        anon_thp = "anon_thp",
        inactive_anon = "inactive_anon",
        active_anon = "active_anon",
        inactive_file = "inactive_file",
        active_file = "active_file",
        unevictable = "unevictable",
        slab_reclaimable = "slab_reclaimable",
        slab_unreclaimable = "slab_unreclaimable",
        pgfault = "pgfault",
        pgmajfault = "pgmajfault",
        /// Linux 5.9 and later count anonymous pages and those of files apart.
        workingset_refault = "workingset_refault" | "workingset_refault_anon" | "workingset_refault_file",
        workingset_activate = "workingset_activate" | "workingset_activate_anon" | "workingset_activate_file",
        workingset_nodereclaim = "workingset_nodereclaim",
        pgrefill = "pgrefill",
        pgscan = "pgscan",
        pgsteal = "pgsteal",
        pgactivate = "pgactivate",
        pgdeactivate = "pgdeactivate",
        pglazyfree = "pglazyfree",
        pglazyfreed = "pglazyfreed",
        thp_fault_alloc = "thp_fault_alloc",
        thp_collapse_alloc = "thp_collapse_alloc",
    }
}

counters! {
    /// memory.events.
    MemoryEvents {
        low = "low",
        high = "high",
        max = "max",
        oom = "oom",
        oom_kill = "oom_kill",
        oom_group_kill = "oom_group_kill",
    }
}

/// io.stat and io.pressure.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct IoStat {
    pub usage: Vec<IoEntry>,
    pub psi: Option<PsiStats>,
}

/// One device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoEntry {
    pub major: u64,
    pub minor: u64,
    pub rbytes: u64,
    pub wbytes: u64,
    pub rios: u64,
    pub wios: u64,
}

/// Huge pages of one size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HugeTlbStat {
    pub current: u64,
    pub max: u64,
    /// Such as `2MB`.
    pub pagesize: String,
    pub failcnt: u64,
}

pub(super) fn read(cgroup: &Cgroup) -> Result<Box<Metrics>> {
    let Some(mut files) = cgroup.controller_folder(&None).and_then(|folder| Files::open(&folder)) else {
        bail!(NotFound, "cgroup {} is gone", cgroup.groups.path())
    };
    let files = &mut files;
    let cpu = files.text("cpu.stat").map(CpuCounters::parse);
    let io = files.text("io.stat").map(io_entries);
    let io_psi = psi(files, "io.pressure");
    Ok(Box::new(Metrics {
        pids: files.pids(),
        cpu: cpu.map(|stat| CpuStat { stat, psi: psi(files, "cpu.pressure") }),
        memory: memory_stat(files),
        rdma: files.rdma(),
        io: (io.is_some() || io_psi.is_some()).then(|| IoStat { usage: io.unwrap_or_default(), psi: io_psi }),
        hugetlb: huge_pages(files),
        memory_events: files.text("memory.events").map(MemoryEvents::parse),
    }))
}

fn memory_stat(files: &mut Files) -> Option<MemoryStat> {
    let stat = MemoryCounters::parse(files.text("memory.stat")?);
    // Without the memory controller there is memory.stat at most.
    let usage = files.number("memory.current")?;
    let mut number = |file| files.number(file).unwrap_or_default();
    let (usage_limit, max_usage) = (number("memory.max"), number("memory.peak"));
    let (swap_usage, swap_limit) = (number("memory.swap.current"), number("memory.swap.max"));
    let swap_max_usage = number("memory.swap.peak");
    let psi = psi(files, "memory.pressure");
    Some(MemoryStat { stat, usage, usage_limit, swap_usage, swap_limit, max_usage, swap_max_usage, psi })
}

fn huge_pages(files: &mut Files) -> Vec<HugeTlbStat> {
    let stat = |size: &String| {
        let current = files.number(&format!("hugetlb.{size}.current"))?;
        let max = files.number(&format!("hugetlb.{size}.max")).unwrap_or_default();
        let events = files.text(&format!("hugetlb.{size}.events"));
        let failcnt = events.and_then(|text| pairs(text).find(|(key, _)| *key == "max")).map_or(0, |(_, value)| value);
        Some(HugeTlbStat { current, max, pagesize: size.clone(), failcnt })
    };
    huge_page_sizes().iter().filter_map(stat).collect()
}

/// Lines of the form `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`.
fn io_entries(text: &str) -> Vec<IoEntry> {
    let entry = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let (major, minor) = words.next()?.split_once(':')?;
        let mut entry = IoEntry { major: major.parse().ok()?, minor: minor.parse().ok()?, ..IoEntry::default() };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let Ok(value) = value.parse() else { continue };
            match key {
                "rbytes" => entry.rbytes = value,
                "wbytes" => entry.wbytes = value,
                "rios" => entry.rios = value,
                "wios" => entry.wios = value,
                _ => {}
            }
        }
        Some(entry)
    };
    text.lines().filter_map(entry).collect()
}

/// `None` where the kernel has no PSI, or was started without.
fn psi(files: &mut Files, file: &str) -> Option<PsiStats> {
    files.text(file).map(parse_psi)
}

/// Lines of the form `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`.
fn parse_psi(text: &str) -> PsiStats {
    let mut stats = PsiStats::default();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let slot = match words.next() {
            Some("some") => &mut stats.some,
            Some("full") => &mut stats.full,
            _ => continue,
        };
        let data = slot.insert(PsiData::default());
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            match key {
                "avg10" => data.avg10 = value.parse().unwrap_or_default(),
                "avg60" => data.avg60 = value.parse().unwrap_or_default(),
                "avg300" => data.avg300 = value.parse().unwrap_or_default(),
                "total" => data.total = value.parse().unwrap_or_default(),
                _ => {}
            }
        }
    }
    stats
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure() {
        let stats = parse_psi(
            "some avg10=1.50 avg60=0.25 avg300=0.00 total=42\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n",
        );
        assert_eq!(stats.some, Some(PsiData { avg10: 1.5, avg60: 0.25, avg300: 0.0, total: 42 }));
        assert_eq!(stats.full.unwrap().total, 7);
        assert_eq!(parse_psi("some avg10=0.00 avg60=0.00 avg300=0.00 total=1\n").full, None);
    }

    #[test]
    fn io_by_device() {
        let text = "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n259:1 \n";
        let first = IoEntry { major: 8, minor: 0, rbytes: 1, wbytes: 2, rios: 3, wios: 4 };
        assert_eq!(io_entries(text), [first, IoEntry { major: 259, minor: 1, ..IoEntry::default() }]);
    }

    #[test]
    fn refaults_are_one_number_whatever_the_kernel() {
        let old = MemoryCounters::parse("anon 5\nworkingset_refault 3\n");
        let new = MemoryCounters::parse("anon 5\nworkingset_refault_anon 1\nworkingset_refault_file 2\n");
        assert_eq!(old, new);
        assert_eq!(new.workingset_refault, 3);
    }
}

//! Stats of cgroup v1. Sizes are in bytes, times in nanoseconds.

use std::collections::HashMap;

use cgroups_rs::fs::Controllers;

use super::read::{Files, huge_page_sizes, pairs};
use super::{PidsStat, RdmaStat, counters};
use crate::cgroup::Cgroup;
use crate::error::{Result, bail};

/// `io.containerd.cgroups.v1.Metrics`, but for `network` and `cgroup_stats`, which containerd does not fill either.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics {
    pub hugetlb: Vec<HugetlbStat>,
    pub pids: Option<PidsStat>,
    pub cpu: Option<CpuStat>,
    pub memory: Option<MemoryStat>,
    pub blkio: Option<BlkIoStat>,
    pub rdma: Option<RdmaStat>,
    pub memory_oom_control: Option<MemoryOomControl>,
}

/// Huge pages of one size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HugetlbStat {
    pub usage: u64,
    pub max: u64,
    pub failcnt: u64,
    /// Such as `2MB`.
    pub pagesize: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuStat {
    pub usage: CpuUsage,
    pub throttling: Throttle,
}

/// CPU time. `kernel` and `user` come in ticks of 10 ms, and need not add up to `total`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuUsage {
    pub total: u64,
    pub kernel: u64,
    pub user: u64,
    /// By CPU, those that are offline or absent included.
    pub per_cpu: Vec<u64>,
}

counters! {
    /// Times at which the CPU quota was used up (cpu.stat).
    Throttle {
        periods = "nr_periods",
        throttled_periods = "nr_throttled",
        throttled_time = "throttled_time",
    }
}

/// memory.stat and the counters beside it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryStat {
    pub stat: MemoryCounters,
    pub usage: MemoryEntry,
    /// Memory and swap together (memory.memsw).
    pub swap: MemoryEntry,
    pub kernel: MemoryEntry,
    pub kernel_tcp: MemoryEntry,
}

counters! {
    /// memory.stat: `total_*` with all cgroups below, the others without.
    MemoryCounters {
        cache = "cache",
        rss = "rss",
        rss_huge = "rss_huge",
        mapped_file = "mapped_file",
        dirty = "dirty",
        writeback = "writeback",
        pg_pg_in = "pgpgin",
        pg_pg_out = "pgpgout",
        pg_fault = "pgfault",
        pg_maj_fault = "pgmajfault",
        inactive_anon = "inactive_anon",
        active_anon = "active_anon",
        inactive_file = "inactive_file",
        active_file = "active_file",
        unevictable = "unevictable",
        hierarchical_memory_limit = "hierarchical_memory_limit",
        hierarchical_swap_limit = "hierarchical_memsw_limit",
        total_cache = "total_cache",
        total_rss = "total_rss",
        total_rss_huge = "total_rss_huge",
        total_mapped_file = "total_mapped_file",
        total_dirty = "total_dirty",
        total_writeback = "total_writeback",
        total_pg_pg_in = "total_pgpgin",
        total_pg_pg_out = "total_pgpgout",
        total_pg_fault = "total_pgfault",
        total_pg_maj_fault = "total_pgmajfault",
        total_inactive_anon = "total_inactive_anon",
        total_active_anon = "total_active_anon",
        total_inactive_file = "total_inactive_file",
        total_active_file = "total_active_file",
        total_unevictable = "total_unevictable",
    }
}

/// One of v1's counters of memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryEntry {
    pub limit: u64,
    pub usage: u64,
    /// The most that `usage` has been.
    pub max: u64,
    /// How often the limit was hit.
    pub failcnt: u64,
}

counters! {
    /// memory.oom_control.
    MemoryOomControl {
        oom_kill_disable = "oom_kill_disable",
        under_oom = "under_oom",
        oom_kill = "oom_kill",
    }
}

/// Block I/O, by device and kind, with all cgroups below.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlkIoStat {
    pub io_service_bytes_recursive: Vec<BlkIoEntry>,
    pub io_serviced_recursive: Vec<BlkIoEntry>,
    pub io_queued_recursive: Vec<BlkIoEntry>,
    pub io_service_time_recursive: Vec<BlkIoEntry>,
    pub io_wait_time_recursive: Vec<BlkIoEntry>,
    pub io_merged_recursive: Vec<BlkIoEntry>,
    pub io_time_recursive: Vec<BlkIoEntry>,
    pub sectors_recursive: Vec<BlkIoEntry>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlkIoEntry {
    /// Such as `Read`; empty where the kernel makes no difference.
    pub op: String,
    /// Such as `/dev/sda`; empty when it is not known.
    pub device: String,
    pub major: u64,
    pub minor: u64,
    pub value: u64,
}

pub(super) fn read(cgroup: &Cgroup) -> Result<Box<Metrics>> {
    let files = |controller| Files::open(&cgroup.controller_folder(&Some(controller))?);
    let (mut cpu, mut cpuacct) = (files(Controllers::Cpu), files(Controllers::CpuAcct));
    let (mut pids, mut memory) = (files(Controllers::Pids), files(Controllers::Mem));
    let (mut blkio, mut hugetlb) = (files(Controllers::BlkIo), files(Controllers::HugeTlb));
    let mut rdma = files(Controllers::Rdma);
    if [&cpu, &cpuacct, &pids, &memory, &blkio, &hugetlb, &rdma].iter().all(|files| files.is_none()) && !cgroup.exists()
    {
        bail!(NotFound, "cgroup {} is gone", cgroup.groups.path());
    }
    Ok(Box::new(Metrics {
        hugetlb: hugetlb.as_mut().map(huge_pages).unwrap_or_default(),
        // containerd reads "max" as 0 here.
        pids: pids.as_mut().and_then(Files::pids).map(|pids| PidsStat { limit: bounded(pids.limit), ..pids }),
        cpu: (cpu.is_some() || cpuacct.is_some()).then(|| CpuStat {
            usage: cpuacct.as_mut().map(cpu_usage).unwrap_or_default(),
            throttling: cpu.as_mut().and_then(|cpu| cpu.text("cpu.stat").map(Throttle::parse)).unwrap_or_default(),
        }),
        memory: memory.as_mut().and_then(memory_stat),
        blkio: blkio.as_mut().map(block_io),
        rdma: rdma.as_mut().and_then(Files::rdma),
        memory_oom_control: memory.as_mut().and_then(|m| m.text("memory.oom_control").map(MemoryOomControl::parse)),
    }))
}

fn bounded(limit: u64) -> u64 {
    if limit == u64::MAX { 0 } else { limit }
}

fn cpu_usage(files: &mut Files) -> CpuUsage {
    let numbers = |text: &str| text.split_ascii_whitespace().filter_map(|word| word.parse().ok()).collect();
    let per_cpu: Vec<u64> = files.text("cpuacct.usage_percpu").map(numbers).unwrap_or_default();
    let mut usage = CpuUsage { total: per_cpu.iter().sum(), per_cpu, ..CpuUsage::default() };
    let nanoseconds = |ticks: u64| ticks.saturating_mul(1_000_000_000 / rustix::param::clock_ticks_per_second());
    for (key, ticks) in files.text("cpuacct.stat").into_iter().flat_map(pairs) {
        match key {
            "user" => usage.user = nanoseconds(ticks),
            "system" => usage.kernel = nanoseconds(ticks),
            _ => {}
        }
    }
    usage
}

fn memory_stat(files: &mut Files) -> Option<MemoryStat> {
    let stat = MemoryCounters::parse(files.text("memory.stat")?);
    let mut entry = |name: &str| {
        // Each is there or not as a whole, but for kmem's limit.
        let Some(usage) = files.number(&format!("memory.{name}usage_in_bytes")) else { return MemoryEntry::default() };
        let mut number = |counter| files.number(&format!("memory.{name}{counter}")).unwrap_or_default();
        let (limit, max, failcnt) = (number("limit_in_bytes"), number("max_usage_in_bytes"), number("failcnt"));
        MemoryEntry { limit, usage, max, failcnt }
    };
    Some(MemoryStat {
        stat,
        usage: entry(""),
        swap: entry("memsw."),
        kernel: entry("kmem."),
        kernel_tcp: entry("kmem.tcp."),
    })
}

fn huge_pages(files: &mut Files) -> Vec<HugetlbStat> {
    let stat = |size: &String| {
        let usage = files.number(&format!("hugetlb.{size}.usage_in_bytes"))?;
        let mut number = |counter| files.number(&format!("hugetlb.{size}.{counter}")).unwrap_or_default();
        let (max, failcnt) = (number("max_usage_in_bytes"), number("failcnt"));
        Some(HugetlbStat { usage, max, failcnt, pagesize: size.clone() })
    };
    huge_page_sizes().iter().filter_map(stat).collect()
}

/// What the scheduler BFQ counts, where it has a device, else what passes the limits of throttling.
fn block_io(files: &mut Files) -> BlkIoStat {
    let mut entries = |file: &str| files.text(file).map(block_io_entries).unwrap_or_default();
    let mut stat = BlkIoStat::default();
    for policy in ["bfq", "throttle"] {
        stat.io_service_bytes_recursive = entries(&format!("blkio.{policy}.io_service_bytes_recursive"));
        stat.io_serviced_recursive = entries(&format!("blkio.{policy}.io_serviced_recursive"));
        if !stat.io_service_bytes_recursive.is_empty() || !stat.io_serviced_recursive.is_empty() {
            break;
        }
    }
    // The rest is there only in kernels made for finding faults in BFQ.
    stat.io_time_recursive = entries("blkio.bfq.time_recursive");
    if !stat.io_time_recursive.is_empty() {
        stat.sectors_recursive = entries("blkio.bfq.sectors_recursive");
        stat.io_queued_recursive = entries("blkio.bfq.io_queued_recursive");
        stat.io_service_time_recursive = entries("blkio.bfq.io_service_time_recursive");
        stat.io_wait_time_recursive = entries("blkio.bfq.io_wait_time_recursive");
        stat.io_merged_recursive = entries("blkio.bfq.io_merged_recursive");
    }
    name_devices(&mut stat);
    stat
}

/// Lines of the form `8:0 Read 1282048` or `8:0 1282048`; sums over all devices have no number in front.
fn block_io_entries(text: &str) -> Vec<BlkIoEntry> {
    let entry = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let (major, minor) = words.next()?.split_once(':')?;
        let (op, value) = match (words.next()?, words.next()) {
            (value, None) => (String::new(), value),
            (op, Some(value)) => (op.to_owned(), value),
        };
        let (major, minor, value) = (major.parse().ok()?, minor.parse().ok()?, value.parse().ok()?);
        Some(BlkIoEntry { op, device: String::new(), major, minor, value })
    };
    text.lines().filter_map(entry).collect()
}

fn name_devices(stat: &mut BlkIoStat) {
    let lists = [
        &mut stat.io_service_bytes_recursive,
        &mut stat.io_serviced_recursive,
        &mut stat.io_queued_recursive,
        &mut stat.io_service_time_recursive,
        &mut stat.io_wait_time_recursive,
        &mut stat.io_merged_recursive,
        &mut stat.io_time_recursive,
        &mut stat.sectors_recursive,
    ];
    let mut entries = lists.into_iter().flatten().peekable();
    if entries.peek().is_none() {
        return;
    }
    let names = devices(&std::fs::read_to_string("/proc/partitions").unwrap_or_default());
    for entry in entries {
        if let Some(name) = names.get(&(entry.major, entry.minor)) {
            entry.device.clone_from(name);
        }
    }
}

/// Block devices by their numbers (proc_partitions(5): a headline, then `major minor blocks name`).
fn devices(text: &str) -> HashMap<(u64, u64), String> {
    let device = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let (major, minor) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some(((major, minor), format!("/dev/{}", words.nth(1)?)))
    };
    text.lines().filter_map(device).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_io_by_device() {
        let text = "8:0 Read 10\n8:0 Total 10\n254:16 Write 3\nTotal 13\n";
        let entry = |op: &str, major, minor, value| BlkIoEntry {
            op: op.to_owned(),
            device: String::new(),
            major,
            minor,
            value,
        };
        let entries = [entry("Read", 8, 0, 10), entry("Total", 8, 0, 10), entry("Write", 254, 16, 3)];
        assert_eq!(block_io_entries(text), entries);
        assert_eq!(block_io_entries("8:0 6792\n"), [entry("", 8, 0, 6792)]);
        assert_eq!(block_io_entries("Total 0\n"), []);
    }

    #[test]
    fn devices_have_names() {
        let names = devices("major minor  #blocks  name\n\n 254        0  268435456 vda\n 254        1   1024 vda1\n");
        assert_eq!(names.len(), 2);
        assert_eq!(names[&(254, 1)], "/dev/vda1");
    }

    #[test]
    fn counters_are_read_by_their_names() {
        let stat = MemoryCounters::parse("cache 1\nrss 2\npgpgin 3\nunknown 9\ntotal_pgmajfault 4\nbroken\n");
        let wanted =
            MemoryCounters { cache: 1, rss: 2, pg_pg_in: 3, total_pg_maj_fault: 4, ..MemoryCounters::default() };
        assert_eq!(stat, wanted);
        assert_eq!([7, u64::MAX].map(bounded), [7, 0]);
    }
}
